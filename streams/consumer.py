"""Reading from a broker without the waits that aiokafka's consumer leaves in, and with lighter records.

*Too few*: Kafka holds an empty fetch back for as long as the client allows. The embedded broker (0.2.3) answers at
once, so that each idle client would ask 5,000 times a second and keep a core busy, and the broker another one. So
there are pauses between fetches that bring nothing.

*Too many*: one fetch at a time is on its way to a broker, and it asks only for partitions whose last records have been
taken. While some wait to be taken, aiokafka first waits 100 ms, and then asks for the others alone, for as long as
Kafka holds that back (500 ms): whatever has been taken meanwhile is not asked for until then, however much there is.
So it waits 2 ms, and such a fetch is not held back. And whoever waits for records is woken as they arrive, not after that
has been considered: mostly they are then taken before, and all partitions are asked for at once.

*Together*: clicks and requests come over one connection, one fetch of all at a time. Behind a backlog of clicks, megabytes
that are read a piece at each turn of a busy loop, a request waited 100 ms before anybody saw it. So urgent topics have
fetches of their own. There the next one already waits at the broker while a click is applied, too.

*Records*: aiokafka takes 1 us to make one, of which half are fields that nobody here asks for. They keep the interpreter
from the work beside, and each click is one.
"""

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.protocol.fetch import FetchRequest
from msgspec import Struct

from streams.wire import Fetch

# Below what any held fetch takes on Kafka, far above what one takes on a broker that does not wait.
_AT_ONCE_S: Final = 0.005
# Adds half of it to a record's way on such a broker; an idle client costs 2 % of a core.
_PAUSE_S: Final = 0.01
# So long may records wait to be taken before the other partitions are asked for without theirs.
_TAKEN_WITHIN_S: Final = 0.002
_PARTIAL_MAX_WAIT_MS: Final = 10
# aiokafka's client knows its connections to a broker by number: 0 is for records, 1 for the group.
_URGENT_CONNECTION: Final = 2


# Not followed by the garbage collector: it holds text and numbers only.
class Record(Struct, frozen=True, gc=False):
    """Those fields of aiokafka's ConsumerRecord that are read."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """aiokafka's consumer, in all but that. Topics named ``urgent`` are fetched apart from the others."""

    def __init__(self, *topics: str, urgent: Collection[str] = (), **options: Any) -> None:
        super().__init__(*topics, **options)
        self._urgent = frozenset(urgent)

    async def start(self) -> None:
        await super().start()
        fetcher: Any = self._fetcher
        fetcher._client = _Connections(fetcher._client)
        _ask_quickly(fetcher)
        _pause_between_empty_fetches(fetcher)
        _plan_quickly(fetcher, self._urgent)
        fetcher._records = _Fetched(fetcher, self._urgent)


class _Apart(NamedTuple):
    """A broker, as the urgent topics know it: what is on its way to it for others is no reason to wait."""

    node: int


