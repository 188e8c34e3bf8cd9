"""Every bad message ends in a dead letter or a rejected answer that says why, and good ones go on beside it."""

import json
import time
from typing import Any

import pytest

from tests.end_to_end.outside import LONG_MS, Outside

DEEP = 10_000
TEN_YEARS_MS = 10 * 365 * 86_400_000
NOW_S = int(time.time())


def changed(message: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({**message, **fields}).encode()


def without(message: dict[str, Any], field: str) -> bytes:
    return json.dumps({name: value for name, value in message.items() if name != field}).encode()


def nested(message: dict[str, Any], field: str) -> bytes:
    """The message with objects within objects under a field."""
    deep = '{"a":' * DEEP + "1" + "}" * DEEP
    return changed(message, **{field: "DEEP"}).replace(b'"DEEP"', deep.encode())


# What no topic of ours takes, whatever the message: (value, reason, a part of the explanation)
UNREADABLE: dict[str, tuple[bytes | None, str, str]] = {
    "malformed JSON": (b'{"event_id": "e1", ', "bad_json", "not JSON"),
    "empty": (b"", "bad_json", "not JSON"),
    "not JSON at all": (b"\x00\x01\x02\xfe", "bad_json", "not JSON"),
    "a top-level array": (b'[{"user_id": "ann"}]', "bad_field", "array"),
    "a top-level string": (b'"ann"', "bad_field", "str"),
    "deep arrays": (b"[" * DEEP + b"]" * DEEP, "bad_field", "array"),
}

CLICKS: dict[str, tuple[Any, str, str]] = {
    "null": (lambda click: None, "null_value", "expected a JSON object"),
    "invalid UTF-8": (
        lambda click: changed(click, item_id="coffee").replace(b"coffee", b"\xff\xfe"),
        "bad_utf8",
        "not UTF-8",
    ),
    "deep in the context": (lambda click: nested(click, "context"), "bad_json", "nest"),
    "deep in an unknown field": (lambda click: nested(click, "unknown"), "bad_json", "nest"),
    "event id of a wrong type": (lambda click: changed(click, event_id=5), "bad_field", "event_id: got 5"),
    "time as text": (lambda click: changed(click, at_ms="now"), "bad_field", "at_ms: got 'now'"),
    "time as a fraction": (lambda click: changed(click, at_ms=1.5e12 + 0.5), "bad_field", "at_ms"),
    "time in seconds": (
        lambda click: changed(click, at_ms=NOW_S),
        "bad_field",
        f"at_ms: got {NOW_S}",
    ),
    "time ten years ahead": (
        lambda click: changed(click, at_ms=int(time.time() * 1000) + TEN_YEARS_MS),
        "time_in_future",
        "two days",
    ),
    "a negative time": (lambda click: changed(click, at_ms=-1), "bad_field", "at_ms: got -1"),
    "a huge time": (lambda click: changed(click, at_ms=10**30), "bad_field", "at_ms"),
    "missing user": (lambda click: without(click, "user_id"), "bad_field", "user_id: missing"),
    "missing event id": (lambda click: without(click, "event_id"), "bad_field", "event_id: missing"),
    "missing time": (lambda click: without(click, "at_ms"), "bad_field", "at_ms: missing"),
    "missing item": (lambda click: without(click, "item_id"), "bad_field", "item_id"),
    "unknown action": (lambda click: changed(click, action="steal"), "bad_field", "action: got 'steal'"),
    "a context that is a list": (lambda click: changed(click, context=[]), "bad_field", "context"),
    "an item id of 10 kB": (
        lambda click: changed(click, item_id="x" * 10_000),
        "bad_field",
        "item_id: got 10000 bytes",
    ),
    "an event id of 10 kB": (
        lambda click: changed(click, event_id="x" * 10_000),
        "bad_field",
        "event_id: got 10000 bytes",
    ),
    "half an emoji": (lambda click: changed(click, item_id="\ud83d"), "bad_json", "not JSON"),
    # No value of a message of this size is quoted: it would have to be decoded whole.
    "a whole megabyte": (
        lambda click: changed(click, at_ms="x" * 900_000),
        "bad_field",
        "at_ms: Expected `int`, got `str`, in a message of 900",
    ),
}

REQUESTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "limit 0": ({"limit": 0}, "bad_field", "limit: got 0"),
    "limit -1": ({"limit": -1}, "bad_field", "limit: got -1"),
    "limit a billion": ({"limit": 10**9}, "bad_field", "limit: got 1000000000"),
    "limit as text": ({"limit": "10"}, "bad_field", "limit: got '10'"),
    "limit 2.5": ({"limit": 2.5}, "bad_field", "limit: got 2.5"),
    "limit null": ({"limit": None}, "bad_field", "limit: got None"),
    "filter on an unknown field": ({"filter": {"colour": "red"}}, "bad_filter", "colour"),
    "filter with 1,000 conditions": (
        {"filter": {"or": [{"category": f"c{number}"} for number in range(1000)]}},
        "bad_filter",
        "at most 64",
    ),
    "filter of too many levels": (
        {"filter": {"not": {"not": {"not": {"not": {"not": {"not": {"not": {"not": {"category": "a"}}}}}}}}}},
        "bad_filter",
        "levels",
    ),
    "filter of a wrong type": ({"filter": {"price": "cheap"}}, "bad_filter", "price: got 'cheap'"),
    "filter that is a list": ({"filter": [1]}, "bad_field", "filter"),
    "filter with an engine's operator": ({"filter": {"must": []}}, "bad_filter", "must"),
    "diversity above 1": ({"diversity": 1.5}, "bad_field", "diversity: got 1.5"),
    "deadline 0": ({"deadline_ms": 0}, "bad_field", "deadline_ms: got 0"),
    "deadline of an hour": ({"deadline_ms": 3_600_000}, "bad_field", "deadline_ms: got 3600000"),
    "after as a number": ({"after": 5}, "bad_field", "after: got 5"),
    "a negative offset": ({"after": {"partition": 0, "offset": -1}}, "bad_field", "after.offset: got -1"),
    "a negative partition": ({"after": {"partition": -1, "offset": 0}}, "bad_field", "after.partition"),
    "exclude with an empty id": ({"exclude": ["a", ""]}, "bad_field", "exclude"),
    "exclude of 1,001 items": ({"exclude": ["a"] * 1001}, "bad_field", "exclude"),
    "exclude_seen as text": ({"exclude_seen": "yes"}, "bad_field", "exclude_seen: got 'yes'"),
    "a query of 10 kB": ({"query": "x" * 10_000}, "bad_field", "query"),
    "a session without items": ({"session": [{"action": "click"}]}, "bad_field", "session"),
    "a dislike in a session": (
        {"session": [{"item_id": "a", "action": "dislike"}]},
        "bad_field",
        "session[0].action: got 'dislike'",
    ),
    "an unknown source": ({"sources": {"astrology": 1}}, "bad_field", "sources"),
    "a negative weight": ({"sources": {"popular": -1}}, "bad_field", "sources"),
    "time in seconds": ({"at_ms": 1_700_000_000}, "bad_field", "at_ms: got 1700000000"),
    "time ten years ahead": ({"at_ms": int(time.time() * 1000) + TEN_YEARS_MS}, "time_in_future", "at_ms"),
    "an empty user": ({"user_id": ""}, "bad_field", "user_id"),
    "a user of 10 kB": ({"user_id": "x" * 10_000}, "bad_field", "user_id"),
    "a user that is a number": ({"user_id": 7}, "bad_field", "user_id: got 7"),
}

