"""Records of our own topics that cannot be used: skipped, counted by reason, and logged once of each kind.

No such record ends a worker. What can be used of the topic goes on being used, as if the record were not there.
"""

import structlog
from aiokafka import ConsumerRecord

from headwater.metrics import Metrics

log = structlog.get_logger(__name__)


class SkippedRecords:
    """Counts in ``skipped_records_total``; the log has the first record of each topic and reason."""

    def __init__(self, metrics: Metrics) -> None:
        self._counter = metrics.skipped_records_total
        self._told: set[tuple[str, str]] = set()

    def add(self, record: ConsumerRecord, reason: str, message: str) -> None:
        """A record is skipped. ``reason`` is a label of the metric, ``message`` a sentence for a person."""
        self._counter.labels(record.topic, reason).inc()
        if (record.topic, reason) not in self._told:
            self._told.add((record.topic, reason))
            place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            log.warning(
                "record_skipped", **place, reason=reason, message=message, more="are counted, not logged"
            )
