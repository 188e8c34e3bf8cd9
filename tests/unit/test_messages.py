"""Messages on the wire: what is sent fits the printed schemas, and what cannot be used says why."""

import json
import sys
import tracemalloc
from typing import Any, get_args

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder.features import ACTION_CODES
from headwater.messages import (
    ACTIONS,
    MAX_DEADLINE_MS,
    MAX_LIMIT,
    MAX_MESSAGE_BYTES,
    ActionName,
    BadMessage,
    Candidate,
    Click,
    ErasureReceipt,
    ErrorDetail,
    Item,
    ItemVector,
    Offer,
    OfferState,
    Position,
    Reason,
    Reflects,
    Request,
    Response,
    SessionEvent,
    Trend,
    decode_click,
    decode_item,
    decode_item_vector,
    decode_offer,
    decode_offer_state,
    decode_request,
    decode_response,
    decode_trend,
    encode,
    schemas,
    sender_of,
    vector_bytes,
)

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000

CLICK = {"event_id": "e1", "user_id": "ann", "item_id": "tea", "at_ms": NOW_MS}
ITEM = {"item_id": "tea"}
OFFER = {"item_id": "tea", "price": 2.5}
REQUEST = {"request_id": "r1", "user_id": "ann"}


def click(raw: bytes | None, key: bytes | None = None) -> Click:
    return decode_click(key, raw, NOW_MS)


def item(raw: bytes, key: bytes | None = None) -> Item:
    return decode_item(key, raw)


def request(raw: bytes | None, key: bytes | None = None) -> Request:
    return decode_request(key, raw, NOW_MS)


def offer(raw: bytes, key: bytes | None = None) -> Offer:
    return decode_offer(key, raw, NOW_MS)


DECODERS = {
    "click": (click, CLICK),
    "item": (item, ITEM),
    "offer": (offer, OFFER),
    "request": (request, REQUEST),
}


def complaint(kind: str, raw: bytes | None, key: bytes | None = None) -> BadMessage:
    decode, _ = DECODERS[kind]
    with pytest.raises(BadMessage) as caught:
        decode(raw, key)  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize("kind", DECODERS)
def test_a_message_is_bounded_before_it_is_decoded(kind: str) -> None:
    """A batch holds 16 MiB unpacked, packed in as many kilobytes; as objects they would take forty times as much."""
    _, good = DECODERS[kind]
    large = json.dumps({**good, "unknown": "x" * MAX_MESSAGE_BYTES}).encode()
    assert complaint(kind, large).reason == "too_large"
    odd = json.dumps(good).encode()[:-1] + b', "%s": [%s[]]}' % (next(iter(good)).encode(), b"[]," * 600_000)
    tracemalloc.start()
    try:
        error = complaint(kind, odd)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (error.reason, "bytes" in str(error)) == ("bad_field", True)
    assert peak < len(odd)


def test_the_sender_of_a_large_request_is_told_why() -> None:
    nested = b'{"request_id": "r1", "user_id": [%s[]]}' % (b"[]," * 600_000)
    assert sender_of(nested) == ("r1", "")
    assert sender_of(json.dumps({**REQUEST, "query": "x" * MAX_MESSAGE_BYTES}).encode()) == ("r1", "ann")


@pytest.mark.parametrize("kind", DECODERS)
def test_what_is_nested_just_less_than_too_deeply_is_refused_as_well(kind: str) -> None:
    """It can be read, and quoting it takes more of the stack: an error of Python's would end each worker in turn."""
    decode, good = DECODERS[kind]
    (first, _), *others = good.items()
    rest = json.dumps(dict(others)).encode().removeprefix(b"{")
    deepest = sys.getrecursionlimit()
    for depth in range(deepest - 250, deepest):
        nested = b"[" * depth + b"]" * depth
        with pytest.raises(BadMessage):
            decode(b'{"%s":%s%s%s' % (first.encode(), nested, b"," if others else b"", rest))


# What the system sends, and the schemas it prints

