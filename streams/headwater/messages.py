"""Every message on the wire: typed, frozen, in one place.

Decoding raises :class:`BadMessage` alone. Its text gives the field, the value seen and the value expected. Unknown extra
fields are ignored, so old and new workers can meet on one topic.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
)

import msgspec
from msgspec import Meta, Struct

from headwater.errors import HeadwaterError

if TYPE_CHECKING:  # the client alone has no numpy
    import numpy as np
    from numpy.typing import NDArray

    _Offset = int
else:  # text is made a number as soon as it is read
    _Offset = Annotated[int, Meta(ge=0, le=2**62)] | Annotated[str, Meta(pattern="^[0-9]{1,19}$")]

MAX_ID_BYTES: Final = 512
MAX_LIMIT: Final = 1000
DEFAULT_DEADLINE_MS: Final = 2_000
MAX_DEADLINE_MS: Final = 60_000
# 1973 in milliseconds, the year 5138 in seconds: anything below was sent in seconds.
MIN_AT_MS: Final = 10**11
# The year 2527. A user record has 44 bits for a time: a later one would spill into the action beside it.
MAX_AT_MS: Final = 2**44 - 1
# Clocks of producers may be a day off either way; two days leave room for time zones written as UTC.
MAX_AHEAD_MS: Final = 2 * 86_400_000
# An event that is dated later than this after its record came counts as of its record's time. Clocks that are a little
# off keep the order of the clicks that one record batch brings.
TOLERATED_AHEAD_MS: Final = 1_000
# Of any message. Packed in its batch it may take next to nothing, and as objects forty times as much.
MAX_MESSAGE_BYTES: Final = 2_000_000
# A message up to this size is decoded again for the value that an error quotes.
_MAX_EXPLAINED_BYTES: Final = 65_536
# Kafka's own default bound of a message; a longer text or id list is a mistake, not a query.
MAX_QUERY_CHARS: Final = 2_000
MAX_SESSION: Final = 100
MAX_NAMED_ITEMS: Final = 10
MAX_OFFSET: Final = 2**62

# How the ids of the users begin that a freshness probe makes up. No shop has such users, and the client refuses them.
PROBE_PREFIX: Final = "~headwater-probe/"

Id = Annotated[str, Meta(min_length=1, description=f"non-empty, at most {MAX_ID_BYTES} bytes of UTF-8")]
AtMs = Annotated[int, Meta(ge=MIN_AT_MS, le=MAX_AT_MS, description="milliseconds since 1970")]
Context = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]


class Action(NamedTuple):
    """What an action means to the system. The table :data:`ACTIONS` has one row for each.

    ``code`` stands in user records and bundles for good: 1 to 15, never reused. ``steps_encoder`` moves a user's
    interests. ``counts_as_seen`` keeps the item out of answers that exclude what was seen. ``popularity`` is the weight
    in the decayed counts. ``hides`` keeps the item out of all answers until the user does something to it that ``unhides``.
    ``repels`` takes rank from items that are like it.
    """

    code: int
    steps_encoder: bool = False
    counts_as_seen: bool = False
    popularity: float = 0.0
    hides: bool = False
    unhides: bool = False
    repels: bool = False


ACTIONS: Final[Mapping[str, Action]] = {
    "click": Action(code=1, steps_encoder=True, counts_as_seen=True, popularity=1.0),
    "view": Action(code=2, steps_encoder=True, counts_as_seen=True, popularity=0.5),
    "like": Action(code=3, steps_encoder=True, counts_as_seen=True, popularity=2.0, unhides=True),
    "add_to_cart": Action(code=4, steps_encoder=True, counts_as_seen=True, popularity=2.0, unhides=True),
    "purchase": Action(code=5, steps_encoder=True, counts_as_seen=True, popularity=3.0, unhides=True),
    "dislike": Action(code=6, counts_as_seen=True, hides=True, repels=True),
    "hide": Action(code=7, counts_as_seen=True, hides=True),
    "impression": Action(code=8),
    "retract": Action(code=9),
    "forget": Action(code=10),
}
# A user record has four bits for an action's code; 0 is padding.
MAX_ACTION_CODE: Final = 15


def check_actions(actions: Mapping[str, Action]) -> None:
    """Refuse a table whose codes a user record cannot hold or tell apart.

    Raises:
        ValueError: with the action, its code and the codes allowed.
    """
    names: dict[int, str] = {}
    for name, action in actions.items():
        if not 1 <= action.code <= MAX_ACTION_CODE:
            raise ValueError(
                f"action {name}: got code {action.code}, expected 1 to {MAX_ACTION_CODE}, since a user record has four "
                "bits for it: a further action needs a new record format"
            )
        if action.code in names:
            raise ValueError(
                f"action {name}: got code {action.code}, which is that of {names[action.code]}: expected a code of its own"
            )
        names[action.code] = name


check_actions(ACTIONS)
SESSION_ACTIONS: Final = tuple(name for name, action in ACTIONS.items() if action.steps_encoder)
if TYPE_CHECKING:  # A type checker cannot read the table. A test holds the two equal.
    ActionName = Literal[
        "click",
        "view",
        "like",
        "add_to_cart",
        "purchase",
        "dislike",
        "hide",
        "impression",
        "retract",
        "forget",
    ]
    SessionActionName = Literal["click", "view", "like", "add_to_cart", "purchase"]
else:
    ActionName = Literal[tuple(ACTIONS)]
    SessionActionName = Literal[SESSION_ACTIONS]
SourceName = Literal["interests", "query", "item", "popular", "buy-again", "similar", "new"]


# Not followed by the garbage collector: it holds text only, and tens of thousands are made a second.
class Click(Struct, frozen=True, gc=False):
    """One event of a user. ``item_id`` is empty only for ``retract`` and ``forget``.

    For ``retract``, ``event_id`` names the event to take back.
    """

    event_id: Id
    user_id: Id
    at_ms: AtMs
    item_id: str = ""
    action: ActionName = "click"
    context: Context = msgspec.field(default_factory=lambda: msgspec.Raw(b"{}"))


class Item(Struct, frozen=True):
    """One catalog entry. A null Kafka value deletes the item of the record's key.

    ``since_ms`` is when the item came into the assortment; without it, when its first record was published.

    A record replaces the item. What it does not state of price, availability and attributes may come from the item's
    offers (:class:`Offer`): a null price, no ``available``, an attribute that is not there. An item is available unless
    its record or an offer says otherwise.
    """

    item_id: Id
    title: str = ""
    description: str = ""
    tags: list[str] = []
    category: str = ""
    price: Annotated[float, Meta(ge=0)] | None = None
    available: bool | msgspec.UnsetType = msgspec.UNSET
    attributes: dict[str, str | float | bool] = {}
    image: str | None = None
    version: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    since_ms: AtMs | None = None


class Offer(Struct, frozen=True, omit_defaults=True):
    """What changes often of an item, without its text. It changes the fields that it states, and leaves all others.

    Of the item's record and its offers, the newest that states a field decides it. An offer is of ``at_ms``, at the latest
    of its record's timestamp; without ``at_ms`` of that timestamp. An item's record is of its record's timestamp. Of equal
    times the offer decides, or of two offers the one that was published later. A null Kafka value withdraws the offers of
    the key's item up to the timestamp of the record.
    """

    item_id: Id
    price: Annotated[float, Meta(ge=0)] | None = None
    available: bool | None = None
    attributes: dict[str, str | float | bool] = {}
    at_ms: AtMs | None = None


class Position(Struct, frozen=True):
    """A position in a topic, as the acknowledgement of a record gave it. Prints as a token, such as ``3-1042``.

    On the wire it is an object, ``{"partition": 3, "offset": 1042}``. The offset may be text too, since JavaScript's
    numbers end at 2^53 and kafkajs gives offsets as strings.
    """

    partition: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    offset: _Offset

    def __post_init__(self) -> None:
        offset: object = self.offset
        if isinstance(offset, str):
            if int(offset) > MAX_OFFSET:
                raise ValueError(f"Expected an offset <= {MAX_OFFSET}")
            msgspec.structs.force_setattr(self, "offset", int(offset))

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def parse(cls, token: str) -> "Position":
        """The position that a token stands for: partition and offset in decimal, with ``-`` (or ``:``) between.

        Raises:
            BadMessage: the text is no such token.
        """
        match = _TOKEN.fullmatch(token)
        if match is None or int(match[1]) >= 2**31 or int(match[2]) > MAX_OFFSET:
            raise BadMessage(
                "bad_field", f"position: got {quoted(token)}, expected partition-offset, such as 3-1042"
            )
        return cls(int(match[1]), int(match[2]))


class SessionEvent(Struct, frozen=True):
    """A what-if event: counts for this one answer and is stored nowhere."""

    item_id: Id
    action: SessionActionName = "click"
    at_ms: AtMs | None = None


class Request(Struct, frozen=True):
    """A recall request. ``deadline_ms`` is a duration from the record's own timestamp.

    It may wait for a click by its position, ``after``, or by its event id, ``after_event_id``. With the id it can be sent
    before the click's acknowledgement is there. The source ``item`` finds what is nearest to ``items``.

    With ``explain`` it may ask for an answer as it was: events of the user after ``until_ms`` do not count. The catalog, what is
    popular, and what has left the user's log are as they are now.
    """

    request_id: Id
    user_id: Id
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 20
    filter: dict[str, Any] | None = None
    exclude: Annotated[list[Id], Meta(max_length=MAX_LIMIT)] = []
    exclude_seen: bool = True
    diversity: Annotated[float, Meta(ge=0, le=1)] = 0.0
    query: Annotated[str, Meta(max_length=MAX_QUERY_CHARS)] = ""
    session: Annotated[list[SessionEvent], Meta(max_length=MAX_SESSION)] = []
    after: Position | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=MAX_DEADLINE_MS)] = DEFAULT_DEADLINE_MS
    at_ms: AtMs | None = None
    sources: Annotated[
        dict[SourceName, Annotated[float, Meta(ge=0, le=100)]],
        Meta(extra_json_schema={"propertyNames": {"enum": list(get_args(SourceName))}}),
    ] = {}
    explain: bool = False
    after_event_id: Id | None = None
    items: Annotated[list[Id], Meta(max_length=MAX_NAMED_ITEMS)] = []
    until_ms: AtMs | None = None


class Reason(Struct, frozen=True, omit_defaults=True):
    """One of the user's own events behind a recommendation; the shares of an item's reasons sum to 1."""

    item_id: str
    at_ms: int
    action: str
    share: float


class Candidate(Struct, frozen=True):
    """One recommended item: the fused score, the source that ranked it best, and why.

    ``similarity`` is the highest cosine of the item with the user's interests, the query or a named item, -1 to 1. Only a request with
    ``explain`` gets it.
    """

    item_id: str
    score: float
    source: str
    because: list[Reason] = []
    similarity: float | msgspec.UnsetType = msgspec.UNSET


class Gap(Struct, frozen=True):
    """Offsets of a partition, both ends included, that were gone from the log before they were read.

    Or that a log lost with its end and has used again: these may name records that it does not have any more.
    """

    first: int
    last: int


class Reflects(Struct, frozen=True):
    """Proof of freshness: what the answer rests on.

    ``offset`` is the watermark of the user's clicks partition: every record at or below it is applied and its
    state safely stored, or was a duplicate, a dead letter or forwarded. Those of the ``gap`` are none of these: they were
    deleted before a worker read them. It is the newest of the partition, and is told for a week.
    """

    partition: int
    offset: int
    events: int = 0
    pending: int = 0
    last_event_id: str | None = None
    last_event_at_ms: int | None = None
    gap: Gap | None = None


class ErrorDetail(Struct, frozen=True):
    """Why a request was rejected or expired."""

    code: str
    message: str


class FunnelItem(Struct, frozen=True, omit_defaults=True):
    """An item at one stage: its places after and before it, from 1; one of them is missing where it came in or went out.

    ``why`` it went out: ``filter``, ``unavailable``, ``gone`` (from the catalog), ``seen``, ``hidden``, ``excluded``, ``not_found``,
    ``no_vector``, ``beyond_limit``. ``source`` brought it.
    """

    item_id: str
    rank: int | None = None
    was: int | None = None
    why: str = ""
    source: str = ""


class FunnelStage(Struct, frozen=True, omit_defaults=True):
    """What one stage made of the candidates of an explained request.

    | ``stage``, in this order | what happens | ``items`` are |
    |---|---|---|
    | ``sources`` | one for each source: what it brings if nothing is taken out, the best 100 at most | the first ones |
    | ``fused`` | several rankings become one; ``merged`` entries were of items that another one has too | the first ones |
    | ``filtered`` | the filter takes out what does not match | some that went out |
    | ``unavailable`` | what is not available goes, unless the filter names that | some that went out |
    | ``excluded`` | what the user has seen or hidden, and what the request excludes, goes | some that went out |
    | ``refilled`` | the sources bring their next ones instead | some that came in or moved |
    | ``scored`` | the bundle's own scores order them; only where it has such | some that moved |
    | ``lowered`` | dislikes push away what is like them; only where the user has any | some that moved |
    | ``diversified`` | what is unlike the ones before it comes up | some that moved |
    | ``shown`` | the first ``limit`` are the answer | some that are beyond it |

    ``count`` is how many there are after it, ``out`` and ``entered`` how many went and came, ``moved`` how many changed their place
    among those that stayed. ``items`` are at most 12, those of the best places.
    """

    stage: str
    count: int
    out: int = 0
    entered: int = 0
    moved: int = 0
    merged: int = 0
    source: str = ""
    weight: float = 0.0
    items: list[FunnelItem] = []


class Response(Struct, frozen=True):
    """The answer to one request; repeated answers carry the same ``request_id``.

    ``why`` holds a short code for each source that brought nothing, or too little, to an answer that lacks something.
    ``truncated``: the answer was larger than a message may be; its funnel and its reasons are left out, and its last items
    where that was not enough. ``funnel``: what the candidates went through. Only a request with ``explain`` gets it.
    """

    request_id: str
    user_id: str
    status: Literal["ok", "degraded", "expired", "rejected"]
    error: ErrorDetail | None = None
    rung: str | None = None
    items: list[Candidate] = []
    reflects: Reflects | None = None
    model: str = ""
    catalog: dict[int, int] = {}
    timings_ms: dict[str, float] = {}
    why: dict[str, str] = {}
    truncated: bool = False
    funnel: list[FunnelStage] | msgspec.UnsetType = msgspec.UNSET


class ItemVector(Struct, frozen=True):
    """One encoded item on the vectors topic; a null Kafka value is a delete whose order is in its headers.

    ``vector`` is little-endian float32. ``partition`` and ``offset`` say which catalog record it came from.
    """

    item_id: str
    vector: bytes
    payload: dict[str, Any]
    bundle: str
    partition: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    offset: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    version: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None

    def array(self) -> "NDArray[np.float32]":
        """The vector, (dimension,) float32; read-only, on the bytes of the message."""
        import numpy as np

        return np.frombuffer(self.vector, dtype="<f4")


class OfferState(Struct, frozen=True, omit_defaults=True):
    """What the offers of an item have come to, on the vectors topic: each field with the time of the offer that states it.

    ``revision`` only rises. Offers up to ``withdrawn_ms`` were withdrawn, and do not come back when they arrive late.
    """

    item_id: Id
    revision: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    price: Annotated[float, Meta(ge=0)] | None = None
    price_ms: Annotated[int, Meta(ge=0, le=MAX_AT_MS)] = 0
    available: bool | None = None
    available_ms: Annotated[int, Meta(ge=0, le=MAX_AT_MS)] = 0
    attributes: dict[str, tuple[str | float | bool, Annotated[int, Meta(ge=0, le=MAX_AT_MS)]]] = {}
    withdrawn_ms: Annotated[int, Meta(ge=0, le=MAX_AT_MS)] = 0


class Trend(Struct, frozen=True):
    """Decayed popularity of one clicks partition: ``counts`` holds (item id, weight as of ``at_ms``).

    ``rising`` holds the same of the heaviest new items, which ``counts`` may name too; versions before it leave it out.
    ``epoch`` only rises from one owner of the partition to the next, and ``written_ms`` orders the records of one owner.
    ``bundle`` is what that owner serves.
    """

    partition: int
    at_ms: int
    half_life_s: float
    counts: list[tuple[str, float]]
    epoch: int = 0
    written_ms: int = 0
    bundle: str = ""
    rising: list[tuple[str, float]] = []


class ErasureReceipt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a `forget` has come. It names the user by a hash of the id; times are milliseconds since 1970.

    ``status`` is `begun` once the user's state is gone from the worker and a tombstone lies over it in the changelog,
    `done` once tombstones lie over the user's dead letters too. ``gone_by_ms`` says for each topic when nothing is left
    of what was written before ``done_ms``, at the latest. A topic that keeps records without a bound is not among them.
    """

    event_id: str  # of the forget
    user_sha256: str  # of the user id, in hexadecimal
    status: Literal["begun", "done"]
    partition: int  # of clicks
    forgot_ms: int  # the user's events up to this time are erased
    begun_ms: int
    done_ms: int | None = None
    dead_letters: int = 0  # that were taken out
    gone_by_ms: dict[str, int] = {}


