"""The users of one clicks partition: ownership, progress, and the tasks that wait for it."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from headwater.errors import PartitionLost, StopWorker
from headwater.kafka.batch import Gate
from headwater.kafka.headers import Claim
from headwater.messages import Gap
from headwater.profiles.apply_clicks import Clicks, ProfileDelta
from headwater.profiles.columns import I64, U64, Columns
from headwater.profiles.counters import DEFAULT_COUNTERS
from headwater.profiles.erasures import Erased, Erasures
from headwater.profiles.event_log import Outcome
from headwater.profiles.hides import DEFAULT_HIDES
from headwater.profiles.order import Order
from headwater.profiles.recent_events import RecentEvents
from headwater.profiles.row_file import DiskFull
from headwater.profiles.sealed import Sealed

# The events of a minute's burst of impressions.
_MAX_UNLOGGED: Final = 10_000
# Users without a row whose clicks were forwarded to here: those of erased users and impressions, for the requests that
# wait for them.
_MAX_ROWLESS_ORIGINS: Final = 10_000


def finished(value: bool) -> asyncio.Future[bool]:
    """A future that is done."""
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


class Partition:
    """The users of one clicks partition, and how far it has come.

    Attributes:
        owned: this worker owns the partition; its users are complete once the gate is open, too.
        generation: of the group, in which it does.
        epoch: of this owner, claimed on the changelog before the first write; -1 until then.
        highest_epoch: seen on the changelog.
        incarnation: of the clicks log: how often it was replaced.
        claim: the newest that was read.
        clicks_topic_id: the broker's, of the clicks topic as it is now; None where it does not tell.
        log_is_accepted: somebody has said since that claim that the clicks log may be another one.
        applied: every clicks record up to this offset is in the columns.
        watermark: every clicks record up to this offset is in the changelog too, for good.
        gap_now: asked for the newest clicks that were gone from the log before they were read. The group forgets them
            after a week.
        changelog_next: the changelog has been read or written up to this offset, except the ``gaps``.
        sealed: users whose newest record this version cannot read. They have no row.
        gaps: offsets from which on others wrote, which is still to be read.
        overwritten: users whose newest record is followed by a stale one of a former owner. Compaction would keep the
            stale one, so they are written again.
        changelog_done: of the newest batch. True once it and all before it are in the changelog, False when one was
            given up.
        listeners: called after a batch with the keys of its events, or with None for all that there are.
    """

    def __init__(
        self,
        number: int,
        log_length: int,
        state_size: int,
        counters: int = DEFAULT_COUNTERS,
        folder: Path | None = None,
        hides: int = DEFAULT_HIDES,
    ) -> None:
        self.number = number
        self.columns = Columns(log_length, state_size, counters=counters, folder=folder, hides=hides)
        self.erasures = Erasures()
        self.sealed: dict[bytes, Sealed] = {}
        self.owned, self.generation = False, -1
        self.epoch = self.highest_epoch = -1
        self.incarnation = 0
        self.claim: Claim | None = None
        self.clicks_topic_id: str | None = None
        self.log_is_accepted = False
        self.gate, self.lock = Gate(), asyncio.Lock()
        self.gap_now: Callable[[], Gap | None] = lambda: None
        self.applied = self.watermark = -1
        self.changelog_next = 0
        self.gaps: set[int] = set()
        self.overwritten: set[bytes] = set()
        self.changelog_done = finished(True)
        self.listeners: list[Callable[[Partition, U64 | None], None]] = []
        # The newest (hash of the user, event key) of events that are in no log: too late, for instance, an impression, or
        # a forget. A hash, since no id of an erased user may stay.
        self._unlogged: dict[tuple[int, int], None] = {}
        # (hash of the user, partition): the highest offset there.
        self._rowless_origins: dict[tuple[int, int], int] = {}
        self._recent = RecentEvents()
        self._waiting: list[asyncio.Future[None]] = []

    # Ownership

    def is_serving(self) -> bool:
        """Whether it is ours and opened."""
        return self.owned and self.gate.is_open

    def is_ours(self, generation: int) -> bool:
        """Whether this worker still owns the partition in that generation."""
        return self.owned and self.generation == generation

    def require(self, generation: int) -> None:
        """Raises PartitionLost unless this worker still owns the partition in that generation."""
        if not self.is_ours(generation):
            raise PartitionLost

    @property
    def gap(self) -> Gap | None:
        """Clicks that were gone from the log before they were read: the newest ones, for a week."""
        return self.gap_now()

    # Users

    def row_of(self, user: bytes) -> int:
        """The user's row, made if there is none.

        Raises:
            StopWorker: there is no room for one on the disk.
        """
        row = self.columns.rows.get(user)
        if row is None:
            try:
                if user in self.erasures:
                    erased_ms = self.erasures.erased_ms(user)
                    row = self.columns.add(user, erased_ms, self.erasures.offset(user, self.incarnation))
                else:
                    row = self.columns.add(user)
            except DiskFull as error:
                raise StopWorker(str(error)) from error
        return row

    def unseal(self, user: bytes, offset: int) -> bool:
        """Forget what a newer version wrote of a user, for a forget at ``offset``. False: the record may hold that already."""
        sealed = self.sealed[user].order
        if sealed.incarnation == self.incarnation and offset <= sealed.offset:
            return False
        del self.sealed[user]
        return True

    def erase(self, user: bytes, erased_ms: int) -> None:
        """Drop all that is known of a user who has a row, and all events up to ``erased_ms`` that are still to come."""
        order = self.columns.order(self.columns.rows[user])._replace(incarnation=self.incarnation)
        self.columns.remove(user)
        self.erasures.put(user, Erased(erased_ms, order))

    def order_of(self, user: bytes) -> tuple[Order, bool] | None:
        """The order of the newest record of a user, and whether it is a tombstone; None for an unknown user."""
        row = self.columns.rows.get(user)
        if row is not None:
            return self.columns.order(row), False
        if user in self.sealed:
            return self.sealed[user].order, False
        erased = self.erasures.get(user)
        return None if erased is None else (erased.order, True)

    def start_incarnation(self, incarnation: int) -> None:
        """The clicks log is of this incarnation: offsets of former ones are of no click in it."""
        self.incarnation = incarnation
        self.columns.start_incarnation(incarnation)

    def commit(
        self,
        delta: ProfileDelta,
        clicks: Clicks,
        event_ids: Sequence[bytes],
        origins: Sequence[tuple[int, int, int]],
    ) -> list[bytes]:
        """Write what a batch does into the columns, all at once; returns the users that it erased.

        A user of whom there is nothing to remember, such as one who has had impressions only, keeps no row.

        Args:
            clicks: the batch.
            event_ids: (batch,) of each click, as UTF-8.
            origins: (place in the batch, partition, offset) of each click that was forwarded to here.
        """
        columns = self.columns
        rows_of_origins = [(int(clicks.row[place]), *origin) for place, *origin in origins]
        columns.write(delta.values(event_ids, columns.last_event, rows_of_origins))  # type: ignore[arg-type]
        self._recent.add(clicks.row, clicks.event)
        unlogged = delta.outcome > Outcome.DUPLICATE
        if unlogged.any():
            self.remember_unlogged(clicks.row[unlogged], clicks.event[unlogged])
        if delta.erased.any():
            self._forget_unlogged(clicks, delta.rows[delta.erased])
        erased = []
        for index in (delta.log.n == 0).nonzero()[0].tolist():
            row = int(delta.rows[index])
            user = columns.users[row]
            self._remember_origins(user, columns.origins.get(row, {}))
            if delta.erased[index]:
                self.erase(user, int(delta.forgotten_ms[index]))
                erased.append(user)
            else:
                columns.remove(user)
        return erased

    def _forget_unlogged(self, clicks: Clicks, rows: I64) -> None:
        """Forget what users (R,) who are erased have sent, except in the batch that does it: their forget has been seen."""
        gone = {hash(self.columns.users[row]) for row in rows.tolist()}
        self._unlogged = {known: None for known in self._unlogged if known[0] not in gone}
        of_them = np.isin(clicks.row, rows)
        self.remember_unlogged(clicks.row[of_them], clicks.event[of_them])

    def _remember_origins(self, user: bytes, origins: Mapping[int, int]) -> None:
        known = self._rowless_origins
        for partition, offset in origins.items():
            place = hash(user), partition
            known[place] = max(offset, known.pop(place, -1))
        for oldest in list(islice(known, max(len(known) - _MAX_ROWLESS_ORIGINS, 0))):
            del known[oldest]

    def remember_unlogged(self, rows: I64, events: U64) -> None:
        """Remember the newest events (E,) that are in no log, for requests that wait for them."""
        users = [self.columns.users[row] for row in rows.tolist()]
        self.remember_unlogged_of(zip(users, events.tolist(), strict=True))

    def remember_unlogged_of(self, events: Iterable[tuple[bytes, int]]) -> None:
        """The same by user and event, for users who have no row."""
        self._unlogged.update(dict.fromkeys((hash(user), event) for user, event in events))
        for known in list(islice(self._unlogged, max(len(self._unlogged) - _MAX_UNLOGGED, 0))):
            del self._unlogged[known]

    def has_seen(self, user: bytes, event: int) -> bool:
        """Whether this event of the user is in the log, or came lately and went into none, or has left it again."""
        if (hash(user), event) in self._unlogged:
            return True
        row = self.columns.rows.get(user)
        if row is None:
            return False
        return event in self.columns.event[row, : self.columns.n[row]].tolist() or self._recent.has(
            row, event
        )

    def has_origin(self, user: bytes, partition: int, offset: int) -> bool:
        """Whether a click of the user that was forwarded from there has been looked at."""
        row = self.columns.rows.get(user)
        origins = {} if row is None else self.columns.origins.get(row, {})
        return (
            max(origins.get(partition, -1), self._rowless_origins.get((hash(user), partition), -1)) >= offset
        )

    # The changelog

    def mark_seen(self, start: int, stop: int) -> int | None:
        """Mark changelog offsets [start, stop) as seen. Returns the first unseen offset before ``start``, if any."""
        gap, self.changelog_next = self.changelog_next, max(stop, self.changelog_next)
        if start <= gap:
            return None
        self.gaps.add(gap)
        return gap

    def rewind_to_first_gap(self) -> None:
        """Read again from the first gap on: what was filling it may have lost the partition first."""
        self.changelog_next = min({self.changelog_next, *self.gaps})
        self.gaps.clear()

    # Progress

    def mark_applied(self, offset: int, events: U64 | None = None) -> None:
        """The columns hold the clicks up to ``offset``: tell the listeners, with the newest event keys (E,)."""
        self.applied = max(self.applied, offset)
        for listener in self.listeners:
            listener(self, events)

    def move_watermark(self, offset: int) -> None:
        """The changelog holds the clicks up to ``offset``: wake all that wait in :meth:`reached`."""
        self.watermark = max(self.watermark, offset)
        self.wake()

    def wake(self) -> None:
        """Have every waiter in :meth:`reached` look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def reached(self, offset: int, timeout_s: float) -> bool:
        """Wait until the watermark is at ``offset``; False if that takes longer.

        Raises:
            PartitionLost: the partition was revoked first.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while self.watermark < offset:
                    if not self.owned:
                        raise PartitionLost
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(future)
                    await future
        except TimeoutError:
            return False
        return True
