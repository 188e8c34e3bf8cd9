"""What a worker logs, for programs that collect it."""

import asyncio
import json
from collections.abc import Callable

from headwater.kafka.topics import Topics
from tests.end_to_end.conftest import System

# Bootstrap servers that are not there: the Kafka client says so, in a line of its own.
AWAY = "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"


async def test_every_line_of_a_worker_is_json_where_that_is_asked_for(
    new_system: Callable[..., System],
) -> None:
    system = new_system(log_json=True)
    worker = system.worker
    worker.settings["kafka_bootstrap_servers"] = f"{AWAY},{system.settings.bootstrap_servers}"
    await asyncio.to_thread(worker.start)
    async with system.outside() as outside:
        topic = Topics.named(system.settings.topic_prefix).clicks
        await outside.dead_letter(topic, await outside.send(topic, b"{}", key=b"ann"))
    assert await asyncio.to_thread(worker.stop) == 0
    lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= line.keys() for line in lines)
    loggers = {line["logger"].partition(".")[0] for line in lines}
    assert {"headwater", "aiokafka"} <= loggers
    events = [line["event"] for line in lines]
    assert [event for event in events if event.startswith("bundle ") and " runs on " in event]
    assert {"worker_started", "worker_ready", "dead_letters"} <= set(events)
