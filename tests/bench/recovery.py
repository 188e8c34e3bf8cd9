"""How long a worker with nothing of its own takes until it serves a million users again, and what they weigh."""

from collections.abc import Iterator

import numpy as np

from headwater.encoder.features import ACTION_CODES
from headwater.encoder.runtime import load
from headwater.kafka.publish import Outgoing, producer_of, write_keyed
from headwater.kafka.topics import Topics
from headwater.profiles.columns import Columns, Log
from headwater.profiles.state_records import WriterStamp, bundle_key, pack
from headwater.settings import Settings
from tests.bench.processes import worker
from tests.bench.report import Figure
from tests.bench.system import System
from tests.support.histories import values_of

_EVENTS = 20
_ALLOWED_S = 30.0
_CHUNK = 20_000
_NEWEST_MS = 1_700_000_000_000


async def measure(system: System) -> None:
    """Write users straight into a changelog of their own, and start a worker on it."""
    settings = system.settings.model_copy(
        update={
            "topic_prefix": f"{system.settings.topic_prefix}recovery.",
            "data_dir": system.folder / "recovery",
        }
    )
    await system.create(settings)
    written = await write_users(settings, system.scale.recovered)
    async with worker("interests", system.folder, system.environment_of(settings)) as running:
        health, metrics = await running.health(), await running.metrics()
        memory_mib, mapped_mib = running.process.memory_mib(), running.process.mapped_mib()
    assert health["users"] == system.scale.recovered, health
    read_s = metrics["headwater_restore_seconds_sum"]
    system.report.add(
        Figure(
            "recovery from the changelog alone",
            running.ready_s,
            "s",
            _ALLOWED_S,
            "s allowed",
            running.ready_s / _ALLOWED_S,
            at_most=1.0,
            note=f"{health['users']:,} users with {_EVENTS} events each, {written / 1e6:,.0f} MB, from the start of "
            f"the process; read in {read_s:.1f} s; {memory_mib:,.0f} MiB after, "
            f"{mapped_mib:,.0f} of them of files",
        )
    )


async def write_users(settings: Settings, users: int) -> int:
    """Users with their logs and states, straight into a changelog; the bytes of all records."""
    encoder = load(settings.bundle_path)
    rng = np.random.default_rng(3)
    written = 0

    def chunks() -> Iterator[list[Outgoing]]:
        nonlocal written
        for start in range(0, users, _CHUNK):
            count = min(_CHUNK, users - start)
            columns = _users(start, count, encoder.log_length, encoder.state_size, rng)
            values = pack(columns, np.arange(count), WriterStamp(1, 0, bundle_key(encoder.id)))
            written += sum(map(len, columns.users)) + sum(map(len, values))
            yield list(map(Outgoing, columns.users, values))

    producer = producer_of(settings)
    await producer.start()
    try:
        profiles = Topics.named(settings.topic_prefix).profiles
        await write_keyed(producer, profiles, settings.partitions, chunks(), lambda _: None)
    finally:
        await producer.stop()
    return written


def _users(start: int, count: int, log_length: int, state_size: int, rng: np.random.Generator) -> Columns:
    columns = Columns(log_length, state_size, count)
    rows = np.array([columns.add(b"user-%06d" % number) for number in range(start, start + count)])
    shape = (count, log_length)
    real = np.arange(log_length) < _EVENTS
    at_ms = _NEWEST_MS - 60_000 * np.arange(log_length)[::-1]
    log = Log(
        np.full(count, _EVENTS),
        np.where(real, np.broadcast_to(at_ms, shape), 0),
        np.where(real, rng.integers(1, 2**48, shape, dtype=np.uint64), np.uint64(0)),
        np.where(real, rng.integers(1, 2**63, shape, dtype=np.uint64), np.uint64(0)),
        np.where(real, np.uint8(ACTION_CODES["click"]), np.uint8(0)),
    )
    state = rng.normal(size=(count, state_size)).astype(np.float16)
    last_event = [(row, b"event-%07d-%07d" % (start + row, _EVENTS)) for row in range(count)]
    values = values_of(columns, rows.tolist())
    columns.write(
        values._replace(log=log, state=state, state_at_ms=np.full(count, _NEWEST_MS), last_event=last_event)
    )
    return columns
