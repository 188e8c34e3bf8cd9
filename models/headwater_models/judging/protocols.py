"""Protocols: what is asked of a recommender, and what it may have learned before.

- `leave-one-out`: each user's last event is asked for, right before it, from all events before; the one before last is
  for validation. Users with fewer than three events only train. Seen items are excluded.
- `global-time`: models learn up to a moment. Each later event is asked for, from all the user's events before it. Models
  stay as they were.
- `list-at-split`: one list per user at that moment, from what was known then. All later events are its targets.
- `prequential`: events are replayed in time order, each predicted before it is learned: counts go on as histories do. A
  seeded sample of the events is asked for.

The protocols in time hold back some users' last event before the moment for validation. No items are sampled: every
ranking is over the whole catalog.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal, get_args

import numpy as np

from headwater_models.arrays import F32, I64, Bools
from headwater_models.data import complete_journey
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log, ends_at, epoch_ms, prefixes

Protocol = Literal["leave-one-out", "global-time", "list-at-split", "prequential"]
At = float | datetime  # the share of events before the split, or its moment

# Datasets whose published figures are not split at nine tenths of the events.
_USUAL_AT: Final[dict[str, At]] = {"complete-journey": complete_journey.SPLIT}
_VALIDATION_USERS: Final = 1_000
_PREQUENTIAL_CASES: Final = 10_000


@dataclass(frozen=True)
class Cases:
    """Questions, each answered by one ranking of all items: case c asks about user users[c] at now_ms[c]."""

    users: I64  # (cases,) rows of log.users
    ends: I64  # (cases,) the history is the log's rows log.starts[user] to ends, exclusive
    now_ms: I64  # (cases,)
    target_starts: I64  # (cases + 1,) case c owns targets target_starts[c] to target_starts[c + 1]
    targets: I64  # (targets,) items
    mask_seen: bool  # the history's items are excluded from the ranking
    remembered: int | None = None  # how many newest events of a history are known; None: all

    def __len__(self) -> int:
        return len(self.users)

    @property
    def case_of_target(self) -> I64:
        """The case of each target: (targets,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.target_starts))


@dataclass(frozen=True)
class Split:
    """A dataset under a protocol: what may be learned, and the questions."""

    protocol: str
    log: Log  # the whole log: histories are prefixes of its users' rows
    train: Log  # what a model may learn from; the same users and numbers
    validation: Cases
    test: Cases
    at_ms: int | None = None  # the moment of a split in time


# Scores (cases of the slice, items), higher is better; -inf: never recommend.
Scorer = Callable[[Log, Cases, slice], F32]


def split(
    dataset: Dataset, protocol: Protocol, at: At | None = None, sample: int | None = None, seed: int = 0
) -> Split:
    """A dataset under a protocol. `at` is for protocols in time; with `sample`, only that many questions, drawn by the seed.

    Raises DatasetError: an unknown protocol, a split that is no share or date, or nothing left to ask.
    """
    log, rng = dataset.log, np.random.default_rng(seed)
    if protocol == "leave-one-out":
        found = _leave_one_out(log)
    elif protocol in get_args(Protocol):
        at_ms = _moment(log, _USUAL_AT.get(dataset.name, 0.9) if at is None else at)
        found = _in_time(log, protocol, at_ms, rng)
    else:
        raise DatasetError(f"{protocol} is no protocol: expected one of {', '.join(get_args(Protocol))}")
    if not len(found.test):
        raise DatasetError(
            f"{dataset.name} leaves nothing to ask under {protocol}: expected users with three events or more for "
            "leave-one-out, and events after the split for the protocols in time"
        )
    if sample is None and protocol == "prequential":
        sample = _PREQUENTIAL_CASES
    if sample is None or sample >= len(found.test):
        return found
    chosen = np.sort(rng.choice(len(found.test), sample, replace=False))
    return Split(protocol, log, found.train, found.validation, select(found.test, chosen), found.at_ms)


