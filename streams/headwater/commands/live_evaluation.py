"""The figures of a bundle through the running system: answers from the request topic, judged like an offline evaluation.

An embedded broker and a worker of its own get the catalog and, for each user, the events that a question may know. A
bundle with an order of candidates gets requests that name no sources, since only these are answered in that order. To
others a question is a request to the sources that count without popular items that fill up. It names its moment
(`at_ms`), so the time since the last event is that of the data. It also demands the user's last event. An answer that
rests on other events ends the evaluation. Events keep their times.

What is popular is told, as of the split: the worker sees the events of the asked users alone, and would count while it answers.
"""

import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from headwater.client import Client
from headwater.commands import worker_process
from headwater.encoder import runtime as encoder
from headwater.encoder.features import ACTION_NAMES
from headwater.encoder.runtime import Encoder
from headwater.errors import HeadwaterError
from headwater.index.edge_graph import GraphPolicy
from headwater.index.edge_shard import SEARCH_EF
from headwater.index.open import IN_PROCESS
from headwater.kafka import topics
from headwater.kafka.embedded_broker import EmbeddedBroker
from headwater.kafka.epochs import MAX_EPOCH
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.messages import (
    MAX_AHEAD_MS,
    MAX_DEADLINE_MS,
    MAX_LIMIT,
    MIN_AT_MS,
    Click,
    Item,
    Response,
    SourceName,
    Trend,
    encode,
)
from headwater.recall.popularity import HALF_LIFE_S
from headwater.recall.sources.registry import DEFAULT_WEIGHTS
from headwater.settings import Settings
from headwater_models.arrays import I64
from headwater_models.commands import Report, Results
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log
from headwater_models.data.statistics import tells_times
from headwater_models.judging import metrics
from headwater_models.judging.comparison import BY_LIST, measures
from headwater_models.judging.evaluation import (
    Catalog,
    bundle_scorer,
    encoded,
    evaluate,
    quality,
    question_sets,
)
from headwater_models.judging.protocols import Cases, Split
from headwater_models.judging.served import served
from headwater_models.judging.trending import Trending

# The largest difference allowed: half-precision states move a few items over the edge of their lists.
TOLERANCE: Final = 1e-3
_USERS_AT_ONCE: Final = 64


class UnlikeAnswerError(HeadwaterError):
    """An answer is degraded, or rests on other events than it should."""


class _Question(NamedTuple):
    """One case of a set: a user's history up to row ``end`` of the log (excluded), asked about at ``now_ms``."""

    set_name: str
    case: int
    end: int
    now_ms: int
    mask_seen: bool


class Compared(NamedTuple):
    """The figures of both ways.

    Attributes:
        apart: by measure, the figure through the stream minus that offline as the system serves.
        search: how the index was searched, in words.
    """

    results: Results
    apart: dict[str, float]
    search: str

    @property
    def agree(self) -> bool:
        """Whether all differences are within the tolerance."""
        return all(abs(difference) <= TOLERANCE for difference in self.apart.values())


async def compare(
    settings: Settings,
    bundle: Path,
    data: Dataset,
    asked: Split,
    k: int,
    seed: int,
    report: Report,
    *,
    graph: bool = False,
) -> Compared:
    """Judge a bundle offline, offline as the system serves (the newest L events, the fusion), and through the stream.

    Args:
        asked: the questions.
        k: the length of lists.
        graph: let the worker search a graph, as for large catalogs. Otherwise both searches are exact.

    Raises:
        DatasetError: the clicks topic cannot take the data, or ``k`` is too large.
        UnlikeAnswerError: an answer rests on other events than it should.
        HeadwaterError: broker or worker failed.
    """
    loaded = await asyncio.to_thread(encoder.load, bundle, threads=settings.encoder_threads)
    _check(data, k)
    catalog = await asyncio.to_thread(encoded, loaded, data, partial(report, "encoding items"))
    items, length = len(data.item_ids), loaded.log_length
    whole = await asyncio.to_thread(evaluate, bundle_scorer(loaded, catalog), asked, items, k)
    sources = {str(source): weight for source, weight in _sources(loaded).items()}
    trending = Trending.of(asked, items, has_times=tells_times(data)).still()
    as_served = served(loaded, catalog, k, sources, trending=trending)
    offline = await asyncio.to_thread(evaluate, as_served, asked, items, k, remembered=length)
    sets = question_sets(asked)
    with tempfile.TemporaryDirectory(prefix="headwater-") as folder, EmbeddedBroker(Path(folder)) as broker:
        own = settings.model_copy(
            update={
                "data_dir": Path(folder),
                "kafka_bootstrap_servers": broker.bootstrap_servers,
                **IN_PROCESS,
                "bundle": bundle,
                "graph_min_items": settings.graph_min_items if graph else items + 1,
            }
        )
        asking = _Asking(own, loaded, data, catalog, asked.log, sets, k, trending, report)
        lists, search = await asking.answers()
    streamed = {
        name: quality(_ranks(lists[name], cases), lists[name], asked, cases, items, k)
        for name, cases in sets.items()
    }
    name = loaded.name
    methods = {name: whole, f"{name} as it serves": offline, f"{name} through the stream": streamed}
    notes = [
        *data.notes,
        f"as it serves: a user's newest {length} events are known, and counters of what came before; these items are out of the "
        "ranking of discoveries, and those of all with the source buy-again",
        search,
    ]
    apart = {}
    for name in sets:
        both = (measures(each[name], asked.protocol) for each in (streamed, offline))
        for measure, mine, expected in zip(
            ("recall" if asked.protocol in BY_LIST else "hit", "NDCG"), *both, strict=True
        ):
            apart[f"{name}: {measure}@{k}"] = mine.value - expected.value
    return Compared(
        Results(
            data.name, data.fingerprint, data.dropped, notes, asked.protocol, asked.at_ms, seed, k, methods
        ),
        apart,
        search,
    )


