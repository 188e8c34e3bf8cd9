"""Which dead letters are published again, how, and how many at a time."""

import asyncio
from pathlib import Path

from aiokafka import ConsumerRecord

from headwater.kafka import letters, topics
from headwater.kafka.fast_client.records import MAX_HEADERS
from headwater.kafka.headers import dead_letter_headers
from headwater.kafka.letters import Letter, Wanted, letter_of
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.kafka.redrive import outgoing, portions, run, sort_out
from headwater.kafka.topics import Topics
from headwater.settings import Settings

NAMES = Topics.named("")


def record(topic: str = NAMES.clicks, value: bytes | None = b"{", **fields: object) -> ConsumerRecord:
    headers = dead_letter_headers("misrouted", "why", topic, 3, 40, b"ann", **fields)  # type: ignore[arg-type]
    return ConsumerRecord(NAMES.dead_letters, 0, 7, 9, 0, b"k", value, None, 0, 0, tuple(headers))


def letter(found: ConsumerRecord) -> Letter:
    made = letter_of(found)
    assert made is not None
    return made


def test_letters_that_cannot_be_made_again_or_are_of_no_use_are_left_out() -> None:
    tried = [("headwater-redriven", b'["clicks",3,12,2]')]
    letters = [
        letter(each)
        for each in (
            record(),
            record(NAMES.catalog),
            record(NAMES.requests),
            record("elsewhere"),
            record(cut_from_bytes=9),
            record(last_offset=50),
            record(original=tried),
        )
    ]
    plan = sort_out(letters, NAMES, max_tries=2)
    assert plan.ready == letters[:2]
    assert plan.skipped == {"no_use": 2, "cut": 1, "unreadable": 1, "failed_again": 1}
    assert sort_out(letters, NAMES, max_tries=3).ready == [*letters[:2], letters[-1]]


def test_a_record_goes_out_as_it_was_with_the_place_it_comes_from() -> None:
    original = [
        ("headwater-origin", b"[0,1,2]"),
        ("trace", b"t"),
        ("headwater-redriven", b'["clicks",3,12,1]'),
    ]
    found = record(original=original, value=None)
    sent = outgoing(found, letter(found))
    assert (sent.key, sent.value) == (b"ann", None)
    assert sent.headers == [("headwater-redriven", b'["clicks.v1",3,40,2]'), ("trace", b"t")]


def test_many_headers_of_others_hide_none_of_ours() -> None:
    """A reader takes the first headers only, and a record with as many as it takes becomes a letter, and goes out again."""
    foreign = [(f"x{number}", b"") for number in range(MAX_HEADERS)]
    found = record(original=[*foreign, ("headwater-redriven", b'["clicks",3,12,1]')])
    assert len(found.headers) <= MAX_HEADERS
    assert letter(found).lacks == "cut"  # and says that it was more
    some = record(original=foreign[:100])
    assert len(some.headers) <= MAX_HEADERS
    assert letter(some).lacks == ""
    assert outgoing(some, letter(some)).headers[0][0] == "headwater-redriven"


def test_a_transaction_is_bounded_in_letters_bytes_and_time() -> None:
    def sizes(values: list[int], rate: float) -> list[int]:
        found = [record(value=bytes(size)) for size in values]
        return [len(each) for each in portions([(each, letter(each)) for each in found], rate)]

    assert sizes([1] * 60, 100.0) == [25, 25, 10]
    assert sizes([1] * 3, 0.5) == [1, 1, 1]
    assert sizes([800_000, 200_000, 2_000_000, 1, 1], 100.0) == [1, 1, 1, 2]
    assert sizes([1] * 501, 100_000.0) == [500, 1]
    assert sizes([], 100.0) == []


async def test_what_is_purged_while_a_run_is_under_way_is_not_redriven(
    embedded_broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    settings = Settings(kafka_bootstrap_servers=embedded_broker, topic_prefix=topic_prefix, data_dir=tmp_path)
    await topics.create(settings)
    names = Topics.named(topic_prefix)
    producer = producer_of(settings)
    await producer.start()
    written = [
        Outgoing(
            f"{names.clicks}/0/{offset}".encode(),
            b"{}",
            dead_letter_headers("misrouted", "why", names.clicks, 0, offset, b"ann"),
        )
        for offset in range(3)
    ]
    await write_all(producer, names.dead_letters, letters.PARTITION, written)
    await producer.stop()
    found = (await letters.read(settings)).open()
    purging: list[asyncio.Task[None]] = []

    def told(redriven: int) -> None:
        if not purging:
            purging.append(asyncio.create_task(letters.purge(settings, found[1:])))

    async with asyncio.timeout(120):
        done = await run(settings, Wanted(), 0.25, 1, told)
        await purging[0]
    assert (done.redriven, dict(done.skipped)) == (1, {"purged": 2})
    left = await letters.read(settings)
    assert (left.open(), len(left.redriven())) == ([], 1)
