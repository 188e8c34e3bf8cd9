"""A batch of clicks, from records to logs, states, changelog, dead letters and watermark."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.encoder import runtime as encoders
from headwater.encoder.features import ACTION_CODES, event_key, item_key
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost, StopWorker
from headwater.kafka.batch import Batch
from headwater.kafka.forwarding import forwarded
from headwater.kafka.headers import APPLIED, ORIGIN, Origin
from headwater.kafka.partitioner import partition_of, probe_user
from headwater.paths import clicks as clicks_path
from headwater.paths.observer import ClickApplied
from headwater.profiles import apply_clicks
from headwater.profiles.actions import FORGET, RETRACT
from headwater.profiles.apply_clicks import Clicks, ProfileDelta, plan_batch
from headwater.profiles.columns import Table
from headwater.profiles.event_log import Event
from headwater.profiles.order import Order
from headwater.profiles.partition import Partition
from headwater.profiles.restore import load
from headwater.profiles.sealed import Sealed
from headwater.profiles.state_records import orders_of, stamp_of
from tests.support.histories import History, canonical_log, canonical_state, cosine, histories
from tests.support.interests_worker import GENERATION, STARTER, InterestsWorker, now_ms, until

TEXTS = {
    "coffee": "Ground coffee, dark roast",
    "espresso": "Espresso beans",
    "tea": "Green tea bags",
    "soap": "Hand soap, lavender",
    **{f"item {number}": f"Product number {number}" for number in range(12)},
}
NAMES = {code: name for name, code in ACTION_CODES.items()}


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoders.load(STARTER)


@pytest.fixture
async def worker(starter: Encoder) -> AsyncIterator[InterestsWorker]:
    worker = InterestsWorker(TEXTS, encoder=starter)
    yield worker
    await worker.close()


def entry(record: ConsumerRecord) -> Event:
    """The log entry that a click's record makes."""
    click = json.loads(record.value)
    action = ACTION_CODES[click["action"]] if "action" in click else ACTION_CODES["click"]
    item = 0 if action == RETRACT else item_key(click["item_id"])
    return Event(click["at_ms"], event_key(click["event_id"]), item, action)


async def test_a_batch_without_records_moves_the_watermark_alone(worker: InterestsWorker) -> None:
    await worker.apply(worker.click("ann", "tea"))
    partition = worker.partition()
    clicks = TopicPartition(worker.topics.clicks, 0)
    batch = Batch(cast(Any, worker.consumer), clicks, [], GENERATION, stop=7)
    await worker.clicks.handle(batch)
    assert batch.finished
    assert (partition.applied, partition.watermark) == (6, 6)
    assert len(worker.log("ann")) == 1


async def test_clicks_are_in_the_log_and_the_state_when_the_batch_is_finished(
    worker: InterestsWorker,
) -> None:
    records = [
        worker.click("ann", "coffee"),
        worker.click("bob", "tea"),
        worker.click("ann", "espresso", action="purchase"),
    ]
    batch = await worker.apply(*records)
    assert worker.log("ann") == [entry(records[0]), entry(records[2])]
    assert worker.log("bob") == [entry(records[1])]
    columns = worker.partition().columns
    state, _ = canonical_state(worker.log("ann"), worker.vectors, worker.encoder, worker.encoder.state_size)
    assert cosine(columns.state[columns.rows[b"ann"]], state) >= 1 - 1e-6
    assert columns.last_event[columns.rows[b"ann"]] == b"event 2"
    assert worker.consumer.finished == [batch]
    assert worker.partition().watermark == 2
    assert worker.measured("clicks_total") == 3


async def test_the_changelog_has_one_record_for_each_user_that_was_touched(worker: InterestsWorker) -> None:
    await worker.apply(*(worker.click(user, "coffee") for user in ("ann", "bob", "ann", "ann")))
    records = worker.producer.records(worker.topics.profiles)
    assert sorted(record.key for record in records) == [b"ann", b"bob"]
    assert {stamp_of(record.value) for record in records} == {(77, GENERATION, worker.profiles.bundle, 0)}


