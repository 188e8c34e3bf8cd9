"""What a dead letter looks like on its topic, and when it is counted."""

import pytest
from aiokafka import ConsumerRecord

from headwater.kafka import dead_letters
from headwater.kafka.dead_letters import DeadLetter, DeadLetters
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
