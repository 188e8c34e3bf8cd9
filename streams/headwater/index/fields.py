"""What an engine stores of an item so that every filter is an index look-up, and filters in those terms.

**Words.** Texts, bools and availability become words in one list, such as `8:category=garden`, with one index for all of
them. Attributes may then have any number, name and type. An index for each name would need a bound on names, one type for
all items, and an escape for odd names.

**Numbers.** Ranges need numbers, so `price`, `since_ms` and each numeric attribute have a field and an index of their own.
At most 64 fields are indexed, those that most items have (`NumberIndexes`). Filters on further ones stay right, but the
engine reads every item.

**Availability** is a word too. In a scan of 92,000 items, requiring the word costs a search 1-2 ms, excluding items that
lack it 13 ms, and the engine's own index of bools 130 ms. So `condition` requires it, unless an index drops unavailable
items itself (`edge.py`).
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import xxhash

from headwater.encoder.features import item_key
from headwater.index.filters import (
    ATTRIBUTES,
    EVERYTHING,
    And,
    AnyOf,
    Filter,
    Not,
    Or,
    Range,
    Value,
    field_values,
    names_available,
    values_of,
)

MAX_NUMBER_FIELDS = 64
# Names whose items are counted. Beyond it the rarer half is forgotten.
_MAX_COUNTED = 4096
_FEW = 16
_PLAIN_FIELDS = ("category", "tags", "price", "available", "since_ms")


class Document(NamedTuple):
    """The searchable part of an item's payload: nothing that an engine could not compare."""

    words: list[str]
    numbers: dict[str, list[float]]


class NumberIndexes:
    """Decides which fields of numbers have an index, by how many new items had them.

    The first 16 get one at once, further ones when 16 items have had them: no item fills all room by itself. Where all items
    are counted, a full room is given to what many more items have (`rarest_below`). On a server, where each worker sees some
    of them, `waiting` says what is worth a count of all, at a sweep.
    """

    def __init__(self) -> None:
        self._items: dict[str, int] = {}

    def wanted(self, document: Document, indexed: Set[str]) -> list[str]:
        """Count a new item, and return its fields that are to be indexed now; ``indexed`` are, besides the price."""
        wanted: list[str] = []
        for field in document.numbers:
            if field == "price":
                continue
            self._items[field] = items = self._items.get(field, 0) + 1
            if field in indexed:
                continue
            room = MAX_NUMBER_FIELDS - len(indexed) - len(wanted)
            if room > 0 and (items >= _FEW or room > MAX_NUMBER_FIELDS - _FEW):
                wanted.append(field)
        if len(self._items) > _MAX_COUNTED:
            common = sorted(self._items.items(), key=lambda pair: -pair[1])[: _MAX_COUNTED // 2]
            self._items = dict(common)
        return wanted

    def waiting(self, indexed: Set[str], most: int) -> list[str]:
        """At most that many names without an index that 16 items have had or more, those of most items first."""
        known = [
            name
            for name, items in self._items.items()
            if items >= _FEW and name != "price" and name not in indexed
        ]
        return sorted(known, key=lambda name: -self._items[name])[:most]

    def rarest_below(self, document: Document, indexed: Set[str]) -> tuple[str, str] | None:
        """A field of the item that has no index, and the one whose index has to go for it: the item's is on twice as many."""
        if len(indexed) < MAX_NUMBER_FIELDS:
            return None
        others = document.numbers.keys() - indexed - {"price"}
        if not others:
            return None
        field = max(others, key=lambda name: self._items.get(name, 0))
        rarest = min(indexed, key=lambda name: self._items.get(name, 0))
        has_more = is_worth_more(self._items.get(field, 0), self._items.get(rarest, 0))
        return (field, rarest) if has_more else None


def is_worth_more(items: int, indexed_items: int) -> bool:
    """Whether a field of so many items is to have the place of an indexed one: it is on twice as many, and on more than 16."""
    return items > max(2 * indexed_items, _FEW)


@dataclass(frozen=True, slots=True)
class HasWord:
    """The item has one of these words."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HasNumber:
    """One of the field's numbers is within the bounds. Equality is `gte` = `lte`."""

    field: str
    bounds: Range


@dataclass(frozen=True, slots=True)
class HasKey:
    """The item has one of these keys."""

    keys: frozenset[int]


@dataclass(frozen=True, slots=True)
class Group:
    """All of `must` hold, none of `must_not`, and at least one of `should` if there are any."""

    must: tuple["Condition", ...] = ()
    should: tuple["Condition", ...] = ()
    must_not: tuple["Condition", ...] = ()


Condition = HasWord | HasNumber | HasKey | Group


def document(payload: Mapping[str, Any]) -> Document:
    """The words and numbers of an item's payload."""
    words: list[str] = []
    numbers: dict[str, list[float]] = {}
    held = [(field, field_values(field, payload)) for field in _PLAIN_FIELDS]
    for name, raw in (payload.get("attributes") or {}).items():
        held.append((ATTRIBUTES + name, values_of(raw)))
    for field, values in held:
        for value in values:
            if isinstance(value, float):
                numbers.setdefault(number_field(field), []).append(value)
            else:
                words.append(_word(field, value))
    return Document(words, numbers)


def condition(where: Filter | None, exclude: frozenset[int] = frozenset()) -> Group:
    """A whole search condition: the filter, the excluded keys, and the rule on items that are not available."""
    must = () if where in (None, And(()), EVERYTHING) else (_lower(where),)
    if where is None or not names_available(where):
        must = (*must, HasWord((_word("available", True),)))
    return Group(must=must, must_not=(HasKey(exclude),) if exclude else ())


@lru_cache(4_096)
def number_field(field: str) -> str:
    """The engine's field for the numbers of a field. It is hashed, since an engine's path cannot name every attribute."""
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
    """Field, type and value in one word. The length in front tells `a=b` of `c` from `a` of `b=c`.

    >>> _word("category", "garden"), _word("attributes.organic", True)
    ('8:category=garden', '18:attributes.organic:true')
    """
    quoted = f":{str(value).lower()}" if isinstance(value, bool) else f"={value}"
    return f"{len(field)}:{field}{quoted}"