async def test_a_worker_that_reads_the_changelog_knows_what_the_writer_knew(worker: InterestsWorker) -> None:
    await worker.apply(*(worker.click(user, item) for user, item in (("ann", "coffee"), ("bob", "tea"))))
    await worker.apply(worker.click("ann", "soap"), worker.click("bob", action="forget", at_ms=now_ms()))
    fresh = Partition(0, worker.encoder.log_length, worker.encoder.state_size)
    load(
        fresh, worker.producer.records(worker.topics.profiles), worker.profiles.bundle, worker.topics.profiles
    )
    ours, theirs = worker.partition().columns, fresh.columns
    assert set(theirs.rows) == {b"ann"}
    erased, known = worker.partition().erasures.get(b"bob"), fresh.erasures.get(b"bob")
    assert erased is not None
    assert known is not None
    assert (
        (known.erased_ms, known.order)
        == (erased.erased_ms, erased.order)
        == (erased.erased_ms, (0, 3, GENERATION))
    )
    one, other = np.array([ours.rows[b"ann"]]), np.array([theirs.rows[b"ann"]])
    assert theirs.log(other).events(0) == ours.log(one).events(0)
    assert (theirs.state[other] == ours.state[one]).all()
    assert theirs.offset[other] == ours.offset[one]
    assert theirs.last_event[other[0]] == b"event 2"


def seal(worker: InterestsWorker, user: str, applied: int) -> None:
    """A newer version has written the user's state."""
    partition = worker.partition()
    del partition.columns.rows[user.encode()]
    partition.sealed[user.encode()] = Sealed(Order(0, applied, GENERATION), 0)


async def test_clicks_of_a_user_whose_state_cannot_be_read_are_dead_letters_and_all_others_count(
    worker: InterestsWorker,
) -> None:
    await worker.apply(worker.click("ann", "coffee"), worker.click("bob", "tea"))
    seal(worker, "ann", 0)
    before = len(worker.producer.records(worker.topics.profiles))
    await worker.apply(
        worker.click("ann", "tea"),
        worker.click("bob", "coffee"),
        worker.click("ann", "tea", action="impression"),
    )
    assert [letter[:2] for letter in worker.letters()] == [("newer_format", 2)]
    assert worker.partition().watermark == 4
    assert [record.key for record in worker.producer.records(worker.topics.profiles)[before:]] == [b"bob"]
    assert worker.partition().has_seen(b"ann", event_key("event 2")), "it has been looked at"
    assert worker.partition().has_seen(b"ann", event_key("event 4"))


async def test_a_forget_ends_a_seal_and_one_that_the_record_may_hold_is_a_dead_letter(
    worker: InterestsWorker,
) -> None:
    await worker.apply(worker.click("ann", "coffee"), worker.click("bob", "coffee"))
    seal(worker, "ann", 1)
    seal(worker, "bob", 9)
    at_ms = now_ms()
    await worker.apply(
        worker.click("ann", "tea"),
        worker.click("ann", action="forget", at_ms=at_ms),
        worker.click("ann", "soap", at_ms=at_ms + 1),
        worker.click("bob", action="forget", at_ms=at_ms),
    )
    assert [letter[:2] for letter in worker.letters()] == [("newer_format", 2), ("newer_format", 5)]
    assert [event.item for event in worker.log("ann")] == [item_key("soap")]
    assert [click.user_id for _, click in worker.forgotten] == ["ann"]
    assert set(worker.partition().sealed) == {b"bob"}
    (order,) = orders_of([worker.producer.latest(worker.topics.profiles)[b"ann"].value])
    assert order > (0, 1, GENERATION)


async def test_a_probe_whose_state_cannot_be_read_begins_anew(worker: InterestsWorker) -> None:
    probe = probe_user(0, 1).decode()
    await worker.apply(worker.click(probe, "coffee"))
    seal(worker, probe, 0)
    await worker.apply(worker.click(probe, "tea"))
    assert ([event.item for event in worker.log(probe)], worker.letters()) == ([item_key("tea")], [])


async def test_a_batch_that_comes_again_changes_nothing_but_writes_its_users_again(
    worker: InterestsWorker,
) -> None:
    records = [worker.click("ann", "coffee"), worker.click("ann", "tea")]
    await worker.apply(*records)
    before = worker.producer.latest(worker.topics.profiles)[b"ann"].value
    await worker.apply(*records)
    assert worker.producer.latest(worker.topics.profiles)[b"ann"].value == before
    assert len(worker.producer.records(worker.topics.profiles)) == 2
    assert worker.measured("clicks_total") == 2
    assert worker.measured("duplicates_total") == 2


async def test_a_repeated_event_id_is_counted_and_not_applied(worker: InterestsWorker) -> None:
    at_ms = now_ms()
    await worker.apply(worker.click("ann", "coffee", event_id="e1", at_ms=at_ms))
    await worker.apply(worker.click("ann", "coffee", event_id="e1", at_ms=at_ms))
    assert len(worker.log("ann")) == 1
    assert worker.measured("duplicates_total") == 1


async def test_an_event_older_than_a_full_log_is_counted_too_late(worker: InterestsWorker) -> None:
    await worker.apply(*(worker.click("ann", "coffee") for _ in range(worker.encoder.log_length)))
    before = worker.log("ann")
    await worker.apply(worker.click("ann", "soap", at_ms=now_ms() - 86_400_000))
    assert worker.log("ann") == before
    assert worker.measured("too_late_total") == 1
    assert worker.partition().watermark == worker.encoder.log_length


