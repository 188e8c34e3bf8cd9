"""A redrive on Apache Kafka: each letter exactly once, also after a run that broke in the middle."""

from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from headwater.commands.findings import System
from headwater.commands.group_checks import dead_letters
from headwater.kafka import letters, topics
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.records import Record
from headwater.kafka.letters import Wanted
from headwater.kafka.publish import producer_of
from headwater.kafka.read_to_end import read_to_end
from headwater.kafka.redrive import Redrive, RedriveError, plan
from headwater.kafka.topics import Topics
from headwater.metrics import Metrics
from headwater.settings import Settings
from tests.end_to_end.outside import Outside


@pytest.fixture
def settings(kafka: str, topic_prefix: str, tmp_path: Path) -> Settings:
    return Settings(kafka_bootstrap_servers=kafka, topic_prefix=topic_prefix, data_dir=tmp_path)


async def bury(settings: Settings, *records: Record) -> None:
    producer = producer_of(settings)
    await producer.start()
    try:
        dead = DeadLetters(producer, Topics.named(settings.topic_prefix).dead_letters, Metrics())
        await dead.put([DeadLetter(record, "internal_error", "oh") for record in records])  # type: ignore[arg-type]
    finally:
        await producer.stop()


async def values(settings: Settings, topic: str) -> list[bytes]:
    """What a worker is given: transactions that were not committed are not there."""
    found: list[bytes] = []
    async with letters.reading(settings, topic) as consumer:
        places = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        async for run in read_to_end(consumer, places):
            found += [record.value for record in run.records]
    return sorted(found)


async def test_each_letter_is_redriven_once_whatever_breaks_and_what_cannot_be_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await topics.create(settings)
    names = Topics.named(settings.topic_prefix)

    def of(topic: str, offset: int, key: bytes, value: bytes) -> Record:
        return Record(topic, 0, offset, 0, key, value, ())

    async with Outside(settings) as outside:
        outdated = await outside.send(names.catalog, b"bad", key=b"tea", partition=0)
        await outside.send(names.catalog, b"good", key=b"tea", partition=0)
        newest = await outside.send(names.catalog, b"also bad", key=b"mug", partition=0)
        clicks = [of(names.clicks, offset, b"ann", b"click %d" % offset) for offset in (100, 101, 102)]
        large = of(names.clicks, 103, b"ann", bytes(1_500_000))
        await bury(
            settings,
            *clicks,
            large,
            of(names.catalog, outdated.offset, b"tea", b"bad"),
            of(names.catalog, newest.offset, b"mug", b"also bad"),
            of(names.requests, 5, b"ann", b"request"),
        )
        everything, redriven = Wanted(), [b"click 100", b"click 101", b"click 102"]
        mended = Wanted(topics=(names.clicks, names.catalog))

        with monkeypatch.context() as broken:

            def mark_of(*_: object) -> None:
                raise KafkaConnectionError("the broker is away before the mark")

            broken.setattr("headwater.kafka.redrive.mark_of", mark_of)
            with pytest.raises(RedriveError, match="the same command goes on"):
                await Redrive(settings, everything, 1_000.0, 1).run()
        assert len((await letters.read(settings)).open()) == 7
        [told] = [finding async for finding in dead_letters(System(settings, None))]
        assert "internal_error 7: `headwater dlq list`" in told.seen

        outcome = await Redrive(settings, everything, 1_000.0, 1).run()
        assert outcome.redriven == 4
        assert outcome.skipped == {"no_use": 1, "superseded": 1}
        assert [each.reason for each in outcome.refused] == ["too_large"]
        assert outcome.refused[0].place.offset == 103

        await bury(settings, *clicks)  # as by a worker that was killed before it committed them
        again = await plan(settings, mended, 1)
        assert [letter.place.offset for letter in again.ready] == [103]
        assert (await Redrive(settings, Wanted(key=b"mug"), 1_000.0, 1).run()).redriven == 0

    assert await values(settings, names.clicks) == redriven
    assert (await values(settings, names.catalog)).count(b"also bad") == 2
    assert (await values(settings, names.catalog)).count(b"bad") == 1