class BadMessage(HeadwaterError):
    """A message that cannot be used. ``reason`` is a short code for counting, ``str()`` the whole sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


MessageT = TypeVar("MessageT", bound=Struct)

_TOKEN: Final = re.compile(r"([0-9]{1,10})[-:]([0-9]{1,19})")
_ENCODER: Final = msgspec.json.Encoder()
_PATH: Final = re.compile(r" - at (?:`key` in )?`\$?\.?(?P<path>[^`]*)`$")
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>[^`]+)`")
_MAX_QUOTED: Final = 80
# msgspec refuses a name without listing the valid ones.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "action": tuple(ACTIONS),
    "session[].action": SESSION_ACTIONS,
    "sources": get_args(SourceName),
}


def encode(message: Struct) -> bytes:
    """The message as JSON."""
    return _ENCODER.encode(message)


def quoted(value: object) -> str:
    """A value for an error message, cut after 80 characters: a field of 10 MB must not make an answer of 10 MB."""
    try:
        text = repr(value)
    except (
        RecursionError,
        ValueError,
    ):  # what has just been decoded takes more of the stack, or of the digits, to print
        return f"a {type(value).__name__} that is too deep or too long to print"
    return text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "..."


def _explain(raw: bytes, error: msgspec.ValidationError) -> str:
    """The sentence for an error of msgspec, which gives field and expectation, but not the value that was sent."""
    text = str(error)
    missing = _MISSING.search(text)
    path = _PATH.search(text)
    # The value of a mapping has no path of its own: the whole mapping is quoted.
    where = path.group("path").partition("[...]")[0] if path else ""
    if missing:
        return f"{where + '.' if where else ''}{missing.group('field')}: missing, expected a value"
    expected = _PATH.sub("", text)
    names = _NAMES.get(re.sub(r"\[\d+\]", "[]", where))
    if expected.startswith("Invalid enum value") and names:
        expected = f"Expected one of {', '.join(names)}"
    elif where.endswith(("at_ms", "since_ms", "until_ms")) and "`int` >=" in expected:
        expected += ", in milliseconds since 1970"
    if len(raw) > _MAX_EXPLAINED_BYTES:
        return f"{where or 'message'}: {expected}, in a message of {len(raw)} bytes"
    try:
        value: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return f"{where or 'message'}: {expected}; got {quoted(raw[:60])}"
    for step in re.findall(r"[^.\[\]]+|\[[^\]]*\]", where):
        try:
            value = value[int(step[1:-1])] if step.startswith("[") else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            return f"{where}: {expected}"
    return f"{where or 'message'}: got {quoted(value)}, {expected[0].lower()}{expected[1:]}"


def _decoding(message_type: type[MessageT]) -> Callable[[bytes | None], MessageT]:
    decode = msgspec.json.Decoder(message_type).decode

    def decoded(raw: bytes | None) -> MessageT:
        if raw is None:
            raise BadMessage(
                "null_value", f"null value: expected a JSON object with a {message_type.__name__}"
            )
        if len(raw) > MAX_MESSAGE_BYTES:
            raise BadMessage(
                "too_large", f"got a message of {len(raw)} bytes, expected at most {MAX_MESSAGE_BYTES}"
            )
        try:
            return decode(raw)
        except msgspec.ValidationError as error:
            raise BadMessage("bad_field", _explain(raw, error)) from None
        except msgspec.DecodeError as error:
            raise BadMessage("bad_json", f"not JSON: {error}; got {quoted(raw[:60])}") from None
        except UnicodeDecodeError as error:
            raise BadMessage("bad_utf8", f"not UTF-8: {error.reason} at byte {error.start}") from None
        except RecursionError:
            raise BadMessage(
                "bad_json", "nested too deeply: expected an object without deep nesting"
            ) from None

    return decoded


_decode_click = _decoding(Click)
_decode_item = _decoding(Item)
_decode_offer = _decoding(Offer)
_decode_request = _decoding(Request)
decode_response = _decoding(Response)
decode_item_vector = _decoding(ItemVector)
decode_offer_state = _decoding(OfferState)
decode_trend = _decoding(Trend)


def check_id(field: str, value: str) -> bytes:
    """The id's UTF-8 bytes. A lone surrogate has none, and an over-long id does not fit an index. Raises BadMessage."""
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise BadMessage("bad_field", f"{field}: got {ascii(value)[:80]}, expected valid Unicode") from None
    if not raw or len(raw) > MAX_ID_BYTES:
        raise BadMessage(
            "bad_field", f"{field}: got {len(raw)} bytes, expected 1 to {MAX_ID_BYTES} bytes of UTF-8"
        )
    return raw


