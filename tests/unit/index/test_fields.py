"""What an engine stores of an item to answer filters, and filters in those terms."""

import pytest

from headwater.encoder.features import item_key
from headwater.index.fields import (
    MAX_NUMBER_FIELDS,
    Document,
    Group,
    HasKey,
    HasNumber,
    HasWord,
    NumberIndexes,
    condition,
    document,
    number_field,
)
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


def numbered(*names: str) -> Document:
    return Document([], {name: [1.0] for name in names})


def test_one_item_does_not_take_all_number_indexes() -> None:
    indexes = NumberIndexes()
    greedy = numbered("price", *(f"n{number}" for number in range(64)))
    indexed = set(indexes.wanted(greedy, set()))
    assert len(indexed) == 16
    assert "price" not in indexed, "it has one anyway"
    for _ in range(14):
        assert indexes.wanted(numbered("weight"), indexed) == []
    assert indexes.wanted(numbered("weight"), indexed) == []
    assert indexes.wanted(numbered("weight"), indexed) == ["weight"], "sixteen items have it"


def test_what_many_items_have_takes_the_place_of_what_few_have() -> None:
    indexes = NumberIndexes()
    indexed: set[str] = set()
    for _ in range(16):
        indexed |= set(indexes.wanted(numbered(*(f"n{number}" for number in range(100))), indexed))
    assert len(indexed) == MAX_NUMBER_FIELDS
    for count in range(1, 34):
        assert indexes.wanted(numbered("weight"), indexed) == []
        exchange = indexes.rarest_below(numbered("weight"), indexed)
        assert (exchange is not None) == (count > 32)
    assert exchange is not None
    assert exchange[0] == "weight"
    assert exchange[1] in indexed


def test_the_names_that_are_counted_are_bounded() -> None:
    indexes = NumberIndexes()
    for number in range(10_000):
        indexes.wanted(numbered(f"n{number}"), set())
    assert len(indexes._items) <= 4_096
