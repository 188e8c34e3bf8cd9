"""What an engine stores of an item to answer filters, and filters in those terms."""

import pytest

from headwater.encoder.features import item_key
from headwater.index.fields import Group, HasKey, HasNumber, HasWord, condition, document, number_field
from headwater.index.filters import parse

AVAILABLE = HasWord(("9:available:true",))


def payload(**fields: object) -> dict[str, object]:
    return {"category": None, "tags": [], "price": None, "available": True, "attributes": {}, **fields}


def test_texts_and_bools_are_words_and_numbers_have_a_field_each() -> None:
    stored = document(
        payload(
            category="garden",
            tags=["tools", "steel"],
            price=9.5,
            attributes={"organic": True, "weight": 3, "sizes": [38, 40, "XL"]},
        )
    )
    assert set(stored.words) == {
        *("8:category=garden", "4:tags=tools", "4:tags=steel", "9:available:true"),
        *("18:attributes.organic:true", "16:attributes.sizes=XL"),
    }
    assert stored.numbers == {
        "price": [9.5],
        number_field("attributes.weight"): [3.0],
        number_field("attributes.sizes"): [38.0, 40.0],
    }


def test_a_field_that_an_item_does_not_have_is_not_stored() -> None:
    assert document(payload()).words == ["9:available:true"]
    assert document(payload()).numbers == {}


def test_names_that_could_be_mistaken_for_each_other_are_apart() -> None:
    one = document(payload(attributes={"a=b": "c"})).words
    other = document(payload(attributes={"a": "b=c"})).words
    assert set(one) & set(other) == {"9:available:true"}


def test_number_fields_of_any_name_are_names_that_an_engine_takes() -> None:
    assert number_field("price") == "price"
    odd = number_field('attributes.Größe [cm] "x"')
    assert odd.removeprefix("number_").isalnum()
    assert odd != number_field("attributes.other")


def test_only_what_is_available_is_searched_unless_the_filter_says_otherwise() -> None:
    assert condition(None) == Group(must=(AVAILABLE,))
    assert condition(parse({"category": "garden"})).must == (HasWord(("8:category=garden",)), AVAILABLE)
    assert condition(parse({"available": False})).must == (HasWord(("9:available:false",)),)


def test_exclusions_are_keys_that_must_not_be() -> None:
    assert condition(None, frozenset({1, 2})).must_not == (HasKey(frozenset({1, 2})),)


def test_item_ids_are_looked_up_by_key() -> None:
    [wanted, _] = condition(parse({"item_id": {"any": ["tea", "soap"]}})).must
    assert wanted == HasKey(frozenset({item_key("tea"), item_key("soap")}))


@pytest.mark.parametrize("field", ["price", "attributes.weight"])
def test_ranges_and_numbers_are_looked_up_in_the_fields_own_index(field: str) -> None:
    [below, _] = condition(parse({field: {"lt": 5}})).must
    assert isinstance(below, HasNumber)
    assert (below.field, below.bounds.lt, below.bounds.gte) == (number_field(field), 5.0, None)
    [equal, _] = condition(parse({field: 5})).must
    assert isinstance(equal, HasNumber)
    assert (equal.bounds.gte, equal.bounds.lte) == (5.0, 5.0)


def test_a_choice_of_texts_and_numbers_is_either_of_both() -> None:
    [either, _] = condition(parse({"attributes.size": {"any": ["XL", 40]}})).must
    assert isinstance(either, Group)
    words, number = either.should
    assert words == HasWord(("15:attributes.size=XL",))
    assert isinstance(number, HasNumber)


def test_not_and_or_keep_their_shape() -> None:
    [shape, _] = condition(parse({"or": [{"category": "a"}, {"not": {"category": "b"}}]})).must
    assert shape == Group(should=(HasWord(("8:category=a",)), Group(must_not=(HasWord(("8:category=b",)),))))
