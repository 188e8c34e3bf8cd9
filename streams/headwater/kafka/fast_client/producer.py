"""aiokafka's producer without the turns of the event loop that its sender takes.

aiokafka's sender is a task that waits for several others at once. Three turns of the loop pass from `send` to the
write, and five from the acknowledgement to the task that waits for it. Here it is one turn to the write, so that
records sent in one turn still share a request, or none by :meth:`Producer.write_now`, and one from the
acknowledgement. Connecting, retries and errors are left to aiokafka.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError, RequestTimedOutError
from aiokafka.producer.sender import Sender, SendProduceReqHandler

from headwater.kafka.fast_client.eager_frames import parse_eagerly

log = logging.getLogger(__name__)


class Producer(AIOKafkaProducer):  # type: ignore[misc]
    """Everything that aiokafka's producer is, without transactions.

    With ``enable_idempotence`` the broker drops a copy of a write that comes late. A write that is refused, or given up,
    then leaves a hole that no later write to its partition gets past: the caller has to end.

    Raises ValueError where a ``transactional_id`` is given.
    """

    def __init__(self, **options: Any) -> None:
        if options.get("transactional_id"):
            raise ValueError("got a transactional_id: expected none")
        super().__init__(**options)
        theirs: Any = vars(self)["_sender"]
        self._sender = _FastSender(
            theirs.client,
            acks=theirs._acks,
            txn_manager=theirs._txn_manager,
            message_accumulator=theirs._message_accumulator,
            retry_backoff_ms=theirs._retry_backoff * 1000,
            request_timeout_ms=theirs._request_timeout_ms,
        )

    def write_now(self) -> None:
        """Write what was sent in this turn of the loop, before other callbacks run.

        A broker with a request in flight is left alone: it gets the rest with its answer.
        """
        self._sender.send_ready()


def set_delivery_timeout(producer: AIOKafkaProducer, timeout_s: float) -> None:
    """How long a record is retried while its broker is away: Java's ``delivery.timeout.ms``.

    In aiokafka a record waits, and lives, only as long as one request may take.
    """
    producer._request_timeout_ms = int(timeout_s * 1000)
    producer._message_accumulator._batch_ttl = timeout_s


class _FastSender(Sender):  # type: ignore[misc]
    """One request in flight per broker, as in aiokafka, so that the records of a partition keep their order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._retrying: set[asyncio.Task[None]] = set()

    async def _sender_routine(self) -> None:
        try:
            while True:
                await self._message_accumulator.waiter()
                while self.send_ready():
                    await self.client.force_metadata_update()
        except asyncio.CancelledError:
            await asyncio.gather(*self._retrying, return_exceptions=True)

    def send_ready(self) -> bool:
        """Write what waits for brokers without a request in flight; whether records without a leader are left."""
        ready, is_leaderless = self._message_accumulator.drain_by_nodes(
            ignore_nodes=self._in_flight, muted_partitions=self._muted_partitions
        )
        for node, batches in ready.items():
            self._in_flight.add(node)
            self._muted_partitions.update(batches)
            self._write(node, _Handler(self, batches))
        return bool(is_leaderless)

    def _write(self, node: int, handler: Any) -> None:
        connection = self.client._conns.get((node, handler.group))
        if connection is not None and connection.connected():
            with contextlib.suppress(KafkaError):
                parse_eagerly(connection)
                # The coroutine would wait for the response, two turns longer. Its future is replaced by ours.
                connection.send(handler.create_request()).close()
                response = _SyncFuture()
                connection._requests[-1] = (*connection._requests[-1][:2], response)
                timer = asyncio.get_running_loop().call_later(
                    connection._request_timeout, _time_out, connection, response
                )
                response.then = partial(self._on_response, node, handler, timer)
                return
        self._hand_to_aiokafka(node, handler)

    def _on_response(self, node: int, handler: Any, timer: asyncio.TimerHandle, response: Any) -> None:
        timer.cancel()
        try:
            if response.exception() is None and _is_success(response.result()):
                handler.handle_response(response.result())
                self._release_node(node, handler)
            else:
                handler._client = _AlreadySentClient(self.client, response)
                self._hand_to_aiokafka(node, handler)
        except Exception as error:
            log.exception("producer_failed", extra={"node": node})
            # As aiokafka's routine does, so that nobody waits for ever.
            self._message_accumulator.fail_all(error)

    def _hand_to_aiokafka(self, node: int, handler: Any) -> None:
        """Have aiokafka's handler connect, retry and give up."""

        async def do() -> None:
            await handler.do(node)
            self._release_node(node, handler)

        task = asyncio.create_task(do())
        self._retrying.add(task)
        task.add_done_callback(self._retrying.discard)
        task.add_done_callback(self._fail_all)

    def _release_node(self, node: int, handler: Any) -> None:
        self._in_flight.discard(node)
        self._muted_partitions.difference_update(handler._batches)
        if self._message_accumulator._batches:
            self.send_ready()  # wakes the routine too, for records without a leader


class _Handler(SendProduceReqHandler):  # type: ignore[misc]
    """aiokafka's, which would retry an idempotent write for as long as its broker is away, and never close."""

    def _can_retry(self, error: KafkaError, batch: Any) -> bool:
        return bool(error.retriable and not batch.expired())


class _SyncFuture(asyncio.Future[Any]):
    """Calls ``then`` in the turn of the loop in which it is resolved, not one later."""

    # Takes the future as an argument, as any callback does. One that held it would make a cycle for the collector.
    then: Callable[[asyncio.Future[Any]], None]

    def set_result(self, result: Any, /) -> None:
        super().set_result(result)
        self.then(self)

    def set_exception(self, exception: type | BaseException, /) -> None:
        super().set_exception(exception)
        self.then(self)


class _AlreadySentClient:
    """A client for aiokafka's handler whose request has been sent, and which gives its response."""

    def __init__(self, client: Any, response: "asyncio.Future[Any]") -> None:
        self._client, self._response = client, response

    async def send(self, _node: int, _request: Any) -> Any:
        return await self._response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _is_success(response: Any) -> bool:
    return all(partition[1] == 0 for _, partitions in response.topics for partition in partitions)


def _time_out(connection: Any, response: "asyncio.Future[Any]") -> None:
    if not response.done():
        response.set_exception(RequestTimedOutError())
        connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
