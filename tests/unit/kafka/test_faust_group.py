"""What Faust's consumer does in our group where its own would not."""

from typing import Any

from headwater.kafka.faust_group import FaustGroup
from headwater.settings import Settings


async def test_a_member_without_partitions_fetches_nothing_from_a_rebalance_until_faust_goes_on() -> None:
    group = FaustGroup("spare", Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    consumer: Any = group._app.consumer
    consumer._active_partitions = {("clicks", 0)}
    told: list[tuple[set[object], bool]] = []

    async def revoked(partitions: set[object]) -> None:
        told.append((partitions, consumer.flow_active))

    consumer._on_partitions_revoked = revoked
    assert group._readable()
    await consumer.on_partitions_revoked(set())
    assert told == [(set(), False)]
    assert not group._readable()
    consumer.resume_flow()
    assert group._readable()


async def test_only_the_first_reason_to_fail_counts() -> None:
    group = FaustGroup("failing", Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    group.fail("first")
    group.fail("second")
    assert group.failed.result() == "first"
