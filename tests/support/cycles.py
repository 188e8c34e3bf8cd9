"""A made-up shop whose next purchase is certain: everyone buys round a circle of items, at times that say nothing."""

import numpy as np

from headwater_models.data.datasets import Dataset
from headwater_models.data.events import Log

ITEMS = 20


def dataset(users: int = 150, seed: int = 0) -> Dataset:
    """Each user begins somewhere and goes on by one item at a time, for 4 to 12 of them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 13, users)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    begin = np.repeat(rng.integers(ITEMS, size=users), lengths)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    log = Log(
        users=[f"user-{n}" for n in range(users)],
        starts=starts,
        items=(begin + place) % ITEMS,
        actions=np.full(starts[-1], 1),
        at_ms=1_700_000_000_000 + place * 60_000 + rng.integers(0, 30_000, starts[-1]),
    )
    return Dataset("cycles", [f"item-{n}" for n in range(ITEMS)], None, log, "made up")