ITEMS: dict[str, tuple[Any, str, str]] = {
    "without an id": (lambda item: without(item, "item_id"), "bad_field", "item_id: missing"),
    "an empty id": (lambda item: changed(item, item_id=""), "bad_field", "item_id"),
    "an id of 10 kB": (lambda item: changed(item, item_id="x" * 10_000), "bad_field", "item_id: got 10000"),
    "without any text": (lambda item: changed(item, title="", category=""), "no_text", "title"),
    "text of blanks": (lambda item: changed(item, title="   ", category=""), "no_text", "title"),
    "a price as text": (lambda item: changed(item, price="5"), "bad_field", "price: got '5'"),
    "a negative price": (lambda item: changed(item, price=-1), "bad_field", "price: got -1"),
    "a price that is NaN": (lambda item: changed(item, price=float("nan")), "bad_json", "not JSON"),
    "tags that are no list": (lambda item: changed(item, tags="red"), "bad_field", "tags: got 'red'"),
    "attributes within attributes": (
        lambda item: changed(item, attributes={"a": {}}),
        "bad_field",
        "attributes",
    ),
    "a negative version": (lambda item: changed(item, version=-1), "bad_field", "version: got -1"),
    "available as text": (lambda item: changed(item, available="no"), "bad_field", "available: got 'no'"),
    "deep in an unknown field": (lambda item: nested(item, "unknown"), "bad_json", "nest"),
    "invalid UTF-8": (
        lambda item: changed(item, title="HERE").replace(b"HERE", b"\xff"),
        "bad_utf8",
        "not UTF-8",
    ),
}


