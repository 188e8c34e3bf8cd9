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

*Apart*: a stream of clicks is fetched as soon as the last few have been begun, so a worker that handles them fast fetches
oftener, and pays what any fetch and any batch cost for a handful of records each. At 2,000 clicks a second its loop was busy for nine
tenths of the time, and requests waited behind it. So where the loop is busy the next fetch of what is not urgent waits a little.

*At once*: from an answer of the broker to whoever waits for records are four turns of the loop, each of them behind all
that is ready by then: on an idle machine half a millisecond of every click and of every request. So whoever wants can be
called in the turn after an answer has come, and takes it without waiting.

*Afterwards*: the next fetch is planned by a task that waits for all others: half a millisecond on an idle machine, in which a
click could be on its way to the changelog, and a request to its answer. So it is planned where the last one has ended, and once
those who handle that have had their turns.

*Records*: aiokafka takes 1 us to make one, of which half are fields that nobody here asks for, and much of the rest the way
from one record to the next. They keep the interpreter from the work beside, and each click is one. So they are made a
batch at a time.
"""

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Iterator
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, FetchError, FetchResult
from aiokafka.errors import ConsumerStoppedError, CorruptRecordException
from aiokafka.protocol.fetch import FetchRequest
from msgspec import Struct

from headwater.kafka.fast_client.fetch_codec import Fetch
from headwater.kafka.fast_client.frames import handle_at_once

# Below what any held fetch takes on Kafka, far above what one takes on a broker that does not wait.
_AT_ONCE_S: Final = 0.005
# Adds half of it to a record's way on such a broker; an idle client costs 2 % of a core.
_PAUSE_S: Final = 0.01
# So long may records wait to be taken before the other partitions are asked for without theirs.
_TAKEN_WITHIN_S: Final = 0.002
_PARTIAL_MAX_WAIT_MS: Final = 10
# Of the loop's time from one small fetch to the next. What comes seldom is not held up: that share is never reached.
_BUSY_SHARE: Final = 0.4
_MOST_APART_S: Final = 0.03
# With more records a fetch is worth what it costs, and behind a backlog nothing is to be waited for.
_FEW: Final = 500
# A click or a request is mostly done with in so many turns of the loop, and on an idle machine in that time.
_TURNS: Final = 10
_TURNS_S: Final = 0.008
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
    """aiokafka's consumer, in all but that. Topics named ``urgent`` are fetched apart from the others.

    With ``on_news`` somebody is called as soon as a fetch has brought something, and has to take it by :meth:`taken`.
    Errors, also its own, and what was left there, are told by :meth:`news`.
    """

    def __init__(self, *topics: str, urgent: Collection[str] = (), **options: Any) -> None:
        super().__init__(*topics, **options)
        self._urgent = frozenset(urgent)
        self.on_news: Callable[[], int] | None = None  # how many records were taken
        self.failure: Exception | None = None  # of `on_news`
        self._brought_by: Any = None  # the node whose fetch it is called for

    async def start(self) -> None:
        await super().start()
        fetcher: Any = self._fetcher
        fetcher._client = _Connections(fetcher._client)
        _ask_quickly(fetcher)
        _pause_between_empty_fetches(fetcher)
        _plan_quickly(fetcher, self._urgent)
        fetcher._records = _Fetched(self, fetcher, self._urgent)
        _tell_at_once(self, fetcher)

    def taken(self, of: Container[TopicPartition], most: int) -> dict[TopicPartition, list[Record]]:
        """What has been fetched of these partitions, the urgent first, at most so many records in all."""
        fetcher: Any = self._fetcher
        found: dict[TopicPartition, list[Record]] = {}
        if self._subscription.reassignment_in_progress:
            return found
        with self._subscription.fetch_context():  # by which aiokafka sees that somebody still asks
            for tp, fetched in list(fetcher._records.items()):
                if most <= 0:
                    break
                if tp not in of or not isinstance(fetched, FetchResult):
                    continue
                try:
                    records = _some(fetched, most)
                except Exception as error:  # noqa: BLE001 - a damaged batch, an unknown codec: `news` raises it
                    del fetcher._records[tp]
                    fetcher._set_error(tp, error)
                    continue
                if not fetched.has_more():
                    del fetcher._records[tp]
                    if self._brought_by is None or self._brought_by != _node_of(fetcher, tp, self._urgent):
                        fetcher._notify(fetcher._wait_consume_future)
                if records:
                    found[tp] = records
                    most -= len(records)
        return found

    async def news(self, timeout_s: float) -> None:
        """Wait until a fetch has brought what was not taken at once, at most so long.

        Raises:
            KafkaError: that is what it was. Or whatever kept :meth:`taken` from unpacking it.
            ConsumerStoppedError: there will be none.
        """
        fetcher: Any = self._fetcher
        if self._closed or fetcher._closed:
            raise ConsumerStoppedError
        if self.failure is not None:
            raise self.failure
        for tp, fetched in list(fetcher._records.items()):
            if isinstance(fetched, FetchError):
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
                fetched.check_raise()
        waiter = fetcher._create_fetch_waiter()
        await asyncio.wait([waiter], timeout=timeout_s)
        if waiter.done():
            waiter.result()
        else:
            waiter.cancel()


class _Apart(NamedTuple):
    """A broker, as the urgent topics know it: what is on its way to it for others is no reason to wait."""

    node: int


class _Connections:
    """A client that asks for urgent topics over a connection of their own: a broker answers one fetch of each at a time."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def send(self, node: Any, request: Any) -> Any:
        number, group = node, ConnectionGroup.DEFAULT
        if isinstance(node, _Apart):
            number, group = node.node, _URGENT_CONNECTION
        handle_at_once(self._client._conns.get((number, group)))
        return await self._client.send(number, request, group=group)

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
            await _sleep(_PAUSE_S)
        return has_news

    fetcher._proc_fetch_request = paced