def _sources(loaded: Encoder) -> dict[SourceName, float]:
    """How a request weighs the sources: as one that names none is answered, but without popular items that fill up.

    Empty, so that it names none, for a bundle with an order of candidates, which no other request gets.
    """
    if loaded.pool:
        return {}
    sources: tuple[SourceName, ...] = ("interests", "buy-again", "popular")
    if loaded.neighbours:
        sources += ("similar",)
    weights = {**DEFAULT_WEIGHTS, **loaded.manifest.sources}
    return {source: weights[source] for source in sources if weights.get(source, 0.0) > 0}


def _check(data: Dataset, k: int) -> None:
    """Raises DatasetError where the clicks topic cannot take the data, or a request ``k`` items."""
    latest = time.time_ns() // 1_000_000 + MAX_AHEAD_MS
    outside = np.flatnonzero((data.log.at_ms < MIN_AT_MS) | (data.log.at_ms > latest))
    if len(outside):
        raise DatasetError(
            f"{data.name} has an event at {data.log.at_ms[outside[0]]} ms: expected times that the clicks topic takes, "
            "from 1973 to two days from now"
        )
    if k > MAX_LIMIT:
        raise DatasetError(f"--k is {k}: expected at most {MAX_LIMIT}, the longest answer to a request")


def _ranks(lists: I64, cases: Cases) -> I64:
    """The rank of each target, (targets,), in the list of its case (lists: (cases, k)), counted from 1."""
    found = lists[cases.case_of_target] == cases.targets[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, metrics.NEVER)


