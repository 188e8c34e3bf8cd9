"""The texts of catalog changes, encoded in a thread. One that our own code fails on becomes a dead letter by itself."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

import numpy as np
import structlog

from headwater.encoder.runtime import Encoder
from headwater.kafka.dead_letters import DeadLetter
from headwater.metrics import Metrics
from headwater.paths.catalog_changes import F32, Change
from headwater.paths.culprit import Done, halved

log = structlog.get_logger(__name__)


class Encoded(NamedTuple):
    """Changes with the vectors of their items, (items among them, D), and the changes that our own code fails on."""

    changes: list[Change]
    vectors: F32
    bad: list[DeadLetter]


class CatalogEncoding:
    """Encodes in ``threads``, which is one thread: batches of several partitions take turns."""

    def __init__(self, threads: Executor, metrics: Metrics) -> None:
        self._threads, self._seconds = threads, metrics.encoder_seconds.labels("item")

    async def encoded(self, encoder: Encoder, changes: Sequence[Change]) -> Encoded:
        """Changes, in their order, with the vectors of their items; the changes that the encoder fails on alone are bad."""
        kept: list[Change] = []
        vectors: list[F32] = []
        bad: list[DeadLetter] = []
        async for part in halved(changes, partial(self._vectors, encoder)):
            if isinstance(part, Done):
                kept += part.items
                vectors.append(part.result)
            else:
                record = part.item.record
                log.error(
                    "item_failed",
                    topic=record.topic,
                    partition=record.partition,
                    offset=record.offset,
                    exc_info=part.error,
                )
                message = f"{type(part.error).__name__}: {part.error}"
                bad.append(DeadLetter(record, "internal_error", message))
        if len(vectors) == 1:
            return Encoded(kept, vectors[0], bad)
        return Encoded(kept, np.concatenate([np.zeros((0, encoder.dim), np.float32), *vectors]), bad)

    async def _vectors(self, encoder: Encoder, changes: Sequence[Change]) -> F32:
        """The vectors of the items among the changes, (items, D), from the encoder's thread."""
        items = [change for change in changes if change.item is not None]

        def run() -> F32:
            started = time.perf_counter()
            vectors = encoder.encode_items([item.text for item in items], [item.item_id for item in items])
            self._seconds.observe(time.perf_counter() - started)
            return vectors

        if not items:
            return np.zeros((0, encoder.dim), dtype=np.float32)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)
