"""Baseline: Faust as its documentation teaches it. One event at a time, one table write per click, a changelog.

No encoder and no index. The value is of the mean size of our own record. Prints clicks a second and processor microseconds per click.

python -m tests.bench.naive_agent SERVERS TOPIC PARTITIONS VALUE_BYTES CLICKS
"""

import asyncio
import contextlib
import sys
import tempfile
import time
import uuid
from typing import Any

import faust


def main(servers: str, topic: str, partitions: str, value_bytes: str, clicks: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        app = faust.App(
            f"naive-{uuid.uuid4().hex[:8]}",
            broker=[f"kafka://{server}" for server in servers.split(",")],
            store="memory://",
            datadir=folder,
            topic_partitions=int(partitions),
            topic_replication_factor=1,
            web_enabled=False,
            autodiscover=False,
        )
        asyncio.run(_run(app, topic, int(value_bytes), int(clicks)))


async def _run(app: faust.App, topic: str, value_bytes: int, clicks: int) -> None:
    finished: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    profiles = app.Table("profiles", key_type=bytes, value_type=bytes, partitions=app.conf.topic_partitions)
    filler = bytes(value_bytes)
    warm = clicks // 10  # the first ones pay for the start

    async def apply(stream: Any) -> None:
        count, started, cpu_s = 0, 0.0, 0.0
        async for click in stream:
            old = profiles.get(click["user_id"].encode())
            profiles[click["user_id"].encode()] = (
                click["item_id"].encode() + (old or filler)[len(click["item_id"]) :]
            )
            count += 1
            if count == warm:
                started, cpu_s = time.monotonic(), time.process_time()
            elif count == clicks and not finished.done():
                used_us = 1e6 * (time.process_time() - cpu_s) / (clicks - warm)
                finished.set_result(f"{(clicks - warm) / (time.monotonic() - started)} {used_us}")

    app.agent(app.topic(topic, value_serializer="json", key_type=bytes))(apply)
    await app.start()
    print(await finished, flush=True)
    # What it has left in hand is nobody's: end without Faust's orderly stop.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(app.stop(), 5.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