async def still_answers(outside: Outside, partition: int) -> None:
    """Good traffic of the same partition goes on, and the watermark has passed what was bad."""
    user = outside.user_at(partition, "good")
    event = outside.own(f"good{outside.next_ms()}")
    answer = await outside.ask(user, after=await outside.click(user, "coffee-1", event_id=event), limit=3)
    assert (answer["status"], answer["reflects"]["last_event_id"]) == ("ok", event)


@pytest.mark.parametrize("kind", [*UNREADABLE, *CLICKS])
async def test_a_bad_click_becomes_a_dead_letter_that_says_why(outside: Outside, kind: str) -> None:
    user = outside.own("bad")
    make, reason, explanation = CLICKS[kind] if kind in CLICKS else (None, *UNREADABLE[kind][1:])
    value = make(outside.click_message(user, "coffee-1")) if make else UNREADABLE[kind][0]
    sent = await outside.send(outside.topics.clicks, value, key=user.encode())
    headers, record = await outside.dead_letter(outside.topics.clicks, sent)
    assert headers["reason"] == reason, headers
    assert explanation in headers["message"], headers
    assert len(headers["message"]) <= 1000
    assert (headers["key"], record.value) == (user, value)
    answer = await outside.ask(user, after={"partition": sent.partition, "offset": sent.offset})
    assert (answer["status"], answer["reflects"]["events"]) == ("ok", 0)
    await still_answers(outside, sent.partition)


async def test_a_click_whose_key_names_another_user_becomes_a_dead_letter(outside: Outside) -> None:
    value = json.dumps(outside.click_message(outside.own("ann"), "coffee-1")).encode()
    sent = await outside.send(outside.topics.clicks, value, key=b"bob")
    headers, _ = await outside.dead_letter(outside.topics.clicks, sent)
    assert headers["reason"] == "key_mismatch"
    assert "bob" in headers["message"]
    assert outside.own("ann") in headers["message"]


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_bad_request_is_rejected_with_field_value_and_what_is_allowed(
    outside: Outside, kind: str
) -> None:
    fields, code, explanation = REQUESTS[kind]
    user = outside.own("bad")
    request_id = outside.own(f"bad-{outside.next_ms()}")
    message = {"request_id": request_id, "user_id": user, "deadline_ms": LONG_MS, **fields}
    key = user.encode() if message["user_id"] == user else None
    sent = await outside.send(outside.topics.requests, json.dumps(message).encode(), key=key)
    answer = await outside.answer(request_id)
    assert (answer["status"], answer["items"]) == ("rejected", [])
    assert answer["error"]["code"] == code, answer
    assert explanation in answer["error"]["message"], answer
    assert len(answer["error"]["message"]) < 1000
    await still_answers(outside, sent.partition)


async def test_a_request_whose_key_names_another_user_is_rejected(outside: Outside) -> None:
    request_id = outside.own("r-key")
    value = json.dumps({"request_id": request_id, "user_id": outside.own("ann")}).encode()
    await outside.send(outside.topics.requests, value, key=b"bob")
    answer = await outside.answer(request_id)
    assert (answer["status"], answer["error"]["code"]) == ("rejected", "key_mismatch")


@pytest.mark.parametrize("kind", [*UNREADABLE, "null", "no id", "an id of 10 kB", "a numeric id", "too deep"])
async def test_a_request_whose_id_cannot_be_read_becomes_a_dead_letter(outside: Outside, kind: str) -> None:
    user = outside.own("bad")
    request = {"request_id": "r", "user_id": user}
    values: dict[str, tuple[bytes | None, str, str]] = {
        **UNREADABLE,
        "null": (None, "null_value", "expected a JSON object"),
        "no id": (without(request, "request_id"), "bad_field", "request_id: missing"),
        "an id of 10 kB": (changed(request, request_id="x" * 10_000), "bad_field", "got 10000 bytes"),
        "a numeric id": (changed(request, request_id=5), "bad_field", "request_id: got 5"),
        "too deep": (nested(request, "filter"), "bad_json", "nest"),
    }
    value, reason, explanation = values[kind]
    sent = await outside.send(outside.topics.requests, value, key=user.encode())
    headers, record = await outside.dead_letter(outside.topics.requests, sent)
    assert headers["reason"] == reason, headers
    assert explanation in headers["message"], headers
    assert record.value == value
    await still_answers(outside, sent.partition)


