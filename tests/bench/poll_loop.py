"""Baseline: the same work in a loop around aiokafka, as a good engineer writes it by hand in an afternoon.

A poll, the clicks grouped by user, the same ONNX session over all users touched, one record sent for each of them, as
long as our own record of that user; then all sends awaited, the offsets committed, the next poll. Decoding is ours. It
keeps its states in memory only, and looks neither for late nor for repeated clicks; nobody asks it anything.
Prints clicks a second and processor microseconds per click.

python -m tests.bench.poll_loop SERVERS PREFIX PARTITIONS OUT
"""

import asyncio
import gc
import struct
import sys
import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_CODES, clamp_gap_s
from headwater.encoder.runtime import Encoder, load
from headwater.kafka.topics import Topics
from headwater.paths.click_columns import ParsedClicks, parse
from headwater.profiles.state_records import ENTRY_BYTES, header_size
from headwater.settings import Settings
from tests.bench import stored

# With 2,000 it is a third slower; 8,000 to 32,000 make no difference, nor do larger or shorter fetches.
_MAX_RECORDS = 16_000
_POLL_MS = 200
# Users with about as many clicks share a call: one call for all would be padded to the busiest user's.
_WIDTHS = (1, 4, 16, 50)
_LOG_LENGTH = 50
_CAPACITY = 1 << 17  # users; more make the arrays grow
_ENTRY = struct.Struct("<QQI")
assert _ENTRY.size == ENTRY_BYTES

I64 = NDArray[np.int64]


class Touched(NamedTuple):
    """A user's clicks of one poll, oldest first."""

    user: bytes
    row: int
    partition: int
    clicks: list[int]  # places in what was read


class Users:
    """States and logs in memory, a row for each user."""

    def __init__(self, encoder: Encoder, item_rows: dict[bytes, int], vectors: NDArray[np.float32]) -> None:
        self._encoder, self._item_rows, self._vectors = encoder, item_rows, vectors
        self._rows: dict[bytes, int] = {}
        self._state = np.zeros((_CAPACITY, encoder.state_size), dtype=np.float32)
        self._at_ms = np.zeros(_CAPACITY, dtype=np.int64)
        self._log: list[bytes] = []
        self._head = bytes(header_size())

    def apply(self, read: ParsedClicks[ConsumerRecord]) -> list[tuple[int, bytes, bytes]]:
        """Partition, key and new value of all users touched."""
        clicks_of: dict[bytes, list[int]] = {}
        for place, user in enumerate(read.users):
            clicks_of.setdefault(user, []).append(place)
        touched = [
            Touched(user, self._row(user), read.records[places[0]].partition, places)
            for user, places in clicks_of.items()
        ]
        items = [self._item_rows[item_id] for item_id in read.item_ids]
        codes = [ACTION_CODES[action] for action in read.actions]
        columns = np.array(items), np.array(codes), np.array(read.at_ms)
        by_width: dict[int, list[Touched]] = {}
        for one in touched:
            width = _WIDTHS[min(bisect_left(_WIDTHS, len(one.clicks)), len(_WIDTHS) - 1)]
            by_width.setdefault(width, []).append(one)
        for width, group in by_width.items():
            self._step(*columns, group, width)
        return self._values(read, items, touched)

    def _row(self, user: bytes) -> int:
        row = self._rows.get(user)
        if row is None:
            row = self._rows[user] = len(self._log)
            self._log.append(b"")
            if row == len(self._state):
                self._state = np.concatenate([self._state, np.zeros_like(self._state)])
                self._at_ms = np.concatenate([self._at_ms, np.zeros_like(self._at_ms)])
        return row

    def _step(self, items: I64, codes: I64, at_ms: I64, group: list[Touched], width: int) -> None:
        """One padded call: (users, width) events."""
        places = [one.clicks[-width:] for one in group]
        counts = np.array([len(each) for each in places])
        padded = np.array([each + [each[-1]] * (width - len(each)) for each in places])
        rows = np.array([one.row for one in group])
        times = at_ms[padded]
        before = np.column_stack([self._at_ms[rows], times[:, :-1]])
        mask = np.arange(width) < counts[:, None]
        gaps_s = np.where(mask & (before > 0), clamp_gap_s((times - before) / 1000.0), 0.0)
        self._state[rows] = self._encoder.step(
            self._state[rows],
            self._vectors[items[padded]],
            codes[padded],
            gaps_s.astype(np.float32),
            mask.astype(np.float32),
        )
        self._at_ms[rows] = times[:, -1]

    def _values(
        self, read: ParsedClicks[ConsumerRecord], items: list[int], touched: list[Touched]
    ) -> list[tuple[int, bytes, bytes]]:
        states = self._state[[one.row for one in touched]].astype(np.float16)
        values = []
        for one, state in zip(touched, states, strict=True):
            entries = [_ENTRY.pack(items[place], read.at_ms[place], 0) for place in one.clicks]
            log = self._log[one.row] = b"".join((self._log[one.row], *entries))[-_LOG_LENGTH * ENTRY_BYTES :]
            value = b"".join((self._head, state.tobytes(), log, read.event_ids[one.clicks[-1]]))
            values.append((one.partition, one.user, value))
        return values


async def _run(servers: str, prefix: str, partitions: str, out: str) -> None:
    # Python's own search for garbage cycles, of which there are none, would cost it a third of its speed.
    gc.set_threshold(100_000, 50, 100)
    settings = Settings(kafka_bootstrap_servers=servers, topic_prefix=prefix, partitions=int(partitions))
    encoder = load(settings.bundle_path)
    points = await stored.item_points(settings)
    item_rows = {point.item_id.encode(): row for row, point in enumerate(points)}
    users = Users(encoder, item_rows, np.array([point.vector for point in points], dtype=np.float32))
    consumer = AIOKafkaConsumer(
        Topics.named(prefix).clicks,
        **settings.kafka_options(),
        group_id=out,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(**settings.kafka_options(), acks="all", max_batch_size=256 * 1024)
    await producer.start()
    await consumer.start()
    try:
        print(await _loop(consumer, producer, users, out), flush=True)
    finally:
        await consumer.stop()
        await producer.stop()


async def _loop(consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, users: Users, out: str) -> str:
    total = sum((await consumer.end_offsets(consumer.assignment())).values())
    done, first, started, cpu_s = 0, 0, 0.0, 0.0
    while done < total:
        fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_MAX_RECORDS)
        read: ParsedClicks[ConsumerRecord] = parse([], 0)[0]
        for records in fetched.values():
            good, bad = parse(records, time.time_ns() // 1_000_000)
            _require_good(bad)
            read.extend(good)
        if not read.records:
            continue
        sent = [
            await producer.send(out, value, key=user, partition=partition)
            for partition, user, value in users.apply(read)
        ]
        await asyncio.gather(*sent)
        await consumer.commit()
        done += len(read.records)
        if not first and done >= total // 10:  # the first ones pay for the start
            first, started, cpu_s = done, time.monotonic(), time.process_time()
    rest = done - first
    return f"{rest / (time.monotonic() - started)} {1e6 * (time.process_time() - cpu_s) / rest}"


def _require_good(bad: Sequence[tuple[ConsumerRecord, Exception]]) -> None:
    if bad:
        raise SystemExit(f"{len(bad)} records hold no click, the first: {bad[0][1]}")


if __name__ == "__main__":
    uvloop.run(_run(*sys.argv[1:]))
