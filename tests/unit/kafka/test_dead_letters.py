"""What a dead letter looks like on its topic, and when it is counted."""

import pytest
from aiokafka import ConsumerRecord

from headwater.kafka import dead_letters
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
from headwater.kafka.fast_client.records import Unreadable
from headwater.metrics import Metrics
from tests.support.recording_producer import RecordingProducer


def record(value: bytes | None) -> ConsumerRecord:
    return ConsumerRecord("clicks", 3, 40, 1_234, 0, b"ann", value, None, 3, 2, ())


async def put(value: bytes | None) -> tuple[dict[str, bytes], bytes | None]:
    producer, metrics = RecordingProducer(1), Metrics()
    await DeadLetters(producer, "dead", metrics).put([DeadLetter(record(value), "bad_json", "not JSON")])  # type: ignore[arg-type]
    assert 'headwater_dead_letters_total{reason="bad_json"} 1.0' in metrics.exposition().decode()
    [sent] = producer.records("dead")
    assert sent.key == b"clicks/3/40"
    return dict(sent.headers), sent.value


async def test_the_original_goes_along_with_its_place_and_the_reason() -> None:
    headers, value = await put(b"{")
    assert value == b"{"
    assert (headers["topic"], headers["partition"], headers["offset"]) == (b"clicks", b"3", b"40")
    assert (headers["reason"], headers["message"]) == (b"bad_json", b"not JSON")
    assert headers["key"] == b"ann"
    assert "cut_from_bytes" not in headers


async def test_a_null_value_stays_null() -> None:
    assert (await put(None))[1] is None


async def test_a_long_value_is_cut_and_its_size_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MAX_VALUE_BYTES", 4)
    headers, value = await put(b"123456")
    assert value == b"1234"
    assert headers["cut_from_bytes"] == b"6"


async def test_a_letter_that_its_topic_does_not_take_is_cut_further_and_the_others_are_whole() -> None:
    producer = RecordingProducer(1)
    producer.most_bytes = 1_000
    letters = [DeadLetter(record(bytes(size)), "bad_json", "not JSON") for size in (100, 50_000, 200)]
    await DeadLetters(producer, "dead", Metrics()).put(letters)  # type: ignore[arg-type]
    assert sorted(len(sent.value or b"") for sent in producer.records("dead")) == [100, 200, 488]
    cut = [dict(sent.headers).get("cut_from_bytes") for sent in producer.records("dead")]
    assert (cut.count(b"50000"), cut.count(None)) == (1, 2)


async def test_what_nobody_can_read_is_told_with_its_offsets() -> None:
    producer = RecordingProducer(1)
    passed = Unreadable("clicks", 3, 40, 49, "corrupt", "a wrong checksum")
    await DeadLetters(producer, "dead", Metrics()).put_unreadable([passed])  # type: ignore[arg-type]
    [sent] = producer.records("dead")
    headers = dict(sent.headers)
    assert (headers["offset"], headers["last_offset"], headers["reason"]) == (b"40", b"49", b"corrupt")
    assert (sent.key, sent.value) == (b"clicks/3/40", None)
