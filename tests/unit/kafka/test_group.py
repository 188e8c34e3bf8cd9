"""Partition batches in Faust: what its consumer does where Faust's own would not."""

from typing import Any

from headwater.kafka.group import EngineApp
from headwater.settings import Settings


async def test_a_worker_without_partitions_fetches_nothing_from_a_rebalance_on_until_faust_goes_on() -> None:
    app = EngineApp("spare", Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    consumer: Any = app.consumer
    told: list[tuple[set[object], bool]] = []

    async def revoked(partitions: set[object]) -> None:
        told.append((partitions, consumer.flow_active))

    consumer._on_partitions_revoked = revoked
    assert consumer.flow_active
    await consumer.on_partitions_revoked(set())
    assert told == [(set(), False)]
    assert not consumer._may_begin()
    consumer.resume_flow()
    assert consumer._may_begin()