@pytest.mark.parametrize("kind", [*UNREADABLE, *ITEMS])
async def test_a_bad_catalog_entry_becomes_a_dead_letter_that_says_why(outside: Outside, kind: str) -> None:
    item = outside.own("bad")
    make, reason, explanation = ITEMS[kind] if kind in ITEMS else (None, *UNREADABLE[kind][1:])
    good = {"item_id": item, "title": "rubber boots", "category": outside.own("boots")}
    value = make(good) if make else UNREADABLE[kind][0]
    sent = await outside.send(outside.topics.catalog, value, key=item.encode())
    headers, record = await outside.dead_letter(outside.topics.catalog, sent)
    assert headers["reason"] == reason, headers
    assert explanation in headers["message"], headers
    assert record.value == value
    await outside.put_and_wait(item, title="rubber boots", category=good["category"])
    found = await outside.items(outside.own("ann"), query="boots", filter={"category": good["category"]})
    assert found == [item]


async def test_a_delete_that_names_no_item_becomes_a_dead_letter(outside: Outside) -> None:
    sent = await outside.send(outside.topics.catalog, None, key=b"")
    headers, _ = await outside.dead_letter(outside.topics.catalog, sent)
    assert headers["reason"] == "null_key"
    sent = await outside.send(outside.topics.catalog, None, key=b"\xff\xfe")
    headers, _ = await outside.dead_letter(outside.topics.catalog, sent)
    assert headers["reason"] == "bad_utf8"


async def test_unknown_extra_fields_are_ignored_everywhere(outside: Outside) -> None:
    user, item = outside.own("ann"), outside.own("novelty")
    await outside.put_and_wait(item, title="rubber boots", category=outside.own("boots"), discount={"x": 1})
    after = await outside.click(user, item, future_field=[1, {"a": None}])
    answer = await outside.ask(user, after=after, wishes="none")
    assert (answer["status"], answer["reflects"]["events"], answer["reflects"]["pending"]) == ("ok", 1, 0)


@pytest.mark.parametrize(
    "letters", ["🙂👍🏽", "naïve Ünïcode 日本語", "with\x00NUL", 'quotes" \\ and\nlines', "x" * 400]
)
async def test_ids_of_any_letters_work(outside: Outside, letters: str) -> None:
    user, item, event = (outside.own(f"{letters}-{kind}") for kind in ("user", "item", "event"))
    category = outside.own("letters")
    await outside.put_and_wait(item, title="rubber boots", category=category)
    after = await outside.click(user, item, event_id=event)
    answer = await outside.ask(user, after=after, filter={"category": category}, exclude_seen=False)
    assert (answer["status"], answer["user_id"]) == ("ok", user)
    assert [found["item_id"] for found in answer["items"]] == [item]
    reflects = answer["reflects"]
    assert (reflects["last_event_id"], reflects["pending"]) == (event, 0)
    assert await outside.items(user, filter={"category": category}, exclude=[item], exclude_seen=False) == []
    await outside.catalog_applied([await outside.delete(item)])
    assert await outside.items(user, filter={"category": category}, exclude_seen=False) == []


async def test_good_clicks_between_bad_ones_all_count_and_nothing_is_lost(outside: Outside) -> None:
    user = outside.own("patient")
    bad = [make(outside.click_message(user, "x")) for make, _, _ in CLICKS.values()]
    bad += [value for value, _, _ in UNREADABLE.values()]
    waiting = []
    for number in range(40):
        garbage = bad[number % len(bad)]
        waiting.append(await outside.send(outside.topics.clicks, garbage, key=user.encode()))
        after = await outside.click(user, f"dog-{number % 10}", event_id=f"{user}-{number}")
    answer = await outside.ask(user, after=after)
    assert answer["status"] == "ok"
    assert (answer["reflects"]["events"], answer["reflects"]["last_event_id"]) == (40, f"{user}-39")
    for sent in waiting:
        await outside.dead_letter(outside.topics.clicks, sent)
