"""What a bundle costs when it serves: bytes, and microseconds of a click, an answer, a search and a scored pool."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from headwater.encoder.features import ACTION_CODES, CANDIDATE_FEATURES
from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32, F64
from headwater_models.judging.evaluation import best

USERS: Final = 32  # of a batch


@dataclass(frozen=True)
class Cost:
    """Bytes, and median microseconds per user, alone and in a batch of USERS, on one thread."""

    bytes: int  # of the folder's files
    click_us: tuple[float, float] | None  # one event into the state; None without a state
    answer_us: tuple[float, float]  # from the state to interests; without a state, from a full log
    search_us: tuple[float, float]  # the best 10 of the catalog by exact search
    score_us: tuple[float, float] | None = None  # a pool of candidates scored again; None without a scorer


def measured(encoders: Sequence[Encoder], items: int, rounds: int = 100, seed: int = 0) -> list[Cost]:
    """Costs of several encoders over a catalog of `items` items.

    They are measured in turns, so that a disturbance of the machine hits all alike.
    """
    works = [_works(encoder, items, np.random.default_rng(seed)) for encoder in encoders]
    us = [{name: np.empty(rounds) for name in work} for work in works]
    for turn in range(-1, rounds):  # the first turn warms up
        for work, found in zip(works, us, strict=True):
            for name, run in work.items():
                began = time.perf_counter_ns()
                run()
                found[name][turn] = (time.perf_counter_ns() - began) / 1000

    def of(found: dict[tuple[str, int], F64], what: str) -> tuple[float, float]:
        one, many = (float(np.median(found[what, users])) / users for users in (1, USERS))
        return round(one, 2), round(many, 2)

    return [
        Cost(
            bytes=sum(file.bytes for file in encoder.manifest.files.values()),
            click_us=of(found, "click") if encoder.kind == "recurrent" else None,
            answer_us=of(found, "answer"),
            search_us=of(found, "search"),
            score_us=of(found, "score") if encoder.pool else None,
        )
        for encoder, found in zip(encoders, us, strict=True)
    ]


def _works(
    encoder: Encoder, catalog: int, rng: np.random.Generator
) -> dict[tuple[str, int], Callable[[], object]]:
    """(what, users at once) -> the work. Vectors are random, since no time depends on their values."""
    vectors = rng.standard_normal((catalog, encoder.dim), dtype=np.float32)
    works: dict[tuple[str, int], Callable[[], object]] = {}
    for users in (1, USERS):
        length = 1 if encoder.kind == "recurrent" else encoder.log_length
        items = vectors[rng.integers(0, len(vectors), (users, length))]
        actions = np.full((users, length), ACTION_CODES["click"])
        gaps, mask = np.ones((2, users, length), dtype=np.float32)
        now = np.ones(users, dtype=np.float32)
        if encoder.kind == "recurrent":
            state = encoder.step(encoder.initial_state(users), items, actions, gaps, mask)
            given = (state, items, actions, gaps, mask)
            works["click", users] = partial(encoder.step, *given)
            works["answer", users] = partial(encoder.read, state, now)
            interests, _ = encoder.read(state, now)
        else:
            log = (items, actions, gaps, mask, now)
            works["answer", users] = partial(encoder.window, *log)
            interests, _ = encoder.window(*log)
        works["search", users] = partial(_search, interests, vectors)
        if encoder.pool:
            candidates = vectors[rng.integers(0, len(vectors), users * encoder.pool)]
            features = rng.standard_normal((len(candidates), len(CANDIDATE_FEATURES)), dtype=np.float32)
            works["score", users] = partial(encoder.score, features, candidates, candidates)
    return works


def _search(interests: F32, vectors: F32) -> object:
    """Exact search: interests (users, K, dim), vectors (items, dim). An item scores its best product."""
    return best((interests @ vectors.T).max(axis=1), 10)
