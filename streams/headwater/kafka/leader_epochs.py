"""Whether a log still has what was read of it: how far it goes in the leader epoch that was read last.

A log loses its end where a replica without it becomes the leader (an unclean election), or where it is restored from an
older copy. What is written next takes the same offsets. Once it has grown past the offset that a reader has committed,
only the leader's **epoch** tells: a number that rises with each leader, and stands in every batch. The leader of today is
asked where the epoch of the newest batch that was read ends in its log (OffsetForLeaderEpoch, KIP-320). An end below the
reader's place means that the records from there on are others than those that were read.
"""

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Int64, Schema, String
from aiokafka.structs import OffsetAndMetadata

from headwater.kafka.commit_notes import note_of

log = structlog.get_logger(__name__)

_TIMEOUT_S: Final = 5.0
# A new leader is known within a fraction of a second.
_RETRY_S: Final = 0.1
# As Kafka has them: the epoch is higher than the leader's own.
_UNDEFINED: Final = -1


async def kept_ends(
    client: AIOKafkaClient | None, commits: Mapping[TopicPartition, OffsetAndMetadata]
) -> dict[TopicPartition, int]:
    """Up to where each log is the one that offsets were committed of; as :func:`epoch_ends`.

    An end below the committed offset: from there on the log has lost what was read. Commits that tell no epoch, and those
    of a broker that does not tell, are left out.
    """
    told = {tp: note_of(commit.metadata).leader_epoch for tp, commit in commits.items()}
    return await epoch_ends(client, {tp: epoch for tp, epoch in told.items() if epoch is not None})


async def epoch_ends(
    client: AIOKafkaClient | None, epochs: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """Where each log has its first record of a later epoch than the given one, or ends; 0 where it knows no such epoch.

    Asks each leader once. Partitions are left out where there is no client, or no answer within five seconds: then
    nothing is known.
    """
    ends: dict[TopicPartition, int] = {}
    if client is None or not epochs:
        return ends
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            # A consumer's client keeps the leaders of the topics that it is assigned to, and forgets the others.
            await asyncio.gather(*map(client.add_topic, {tp.topic for tp in epochs}))
            while True:
                await _ask(client, {tp: epoch for tp, epoch in epochs.items() if tp not in ends}, ends)
                if len(ends) == len(epochs):
                    return ends
                client.force_metadata_update()
                await asyncio.sleep(_RETRY_S)
    except (IncompatibleBrokerVersion, NotImplementedError):
        _tell_untold()
    except TimeoutError:
        log.warning("leader_epochs_not_told", partitions=len(epochs) - len(ends), within_s=_TIMEOUT_S)
    return ends


@cache
def _tell_untold() -> None:
    """Say so, once in the life of a process."""
    log.info(
        "leader_epochs_untold",
        effect="the broker does not tell how far its logs go in an epoch; a log that has lost its end is noticed only "
        "while it is shorter than what was read of it",
    )


async def _ask(
    client: AIOKafkaClient, epochs: Mapping[TopicPartition, int], ends: dict[TopicPartition, int]
) -> None:
    """Put what leaders answer into ``ends``. Errors that pass are left to the next call.

    Raises:
        IncompatibleBrokerVersion, NotImplementedError: the broker does not know the request.
    """
    led: dict[int, list[TopicPartition]] = {}
    for tp in epochs:
        leader = client.cluster.leader_for_partition(tp)
        if leader is not None and leader != -1:
            led.setdefault(leader, []).append(tp)

    async def ask(leader: int, tps: list[TopicPartition]) -> None:
        try:
            response: Any = await client.send(
                leader,
                _EpochEndsRequest({tp: epochs[tp] for tp in tps}),
                group=ConnectionGroup.COORDINATION,  # no fetch is held there
            )
        except IncompatibleBrokerVersion:
            raise
        except (KafkaError, OSError):
            return
        for topic, partitions in response.topics:
            for error, partition, _, end in partitions:
                if error == 0:
                    ends[TopicPartition(topic, partition)] = 0 if end == _UNDEFINED else end

    await asyncio.gather(*(ask(leader, tps) for leader, tps in led.items()))


class _EpochEndsResponse(Response):  # type: ignore[misc]
    API_KEY = 23
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader_epoch", Int32),
                        ("end_offset", Int64),
                    ),
                ),
            ),
        ),
    )


class _EpochEndsRequestV3(RequestStruct):  # type: ignore[misc]
    API_KEY = 23
    API_VERSION = 3
    RESPONSE_TYPE = _EpochEndsResponse
    SCHEMA = Schema(
        ("replica_id", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(("partition", Int32), ("current_leader_epoch", Int32), ("leader_epoch", Int32)),
                ),
            ),
        ),
    )


class _EpochEndsRequest(Request[_EpochEndsRequestV3]):  # type: ignore[misc]
    API_KEY = 23

    def __init__(self, epochs: Mapping[TopicPartition, int]) -> None:
        self._epochs = epochs

    def build(self, request_struct_class: type[_EpochEndsRequestV3]) -> _EpochEndsRequestV3:
        topics: dict[str, list[tuple[int, int, int]]] = {}
        for (topic, partition), epoch in self._epochs.items():
            topics.setdefault(topic, []).append((partition, -1, epoch))
        return request_struct_class(-1, list(topics.items()))
