"""Writing the vectors of an owned catalog partition, and noticing what others wrote there.

**Zombie fencing.** A stale owner's write leaves a gap between our own offsets on the vectors topic. The gap is read, and
every item that it overwrote is written again (`catalog_repair.py`): compaction keeps what comes last.
"""

from collections.abc import Sequence

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from headwater.index.vectors_topic import OfferRecord, OwnersClaim, claim_of_owner, read_records
from headwater.kafka.epochs import CLAIM_KEY, IsMember, next_epoch, pass_over_higher
from headwater.kafka.fast_client.producer import Producer
from headwater.kafka.publish import Outgoing, Refused, send_all
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.skipped import SkippedRecords
from headwater.paths.item_versions import ItemVersions, stamp_of

log = structlog.get_logger(__name__)


class VectorsWriter:
    """The only writer of the vectors topic in this worker. Hold the lock of a partition while its records are written."""

    def __init__(
        self,
        producer: Producer,
        topic: str,
        skipped: SkippedRecords,
        is_member: IsMember,
    ) -> None:
        self._producer, self.topic, self._skipped, self._is_member = producer, topic, skipped, is_member

    async def write(self, versions: ItemVersions, records: Sequence[Outgoing]) -> list[Refused]:
        """Write records of one partition, in order; wait until they are acknowledged but those returned.

        Raises:
            PartitionLost: the partition was taken away.
            StopWorker: the broker did not take them.
        """
        async with versions.writing:
            versions.require()
            sent = await send_all(self._producer, self.topic, versions.partition, records)
            for written in await sent.settled():
                versions.mark_written(written.start, written.stop)
            return sent.refused

    async def claim_partition(self, versions: ItemVersions, highest_epoch: int, bundle_id: str) -> None:
        """Take the epoch after the highest one seen, and say so on the topic. Raises as `write` does."""
        # What is on its way has the epoch before, and would be skipped behind the claim.
        async with versions.offers.publishing:
            versions.epoch = next_epoch(highest_epoch, 0)
            await self.claim(versions, versions.position, bundle_id)

    async def claim(self, versions: ItemVersions, position: int, bundle_id: str) -> None:
        """Say that everything in the catalog up to ``position`` is in the topic. Raises as `write` does."""
        versions.position = max(position, versions.position)
        claim = claim_of_owner(versions.epoch, versions.position, bundle_id, versions.topic_id, versions.cut)
        await self.write(versions, [claim])

    async def read_gaps(self, consumer: AIOKafkaConsumer, versions: ItemVersions, bundle_id: str) -> None:
        """Read what others wrote between our own records, and add the items that it overwrote to the holes of ``versions``.

        Our own late copies, which the broker took after all when they had long been sent again, are treated the same.
        Where somebody who owns nothing wrote in a higher epoch than ours, the one above is claimed: readers have passed
        over what we wrote since, so that is read as a gap too.

        Raises:
            PartitionLost: the partition was taken away.
            StopWorker: a later owner has written, or the gap cannot be read.
            KafkaError: the broker is away, or refuses.
        """
        tp = TopicPartition(self.topic, versions.partition)
        while versions.gaps:
            start, stop = versions.gaps[0]
            consumer.assign([tp])
            consumer.seek(tp, start)
            is_claimed, highest = False, -1
            async for run in read_to_end(consumer, [tp], {tp: stop}):
                within = [record for record in run.records if record.offset < stop]
                is_claimed |= any(record.key == CLAIM_KEY for record in within)
                for record, found in read_records(within, self._skipped, versions.add_refused):
                    if found.epoch > versions.epoch:
                        versions.require()
                        await pass_over_higher(
                            record,
                            found.epoch,
                            versions.epoch,
                            versions.require,
                            self._is_member,
                            self._skipped,
                        )
                        highest = max(highest, found.epoch)
                    if isinstance(found, OwnersClaim):
                        continue
                    if isinstance(found, OfferRecord):
                        known = versions.offers.states.get(found.item_id)
                        if found.epoch != versions.epoch or found.state != known:
                            versions.offers.holes.add(found.item_id)
                        continue
                    point = found.point
                    if found.epoch != versions.epoch or versions.stamp(point.key, point.item_id) != stamp_of(
                        point
                    ):
                        versions.add_hole(point)
            del versions.gaps[0]
            if highest > versions.epoch:
                versions.gaps = [(stop, versions.vectors_next)] if stop < versions.vectors_next else []
                await self.claim_partition(versions, highest, bundle_id)
            elif is_claimed:  # the newest one has to be ours; and another owner may have taken the same epoch
                await self.claim_partition(versions, versions.epoch, bundle_id)
