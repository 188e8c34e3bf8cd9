"""Groups as the broker describes them: foreign members and partitions that nobody holds are told."""

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from headwater.kafka import topics
from headwater.kafka.membership import STABLE, Group, Member, complaints, describe
from headwater.kafka.topics import Topics
from headwater.settings import Settings

TOPICS = {"clicks": 4, "requests": 4}


def _held(*numbers: int) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition(topic, number) for topic in TOPICS for number in numbers)


def _worker(pid: int, *numbers: int) -> Member:
    return Member("", f"shop-interests-{pid}", "10.0.0.1", _held(*numbers))


def _group(*members: Member, state: str = STABLE) -> Group:
    return Group("shop-interests", state, members)


def test_workers_that_share_all_partitions_are_well() -> None:
    assert complaints(_group(_worker(1, 0, 1), _worker(2, 2, 3)), TOPICS) == []
    assert complaints(_group(_worker(1, 0, 1, 2, 3), _worker(2)), TOPICS) == []


def test_a_foreign_member_is_named_with_what_it_holds_and_the_remedy() -> None:
    (complaint,) = complaints(
        _group(_worker(1, 0, 1), Member("", "rdkafka", "10.0.0.9", _held(2, 3))), TOPICS
    )
    assert complaint == (
        "the consumer 'rdkafka' at 10.0.0.9 is no Headwater worker and holds clicks 2-3 and requests 2-3, whose records "
        "nobody works on: stop it, or give it a group of its own instead of shop-interests"
    )


def test_a_foreign_member_that_holds_nothing_does_no_harm() -> None:
    assert complaints(_group(_worker(1, 0, 1, 2, 3), Member("", "rdkafka", "", frozenset())), TOPICS) == []


def test_a_client_id_that_only_begins_as_ours_is_foreign() -> None:
    names = ["shop-interests-1x", "consumer-shop-interests-1", "shop-interests", "shop-interests-"]
    group = _group(*(Member("", name, "", _held(n)) for n, name in enumerate(names)))
    assert [member.client_id for member in group.foreign()] == names


def test_partitions_that_no_member_holds_are_listed() -> None:
    (complaint,) = complaints(_group(_worker(1, 0, 2)), TOPICS)
    assert "no member of shop-interests holds clicks 1, 3 and requests 1, 3" in complaint


def test_a_rebalance_and_an_empty_group_are_no_fault_of_a_member() -> None:
    assert complaints(_group(_worker(1), state="PreparingRebalance"), TOPICS) == []
    assert complaints(_group(), TOPICS) == []


async def test_a_broker_describes_members_with_their_partitions(settings: Settings) -> None:
    await topics.create(settings)
    clicks, group = Topics.named(settings.topic_prefix).clicks, settings.interests_group
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    consumer = AIOKafkaConsumer(clicks, **settings.kafka_options(), group_id=group, client_id="somebody")
    await admin.start()
    try:
        async with consumer:
            described = await describe(admin, group)
        assert described is not None
        assert (described.name, described.state) == (group, STABLE)
        (member,) = described.foreign()
        assert (member.client_id, member.host) == ("somebody", "127.0.0.1")
        assert member.partitions == {TopicPartition(clicks, number) for number in range(4)}
        unknown = await describe(admin, "nobody-knows-it")
        assert unknown is None or unknown.members == ()
    finally:
        await admin.close()