async def _sleep(pause_s: float) -> None:
    # The fetcher cancels its fetches when it closes, and expects them to end well.
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(pause_s)


class _Pace:
    """How long the next fetch is to wait, so that small ones take no more than a share of the loop's time."""

    def __init__(
        self,
        now_s: Callable[[], float] = time.monotonic,
        worked_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._now_s, self._worked_s = now_s, worked_s
        self._at_s, self._worked_by_then_s = now_s(), worked_s()

    def pause_s(self, records: int) -> float:
        """After a fetch that brought so many records."""
        at_s, worked_s = self._now_s(), self._worked_s()
        took_s, busy_s = at_s - self._at_s, worked_s - self._worked_by_then_s
        self._at_s, self._worked_by_then_s = at_s, worked_s
        if records > _FEW:
            return 0.0
        return min(max(busy_s / _BUSY_SHARE - took_s, 0.0), _MOST_APART_S)


def _tell_at_once(consumer: Consumer, fetcher: Any) -> None:
    fetch, most_wait_ms = fetcher._proc_fetch_request, fetcher._fetch_max_wait_ms
    pace = _Pace()

    async def telling(assignment: Any, node: Any, request: Any) -> bool:
        while await fetch(assignment, node, request):
            if consumer.on_news is None:
                return True
            consumer._brought_by = node
            try:
                taken = consumer.on_news()
            except Exception as error:  # noqa: BLE001 - it would end all fetching in silence; `news` raises it
                consumer.failure = error
                return True
            finally:
                consumer._brought_by = None
            is_urgent = isinstance(node, _Apart)
            if any((tp.topic in consumer._urgent) == is_urgent for tp in fetcher._records):
                return True
            # What was taken is no news to others, and by aiokafka's way no request would be seen for five turns of the loop:
            # beside a backlog, ten milliseconds each.
            if consumer._urgent and not is_urgent and (pause_s := pace.pause_s(taken)):
                await _sleep(pause_s)
            await _after_others()
            request = following(assignment, node)
            if request is None:
                return False
        return False

    def following(assignment: Any, node: Any) -> Any:
        task = asyncio.current_task()
        if (task is not None and task.cancelling()) or not assignment.active:
            return None
        plan = _plan(fetcher, assignment, consumer._urgent, most_wait_ms, (), node)
        return dict(plan[0]).get(node) if plan is not None else None

    fetcher._proc_fetch_request = telling


async def _after_others() -> None:
    """Give those who handle what has just come their turns, unless the loop has so much to do that this takes long."""
    started = time.monotonic()
    for _ in range(_TURNS):
        await _sleep(0)
        if time.monotonic() - started > _TURNS_S:
            return


def _plan_quickly(fetcher: Any, urgent: Collection[str]) -> None:
    fetcher._prefetch_backoff = _TAKEN_WITHIN_S
    theirs, whole_max_wait_ms = fetcher._get_actions_per_node, fetcher._fetch_max_wait_ms

    def planned(assignment: Any) -> Any:
        plan = _plan(fetcher, assignment, urgent, whole_max_wait_ms, fetcher._in_flight)
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


def _node_of(fetcher: Any, tp: TopicPartition, urgent: Collection[str]) -> Any:
    """Whom its records are asked for; None: nobody knows."""
    leader = fetcher._client.cluster.leader_for_partition(tp)
    if leader is None or leader == -1:
        return None
    return _Apart(leader) if tp.topic in urgent else leader


def _plan(
    fetcher: Any,
    assignment: Any,
    urgent: Collection[str],
    whole_max_wait_ms: int,
    in_flight: Collection[Any],
    only: Any = None,
) -> Any:
    """What aiokafka plans for each half, urgent and not, where all that there is to do is to fetch; in a third of its time.
    Or what it does for ``only`` one of them.

    None otherwise: then aiokafka asks for both halves at once, and while that lasts the urgent one may be asked for again here.
    That costs a fetch, no more: what does not begin at a partition's position is left alone.
    """
    if fetcher._preferred_read_replica:
        return None
    state_of = assignment.state_value
    records, most_bytes = fetcher._records, fetcher._max_partition_fetch_bytes
    wanted: dict[int | _Apart, dict[str, list[tuple[int, int, int]]]] = {}
    untaken: dict[int | _Apart, list[float]] = {}
    partial = {tp.topic in urgent for tp in records}
    tps = list(assignment.tps)
    random.shuffle(tps)  # where an answer has no room for all, each is among the first of some
    for tp in tps:
        node, state = _node_of(fetcher, tp, urgent), state_of(tp)
        if node is None or not state.has_valid_position or state.paused:
            return None
        if only is not None and node != only:
            continue
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

    def __init__(self, consumer: Consumer, fetcher: Any, urgent: Collection[str]) -> None:
        self._consumer, self._fetcher, self._urgent = consumer, fetcher, urgent
        super().__init__(fetcher._records)

    def __setitem__(self, tp: TopicPartition, fetched: Any) -> None:
        theirs = getattr(fetched, "_partition_records", None)
        if theirs is not None and theirs._isolation_level == READ_UNCOMMITTED:
            fetched._partition_records = _Records(theirs)
        super().__setitem__(tp, fetched)
        if tp.topic in self._urgent:
            for other in [known for known in self if known.topic not in self._urgent]:
                self.move_to_end(other)
        if self._consumer.on_news is None or isinstance(fetched, FetchError):
            for waiter in self._fetcher._fetch_waiters:
                self._fetcher._notify(waiter)


class _Records(Iterator[Record]):
    """What a fetch brought of a partition, in place of aiokafka's: the same records, made a batch of them at a time.

    Raises CorruptRecordException where a batch's checksum is another one.
    """

    def __init__(self, theirs: Any) -> None:
        self._tp, self._batches, self._check_crcs = theirs._tp, theirs._records, theirs._check_crcs
        self.next_fetch_offset: int = theirs.next_fetch_offset
        self._made: list[Record] = []
        self._first = 0  # of those made that is not taken yet
        self._has_failed = False
        self._end: int = self.next_fetch_offset  # where those end

    def __next__(self) -> Record:
        if self._first == len(self._made) and not self._has_more():
            raise StopIteration
        record = self._made[self._first]
        self._went_to(self._first + 1)
        return record

    def some(self, most: int) -> list[Record]:
        """The next ones, at most so many; none: there are no more."""
        if self._first == len(self._made) and not self._has_more():
            return []
        records = self._made[self._first : self._first + most]
        self._went_to(self._first + len(records))
        return records

    def _went_to(self, first: int) -> None:
        self._first = first
        self.next_fetch_offset = self._made[first].offset if first < len(self._made) else self._end

    def _has_more(self) -> bool:
        while self._first == len(self._made):
            self.next_fetch_offset = self._end
            if self._has_failed or not self._batches.has_next():
                return False
            self._has_failed = True  # what comes after a damaged batch is fetched again with it
            self._make()
            self._has_failed = False
        return True

    def _make(self) -> None:
        batch = self._batches.next_batch()
        if self._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"Invalid CRC - {self._tp}")
        self._made, self._first, self._end = [], 0, batch.next_offset
        if batch.is_control_batch:
            return
        topic, partition = self._tp
        made = [
            Record(topic, partition, each.offset, each.timestamp, each.key, each.value, tuple(each.headers))
            for each in batch
        ]
        # A compressed batch is told from its begin.
        asked = self.next_fetch_offset
        self._made = made if not made or made[0].offset >= asked else [r for r in made if r.offset >= asked]


def _some(fetched: FetchResult, most: int) -> list[Record]:
    """As `FetchResult.getall`, of batches."""
    if not isinstance(fetched._partition_records, _Records):
        return list(fetched.getall(most))
    if not fetched.check_assignment(fetched._topic_partition):
        return []
    records: list[Record] = []
    while len(records) < most:
        more = fetched._partition_records.some(most - len(records))
        if not more:
            fetched._update_position()
            fetched._partition_records = None
            return records
        records = records + more if records else more
    fetched._update_position()
    return records
