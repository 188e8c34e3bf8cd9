"""What an engine stores of an item so that every filter is an index look-up, and the filters in those terms.

Texts, bools and whether an item may be shown become words in one list, such as `8:category=garden`; so one index serves
every field, attributes of any number, name and type among them, where an index per name would need a bound, one type
for all items and an escape for odd names. Numbers need ranges, so `price`, `since_ms` and each attribute that is a number
have a field and an index of their own, 64 of them in all; beyond them filters stay right, but the engine reads
every item.

`available` is such a word too. Over 92,000 items that are scanned, asking for it costs a search 1-2 ms, leaving out what
lacks it 13 ms, and the engine's own index of bools 130 ms; hence the rule below asks for it, where an index cannot drop
what is hidden itself (`edge.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from headwater.encoder.features import item_key
from headwater.index.filters import (
    ATTRIBUTES,
    And,
    AnyOf,
    Filter,
    Not,
    Or,
    Range,
    Value,
    field_values,
    names_available,
)

MAX_NUMBER_FIELDS = 64
_PLAIN_FIELDS = ("category", "tags", "price", "available", "since_ms")


class Document(NamedTuple):
    """The searchable part of an item's payload: nothing that an engine could not compare."""

    words: list[str]
    numbers: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class HasWord:
    """The item has one of these words."""

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


def document(payload: Mapping[str, Any]) -> Document:
    words: list[str] = []
    numbers: dict[str, list[float]] = {}
    names = [*_PLAIN_FIELDS, *(ATTRIBUTES + name for name in payload.get("attributes") or ())]
    for field in names:
        for value in field_values(field, payload):
            if isinstance(value, float):
                numbers.setdefault(number_field(field), []).append(value)
            else:
                words.append(_word(field, value))
    return Document(words, numbers)


def condition(where: Filter | None, exclude: frozenset[int] = frozenset()) -> Group:
    """A whole search condition: the filter, the ids left out, and the rule on items that are not available."""
    must = () if where is None or where == And(()) else (_lower(where),)
    if where is None or not names_available(where):
        must = (*must, HasWord((_word("available", True),)))
    return Group(must=must, must_not=(HasKey(exclude),) if exclude else ())


def number_field(field: str) -> str:
    """The engine's field for the numbers of an attribute: hashed, since a path cannot name every attribute."""
    return "price" if field == "price" else f"number_{xxhash.xxh3_64_hexdigest(field.encode())}"


def _lower(where: Filter) -> Condition:
    match where:
        case AnyOf(field="item_id", values=values):
            return HasKey(frozenset(item_key(value) for value in values if isinstance(value, str)))
        case AnyOf(field=field, values=values):
            words = tuple(_word(field, value) for value in values if not isinstance(value, float))
            either: list[Condition] = [HasWord(words)] if words else []
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


def _word(field: str, value: Value) -> str:
    """Field, type and value in one word; the length in front keeps `a=b` of `c` apart from `a` of `b=c`.

    >>> _word("category", "garden"), _word("attributes.organic", True)
    ('8:category=garden', '18:attributes.organic:true')
    """
    shown = f":{str(value).lower()}" if isinstance(value, bool) else f"={value}"
    return f"{len(field)}:{field}{shown}"
