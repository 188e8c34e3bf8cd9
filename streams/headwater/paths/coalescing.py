"""Small batches of several partitions, applied as one.

Below 64 clicks the fixed cost of a batch dominates: planning and a call of the encoder cost about the same for one
click as for fifty. So small batches that one fetch brought are planned and stepped together, over `JoinedColumns`, which
shows several partitions as one read-only table. Each partition keeps its own lock, write, acknowledgement and offset.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
import structlog
from numpy.typing import NDArray

from headwater.index.item_vectors import ItemVectors
from headwater.paths.click_columns import ClickBatch
from headwater.paths.concurrency import ConcurrencySlot
from headwater.profiles.apply_clicks import Clicks, ProfileDelta
from headwater.profiles.columns import I64, U64, Columns, RowSnapshot, Table
from headwater.profiles.partition import Partition

logger = structlog.get_logger(__name__)

# A batch of more clicks costs mainly what its clicks cost, and is applied alone.
SMALL_BATCH: Final = 64
# A coalesced batch that holds this many clicks takes no more members.
MAX_CLICKS: Final = 1_000

WorkOut: TypeAlias = Callable[[Table, Clicks, ConcurrencySlot], Awaitable[ProfileDelta]]


class JoinedColumns:
    """Several partitions' columns as one read-only table: the rows of each come after those of the one before.

    Row r of table t is row ``t * SPREAD + r`` here.
    """

    SPREAD: Final = 1 << 40  # more rows than any table has

    def __init__(self, tables: Sequence[Columns]) -> None:
        self._tables = tables

    def parts(self, rows: I64, sizes: Sequence[int]) -> Iterator[tuple[slice, slice, int]]:
        """For each table: its part of ``rows``, its part of all clicks, and its first row.

        Args:
            rows: (R,) ascending.
            sizes: the number of clicks of each table's batch.
        """
        first = 0
        for number, (start, stop) in enumerate(pairwise([0, *self._ends(rows)])):
            yield slice(start, stop), slice(first, first + sizes[number]), number * self.SPREAD
            first += sizes[number]

    def _ends(self, rows: I64) -> list[int]:
        ends: list[int] = np.searchsorted(rows, np.arange(1, len(self._tables) + 1) * self.SPREAD).tolist()
        return ends

    def snapshot(self, rows: I64) -> RowSnapshot:
        """See `Table`."""
        of_tables = np.split(rows % self.SPREAD, self._ends(rows)[:-1])
        parts = [*zip(self._tables, of_tables, strict=True)]
        for table, own in parts:
            table.prefetch(own)
        return RowSnapshot.joined(table.snapshot_prefetched(own) for table, own in parts)

    def counters_of(self, rows: I64) -> tuple[U64, NDArray[np.uint16]]:
        """See `Table`."""
        places = self._tables[0].counters
        keys = np.empty((len(rows), places), dtype=np.uint64)
        levels = np.empty((len(rows), places), dtype=np.uint16)
        number = rows // self.SPREAD
        for each in np.unique(number).tolist():
            mine = np.flatnonzero(number == each)
            keys[mine], levels[mine] = self._tables[each].counters_of(rows[mine] % self.SPREAD)
        return keys, levels

    @property
    def max_hides(self) -> int:
        """See `Table`."""
        return self._tables[0].max_hides

    def hides_of(self, rows: I64) -> dict[int, bytes]:
        """See `Table`."""
        own: dict[int, bytes] = {}
        for number, (start, stop) in enumerate(pairwise([0, *self._ends(rows)])):
            if self._tables[number].hides:
                first = number * self.SPREAD
                kept = self._tables[number].hides_of(rows[start:stop] - first)
                own |= {first + row: each for row, each in kept.items()}
        return own


def joined_clicks(batches: Iterable[Clicks]) -> Clicks:
    """The clicks of several partitions one after the other, with rows of `JoinedColumns`."""
    spread = (
        clicks._replace(row=clicks.row + number * JoinedColumns.SPREAD)
        for number, clicks in enumerate(batches)
    )
    return Clicks(*map(np.concatenate, zip(*spread, strict=True)))


class Member:
    """One partition's batch in a coalesced batch. ``delta`` is what it does to its users, once that is known."""

    def __init__(self, partition: Partition, batch: ClickBatch, generation: int) -> None:
        self.partition, self.batch, self.generation = partition, batch, generation
        self.delta: ProfileDelta | None = None


class CoalescedBatch:
    """Members that are worked on together. ``vectors`` tells batches apart that are served with other bundles."""

    work: asyncio.Task[None]

    def __init__(self, vectors: ItemVectors) -> None:
        self.vectors = vectors
        self.members: list[Member] = []
        self.clicks = 0

    def takes(self, vectors: ItemVectors) -> bool:
        """Whether one more member fits that is served with these vectors."""
        return self.vectors is vectors and self.clicks < MAX_CLICKS

    def add(self, member: Member) -> None:
        """Take one more member, before the work begins."""
        self.members.append(member)
        self.clicks += len(member.batch.records)


class Coalescing:
    """Collects small batches until the next turn of the event loop, then works them out as one."""

    def __init__(self) -> None:
        self._open: CoalescedBatch | None = None  # has not begun, and takes more members

    def suits(self, batch: ClickBatch, has_siblings: bool, vectors: ItemVectors) -> bool:
        """Whether a batch is small, has others to go with, and needs no vector that has to be waited for."""
        return (
            len(batch.records) <= SMALL_BATCH
            and (has_siblings or self._open is not None)
            and not vectors.missing(batch.clicks.item.tolist())
        )

    async def delta_of(
        self, member: Member, vectors: ItemVectors, work_out: WorkOut, slot: ConcurrencySlot
    ) -> ProfileDelta | None:
        """What the member's batch does, worked out with others. None: it failed for all of them, or there is none.

        The first member starts the coalesced batch and hands its slot over to it. The caller holds the lock of the
        member's partition throughout.
        """
        coalesced = self._open
        if coalesced is None or not coalesced.takes(vectors):
            coalesced = self._open = CoalescedBatch(vectors)
            coalesced.work = asyncio.ensure_future(self._run(coalesced, work_out, slot.handed_over()))
        slot.give_back()
        coalesced.add(member)
        await asyncio.wait({coalesced.work})
        coalesced.work.result()
        return member.delta

    async def _run(self, coalesced: CoalescedBatch, work_out: WorkOut, slot: ConcurrencySlot) -> None:
        try:
            if self._open is coalesced:
                self._open = None
            members = [each for each in coalesced.members if each.partition.is_ours(each.generation)]
            if not members:
                return
            table = JoinedColumns([member.partition.columns for member in members])
            clicks = joined_clicks(member.batch.clicks for member in members)
            try:
                delta = await work_out(table, clicks, slot)
            except Exception:
                # Each member is tried again alone, which finds the record at fault.
                logger.exception(
                    "coalesced_batch_failed", partitions=[each.partition.number for each in members]
                )
                return
        finally:
            slot.give_back()
        sizes = [len(member.batch.records) for member in members]
        for member, part in zip(members, table.parts(delta.rows, sizes), strict=True):
            member.delta = delta.part(*part)
