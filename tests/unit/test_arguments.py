"""What is wrong is refused before anything is sent, with the field, the value and what is expected."""

from collections.abc import Awaitable, Callable

import pytest

from headwater.client import Client
from headwater.messages import BadMessage, Item
from headwater.settings import Settings, SettingsError

WRONG: dict[str, tuple[Callable[[Client], Awaitable[object]], str]] = {
    "exclude is text": (
        lambda client: client.recall("ann", exclude="S1"),
        "exclude: got 'S1', expected a list",
    ),
    "exclude holds a number": (lambda client: client.recall("ann", exclude=[5]), r"exclude\[0\]: got 5"),  # type: ignore[list-item]
    "a user that is none": (lambda client: client.recall(None), "user_id: got None, expected `str`"),  # type: ignore[arg-type]
    "a user that is a number": (lambda client: client.click(5, "tea"), "user_id: got 5, expected text"),  # type: ignore[arg-type]
    "an item that is a list": (lambda client: client.click("ann", ["tea"]), r"item_id: got \['tea'\]"),  # type: ignore[arg-type]
    "an empty event id": (lambda client: client.click("ann", "tea", event_id=""), "event_id: got ''"),
    "an action of others": (
        lambda client: client.click("ann", "tea", "buy"),
        "action: got 'buy', .*purchase",
    ),  # type: ignore[arg-type]
    "a context that is text": (lambda client: client.click("ann", "tea", context="x"), "context: got 'x'"),  # type: ignore[arg-type]
    "a context that JSON lacks": (
        lambda client: client.click("ann", "tea", context={"x": object()}),
        "context: ",
    ),
    "a limit that is text": (
        lambda client: client.recall("ann", limit="10"),
        "limit: got '10', expected `int`",
    ),  # type: ignore[arg-type]
    "a limit of none": (lambda client: client.recall("ann", limit=0), "limit: got 0, expected `int` >= 1"),
    "a limit that JSON lacks": (lambda client: client.recall("ann", limit=object()), "limit: got <object"),  # type: ignore[arg-type]
    "a filter that is text": (lambda client: client.recall("ann", filter="garden"), "filter: got 'garden'"),  # type: ignore[arg-type]
    "a session that is a number": (lambda client: client.recall("ann", session=5), "session: got 5"),  # type: ignore[arg-type]
    "a session of texts": (lambda client: client.recall("ann", session=["S1"]), r"session\[0\]: got 'S1'"),  # type: ignore[list-item]
    "sources as a list": (lambda client: client.recall("ann", sources=["new"]), "sources: got"),  # type: ignore[arg-type]
    "a source that is none": (lambda client: client.recall("ann", sources={"x": 1}), "sources: .*interests"),  # type: ignore[dict-item]
    "after is nonsense": (
        lambda client: client.recall("ann", after="nonsense"),
        "after: got 'nonsense'.*3-1042",
    ),
    "after is a number": (lambda client: client.recall("ann", after=7), "after: got 7"),  # type: ignore[arg-type]
    "two demands": (lambda client: client.recall("ann", after="1-2", after_event_id="x"), "one of the two"),
    "reads is nonsense": (
        lambda client: client.recall("ann", reads="mine"),
        "reads: got 'mine', expected \"all\"",
    ),  # type: ignore[arg-type]
    "a time that is text": (lambda client: client.click("ann", "tea", at_ms="now"), "at_ms: got 'now'"),  # type: ignore[arg-type]
    "a time limit that is text": (
        lambda client: client.click("ann", "tea", timeout_s="5"),
        "timeout_s: got '5'",
    ),  # type: ignore[arg-type]
    "an infinite time limit": (
        lambda client: client.click("ann", "tea", timeout_s=float("inf")),
        "timeout_s: got inf",
    ),
    "a time limit of none": (lambda client: client.recall("ann", timeout_s=0), "timeout_s: got 0"),
    "an item that is a dict": (lambda client: client.put_item({"item_id": "tea"}), "item: got {.*an Item"),  # type: ignore[arg-type]
    "a price that is text": (lambda client: client.put_item(Item("tea", price="5")), "price: got '5'"),  # type: ignore[arg-type]
    "an item id that is a number": (lambda client: client.delete_item(5), "item_id: got 5"),  # type: ignore[arg-type]
    "a request that is a dict": (lambda client: client.answer({}), "request: got {}"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_wrong_is_refused_before_anything_is_sent(name: str) -> None:
    """By a client that was not connected: it could send nothing."""
    call, reason = WRONG[name]
    with pytest.raises(BadMessage, match=reason) as refused:
        await call(Client(Settings()))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("system", "reason"), [(5, "system: got 5"), (b"kafka:9092", "system: got b'kafka")])
def test_a_client_of_something_else_is_refused(system: object, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        Client(system)  # type: ignore[arg-type]


def test_an_address_that_is_none_is_refused_with_an_example() -> None:
    with pytest.raises(SettingsError, match=r"HEADWATER_KAFKA_BOOTSTRAP_SERVERS is 'kafka'.*host:port"):
        Client("kafka")