def discoveries(log: Log, cases: Cases) -> Cases:
    """The same questions for items outside the history, with the history's items excluded.

    An item counts once per case; cases without such a target are left out.
    """
    owners, rows = histories(log, cases, slice(0, len(cases)))
    items = max(log.items.max(initial=0), cases.targets.max(initial=0)) + 1
    asked = np.unique(cases.case_of_target * items + cases.targets)
    new = np.setdiff1d(asked, owners * items + log.items[rows], assume_unique=False)
    cases_left, counts = np.unique(new // items, return_counts=True)
    return replace(_asked(cases, cases_left, counts, new % items), mask_seen=True)


def of_targets(cases: Cases, items: Bools) -> Cases:
    """The same questions for the targets in `items` (items,) only; cases without such a target are left out."""
    wanted = items[cases.targets]
    owners, counts = np.unique(cases.case_of_target[wanted], return_counts=True)
    return _asked(cases, owners, counts, cases.targets[wanted])


def delayed(log: Log, cases: Cases, delay_ms: int) -> Cases:
    """The same questions, if events reached the history only `delay_ms` after they happen."""
    latest = cases.now_ms - delay_ms
    ends = [
        start + np.searchsorted(log.at_ms[start:end], last, side="right")
        for start, end, last in zip(log.starts[cases.users], cases.ends, latest, strict=True)
    ]
    return replace(cases, ends=np.array(ends))


def histories(log: Log, cases: Cases, part: slice) -> tuple[I64, I64]:
    """The events known to the cases of a slice, as pairs (events,): case, counted from the slice's start, and
    row of the log.
    """
    starts, ends = log.starts[cases.users[part]], cases.ends[part]
    if cases.remembered is not None:
        starts = np.maximum(starts, ends - cases.remembered)
    return _ranges(starts, ends)


def select(cases: Cases, chosen: I64) -> Cases:
    """The cases `chosen` (n,), in that order."""
    _, places = _ranges(cases.target_starts[chosen], cases.target_starts[chosen + 1])
    return _asked(cases, chosen, np.diff(cases.target_starts)[chosen], cases.targets[places])


def _asked(cases: Cases, chosen: I64, counts: I64, targets: I64) -> Cases:
    """The cases `chosen`, each asked for its own `counts` of the `targets`."""
    return replace(
        cases,
        users=cases.users[chosen],
        ends=cases.ends[chosen],
        now_ms=cases.now_ms[chosen],
        target_starts=np.concatenate([[0], np.cumsum(counts)]),
        targets=targets,
    )


def _leave_one_out(log: Log) -> Split:
    users = np.flatnonzero(np.diff(log.starts) >= 3)
    last = log.starts[users + 1] - 1
    ends = log.starts[1:].copy()
    ends[users] -= 2
    return Split(
        "leave-one-out",
        log,
        prefixes(log, ends),
        validation=next_events(log, last - 1, mask_seen=True),
        test=next_events(log, last, mask_seen=True),
    )


def _in_time(log: Log, protocol: str, at_ms: int, rng: np.random.Generator) -> Split:
    ends = ends_at(log, at_ms)
    several = np.flatnonzero(ends - log.starts[:-1] >= 2)
    held_out = rng.permutation(several)[: min(_VALIDATION_USERS, len(several) // 10)]
    known = ends.copy()
    known[held_out] -= 1
    if protocol == "list-at-split":
        users = np.flatnonzero(log.starts[1:] > ends)
        _, rows = _ranges(ends[users], log.starts[users + 1])
        counts = (log.starts[1:] - ends)[users]
        starts = np.concatenate([[0], np.cumsum(counts)])
        now_ms = np.full(len(users), at_ms)
        test = Cases(users, ends[users], now_ms, starts, log.items[rows], mask_seen=False)
    else:
        rows = np.flatnonzero(log.at_ms >= at_ms)
        if protocol == "prequential":
            rows = rows[np.argsort(log.at_ms[rows], kind="stable")]
        test = next_events(log, rows, mask_seen=False)
    validation = next_events(log, np.sort(known[held_out]), mask_seen=False)
    return Split(protocol, log, prefixes(log, known), validation, test, at_ms)


def next_events(log: Log, rows: I64, *, mask_seen: bool) -> Cases:
    """The events at these rows (cases,), each asked for at its own time, from all that the user did before."""
    starts = np.arange(len(rows) + 1)
    return Cases(log.owners[rows], rows, log.at_ms[rows], starts, log.items[rows], mask_seen)


def _moment(log: Log, at: At) -> int:
    if isinstance(at, datetime):
        return epoch_ms(at if at.tzinfo else at.replace(tzinfo=UTC))
    if not 0 < at < 1:
        raise DatasetError(f"the split is at {at}: expected a share of the events between 0 and 1, or a date")
    return int(np.quantile(log.at_ms, at))


def _ranges(starts: I64, ends: I64) -> tuple[I64, I64]:
    """For each n the numbers from starts[n] to ends[n] (exclusive), flat, and the n of each."""
    lengths = ends - starts
    owners = np.repeat(np.arange(len(starts)), lengths)
    return owners, np.arange(len(owners)) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