def _check_key(field: str, key: bytes | None, expected: bytes) -> None:
    if key is not None and key != expected:
        raise BadMessage(
            "key_mismatch",
            f"key: got {quoted(key[:60])}, expected the message's {field} {quoted(expected[:60])} (or no key)",
        )


def check_at_ms(at_ms: int, came_ms: int, field: str = "at_ms") -> None:
    """Reject times no producer's clock can honestly have.

    Args:
        came_ms: the record's timestamp or the time now, whichever is earlier: a producer may have set the timestamp.

    Raises:
        BadMessage: ``time_in_future``.
    """
    if at_ms > came_ms + MAX_AHEAD_MS:
        raise BadMessage(
            "time_in_future",
            f"{field}: got {at_ms}, expected at most two days after the record's timestamp or the time now, whichever is "
            f"earlier: {came_ms + MAX_AHEAD_MS}",
        )


def decode_click(key: bytes | None, raw: bytes | None, came_ms: int) -> Click:
    """A valid click. ``came_ms``: see :func:`check_at_ms`.

    Raises:
        BadMessage: with the field, the value seen and the value expected.
    """
    click = _decode_click(raw)
    user_id, event_id, item_id = click.user_id, click.event_id, click.item_id
    _check_key("user_id", key, check_id("user_id", user_id))
    check_id("event_id", event_id)
    if item_id or click.action not in ("retract", "forget"):
        check_id("item_id", item_id)
    if bytes(click.context)[:1] not in _CONTEXT_STARTS:
        raise BadMessage("bad_field", f"context: got {quoted(bytes(click.context)[:60])}, expected an object")
    check_at_ms(click.at_ms, came_ms)
    return click


