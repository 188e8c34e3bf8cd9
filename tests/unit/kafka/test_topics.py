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
