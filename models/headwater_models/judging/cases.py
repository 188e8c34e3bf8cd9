"""Cases of a file as questions: histories and what came next, over the items of a catalog."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from headwater.encoder.features import ACTION_CODES, item_text
from headwater.files.cases import Case
from headwater.messages import Item
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log
from headwater_models.judging.protocols import Cases, Split, of_targets, select


def asked_of(
    path: Path,
    rows: Sequence[Case],
    catalog: Sequence[Item],
    clicks: Dataset | None,
    *,
    mask_seen: bool = False,
    sample: int | None = None,
    seed: int = 0,
) -> tuple[Dataset, Split]:
    """The data of a file of cases, in which each case is a user, and its questions.

    Rankings are over the catalog and all items that the cases and clicks name. Histories are taken as clicks.

    Args:
        clicks: what a model may have learned from: popularity is theirs, and targets without any of these events are asked
            for apart, as `cold`. None: popularity is that of the histories.
        mask_seen: a history's items are out of the ranking.
        sample: how many cases to take, drawn by the seed.

    Raises:
        DatasetError: there are no cases.
    """
    if not rows:
        raise DatasetError(f"{path} has no cases: expected a history and what came next in each row")
    texts = {item.item_id: _text(item) for item in catalog}
    if clicks is not None and not texts:
        texts = dict(zip(clicks.item_ids, clicks.texts or [], strict=False))
    named = {item for row in rows for item in (*row.history, *row.target)}
    if clicks is not None:
        named.update(clicks.item_ids)
    item_ids = [*texts, *sorted(named - texts.keys())]
    numbers = {item_id: number for number, item_id in enumerate(item_ids)}
    items = np.array([numbers[item] for row in rows for item in row.history], dtype=np.int64)
    at_ms = np.array([each for row in rows for each in _apart(row.times)], dtype=np.int64)
    lengths = np.array([len(row.history) for row in rows], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    log = Log(_names(rows), starts, items, np.full(len(items), ACTION_CODES["click"]), at_ms)
    _, people = np.unique([row.user_id or f"\0{row.line}" for row in rows], return_inverse=True)
    newest = at_ms[np.maximum(starts[1:] - 1, 0)] if len(at_ms) else np.zeros(len(rows), dtype=np.int64)
    test = Cases(
        users=np.arange(len(rows)),
        ends=starts[1:],
        now_ms=np.maximum([row.at_ms for row in rows], np.where(lengths > 0, newest, 0)),
        target_starts=np.concatenate([[0], np.cumsum([len(row.target) for row in rows])]),
        targets=np.array([numbers[item] for row in rows for item in row.target], dtype=np.int64),
        mask_seen=mask_seen,
        people=people,
    )
    if sample is not None and sample < len(test):
        test = select(test, np.sort(np.random.default_rng(seed).choice(len(test), sample, replace=False)))
    train, apart = log, {}
    if clicks is not None:
        place = np.array([numbers[item_id] for item_id in clicks.item_ids], dtype=np.int64)
        train = replace(clicks.log, items=place[clicks.log.items])
        cold = np.bincount(train.items, minlength=len(item_ids)) == 0
        if cold[test.targets].any():
            apart["cold"] = of_targets(test, cold)
    data = Dataset(
        path.name,
        item_ids,
        [*texts.values()] if texts else None,
        log,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    nothing = select(test, np.zeros(0, dtype=np.int64))
    return data, Split("cases", log, train, validation=nothing, test=test, apart=apart)


def _text(item: Item) -> str:
    return item_text(item.title, item.description, item.category, item.tags, item.attributes)


def _names(rows: Sequence[Case]) -> list[str]:
    """A name of its own for each case, since a user may have several."""
    return [f"{row.user_id or 'case'} at {row.line}" for row in rows]


def _apart(times: Sequence[int]) -> list[int]:
    """Times that rise: equal ones move one millisecond apart, as events of a user do."""
    found: list[int] = []
    for each in times:
        found.append(max(each, found[-1] + 1) if found else each)
    return found
