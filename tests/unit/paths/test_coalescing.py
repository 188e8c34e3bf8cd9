"""Small batches of several partitions, planned and stepped as one: the same outcome as each alone."""

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder import runtime as encoders
from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost
from headwater.kafka.partitioner import partition_of
from headwater.paths import clicks as click_path
from headwater.paths.coalescing import MAX_CLICKS, SMALL_BATCH, JoinedColumns, joined_clicks
from headwater.profiles.apply_clicks import MAX_SINGLE_USERS, Clicks, ProfileDelta, plan_batch
from headwater.profiles.columns import Columns
from headwater.profiles.event_log import Event
from headwater.profiles.partition import Partition
from tests.support.histories import (
    DIM,
    ForgetfulEncoder,
    History,
    apply,
    canonical_log,
    canonical_state,
    clicks_of,
    cosine,
    histories,
    item_vectors,
)
from tests.support.interests_worker import GENERATION, STARTER, InterestsWorker, now_ms, until
from tests.unit.paths.test_clicks import PARTITIONS, TEXTS, Brittle, entry


@pytest.fixture(scope="module")
def starter() -> Encoder:
    return encoders.load(STARTER)


@pytest.fixture
async def wide(starter: Encoder) -> AsyncIterator[InterestsWorker]:
    worker = InterestsWorker(TEXTS, encoder=starter, partitions=PARTITIONS, owned=range(PARTITIONS))
    yield worker
    await worker.close()


def flat(values: object) -> list[object]:
    """The arrays in nested tuples."""
    return [each for part in values for each in flat(part)] if isinstance(values, tuple) else [values]


@given(histories(), st.lists(st.integers(0, 3), min_size=3, max_size=3), st.integers(1, 6))
def test_partitions_that_are_planned_together_change_as_each_does_alone(
    history: History, homes: list[int], length: int
) -> None:
    home = dict(zip((b"ann", b"bob", b"cy"), homes, strict=True))
    tables = [Columns(length, DIM, capacity=2, counters=2) for _ in range(4)]
    bounds = [0, *sorted(cut for cut in history.cuts if cut < len(history.stream)), len(history.stream)]
    for start, stop in pairwise(bounds):
        streams = [[each for each in history.stream[start:stop] if home[each[0]] == n] for n in range(4)]
        several = [each for each, stream in zip(tables, streams, strict=True) if stream]
        streams = [stream for stream in streams if stream]
        batches = [clicks_of(*of, start) for of in zip(several, streams, strict=True)]
        together = JoinedColumns(several)
        delta = plan_batch(together, joined_clicks(batches))
        for number, which in enumerate(together.parts(delta.rows, [*map(len, streams)])):
            part, alone = delta.part(*which), plan_batch(several[number], batches[number])
            for name, one, other in zip(ProfileDelta._fields, part, alone, strict=True):
                for of_part, of_alone in zip(flat(one), flat(other), strict=True):
                    assert np.array_equal(of_part, of_alone), name  # type: ignore[arg-type]
            apply(several[number], streams[number], ForgetfulEncoder(), item_vectors(), start)


