"""A topic partition as a consumer reads it, from records in memory."""

from collections.abc import Sequence

from aiokafka import ConsumerRecord, TopicPartition


class RecordedReader:
    """Gives what an AIOKafkaConsumer gives of one partition, two records a poll."""

    client = None  # topics have no ids here

    def __init__(self, records: Sequence[ConsumerRecord]) -> None:
        self.records = list(records)
        self._position = 0

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._position = 0

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._position = offset

    def pause(self, *partitions: TopicPartition) -> None:
        """Nothing is fetched ahead."""

    async def position(self, partition: TopicPartition) -> int:
        return self._position

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, len(self.records))

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord]]:
        found = self.records[self._position : self._position + 2]
        self._position += len(found)
        return {partitions[0]: found} if found else {}
