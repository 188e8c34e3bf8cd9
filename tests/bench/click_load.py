"""Clicks at a steady rate until it is ended, for measures that need them beside: users by Zipf 1.0, items by Zipf 0.8.

python -m tests.bench.click_load SERVERS TOPIC PARTITIONS USERS ITEM_IDS.json RATE
"""

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import uvloop
from aiokafka import AIOKafkaProducer

from headwater.kafka.partitioner import partitions_of
from headwater.kafka.publish import producer_of
from headwater.messages import Click, encode
from headwater.settings import Settings
from tests.bench import dataset

_TICK_S = 0.005
_DRAWN = 100_000
_NO_CONTEXT = msgspec.Raw(b"{}")


async def _run(servers: str, topic: str, partitions: str, users: str, item_ids: str, rate: str) -> None:
    producer = producer_of(Settings(kafka_bootstrap_servers=servers))
    pairs = _pairs(int(users), json.loads(Path(item_ids).read_text()))
    names = [b"user-%06d" % user for user in range(int(users))]
    homes = partitions_of(names, int(partitions))
    await producer.start()
    started, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - started) * int(rate))
        while sent < due:
            user, item_id = next(pairs)
            await _click(producer, topic, names[user], homes[user], item_id)
            sent += 1
        await asyncio.sleep(_TICK_S)


async def _click(producer: AIOKafkaProducer, topic: str, user: bytes, home: int, item_id: str) -> None:
    now_ms = int(time.time() * 1000)
    click = Click(uuid.uuid4().hex, user.decode(), now_ms, item_id, context=_NO_CONTEXT)
    await producer.send(topic, encode(click), key=user, partition=home)


def _pairs(users: int, item_ids: list[str]) -> Iterator[tuple[int, str]]:
    """Users and items, for ever."""
    rng = np.random.default_rng(5)
    who_is, what_is = rng.permutation(users), rng.permutation(len(item_ids))
    while True:
        who = who_is[dataset.zipf(rng, users, _DRAWN)].tolist()
        what = what_is[dataset.zipf(rng, len(item_ids), _DRAWN, 0.8)].tolist()
        for user, item in zip(who, what, strict=True):
            yield user, item_ids[item]


if __name__ == "__main__":
    uvloop.run(_run(*sys.argv[1:]))
