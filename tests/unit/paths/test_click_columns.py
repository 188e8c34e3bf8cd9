"""Records as columns of valid clicks: what is good, what is bad, and what belongs elsewhere."""

import gc
import json
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder.features import ACTION_CODES, event_key, item_key
from headwater.kafka.fast_client.consumer import Record
from headwater.kafka.forwarding import forwarded
from headwater.kafka.partitioner import partition_of
from headwater.messages import BadMessage, decode_click
from headwater.paths.click_columns import _SLICE, decode, parse
from tests.support.interests_worker import InterestsWorker, now_ms

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
CLICK = {"event_id": "e1", "user_id": "ann", "item_id": "tea", "at_ms": NOW_MS}
UNREADABLE = (
    b"",
    b"click ann tea",
    b'{"event_id":',
    b'{"event_id":"\xff"}',
    b"\xff\xfe\x00",
    b"[]",
    b"5",
    b"null",
    b"[" * 10_000,
    b'{"a":' * 10_000,
    b'{"user_id":"\\ud800x"}',
)
ODD_CLICKS: list[tuple[bytes | None, bytes | None]] = [
    *((None, raw) for raw in UNREADABLE),
    (b"ann", None),
    (b"bob", json.dumps(CLICK).encode()),
    (None, json.dumps(CLICK).encode()),
    *(
        (b"ann", json.dumps({**CLICK, **fields}).encode())
        for fields in (
            {"item_id": ""},
            {"item_id": "", "action": "forget"},
            {"item_id": "\u8336" * 171},
            {"item_id": "\u8336" * 170, "event_id": "\u00e9"},
            {"event_id": "\ud800"},
            {"event_id": "x" * 513},
            {"at_ms": NOW_MS + 3 * DAY_MS},
            {"action": "retract"},
            {"action": "nope"},
            {"context": {"page": {"deep": [1]}}},
            {"context": None},
            {"context": [1]},
            {"unknown": 1},
        )
    ),
]
PLAIN_CLICK = (b"ann", json.dumps(CLICK).encode())


@given(st.lists(st.one_of(st.just(PLAIN_CLICK), st.sampled_from(ODD_CLICKS)), max_size=140))
def test_many_clicks_are_parsed_as_each_of_them_is(pairs: list[tuple[bytes | None, bytes | None]]) -> None:
    stamps = (NOW_MS, NOW_MS + 10 * 365 * DAY_MS, -1, NOW_MS - DAY_MS)
    records = [
        Record("clicks", 0, offset, stamp, key, raw, (("n", b"%d" % offset),) if offset % 3 else ())
        for offset, ((key, raw), stamp) in enumerate(zip(pairs, cycle(stamps)))
    ]
    expected, complaints = [], []
    for record in records:
        try:
            each = decode_click(
                record.key, record.value, min(record.timestamp, NOW_MS) if record.timestamp >= 0 else NOW_MS
            )
        except BadMessage as error:
            complaints.append((record, error.reason, str(error)))
            continue
        ids = (each.user_id.encode(), each.event_id.encode(), each.item_id.encode())
        expected.append((record, *ids, each.at_ms, each.action))
    good, bad = parse(records, NOW_MS)
    columns = (good.records, good.users, good.event_ids, good.item_ids, good.at_ms, good.actions)
    assert list(zip(*columns, strict=True)) == expected
    assert bad == complaints
    odd = good.take(range(1, len(good.records), 2))
    assert odd == tuple(column[1::2] for column in good)


def test_a_bad_click_keeps_nothing_of_its_batch_alive() -> None:
    """Not until Python looks for garbage cycles either: by then many batches of many megabytes may have passed."""

    @dataclass
    class Referable:
        offset: int
        value: bytes
        key = b"ann"
        timestamp = NOW_MS

    gc.disable()
    try:
        batch = [Referable(n, (PLAIN_CLICK[1], b"junk")[n % 2]) for n in range(4)]
        alive = [weakref.ref(record) for record in batch]
        parsed = parse(batch, NOW_MS)
        assert [bad.record.offset for bad in parsed[1]] == [1, 3]
        del parsed, batch
        assert [each() for each in alive] == [None] * 4
    finally:
        gc.enable()


PARTITIONS = 4
HOME = partition_of(b"ann", PARTITIONS)


@pytest.fixture
async def worker() -> AsyncIterator[InterestsWorker]:
    worker = InterestsWorker({"tea": "Green tea"}, partitions=PARTITIONS, owned=[HOME])
    yield worker
    await worker.close()


