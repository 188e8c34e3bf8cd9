"""The filter language of a request: parsed into a typed tree, checked against an item, never an engine's raw filter.

    {"category": "garden", "price": {"gte": 5, "lt": 20}}           both must hold
    {"tags": {"any": ["coffee", "tea"]}}                            the item carries one of the tags
    {"or": [{"attributes.colour": "red"}, {"not": {"price": {"gt": 100}}}]}

`admitting` defines what a filter means. The contract suite compares every engine with it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

# Bounds on the work that one request may cause.
MAX_CLAUSES = 64
MAX_DEPTH = 8
MAX_VALUES = 256  # of one condition
MAX_ALL_VALUES = 4_096  # of all conditions; 4 us each in a search of the edge engine, 2 us to parse
MAX_TEXT_BYTES = 512

ATTRIBUTES = "attributes."

Value = str | float | bool
Kind = Literal["text", "number", "bool"]

FIELDS: dict[str, Kind] = {
    "item_id": "text",
    "category": "text",
    "tags": "text",
    "price": "number",
    "available": "bool",
    "since_ms": "number",
}


class FilterError(ValueError):
    """A filter that cannot be understood. The message names the field, the value seen and what is allowed."""


class CostlyFilter(FilterError):
    """A filter that is understood and would take too long."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The field holds one of `values`; numbers are floats, and a bool is never a number."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field holds a number within every bound given."""

    field: str
    gte: float | None = None
    gt: float | None = None
    lte: float | None = None
    lt: float | None = None

    def holds(self, number: float) -> bool:
        """Whether the number is within every bound."""
        return (
            (self.gte is None or number >= self.gte)
            and (self.gt is None or number > self.gt)
            and (self.lte is None or number <= self.lte)
            and (self.lt is None or number < self.lt)
        )


@dataclass(frozen=True, slots=True)
class Not:
    """The inner filter does not match."""

    of: "Filter"


@dataclass(frozen=True, slots=True)
class And:
    """All of the parts match. Without parts it matches everything."""

    of: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of the parts matches."""

    of: tuple["Filter", ...]


Filter = AnyOf | Range | Not | And | Or

# Admits every item, available or not.
EVERYTHING: Final = AnyOf("available", (True, False))


def parse(raw: object) -> Filter:
    """Parse a filter from decoded JSON. An empty object admits every item.

    Raises:
        FilterError: an unknown field, a value of another type, or more than the bounds above.
    """
    if raw == {}:
        return And(())
    return _parse_object(raw, "filter", 1, _Budget())


def admitting(where: Filter | None) -> Callable[[Mapping[str, Any]], bool]:
    """Whether an item, by its payload, may be recalled: it matches, and it is available unless the filter names that.

    Made once for many items: a condition then takes the same time whatever the number of its values.

    >>> tea = admitting(parse({"category": "tea"}))
    >>> tea({"category": "tea"}), tea({"category": "tea", "available": False}), tea({})
    (True, False, False)
    """
    if where is None:
        return is_available
    matches = _matching(where)
    if names_available(where):
        return lambda payload: matches(_Held(payload))
    return lambda payload: is_available(payload) and matches(_Held(payload))


class Size(NamedTuple):
    """How much of a filter there is to evaluate."""

    conditions: int
    values: int


def size(where: Filter | None) -> Size:
    """The conditions of a filter, and their values altogether; a range counts as one value."""
    match where:
        case None:
            return Size(0, 0)
        case AnyOf(values=values):
            return Size(1, len(values))
        case Range():
            return Size(1, 1)
        case Not(of=inner):
            return size(inner)
        case And(of=parts) | Or(of=parts):
            sizes = [size(part) for part in parts]
            return Size(sum(each.conditions for each in sizes), sum(each.values for each in sizes))


def is_available(payload: Mapping[str, Any]) -> bool:
    """Whether an item may be recalled by default. A payload that does not say is available."""
    return payload.get("available", True) is True


def names_available(where: Filter) -> bool:
    """Whether the filter names `available` anywhere. It then replaces the rule that leaves unavailable items out."""
    match where:
        case AnyOf(field=field) | Range(field=field):
            return field == "available"
        case Not(of=inner):
            return names_available(inner)
        case And(of=parts) | Or(of=parts):
            return any(names_available(part) for part in parts)


