"""Protocols: what is asked of a recommender, and what it may have learned before.

- `leave-one-out`: each user's last event is asked for, right before it, from all events before; the one before last is
  for validation. Users with fewer than three events only train. Seen items are excluded.
- `global-time`: models learn up to a moment. Each later event is asked for, from all the user's events before it. Models
  stay as they were.
- `list-at-split`: one list per user at that moment, from what was known then. All later events are its targets.
- `prequential`: events are replayed in time order, each predicted before it is learned: counts go on as histories do. A
  seeded sample of the events is asked for.
- `next-basket`: each user's last basket is asked for at its first event, from all baskets before; the one before last is
  for validation. A basket is a run of a user's events without a pause of half an hour.

The protocols in time hold back some users' last event before the moment for validation. No items are sampled: every
ranking is over the whole catalog.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal, get_args

import numpy as np

from headwater_models.arrays import F32, I64, Bools
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log, ends_at, epoch_ms, prefixes

Protocol = Literal["leave-one-out", "global-time", "list-at-split", "prequential", "next-basket"]
At = float | datetime  # the share of events before the split, or its moment

_VALIDATION_USERS: Final = 1_000
_PREQUENTIAL_CASES: Final = 10_000
# Longer than any pause at a till, and as long as the pause that ends a session elsewhere.
BASKET_PAUSE_MS: Final = 1_800_000


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
    people: I64 | None = None  # (cases,) whom each case is about, for intervals; None: its user

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
    # Question sets beside `all`. None: those of discovery, where seen items may come.
    apart: Mapping[str, Cases] | None = None


# Scores (cases of the slice, items), higher is better; -inf: never recommend.
Scorer = Callable[[Log, Cases, slice], F32]


def split(
    dataset: Dataset,
    protocol: Protocol,
    at: At | None = None,
    sample: int | None = None,
    seed: int = 0,
    validation: int = 0,
) -> Split:
    """A dataset under a protocol. `at` is for protocols in time; with `sample`, only that many questions, drawn by the seed.

    Protocols in time validate on `validation` users at least, as far as these are half of all: few questions choose by chance.

    Raises DatasetError: an unknown protocol, a split that is no share or date, or nothing left to ask.
    """
    log, rng = dataset.log, np.random.default_rng(seed)
    if protocol == "leave-one-out":
        found = _leave_one_out(log)
    elif protocol == "next-basket":
        found = _next_basket(log)
    elif protocol in get_args(Protocol):
        at_ms = _moment(log, dataset.usual_at if at is None else at)
        found = _in_time(log, protocol, at_ms, rng, validation)
    else:
        raise DatasetError(f"{protocol} is no protocol: expected one of {', '.join(get_args(Protocol))}")
    if not len(found.test):
        raise DatasetError(
            f"{dataset.name} leaves nothing to ask under {protocol}: expected users with three events or more for "
            "leave-one-out, with two baskets for next-basket, and events after the split for the protocols in time"
        )
    if sample is None and protocol == "prequential":
        sample = _PREQUENTIAL_CASES
    if sample is None or sample >= len(found.test):
        return found
    chosen = np.sort(rng.choice(len(found.test), sample, replace=False))
    return replace(found, test=select(found.test, chosen))


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


def some_of(cases: Cases, most: int) -> Cases:
    """At most so many of the cases, always the same ones, in their order."""
    return select(cases, np.sort(np.random.default_rng(0).permutation(len(cases))[:most]))


def baskets(log: Log, pause_ms: int = BASKET_PAUSE_MS) -> I64:
    """(baskets,) the rows at which a basket begins, in the order of the log: at a user's first event, and after a pause."""
    begins = np.ones(len(log.items), dtype=np.bool_)
    begins[1:] = np.diff(log.at_ms) > pause_ms
    begins[log.starts[:-1][np.diff(log.starts) > 0]] = True
    return np.flatnonzero(begins)


def _asked(cases: Cases, chosen: I64, counts: I64, targets: I64) -> Cases:
    """The cases `chosen`, each asked for its own `counts` of the `targets`."""
    return replace(
        cases,
        users=cases.users[chosen],
        ends=cases.ends[chosen],
        now_ms=cases.now_ms[chosen],
        target_starts=np.concatenate([[0], np.cumsum(counts)]),
        targets=targets,
        people=None if cases.people is None else cases.people[chosen],
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


def _next_basket(log: Log) -> Split:
    begins = baskets(log)
    owners = log.owners[begins]
    ends = np.append(begins[1:], len(log.items))
    several = np.flatnonzero(np.bincount(owners, minlength=len(log.users)) >= 2)
    last = np.searchsorted(owners, several, side="right") - 1
    three = owners[np.maximum(last - 2, 0)] == several
    known = log.starts[1:].copy()
    known[several] = begins[last]
    known[several[three]] = begins[last[three] - 1]
    return Split(
        "next-basket",
        log,
        prefixes(log, known),
        validation=_of_baskets(log, begins, ends, last[three] - 1),
        test=_of_baskets(log, begins, ends, last),
    )


def _of_baskets(log: Log, begins: I64, ends: I64, chosen: I64) -> Cases:
    """The `chosen` (cases,) baskets, each asked for at its first event; an item counts once."""
    owners, rows = _ranges(begins[chosen], ends[chosen])
    items = int(log.items.max(initial=0)) + 1
    pairs = np.unique(owners * items + log.items[rows])
    starts = np.searchsorted(pairs // items, np.arange(len(chosen) + 1))
    first = begins[chosen]
    return Cases(log.owners[first], first, log.at_ms[first], starts, pairs % items, mask_seen=False)


def _in_time(log: Log, protocol: str, at_ms: int, rng: np.random.Generator, validated: int) -> Split:
    ends = ends_at(log, at_ms)
    several = np.flatnonzero(ends - log.starts[:-1] >= 2)
    count = max(len(several) // 10, min(validated, len(several) // 2))
    held_out = rng.permutation(several)[: min(_VALIDATION_USERS, count)]
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
