"""Fields of a recipe set by name, as the command line does."""

import pytest

pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.training.recipes import RecipeError, recipe, scorer_recipe, settings, varied


def test_a_field_is_set_by_name_in_its_own_type() -> None:
    chosen = recipe("sasrec", "ml-100k")
    given = [
        "fit.loss=gbce",
        "fit.negatives=50",
        "fit.augmentation.crop=1",
        "encoder.dim=32",
        "temperature=0.1",
    ]
    found = varied(chosen, settings(chosen, given))
    assert (found.fit.loss, found.fit.negatives, found.fit.augmentation.crop) == ("gbce", 50, 1.0)
    assert (found.encoder.dim, found.temperature) == (32, 0.1)
    assert varied(found, settings(chosen, ["fit.loss=softmax"])).fit.negatives == 50


def test_an_encoder_reads_as_many_events_as_it_is_trained_on() -> None:
    chosen = recipe("sasrec", "ml-100k")
    found = varied(chosen, settings(chosen, ["fit.length=20"]))
    assert found.encoder.length == found.fit.length == 20


def test_layers_of_a_scorer_are_numbers_with_commas() -> None:
    chosen = scorer_recipe("nfm")
    assert varied(chosen, settings(chosen, ["network.hidden=16,8"])).network.hidden == (16, 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("fit.lose=gbce", "expected a field of Recipe"),
        ("fit", "Expected"),
        ("fit.loss.kind=gbce", "expected a field of Recipe"),
        ("fit.loss=hinge", "Invalid enum value 'hinge'"),
        ("fit.negatives=many", "Expected `int`"),
        ("encoder.dropout=1.5", "expected a number from 0 to 1"),
        ("fit.learning_rate=-1", "expected a number from 0 to inf"),
        ("fit.learning_rate=nan", "expected a number from 0 to inf"),
        ("fit.epochs=3", "expected --epochs, which sets it"),
    ],
)
def test_what_a_recipe_cannot_be_is_one_sentence(given: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        settings(recipe("lru", "ml-100k"), [given])
    assert given in str(error.value)
