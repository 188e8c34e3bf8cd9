"""The texts of catalog changes, encoded in a thread. One that our own code fails on becomes a dead letter by itself."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

import numpy as np
import structlog

from headwater.encoder.runtime import Encoder, ReadItems
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
        self._unknown, self._unreadable = metrics.unknown_token_share, metrics.unreadable_items_total
        self._warned = False

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

        def run() -> ReadItems:
            started = time.perf_counter()
            read = encoder.read_items([item.text for item in items], [item.item_id for item in items])
            self._seconds.observe(time.perf_counter() - started)
            return read

        if not items:
            return np.zeros((0, encoder.dim), dtype=np.float32)
        read = await asyncio.get_running_loop().run_in_executor(self._threads, run)
        self._note(encoder, items, read)
        return read.vectors

    def _note(self, encoder: Encoder, items: Sequence[Change], read: ReadItems) -> None:
        """Count what the bundle cannot read, and warn of it at the first time."""
        for share in read.unknown.tolist():
            self._unknown.observe(share)
        unreadable = read.unreadable
        self._unreadable.inc(len(unreadable))
        if len(unreadable) and not self._warned:
            self._warned = True
            first = int(unreadable[0])
            log.warning(
                "texts_unreadable",
                bundle=encoder.id,
                items=len(items),
                unreadable=len(unreadable),
                first_item=items[first].item_id,
                unknown_tokens=f"{read.unknown[first]:.0%}",
                remedy="take a bundle with a text encoder of the catalog's language: `headwater doctor` says how",
            )
