"""What is asked of a recommender, and what it may have learned before."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.events import Log

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cases:
    """Questions, each answered by one ranking of all items: case c is asked about user users[c] at now_ms[c]."""

    users: Ints  # (cases,) rows of log.users
    ends: Ints  # (cases,) the history is the log's rows log.starts[user] to ends, exclusive
    now_ms: Ints  # (cases,)
    target_starts: Ints  # (cases + 1,) case c owns targets target_starts[c] to target_starts[c + 1]
    targets: Ints  # (targets,) items
    mask_seen: bool  # the items of the history are out of the ranking

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Split:
    protocol: str
    log: Log  # the whole log: histories are prefixes of its users' rows
    train: Log  # what a model may learn from; numbers the same users
    validation: Cases
    test: Cases
    at_ms: int | None = None  # the moment of a split in time


# Scores (cases of the slice, items), higher is better; -inf: never recommend.
Scorer = Callable[[Log, Cases, slice], Floats]
