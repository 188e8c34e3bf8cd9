"""The dead-letter topic: bad messages as they came, with the reason in their headers, so nothing is lost silently."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog
from aiokafka import ConsumerRecord

from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.headers import dead_letter_headers
from headwater.kafka.publish import Outgoing, write_all
from headwater.metrics import Metrics

log = structlog.get_logger(__name__)

# A longer value is cut. The topic takes 2.2 MB, which leaves room for the headers.
MAX_VALUE_BYTES: Final = 2_000_000


class DeadLetter(NamedTuple):
    """A record that cannot be used: ``reason`` is a label of the metric, ``message`` a sentence for a person."""

    record: ConsumerRecord
    reason: str
    message: str


class DeadLetters:
    """Writes to the dead-letter topic. Put the letters of a batch before you finish the batch."""

    def __init__(self, producer: Producer, topic: str, metrics: Metrics) -> None:
        self._producer, self._topic, self._metrics = producer, topic, metrics

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Write the letters, wait until the broker has acknowledged them, and count them.

        Raises:
            StopWorker: the broker did not take them in time.
        """
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
    record, value, cut_from_bytes = letter.record, letter.record.value, None
    if value is not None and len(value) > MAX_VALUE_BYTES:
        value, cut_from_bytes = value[:MAX_VALUE_BYTES], len(value)
    headers = dead_letter_headers(
        letter.reason,
        letter.message,
        record.topic,
        record.partition,
        record.offset,
        record.key,
        cut_from_bytes,
    )
    # A key of its own: a tombstone takes out this letter and no other of the same user.
    return Outgoing(f"{record.topic}/{record.partition}/{record.offset}".encode(), value, headers)
