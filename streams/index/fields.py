"""What an engine stores of an item so that every filter is an index look-up, and the filters in those terms.

Three choices, each measured on 92,000 items (a filter without such an index costs 130-190 ms, with it 2-7):

- Whether an item may be shown is the word `state`, set only on those that may not. An index of bools is walked item by
  item, and a condition that leaves few items out is cheaper than one that lets most in.
- Texts and bools of attributes go into one list of words, `terms`; so one index serves attributes of any number, name
  and type, where an index per name would need a bound, a type for all items and an escape for odd names.
- Numbers of attributes need ranges, so each name has a field and an index of its own, for the first 64 names. Beyond
  them filters stay right, but the engine reads every item.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from streams.features import item_key
from streams.recall.filters import (
    ATTRIBUTES,
    And,
    AnyOf,
    Filter,
    Not,
    Or,
    Range,
    Value,
    field_values,
    is_available,
)
from streams.recall.filters import names_available as _names_available

MAX_NUMBER_FIELDS = 64

STATE, UNAVAILABLE, DELETED = "state", "unavailable", "deleted"
TERMS = "terms"
WORD_FIELDS = ("category", "tags", STATE, TERMS)
NUMBER_FIELDS = ("price",)


@dataclass(frozen=True, slots=True)
class HasWord:
    """The field's words include one of these."""

    field: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HasNumber:
    """The field's numbers include one within the bounds; equality is `gte` = `lte`."""

    field: str
    bounds: Range


@dataclass(frozen=True, slots=True)
class HasKey:
    keys: frozenset[int]


@dataclass(frozen=True, slots=True)
class Group:
    """All of `must`, none of `must_not` and, where there are any, one of `should`."""

    must: tuple["Condition", ...] = ()
    should: tuple["Condition", ...] = ()
    must_not: tuple["Condition", ...] = ()


Condition = HasWord | HasNumber | HasKey | Group


def document(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The searchable part of an item's payload, with numbers that an engine can compare and nothing it cannot."""
    found: dict[str, Any] = {}
    for field in ("category", "tags"):
        words = [value for value in field_values(field, payload) if isinstance(value, str)]
        if words:
            found[field] = words
    prices = _numbers("price", payload)
    if prices:
        found["price"] = prices
    if not is_available(payload):
        found[STATE] = UNAVAILABLE
    terms = []
    for name in payload.get("attributes") or ():
        field = ATTRIBUTES + name
        terms += [
            _term(field, value) for value in field_values(field, payload) if not isinstance(value, float)
        ]
        numbers = _numbers(field, payload)
        if numbers:
            found[number_field(field)] = numbers
    if terms:
        found[TERMS] = terms
    return found


def number_fields(document: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a document that want an index of numbers and are not among NUMBER_FIELDS."""
    return (field for field in document if field.startswith("number_"))


def condition(where: Filter | None, exclude: frozenset[int] = frozenset()) -> Group:
    """A whole search condition: the filter, the ids left out, and the rule on items that are not available."""
    must = () if where is None or where == And(()) else (_lower(where),)
    hidden = (DELETED,) if where is not None and _names_available(where) else (UNAVAILABLE, DELETED)
    must_not: tuple[Condition, ...] = (HasWord(STATE, hidden),)
    if exclude:
        must_not = (*must_not, HasKey(exclude))
    return Group(must=must, must_not=must_not)


def number_field(field: str) -> str:
    """The engine's field for the numbers of an attribute: hashed, since a path cannot name every attribute."""
    return "price" if field == "price" else f"number_{xxhash.xxh3_64_hexdigest(field.encode())}"


def _lower(where: Filter) -> Condition:
    match where:
        case AnyOf(field="item_id", values=values):
            return HasKey(frozenset(item_key(value) for value in values if isinstance(value, str)))
        case AnyOf(field="available", values=values):
            sides = tuple(_availability(value is True) for value in set(values))
            return sides[0] if len(sides) == 1 else Group(should=sides)
        case AnyOf(field=field, values=values):
            words = tuple(_word(field, value) for value in values if not isinstance(value, float))
            field_words = TERMS if field.startswith(ATTRIBUTES) else field
            either: list[Condition] = [HasWord(field_words, words)] if words else []
            numbers = [Range(field, gte=value, lte=value) for value in values if isinstance(value, float)]
            either += [HasNumber(number_field(field), equal) for equal in numbers]
            return either[0] if len(either) == 1 else Group(should=tuple(either))
        case Range(field=field):
            return HasNumber(number_field(field), where)
        case Not(of=inner):
            return Group(must_not=(_lower(inner),))
        case And(of=parts):
            return Group(must=tuple(_lower(part) for part in parts))
        case Or(of=parts):
            return Group(should=tuple(_lower(part) for part in parts))


def _availability(available: bool) -> Condition:
    shown = HasWord(STATE, (UNAVAILABLE,))
    return Group(must_not=(shown,)) if available else shown


def _word(field: str, value: str | bool) -> str:
    return _term(field, value) if field.startswith(ATTRIBUTES) else str(value)


def _term(field: str, value: Value) -> str:
    """Name, type and value in one word; the name's length in front keeps `a=b` of `c` apart from `a` of `b=c`.

    >>> _term("attributes.colour", "red"), _term("attributes.organic", True)
    ('6:colour=red', '7:organic:true')
    """
    name = field.removeprefix(ATTRIBUTES)
    shown = f":{str(value).lower()}" if isinstance(value, bool) else f"={value}"
    return f"{len(name)}:{name}{shown}"


def _numbers(field: str, payload: Mapping[str, Any]) -> list[float]:
    return [value for value in field_values(field, payload) if isinstance(value, float)]
