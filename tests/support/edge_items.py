"""Items for an index in the process, and what is asked of it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import item_key
from headwater.index import Point, Query
from headwater.index.edge import EdgeIndex
from headwater.index.edge_graph import GraphPolicy
from headwater.index.filters import parse

DIM = 16
BY_HAND = GraphPolicy(min_items=1 << 40)


def vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Items of twenty kinds, as real ones come: neighbours are clear, so a graph must find what a scan finds."""
    random = np.random.default_rng(seed)
    kinds = random.normal(size=(20, DIM))
    return (kinds[np.arange(count) % 20] + 0.3 * random.normal(size=(count, DIM))).astype(np.float32)


def items(count: int, *, offset: int = 0, seed: int = 0) -> list[Point]:
    return [
        Point(
            item_key(f"item {i}"),
            f"item {i}",
            vector,
            {
                "title": f"item {i}",
                "category": f"kind {i % 20}",
                "price": float(i),
                "attributes": {"weight": i % 7},
            },
            None,
            0,
            offset,
        )
        for i, vector in enumerate(vectors(count, seed))
    ]


def remove(*names: str, offset: int) -> list[Point]:
    return [Point(item_key(name), name, None, {}, None, 0, offset) for name in names]


async def until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        await asyncio.sleep(0.005)


def names(folder: Path, pattern: str = "*") -> list[str]:
    return [path.name for path in folder.glob(pattern)]


async def answers(index: EdgeIndex, where: object = None, limit: int = 20) -> list[list[int]]:
    filter_ = None if where is None else parse(where)
    found = await index.search([Query(vector, limit, filter_) for vector in vectors(40, seed=1)])
    return [[hit.key for hit in hits] for hits in found]
