"""aiokafka's producer without the turns of the event loop that its sender takes.

aiokafka's sender is a task that waits for several others at once: three turns of the loop pass from `send` to the
write. Here it is two, so that records sent in one turn still share a request, or one by :meth:`Producer.write_now`.
A broker's next request leaves as soon as the last one is acknowledged. Connecting, retries and errors are aiokafka's.
"""

import asyncio
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.producer.sender import Sender, SendProduceReqHandler


class Producer(AIOKafkaProducer):  # type: ignore[misc]
    """Everything that aiokafka's producer is, without idempotence and transactions.

    Raises ValueError where one of these is asked for.
    """

    def __init__(self, **options: Any) -> None:
        if options.get("enable_idempotence") or options.get("transactional_id"):
            raise ValueError("got enable_idempotence or a transactional_id: expected neither")
        super().__init__(**options)
        theirs: Any = vars(self)["_sender"]
        self._sender = _FastSender(
            theirs.client,
            acks=theirs._acks,
            txn_manager=None,
            message_accumulator=theirs._message_accumulator,
            retry_backoff_ms=theirs._retry_backoff * 1000,
            request_timeout_ms=theirs._request_timeout_ms,
        )

    def write_now(self) -> None:
        """Begin to write what was sent in this turn of the loop, a turn earlier than by itself.

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
        self._writing: set[asyncio.Task[None]] = set()

    async def _sender_routine(self) -> None:
        try:
            while True:
                await self._message_accumulator.waiter()
                while self.send_ready():
                    await self.client.force_metadata_update()
        except asyncio.CancelledError:
            await asyncio.gather(*self._writing, return_exceptions=True)

    def send_ready(self) -> bool:
        """Write what waits for brokers without a request in flight; whether records without a leader are left."""
        ready, is_leaderless = self._message_accumulator.drain_by_nodes(
            ignore_nodes=self._in_flight, muted_partitions=self._muted_partitions
        )
        for node, batches in ready.items():
            self._in_flight.add(node)
            self._muted_partitions.update(batches)
            self._write(node, SendProduceReqHandler(self, batches))
        return bool(is_leaderless)

    def _write(self, node: int, handler: Any) -> None:
        """Have aiokafka's handler connect, write, retry and give up, in a task of its own."""

        async def do() -> None:
            await handler.do(node)
            self._release_node(node, handler)

        task = asyncio.create_task(do())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        task.add_done_callback(self._fail_all)

    def _release_node(self, node: int, handler: Any) -> None:
        self._in_flight.discard(node)
        self._muted_partitions.difference_update(handler._batches)
        if self._message_accumulator._batches:
            self.send_ready()  # wakes the routine too, for records without a leader
