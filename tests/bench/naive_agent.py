"""Baseline: Faust as its documentation teaches it. One event at a time, one table write per click, a changelog.

No encoder and no index. A user's value has the size of our own record of that user: a head, and an entry for each of
the newest 50 events. Prints clicks a second and processor microseconds per click.

python -m tests.bench.naive_agent SERVERS TOPIC PARTITIONS HEAD_BYTES ENTRY_BYTES CLICKS
"""

import asyncio
import contextlib
import sys
import tempfile
import time
import uuid
from typing import Any

import faust

_LOG_LENGTH = 50


def main(servers: str, topic: str, partitions: str, head_bytes: str, entry_bytes: str, clicks: str) -> None:
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
        asyncio.run(_run(app, topic, int(head_bytes), int(entry_bytes), int(clicks)))


async def _run(app: faust.App, topic: str, head_bytes: int, entry_bytes: int, clicks: int) -> None:
    finished: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    profiles = app.Table("profiles", key_type=bytes, value_type=bytes, partitions=app.conf.topic_partitions)
    nobody = bytes(head_bytes)
    log_bytes = _LOG_LENGTH * entry_bytes
    warm = clicks // 10  # the first ones pay for the start

    async def apply(stream: Any) -> None:
        count, started, cpu_s = 0, 0.0, 0.0
        async for click in stream:
            user = click["user_id"].encode()
            old = profiles.get(user) or nobody
            entry = click["item_id"].encode().ljust(entry_bytes)[:entry_bytes]
            profiles[user] = old[:head_bytes] + (old[head_bytes:] + entry)[-log_bytes:]
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