class _Asking:
    """Questions about users, answered by a worker of its own on the broker of `settings`."""

    def __init__(
        self,
        settings: Settings,
        loaded: Encoder,
        data: Dataset,
        catalog: Catalog,
        log: Log,
        sets: Mapping[str, Cases],
        k: int,
        trending: Trending,
        report: Report,
    ) -> None:
        self._settings, self._trending = settings, trending
        self._encoder, self._data, self._log, self._report = loaded, data, log, report
        self._keys, self._known = catalog.keys, np.flatnonzero(catalog.known).tolist()
        self._items = {item_id: item for item, item_id in enumerate(data.item_ids)}
        self._limit = k
        self._lists = {name: np.full((len(cases), k), -1, dtype=np.int64) for name, cases in sets.items()}
        self._users = _by_user(sets)
        self._answered = 0

    async def answers(self) -> tuple[dict[str, I64], str]:
        """The lists of each set, (cases, k) item numbers, -1 for an empty place; and how the index was searched."""
        await topics.create(self._settings)
        async with worker_process.running(self._settings) as web:
            await worker_process.ready(web)
            await self._publish_popularity()
            await self._publish_catalog(web)
            await self._publish_histories(web)
            search = await self._search(web)
            async with Client(self._settings, remembered_users=len(self._users)) as client:
                gate = asyncio.Semaphore(_USERS_AT_ONCE)
                await asyncio.gather(*(self._ask(client, gate, user) for user in self._users))
        return self._lists, search

    async def _publish_popularity(self) -> None:
        """Tell the worker what is popular, as an owner of its partitions would that comes after it: its own counts are older."""
        names = dict(zip(self._keys.tolist(), self._data.item_ids, strict=True))
        popular = self._trending.popular(self._trending.last_ms, self._keys)
        counts = [(names[item.key], item.weight) for item in popular]
        now_ms = time.time_ns() // 1_000_000
        records = [
            Outgoing(
                str(number).encode(),
                encode(Trend(number, now_ms, HALF_LIFE_S, [] if number else counts, MAX_EPOCH, now_ms)),
            )
            for number in range(self._settings.partitions)
        ]
        producer = producer_of(self._settings)
        await producer.start()
        try:
            topic = topics.Topics.named(self._settings.topic_prefix).trends
            await write_all(producer, topic, 0, records)
        finally:
            await producer.stop()

    async def _publish_catalog(self, web: str) -> None:
        """Publish the items with their texts as titles: the item tower reads a title alone as the text."""
        texts = self._data.texts if self._encoder.item_inputs == "text" else None
        items = (Item(self._data.item_ids[n], texts[n] if texts else "") for n in self._known)
        count = len(self._known)
        await worker_process.publish_items(
            self._settings, web, items, count, lambda done: self._report("catalog searchable", done, count)
        )

    async def _publish_histories(self, web: str) -> None:
        """Publish each user's events before the first question, except the last, which the client publishes itself."""
        spans = {user: range(self._log.starts[user], each[0].end - 1) for user, each in self._users.items()}
        clicks = (self._click(user, row) for user, span in spans.items() for row in span)
        count = sum(map(len, spans.values()))
        await worker_process.publish_clicks(
            self._settings, web, clicks, count, lambda done: self._report("histories applied", done, count)
        )

    async def _search(self, web: str) -> str:
        """How the index searches, once the graph for a catalog of this size is built."""
        policy, items = GraphPolicy(min_items=self._settings.graph_min_items), len(self._known)
        deadline = time.monotonic() + policy.timeout_s
        while True:
            graph = int((await worker_process.ready(web))["graph"])
            due = policy.is_due(items - graph, graph, policy.quiet_s, policy.patience_s)
            if not due or time.monotonic() > deadline:
                break
            self._report("search graph", graph, items)
            await asyncio.sleep(0.5)
        if not graph:
            return f"search: exact, by a scan of {items:,} items"
        return (
            f"search: through a graph over {graph:,} of {items:,} items, at least {SEARCH_EF} candidates kept"
        )

    def _click(self, user: int, row: int) -> Click:
        log = self._log
        return Click(
            _event_id(row),
            log.users[user],
            int(log.at_ms[row]),
            self._data.item_ids[log.items[row]],
            ACTION_NAMES[int(log.actions[row])],  # type: ignore[arg-type]  # positive actions, of a dataset
        )

    async def _ask(self, client: Client, gate: asyncio.Semaphore, user: int) -> None:
        """Ask the questions about one user in order, and publish before each the events that it may know."""
        async with gate:
            start = int(self._log.starts[user])
            told = max(start, self._users[user][0].end - 1)
            for question in self._users[user]:
                for row in range(told, question.end):
                    click = self._click(user, row)
                    await client.click(
                        click.user_id, click.item_id, click.action, at_ms=click.at_ms, event_id=click.event_id
                    )
                told = question.end
                answer = await client.recall(
                    self._log.users[user],
                    limit=self._limit,
                    exclude_seen=question.mask_seen,
                    sources=_sources(self._encoder),
                    at_ms=question.now_ms,
                    reads="own",  # the clicks of others are questions of their own
                    deadline_ms=MAX_DEADLINE_MS,
                )
                self._require(answer, question.end - start, question.end - 1)
                found = [self._items[item.item_id] for item in answer.items]
                self._lists[question.set_name][question.case, : len(found)] = found
                self._answered += 1
                self._report("answers", self._answered, sum(map(len, self._lists.values())))

    def _require(self, answer: Response, events: int, last: int) -> None:
        """Raises UnlikeAnswerError unless the answer is full and rests on the newest L of `events`, up to row `last`."""
        proof = answer.reflects
        expected = min(events, self._encoder.log_length)
        if (
            answer.status != "ok"
            or proof is None
            or proof.events != expected
            or proof.last_event_id != (_event_id(last) if events else None)
        ):
            raise UnlikeAnswerError(
                f"user {answer.user_id}: the answer is {answer.status} ({answer.rung or 'full'}) and reflects {proof}: "
                f"expected a full one of {expected} events up to {_event_id(last)}; look for dead letters and bad ids"
            )


def _by_user(sets: Mapping[str, Cases]) -> dict[int, list[_Question]]:
    """The questions about each user, in the order of their histories."""
    users: dict[int, list[_Question]] = defaultdict(list)
    for name, cases in sets.items():
        columns = (cases.users.tolist(), cases.ends.tolist(), cases.now_ms.tolist())
        for case, (user, end, now_ms) in enumerate(zip(*columns, strict=True)):
            users[user].append(_Question(name, case, end, now_ms, cases.mask_seen))
    return {user: sorted(questions, key=lambda each: each.end) for user, questions in users.items()}


def _event_id(row: int) -> str:
    return f"event-{row}"