FULL_RESPONSE = Response(
    "r1",
    "ann",
    "degraded",
    ErrorDetail("deadline", "too late"),
    "popular",
    [
        Candidate("tea", 0.5, "interests", [Reason("coffee", NOW_MS, "click", 1.0)]),
        Candidate("milk", 0.1, "popular"),
    ],
    Reflects(1, 17, 3, 1, "e1", NOW_MS),
    "starter-0123456789ab",
    {0: 12, 3: 9},
    {"read": 0.5, "total": 4.25},
)
SENT = [
    Click("e1", "ann", NOW_MS, "tea"),
    Click("e1", "ann", NOW_MS, "tea", "purchase", msgspec.Raw(b'{"basket": 4, "shop": ["x"]}')),
    Click("e1", "ann", NOW_MS, action="forget"),
    Item("tea"),
    Item(
        *("tea", "Green tea", "Loose", ["tea", "green"], "grocery", 3.5, False),
        *({"colour": "green", "grams": 100.0, "organic": True}, "https://example.org/tea.png", 4),
    ),
    Offer("tea", available=False),
    Offer("tea", 2.5, True, {"colour": "green", "stock": 3.0}, NOW_MS),
    Request("r1", "ann"),
    Request(
        *(
            "r1",
            "ann",
            5,
            {"or": [{"category": "x"}, {"price": {"lt": 5}}]},
            ["milk"],
            False,
            0.3,
            "green tea",
        ),
        *([SessionEvent("tea", "like", NOW_MS), SessionEvent("milk")], Position(0, 17), 500, NOW_MS),
        *({"interests": 1.0, "popular": 0.5}, True),
    ),
    FULL_RESPONSE,
    Response("r1", "", "rejected", ErrorDetail("bad_field", "limit: got 0, expected `int` >= 1")),
    ItemVector("tea", vector_bytes(np.ones(3, np.float32)), {"item_id": "tea", "price": None}, "b", 0, 5, 4),
    ItemVector("tea", b"", {}, "b", 0, 5),
    OfferState("tea", 7, 2.5, NOW_MS, False, NOW_MS, {"colour": ("green", NOW_MS)}, NOW_MS - 1),
    Trend(3, NOW_MS, 3600.0, [("tea", 1.5), ("☕", 0.5)], rising=[("☕", 0.5)]),
    ErasureReceipt(
        event_id="gone", user_sha256="0" * 64, status="begun", partition=3, forgot_ms=NOW_MS, begun_ms=NOW_MS
    ),
]


@pytest.mark.parametrize("message", SENT, ids=lambda message: type(message).__name__)
def test_what_is_sent_validates_against_the_printed_schema(message: msgspec.Struct) -> None:
    schema = schemas()[type(message).__name__]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(encode(message)), schema, jsonschema.Draft202012Validator)


def test_the_schemas_are_those_of_every_message_that_is_sent() -> None:
    assert set(schemas()) == {type(message).__name__ for message in SENT}


