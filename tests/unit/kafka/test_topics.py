"""Topics on real brokers: created once, checked against the table, each problem with its remedy."""

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from headwater.kafka import topics
from headwater.kafka.topics import Problem, Topics, TopicsError
from headwater.settings import Settings


async def _create(settings: Settings, name: str, partitions: int, **config: str) -> None:
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    await admin.start()
    try:
        options = {key.replace("_", "."): value for key, value in config.items()}
        response = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=options)])
        assert response.topic_errors[0][1] == 0
    finally:
        await admin.close()


def _of(problems: list[Problem], topic: str) -> list[Problem]:
    return [problem for problem in problems if problem.topic == topic]


def test_names_are_the_prefix_and_the_topic() -> None:
    names = Topics.named("headwater.")
    assert names.clicks == "headwater.clicks.v1"
    assert names.dead_letters == "headwater.dead-letters.v1"


def test_topics_of_a_user_have_equal_counts_and_so_have_those_of_an_item() -> None:
    settings = Settings(partitions=6, catalog_partitions=3)
    names = Topics.named(settings.topic_prefix)
    counts = {spec.name: spec.partitions for spec in topics.specs(settings)}
    assert {counts[names.clicks], counts[names.requests], counts[names.profiles]} == {6}
    assert {counts[names.catalog], counts[names.vectors]} == {3}


def test_a_forget_outlives_the_clicks_that_may_still_be_replayed() -> None:
    settings = Settings(clicks_retention_days=30)
    names = Topics.named(settings.topic_prefix)
    config = {spec.name: spec.config for spec in topics.specs(settings)}
    assert int(config[names.profiles]["delete.retention.ms"]) >= int(config[names.clicks]["retention.ms"])
    shortest = {spec.name: spec.config for spec in topics.specs(Settings(clicks_retention_days=0.5))}
    assert int(shortest[names.profiles]["delete.retention.ms"]) == 7 * 24 * 3600 * 1000


async def test_created_topics_pass_the_check(settings: Settings) -> None:
    created = await topics.create(settings)
    assert sorted(created) == sorted(spec.name for spec in topics.specs(settings))
    assert await topics.check(settings) == []


async def test_creating_again_changes_nothing(settings: Settings) -> None:
    await topics.create(settings)
    assert await topics.create(settings) == []
    assert await topics.check(settings) == []


async def test_two_may_create_at_once(settings: Settings) -> None:
    first, second = await asyncio.gather(topics.create(settings), topics.create(settings))
    assert sorted(first + second) == sorted(spec.name for spec in topics.specs(settings))
    assert await topics.check(settings) == []


async def test_missing_topics_are_named_and_not_created_by_looking(settings: Settings) -> None:
    first = await topics.check(settings)
    assert len(first) == len(topics.specs(settings))
    assert all(problem.found == "missing" and problem.fatal for problem in first)
    assert all("headwater topics create" in problem.remedy for problem in first)
    assert await topics.check(settings) == first


async def test_a_wrong_partition_count_is_fatal_and_says_what_to_do(settings: Settings) -> None:
    names = Topics.named(settings.topic_prefix)
    await _create(settings, names.requests, 3)
    await topics.create(settings)
    (problem,) = [
        one for one in _of(await topics.check(settings), names.requests) if "partition" in one.found
    ]
    assert problem.fatal
    assert (problem.found, problem.expected) == ("3 partitions", "4")
    assert str(problem) == (
        f"{names.requests}: 3 partitions, expected 4. {names.clicks}, {names.requests} and {names.profiles} need "
        "the same count: if all of them have 3, set HEADWATER_PARTITIONS=3; else stop the workers, delete "
        f"{names.requests} and run `headwater topics create`."
    )


async def test_setting_the_count_that_the_topics_have_is_a_remedy(settings: Settings) -> None:
    await topics.create(settings)
    other = settings.model_copy(update={"partitions": 5})
    assert [problem for problem in await topics.check(other) if problem.fatal] != []
    remedied = other.model_copy(update={"partitions": 4})
    assert await topics.check(remedied) == []


async def test_topics_that_work_with_any_count_are_no_reason_to_stop(settings: Settings) -> None:
    names = Topics.named(settings.topic_prefix)
    config = next(spec.config for spec in topics.specs(settings) if spec.name == names.responses)
    await _create(
        settings, names.responses, 2, **{key.replace(".", "_"): value for key, value in config.items()}
    )
    await topics.create(settings)
    (problem,) = await topics.check(settings)
    assert problem.topic == names.responses
    assert not problem.fatal


async def test_a_wrong_policy_is_found_with_the_command_that_mends_it(settings: Settings) -> None:
    names = Topics.named(settings.topic_prefix)
    await _create(settings, names.profiles, 4, cleanup_policy="delete")
    await topics.create(settings)
    found = {problem.found: problem for problem in _of(await topics.check(settings), names.profiles)}
    policy = found["cleanup.policy is delete"]
    assert policy.fatal
    assert policy.expected == "compact"
    assert f"--entity-name {names.profiles} --add-config cleanup.policy=compact" in policy.remedy


