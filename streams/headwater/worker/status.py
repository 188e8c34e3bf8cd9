"""A worker's report of itself: health, the progress of each partition, one user described, gauges."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
from aiokafka import TopicPartition
from prometheus_client import Gauge

from headwater.encoder.features import ACTION_NAMES, item_key
from headwater.errors import HeadwaterError
from headwater.index import Index, IndexUnavailable
from headwater.kafka.broker_clock import BrokerClock
from headwater.kafka.consumer_group import ConsumerGroup
from headwater.kafka.partitioner import partition_of, probe_user
from headwater.kafka.topics import Topics
from headwater.messages import quoted
from headwater.metrics import Metrics
from headwater.profiles.actions import RETRACT
from headwater.profiles.columns import Columns
from headwater.profiles.event_log import Event
from headwater.profiles.hides import in_force, unpacked
from headwater.profiles.partition import Partition
from headwater.profiles.sealed import SEALED_REMEDY
from headwater.settings import Settings
from headwater.worker.membership import Standing, WatchedGroup
from headwater.worker.probe import ProbeResult
from headwater.worker.roles import CatalogRole, InterestsRole, Role
from headwater.worker.watchdog import TO_COMMIT, Progress, Watchdog

_GAUGES_S: Final = 1.0
# Publishers commit within a second or so. Kafka itself aborts what is open for longer than transaction.timeout.ms, a
# minute by default.
HELD_BACK_S: Final = 10.0


class NoSuchUser(HeadwaterError):
    """A worker cannot tell of a user: ``code`` is `elsewhere`, `newer_format` or `unknown_user`."""

    def __init__(self, code: Literal["elsewhere", "newer_format", "unknown_user"], message: str) -> None:
        super().__init__(message)
        self.code = code


class Status:
    """Reads the state of a worker and changes nothing. Its roles are set as they are built, while the worker starts.

    ``failed`` completes with the reason when the worker has to stop.
    """

    def __init__(self, settings: Settings, role: Role, failed: "asyncio.Future[str]") -> None:
        self.role, self._failed = role, failed
        self._topics = Topics.named(settings.topic_prefix)
        self._settings = settings
        self.ready = asyncio.Event()
        self.bundle_id = ""
        self.deviations: list[str] = []  # what is not as it has to be with the topics, with the remedies
        self.clock: BrokerClock | None = None
        self.index: Index | None = None
        self.interests: InterestsRole | None = None
        self.catalog: CatalogRole | None = None
        self.watchdog: Watchdog | None = None
        self._group_problem: str | None = None
        self._held_back = HeldBack()

    @property
    def groups(self) -> list[ConsumerGroup]:
        """The consumer groups of the roles that are open."""
        roles = (self.interests, self.catalog)
        return [role.group for role in roles if role is not None and role.group is not None]

    @property
    def is_complete(self) -> bool:
        """Whether every group has its assignment and every partition its state."""
        if not all(group.is_assigned for group in self.groups):
            return False
        return self.interests is None or self.interests.is_complete

    def health(self) -> dict[str, Any]:
        """The body of `/healthz`: ``ready`` is true once the worker's state is complete.

        ``ok`` is false once the worker has to stop, or while one of its groups does not move.
        """
        profiles = self.interests.profiles if self.interests is not None else None
        partitions = profiles.partitions.values() if profiles is not None else ()
        reason = self._failed.result() if self._failed.done() else self._group_problem
        return {
            "ok": reason is None,
            "ready": self.ready.is_set(),
            "role": self.role,
            "bundle": self.bundle_id,
            "reason": reason,
            "deviations": self.deviations,
            "clock_skew_s": self._clock_skew_s(),
            "partitions": {each.number: each.watermark for each in partitions},
            "opening": [each.number for each in partitions if each.owned and not each.gate.is_open],
            "users": sum(self._users_of(each) for each in partitions),
            "newer_format_users": sum(len(each.sealed) for each in partitions if each.owned),
            "items": len(self.interests.vectors) if self.interests is not None else None,
            "graph": self.index.health().graph if self.index is not None else None,
            "lost": {_place(tp): list(gap) for group in self.groups for tp, gap in _gaps(group)},
            "held_back_s": self._held_back.lasting(),
            "bundle_mismatch": self._bundle_mismatch(),
            "index_away_s": round(self.catalog.path.index_away_s) if self.catalog is not None else None,
        }

    def readiness(self) -> dict[str, Any]:
        """The body of `/readyz`: whether the worker serves all partitions that it has, and what it still waits for."""
        waits = []
        if not all(group.is_assigned for group in self.groups):
            waits.append("its partitions, from the broker")
        elif not self.is_complete:
            waits.append("the state of its partitions, which is being read")
        if not self.ready.is_set():
            waits.append("its start to end")
        if self.catalog is not None and self.catalog.path.index_away_s > 0:
            waits.append("the index, which does not answer")
        health = self.health()
        if not health["ok"]:
            waits.append(str(health["reason"]))
        return {"ready": not waits, "waits_for": waits}

    def _bundle_mismatch(self) -> str | None:
        """Which other bundle the other role has, as a sentence; None: both have the same, as far as is known."""
        for role, other in ((self.interests, "catalog"), (self.catalog, "interests")):
            if role is not None and role.other_bundles:
                theirs = ", ".join(sorted(role.other_bundles))
                return (
                    f"this worker has bundle {self.bundle_id}, and the {other} workers have {theirs}: expected the same "
                    "HEADWATER_BUNDLE in both roles"
                )
        return None

    def _users_of(self, partition: Partition) -> int:
        return len(partition.columns) - (self._probe_row(partition) is not None)

    def _pending_of(self, partition: Partition) -> int:
        row, pending = self._probe_row(partition), partition.columns.pending
        return int(pending.sum()) - (0 if row is None else int(pending[row]))

    def _probe_row(self, partition: Partition) -> int | None:
        """The row of the user of the partition's freshness probe, who counts for nothing; None: it has none."""
        return partition.columns.rows.get(probe_user(partition.number, self._settings.partitions))

    def probes(self) -> list[ProbeResult]:
        """What the freshness probes of this worker's partitions have found, oldest first; nothing where there are none."""
        probe = self.interests.probe if self.interests is not None else None
        return [] if probe is None else probe.snapshot()

    def _clock_skew_s(self) -> float | None:
        skew_s = self.clock.skew_s if self.clock is not None else None
        return None if skew_s is None else round(skew_s, 3)

    def note_held_back(self, now_s: float) -> None:
        """Take note of partitions whose end stands because a transaction is open. Call it every second."""
        places = ((tp, group.position(tp)) for group in self.groups for tp in group.assignment())
        self._held_back.look({tp: at.end for tp, at in places if at.held_back and at.end is not None}, now_s)

    def tell_of_groups(self, problem: str | None) -> None:
        """Take note of why a group of this worker does not move; None: all do."""
        self._group_problem = problem

    def figures(self) -> dict[str, Any]:
        """How far each partition has come, and how much this worker holds; for the live page."""
        partitions = list(self.interests.profiles.partitions.values()) if self.interests is not None else []
        # An empty partition has no progress yet.
        places = {
            (self._topics.clicks, each.number): (each.watermark, 0) for each in partitions if each.owned
        }
        for each in self._read():
            place = (each.topic, each.partition)
            watermark, _ = places.get(place, (each.done - 1, 0))
            places[place] = (watermark, max(each.lag, 0))
        return {
            "partitions": [
                {
                    "topic": topic,
                    "partition": number,
                    "watermark": watermark,
                    "lag": lag,
                    "still_s": round(self.watchdog.still_s(topic, number), 1)
                    if self.watchdog is not None
                    else 0.0,
                }
                for (topic, number), (watermark, lag) in places.items()
            ],
            "users": sum(map(self._users_of, partitions)),
            "items": len(self.interests.vectors) if self.interests is not None else None,
            "pending": sum(map(self._pending_of, partitions)),
        }

    def partition_of_user(self, user: bytes) -> Partition:
        """The partition of a user, which this worker owns. Raises NoSuchUser."""
        number = partition_of(user, self._settings.partitions)
        partition = self.interests.profiles.partition(number) if self.interests is not None else None
        if partition is None or not partition.owned:
            raise NoSuchUser(
                "elsewhere",
                f"{_shown(user)} is of partition {number}, which this worker does not have",
            )
        return partition

    async def describe_user(self, user_id: str) -> dict[str, Any]:
        """The log of a user as people read it, without retractions. Raises NoSuchUser."""
        user = user_id.encode(errors="replace")
        partition = self.partition_of_user(user)
        row = partition.columns.rows.get(user)
        if row is None and user in partition.sealed:
            raise NoSuchUser(
                "newer_format",
                f"{_shown(user)} was written by a newer version: {SEALED_REMEDY}",
            )
        if row is None:
            raise NoSuchUser("unknown_user", f"{_shown(user)} has no events yet")
        assert self.interests is not None
        events = [event for event in _events(partition.columns, row) if event.action != RETRACT]
        kept = unpacked(partition.columns.hides.get(row, b""))
        try:
            payloads = await self.interests.index.items([event.item for event in events])
        except IndexUnavailable:
            payloads = {}
        described = [_described(event, payloads.get(event.item)) for event in events]
        return {
            "user_id": user_id,
            "partition": partition.number,
            "watermark": partition.watermark,
            "events": described,
            "pending": sum(1 for event in described if event["pending"]),
            "last_event_id": partition.columns.last_event[row].decode(errors="replace") or None,
            "counters": int(np.count_nonzero(partition.columns.counter_levels[row])),
            "hidden": len(in_force([(e.item, e.at_ms, e.action) for e in events], kept)),
        }

    async def describe_items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The catalog fields of those items that are in the index, by item id; none while it is away."""
        if self.index is None:
            return {}
        try:
            payloads = await self.index.items([item_key(item_id) for item_id in item_ids])
        except IndexUnavailable:
            return {}
        return {str(payload["item_id"]): payload for payload in payloads.values()}

    def watched_groups(self) -> list[WatchedGroup]:
        """The groups of the roles that are open, for `membership.watch`."""
        names, users, items = self._topics, self._settings.partitions, self._settings.catalog_partitions
        of_interests, of_catalog = self._settings.interests_group, self._settings.catalog_group
        topics = {
            of_interests: {names.clicks: users, names.requests: users},
            of_catalog: {names.catalog: items, names.offers: items},
        }
        return [
            WatchedGroup(group.name, topics[group.name], group.assignment, partial(self._requests, group))
            for group in self.groups
        ]

    def progress(self) -> Iterator[Progress]:
        """How far reading and committing have come, one each for every assigned partition."""
        return chain(self._read(), self._committed())

    async def keep_gauges(self, metrics: Metrics, watchdog: Watchdog) -> None:
        """Set the gauges every second, forever."""
        held_back, lag = _ByPartition(metrics.held_back), _ByPartition(metrics.lag)
        watermark_age = _ByPartition(metrics.watermark_age_seconds)
        while True:
            self.note_held_back(time.monotonic())
            held_back.set(
                {
                    (tp.topic, str(tp.partition)): group.position(tp).held_back
                    for group in self.groups
                    for tp in group.assignment()
                }
            )
            read = list(self._read())
            lag.set({(each.topic, str(each.partition)): max(each.lag, 0) for each in read})
            watermark_age.set(
                {
                    (str(each.partition),): watchdog.still_s(each.topic, each.partition)
                    for each in read
                    if each.topic == self._topics.clicks
                }
            )
            if self.clock is not None and self.clock.skew_s is not None:
                metrics.clock_skew_seconds.set(self.clock.skew_s)
            if self.interests is not None:
                partitions = list(self.interests.profiles.partitions.values())
                metrics.store_users.set(sum(map(self._users_of, partitions)))
                metrics.pending_clicks.set(sum(map(self._pending_of, partitions)))
                metrics.newer_format_users.set(sum(len(each.sealed) for each in partitions if each.owned))
            if self.catalog is not None:
                metrics.index_away_seconds.set(self.catalog.path.index_away_s)
                metrics.offers_waiting.set(self.catalog.path.offers_without_item)
            await asyncio.sleep(_GAUGES_S)

    def _read(self) -> Iterator[Progress]:
        for group in self.groups:
            for tp in group.assignment():
                at = group.position(tp)
                # Requests may be parked until their click comes, for as long as they allow.
                if at.next_offset is not None and at.end is not None and tp.topic != self._topics.requests:
                    waits = self._waits(tp.topic, tp.partition)
                    lag = at.end - at.next_offset
                    yield Progress(tp.topic, tp.partition, at.next_offset, lag, waits=waits)

    def _requests(self, group: ConsumerGroup) -> Iterator[Standing]:
        for tp in group.assignment():
            at = group.position(tp)
            if tp.topic == self._topics.requests and at.next_offset is not None and at.end is not None:
                yield Standing(tp.partition, at.next_offset, at.end - at.next_offset)

    def _committed(self) -> Iterator[Progress]:
        for group in self.groups:
            for tp in group.assignment():
                at = group.position(tp)
                yield Progress(tp.topic, tp.partition, at.committed, at.committing, TO_COMMIT)

    def _waits(self, topic: str, number: int) -> bool:
        """Whether a partition waits for something that has a time limit of its own: its state, or the index."""
        if topic == self._topics.catalog:
            return self.catalog is not None and self.catalog.path.waits(number)
        if topic == self._topics.offers:
            return self.catalog is not None and self.catalog.path.offers_wait(number)
        return self.interests is not None and self.interests.waits(number)


class HeldBack:
    """Partitions behind an open transaction, and for how long their end has not moved. That is no stall of ours."""

    def __init__(self) -> None:
        self._since: dict[TopicPartition, tuple[int, float]] = {}  # the end, and since when it stands
        self._now_s = 0.0

    def look(self, ends: Mapping[TopicPartition, int], now_s: float) -> None:
        """``ends`` are those of the partitions that are held back now; ``now_s`` is of a monotonic clock."""
        known, self._now_s = self._since, now_s
        self._since = {
            tp: known[tp] if tp in known and known[tp][0] == end else (end, now_s) for tp, end in ends.items()
        }

    def lasting(self) -> dict[str, int]:
        """Seconds by partition, of those held back for longer than a transaction of ordinary length."""
        lasting_s = {tp: self._now_s - since_s for tp, (_, since_s) in self._since.items()}
        return {_place(tp): round(each) for tp, each in lasting_s.items() if each >= HELD_BACK_S}


class _ByPartition:
    """A gauge by partition that tells nothing of partitions which this worker has lost."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge, self._told = gauge, frozenset[tuple[str, ...]]()

    def set(self, values: Mapping[tuple[str, ...], float]) -> None:
        """``values`` are by the gauge's labels. Those that are not among them any more leave the gauge."""
        for labels, value in values.items():
            self._gauge.labels(*labels).set(value)
        for labels in self._told - values.keys():
            self._gauge.remove(*labels)
        self._told = frozenset(values)