_CONTEXT_STARTS: Final = {b"{", b"n"}  # an object or null


def decode_item(key: bytes | None, raw: bytes) -> Item:
    """A valid catalog entry (a delete has no value and never comes here).

    Raises:
        BadMessage: with the field, the value seen and the value expected.
    """
    item = _decode_item(raw)
    _check_key("item_id", key, check_id("item_id", item.item_id))
    return item


def decode_offer(key: bytes | None, raw: bytes, came_ms: int) -> Offer:
    """A valid offer (a withdrawal has no value and never comes here). ``came_ms``: see :func:`check_at_ms`.

    Raises:
        BadMessage: with the field, the value seen and the value expected.
    """
    offer = _decode_offer(raw)
    _check_key("item_id", key, check_id("item_id", offer.item_id))
    if offer.price is None and offer.available is None and not offer.attributes:
        raise BadMessage(
            "bad_field", "offer: got none of price, available and attributes, expected at least one of them"
        )
    if offer.at_ms is not None:
        check_at_ms(offer.at_ms, came_ms)
    return offer


def check_fields(fields: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Reject fields that a message does not have. Raises BadMessage: with the first of them, and those that it has."""
    if unknown := sorted(fields.keys() - set(allowed)):
        expected = f"one of {', '.join(allowed)}" if allowed else "none"
        raise BadMessage("bad_field", f"{unknown[0][:80]}: no such field, expected {expected}")


def item_of(fields: Mapping[str, Any]) -> Item:
    """A valid catalog entry of the fields that its JSON holds.

    Raises:
        BadMessage: with the field, the value seen and the value expected.
    """
    try:
        item = msgspec.convert(fields, Item)
    except msgspec.ValidationError as error:
        raise BadMessage("bad_field", _explain(msgspec.json.encode(fields), error)) from None
    check_id("item_id", item.item_id)
    return item


def decode_request(key: bytes | None, raw: bytes | None, came_ms: int) -> Request:
    """A valid request; its filter is checked where it is compiled. ``came_ms``: see :func:`check_at_ms`.

    Raises:
        BadMessage: with the field, the value seen and the value expected.
    """
    request = _decode_request(raw)
    _check_key("user_id", key, check_id("user_id", request.user_id))
    check_id("request_id", request.request_id)
    for index, item_id in enumerate(request.exclude):
        check_id(f"exclude[{index}]", item_id)
    for index, item_id in enumerate(request.items):
        check_id(f"items[{index}]", item_id)
    for index, event in enumerate(request.session):
        check_id(f"session[{index}].item_id", event.item_id)
        if event.at_ms is not None:
            check_at_ms(event.at_ms, came_ms, f"session[{index}].at_ms")
    if request.at_ms is not None:
        check_at_ms(request.at_ms, came_ms)
    if request.until_ms is not None:
        check_at_ms(request.until_ms, came_ms, "until_ms")
        if not request.explain:
            raise BadMessage("bad_field", "until_ms: got it without explain, expected explain: true with it")
    if request.after_event_id is not None:
        check_id("after_event_id", request.after_event_id)
        if request.after is not None:
            raise BadMessage("bad_field", "after_event_id: got it beside after, expected one of the two")
    return request


class _Sender(Struct):
    request_id: msgspec.Raw = msgspec.Raw(b"null")
    user_id: msgspec.Raw = msgspec.Raw(b"null")


def _text_in(raw: msgspec.Raw) -> str | None:
    """A text that may be anything else, of any size. Raises DecodeError, UnicodeError."""
    return msgspec.json.decode(raw, type=str) if memoryview(raw)[:1].tobytes() == b'"' else None


def sender_of(raw: bytes | None) -> tuple[str, str] | None:
    """(request_id, user_id) of a request that may be invalid otherwise, so that it can still be answered."""
    try:
        sender = msgspec.json.decode(raw or b"", type=_Sender)
        request_id, user_id = _text_in(sender.request_id), _text_in(sender.user_id)
        if request_id is None:
            return None
        check_id("request_id", request_id)
        user = user_id if user_id is not None and len(user_id.encode()) <= MAX_ID_BYTES else ""
        return request_id, user
    except (msgspec.DecodeError, UnicodeError, RecursionError, BadMessage):
        return None


def vector_bytes(vector: "NDArray[np.float32]") -> bytes:
    """A vector (D,) as `ItemVector` carries it."""
    return vector.astype("<f4").tobytes()


# What `schemas` prints and the AsyncAPI document describes.
MESSAGES: Final[Mapping[str, type[Struct]]] = {
    message_type.__name__: message_type
    for message_type in (
        Click,
        Item,
        Offer,
        Request,
        Response,
        ItemVector,
        OfferState,
        Trend,
        ErasureReceipt,
    )
}


def schemas() -> Mapping[str, dict[str, Any]]:
    """JSON Schemas of all messages by name, generated from the types that encode and decode them."""
    return {name: msgspec.json.schema(message_type) for name, message_type in MESSAGES.items()}
