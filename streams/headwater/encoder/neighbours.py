"""The table of neighbours that a bundle may carry: items that are taken together in one session, and how each is taken again.

One compressed file of numpy arrays; `models/headwater_models/bundles/neighbour_table.py` makes it.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.bundle import BundleError, Manifest

# A likeness takes one byte: exp(-_STEP * byte), so it is 1.5 % off at most and reaches down to 1/2,000.
_STEP: Final = 0.03
# A row takes two bytes.
MAX_ITEMS: Final = 2**16
# A ratio takes one byte too: exp(_RATIO_STEP * (byte - 128)), 2.5 % off at most, from 1/600 to 570.
_RATIO_STEP: Final = 0.05


class Repeats(NamedTuple):
    """How the items of a table are taken again. Tables of earlier versions have none."""

    again: NDArray[np.float32]  # (items,) repeats for each user who had it, relative to the mean item's
    lately: NDArray[
        np.float32
    ]  # (items,) sessions with it in the last four weeks, relative to its usual share
    at_ms: int  # when that was


class Neighbours(NamedTuple):
    """Items in the order of their keys. The neighbours of item i stand at starts[i] to starts[i + 1]."""

    keys: NDArray[np.uint64]  # (items,) ascending
    starts: NDArray[np.int64]  # (items + 1,)
    items: NDArray[np.int64]  # (pairs,) rows of the keys, ascending for each item
    likeness: NDArray[np.float32]  # (pairs,) above 0, at most 1
    pause_ms: int  # a longer pause between two events of a user ends a session
    repeats: Repeats | None = None


def repeats_of(table: Neighbours, keys: Sequence[int]) -> dict[int, float]:
    """How the items of these keys are taken again, as ratios to the usual item; empty where the table does not tell."""
    if table.repeats is None or not keys or not len(table.keys):
        return {}
    asked = np.array(keys, dtype=np.uint64)
    rows = table.keys.searchsorted(asked).clip(max=len(table.keys) - 1)
    known = table.keys[rows] == asked
    return dict(zip(asked[known].tolist(), table.repeats.again[rows[known]].tolist(), strict=True))


def write(path: Path, table: Neighbours) -> None:
    """Write the table. Rows are stored as steps from one to the next, which compress better."""
    steps = np.diff(table.items, prepend=0)
    firsts = table.starts[:-1][np.diff(table.starts) > 0]
    steps[firsts] = table.items[firsts]
    coded = np.rint(np.log(table.likeness) / -_STEP).clip(0, 255)
    told: dict[str, NDArray[np.generic]] = {}
    if table.repeats is not None:
        for name in ("again", "lately"):
            ratio = np.log(getattr(table.repeats, name)) / _RATIO_STEP
            told[name] = (np.rint(ratio) + 128).clip(0, 255).astype(np.uint8)
        told["repeats_at_ms"] = np.array([table.repeats.at_ms], dtype="<i8")
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            keys=table.keys.astype("<u8"),
            counts=np.diff(table.starts).astype("<u2"),
            steps=steps.astype("<u2"),
            likeness=coded.astype(np.uint8),
            allow_pickle=False,
            **told,
        )


def read(path: Path, manifest: Manifest) -> Neighbours | None:
    """The table of the bundle in a folder, or None if it has none.

    Raises:
        BundleError: the file is no table, or one that does not fit together.
    """
    if manifest.neighbours is None:
        return None
    file = path / manifest.neighbours.file
    try:
        with np.load(file, allow_pickle=False) as arrays:
            keys, counts, steps, coded = (arrays[name] for name in ("keys", "counts", "steps", "likeness"))
            repeats = _repeats(arrays) if "again" in arrays else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{file} is no table of neighbours ({error}): make it again with `headwater train similar`"
        ) from error
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    fits = len(keys) == len(counts) and len(steps) == len(coded) == starts[-1]
    fits &= repeats is None or len(repeats.again) == len(repeats.lately) == len(keys)
    items = np.cumsum(steps, dtype=np.int64)
    if fits:  # each item's rows begin anew at its first step
        items -= np.repeat(np.concatenate([[0], items])[starts[:-1]], counts)
    if not fits or (keys[1:] <= keys[:-1]).any() or (items >= len(keys)).any():
        raise BundleError(
            f"{file} holds {len(keys)} keys, {len(counts)} counts, {starts[-1]} in all, {len(steps)} steps and {len(coded)} "
            "likenesses: expected a count a key, as many of the others as in all, and rows among ascending keys; make it again "
            "with `headwater train similar`"
        )
    likeness = np.exp(-_STEP * coded.astype(np.float32))
    pause_ms = int(manifest.neighbours.pause_s * 1000)
    return Neighbours(keys.astype(np.uint64), starts, items, likeness.astype(np.float32), pause_ms, repeats)


def _repeats(arrays: Mapping[str, NDArray[np.generic]]) -> Repeats:
    again, lately = (
        np.exp(_RATIO_STEP * (arrays[name].astype(np.float32) - 128)) for name in ("again", "lately")
    )
    return Repeats(again, lately, int(arrays["repeats_at_ms"].astype(np.int64)[0]))
