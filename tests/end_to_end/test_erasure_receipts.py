"""Whoever forgets a user gets a receipt, and finds the user's dead letters taken out."""

import json
from hashlib import sha256

from tests.end_to_end.outside import Outside


async def test_a_forget_leaves_a_receipt_when_the_dead_letters_are_gone(outside: Outside) -> None:
    user, other = outside.own("leaving"), outside.own("staying")
    topics = outside.topics
    for name in (user, other):
        await outside.send(topics.clicks, b'{"broken', key=name.encode(), partition=outside.home(name))

    async def letters_of(name: str) -> list[bytes | None]:
        """Of all letters of a user, what compaction leaves of each."""
        records = await outside.records_of(topics.dead_letters)
        keys = {record.key for record in records if dict(record.headers).get("key") == name.encode()}
        newest = {record.key: record.value for record in records}
        return [newest[key] for key in keys]

    async def both_are_there() -> bool:
        return await letters_of(user) == await letters_of(other) == [b'{"broken']

    await outside.until("both letters are there", both_are_there)
    event_id = outside.own("forget")
    position = await outside.click(user, "", action="forget", event_id=event_id)

    async def receipts() -> list[dict[str, object]]:
        found = [json.loads(record.value) for record in await outside.records_of(topics.erasures)]
        return [receipt for receipt in found if receipt["event_id"] == event_id]

    async def is_done() -> bool:
        return any(receipt["status"] == "done" for receipt in await receipts())

    await outside.until("the receipt is done", is_done)
    begun, done = await receipts()
    assert begun["status"] == "begun"
    assert done["user_sha256"] == sha256(user.encode()).hexdigest()
    assert (done["partition"], done["dead_letters"]) == (position["partition"], 1)
    assert await letters_of(user) == [None]
    assert await letters_of(other) == [b'{"broken']
    newest = {record.key: record.value for record in await outside.records_of(topics.profiles)}
    assert newest[user.encode()] is None