class _Connections:
    """A client that asks for urgent topics over a connection of their own: a broker answers one fetch of each at a time."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(self, node: Any, request: Any) -> Any:
        if isinstance(node, _Apart):
            return await self._client.send(node.node, request, group=_URGENT_CONNECTION)
        return await self._client.send(node, request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _ask_quickly(fetcher: Any) -> None:
    fetch = fetcher._proc_fetch_request

    async def quick(assignment: Any, node: int, request: Any) -> bool:
        return bool(await fetch(assignment, node, Fetch(request, assignment)))

    fetcher._proc_fetch_request = quick


def _pause_between_empty_fetches(fetcher: Any) -> None:
    fetch = fetcher._proc_fetch_request

    async def paced(*args: Any) -> bool:
        started = time.monotonic()
        has_news = bool(await fetch(*args))
        if not has_news and time.monotonic() - started < _AT_ONCE_S:
            # The fetcher cancels its fetches when it closes, and expects them to end well.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(_PAUSE_S)
        return has_news

    fetcher._proc_fetch_request = paced


def _plan_quickly(fetcher: Any, urgent: Collection[str]) -> None:
    fetcher._prefetch_backoff = _TAKEN_WITHIN_S
    theirs, whole_max_wait_ms = fetcher._get_actions_per_node, fetcher._fetch_max_wait_ms

    def planned(assignment: Any) -> Any:
        plan = _plan(fetcher, assignment, urgent, whole_max_wait_ms)
        if plan is not None:
            return plan
        fetcher._fetch_max_wait_ms = _PARTIAL_MAX_WAIT_MS if fetcher._records else whole_max_wait_ms
        in_flight = fetcher._in_flight
        fetcher._in_flight = {node.node if isinstance(node, _Apart) else node for node in in_flight}
        try:
            return theirs(assignment)
        finally:
            fetcher._in_flight, fetcher._fetch_max_wait_ms = in_flight, whole_max_wait_ms

    fetcher._get_actions_per_node = planned


def _plan(fetcher: Any, assignment: Any, urgent: Collection[str], whole_max_wait_ms: int) -> Any:
    """What aiokafka plans for each half, urgent and not, where all that there is to do is to fetch; in a third of its time.

    None otherwise: then aiokafka asks for both halves at once, and while that lasts the urgent one may be asked for again here.
    That costs a fetch, no more: what does not begin at a partition's position is left alone.
    """
    if fetcher._preferred_read_replica:
        return None
    leader_of, state_of = fetcher._client.cluster.leader_for_partition, assignment.state_value
    records, in_flight, most_bytes = fetcher._records, fetcher._in_flight, fetcher._max_partition_fetch_bytes
    wanted: dict[int | _Apart, dict[str, list[tuple[int, int, int]]]] = {}
    untaken: dict[int | _Apart, list[float]] = {}
    partial = {tp.topic in urgent for tp in records}
    tps = list(assignment.tps)
    random.shuffle(tps)  # where an answer has no room for all, each is among the first of some
    for tp in tps:
        leader, state = leader_of(tp), state_of(tp)
        if leader is None or leader == -1 or not state.has_valid_position or state.paused:
            return None
        node = _Apart(leader) if tp.topic in urgent else leader
        if tp in records:
            if wait_s := records[tp].calculate_backoff():
                untaken.setdefault(node, []).append(wait_s)
        elif node not in in_flight:
            topics = wanted.setdefault(node, {})
            topics.setdefault(tp.topic, []).append((tp.partition, state.position, most_bytes))
    fetches = [
        (
            node,
            FetchRequest(
                _PARTIAL_MAX_WAIT_MS if isinstance(node, _Apart) in partial else whole_max_wait_ms,
                fetcher._fetch_min_bytes,
                fetcher._fetch_max_bytes,
                fetcher._isolation_level,
                list(topics.items()),
                rack_id=fetcher._client_rack or "",
            ),
        )
        for node, topics in wanted.items()
        if node not in untaken
    ]
    wait_s = min(map(max, untaken.values())) if untaken else fetcher._fetcher_timeout
    return fetches, {}, wait_s, False, []


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What has been fetched and not yet taken, the urgent first: runs of records, unpacked as they are taken, and errors."""

    def __init__(self, fetcher: Any, urgent: Collection[str]) -> None:
        self._fetcher, self._urgent = fetcher, urgent
        super().__init__(fetcher._records)

    def __setitem__(self, tp: TopicPartition, fetched: Any) -> None:
        records = getattr(fetched, "_partition_records", None)
        if records is not None:
            records._consumer_record = _record
        super().__setitem__(tp, fetched)
        if tp.topic in self._urgent:
            for other in [known for known in self if known.topic not in self._urgent]:
                self.move_to_end(other)
        for waiter in self._fetcher._fetch_waiters:
            self._fetcher._notify(waiter)


def _record(tp: TopicPartition, found: Any) -> Record:
    return Record(
        tp.topic, tp.partition, found.offset, found.timestamp, found.key, found.value, tuple(found.headers)
    )