def _place(tp: TopicPartition) -> str:
    return f"{tp.topic}-{tp.partition}"


def _gaps(group: ConsumerGroup) -> list[tuple[TopicPartition, tuple[int, int]]]:
    return [(tp, (gap.first, gap.last)) for tp, gap in group.gaps().items()]


async def keep_counting_items(metrics: Metrics, index: Index) -> None:
    """Set the gauge of indexed items every second, forever; apart from the others, which must not wait for the index."""
    while True:
        with contextlib.suppress(IndexUnavailable):
            metrics.index_points.set(await index.count())
        await asyncio.sleep(_GAUGES_S)


def _events(columns: Columns, row: int) -> list[Event]:
    return columns.log(np.array([row])).events(0)


def _described(event: Event, payload: Mapping[str, Any] | None) -> dict[str, Any]:
    """An event as people read it; ``payload`` is that of its item, None where the item is not known."""
    known = payload or {}
    return {
        "item_id": known.get("item_id"),
        "title": known.get("title"),
        "category": known.get("category"),
        "at_ms": event.at_ms,
        "action": ACTION_NAMES.get(event.action, f"action {event.action}"),
        "pending": payload is None,
    }


def _shown(user: bytes) -> str:
    return f"user {quoted(user.decode(errors='replace'))}"