class _Held(dict[str, tuple[object, ...]]):
    """What an item holds under each field, looked up once however many conditions there are on it."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._payload = payload

    def __missing__(self, field: str) -> tuple[object, ...]:
        held = self[field] = tuple(map(_told_apart, field_values(field, self._payload)))
        return held


def _told_apart(value: Value) -> object:
    """The value, of which a bool equals no number."""
    return (value,) if isinstance(value, bool) else value


def _matching(where: Filter) -> Callable[[_Held], bool]:
    """Whether an item satisfies the filter itself. A field without a value satisfies no condition on it."""
    match where:
        case AnyOf(field=field, values=values):
            wanted = frozenset(map(_told_apart, values))
            return lambda held: not wanted.isdisjoint(held[field])
        case Range(field=field):
            holds = where.holds
            return lambda held: any(holds(each) for each in held[field] if isinstance(each, float))
        case Not(of=inner):
            matches = _matching(inner)
            return lambda held: not matches(held)
        case And(of=parts):
            all_of = [_matching(part) for part in parts]
            return lambda held: all(matches(held) for matches in all_of)
        case Or(of=parts):
            any_of = [_matching(part) for part in parts]
            return lambda held: any(matches(held) for matches in any_of)


def field_values(field: str, payload: Mapping[str, Any]) -> Sequence[Value]:
    """What an item holds under a field, as the filters see it; see `values_of`."""
    if field == "available":
        return (is_available(payload),)
    if field.startswith(ATTRIBUTES):
        return values_of((payload.get("attributes") or {}).get(field.removeprefix(ATTRIBUTES)))
    return values_of(payload.get(field))


def values_of(held: object) -> Sequence[Value]:
    """The values in what a payload holds: numbers as floats, a list value by value. Others are left out.

    >>> values_of(3), values_of(["red", None, True]), values_of(None)
    ((3.0,), ['red', True], ())
    """
    if isinstance(held, (list, tuple)):
        return [value for each in held if (value := _value(each)) is not None]
    value = _value(held)
    return () if value is None else (value,)


def _value(held: object) -> Value | None:
    # Tuples of types: `str | bool` would be made anew with each call, and a catalog makes a million of them.
    if isinstance(held, (str, bool)):
        return held
    return _as_number(held) if isinstance(held, (int, float)) else None


# -- parsing ---------------------------------------------------------------------------------------------------------


class _Budget:
    """Counts conditions and values while parsing, so that a thousand conditions are refused at the sixty-fifth."""

    def __init__(self) -> None:
        self._conditions, self._values = MAX_CLAUSES, MAX_ALL_VALUES

    def spend_condition(self) -> None:
        if self._conditions == 0:
            raise FilterError(
                f"filter: got more than {MAX_CLAUSES} conditions, expected at most {MAX_CLAUSES}"
            )
        self._conditions -= 1

    def spend_values(self, count: int) -> None:
        if count > self._values:
            raise CostlyFilter(
                f"filter: got more than {MAX_ALL_VALUES} values in all its conditions, expected at most "
                f"{MAX_ALL_VALUES}: ask for fewer values, or in several requests"
            )
        self._values -= count


def _parse_object(raw: object, at: str, depth: int, budget: _Budget) -> Filter:
    if depth > MAX_DEPTH:
        raise FilterError(f"filter: got more than {MAX_DEPTH} levels, expected at most {MAX_DEPTH}")
    if not isinstance(raw, Mapping) or not raw:
        raise FilterError(f'{at}: got {_quoted(raw)}, expected an object such as {{"category": "garden"}}')
    parts = tuple(_parse_entry(name, value, at, depth, budget) for name, value in raw.items())
    return parts[0] if len(parts) == 1 else And(parts)


def _parse_entry(name: object, value: object, at: str, depth: int, budget: _Budget) -> Filter:
    here = f"{at}.{_quoted_name(name)}"
    if name == "not":
        return Not(_parse_object(value, here, depth + 1, budget))
    if name == "and" or name == "or":
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
            raise FilterError(f"{here}: got {_quoted(value)}, expected a list of at least one filter")
        parts = tuple(_parse_object(each, f"{here}[{i}]", depth + 1, budget) for i, each in enumerate(value))
        return And(parts) if name == "and" else Or(parts)
    budget.spend_condition()
    if isinstance(name, str) and name in FIELDS:
        return _parse_condition(name, FIELDS[name], value, here, budget)
    if isinstance(name, str) and len(name) > len(ATTRIBUTES) and name.startswith(ATTRIBUTES):
        _check_text(name, here)
        return _parse_condition(name, None, value, here, budget)
    allowed = ", ".join([*FIELDS, "attributes.<name>", "not", "and", "or"])
    raise FilterError(f"{here}: unknown field, expected one of {allowed}")


def _parse_condition(field: str, kind: Kind | None, raw: object, at: str, budget: _Budget) -> Filter:
    """`kind` is the type that the field has, or None where each value may have its own (attributes)."""
    if not isinstance(raw, Mapping):
        return AnyOf(field, (_parse_value(kind, raw, at, _expected(kind)),))
    if set(raw) == {"any"}:
        values = raw["any"]
        if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not values:
            raise FilterError(
                f"{at}.any: got {_quoted(values)}, expected a list of at least one {_noun(kind)}"
            )
        if len(values) > MAX_VALUES:
            raise FilterError(f"{at}.any: got {len(values)} values, expected at most {MAX_VALUES}")
        budget.spend_values(len(values))
        return AnyOf(
            field,
            tuple(_parse_value(kind, each, f"{at}.any[{i}]", _noun(kind)) for i, each in enumerate(values)),
        )
    bounds = {"gte", "gt", "lte", "lt"}
    if kind in (None, "number") and raw and set(raw) <= bounds:
        given = {name: _parse_bound(value, f"{at}.{name}") for name, value in raw.items()}
        return Range(field, **given)
    raise FilterError(f"{at}: got {_quoted(raw)}, expected {_expected(kind)}")


def _parse_bound(raw: object, at: str) -> float:
    value = _parse_value("number", raw, at, "a number")
    assert isinstance(value, float)
    return value


def _parse_value(kind: Kind | None, raw: object, at: str, expected: str) -> Value:
    seen = _kind(raw)
    if seen is None or (kind is not None and seen != kind):
        raise FilterError(f"{at}: got {_quoted(raw)}, expected {expected}")
    if isinstance(raw, str):
        _check_text(raw, at)
        return raw
    if isinstance(raw, bool):
        return raw
    assert isinstance(raw, int | float)
    number = _as_number(raw)
    if number is None:
        raise FilterError(f"{at}: got {_quoted(raw)}, expected a finite number")
    return number


def _check_text(text: str, at: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise FilterError(f"{at}: got text that is not valid Unicode, expected UTF-8") from None
    if size > MAX_TEXT_BYTES:
        raise FilterError(f"{at}: got {size} bytes of text, expected at most {MAX_TEXT_BYTES}")


def _kind(value: object) -> Kind | None:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "number"
    return None


def _as_number(value: int | float) -> float | None:
    """The number as the engines compare it, or None where it is not finite. Adding 0.0 makes -0.0 equal 0.0."""
    try:
        number = float(value) + 0.0
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _noun(kind: Kind | None) -> str:
    return {"text": "text", "number": "number", "bool": "true or false", None: "text, number, true or false"}[
        kind
    ]


def _expected(kind: Kind | None) -> str:
    return {
        "text": "a text or {any: [...]}",
        "number": "a number or {gte, gt, lt, lte}",
        "bool": "true or false",
        None: "a text, a number, true, false, {any: [...]} or {gte, gt, lt, lte}",
    }[kind]


def _quoted(value: object) -> str:
    """The value as the message quotes it. It may be anything, so it is cut first."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "...")
    if isinstance(value, Mapping):
        names = ", ".join(_quoted_name(name) for name in list(value)[:6])
        return f"an object with {names}" if names else "an empty object"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a number of more than 128 bits"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _quoted_name(name: object) -> str:
    text = str(name)
    return text if len(text) <= 60 else text[:60] + "..."
