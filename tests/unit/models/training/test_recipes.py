"""Fields of a recipe set by name, as the command line does."""

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.data.statistics import Statistics
from headwater_models.networks import ARCHITECTURES
from headwater_models.training.recipes import (
    RecipeError,
    model_for,
    recipe,
    scorer_recipe,
    settings,
    table_for,
    varied,
    within_the_hour,
)


def statistics(events: int, users: int, items: int, texts: int = 0) -> Statistics:
    return Statistics(
        events, users, items, items, events / users, 99, 0.0, texts / items, texts, True, {"click": events}
    )


# The sizes of ML-100K, Amazon Beauty, Complete Journey and a small shop.
DENSE = statistics(100_000, 943, 1_682, 1_664)
SPARSE = statistics(353_962, 40_226, 54_542)
BROAD = statistics(1_469_307, 2_469, 92_348, 20_736)
SMALL = statistics(20_000, 3_500, 4_000, 3_900)


@pytest.mark.parametrize("model", sorted(ARCHITECTURES))
@pytest.mark.parametrize("data", [DENSE, SPARSE, BROAD, SMALL])
def test_every_model_has_a_recipe_for_all_data_that_its_windows_fit(model: str, data: Statistics) -> None:
    chosen = recipe(model, data)
    assert getattr(chosen.encoder, "length", chosen.fit.length) == chosen.fit.length
    ARCHITECTURES[model][1](chosen.encoder)


def test_data_of_a_kind_get_the_recipe_that_was_best_on_it() -> None:
    """The figures of `models/RESULTS.md` are of these; data is known by its statistics, and never by a name."""
    best = recipe("sasrec", SPARSE)
    assert (best.temperature, best.fit.start, best.fit.loss, best.fit.negatives) == (
        0.07,
        "svd",
        "sampled",
        3000,
    )
    assert (best.fit.length, best.fit.epochs, best.fit.patience, best.fit.average) == (50, 15, 3, 0.99)
    assert (best.fit.learning_rate, best.encoder.dropout) == (2e-3, 0.5)
    long = recipe("narm", DENSE)
    assert (long.temperature, long.fit.start, long.fit.loss) == (0.0, "svd", "softmax")
    assert (long.fit.length, long.fit.epochs, long.fit.patience, long.encoder.dropout) == (200, 60, 8, 0.3)
    broad = recipe("lru", BROAD)
    assert (broad.temperature, broad.fit.start, broad.fit.loss) == (0.0, "chance", "sampled")
    assert (broad.fit.length, broad.fit.epochs, broad.fit.patience) == (50, 12, 2)


@pytest.mark.parametrize("items", [1_000, 9_000, 90_000])
@pytest.mark.parametrize("users", [3_000, 14_000, 140_000])
def test_a_training_of_many_events_reads_them_less_often_and_never_over_ten_thousand_items_at_once(
    users: int, items: int
) -> None:
    large = statistics(1_400_000, users, items)
    fit = within_the_hour(recipe(model_for(large), large), large).fit
    assert 4 <= fit.epochs <= (6 if large.is_dense else 11) * 10**6 / 1_400_000
    assert 2 <= fit.patience <= fit.epochs
    assert fit.loss == ("softmax" if items == 1_000 else "sampled")
    small = recipe("sasrec", SMALL)
    assert within_the_hour(small, SMALL) == small


def test_the_rarer_the_items_the_fewer_sessions_make_neighbours() -> None:
    assert [table_for(data).together for data in (DENSE, BROAD, SMALL)] == [3, 2, 1]
    timeless = replace(SMALL, has_times=False)
    assert (table_for(SMALL).reach, table_for(timeless).reach) == (0, 5)
    assert {model_for(data) for data in (DENSE, SPARSE, BROAD, SMALL)} <= set(ARCHITECTURES)


def test_a_field_is_set_by_name_in_its_own_type() -> None:
    chosen = recipe("sasrec", DENSE)
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
    chosen = recipe("sasrec", DENSE)
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
        settings(recipe("lru", DENSE), [given])
    assert given in str(error.value)
