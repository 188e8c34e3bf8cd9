"""Baseline: a plain Faust agent that answers each message with itself, on the same broker.

python -m tests.bench.echo_agent SERVERS IN OUT FOLDER
"""

import asyncio
import sys
from typing import Any

import faust
import uvloop


async def _run(servers: str, asked: str, answered: str, folder: str) -> None:
    app = faust.App(
        f"echo-{asked}",
        broker=[f"kafka://{server}" for server in servers.split(",")],
        store="memory://",
        datadir=folder,
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
        autodiscover=False,
        topic_disable_leader=True,
        producer_linger_ms=0,
        consumer_auto_offset_reset="earliest",
    )
    answers = app.topic(answered, key_serializer="raw", value_serializer="raw")

    async def echo(stream: Any) -> None:
        async for event in stream.events():
            await answers.send(key=event.key, value=event.value)

    app.agent(app.topic(asked, key_serializer="raw", value_serializer="raw"))(echo)
    await app.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_run(*sys.argv[1:]))
