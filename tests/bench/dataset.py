"""What the benchmarks feed: real products as the catalog, clicks drawn by Zipf's law, both in record batches."""

import time
from collections.abc import Iterator

import msgspec
import numpy as np

from headwater.kafka.partitioner import partitions_of
from headwater.kafka.publish import Outgoing, producer_of, write_all
from headwater.messages import Click, Item, encode
from headwater.settings import Settings
from headwater_models.data import complete_journey

_NO_CONTEXT = msgspec.Raw(b"{}")


def items(count: int) -> list[Item]:
    """``count`` products of Complete Journey, spread evenly over the catalog."""
    products = complete_journey.catalog()
    chosen = products.gather_every(max(products.height // count, 1)).head(count)
    return [
        Item(
            row["item_id"],
            row["title"],
            row["description"],
            row["tags"],
            row["category"],
            row["price"],
            attributes={name: value for name, value in row["attributes"].items() if value is not None},
        )
        for row in chosen.iter_rows(named=True)
    ]


def zipf(rng: np.random.Generator, kinds: int, count: int, exponent: float = 1.0) -> np.ndarray:
    """``count`` draws of 0..kinds-1, the k-th likeliest with probability proportional to k^-exponent."""
    weights = np.arange(1, kinds + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(weights)
    return np.searchsorted(cumulative / cumulative[-1], rng.random(count)).clip(max=kinds - 1)


def clicks(
    item_ids: list[str],
    users: int,
    count: int,
    *,
    seed: int,
    spacing_ms: int = 20,
    until_s_ago: int = 0,
    first: int = 0,
) -> Iterator[Outgoing]:
    """Clicks in order of time, the last so long ago: users by Zipf 1.0, items by Zipf 0.8.

    Their events are numbered from ``first``: the same clicks with other numbers are new events.
    """
    rng = np.random.default_rng(seed)
    who = rng.permutation(users)[zipf(rng, users, count)].tolist()
    what = rng.permutation(len(item_ids))[zipf(rng, len(item_ids), count, 0.8)].tolist()
    first_ms = int(time.time() * 1000) - 1000 * until_s_ago - count * spacing_ms
    for number, (user, item) in enumerate(zip(who, what, strict=True)):
        user_id = f"user-{user:06d}"
        event_id = f"{seed:08x}-{first + number:012x}"
        click = Click(event_id, user_id, first_ms + number * spacing_ms, item_ids[item], context=_NO_CONTEXT)
        yield Outgoing(user_id.encode(), encode(click))


async def publish(settings: Settings, topic: str, partitions: int, records: Iterator[Outgoing]) -> list[int]:
    """Write keyed records to the partitions of their keys as whole record batches; the count of each partition."""
    by_partition: list[list[Outgoing]] = [[] for _ in range(partitions)]
    chosen = list(records)
    homes = partitions_of([record.key or b"" for record in chosen], partitions)
    for record, home in zip(chosen, homes, strict=True):
        by_partition[home].append(record)
    producer = producer_of(settings)
    await producer.start()
    try:
        for partition, mine in enumerate(by_partition):
            await write_all(producer, topic, partition, mine)
    finally:
        await producer.stop()
    return [len(mine) for mine in by_partition]
