"""Where bad messages go: the original bytes, with the reason in the headers, so that nothing is lost silently."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog
from aiokafka import ConsumerRecord

from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import Outgoing, write_all
from headwater.metrics import Metrics

log = structlog.get_logger(__name__)

# Two MB of the original; the topic takes a little more, for the headers.
MAX_VALUE_BYTES: Final = 2_000_000
_MAX_MESSAGE_CHARS: Final = 1_000


class DeadLetter(NamedTuple):
    """A record that cannot be used, and why: ``reason`` for counting, ``message`` for reading."""

    record: ConsumerRecord
    reason: str
    message: str


class DeadLetters:
    """Writes to the dead-letter topic and waits for it, before the batch that held the records is finished."""

    def __init__(self, producer: Producer, topic: str, metrics: Metrics) -> None:
        self._producer, self._topic, self._metrics = producer, topic, metrics

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Raises StopWorker when the broker does not take them."""
        if not letters:
            return
        await write_all(self._producer, self._topic, 0, [_outgoing(letter) for letter in letters])
        for letter in letters:
            self._metrics.dead_letters_total.labels(letter.reason).inc()
        first = letters[0]
        log.warning(
            "dead_letters",
            topic=first.record.topic,
            partition=first.record.partition,
            count=len(letters),
            first_offset=first.record.offset,
            reasons=sorted({letter.reason for letter in letters}),
        )


def _outgoing(letter: DeadLetter) -> Outgoing:
    record = letter.record
    value = record.value
    headers = [
        ("reason", letter.reason.encode()),
        ("message", letter.message[:_MAX_MESSAGE_CHARS].encode(errors="backslashreplace")),
        ("topic", record.topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
    ]
    if value is not None and len(value) > MAX_VALUE_BYTES:
        headers.append(("cut_from_bytes", str(len(value)).encode()))
        value = value[:MAX_VALUE_BYTES]
    return Outgoing(record.key, value, headers)