def partitions(copies: int, in_sync: int) -> list[dict[str, object]]:
    return [
        {"replicas": list(range(3)), "isr": [0, 1, 2]},
        {"replicas": [*range(copies)], "isr": [*range(in_sync)]},
    ]


@pytest.mark.parametrize(
    ("asked", "copies", "in_sync", "minimum", "found"),
    [
        (1, 1, 1, "1", []),
        (1, 1, 1, "", []),  # a broker that does not tell its default
        (3, 3, 3, "2", []),
        (1, 3, 3, "1", ["min.insync.replicas is 1 with 3 copies"]),  # whatever this process was told
        (3, 3, 3, "", ["min.insync.replicas is 1 with 3 copies"]),
        (3, 1, 1, "1", ["1 copies of a partition"]),
        (3, 3, 3, "3", []),
        (3, 3, 1, "2", ["a partition with 1 of 3 copies in sync"]),
    ],
)
def test_what_may_lose_an_acknowledged_record_is_told(
    asked: int, copies: int, in_sync: int, minimum: str, found: list[str]
) -> None:
    settings = Settings(replication_factor=asked)
    told = topics._too_few_copies(
        settings, topics.specs(settings)[0], {"min.insync.replicas": minimum}, partitions(copies, in_sync)
    )
    assert [problem.found for problem in told] == found
    assert not any(problem.fatal for problem in told)


def test_more_copies_than_there_are_can_never_acknowledge() -> None:
    settings = Settings()
    (problem,) = topics._too_few_copies(
        settings, topics.specs(settings)[0], {"min.insync.replicas": "2"}, partitions(1, 1)
    )
    assert problem.fatal
    assert "--add-config min.insync.replicas=1`" in problem.remedy


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("unclean.leader.election.enable", "true", True),
        ("unclean.leader.election.enable", "", False),
        ("retention.bytes", "1000000", True),
        ("retention.ms", "60000", True),
        ("retention.ms", "-1", False),
    ],
)
def test_what_loses_clicks_before_their_time_is_told(key: str, value: str, told: bool) -> None:
    settings = Settings()
    clicks = topics.specs(settings)[0]
    found = topics._wrong_config(settings, clicks, {**clicks.config, key: value})
    assert [problem.found for problem in found] == ([f"{key} is {value}"] if told else [])
    assert not any(problem.fatal for problem in found)


@pytest.mark.parametrize(("value", "told"), [("9223372036854775807", True), ("3600000", False), ("", True)])
def test_an_unbounded_compaction_lag_keeps_what_was_erased_and_is_told(value: str, told: bool) -> None:
    settings = Settings()
    for spec in topics.specs(settings):
        if "max.compaction.lag.ms" in spec.config:
            found = topics._wrong_config(settings, spec, {**spec.config, "max.compaction.lag.ms": value})
            assert bool(found) is told, spec.name


def test_dead_letters_that_are_not_compacted_are_no_reason_to_stop() -> None:
    settings = Settings()
    spec = next(spec for spec in topics.specs(settings) if spec.name.endswith("dead-letters.v1"))
    assert topics._wrong_config(settings, spec, {**spec.config, "cleanup.policy": "delete,compact"}) == []
    (problem,) = topics._wrong_config(settings, spec, {**spec.config, "cleanup.policy": "delete"})
    assert not problem.fatal
    assert "--add-config cleanup.policy=[compact,delete]`" in problem.remedy


async def test_topics_are_made_with_the_copies_that_have_to_acknowledge(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one broker, so two copies are more than it can have: the check finds what was set."""
    with monkeypatch.context() as patched:
        patched.setattr(topics, "copies_to_acknowledge", lambda _copies: 2)
        await topics.create(settings)
    found = await topics.check(settings)
    assert {problem.found for problem in found} == {"min.insync.replicas is 2 with 1 copies"}
    assert len(found) == len(topics.specs(settings))
    assert all(problem.fatal for problem in found)


async def test_data_kept_for_longer_than_asked_is_fine(settings: Settings) -> None:
    await topics.create(settings.model_copy(update={"clicks_retention_days": 30.0}))
    assert await topics.check(settings.model_copy(update={"clicks_retention_days": 7.0})) == []
    shorter = await topics.check(settings.model_copy(update={"clicks_retention_days": 60.0}))
    assert Topics.named(settings.topic_prefix).clicks in {problem.topic for problem in shorter}


async def test_an_unreachable_broker_is_one_sentence_with_the_remedy(unused_port: int) -> None:
    settings = Settings(kafka_bootstrap_servers=f"127.0.0.1:{unused_port}")
    with pytest.raises(TopicsError) as caught:
        await topics.check(settings)
    message = str(caught.value)
    assert message.startswith(f"no answer from the Kafka broker at 127.0.0.1:{unused_port}")
    assert "HEADWATER_KAFKA_BOOTSTRAP_SERVERS" in message
    assert "\n" not in message
