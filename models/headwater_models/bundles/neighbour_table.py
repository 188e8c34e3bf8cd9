"""From events to the table of neighbours of a bundle: which items are taken together in one session, and how they are again.

    likeness(i, j) = n_ij / (n_i + n_j - n_ij + shrink)

n counts the sessions with i, with j and with both; with a ``reach``, n_ij is the sum of 1/d over the times that they come d
events apart, up to the number of those sessions. It is the Jaccard index (1912), damped as in ItemKNN, so that items
which share two sessions of two are no close neighbours (item-to-item by co-occurrence: Linden, Smith and York 2003).
Each item keeps its most alike neighbours. With `new`, it is also next to items without an event, by rare words that their texts
share, all of them behind what is taken together. Of each the table also says how often a user takes it again, and how its share of
the last four weeks compares with its usual one; the source `buy-again` weighs repeats by both.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from scipy import sparse

from headwater.encoder import neighbours
from headwater.encoder import runtime as encoder
from headwater.encoder.bundle import NeighbourTable
from headwater.encoder.features import item_key
from headwater.encoder.neighbours import MAX_ITEMS, Neighbours, Repeats
from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32, I64, Bools
from headwater_models.bundles import export
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log
from headwater_models.judging.protocols import Split

FILE = "neighbours.npz"
_CHUNK = 1024  # items multiplied with all others at once
_LATELY_MS = 28 * 86_400_000
# Smoothing: each item gets this many users, or sessions, of the mean item, so that rare items stay near the mean.
_PRIOR = 5.0


@dataclass(frozen=True)
class TableConfig:
    """Chosen on Complete Journey's November, before the split (`models/RESULTS.md`, "What goes with a session")."""

    neighbours: int = 20  # of each item, at most
    together: int = 3  # sessions that two neighbours have to share
    shrink: float = 50.0
    pause_s: float = 1800.0  # the usual end of a visit on the web; at a till it tells baskets apart
    # Above 0, only items at most this many events apart are together, nearer ones more: for data without times, in which
    # all that a user ever did is one session.
    reach: int = 0
    new: int = 0  # items without an event that each item is next to, by the words of their texts, at most


def make(base: Path, data: Dataset, asked: Split, out: Path, command: str, config: TableConfig) -> Encoder:
    """The bundle `base` with a table made from the training events.

    Raises DatasetError: no two items share enough sessions.
    """
    started = time.monotonic()
    source = encoder.load(base, device="cpu")
    words = _words(source.tokens(data.texts)) if config.new and data.texts else None
    table = table_of(asked.train, data.item_ids, config, words)
    if not len(table.items):
        raise DatasetError(
            f"{data.name} has no two items that share {config.together} sessions (a pause of {config.pause_s:g} s ends one): "
            "expected events of which several come close together"
        )
    manifest = source.manifest
    said = NeighbourTable(FILE, config.pause_s, len(table.keys), len(table.items))
    note = (
        f"neighbours: {json.dumps(asdict(config))} of {asked.protocol} on {data.name} ({data.fingerprint[:12]}), "
        f"{time.monotonic() - started:.1f} s, by: {command}"
    )
    notes = [note, *(old for old in manifest.origin.notes if not old.startswith("neighbours: "))]
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch)
        export.copy_bundle(source, folder)
        neighbours.write(folder / FILE, table)
        export.with_neighbours(
            folder, said, msgspec.structs.replace(manifest.origin, figures={}, notes=notes)
        )
        return export.move_bundle(folder, out)


def table_of(
    log: Log, item_ids: list[str], config: TableConfig, words: sparse.csr_matrix | None = None
) -> Neighbours:
    """The neighbours of a log's items.

    If more items have neighbours than a table holds, those in most sessions stay.

    Args:
        words: (items, words) unit rows of their texts, for the neighbours of `config.new`.
    """
    begins = _begins(log, int(config.pause_s * 1000))
    taken = _sessions(log, begins, len(item_ids))
    sessions = np.asarray(taken.sum(axis=0)).ravel()
    near = _nearness(log, begins, len(item_ids), config.reach) if config.reach else None
    found = [
        _nearest(taken, near, sessions, np.arange(start, min(start + _CHUNK, len(item_ids))), config)
        for start in range(0, len(item_ids), _CHUNK)
    ]
    items, others, likeness = (np.concatenate(column) for column in zip(*found, strict=True))
    if words is not None and len(likeness):
        own, new, cosines = _nearest_new(words, np.flatnonzero(sessions[: words.shape[0]] == 0), config.new)
        likeness = np.concatenate([likeness, cosines * likeness.min()])
        items, others = np.concatenate([items, own]), np.concatenate([others, new])
    known = np.unique(np.concatenate([items, others]))
    if len(known) > MAX_ITEMS:
        known = np.sort(known[np.argsort(-sessions[known], kind="stable")[:MAX_ITEMS]])
        kept = np.isin(items, known) & np.isin(others, known)
        items, others, likeness = items[kept], others[kept], likeness[kept]
    keys = np.array([item_key(item_ids[item]) for item in known], dtype=np.uint64)
    order = np.argsort(keys)
    rows = np.empty(len(item_ids), dtype=np.int64)
    rows[known[order]] = np.arange(len(known))
    of, to = rows[items], rows[others]
    by_row = np.lexsort((to, of))
    starts = np.searchsorted(of[by_row], np.arange(len(known) + 1))
    return Neighbours(
        keys[order],
        starts,
        to[by_row],
        likeness[by_row],
        int(config.pause_s * 1000),
        _repeats(log, *_taken_again(log, begins, taken, config), known[order]),
    )


