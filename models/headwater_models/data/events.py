"""The event log as arrays: order, prefixes and histories, shared by training and evaluation."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
import polars as pl

from headwater.encoder.features import ACTION_CODES
from headwater.messages import SESSION_ACTIONS
from headwater_models.arrays import F32, I64, Bools


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Events sorted by time, in file order among equals; tied events of one user move one millisecond apart.

    The engine orders a user's log by time and then by a hash, so ties would lose the order of the file. A tie pushes later
    events on: 10, 10, 10, 11 become 10, 11, 12, 13.
    """
    rank = pl.int_range(pl.len()).over("user_id")
    # at' = rank + running max of (at - rank): the smallest strictly increasing sequence that is nowhere earlier.
    moved = (pl.col("at_ms") - rank).cum_max().over("user_id") + rank
    return (
        frame.sort("at_ms", maintain_order=True).with_columns(at_ms=moved).sort("at_ms", maintain_order=True)
    )


# Positive events: the actions that step an encoder when it serves.
POSITIVE_ACTIONS: Final = SESSION_ACTIONS


@dataclass(frozen=True)
class Log:
    """Events grouped by user, in order of time: user u owns rows starts[u] to starts[u + 1]."""

    users: list[str]
    starts: I64  # (users + 1,)
    items: I64  # (events,) rows of the catalog
    actions: I64  # (events,) action codes
    at_ms: I64  # (events,)

    @property
    def owners(self) -> I64:
        """The user of each event: (events,)."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.starts))


def log_of(frame: pl.DataFrame, item_ids: pl.Series) -> Log:
    """The log of ordered events.

    An item's number is its position in `item_ids`; events of other items are left out.
    """
    rows = pl.DataFrame({"item_id": item_ids}).with_row_index("item")
    frame = frame.join(rows, on="item_id", how="inner", maintain_order="left")
    frame = frame.with_columns(code=pl.col("action").replace_strict(ACTION_CODES, return_dtype=pl.Int64))
    users = frame["user_id"].unique().sort()
    numbers = pl.DataFrame({"user_id": users}).with_row_index("user")
    frame = frame.join(numbers, on="user_id", maintain_order="left").sort("user", maintain_order=True)
    starts = np.searchsorted(frame["user"].to_numpy(), np.arange(len(users) + 1))
    return Log(
        users=users.to_list(),
        starts=starts.astype(np.int64),
        items=frame["item"].to_numpy().astype(np.int64),
        actions=frame["code"].to_numpy(),
        at_ms=frame["at_ms"].to_numpy(),
    )


def prefixes(log: Log, ends: I64) -> Log:
    """Each user's events before row ends[user] (exclusive), with `ends` (users,). Users keep their numbers."""
    return _subset(log, np.arange(len(log.items)) < ends[log.owners])


def ends_at(log: Log, at_ms: int) -> I64:
    """The row after each user's last event before a moment: (users,)."""
    return log.starts[:-1] + np.bincount(log.owners[log.at_ms < at_ms], minlength=len(log.users))


def of_items(log: Log, items: int) -> Log:
    """The events of the first `items` items only."""
    return _subset(log, log.items < items)


def _subset(log: Log, keep: Bools) -> Log:
    counts = np.bincount(log.owners[keep], minlength=len(log.users))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Log(log.users, starts, log.items[keep], log.actions[keep], log.at_ms[keep])


def newest(log: Log, users: I64, ends: I64, length: int) -> tuple[I64, F32]:
    """Rows of each user's `length` newest events before row `ends` (exclusive), oldest first, and their mask.

    users and ends (n,) -> rows and mask (n, length), with padding (row 0, mask 0) after the events.
    """
    counts = np.minimum(ends - log.starts[users], length)
    offsets = np.arange(length)
    mask = offsets < counts[:, None]
    return np.where(mask, (ends - counts)[:, None] + offsets, 0), mask.astype(np.float32)


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970."""
    return int(moment.timestamp() * 1000)