@pytest.mark.parametrize("message", SENT, ids=lambda message: type(message).__name__)
def test_what_is_sent_is_read_back_the_same(message: msgspec.Struct) -> None:
    decode: Any = {
        Click: lambda raw: click(raw, b"ann"),
        Item: lambda raw: item(raw, b"tea"),
        Offer: lambda raw: offer(raw, b"tea"),
        OfferState: decode_offer_state,
        Request: lambda raw: request(raw, b"ann"),
        Response: decode_response,
        ItemVector: decode_item_vector,
        Trend: decode_trend,
        ErasureReceipt: msgspec.json.Decoder(ErasureReceipt).decode,
    }[type(message)]
    assert encode(decode(encode(message))) == encode(message)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("Click", {**CLICK, "action": "buy"}),
        ("Click", {**CLICK, "at_ms": NOW_MS // 1000}),
        ("Click", {**CLICK, "context": 5}),
        ("Request", {**REQUEST, "limit": 0}),
        ("Request", {**REQUEST, "limit": 2.5}),
        ("Request", {**REQUEST, "sources": {"nope": 1}}),
        ("Request", {**REQUEST, "after": {"partition": 0}}),
        ("Item", {"item_id": ""}),
        ("Item", {**ITEM, "price": -1}),
        ("Offer", {**OFFER, "price": -1}),
        ("Offer", {**OFFER, "available": "yes"}),
        ("Offer", {**OFFER, "at_ms": NOW_MS // 1000}),
    ],
)
def test_the_printed_schema_refuses_what_the_decoder_refuses(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schemas()[name], jsonschema.Draft202012Validator)
    complaint(name.lower(), json.dumps(bad).encode())


# Bad input: the field, the value seen, and what is allowed

BAD_FIELDS: list[tuple[str, dict[str, Any], str, str, str]] = [
    # message, changes, field, value as shown, what is allowed
    ("request", {"limit": 0}, "limit", "got 0", "`int` >= 1"),
    ("request", {"limit": -1}, "limit", "got -1", "`int` >= 1"),
    ("request", {"limit": 10**9}, "limit", "got 1000000000", f"<= {MAX_LIMIT}"),
    ("request", {"limit": "10"}, "limit", "got '10'", "expected `int`"),
    ("request", {"limit": 2.5}, "limit", "got 2.5", "expected `int`"),
    ("request", {"limit": True}, "limit", "got True", "expected `int`"),
    ("request", {"limit": None}, "limit", "got None", "expected `int`"),
    ("request", {"filter": [1]}, "filter", "got [1]", "expected `object"),
    ("request", {"exclude": "tea"}, "exclude", "got 'tea'", "expected `array`"),
    ("request", {"exclude": ["tea", ""]}, "exclude[1]", "got ''", "length >= 1"),
    ("request", {"exclude": ["tea", "x" * 600]}, "exclude[1]", "got 600 bytes", "1 to 512 bytes"),
    ("request", {"exclude": ["x"] * 1001}, "exclude", "got ['x'", "length <= 1000"),
    ("request", {"exclude_seen": "yes"}, "exclude_seen", "got 'yes'", "expected `bool`"),
    ("request", {"diversity": 1.5}, "diversity", "got 1.5", "<= 1.0"),
    ("request", {"query": "x" * 3000}, "query", "got 'xxx", "length <= 2000"),
    ("request", {"session": [{"item_id": "a"}, {}]}, "session[1].item_id", "missing", "expected a value"),
    (
        "request",
        {"session": [{"item_id": "a", "action": "hide"}]},
        "session[0].action",
        "got 'hide'",
        "purchase",
    ),
    ("request", {"session": [{"item_id": "é" * 257}]}, "session[0].item_id", "got 514 bytes", "512 bytes"),
    ("request", {"after": {"partition": -1, "offset": 4}}, "after.partition", "got -1", ">= 0"),
    ("request", {"after": {"partition": 1}}, "after.offset", "missing", "expected a value"),
    ("request", {"after": 17}, "after", "got 17", "expected `object"),
    ("request", {"deadline_ms": 0}, "deadline_ms", "got 0", ">= 1"),
    ("request", {"deadline_ms": 90_000}, "deadline_ms", "got 90000", f"<= {MAX_DEADLINE_MS}"),
    ("request", {"at_ms": NOW_MS // 1000}, "at_ms", f"got {NOW_MS // 1000}", "milliseconds"),
    ("request", {"until_ms": 5}, "until_ms", "got 5", "milliseconds"),
    (
        "request",
        {"until_ms": NOW_MS, "explain": False},
        "until_ms",
        "got it without explain",
        "explain: true",
    ),
    (
        "request",
        {"at_ms": NOW_MS + 3650 * DAY_MS},
        "at_ms",
        f"got {NOW_MS + 3650 * DAY_MS}",
        "at most two days",
    ),
    (
        "request",
        {"session": [{"item_id": "tea"}, {"item_id": "tea", "at_ms": NOW_MS + 3 * DAY_MS}]},
        "session[1].at_ms",
        f"got {NOW_MS + 3 * DAY_MS}",
        f"earlier: {NOW_MS + 2 * DAY_MS}",
    ),
    (
        "request",
        {"sources": {"nope": 1}},
        "sources",
        "got {'nope': 1}",
        "one of interests, query, item, popular",
    ),
    ("request", {"sources": {"popular": -1}}, "sources", "got {'popular': -1}", ">= 0.0"),
    ("request", {"request_id": ""}, "request_id", "got ''", "length >= 1"),
    ("request", {"user_id": "x" * 10_000}, "user_id", "got 10000 bytes", "1 to 512 bytes"),
    ("click", {"action": "buy"}, "action", "got 'buy'", "one of click, view, like"),
    ("click", {"at_ms": NOW_MS // 1000}, "at_ms", f"got {NOW_MS // 1000}", "milliseconds"),
    (
        "click",
        {"at_ms": NOW_MS + 3650 * DAY_MS},
        "at_ms",
        f"got {NOW_MS + 3650 * DAY_MS}",
        "at most two days",
    ),
    ("click", {"at_ms": str(NOW_MS)}, "at_ms", f"got '{NOW_MS}'", "expected `int`"),
    ("click", {"at_ms": 2**53}, "at_ms", f"got {2**53}", f"<= {2**44 - 1}"),
    ("click", {"at_ms": 2**44}, "at_ms", f"got {2**44}", f"<= {2**44 - 1}"),
    ("item", {"since_ms": 2**44}, "since_ms", f"got {2**44}", f"<= {2**44 - 1}"),
    ("click", {"item_id": ""}, "item_id", "got 0 bytes", "1 to 512 bytes"),
    ("click", {"item_id": 5}, "item_id", "got 5", "expected `str`"),
    ("click", {"item_id": "x" * 10_000}, "item_id", "got 10000 bytes", "1 to 512 bytes"),
    ("click", {"event_id": "x" * 513}, "event_id", "got 513 bytes", "1 to 512 bytes"),
    ("click", {"user_id": None}, "user_id", "got None", "expected `str`"),
    ("click", {"context": [1]}, "context", "got b'[1]'", "expected an object"),
    ("click", {"context": "none"}, "context", "none", "expected an object"),
    ("item", {"item_id": ""}, "item_id", "got ''", "length >= 1"),
    ("item", {"title": 5}, "title", "got 5", "expected `str`"),
    ("item", {"available": None}, "available", "got None", "expected `bool`"),
    ("offer", {"item_id": ""}, "item_id", "got ''", "length >= 1"),
    ("offer", {"price": -1}, "price", "got -1", ">= 0.0"),
    ("offer", {"price": None}, "offer", "got none of price", "at least one"),
    ("offer", {"attributes": {"colour": None}}, "attributes", "got {'colour': None}", "`bool | float | str`"),
    ("offer", {"at_ms": NOW_MS // 1000}, "at_ms", f"got {NOW_MS // 1000}", "milliseconds"),
    ("item", {"tags": "tea"}, "tags", "got 'tea'", "expected `array`"),
    ("item", {"tags": ["tea", 5]}, "tags[1]", "got 5", "expected `str`"),
    ("item", {"price": -1}, "price", "got -1", ">= 0.0"),
    ("item", {"since_ms": NOW_MS // 1000}, "since_ms", f"got {NOW_MS // 1000}", "milliseconds"),
    ("item", {"price": "5"}, "price", "got '5'", "expected `float"),
    ("item", {"available": "yes"}, "available", "got 'yes'", "expected `bool`"),
    ("item", {"attributes": {"a": [1]}}, "attributes", "got {'a': [1]}", "`bool | float | str`"),
    ("item", {"version": -1}, "version", "got -1", ">= 0"),
    ("item", {"version": 1.5}, "version", "got 1.5", "`int"),
]


@pytest.mark.parametrize(
    ("kind", "changes", "field", "seen", "allowed"),
    BAD_FIELDS,
    ids=[f"{kind}-{str(changes)[:30]}" for kind, changes, *_ in BAD_FIELDS],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_allowed(
    kind: str, changes: dict[str, Any], field: str, seen: str, allowed: str
) -> None:
    error = complaint(kind, json.dumps({**DECODERS[kind][1], **changes}).encode())
    message = str(error)
    assert message.startswith(f"{field}: ")
    assert seen in message
    assert allowed in message
    assert error.reason in ("bad_field", "time_in_future")
    assert len(message) < 400


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *(("click", name) for name in ("event_id", "user_id", "at_ms")),
        *(("request", name) for name in ("request_id", "user_id")),
        ("item", "item_id"),
    ],
)
def test_a_missing_field_is_named(kind: str, field: str) -> None:
    given_ = {name: value for name, value in DECODERS[kind][1].items() if name != field}  # type: ignore[attr-defined]
    assert str(complaint(kind, json.dumps(given_).encode())) == f"{field}: missing, expected a value"


def test_an_item_id_is_required_except_where_something_is_taken_back() -> None:
    without = {name: value for name, value in CLICK.items() if name != "item_id"}
    for action in ("retract", "forget"):
        assert click(json.dumps({**without, "action": action}).encode()).item_id == ""
    assert str(complaint("click", json.dumps(without).encode())).startswith("item_id: got 0 bytes")


UNREADABLE = {
    "empty": (b"", "bad_json"),
    "not JSON": (b"click ann tea", "bad_json"),
    "cut short": (json.dumps(CLICK).encode()[:-1], "bad_json"),
    "invalid UTF-8": (b'{"request_id":"\xff","item_id":"\xff","event_id":"\xff"}', "bad_utf8"),
    "no UTF-8 at all": (b"\xff\xfe\x00", "bad_json"),
    "top-level array": (b"[]", "bad_field"),
    "top-level number": (b"5", "bad_field"),
    "JSON null": (b"null", "bad_field"),
    "an array 10,000 deep": (b"[" * 10_000 + b"]" * 10_000, "bad_field"),
    "an object 10,000 deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "bad_json"),
    "an open object 10,000 deep": (b'{"a":' * 10_000, "bad_json"),
    "NaN": (b'{"price":NaN,"diversity":NaN,"at_ms":NaN}', "bad_json"),
    "a lone surrogate": (b'{"user_id":"\\ud800x","item_id":"\\ud800x"}', "bad_json"),
}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_a_bad_message_with_a_reason(kind: str, name: str) -> None:
    raw, reason = UNREADABLE[name]
    error = complaint(kind, raw)
    assert error.reason == reason
    assert len(str(error)) < 400


@pytest.mark.parametrize("kind", ["click", "request"])
def test_a_null_value_is_a_bad_message(kind: str) -> None:
    error = complaint(kind, None)
    assert error.reason == "null_value"
    assert "null" in str(error)


@pytest.mark.parametrize("kind", DECODERS)
def test_unknown_extra_fields_are_ignored(kind: str) -> None:
    decode, fields = DECODERS[kind]
    raw = json.dumps({**fields, "colour": {"deep": [1]}, "x": None}).encode()  # type: ignore[dict-item]
    assert encode(decode(raw)) == encode(decode(json.dumps(fields).encode()))  # type: ignore[operator]


@pytest.mark.parametrize("kind", DECODERS)
def test_the_key_has_to_be_that_of_the_message_or_none(kind: str) -> None:
    decode, fields = DECODERS[kind]
    raw = json.dumps(fields).encode()
    right = b"tea" if kind in ("item", "offer") else b"ann"
    assert decode(raw, None) is not None  # type: ignore[operator]
    assert decode(raw, right) is not None  # type: ignore[operator]
    error = complaint(kind, raw, b"bob")
    assert error.reason == "key_mismatch"
    assert "b'bob'" in str(error)
    assert str(right) in str(error)


@pytest.mark.parametrize("odd", ["☕", "a\x00b", "x" * 512, "é" * 256, " ", '"', "\n"])
def test_any_text_of_up_to_512_bytes_is_an_id(odd: str) -> None:
    assert click(json.dumps({**CLICK, "user_id": odd, "item_id": odd}).encode(), odd.encode()).item_id == odd
    assert item(json.dumps({"item_id": odd}).encode(), odd.encode()).item_id == odd


def test_clocks_of_producers_may_be_a_day_ahead_and_years_behind() -> None:
    for at_ms in (NOW_MS + DAY_MS, NOW_MS - 20 * 365 * DAY_MS):
        assert click(json.dumps({**CLICK, "at_ms": at_ms}).encode()).at_ms == at_ms


def test_a_long_value_does_not_become_a_long_answer() -> None:
    error = complaint("request", json.dumps({**REQUEST, "limit": "9" * 1_000_000}).encode())
    assert len(str(error)) < 300


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_bad_message(raw: bytes) -> None:
    for decode, _ in DECODERS.values():
        try:
            decode(raw)  # type: ignore[operator]
        except BadMessage:
            continue


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_any_json_in_any_field_is_taken_or_refused_by_that_fields_name(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["click", "item", "request"]))
    decode, fields = DECODERS[kind]
    message = {"click": Click, "item": Item, "request": Request}[kind]
    field = data.draw(st.sampled_from(message.__struct_fields__))
    raw = json.dumps({**fields, field: data.draw(json_values)}).encode()  # type: ignore[dict-item]
    try:
        decode(raw)  # type: ignore[operator]
    except BadMessage as error:
        refused = error
    else:
        return
    assert refused.reason == "bad_json" or str(refused).startswith(field)


# Senders, actions, headers


def test_a_position_prints_as_a_token_that_is_read_back() -> None:
    assert str(Position(3, 1042)) == "3-1042"
    assert Position.parse("3-1042") == Position.parse("3:1042") == Position(3, 1042)


@pytest.mark.parametrize("token", ["", "nonsense", "3", "-3-2", "3-", f"{2**31}-1", f"3-{2**62 + 1}", "3-1 "])
def test_what_is_no_token_is_refused_with_an_example(token: str) -> None:
    with pytest.raises(BadMessage, match="expected partition-offset, such as 3-1042"):
        Position.parse(token)


def test_an_offset_may_be_text_as_kafkajs_gives_it() -> None:
    as_text = {**REQUEST, "after": {"partition": 3, "offset": "1042"}}
    assert request(json.dumps(as_text).encode()).after == Position(3, 1042)
    jsonschema.validate(as_text, schemas()["Request"], jsonschema.Draft202012Validator)
    assert json.loads(encode(Position(3, 1042))) == {"partition": 3, "offset": 1042}


@pytest.mark.parametrize("offset", ["-1", "x", "", "1.5", "9999999999999999999", -1, None])
def test_an_offset_that_is_none_is_refused(offset: object) -> None:
    with pytest.raises(BadMessage, match=r"^after"):
        request(json.dumps({**REQUEST, "after": {"partition": 3, "offset": offset}}).encode())


def test_the_sender_of_an_invalid_request_can_still_be_answered() -> None:
    assert sender_of(json.dumps({**REQUEST, "limit": "10"}).encode()) == ("r1", "ann")
    assert sender_of(b'{"request_id":"r1"}') == ("r1", "")
    assert sender_of(b'{"request_id":"r1","user_id":5}') == ("r1", "")
    assert sender_of(json.dumps({"request_id": "r1", "user_id": "x" * 10_000}).encode()) == ("r1", "")


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        b"[]",
        b"{}",
        b"{",
        b"\xff",
        b'{"request_id":5}',
        b'{"request_id":""}',
        b'{"request_id":"\\ud800"}',
        b'{"request_id":' + b"[" * 10_000,
        json.dumps({"request_id": "x" * 600}).encode(),
    ],
)
def test_without_a_readable_request_id_nobody_can_be_answered(raw: bytes | None) -> None:
    assert sender_of(raw) is None


def test_the_table_of_actions_is_that_of_the_wire_and_of_the_encoders() -> None:
    assert get_args(ActionName) == tuple(ACTIONS)
    assert {name: action.code for name, action in ACTIONS.items()} == ACTION_CODES
    assert ACTIONS["click"].popularity > 0
    assert not ACTIONS["impression"].counts_as_seen


def test_a_vector_comes_back_bit_for_bit() -> None:
    vector = np.array([1.5, -2.25, 3e-8], dtype=np.float32)
    message = ItemVector("tea", vector_bytes(vector), {}, "b", 0, 5)
    assert decode_item_vector(encode(message)).array().tolist() == vector.tolist()
