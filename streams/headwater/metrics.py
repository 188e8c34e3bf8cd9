"""Every metric of a worker, in one typed list: what it means, and what to do when it looks wrong.

`Metrics()` builds all of them in a registry of its own, so a process may hold several:

    metrics = Metrics()
    step_seconds = metrics.click_batch_stage_seconds.labels("step")  # once, outside the hot path
    step_seconds.observe(0.0008)
    metrics.exposition()                                             # the body of GET /metrics

The class is the list. A name on the wire is `headwater_` and the name of the attribute.
"""

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.samples import Sample

NAMESPACE: Final = "headwater"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

# An idle worker applies a click in a few milliseconds; a request may wait for at most 60 s.
LATENCY: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# A stage is a part of that: 50 us for the smallest batch, up to the minute that a request may be parked.
STAGE: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0),
)
_MOST_NOTED: Final = 4096
RECORDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
SHARES: Final = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
# Restoring a partition: an instant when it is empty, minutes for millions of users.
RESTORE: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Histogram(prometheus_client.Histogram):
    """Prometheus' histogram, made cheap for batches and for the hot path.

    Single observations are noted and counted at the next exposition, so that a click does not wait for the counting.
    """

    def _metric_init(self) -> None:
        super()._metric_init()
        self._noted: deque[float] = deque()

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Note one value; ``exemplar`` is ignored."""
        self._noted.append(amount)
        if len(self._noted) >= _MOST_NOTED:
            self._count_noted()

    def _child_samples(self) -> Iterable[Sample]:
        self._count_noted()
        return super()._child_samples()

    def counts(self) -> npt.NDArray[np.float64]:
        """How many values each bucket has, (buckets,); the last bucket has no upper bound. Not for one with labels."""
        self._count_noted()
        return np.array([bucket.get() for bucket in self._buckets])

    def _count_noted(self) -> None:
        noted = []
        with suppress(IndexError):  # another thread may count too
            while True:
                noted.append(self._noted.popleft())
        self.observe_all(noted)

    def observe_all(self, values: npt.ArrayLike) -> None:
        """Observe all of ``values``, of any shape. 2,000 values take 50 us instead of 3 ms."""
        amounts = np.asarray(values, dtype=np.float64).ravel()
        # A value belongs to the first bucket whose upper bound is not below it.
        counts = np.bincount(np.searchsorted(self._upper_bounds, amounts), minlength=len(self._buckets))
        for bucket in np.flatnonzero(counts):
            self._buckets[bucket].inc(float(counts[bucket]))
        self._sum.inc(float(amounts.sum()))


@dataclass(frozen=True)
class About:
    """The documentation of a metric, its labels, and the buckets of a histogram."""

    meaning: str
    remedy: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = LATENCY


@dataclass(frozen=True)
class Definition:
    """One metric of the list."""

    name: str  # of the attribute; `headwater_<name>` on the wire
    kind: type[Counter] | type[Gauge] | type[Histogram] | type[Info]
    about: About

    @property
    def exposed_name(self) -> str:
        """The name on the wire."""
        return f"{NAMESPACE}_{self.name}"


class Metrics:
    """All metrics of one worker. `labels(...)` costs a lock and a lookup (1.5 us), so bind children beforehand."""

    # The path of a click
    clicks_total: Annotated[
        Counter,
        About(
            "Click events applied to a profile.", "Zero while clicks are published: see `lag` and the log."
        ),
    ]
    click_to_applied_seconds: Annotated[
        Histogram,
        About(
            "From a click's record timestamp to the acknowledgement of its changelog record: how fresh answers are.",
            "High with `lag`: add interests workers or partitions. High without: look at the slowest stage in "
            "`click_batch_stage_seconds`, then at the broker's disk and the clocks of the publishers.",
        ),
    ]
    click_batch_stage_seconds: Annotated[
        Histogram,
        About(
            "Time of one click batch in each stage: decode, apply, encode, changelog. Small batches of several "
            "partitions are applied and encoded as one, and count as one in these stages.",
            "encode: raise HEADWATER_ENCODER_THREADS or choose a smaller bundle. changelog: the broker is slow "
            "to acknowledge. The others: smaller batches (HEADWATER_MAX_POLL_RECORDS).",
            ("stage",),
            STAGE,
        ),
    ]
    pending_clicks: Annotated[
        Gauge,
        About(
            "Events in profiles whose item has no vector yet. They count as soon as it has one.",
            "Growing: clicks name items that the catalog topic does not have, or the catalog worker lags.",
        ),
    ]
    duplicates_total: Annotated[
        Counter,
        About(
            "Clicks dropped because their event id or offset was applied before.",
            "Expected after a restart. Steady: a publisher sends events twice, or reuses event ids.",
        ),
    ]
    too_late_total: Annotated[
        Counter,
        About(
            "Clicks not applied because they are older than everything in a full event log.",
            "Expected when old data is imported after new data. Otherwise a publisher's `at_ms` is wrong or late.",
        ),
    ]
    strays_total: Annotated[
        Counter,
        About(
            "Records found on a partition that their key does not belong to, and forwarded to the right one.",
            "A publisher uses another partitioner: set partitioner=murmur2_random in librdkafka clients.",
            ("topic",),
        ),
    ]
    changelog_records_total: Annotated[
        Counter,
        About(
            "Profiles written to the changelog and acknowledged.",
            "Near `clicks_total`: batches are small, so each click pays for a whole profile. Raise linger upstream.",
        ),
    ]
    fenced_records_total: Annotated[
        Counter,
        About(
            "Users written again because a former owner, or a late copy of our own write, overwrote their changelog record.",
            "A worker was paused or cut off and came back: check it for memory pressure and long pauses.",
        ),
    ]
    damaged_records_total: Annotated[
        Counter,
        About(
            "Records of an internal topic that cannot be read, and were skipped at a start.",
            "Something else writes to the topic, or its log is damaged: the worker's log has the offsets. A user whose only "
            "record is damaged starts anew.",
            ("topic",),
        ),
    ]
    clicks_lost_total: Annotated[
        Counter,
        About(
            "Offsets of the clicks topic that were deleted before this worker read them. Their clicks never count.",
            "The workers were away, or behind, for longer than the topic keeps its records: raise its retention.ms. "
            "The log and `/healthz` name the offsets.",
        ),
    ]
    requests_lost_total: Annotated[
        Counter,
        About(
            "Offsets of the requests topic that were deleted before this worker read them. Nobody waits for them any more.",
            "As `clicks_lost_total`.",
        ),
    ]
    catalog_lost_total: Annotated[
        Counter,
        About(
            "Offsets of the catalog topic that were deleted before this worker read them.",
            "Publish the catalog again, and see `topics check`: the topic must be compacted, not deleted.",
        ),
    ]
    store_users: Annotated[
        Gauge,
        About(
            "Users whose state this worker holds.",
            "They take most of its memory: add workers, or set HEADWATER_USER_TTL_DAYS.",
        ),
    ]
    newer_format_users: Annotated[
        Gauge,
        About(
            "Users whose state a newer version wrote. Their clicks become dead letters, and their records stay as they are.",
            "Above 0 after a rollback: run the version that wrote them in all workers, then redrive the dead letters of "
            "the reason `newer_format`.",
        ),
    ]
    erasures_open: Annotated[
        Gauge,
        About(
            "Forgets whose receipt is not done: their users' dead letters are still to be taken out.",
            "More than a few for minutes: the log says what the broker refuses (`erasure_waits`); see `headwater doctor`.",
        ),
    ]
    watermark_age_seconds: Annotated[
        Gauge,
        About(
            "Time since a clicks partition with lag last moved; 0 without lag.",
            "Growing: the partition is stuck. See the log and the dead letters; the watchdog stops the worker.",
            ("partition",),
        ),
    ]

    # The freshness probe, which counts in no other figure but those of stages, batches and sources
    probe_click_to_answer_seconds: Annotated[
        Histogram,
        About(
            "From the publishing of a probe's click until the answer that reflects it has been read back.",
            "High: compare `click_to_applied_seconds` and `request_seconds`. Both low: the broker, or the way to it. Nothing: "
            "HEADWATER_PROBE_S is not set.",
        ),
    ]
    probe_failures_total: Annotated[
        Counter,
        About(
            "Probes without an answer that reflects their click, by reason: not_stored, not_asked, no_answer, expired, "
            "rejected, lost, stale, unreadable.",
            "not_stored, not_asked, unreadable: look at the broker. no_answer, expired: clicks or requests of the partition "
            "do not move, see `watermark_age_seconds`. lost: `clicks_lost_total`. stale is a bug of ours: report it.",
            ("reason",),
        ),
    ]

    # The path of a request
    requests_total: Annotated[
        Counter,
        About(
            "Answers sent, by status.",
            "degraded: see `index_fallbacks_total`. expired: see `click_to_applied_seconds`. rejected: the "
            "answers' `error.message` says what is wrong with the requests.",
            ("status",),
        ),
    ]
    request_seconds: Annotated[
        Histogram,
        About(
            "From a request's record timestamp to the acknowledgement of its answer, parking included.",
            "Look at the slowest stage in `request_stage_seconds`, then at `lag` of the requests topic.",
        ),
    ]
    request_stage_seconds: Annotated[
        Histogram,
        About(
            "Time of one request batch in each stage: decode, park, read, index, publish.",
            "index: see `index_seconds`. read: see `encoder_seconds`. park: clicks are applied too slowly.",
            ("stage",),
            STAGE,
        ),
    ]
    parked_requests: Annotated[
        Gauge,
        About(
            "Requests that wait for the click they demand.",
            "At HEADWATER_MAX_PARKED new ones are rejected as overloaded: clicks lag, or `after` names offsets "
            "that never come.",
        ),
    ]
    index_fallbacks_total: Annotated[
        Counter,
        About(
            "Answers given by a lower rung, because a source or the index failed or was late.",
            "See whether the index is reachable (`headwater doctor`) and how slow it is (`index_seconds`).",
            ("rung",),
        ),
    ]

    source_items_total: Annotated[
        Counter,
        About(
            "Items that a source ranked, before the rankings were fused.",
            "Zero for a source that requests ask: see `source_lost_total`, and whether the bundle has what it needs.",
            ("source",),
        ),
    ]
    source_lost_total: Annotated[
        Counter,
        About(
            "Requests for which a source failed or was late; their answers do without it.",
            "See how slow the index is (`index_seconds`), and whether deadlines are too short.",
            ("source",),
        ),
    ]

    # The path of a catalog change, and the index
    catalog_items_total: Annotated[
        Counter,
        About(
            "Catalog changes that reached the index and the vectors topic.",
            "Zero while items are published: see `lag` of the catalog topic and the catalog worker's log.",
        ),
    ]
    catalog_ignored_total: Annotated[
        Counter,
        About(
            "Valid catalog changes that were not newer than what is known of their item, by reason: old_version, repeated.",
            "old_version: a publisher sends versions in the wrong order, or counts from the start again after a delete. "
            "repeated: expected after a restart.",
            ("reason",),
        ),
    ]
    offers_total: Annotated[
        Counter,
        About(
            "Offers that are laid over their items, or wait for them.",
            "Zero while offers are published: see `lag` of the offers topic and the catalog worker's log.",
        ),
    ]
    offers_ignored_total: Annotated[
        Counter,
        About(
            "Valid offers that change nothing, by reason: older, repeated, no_item.",
            "older: a newer offer is known; look at the clocks of publishers that set at_ms. repeated: expected after a "
            "restart. no_item: forgotten, since the item has not come for a week and others wait too.",
            ("reason",),
        ),
    ]
    offers_waiting: Annotated[
        Gauge,
        About(
            "Items that have offers and are not in the catalog.",
            "Growing: a feed of offers has other ids than the catalog, or more items.",
        ),
    ]
    offers_lost_total: Annotated[
        Counter,
        About(
            "Offsets of the offers topic that were deleted before this worker read them.",
            "Publish the offers again, and see `topics check`: the topic must be compacted, not deleted.",
        ),
    ]
    unknown_token_share: Annotated[
        Histogram,
        About(
            "Of each encoded item, the share of its text's tokens that the bundle does not know; sum / count: of the catalog.",
            "Above 0.1 on average: the texts are in another language than the bundle's; see `headwater doctor`.",
            (),
            SHARES,
        ),
    ]
    unreadable_items_total: Annotated[
        Counter,
        About(
            "Encoded items of whose texts the bundle knows less than half. Their vectors come from the spelling alone.",
            "Growing: take a bundle with a text encoder of the catalog's language; see `headwater doctor`.",
        ),
    ]
    vectors_repaired_total: Annotated[
        Counter,
        About(
            "Items written again to the vectors topic because a former owner of their partition overwrote them.",
            "A catalog worker was paused or cut off and came back: check it for memory pressure and long pauses.",
        ),
    ]
    skipped_records_total: Annotated[
        Counter,
        About(
            "Records of the vectors and trends topics that were skipped, by reason; the log has the first of each.",
            "other_bundle, stale_epoch, older: expected while workers are replaced. Any other: something else writes there.",
            ("topic", "reason"),
        ),
    ]
    catalog_to_indexed_seconds: Annotated[
        Histogram,
        About(
            "From the timestamp of a catalog record or an offer until answers follow it.",
            "High with `lag`: add catalog workers, or use a GPU. High without: see `index_seconds`.",
        ),
    ]
    index_points: Annotated[
        Gauge,
        About(
            "Live items in the index.",
            "Fewer than in the catalog: dead letters of the catalog topic, or an index still being filled.",
        ),
    ]
    index_away_seconds: Annotated[
        Gauge,
        About(
            "For how long catalog changes have waited for an unavailable index; 0 while it takes them.",
            "They wait in their topic, in order. See the index's log and disk, and the network to it.",
        ),
    ]
    index_seconds: Annotated[
        Histogram,
        About(
            "Time of one call of the index: put, put_offers, search, vectors, items, match.",
            "search: use simpler filters, wait for the search graph, or move the Qdrant server closer. put: smaller batches.",
            ("call",),
            STAGE,
        ),
    ]

    # Encoder, batches, state, group
    encoder_seconds: Annotated[
        Histogram,
        About(
            "Time of one run of an ONNX graph: item, step, read, window.",
            "Raise HEADWATER_ENCODER_THREADS, choose a smaller or int8 bundle, or a GPU (HEADWATER_DEVICE).",
            ("graph",),
            STAGE,
        ),
    ]
    batch_size: Annotated[
        Histogram,
        About(
            "Records in one batch of a path: clicks, requests, catalog, offers.",
            "Always at HEADWATER_MAX_POLL_RECORDS: there is a backlog. Always 1 at high load: the broker hands "
            "out single records; let publishers linger for a few milliseconds.",
            ("path",),
            RECORDS,
        ),
    ]
    held_back: Annotated[
        Gauge,
        About(
            "Offsets of an assigned partition that are published, but behind an open transaction.",
            "Not falling: a transactional publisher hangs. Stop it; Kafka aborts its transaction after transaction.timeout.ms.",
            ("topic", "partition"),
        ),
    ]
    lag: Annotated[
        Gauge,
        About(
            "Offsets of an assigned partition that may be read and are not finished. What an open transaction holds back is "
            "none of them.",
            "Growing: add workers up to the number of partitions, then partitions (with a new topic prefix).",
            ("topic", "partition"),
        ),
    ]
    loop_delay_seconds: Annotated[
        Histogram,
        About(
            "By how much the event loop is late, looked at every 20 ms: how long one piece of work keeps all others waiting.",
            "Often above 0.1: give the worker a core of its own, or share the partitions among more workers.",
        ),
    ]
    clock_skew_seconds: Annotated[
        Gauge,
        About(
            "By how much the worker's clock is ahead of the broker's; 0 while that is not known.",
            "Deadlines count by the broker's clock all the same. More than half a second: set up NTP on both machines. "
            "Always exactly 0: the trends topic lacks LogAppendTime (`headwater topics check`).",
        ),
    ]
    dead_letters_total: Annotated[
        Counter,
        About(
            "Records put into the dead-letter topic, by reason.",
            "`headwater dlq list` has the remedy of each reason, `headwater dlq redrive` publishes them again after that. "
            "internal_error is a bug of ours: report it with the log.",
            ("reason",),
        ),
    ]
    restore_seconds: Annotated[
        Histogram,
        About(
            "From the assignment of a partition until the state of its users is restored.",
            "Minutes: the changelog is not compacted (`headwater topics check`), or too many users a partition.",
            buckets=RESTORE,
        ),
    ]
    rebalance_pause_seconds: Annotated[
        Histogram,
        About(
            "From the begin of a rebalance at this worker until it applies clicks again.",
            "Long with short restores: workers are slow to join (a blocked loop, HEADWATER_SESSION_TIMEOUT_S after a crash).",
            buckets=RESTORE,
        ),
    ]
    rebalances_total: Annotated[
        Counter,
        About(
            "Rebalances: how often the group assigned its partitions.",
            "Without a deploy: workers miss their session (HEADWATER_SESSION_TIMEOUT_S) through long pauses or crashes.",
        ),
    ]
    worker: Annotated[
        Info,
        About(
            "Always 1; the labels say what runs: version, role, bundle, execution providers, index engine.",
            "CPUExecutionProvider where a GPU should be: install with EXTRA=gpu and check the driver.",
        ),
    ]

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for definition in DEFINITIONS:
            setattr(self, definition.name, _built(definition, self.registry))
        ProcessCollector(registry=self.registry)  # memory, CPU time and open files of this process

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, of `CONTENT_TYPE`. Takes a millisecond or two: not for the hot path."""
        # The client's `_created` series double the size and are of no use here.
        lines = generate_latest(self.registry).splitlines(keepends=True)
        return b"".join(line for line in lines if b"_created" not in line.partition(b"{")[0])


def _built(definition: Definition, registry: CollectorRegistry) -> Counter | Gauge | Histogram | Info:
    name, about = definition.exposed_name, definition.about
    if definition.kind is Histogram:
        return Histogram(name, about.meaning, about.labels, registry=registry, buckets=about.buckets)
    return definition.kind(name, about.meaning, about.labels, registry=registry)


def _definitions() -> tuple[Definition, ...]:
    hints = get_type_hints(Metrics, include_extras=True)
    found = (
        Definition(name, *get_args(hint)) for name, hint in hints.items() if get_origin(hint) is Annotated
    )
    return tuple(found)


DEFINITIONS: Final = _definitions()


def reference() -> str:
    """The table of all metrics for the documentation, in Markdown."""
    rows = ["| metric | kind | meaning | when it looks wrong |", "|---|---|---|---|"]
    for definition in DEFINITIONS:
        about = definition.about
        labels = f"{{{', '.join(about.labels)}}}" if about.labels else ""
        kind = definition.kind.__name__.lower()
        rows.append(f"| `{definition.exposed_name}{labels}` | {kind} | {about.meaning} | {about.remedy} |")
    return "\n".join(rows) + "\n"