async def test_a_batch_is_sorted_into_good_bad_and_strays(worker: InterestsWorker) -> None:
    astray = next(f"user {n}" for n in range(99) if partition_of(b"user %d" % n, PARTITIONS) != HOME)
    again = forwarded(worker.click(astray, "tea", partition=(HOME + 1) % PARTITIONS), astray.encode())
    records = [
        worker.click("ann", "tea", partition=HOME, action="purchase", event_id="e1"),
        worker.click(astray, "tea", partition=HOME),
        worker.record(worker.topics.clicks, b"ann", b"no click", partition=HOME),
        worker.record(
            worker.topics.clicks, again.key, again.value, partition=HOME, headers=again.headers or ()
        ),
        worker.click("ann", "soap", partition=HOME, event_id="e2"),
    ]
    good, bad, strays, _ = await decode(records, worker.partition(HOME), PARTITIONS, now_ms())
    assert good.records == [records[0], records[4]]
    assert good.clicks.offset.tolist() == [records[0].offset, records[4].offset]
    assert good.clicks.row.tolist() == [worker.partition(HOME).columns.rows[b"ann"]] * 2
    assert good.clicks.item.tolist() == [item_key("tea"), item_key("soap")]
    assert good.clicks.event.tolist() == [event_key("e1"), event_key("e2")]
    assert good.clicks.action.tolist() == [ACTION_CODES["purchase"], ACTION_CODES["click"]]
    assert good.sent_ms.tolist() == [records[0].timestamp, records[4].timestamp]
    assert [(letter.record, letter.reason) for letter in bad] == [
        (records[2], "bad_json"),
        (records[3], "misrouted"),
    ]
    assert [(stray.outgoing.key, stray.outgoing.value) for stray in strays] == [
        (astray.encode(), records[1].value)
    ]
    assert set(worker.partition(HOME).columns.rows) == {b"ann"}  # strays get no row


async def test_a_batch_of_several_slices_is_decoded_in_order(worker: InterestsWorker) -> None:
    records = [worker.click("ann", "tea", partition=HOME) for _ in range(2 * _SLICE + 3)]
    records[_SLICE] = worker.record(worker.topics.clicks, b"ann", None, partition=HOME)
    good, bad, strays, _ = await decode(records, worker.partition(HOME), PARTITIONS, now_ms())
    assert good.records == records[:_SLICE] + records[_SLICE + 1 :]
    assert [letter.record for letter in bad] == [records[_SLICE]]
    assert strays == []


async def test_a_part_looks_its_users_up_again_and_keeps_their_origins(worker: InterestsWorker) -> None:
    partition = worker.partition(HOME)
    outgoing = forwarded(worker.click("ann", "tea", partition=(HOME + 1) % PARTITIONS, offset=7), b"ann")
    records = [
        worker.click("ann", "tea", partition=HOME),
        worker.record(
            worker.topics.clicks, b"ann", outgoing.value, partition=HOME, headers=outgoing.headers or ()
        ),
    ]
    good, *_ = await decode(records, partition, PARTITIONS, now_ms())
    assert good.origins == [(1, (HOME + 1) % PARTITIONS, 7)]
    partition.erase(b"ann", 1)
    partition.row_of(b"somebody else")  # takes the row
    part = good.part(1, 2, partition)
    assert part.clicks.row.tolist() == [partition.columns.rows[b"ann"]]
    assert part.clicks.offset.tolist() == [records[1].offset]
    assert part.origins == [(0, (HOME + 1) % PARTITIONS, 7)]
    assert good.part(0, 1, partition).origins == []


@pytest.mark.parametrize("stamp_ms", [NOW_MS, NOW_MS + 10 * 365 * DAY_MS, -1])
@pytest.mark.parametrize(
    ("ahead_ms", "counts_as"),
    [
        (-DAY_MS, NOW_MS - DAY_MS),
        (0, NOW_MS),
        (1_000, NOW_MS + 1_000),
        (1_001, NOW_MS),
        (DAY_MS, NOW_MS),
        (2 * DAY_MS, NOW_MS),
        (2 * DAY_MS + 1, None),
        (10 * 365 * DAY_MS, None),
    ],
)
async def test_no_event_is_later_than_its_record_and_the_time_now(
    worker: InterestsWorker, stamp_ms: int, ahead_ms: int, counts_as: int | None
) -> None:
    """A publisher sets the time of an event, and the timestamp of a record where the topic leaves it to him."""
    click = worker.click("ann", "tea", partition=HOME, at_ms=NOW_MS + ahead_ms)
    records = [replace(click, timestamp=stamp_ms)] * 2
    good, bad, *_ = await decode(records, worker.partition(HOME), PARTITIONS, NOW_MS)
    assert good.clicks.at_ms.tolist() == ([] if counts_as is None else [counts_as] * 2)
    for letter in bad:
        assert letter.reason == "time_in_future"
        assert str(NOW_MS + ahead_ms) in letter.message
        assert str(NOW_MS + 2 * DAY_MS) in letter.message


async def test_an_event_counts_as_of_its_record_however_late_it_is_applied(worker: InterestsWorker) -> None:
    """Else a batch that is applied again would give another log."""
    click = worker.click("ann", "tea", partition=HOME, at_ms=NOW_MS + DAY_MS)
    for now in (NOW_MS, NOW_MS + DAY_MS, NOW_MS + 9 * DAY_MS):
        good, *_ = await decode([replace(click, timestamp=NOW_MS)], worker.partition(HOME), PARTITIONS, now)
        assert good.clicks.at_ms.tolist() == [NOW_MS]