async def test_bad_clicks_go_to_the_dead_letters_with_their_reason_and_the_others_are_applied(
    worker: InterestsWorker,
) -> None:
    topic = worker.topics.clicks
    batch = await worker.apply(
        worker.click("ann", "coffee"),
        worker.record(topic, b"ann", b"{"),
        worker.record(topic, b"ann", None),
        worker.record(topic, b"bob", worker.click("ann", "tea").value),
        worker.click("ann", "tea", at_ms=1_700_000_000),
        worker.click("ann", "tea", action="buy"),
        worker.click("bob", "tea"),
    )
    assert [(reason, offset) for reason, offset, _ in worker.letters()] == [
        ("bad_json", 1),
        ("null_value", 2),
        ("key_mismatch", 4),
        ("bad_field", 5),
        ("bad_field", 6),
    ]
    assert "at_ms: got 1700000000" in worker.letters()[3][2]
    originals = worker.producer.records(worker.topics.dead_letters)
    assert (dict(originals[0].headers)["key"], originals[0].value) == (b"ann", b"{")
    assert originals[1].value is None
    assert len(worker.log("ann")) == len(worker.log("bob")) == 1
    assert worker.partition().watermark == batch.last_offset
    assert worker.measured("dead_letters_total", reason="bad_field") == 2


async def test_a_batch_of_nothing_but_bad_clicks_moves_the_watermark(worker: InterestsWorker) -> None:
    batch = await worker.apply(worker.record(worker.topics.clicks, b"ann", b"{", offset=40))
    assert worker.partition().watermark == 40
    assert worker.consumer.finished == [batch]
    assert worker.producer.records(worker.topics.profiles) == []


async def test_forget_erases_the_user_and_what_arrives_late_stays_out(worker: InterestsWorker) -> None:
    await worker.apply(worker.click("ann", "coffee"))
    forgotten_ms = now_ms()
    await worker.apply(worker.click("ann", action="forget", at_ms=forgotten_ms))
    assert b"ann" not in worker.partition().columns.rows
    assert worker.producer.latest(worker.topics.profiles)[b"ann"].value is None
    await worker.apply(worker.click("ann", "tea", at_ms=forgotten_ms - 5))
    assert b"ann" not in worker.partition().columns.rows
    assert worker.measured("too_late_total") == 1
    await worker.apply(worker.click("ann", "soap", at_ms=forgotten_ms + 5))
    assert [event.item for event in worker.log("ann")] == [item_key("soap")]