def _taken_again(
    log: Log, begins: Bools, taken: sparse.csc_matrix, config: TableConfig
) -> tuple[Bools, sparse.csc_matrix]:
    """Where sessions begin, and their items, to count repeats by: without times, each event is a session of its own."""
    if not config.reach:
        return begins, taken
    alone = np.ones(len(begins), dtype=np.bool_)
    return alone, _sessions(log, alone, taken.shape[1])


def _repeats(log: Log, begins: Bools, taken: sparse.csc_matrix, chosen: I64) -> Repeats | None:
    """How the `chosen` items (n,) are taken again, by the entries of sessions x items; None where nothing ever is."""
    entries = taken.tocoo()
    session, item, items = entries.row, entries.col.astype(np.int64), taken.shape[1]
    owned = np.unique(log.owners[begins][session] * items + item)
    users, sessions = np.bincount(owned % items, minlength=items), np.bincount(item, minlength=items)
    mean = (sessions.sum() - users.sum()) / max(users.sum(), 1)
    if mean == 0:
        return None
    again = (sessions - users + _PRIOR * mean) / (users + _PRIOR) / mean
    newest_ms = int(log.at_ms.max())
    is_late = log.at_ms[begins][session] > newest_ms - _LATELY_MS
    usual = sessions * is_late.mean()
    lately = (np.bincount(item[is_late], minlength=items) + _PRIOR) / (usual + _PRIOR)
    return Repeats(again[chosen].astype(np.float32), lately[chosen].astype(np.float32), newest_ms)


def _begins(log: Log, pause_ms: int) -> Bools:
    """(events,) whether a session begins with an event: a user's first, and one after a longer pause than that."""
    found: Bools = np.append(True, (np.diff(log.owners) > 0) | (np.diff(log.at_ms) > pause_ms))
    return found[: len(log.items)]


def _sessions(log: Log, begins: Bools, items: int) -> sparse.csc_matrix:
    """Sessions by items, 1 where a session has an item; `begins` (events,)."""
    session = np.cumsum(begins) - 1
    taken = sparse.csc_matrix(
        (np.ones(len(session), dtype=np.float32), (session, log.items)),
        shape=(int(begins.sum()), items),
    )
    taken.data[:] = 1  # duplicates were summed
    return taken


def _nearness(log: Log, begins: Bools, items: int, reach: int) -> sparse.csr_matrix:
    """(items, items) the sum of 1/d over all pairs of events that are d events apart in one session, d up to `reach`."""
    session = np.cumsum(begins)
    total = sparse.csr_matrix((items, items), dtype=np.float32)
    for apart in range(1, reach + 1):
        is_one = session[apart:] == session[:-apart]
        first, second = log.items[:-apart][is_one], log.items[apart:][is_one]
        weights = np.full(len(first), 1 / apart, dtype=np.float32)
        pairs = sparse.csr_matrix((weights, (first, second)), shape=(items, items))
        total = total + pairs + pairs.T
    return total


def _nearest(
    taken: sparse.csc_matrix,
    near: sparse.csr_matrix | None,
    sessions: F32,
    items: I64,
    config: TableConfig,
) -> tuple[I64, I64, F32]:
    """Pairs of some items with all others, as (item, neighbour, likeness), each (pairs,)."""
    common = (taken[:, items].T @ taken).tocoo()
    own, other, both = items[common.row], common.col.astype(np.int64), common.data
    pairs = (own != other) & (both >= config.together)
    own, other, both = own[pairs], other[pairs], both[pairs]
    if near is not None:
        both = np.minimum(np.asarray(near[own, other], dtype=np.float32).ravel(), both)
        own, other, both = own[both > 0], other[both > 0], both[both > 0]
    likeness = both / (sessions[own] + sessions[other] - both + np.float32(config.shrink))
    kept = _most_alike(own, likeness, config.neighbours)
    return own[kept], other[kept], likeness[kept]


def _most_alike(own: I64, likeness: F32, count: int) -> I64:
    """The places of the `count` greatest likenesses (pairs,) of each of the items `own` (pairs,), item by item."""
    best = np.lexsort((-likeness, own))
    place = np.arange(len(best)) - np.searchsorted(own[best], own[best])
    return best[place < count]


def _words(tokens: Sequence[Sequence[int]]) -> sparse.csr_matrix:
    """Unit rows (items, tokens) of the distinct tokens of each text, rare ones more (inverse document frequency)."""
    distinct = [list(set(each)) for each in tokens]
    starts = np.cumsum([0, *map(len, distinct)])
    columns = np.array([token for each in distinct for token in each], dtype=np.int64)
    texts = np.bincount(columns)
    weights = np.log((len(tokens) + 1) / (texts[columns] + 0.5)).astype(np.float32)
    found = sparse.csr_matrix((weights, columns, starts), shape=(len(tokens), len(texts)))
    lengths = np.sqrt(np.asarray(found.multiply(found).sum(axis=1)).ravel())
    return sparse.diags(1 / np.maximum(lengths, 1e-6)).astype(np.float32) @ found


def _nearest_new(words: sparse.csr_matrix, new: I64, count: int) -> tuple[I64, I64, F32]:
    """The pairs of each item with the `count` items of `new` whose words are most like its own, as (item, new item, cosine)."""
    found: list[tuple[I64, I64, F32]] = []
    of_new = words[new].T.tocsc()
    for start in range(0, words.shape[0], _CHUNK):
        common = (words[start : start + _CHUNK] @ of_new).tocoo()
        own, other, cosine = common.row.astype(np.int64) + start, new[common.col], common.data
        pairs = (own != other) & (cosine > 0)
        own, other, cosine = own[pairs], other[pairs], cosine[pairs]
        kept = _most_alike(own, cosine, count)
        found.append((own[kept], other[kept], cosine[kept]))
    items, others, cosines = (np.concatenate(column) for column in zip(*found, strict=True))
    return items, others, cosines
