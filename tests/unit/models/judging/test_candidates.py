"""The pools that a scorer learns from are those that it is given when it serves."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from headwater.encoder import runtime as encoders
from headwater.encoder.features import ACTION_CODES, CANDIDATE_FEATURES
from headwater.encoder.neighbours import Neighbours
from headwater.index import Point
from headwater.index.edge import EdgeIndex
from headwater.index.item_vectors import F32
from headwater.recall.popularity import PopularItem
from headwater_models.data.datasets import Dataset
from headwater_models.data.events import Log
from headwater_models.judging.candidates import Pooling
from headwater_models.judging.evaluation import encoded
from headwater_models.judging.protocols import Split, next_events
from headwater_models.judging.served import Counting
from headwater_models.judging.trending import Trending
from tests.support.interests_worker import STARTER
from tests.unit.paths.test_requests import Asked

ITEMS = [
    *(
        "apples",
        "bread",
        "butter",
        "candles",
        "carrots",
        "cat litter",
        "cereal",
        "cheese",
        "chicken",
        "coffee",
    ),
    *(
        "cookies",
        "dog food",
        "eggs",
        "flour",
        "frozen pizza",
        "grapes",
        "ice cream",
        "lettuce",
        "milk",
        "napkins",
    ),
    *(
        "onions",
        "orange juice",
        "pasta",
        "potatoes",
        "rice",
        "salmon",
        "shampoo",
        "soda",
        "tea bags",
        "yogurt",
    ),
]
POOL = 8
DAY_MS = 86_400_000


def shopper() -> Dataset:
    """Ann comes every second day for six things, some of them always, and is in the midst of her fifteenth visit."""
    rng = np.random.default_rng(0)
    visits = [[12, 13, *rng.choice(12, 4, replace=False).tolist()] for _ in range(15)]
    items = np.concatenate(visits)[:-2]
    at_ms = 1_750_000_000_000 + np.array(
        [2 * DAY_MS * (n // 6) + 60_000 * (n % 6) for n in range(len(items))]
    )
    log = Log(["ann"], np.array([0, len(items)]), items, np.full(len(items), ACTION_CODES["purchase"]), at_ms)
    return Dataset("ann", ITEMS, ITEMS, log, "made up")


def table(keys: np.ndarray[Any, np.dtype[np.uint64]]) -> Neighbours:
    """Each item goes with the three that come after it, the less the further."""
    order = np.argsort(keys)
    row = np.argsort(order)
    near = np.sort(row[(order[:, None] + [1, 2, 3]) % len(keys)], axis=1)
    likeness = np.linspace(0.1, 0.9, near.size, dtype=np.float32)
    return Neighbours(keys[order], np.arange(len(keys) + 1) * 3, near.ravel(), likeness, 1_800_000)


@pytest.mark.parametrize("mask_seen", [False, True])
async def test_a_scorer_is_given_the_same_of_a_request_as_of_the_question_in_training(
    mask_seen: bool, tmp_path: Path
) -> None:
    data, encoder = shopper(), encoders.load(STARTER)
    given: list[tuple[F32, ...]] = []

    def score(*candidates: F32) -> F32:
        given.append(candidates)
        return np.arange(len(candidates[0]), dtype=np.float32)

    catalog = encoded(encoder, data)
    encoder.neighbours, encoder.pool = table(catalog.keys), POOL
    encoder.score = score  # type: ignore[method-assign]
    # Asked at the end of the log, of which the question's own event is the last.
    rows = np.array([len(data.log.items) - 1])
    cases = replace(next_events(data.log, rows, mask_seen=mask_seen), remembered=encoder.log_length)
    asked = Split("prequential", data.log, data.log, cases, cases, 0)
    pooling = Pooling(encoder, catalog, asked, POOL)
    (pool,), _ = await asyncio.to_thread(pooling, data.log, cases, slice(0, 1))
    now_ms = int(cases.now_ms[0])
    weights = Trending.of(asked, len(ITEMS)).weights(now_ms, np.arange(len(ITEMS)))
    popular = [
        PopularItem(key, item_id, float(weight))
        for key, item_id, weight in zip(catalog.keys.tolist(), ITEMS, weights, strict=True)
        if weight > 0
    ]

    index = await EdgeIndex.open(tmp_path, encoder.dim)
    points = zip(catalog.keys.tolist(), ITEMS, catalog.vectors, strict=True)
    await index.put(
        [
            Point(key, item_id, vector, {"item_id": item_id, "available": True}, None, 0, offset)
            for offset, (key, item_id, vector) in enumerate(points)
        ]
    )
    worker = Asked(encoder, index, dict(zip(ITEMS, ITEMS, strict=True)), popular)
    before = slice(0, rows[0])
    for item, at_ms in zip(data.log.items[before].tolist(), data.log.at_ms[before].tolist(), strict=True):
        await worker.apply(worker.click("ann", ITEMS[item], action="purchase", at_ms=at_ms))
    await worker.answer("ann", at_ms=now_ms, limit=3, exclude_seen=mask_seen)
    await worker.close()
    await index.close()

    ((features, nearest, vectors),) = given
    order = rows_of(vectors, catalog.vectors)
    assert sorted(order) == sorted(pool.items.tolist())
    served = np.argsort(order)
    trained = np.argsort(pool.items)
    told = {name: n for n, name in enumerate(CANDIDATE_FEATURES)}
    counted = Counting(encoder.log_length)(data.log, cases).levels
    assert np.count_nonzero(counted) > 5
    assert (pool.features[:, told["again"]] > 0).any() != mask_seen
    assert (pool.features[:, told["similar"]] > 0).sum() >= 3
    # A worker keeps states in half precision.
    close = {
        name: 2e-2 if name in ("score", "below_best", "below_own_best") else 1e-6
        for name in CANDIDATE_FEATURES
    }
    for name, place in told.items():
        np.testing.assert_allclose(
            features[served, place], pool.features[trained, place], atol=close[name], err_msg=name
        )
    np.testing.assert_allclose(nearest[served], pool.nearest[trained], atol=2e-3)


def rows_of(vectors: F32, all_vectors: F32) -> Sequence[int]:
    """Which items these vectors are of."""
    return cast(Sequence[int], np.abs(vectors[:, None] - all_vectors).sum(axis=2).argmin(axis=1).tolist())