async def test_a_forget_is_handed_on_before_it_is_committed(
    worker: InterestsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_ms = now_ms()
    forget = worker.click("ann", action="forget", at_ms=at_ms, event_id="gone")
    batch = await worker.apply(worker.click("ann", "coffee"), worker.click("bob", "tea"), forget)
    [(partition, click)] = worker.forgotten
    assert (partition, click.user_id, click.event_id, click.at_ms) == (0, "ann", "gone", at_ms)
    assert worker.consumer.finished == [batch]

    async def lost(*_: object) -> None:
        raise PartitionLost

    monkeypatch.setattr(worker.clicks, "_forgotten", lost)
    with pytest.raises(PartitionLost):
        await worker.apply(worker.click("bob", action="forget", at_ms=at_ms))
    assert worker.consumer.finished == [batch]


async def test_who_is_forgotten_is_not_remembered_by_what_came_into_no_log(worker: InterestsWorker) -> None:
    at_ms = now_ms()
    await worker.apply(
        worker.click("ann", "coffee", action="impression"), worker.click("bob", "tea", action="impression")
    )
    await worker.apply(worker.click("ann", action="forget", at_ms=at_ms, event_id="forget me"))
    seen = worker.partition()._unlogged
    assert [event for user, event in seen if user == hash(b"ann")] == [event_key("forget me")]
    assert len([user for user, _ in seen if user == hash(b"bob")]) == 1


async def test_the_forget_that_erases_a_user_counts_as_seen(worker: InterestsWorker) -> None:
    """A request may wait for it: its answer is then of a user that nothing is known of."""
    await worker.apply(worker.click("ann", "coffee", event_id="before"))
    await worker.apply(worker.click("ann", action="forget", at_ms=now_ms() + 1, event_id="forget me"))
    partition = worker.partition()
    assert b"ann" not in partition.columns.rows
    assert partition.has_seen(b"ann", event_key("forget me"))
    assert not partition.has_seen(b"ann", event_key("before"))
    assert not partition.has_seen(b"bob", event_key("forget me"))


async def test_clicks_that_come_again_after_the_group_lost_its_offsets_do_not_bring_an_erased_user_back(
    worker: InterestsWorker,
) -> None:
    """Nor do impressions that come later: they are of no use to anybody, and there is nothing to remember."""
    clicks = [worker.click("ann", "coffee"), worker.click("ann", action="forget", at_ms=now_ms())]
    await worker.apply(*clicks)
    await worker.apply(*clicks)
    await worker.apply(worker.click("ann", "tea", action="impression", at_ms=now_ms() + 1_000))
    assert b"ann" not in worker.partition().columns.rows
    written = worker.producer.records(worker.topics.profiles)
    assert [(record.value, APPLIED.of(record.headers)) for record in written] == [
        (None, (0, 1)),
        (None, (0, 1)),
        (None, (0, 2)),
    ]


async def test_users_with_impressions_only_take_no_row_and_no_record(worker: InterestsWorker) -> None:
    seen = [worker.click(f"user {number}", "tea", action="impression") for number in range(50)]
    await worker.apply(*seen, worker.click("ann", "tea"), worker.click("ann", "tea", action="impression"))
    assert list(worker.partition().columns.rows) == [b"ann"]
    assert [record.key for record in worker.producer.records(worker.topics.profiles)] == [b"ann"]
    assert worker.partition().columns.offset[worker.partition().columns.rows[b"ann"]] == 51


async def test_a_forwarded_click_has_been_looked_at_though_its_user_keeps_no_row(
    worker: InterestsWorker,
) -> None:
    for offset, (user, action) in enumerate((("ann", "impression"), ("bob", "forget"))):
        headers = [ORIGIN.header(Origin(3, 70 + offset, now_ms()))]
        await worker.apply(worker.click(user, "tea", action=action, headers=headers))
    partition = worker.partition()
    assert not partition.columns.rows
    assert partition.has_origin(b"ann", 3, 70)
    assert partition.has_origin(b"bob", 3, 71)
    assert not partition.has_origin(b"ann", 3, 71)
    assert not partition.has_origin(b"ann", 2, 70)


async def test_after_a_retraction_the_last_event_is_one_that_still_counts(worker: InterestsWorker) -> None:
    await worker.apply(
        worker.click("ann", "coffee", event_id="e1"), worker.click("ann", "tea", event_id="e2")
    )
    columns = worker.partition().columns
    await worker.apply(worker.click("ann", action="retract", event_id="e1"))
    assert columns.last_event[columns.rows[b"ann"]] == b"e2"
    await worker.apply(worker.click("ann", action="retract", event_id="e2"))
    assert columns.last_event[columns.rows[b"ann"]] == b""
    await worker.apply(worker.click("ann", "soap", event_id="e3", at_ms=now_ms() - 600_000))
    assert columns.last_event[columns.rows[b"ann"]] == b"e3"


async def test_popularity_counts_what_was_applied_and_not_its_copies(worker: InterestsWorker) -> None:
    record = worker.click("ann", "coffee", event_id="e1")
    await worker.apply(record, worker.click("bob", "coffee"), worker.click("bob", "tea", action="dislike"))
    await worker.apply(worker.click("ann", "coffee", event_id="e1", at_ms=entry(record).at_ms))
    assert dict(worker.clicks.counts[0].top()).keys() == {item_key("coffee")}
    assert dict(worker.clicks.counts[0].top())[item_key("coffee")] == pytest.approx(2.0, rel=1e-3)


# Strays

PARTITIONS = 4


@pytest.fixture
async def wide(starter: Encoder) -> AsyncIterator[InterestsWorker]:
    worker = InterestsWorker(TEXTS, encoder=starter, partitions=PARTITIONS, owned=range(PARTITIONS))
    yield worker
    await worker.close()


def away_from_home(user: str) -> tuple[int, int]:
    home = partition_of(user.encode(), PARTITIONS)
    return home, (home + 1) % PARTITIONS


async def test_a_stray_is_forwarded_home_with_its_origin_and_is_not_applied_here(
    wide: InterestsWorker,
) -> None:
    home, away = away_from_home("ann")
    record = wide.click("ann", "coffee", partition=away, offset=12, headers=[("trace", b"1")])
    await wide.apply(record)
    assert b"ann" not in wide.partition(away).columns.rows
    assert wide.partition(away).watermark == 12
    (sent,) = wide.producer.records(wide.topics.clicks)
    assert (sent.partition, sent.key, sent.value) == (home, record.key, record.value)
    assert ORIGIN.of(sent.headers) == Origin(away, 12, record.timestamp)
    assert wide.measured("strays_total", topic=wide.topics.clicks) == 1


async def test_a_forwarded_click_is_applied_and_its_origin_is_kept_with_the_user(
    wide: InterestsWorker,
) -> None:
    home, away = away_from_home("ann")
    columns = wide.partition(home).columns
    for offset in (12, 30, 20):
        outgoing = forwarded(wide.click("ann", "coffee", partition=away, offset=offset), b"ann")
        await wide.apply(
            wide.record(wide.topics.clicks, b"ann", outgoing.value, partition=home, headers=outgoing.headers)
        )
    assert columns.origins[columns.rows[b"ann"]] == {away: 30}
    assert len(wide.log("ann", home)) == 3


async def test_a_forwarded_click_that_still_does_not_belong_here_is_dead_lettered(
    wide: InterestsWorker,
) -> None:
    _, away = away_from_home("ann")
    outgoing = forwarded(wide.click("ann", "coffee", partition=away), b"ann")
    await wide.apply(
        wide.record(wide.topics.clicks, b"ann", outgoing.value, partition=away, headers=outgoing.headers)
    )
    assert wide.letters()[0][0] == "misrouted"
    assert wide.producer.records(wide.topics.clicks) == []


# Faults


class Brittle:
    """The starter, failing wherever a poisoned item is stepped on, as a bug of ours would."""

    def __init__(self, encoder: Encoder, poison: str) -> None:
        self._encoder = encoder
        self._poison = encoder.encode_items([TEXTS[poison]])[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def step(self, state: Any, items: Any, actions: Any, gaps_s: Any, mask: Any) -> Any:
        if (np.abs(items - self._poison).max(axis=-1) < 1e-6).any():
            raise ArithmeticError("this item breaks the encoder")
        return self._encoder.step(state, items, actions, gaps_s, mask)


@pytest.mark.parametrize("place", [0, 3, 6])
async def test_of_a_batch_that_our_own_code_fails_on_the_culprit_alone_is_dead_lettered(
    starter: Encoder, place: int
) -> None:
    worker = InterestsWorker(TEXTS, encoder=Brittle(starter, "soap"))  # type: ignore[arg-type]
    users = ["ann", "bob", "cy", "ann", "dee", "bob", "eve"]
    records = [worker.click(user, "soap" if index == place else "tea") for index, user in enumerate(users)]
    batch = await worker.apply(*records)
    assert [(reason, offset) for reason, offset, _ in worker.letters()] == [("internal_error", place)]
    assert "ArithmeticError: this item breaks the encoder" in worker.letters()[0][2]
    for user in sorted(set(users)):
        kept = [
            entry(record) for index, record in enumerate(records) if users[index] == user and index != place
        ]
        if kept:
            assert worker.log(user) == kept
            assert user.encode() in worker.producer.latest(worker.topics.profiles)
    assert worker.consumer.finished == [batch]
    assert worker.partition().watermark == 6
    assert worker.measured("clicks_total") == 6
    await worker.close()


async def test_a_forget_in_the_same_batch_as_a_culprit_does_not_mix_up_users(starter: Encoder) -> None:
    """Halving the batch gives the row of the erased user away before the second half is applied."""
    worker = InterestsWorker(TEXTS, encoder=Brittle(starter, "soap"))  # type: ignore[arg-type]
    later = now_ms() + 1_000
    await worker.apply(worker.click("ann", "tea"))
    await worker.apply(
        worker.click("ann", action="forget", at_ms=later),
        worker.click("new", "tea"),
        worker.click("ann", "coffee", at_ms=later + 1),
        worker.click("bob", "soap"),
    )
    assert [event.item for event in worker.log("ann")] == [item_key("coffee")]
    assert [event.item for event in worker.log("new")] == [item_key("tea")]
    assert set(worker.producer.latest(worker.topics.profiles)) == {b"ann", b"new"}
    assert [reason for reason, _, _ in worker.letters()] == ["internal_error"]
    await worker.close()


async def test_a_broker_that_takes_no_writes_stops_the_worker_unacknowledged(worker: InterestsWorker) -> None:
    worker.producer.down = True
    with pytest.raises(StopWorker, match="did not acknowledge"):
        await worker.apply(worker.click("ann", "coffee"))
    assert worker.consumer.finished == []
    assert worker.partition().watermark == -1


async def test_the_next_batch_is_applied_while_one_is_stored_and_finishes_after_it(
    worker: InterestsWorker,
) -> None:
    worker.producer.slow = {worker.topics.profiles}
    partition = worker.partition()
    first, second, third = (worker.batch([worker.click(user, "coffee")]) for user in ("ann", "ann", "bob"))
    tasks = [asyncio.create_task(worker.clicks.handle(batch)) for batch in (first, second)]
    await until(lambda: partition.applied == second.last_offset)
    assert len(worker.log("ann")) == 2
    assert partition.watermark == -1
    assert worker.consumer.released == [first]  # two at most: the second holds the partition
    worker.producer.acknowledge()
    await until(lambda: worker.consumer.released == [first, second])
    assert worker.consumer.finished == [first]
    assert partition.watermark == first.last_offset
    tasks.append(asyncio.create_task(worker.clicks.handle(third)))
    worker.producer.acknowledge()
    await until(lambda: partition.applied == third.last_offset)
    worker.producer.acknowledge()
    await asyncio.gather(*tasks)
    assert worker.consumer.finished == [first, second, third]
    assert partition.watermark == third.last_offset


async def test_batches_that_the_producer_keeps_waiting_hold_up_no_other_partition(
    starter: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = InterestsWorker(TEXTS, encoder=starter, partitions=3, owned=range(3))
    send, go_on = worker.producer.send_batch, asyncio.Event()

    async def waiting(batch: Any, topic: str, *, partition: int) -> Any:
        if partition < 2:
            await go_on.wait()
        return await send(batch, topic, partition=partition)

    monkeypatch.setattr(worker.producer, "send_batch", waiting)
    batches = []
    for number in range(3):
        user = next(name for name in map(str, range(100)) if partition_of(name.encode(), 3) == number)
        batches.append(worker.batch([worker.click(user, "coffee", partition=number)]))
    tasks = [asyncio.create_task(worker.clicks.handle(batch)) for batch in batches]
    await until(lambda: worker.consumer.finished == [batches[2]])
    go_on.set()
    await asyncio.gather(*tasks)
    assert set(worker.consumer.finished) == set(batches)
    await worker.close()


async def test_a_batch_whose_predecessor_was_not_stored_is_not_finished(worker: InterestsWorker) -> None:
    worker.producer.slow = {worker.topics.profiles}
    batches = [worker.batch([worker.click(user, "coffee")]) for user in ("ann", "bob")]
    tasks = [asyncio.create_task(worker.clicks.handle(batch)) for batch in batches]
    await until(lambda: worker.partition().applied == batches[1].last_offset)
    worker.producer.refuse()
    worker.producer.acknowledge()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in done] == [StopWorker, PartitionLost]
    assert worker.consumer.finished == []
    assert worker.partition().watermark == -1


async def test_a_partition_that_was_taken_away_applies_nothing(worker: InterestsWorker) -> None:
    records = [worker.click("ann", "coffee")]
    worker.partition().generation = GENERATION + 1
    with pytest.raises(PartitionLost):
        await worker.apply(*records)
    worker.partition().owned = False
    with pytest.raises(PartitionLost):
        await worker.apply(*records)
    assert worker.consumer.finished == []
    assert worker.producer.records(worker.topics.profiles) == []


async def test_a_click_on_an_unknown_item_waits_for_its_vector(worker: InterestsWorker) -> None:
    await worker.apply(worker.click("ann", "coffee"), worker.click("ann", "novelty"))
    columns = worker.partition().columns
    row = columns.rows[b"ann"]
    assert columns.pending[row] == 1
    assert len(worker.log("ann")) == 2
    worker.vectors.changed(item_key("novelty"), worker.encoder.encode_items(["Something new"])[0])
    await worker.apply(worker.click("ann", "tea"))
    assert columns.pending[row] == 0
    state, _ = canonical_state(worker.log("ann"), worker.vectors, worker.encoder, worker.encoder.state_size)
    assert cosine(columns.state[row], state) >= 1 - 1e-6


# The whole path keeps what the pure core promises


def as_record(worker: InterestsWorker, user: bytes, event: Event, offset: int) -> ConsumerRecord:
    return worker.click(
        user.decode(),
        "" if event.action in (RETRACT, FORGET) else f"item {event.item}",
        event_id=f"e{event.event}",
        action=NAMES[event.action],
        at_ms=event.at_ms,
        offset=offset,
    )


@settings(max_examples=25)
@given(histories(), st.integers(0, 40), st.integers(0, 40))
def test_any_order_repetition_batching_and_restart_gives_the_canonical_users(
    starter: Encoder, history: History, crash: int, replay: int
) -> None:
    """A worker crashes somewhere, another one restores from the changelog and reads some of the clicks again."""

    async def run() -> None:
        first, second = (InterestsWorker(TEXTS, encoder=starter) for _ in range(2))
        records = [
            as_record(first, user, event, offset) for offset, (user, event) in enumerate(history.stream)
        ]
        crashed = min(crash, len(records))
        bounds = sorted({0, crashed, *(cut for cut in history.cuts if cut < crashed)})
        for start, stop in pairwise(bounds):
            await first.apply(*records[start:stop])
        load(
            second.partition(),
            first.producer.records(first.topics.profiles),
            second.profiles.bundle,
            first.topics.profiles,
        )
        again = records[max(crashed - replay, 0) :]
        for start in range(0, len(again), 5):
            await second.apply(*again[start : start + 5])
        columns = second.partition().columns
        for user, events in history.events.items():
            named = [
                Event(
                    event.at_ms,
                    event_key(f"e{event.event}"),
                    item_key(f"item {event.item}"),
                    event.action,
                )
                for event in events
            ]
            log = canonical_log(named, starter.log_length)
            if not log and any(event.action == FORGET for event in events):
                assert user not in columns.rows
                continue
            assert second.log(user.decode()) == log
            state, _ = canonical_state(log, second.vectors, starter, starter.state_size)
            row = columns.rows[user]
            if columns.state_at_ms[row]:
                assert cosine(columns.state[row], state) >= 1 - 1e-6
            else:
                assert not state.any()
        assert first.letters() == second.letters() == []
        await first.close()
        await second.close()

    asyncio.run(run())


async def test_who_listens_hears_of_each_click_that_was_applied(worker: InterestsWorker) -> None:
    with worker.observer.listen() as listener:
        await worker.apply(
            worker.click("ann", "coffee", event_id="e1"),
            worker.click("ann", "coffee", event_id="e1"),  # a duplicate
            worker.click("bob", "tea", event_id="e2", action="purchase"),
        )
        told = await listener.next()
    assert [(each.user_id, each.item_id, each.action, each.event_id, each.offset) for each in told] == [
        ("ann", "coffee", "click", "e1", 0),
        ("bob", "tea", "purchase", "e2", 2),
    ]
    assert all(each.lag_ms >= 0 for each in told)


async def test_of_a_large_batch_listeners_hear_the_newest_clicks(worker: InterestsWorker) -> None:
    worker.observer.allowance = lambda kind, count: min(count, 3)  # type: ignore[method-assign]
    with worker.observer.listen() as listener:
        await worker.apply(*(worker.click("ann", "coffee") for _ in range(10)))
        assert [each.offset for each in await listener.next()] == [7, 8, 9]
        assert listener.dropped == 7


async def test_no_event_is_made_while_nobody_listens(worker: InterestsWorker) -> None:
    made: list[object] = []
    worker.observer.tell = lambda events, omitted=0: made.extend(events)  # type: ignore[method-assign]
    await worker.apply(worker.click("ann", "coffee"))
    assert made == []
    with worker.observer.listen():
        await worker.apply(worker.click("ann", "tea"))
    assert len(made) == 1


async def test_a_probe_goes_the_whole_way_and_counts_for_nothing(worker: InterestsWorker) -> None:
    probe = probe_user(0, 1).decode()
    with worker.observer.listen() as listener:
        await worker.apply(
            worker.click("ann", "coffee"),
            *(worker.click(probe, "soap", event_id="twice") for _ in range(2)),
            worker.click("bob", "tea"),
        )
        await worker.apply(worker.click(probe, "soap"))
        assert [each.user_id for each in await listener.next()] == ["ann", "bob"]
    assert len(worker.log(probe)) == 2
    assert probe.encode() in worker.producer.latest(worker.topics.profiles)
    columns = worker.partition().columns
    assert np.any(columns.state[columns.rows[probe.encode()]])
    assert worker.partition().watermark == 4
    assert worker.measured("clicks_total") == 2
    assert worker.measured("duplicates_total") == 0
    assert worker.measured("click_to_applied_seconds_count") == 2
    counted = {key for key, _ in worker.clicks.counts[0].top()}
    assert counted == {item_key("coffee"), item_key("tea")}


async def test_a_probe_counts_for_nothing_in_a_coalesced_batch_either(starter: Encoder) -> None:
    worker = InterestsWorker(TEXTS, encoder=starter, partitions=2, owned=(0, 1))
    probes = [probe_user(number, 2).decode() for number in range(2)]
    users = [next(f"u{n}" for n in range(99) if partition_of(f"u{n}".encode(), 2) == each) for each in (0, 1)]
    await worker.apply_together(
        *(worker.click(user, "soap", partition=place) for place, user in enumerate(probes)),
        *(worker.click(user, "tea", partition=place) for place, user in enumerate(users)),
    )
    assert worker.measured("clicks_total") == 2
    for number in range(2):
        assert [key for key, _ in worker.clicks.counts[number].top()] == [item_key("tea")]
    await worker.close()


# Times that a publisher made up

DAY_MS = 86_400_000
TEN_YEARS_MS = 3_650 * DAY_MS


async def test_a_publisher_a_day_ahead_costs_no_honest_click(worker: InterestsWorker) -> None:
    """Its events would fill the log until tomorrow, and what the user does today came too late."""
    ahead = [worker.click("ann", "tea", at_ms=now_ms() + DAY_MS + number) for number in range(60)]
    await worker.apply(*ahead)
    assert max(event.at_ms for event in worker.log("ann")) <= now_ms()
    too_late = worker.measured("too_late_total")
    honest = [worker.click("ann", "soap", at_ms=now_ms() + 1) for _ in range(20)]
    await worker.apply(*honest)
    assert worker.measured("too_late_total") == too_late
    assert [event.item for event in worker.log("ann")].count(item_key("soap")) == 20


async def test_a_click_ten_years_ahead_is_a_dead_letter_whatever_its_record_says(
    worker: InterestsWorker,
) -> None:
    at_ms = now_ms() + TEN_YEARS_MS
    await worker.apply(replace(worker.click("ann", "tea", at_ms=at_ms), timestamp=at_ms))
    ((reason, _, message),) = worker.letters()
    assert reason == "time_in_future"
    assert f"at_ms: got {at_ms}, expected at most" in message
    assert not any(counts.top() for counts in worker.clicks.counts.values())


async def test_a_time_that_a_user_record_cannot_hold_is_a_dead_letter(worker: InterestsWorker) -> None:
    """It would make the click another action after a restart."""
    await worker.apply(
        replace(worker.click("ann", "tea", at_ms=2**44 + 5), timestamp=2**44), worker.click("ann", "soap")
    )
    ((reason, _, message),) = worker.letters()
    assert (reason, f"at_ms: got {2**44 + 5}, expected `int` <= {2**44 - 1}" in message) == (
        "bad_field",
        True,
    )


async def test_a_forget_that_is_dated_ahead_erases_nothing_of_what_follows(worker: InterestsWorker) -> None:
    await worker.apply(worker.click("ann", "tea"))
    await worker.apply(worker.click("ann", action="forget", at_ms=now_ms() + DAY_MS))
    assert b"ann" not in worker.partition().columns.rows
    await asyncio.sleep(0.002)
    await worker.apply(worker.click("ann", "soap", at_ms=now_ms()))
    assert [event.item for event in worker.log("ann")] == [item_key("soap")]


async def test_those_who_watch_are_told_the_time_that_counts(worker: InterestsWorker) -> None:
    with worker.observer.listen() as listener:
        await worker.apply(worker.click("ann", "tea", at_ms=now_ms() + DAY_MS))
        (event,) = await listener.next()
    assert cast(ClickApplied, event).at_ms <= now_ms()


async def test_ten_thousand_clicks_of_one_user_are_less_than_the_clicks_of_five(
    worker: InterestsWorker,
) -> None:
    for start in range(0, 10_000, 2_500):
        await worker.apply(
            *(worker.click("ann", "tea", at_ms=now_ms() - 20_000 + start + number) for number in range(2_500))
        )
    await worker.apply(*(worker.click(f"user {number}", "soap") for number in range(5)))
    counts = worker.clicks.counts[0]
    assert [key for key, _ in counts.top()] == [item_key("soap"), item_key("tea")]


@pytest.mark.parametrize("action", ["retract", "click", "forget"])
async def test_a_batch_of_users_who_are_handled_singly_is_cut_to_what_the_loop_can_bear(
    worker: InterestsWorker, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Four thousand users with a late click each held the loop for a second."""
    users, sizes = [f"user {number}" for number in range(20)], []
    await worker.apply(*(worker.click(user, "tea", event_id=f"first of {user}") for user in users))

    def planned(table: Table, clicks: Clicks) -> ProfileDelta:
        delta = plan_batch(table, clicks)
        sizes.append(len(delta.rows))
        return delta

    monkeypatch.setattr(apply_clicks, "MAX_SINGLE_USERS", 3)
    monkeypatch.setattr(clicks_path, "plan_batch", planned)
    late = {
        "retract": {"event_id": "first of {}", "at_ms": now_ms()},
        "click": {"event_id": "second of {}", "item_id": "soap", "at_ms": now_ms() - DAY_MS},
        "forget": {"event_id": "third of {}", "at_ms": now_ms()},
    }[action]
    records = [
        worker.click(user, action=action, **{**late, "event_id": late["event_id"].format(user)})
        for user in users
    ]
    await worker.apply(*records)
    assert max(sizes) <= 3
    assert sum(sizes) == len(users)
    assert worker.letters() == []
    assert worker.partition().watermark == records[-1].offset
    for user in users:
        if action == "forget":
            assert user.encode() not in worker.partition().columns.rows
        else:
            assert [event.action for event in worker.log(user)] == {
                "retract": [RETRACT],
                "click": [ACTION_CODES["click"]] * 2,
            }[action]