def planned_together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clicks were planned each time from now on."""
    sizes = []

    def noted(table: Any, clicks: Clicks) -> Any:
        sizes.append(len(clicks.row))
        return plan_batch(table, clicks)

    monkeypatch.setattr(click_path, "plan_batch", noted)
    return sizes


def at_home(worker: InterestsWorker, user: str, item: str = "", **fields: Any) -> ConsumerRecord:
    return worker.click(user, item, partition=partition_of(user.encode(), PARTITIONS), **fields)


async def test_small_batches_of_one_fetch_are_applied_as_one(
    wide: InterestsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, rng = planned_together(monkeypatch), np.random.default_rng(3)
    users, start_ms = [f"user {number}" for number in range(9)], now_ms() - 60_000
    log: dict[str, list[Event]] = {user: [] for user in users}
    for part in range(30):
        records = [
            at_home(
                wide,
                users[who],
                f"item {rng.integers(12)}",
                event_id=f"{part} {place}",
                at_ms=start_ms + part,
            )
            for place, who in enumerate(rng.integers(0, 9, 12).tolist())
        ]
        batches = await wide.apply_together(*records)
        assert wide.consumer.finished[-len(batches) :] == batches
        for record in records:
            log[json.loads(record.value)["user_id"]].append(entry(record))
    assert sizes == [12] * 30
    assert wide.measured("clicks_total") == 360
    for user in users:
        home = partition_of(user.encode(), PARTITIONS)
        expected = canonical_log(log[user], wide.encoder.log_length)
        assert wide.log(user, home) == expected
        columns = wide.partition(home).columns
        state, _ = canonical_state(expected, wide.vectors, wide.encoder, wide.encoder.state_size)
        assert cosine(columns.state[columns.rows[user.encode()]], state) >= 1 - 1e-6
        (stored,) = [
            record.partition
            for record in wide.producer.records(wide.topics.profiles)
            if record.key == user.encode()
        ][-1:]
        assert stored == home


async def test_forgets_and_strays_coalesced_are_what_they_are_alone(wide: InterestsWorker) -> None:
    users = [f"user {number}" for number in range(9)]
    homes = {user: partition_of(user.encode(), PARTITIONS) for user in users}
    await wide.apply_together(*(at_home(wide, user, "tea") for user in users))
    astray = wide.click("user 1", "coffee", partition=(homes["user 1"] + 1) % PARTITIONS)
    await wide.apply_together(
        at_home(wide, "user 0", action="forget", at_ms=now_ms() + 1_000),
        astray,
        *(at_home(wide, user, "coffee") for user in users[2:]),
    )
    assert b"user 0" not in wide.partition(homes["user 0"]).columns.rows
    assert wide.producer.latest(wide.topics.profiles)[b"user 0"].value is None
    (sent,) = wide.producer.records(wide.topics.clicks)
    assert (sent.partition, sent.value) == (homes["user 1"], astray.value)
    for user in users[2:]:
        assert [event.item for event in wide.log(user, homes[user])] == [item_key("tea"), item_key("coffee")]


async def test_who_is_too_many_for_it_or_has_to_wait_for_a_vector_goes_alone(
    wide: InterestsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = planned_together(monkeypatch)
    users = [f"user {number}" for number in range(60)]
    of_one = [user for user in users if partition_of(user.encode(), PARTITIONS) == 0]
    of_others = [user for user in users if user not in of_one]
    many = [at_home(wide, of_one[0], "tea", event_id=f"a {number}") for number in range(SMALL_BATCH)]
    await wide.apply_together(*many, *(at_home(wide, user, "tea") for user in of_others))
    assert sizes == [SMALL_BATCH + len(of_others)]
    sizes.clear()
    many = [at_home(wide, of_one[0], "tea", event_id=f"b {number}") for number in range(SMALL_BATCH + 1)]
    await wide.apply_together(*many, *(at_home(wide, user, "tea") for user in of_others))
    assert sorted(sizes) == sorted([SMALL_BATCH + 1, len(of_others)])
    sizes.clear()

    async def nothing(keys: object) -> dict[int, Any]:
        return {}

    monkeypatch.setattr(wide.vectors, "_fetch", nothing)
    await wide.apply_together(
        at_home(wide, of_one[0], "novelty"), *(at_home(wide, user, "tea") for user in of_others)
    )
    assert sorted(sizes) == sorted([1, len(of_others)])


async def test_a_partition_that_goes_after_it_was_applied_coalesced_is_written_when_it_comes_again(
    wide: InterestsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [at_home(wide, f"user {number}", "tea") for number in range(9)]
    gone = records[0].partition
    send = wide.profiles.send

    async def revoked(partition: Partition, *arguments: Any) -> Any:
        wide.partition(gone).generation = GENERATION + 1
        return await send(partition, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(wide.profiles, "send", revoked)
        with pytest.raises(PartitionLost):
            await wide.apply_together(*records)
    assert gone not in {record.partition for record in wide.producer.records(wide.topics.profiles)}
    again = wide.batch([record for record in records if record.partition == gone], GENERATION + 1)
    await wide.clicks.handle(again)
    stored = {
        record.key for record in wide.producer.records(wide.topics.profiles) if record.partition == gone
    }
    assert stored == {record.key for record in again.records}
    assert all(len(wide.log(user.decode(), gone)) == 1 for user in stored)


async def test_of_batches_together_that_our_own_code_fails_on_the_culprit_alone_is_dead_lettered(
    starter: Encoder,
) -> None:
    worker = InterestsWorker(
        TEXTS,
        encoder=Brittle(starter, "soap"),  # type: ignore[arg-type]
        partitions=PARTITIONS,
        owned=range(PARTITIONS),
    )
    users = [f"user {number}" for number in range(9)]
    await worker.apply_together(*(at_home(worker, user, "tea") for user in users))
    await worker.apply_together(
        *(at_home(worker, user, "soap" if user == "user 4" else "coffee") for user in users)
    )
    assert [reason for reason, _, _ in worker.letters()] == ["internal_error"]
    for user in users:
        items = [event.item for event in worker.log(user, partition_of(user.encode(), PARTITIONS))]
        assert items == [item_key("tea")] + [item_key("coffee")] * (user != "user 4")
    assert worker.measured("clicks_total") == 17
    await worker.close()


async def test_a_partition_that_goes_while_others_are_applied_with_it_takes_none_of_them_along(
    wide: InterestsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"user {number}" for number in range(9)]
    homes = {user: partition_of(user.encode(), PARTITIONS) for user in users}
    gone = homes["user 0"]

    def revoked(table: Any, clicks: Clicks) -> Any:
        wide.partition(gone).generation = GENERATION + 1
        return plan_batch(table, clicks)

    monkeypatch.setattr(click_path, "plan_batch", revoked)
    with pytest.raises(PartitionLost):
        await wide.apply_together(*(at_home(wide, user, "tea") for user in users))
    await until(lambda: len(wide.consumer.finished) == len(set(homes.values())) - 1)
    assert not wide.partition(gone).columns.n.any()
    assert all(len(wide.log(user, home)) == 1 for user, home in homes.items() if home != gone)
    assert {record.partition for record in wide.producer.records(wide.topics.profiles)} == {
        *homes.values()
    } - {gone}


def test_a_coalesced_batch_is_never_too_large_for_the_loop() -> None:
    """It could not be halved: its members would be worked out again, one by one."""
    assert MAX_CLICKS - 1 + SMALL_BATCH <= MAX_SINGLE_USERS
