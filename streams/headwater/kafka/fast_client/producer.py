"""Writing to a broker without the turns of the event loop that aiokafka's producer takes.

aiokafka's sender is a task that waits for several others at once: three turns pass from `send` to the write, and five from
the acknowledgement to whoever waits for it. Beside other work each is a wait, and on an idle machine they are a twentieth
of the way of a click and its answer. Here it is one turn to the write, so that what is sent in the same turn still shares
a request, or none, by `write_now`; and one from the acknowledgement. Whatever goes wrong is left to aiokafka.
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

from headwater.kafka.fast_client.frames import handle_at_once

log = logging.getLogger(__name__)


class Producer(AIOKafkaProducer):  # type: ignore[misc]
    """aiokafka's producer, in all but that; neither idempotent nor transactional, which is refused by a ValueError."""

    def __init__(self, **options: Any) -> None:
        if options.get("enable_idempotence") or options.get("transactional_id"):
            raise ValueError("got enable_idempotence or a transactional_id: expected neither")
        super().__init__(**options)
        theirs: Any = vars(self)["_sender"]
        self._sender = _Sender(
            theirs.client,
            acks=theirs._acks,
            txn_manager=None,
            message_accumulator=theirs._message_accumulator,
            retry_backoff_ms=theirs._retry_backoff * 1000,
            request_timeout_ms=theirs._request_timeout_ms,
        )

    def write_now(self) -> None:
        """Write what was sent in this turn of the loop before others have theirs. What is sent later waits for its answer."""
        self._sender._begin()


class _Sender(Sender):  # type: ignore[misc]
    """At most one request is on its way to a broker, as with aiokafka's, so that a partition's records keep their order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._retrying: set[asyncio.Task[None]] = set()

    async def _sender_routine(self) -> None:
        try:
            while True:
                await self._message_accumulator.waiter()
                while self._begin():
                    await self.client.force_metadata_update()
        except asyncio.CancelledError:
            await asyncio.gather(*self._retrying, return_exceptions=True)

    def _begin(self) -> bool:
        """Write what waits for brokers that nothing is on its way to; whether there are records without a known leader."""
        ready, is_leaderless = self._message_accumulator.drain_by_nodes(
            ignore_nodes=self._in_flight, muted_partitions=self._muted_partitions
        )
        for node, batches in ready.items():
            self._in_flight.add(node)
            self._muted_partitions.update(batches)
            self._write(node, SendProduceReqHandler(self, batches))
        return bool(is_leaderless)

    def _write(self, node: int, handler: Any) -> None:
        connection = self.client._conns.get((node, handler.group))
        if connection is not None and connection.connected():
            with contextlib.suppress(KafkaError):
                handle_at_once(connection)
                connection.send(
                    handler.create_request()
                ).close()  # would wait for the answer, two turns longer
                answer = _Answer()
                connection._requests[-1] = (*connection._requests[-1][:2], answer)
                timer = asyncio.get_running_loop().call_later(
                    connection._request_timeout, _give_up, connection, answer
                )
                answer.then = partial(self._answered, node, handler, timer)
                return
        self._leave(node, handler)

    def _answered(self, node: int, handler: Any, timer: asyncio.TimerHandle, answer: Any) -> None:
        timer.cancel()
        try:
            if answer.exception() is None and _is_success(answer.result()):
                handler.handle_response(answer.result())
                self._free(node, handler)
            else:
                handler._client = _Told(self.client, answer)
                self._leave(node, handler)
        except Exception as error:
            log.exception("producer_failed", extra={"node": node})
            # As in aiokafka's routine: whoever waits must hear of it.
            self._message_accumulator.fail_all(error)

    def _leave(self, node: int, handler: Any) -> None:
        """To aiokafka, which connects, tries again and gives up."""

        async def done() -> None:
            await handler.do(node)
            self._free(node, handler)

        task = asyncio.create_task(done())
        self._retrying.add(task)
        task.add_done_callback(self._retrying.discard)
        task.add_done_callback(self._fail_all)

    def _free(self, node: int, handler: Any) -> None:
        self._in_flight.discard(node)
        self._muted_partitions.difference_update(handler._batches)
        if self._message_accumulator._batches:
            self._begin()  # which wakes the routine too, for those without a leader


class _Answer(asyncio.Future[Any]):
    """Calls ``then`` where it is told what became of a request, not a turn later."""

    # Told of the answer itself, as any callback: one that held it would leave both to the garbage collector.
    then: Callable[[asyncio.Future[Any]], None]

    def set_result(self, result: Any, /) -> None:
        super().set_result(result)
        self.then(self)

    def set_exception(self, exception: type | BaseException, /) -> None:
        super().set_exception(exception)
        self.then(self)


class _Told:
    """A client that has sent already, and tells what became of it."""

    def __init__(self, client: Any, answer: "asyncio.Future[Any]") -> None:
        self._client, self._answer = client, answer

    async def send(self, _node: int, _request: Any) -> Any:
        return await self._answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _is_success(response: Any) -> bool:
    return all(partition[1] == 0 for _, partitions in response.topics for partition in partitions)


def _give_up(connection: Any, answer: "asyncio.Future[Any]") -> None:
    if not answer.done():
        answer.set_exception(RequestTimedOutError())
        connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
