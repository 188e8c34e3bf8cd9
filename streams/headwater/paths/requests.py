"""Path 3: a batch of requests -> wait for the demanded click -> interests -> recall -> answers.

A request that waits for its click never holds the partition: its batch stays uncommitted, later batches flow. Every
request whose id can be read gets an answer; the others go to the dead letters.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

import numpy as np
import structlog
from aiokafka import ConsumerRecord
from numpy.typing import NDArray

from headwater.encoder.features import ACTION_CODES, ACTION_NAMES, History, event_key, item_key
from headwater.encoder.runtime import Encoder
from headwater.errors import PartitionLost
from headwater.index import IndexUnavailable, filters
from headwater.index.item_vectors import ItemVectors
from headwater.kafka.batch import Batch
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.forwarding import redirect
from headwater.kafka.headers import (
    BadHeader,
    Headers,
    Origin,
    correlation_of,
    origin_of,
    reply_partition_of,
    reply_to_of,
)
from headwater.kafka.partitioner import partition_of
from headwater.kafka.publish import Outgoing, write_scattered
from headwater.kafka.topics import Topics
from headwater.messages import (
    BadMessage,
    Candidate,
    ErrorDetail,
    Reason,
    Reflects,
    Response,
    decode_request,
    encode,
    sender_of,
    shown,
)
from headwater.metrics import Metrics
from headwater.paths.parking import Held, ParkingLot, Unanswered
from headwater.profiles.actions import RETRACT, SEEN, STEPS
from headwater.profiles.columns import U64, Log
from headwater.profiles.interests import UserInterests, WhatIfEvents, interests_of
from headwater.profiles.store import Partition, Profiles
from headwater.recall.fusion import DEFAULT_WEIGHTS
from headwater.recall.pipeline import Answer, Ask, Recall
from headwater.recall.popularity import PopularItem
from headwater.recall.sources.buy_again import buy_again
from headwater.recall.sources.new_items import taken
from headwater.recall.sources.similar import Similar
from headwater.settings import Settings

log = structlog.get_logger(__name__)

# What is left to an answer after recall: fusing, encoding, writing.
_ANSWER_MS: Final = 20.0
# Of the time that is left: vectors that a state lacks may take no longer, so that recall has its own.
_FETCH_SHARE: Final = 0.3
_DAY_MS: Final = 86_400_000


class _Reply(NamedTuple):
    topic: str
    headers: Headers
    response: Response
    partition: int | None = None


class _Found(NamedTuple):
    """Candidates for one request, to be told as soon as what they rest on is stored."""

    held: Held
    user: UserInterests
    answer: Answer
    rung: str | None
    applied: int  # they rest on the partition's clicks up to here
    needed: int  # and the request demands them up to here


class RequestPath:
    """Answers request batches of the partitions whose clicks this worker applies."""

    def __init__(
        self,
        profiles: Profiles,
        vectors: ItemVectors,
        encoder: Encoder,
        threads: Executor,
        recall: Recall,
        producer: Producer,
        dead_letters: DeadLetters,
        metrics: Metrics,
        *,
        settings: Settings,
        topics: Topics,
        popular: Callable[[], Sequence[PopularItem]],
        catalog: Callable[[], Mapping[int, int]],
        is_index_ready: Callable[[], bool],
        guard: Callable[[asyncio.Future[None]], None],
    ) -> None:
        self._profiles, self._vectors, self._encoder, self._threads = profiles, vectors, encoder, threads
        self._recall, self._producer, self._dead_letters = recall, producer, dead_letters
        self._metrics, self._settings, self._topics = metrics, settings, topics
        self._popular, self._catalog, self._is_index_ready = popular, catalog, is_index_ready
        self._similar = Similar(encoder.neighbours) if encoder.neighbours else None
        self._lots: dict[int, ParkingLot] = {}
        self._stage = {
            name: metrics.request_stage_seconds.labels(name)
            for name in ("decode", "park", "read", "index", "publish")
        }
        graph = "read" if encoder.kind == "recurrent" else "window"
        self._read_seconds = metrics.encoder_seconds.labels(graph)
        self._batch_size = metrics.batch_size.labels("requests")
        self._strays = metrics.strays_total.labels(topics.requests)
        self._guard = guard
        self._delivering = 0  # answers on their way

    async def handle(self, batch: Batch) -> None:
        """Answer what can be answered now, park the rest, and let the next batch come.

        Raises:
            PartitionLost: the partition was revoked meanwhile; what is unanswered is answered by its new owner.
            StopWorker: the broker did not take the answers.
        """
        partition = self._profiles.partition(batch.partition)
        if partition is None:
            raise PartitionLost
        started = time.perf_counter()
        unanswered = Unanswered(batch, len(batch.records))
        ready: list[Held] = []
        replies: list[_Reply] = []
        letters: list[DeadLetter] = []
        strays: list[Outgoing] = []
        for record in batch.records:
            held = self._accept(record, partition, unanswered, replies, letters, strays)
            if held is None:
                continue
            if self._may_answer(held, partition):
                ready.append(held)
            elif self.parked >= self._settings.max_parked:
                message = f"after: {self.parked} requests wait already, expected at most {self._settings.max_parked}"
                replies.append(self._refusal(held, partition, "rejected", "overloaded", message))
            else:
                self._park(held, partition)
        self._stage["decode"].observe(time.perf_counter() - started)
        settled = len(replies) + len(letters) + len(strays)
        await self._dead_letters.put(letters)
        if strays:
            await write_scattered(self._producer, self._topics.requests, strays)
            self._strays.inc(len(strays))
        await self._send(replies)
        if settled:
            unanswered.answered(settled)
        partition.require(batch.generation)
        if ready:
            await self._answer(ready, partition, batch.release)
        batch.release()
        self._batch_size.observe(len(batch.records))

    @property
    def parked(self) -> int:
        return sum(len(lot) for lot in self._lots.values())

    def drop_parked(self) -> None:
        """A rebalance began: whoever owns the partitions next reads these requests again."""
        for lot in self._lots.values():
            lot.clear()
        self._lots.clear()
        self._metrics.parked_requests.set(0)

    # From record to request

    def _accept(
        self,
        record: ConsumerRecord,
        partition: Partition,
        unanswered: Unanswered,
        replies: list[_Reply],
        letters: list[DeadLetter],
        strays: list[Outgoing],
    ) -> Held | None:
        reply_topic, reply_headers = self._topics.responses, []
        correlation = correlation_of(record.headers)
        if correlation is not None:
            reply_headers = [correlation]
        reply_partition: int | None = None
        try:
            wanted = reply_partition_of(record.headers)
            if isinstance(wanted, BadHeader):
                raise BadMessage("bad_reply_partition", wanted.reason)
            if wanted is not None:
                reply_partition = wanted.partition
                reply_headers.append(wanted.header)  # tells the sender that this worker honours it
            request = decode_request(record.key, record.value, record.timestamp)
            where = filters.parse(request.filter) if request.filter else None
            reply_topic = self._reply_topic(record)
            if request.after is not None and request.after.partition >= self._settings.partitions:
                raise BadMessage(
                    "unknown_partition",
                    f"after.partition: got {request.after.partition}, expected 0 to {self._settings.partitions - 1}",
                )
        except (BadMessage, filters.FilterError) as error:
            reason = error.reason if isinstance(error, BadMessage) else "bad_filter"
            sender = sender_of(record.value)
            if sender is None:
                letters.append(DeadLetter(record, reason, str(error)))
            else:
                detail = ErrorDetail(reason, str(error))
                response = Response(*sender, "rejected", detail, model=self._encoder.id)
                replies.append(_Reply(reply_topic, reply_headers, response, reply_partition))
            return None
        user = request.user_id.encode()
        if user not in partition.columns.rows:
            home = partition_of(user, self._settings.partitions)
            if home != partition.number:
                match redirect(record, user, home):
                    case DeadLetter() as letter:
                        letters.append(letter)
                    case stray:
                        strays.append(stray)
                return None
        origin = origin_of(record.headers)
        asked_ms = origin.timestamp_ms if isinstance(origin, Origin) else record.timestamp
        event_id = request.after_event_id
        event = None if event_id is None else event_key(event_id)
        return Held(
            request, user, where, reply_topic, reply_headers, asked_ms, unanswered, event, reply_partition
        )

    def _reply_topic(self, record: ConsumerRecord) -> str:
        asked = reply_to_of(record.headers)
        if asked is None:
            return self._topics.responses
        if isinstance(asked, BadHeader):
            raise BadMessage("reply_topic_not_allowed", asked.reason)
        allowed = (self._topics.responses, *self._settings.reply_topics)
        if asked.topic not in allowed:
            raise BadMessage(
                "reply_topic_not_allowed",
                f"header {asked.name}: got {shown(asked.topic)}, expected one of {', '.join(allowed)} "
                "(HEADWATER_REPLY_TOPICS)",
            )
        return asked.topic

    # Waiting for the demanded click

    def _may_answer(self, held: Held, partition: Partition) -> bool:
        after = held.request.after
        if after is None and held.event is None:
            return True
        if not partition.gate.is_open:
            return False
        if after is not None and after.partition == partition.number:
            return partition.applied >= after.offset
        row = partition.columns.rows.get(held.user)
        if row is not None and partition.columns.offset[row] > partition.applied:
            return False  # what it has of the user is not on its way to the changelog yet
        if after is None:
            return self._has_come(held, partition)
        if row is None:
            return False
        return partition.columns.strays.get(row, {}).get(after.partition, -1) >= after.offset

    def _has_come(self, held: Held, partition: Partition) -> bool:
        """Whether the event that it waits for by its id has been looked at."""
        return held.event is not None and partition.gate.is_open and partition.has_seen(held.user, held.event)

    def _park(self, held: Held, partition: Partition) -> None:
        lot = self._lots.get(partition.number)
        if lot is None:
            lot = self._lots[partition.number] = ParkingLot()
            if self._wake not in partition.listeners:
                partition.listeners.append(self._wake)
        lot.add(held, partition.number, self._has_come(held, partition))
        delay_s = max(held.left_ms, 0.0) / 1000.0
        held.timer = asyncio.get_running_loop().call_later(delay_s, self._expire, held, partition)
        self._metrics.parked_requests.set(self.parked)

    def _wake(self, partition: Partition, events: U64 | None) -> None:
        lot = self._lots.get(partition.number)
        if lot and partition.gate.is_open:
            arrived = lot.take(
                partition.applied,
                lambda held: self._may_answer(held, partition),
                lambda held: self._has_come(held, partition),
                events,
            )
            self._leave(arrived, partition)

    def _expire(self, held: Held, partition: Partition) -> None:
        lot = self._lots.get(partition.number)
        if lot is not None and lot.remove(held):
            held.expired = True
            self._leave([held], partition)

    def _leave(self, held: list[Held], partition: Partition) -> None:
        if not held:
            return
        now_ms = time.time() * 1000.0
        for each in held:
            if each.timer is not None:
                each.timer.cancel()
            each.timings["park"] = now_ms - each.asked_ms
            self._stage["park"].observe(max(each.timings["park"], 0.0) / 1000.0)
        self._metrics.parked_requests.set(self.parked)
        self._guard(asyncio.ensure_future(self._answer(held, partition)))

    # From request to answer

    async def _answer(
        self, held: list[Held], partition: Partition, release: Callable[[], None] = lambda: None
    ) -> None:
        """Answer all of ``held``; where our own code fails, halve until the culprit stands alone.

        Others need not wait until the answers are acknowledged: ``release`` lets them come as soon as there are some, unless
        very many are on their way, as to a broker that takes nothing.
        """
        if len(held) > 1 and len(groups := _by_haste(held)) > 1:
            await asyncio.gather(*(self._answer(group, partition, release) for group in groups))
            return
        try:
            late, found = await self._find(held, partition)
        except Exception as error:
            if len(held) > 1:
                middle = len(held) // 2
                await self._answer(held[:middle], partition, release)
                await self._answer(held[middle:], partition, release)
                return
            log.exception("request_failed", partition=partition.number)
            message = f"this request made the worker fail ({type(error).__name__}); it is in its log"
            reply = self._refusal(held[0], partition, "rejected", "internal_error", message)
            await self._deliver([(held[0], reply)])
            return
        if self._delivering < self._settings.max_parked:
            release()
        await self._deliver([(each, self._expired(each, partition)) for each in late])
        if waiting := await self._tell(found, partition):
            # They hold up neither the others nor the next batch.
            self._guard(asyncio.ensure_future(self._tell_when_stored(waiting, partition)))

    async def _tell(self, found: Sequence[_Found], partition: Partition) -> list[_Found]:
        """Answer with what was found, where what it rests on is stored; returns the others.

        It rests on clicks that may still be on their way to the changelog. Who asked for them hears nothing of it before.
        """
        settled: list[tuple[Held, _Reply]] = []
        waiting: list[_Found] = []
        for each in found:
            stored = min(partition.watermark, each.applied)
            if each.needed <= stored:
                reflects = _reflects(partition.number, stored, each.user)
                settled.append((each.held, self._reply(each.held, each.answer, reflects, each.rung)))
            elif each.held.left_ms > 0:
                waiting.append(each)
            else:
                settled.append((each.held, self._expired(each.held, partition)))
        await self._deliver(settled)
        return waiting

    async def _tell_when_stored(self, waiting: Sequence[_Found], partition: Partition) -> None:
        while waiting:
            least = min(each.needed for each in waiting)
            soonest_ms = min(each.held.left_ms for each in waiting)
            try:
                await partition.reached(least, soonest_ms / 1000.0)
            except PartitionLost:
                return  # their new owner reads them again
            waiting = await self._tell(waiting, partition)

    async def _deliver(self, replies: Sequence[tuple[Held, _Reply]]) -> None:
        if not replies:
            return
        self._delivering += len(replies)
        try:
            await self._send([reply for _, reply in replies])
        finally:
            self._delivering -= len(replies)
        now_ms = time.time() * 1000.0
        for held, _ in replies:
            self._metrics.request_seconds.observe(max(now_ms - held.asked_ms, 0.0) / 1000.0)
            held.unanswered.answered()

    async def _find(self, held: list[Held], partition: Partition) -> tuple[list[Held], list[_Found]]:
        """Candidates for those whose time is not over, and the others."""
        live: list[Held] = []
        late: list[Held] = []
        # The clock is asked once: a request that falls between two looks would go unanswered.
        for each in held:
            (live if each.left_ms > 0 else late).append(each)
        is_open = partition.gate.is_open
        # Read before the states: they may be newer than what the answer claims, never older.
        applied = partition.applied if is_open else -1
        # Where the demanded click is gone again there was a rebalance, and the next owner reads the request again; or a later
        # batch of the user has been applied meanwhile that is not on its way to the changelog yet.
        early = [each for each in live if not self._may_answer(each, partition)]
        live = [each for each in live if each not in early]
        if partition.is_serving():
            for each in early:
                self._park(each, partition)
        if not live:
            return late, []
        started = time.perf_counter()
        users, fetched = await self._interests(live, partition, is_open)
        read_s = time.perf_counter() - started
        self._stage["read"].observe(read_s)
        self._read_seconds.observe(read_s)
        needed = [_needed(each, applied, partition) for each in live]
        if max(needed) > partition.watermark:
            # What they demand is mostly acknowledged by now. Whoever hears of it goes first: an answer that is found before
            # that has to wait for the loop once more.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        texts = await self._text_vectors(live)
        asks = [self._ask(each, user, text) for each, user, text in zip(live, users, texts, strict=True)]
        left_ms = min(each.left_ms for each in live)
        started = time.perf_counter()
        answers = await self._recall.candidates(
            asks, self._popular(), max(left_ms - _ANSWER_MS, 0.6 * left_ms) / 1000.0
        )
        index_s = time.perf_counter() - started
        self._stage["index"].observe(index_s)
        restoring = "restoring" if not is_open or not self._is_index_ready() else None
        for each in live:
            each.timings |= {"read": read_s * 1000.0, "recall": index_s * 1000.0}
        return late, [
            _Found(
                each,
                user,
                answer,
                answer.rung
                or restoring
                or (None if fetched else self._lacking(each, user))
                or self._without_table(each),
                applied,
                least,
            )
            for each, user, answer, least in zip(live, users, answers, needed, strict=True)
        ]

    async def _interests(
        self, held: Sequence[Held], partition: Partition, is_open: bool
    ) -> tuple[list[UserInterests], bool]:
        """And whether the vectors that they lack were fetched, those that there are."""
        # While the partition is being read nothing of it is shown: half a state would be a wrong answer.
        users = [each.user if is_open else b"" for each in held]
        now_ms = np.array([each.request.at_ms or int(each.asked_ms) for each in held], dtype=np.int64)
        sessions = [
            WhatIfEvents(
                [item_key(event.item_id) for event in each.request.session],
                [ACTION_CODES[event.action] for event in each.request.session],
                [event.at_ms or int(now) for event in each.request.session],
            )
            for each, now in zip(held, now_ms, strict=True)
        ]

        async def read(sessions: Sequence[WhatIfEvents], fetch_s: float) -> list[UserInterests]:
            return await interests_of(
                partition.columns,
                users,
                sessions,
                now_ms,
                self._vectors,
                self._encoder,
                self._threads,
                fetch_s=fetch_s,
            )

        left_ms = min(each.left_ms for each in held)
        try:
            return await read(sessions, max(_FETCH_SHARE * left_ms, 1.0) / 1000.0), True
        except (IndexUnavailable, TimeoutError):
            # Answer from the states as they are, and from those events of a session that have a vector here.
            return await read(sessions, 0.0), False

    def _lacking(self, held: Held, user: UserInterests) -> str | None:
        """The rung of an answer for which no vectors could be fetched, where it has missed any."""
        session = (item_key(event.item_id) for event in held.request.session)
        return "stored" if user.pending or any(key not in self._vectors for key in session) else None

    def _without_table(self, held: Held) -> str | None:
        """The rung of an answer that was to come from a table which the bundle does not have."""
        asked = held.request.sources.get("similar", 0) > 0
        return "no-similar" if asked and self._similar is None else None

    async def _text_vectors(self, held: Sequence[Held]) -> list[NDArray[np.float32] | None]:
        asked = [index for index, each in enumerate(held) if each.request.query.strip()]
        vectors: list[NDArray[np.float32] | None] = [None] * len(held)
        if asked and self._encoder.item_inputs == "text":
            texts = [held[index].request.query for index in asked]
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(self._threads, self._encoder.encode_items, texts)
            for index, vector in zip(asked, encoded, strict=True):
                vectors[index] = vector
        return vectors

    def _ask(self, held: Held, user: UserInterests, text: NDArray[np.float32] | None) -> Ask:
        request = held.request
        now_ms = request.at_ms or int(held.asked_ms)
        entries = _entries(user.log)
        session = [
            (item_key(event.item_id), event.at_ms or now_ms, ACTION_CODES[event.action])
            for event in request.session
        ]
        exclude = {item_key(item_id) for item_id in request.exclude}
        sources = {str(name): weight for name, weight in request.sources.items()}
        weights = sources or DEFAULT_WEIGHTS
        unwanted = {key for key, _, action in entries if SEEN[action] and not STEPS[action]}
        wishes = [wish for wish in (*entries, *session) if STEPS[wish[2]]]
        again: dict[int, float] = {}
        if request.exclude_seen:
            exclude.update(key for key, _, _ in session)
            exclude.update(key for key, _, action in entries if SEEN[action])
            exclude.update(key for key, _ in user.counters)
        elif weights.get("buy-again", 0) > 0:
            again = buy_again(((key, at_ms) for key, at_ms, _ in wishes), now_ms, user.counters)
        events = [
            (key, at_ms, ACTION_NAMES[action])
            for key, at_ms, action in (entries if request.explain else ())
            if STEPS[action]
        ]
        liked = [wish for wish in wishes if wish[0] not in unwanted]
        in_hand = None
        if self._similar is not None and weights.get("similar", 0) > 0:
            in_hand = self._similar.session(liked, now_ms)
        similar = in_hand.ranked() if in_hand else {}
        return Ask(
            limit=request.limit,
            interests=user.interests,
            weights=user.weights,
            query=text,
            where=held.where,
            exclude=frozenset(exclude),
            diversity=request.diversity,
            sources=sources,
            events=events,
            again=[key for key in again if key not in exclude and key not in unwanted],
            similar=[key for key in similar if key not in exclude and key not in unwanted],
            history=self._history(wishes, now_ms, again, similar) if self._encoder.pool else None,
            pool=self._encoder.pool,
            behind=in_hand.behind if request.explain and in_hand else None,
            taken=taken(liked, now_ms) if weights.get("new", 0) > 0 else (),
            new_since_ms=now_ms - int(self._settings.new_days * _DAY_MS),
        )

    def _history(
        self,
        wishes: Sequence[tuple[int, int, int]],
        now_ms: int,
        again: Mapping[int, float],
        similar: Mapping[int, float],
    ) -> History:
        """The newest L wishes, and what sources make of all of them."""
        length = self._encoder.log_length
        newest = wishes[-length:]
        return History(
            np.array([key for key, _, _ in newest], dtype=np.uint64),
            np.array([at_ms for _, at_ms, _ in newest], dtype=np.int64),
            now_ms,
            length,
            again,
            similar,
        )

    def _reply(self, held: Held, answer: Answer, reflects: Reflects, rung: str | None) -> _Reply:
        request = held.request
        items = [
            Candidate(
                item.item_id,
                round(item.score, 6),
                item.source,
                [
                    Reason(share.event.item_id, share.event.at_ms, share.event.action, round(share.share, 4))
                    for share in because
                ],
            )
            for item, because in zip(answer.items, answer.because, strict=True)
        ]
        held.timings["total"] = time.time() * 1000.0 - held.asked_ms
        response = Response(
            request.request_id,
            request.user_id,
            "ok" if rung is None else "degraded",
            rung=rung,
            items=items,
            reflects=reflects,
            model=self._encoder.id,
            catalog=dict(self._catalog()),
            timings_ms={name: round(ms, 3) for name, ms in held.timings.items()},
        )
        if rung is not None:
            self._metrics.index_fallbacks_total.labels(rung).inc()
        return _Reply(held.reply_topic, held.reply_headers, response, held.reply_partition)

    def _expired(self, held: Held, partition: Partition) -> _Reply:
        return self._refusal(held, partition, "expired", "deadline", _late(held, partition))

    def _refusal(self, held: Held, partition: Partition, status: str, code: str, message: str) -> _Reply:
        request = held.request
        response = Response(
            request.request_id,
            request.user_id,
            "expired" if status == "expired" else "rejected",
            ErrorDetail(code, message),
            reflects=Reflects(partition.number, partition.watermark),
            model=self._encoder.id,
        )
        return _Reply(held.reply_topic, held.reply_headers, response, held.reply_partition)

    async def _send(self, replies: Sequence[_Reply]) -> None:
        started = time.perf_counter()
        for topic in {reply.topic for reply in replies}:
            mine = [reply for reply in replies if reply.topic == topic]
            await write_scattered(
                self._producer,
                topic,
                (
                    Outgoing(
                        reply.response.user_id.encode() or None,
                        encode(reply.response),
                        reply.headers,
                        partition=reply.partition,
                    )
                    for reply in mine
                ),
            )
        for reply in replies:
            self._metrics.requests_total.labels(reply.response.status).inc()
        if replies:
            self._stage["publish"].observe(time.perf_counter() - started)


def _by_haste(held: Sequence[Held]) -> list[list[Held]]:
    """Those that have about as much time left, to within twice.

    What is asked of the index for several at once may take no longer than the most impatient of them allows.
    """
    groups: dict[int, list[Held]] = {}
    for each in held:
        groups.setdefault(int(max(each.left_ms, 0.0)).bit_length(), []).append(each)
    return list(groups.values())


def _entries(log_: Log | None) -> list[tuple[int, int, int]]:
    """(item key, time, action) of a one-user log."""
    if log_ is None:
        return []
    n = int(log_.n[0])
    return list(
        zip(log_.item[0, :n].tolist(), log_.at_ms[0, :n].tolist(), log_.action[0, :n].tolist(), strict=True)
    )


def _reflects(partition: int, watermark: int, user: UserInterests) -> Reflects:
    entries = [entry for entry in _entries(user.log) if entry[2] != RETRACT]
    last_id = user.last_event.decode() or None
    return Reflects(
        partition=partition,
        offset=watermark,
        events=len(entries),
        pending=user.pending,
        last_event_id=last_id,
        last_event_at_ms=entries[-1][1] if entries else None,
    )


def _needed(held: Held, applied: int, partition: Partition) -> int:
    """What of this partition has to be stored before ``held`` may be answered from what is ``applied``."""
    after = held.request.after
    if after is None and held.event is None:
        return -1
    # An event's id, or a stray's own coordinates, say nothing of this partition; the click is among what is applied.
    return after.offset if after is not None and after.partition == partition.number else applied


def _late(held: Held, partition: Partition) -> str:
    after = held.request.after
    if held.event is not None:
        return (
            f"after_event_id: {shown(held.request.after_event_id)} was not applied within "
            f"{held.request.deadline_ms} ms"
        )
    if after is None:
        return f"deadline_ms: {held.request.deadline_ms} ms were over before the request was read"
    return (
        f"after: offset {after.offset} of partition {after.partition} was not applied within "
        f"{held.request.deadline_ms} ms; partition {partition.number} is at {partition.watermark}"
    )
