"""What the client refuses before anything is sent: in one sentence, with the field, the value and what is expected.

The messages' own decoders check ranges and types, exactly as a worker does. Here is what they cannot see, since Python would have
turned it into something else, or could not have encoded it.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from headwater.messages import PROBE_PREFIX, BadMessage, Position, Request, decode_request, encode, quoted

_MAX_TIMEOUT_S = 1e9
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)


def encoded(message: msgspec.Struct) -> bytes:
    """The message as JSON.

    Raises:
        BadMessage: a field holds what JSON has not.
    """
    try:
        return encode(message)
    except UnicodeEncodeError as error:
        raise BadMessage(
            "bad_field", f"{ascii(error.object)[:80]}: expected valid Unicode, without lone surrogates"
        ) from None
    except _UNENCODABLE:
        for field in message.__struct_fields__:
            value = getattr(message, field)
            try:
                msgspec.json.encode(value)
            except _UNENCODABLE:
                raise wrong(field, value, "a value that JSON has") from None
        raise


def encoded_request(request: Request) -> bytes:
    """The request as JSON that a worker takes; only its filter is left to the worker.

    Raises:
        BadMessage: a field is not allowed.
    """
    value = encoded(request)
    decode_request(None, value, time.time_ns() // 1_000_000)
    return value


def check_publisher(user_id: str, action: object) -> None:
    """Refuse an event of a user whom the freshness probe made up, but for their erasure. Raises BadMessage."""
    if user_id.startswith(PROBE_PREFIX) and action != "forget":
        raise wrong(
            "user_id",
            user_id,
            f"an id that does not begin with {PROBE_PREFIX!r}, as those of the freshness probe do",
        )


def raw_context(context: object) -> msgspec.Raw:
    """The context of a click as JSON. Raises BadMessage where it is no object."""
    given = mapping("context", context, '{"page": 3}') or {}
    try:
        return msgspec.Raw(msgspec.json.encode(given))
    except _UNENCODABLE:
        raise wrong("context", given, "an object of values that JSON has") from None


def mapping(field: str, value: object, example: str) -> dict[Any, Any] | None:
    """A copy of an object, or None. Raises BadMessage where it is neither."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise wrong(field, value, f"an object, such as {example}")
    return dict(value)


def listed(field: str, value: object, expected: str) -> list[Any]:
    """A list of what an iterable holds. Raises BadMessage where it is none."""
    # Text is a sequence of texts to Python: "S1" would exclude "S" and "1".
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise wrong(field, value, f"a list of {expected}")
    return list(value)


def position_of(after: object) -> Position | None:
    """A position, from itself or from its token. Raises BadMessage where it is neither."""
    if after is None or isinstance(after, Position):
        return after
    if isinstance(after, str):
        try:
            return Position.parse(after)
        except BadMessage:
            pass
    raise wrong("after", after, "a Position of `click`, or its token, such as 3-1042")


def limit_of(timeout_s: object) -> float:
    """A time limit in seconds. Raises BadMessage where it is no positive number."""
    # Infinity and NaN are no number of milliseconds, which event loops count in.
    if (
        isinstance(timeout_s, (int, float))
        and not isinstance(timeout_s, bool)
        and 0 < timeout_s < _MAX_TIMEOUT_S
    ):
        return float(timeout_s)
    raise wrong("timeout_s", timeout_s, f"seconds, more than 0 and less than {_MAX_TIMEOUT_S:g}")


def count_of(field: str, value: object) -> int:
    """A whole number of at least 1. Raises BadMessage where it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise wrong(field, value, "a number of at least 1")
    return value


def wrong(field: str, value: object, expected: str) -> BadMessage:
    """The error for a field that holds something else."""
    return BadMessage("bad_field", f"{field}: got {quoted(value)}, expected {expected}")
