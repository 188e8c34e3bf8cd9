"""The dead-letter topic: bad messages as they came, with the reason in their headers, so nothing is lost silently."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog
from aiokafka import ConsumerRecord

from headwater.errors import StopWorker
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.fast_client.records import Record, Unreadable
from headwater.kafka.headers import dead_letter_headers
from headwater.kafka.publish import Outgoing, write_all
from headwater.metrics import Metrics

log = structlog.get_logger(__name__)

# What is longer is cut. The topic takes 2.2 MB, which leaves room for the headers.
MAX_VALUE_BYTES: Final = 2_000_000
_LEAST_CUT_BYTES: Final = 400


class DeadLetter(NamedTuple):
    """A record that cannot be used: ``reason`` is a label of the metric, ``message`` a sentence for a person.

    ``last_offset``: it stands for all records up to there, and has the content of none.
    """

    record: ConsumerRecord
    reason: str
    message: str
    last_offset: int | None = None


class DeadLetters:
    """Writes to the dead-letter topic. Put the letters of a batch before you finish the batch."""

    def __init__(self, producer: Producer, topic: str, metrics: Metrics) -> None:
        self._producer, self._topic, self._metrics = producer, topic, metrics

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Write the letters, wait until the broker has acknowledged them, and count them.

        A letter that is too large for the topic is cut further, at last to its headers.

        Raises:
            StopWorker: the broker did not take them in time, or not even the headers of one.
        """
        if not letters:
            return
        most, waiting = MAX_VALUE_BYTES, list(letters)
        while waiting:
            outgoing = [_outgoing(letter, most) for letter in waiting]
            refused = {
                id(each.record): each for each in await write_all(self._producer, self._topic, 0, outgoing)
            }
            waiting = [letter for letter, out in zip(waiting, outgoing, strict=True) if id(out) in refused]
            if waiting and most == 0:
                message = next(iter(refused.values())).message
                raise StopWorker(f"{message}: expected a topic that takes 2 kB (max.message.bytes)")
            most = most // 4 if most >= _LEAST_CUT_BYTES else 0
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

    async def put_unreadable(self, unreadable: Sequence[Unreadable]) -> None:
        """Say on the topic what was passed, since nobody can read it. Raises StopWorker, as :meth:`put` does."""
        await self.put([_letter(each) for each in unreadable])


def _letter(unreadable: Unreadable) -> DeadLetter:
    topic, partition, first, last, reason, message = unreadable
    return DeadLetter(Record(topic, partition, first, -1, None, None, ()), reason, message, last)


def _outgoing(letter: DeadLetter, most_bytes: int) -> Outgoing:
    record = letter.record
    value = record.value and record.value[:most_bytes]
    is_cut = value != record.value
    headers = dead_letter_headers(
        letter.reason,
        letter.message,
        record.topic,
        record.partition,
        record.offset,
        record.key,
        letter.last_offset,
        len(record.value) if is_cut and record.value else None,
    )
    # A key of its own: a tombstone takes out this letter and no other of the same user.
    return Outgoing(f"{record.topic}/{record.partition}/{record.offset}".encode(), value, headers)
