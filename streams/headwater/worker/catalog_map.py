"""The catalog as points of a plane: the first two principal components of the directions of item vectors.

The axes are found from a sample and kept, so that points stay where they are; they are found again when the catalog has
doubled. What is projected are directions: answers go by dot products, and a length would only say how popular an item is.
"""

import asyncio
import gzip
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder
from headwater.index import Index, Query
from headwater.index.filters import EVERYTHING
from headwater.index.item_vectors import ItemVectors
from headwater.pacing import Pacer
from headwater.recall.similarity import most_similar, unit

F32 = NDArray[np.float32]

MAX_POINTS: Final = 20_000
_AXES_SAMPLE: Final = 5_000
# Points within this quantile fill the plane; the few beyond it lie on its edge.
_WITHIN: Final = 0.995
_ITEMS_AT_ONCE: Final = 256
_KEPT_S: Final = 30.0
# A search by dot products finds so many, of which the most similar are shown.
_CHOICE: Final = 1_000


class Axes(NamedTuple):
    """A plane through the vector space, and what the coordinates are divided by."""

    mean: F32  # (D,)
    directions: F32  # (D, 2)
    scale: F32  # (2,)
    spread: list[float]  # the share of the variance along each
    items: int  # in the catalog when they were found

    def places(self, vectors: F32) -> list[tuple[float, float]]:
        """x and y, -1 to 1, of vectors (n, D)."""
        at = (unit(vectors) - self.mean) @ self.directions / self.scale
        return [(round(x, 4), round(y, 4)) for x, y in np.clip(at, -1.0, 1.0).tolist()]


def axes_of(vectors: F32, items: int) -> Axes:
    """The axes of a sample of vectors (n, D), n > 0, of a catalog with this many ``items``.

    Each points to where its largest component is positive, so the same vectors always give the same picture.
    """
    directions = unit(vectors)
    mean = directions.mean(axis=0)
    centred = directions - mean
    values, axes = np.linalg.eigh(centred.T @ centred / len(centred))  # ascending
    axes = axes[:, ::-1][:, :2]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    if axes.shape[1] < 2:  # vectors of one dimension
        axes = np.concatenate([axes, np.zeros_like(axes)], axis=1)
    scale = np.quantile(np.abs(centred @ axes), _WITHIN, axis=0)
    total = max(float(values.clip(0.0).sum()), 1e-12)
    spread = [round(max(float(value), 0.0) / total, 4) for value in values[::-1][:2]]
    return Axes(
        mean.astype(np.float32),
        axes.astype(np.float32),
        np.maximum(scale, 1e-9).astype(np.float32),
        spread,
        items,
    )


class Packed(NamedTuple):
    """The map as it is sent."""

    body: bytes
    gzipped: bytes
    etag: str


class CatalogMap:
    """Over the vectors and the index of one worker. Nothing is done before the map is asked for."""

    def __init__(self, index: Index, vectors: ItemVectors, encoder: Encoder) -> None:
        self._index, self._vectors, self._encoder = index, vectors, encoder
        self._axes: Axes | None = None
        self._titles: list[tuple[str, int]] = []  # in lower case, and the key
        self._packed: Packed | None = None
        self._packed_s = -_KEPT_S
        self._lock = asyncio.Lock()
        self._pacer = Pacer()

    async def packed(self) -> Packed:
        """The map, made again at most every half a minute. Raises IndexUnavailable."""
        async with self._lock:
            if self._packed is None or time.monotonic() - self._packed_s >= _KEPT_S:
                self._packed = await self._make()
                self._packed_s = time.monotonic()
            return self._packed

    async def places(self, vectors: F32) -> list[tuple[float, float] | None]:
        """x and y of vectors (n, D); None for all of them while the catalog has none."""
        axes = await self._known_axes()
        if axes is None or not len(vectors):
            return [None] * len(vectors)
        return list(axes.places(vectors))

    async def items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What the page shows of items, by id; unknown ones are left out. Raises IndexUnavailable."""
        return await self._shown([item_key(item_id) for item_id in item_ids])

    async def search(self, text: str, limit: int) -> list[dict[str, Any]]:
        """The item of that id, then titles with all the words, then what is like the text. Raises IndexUnavailable."""
        words = text.lower().split()
        if not words:
            return []
        if not self._titles:
            await self.packed()
        keys = dict.fromkeys([item_key(text)] if text.strip() == text else [])
        keys |= dict.fromkeys(await asyncio.to_thread(self._with_words, words, limit))
        found = await self._shown([*keys])
        if len(found) < limit and self._encoder.item_inputs == "text":
            (vector,) = await asyncio.to_thread(self._encoder.encode_items, [text])
            found |= await self._shown(await self._nearest(vector, limit, frozenset(keys)))
        return list(found.values())[:limit]

    async def _nearest(self, vector: F32, limit: int, exclude: frozenset[int]) -> list[int]:
        """Keys of the items most similar to a vector (D,), best first. Dot products alone would bring what is popular."""
        (hits,) = await self._index.search([Query(vector, _CHOICE, EVERYTHING, exclude)])
        near = await self._index.vectors([hit.key for hit in hits])
        items = {hit.key: hit.item_id for hit in hits}
        return [key for key, _ in most_similar(items, near, [vector])[:limit]]

    def _with_words(self, words: Sequence[str], limit: int) -> list[int]:
        """Keys of items whose titles have all the words; those that begin with the first word come first."""
        matching = [each for each in self._titles if all(word in each[0] for word in words)]
        matching.sort(key=lambda each: (not each[0].startswith(words[0]), len(each[0])))
        return [key for _, key in matching[:limit]]

    async def _shown(self, keys: Sequence[int]) -> dict[str, dict[str, Any]]:
        payloads = await self._index.items(keys)
        vectors = await self._index.vectors(keys)
        known = [key for key in keys if key in vectors]
        places = await self.places(np.stack([vectors[key] for key in known])) if known else []
        at = dict(zip(known, places, strict=True))
        shown = {}
        for key in keys:
            if key in payloads:
                item = shown_item(payloads[key])
                item["x"], item["y"] = at.get(key) or (None, None)
                shown[item["item_id"]] = item
        return shown

    async def _known_axes(self) -> Axes | None:
        items = len(self._vectors)
        if self._axes is None or items >= 2 * self._axes.items:
            rows = self._rows(self._vectors.some_keys(_AXES_SAMPLE))[1]
            if not len(rows):
                return None
            self._axes = await asyncio.to_thread(axes_of, rows, items)
        return self._axes

    def _rows(self, keys: Sequence[int]) -> tuple[list[int], F32]:
        """Those of the keys that have a vector, and copies of these, (n, D)."""
        rows = self._vectors.rows(keys)
        known = rows >= 0
        return [key for key, has in zip(keys, known.tolist(), strict=True) if has], self._vectors.matrix[
            rows[known]
        ]

    async def _make(self) -> Packed:
        axes = await self._known_axes()
        keys, vectors = self._rows(self._vectors.some_keys(MAX_POINTS))
        payloads: dict[int, Mapping[str, Any]] = {}
        for start in range(0, len(keys), _ITEMS_AT_ONCE):
            await self._pacer.turn()
            payloads |= await self._index.items(keys[start : start + _ITEMS_AT_ONCE])
        body, titles = await asyncio.to_thread(
            _body, self._encoder.id, len(self._vectors), axes, keys, vectors, payloads
        )
        self._titles = titles
        gzipped = await asyncio.to_thread(gzip.compress, body, 5)
        return Packed(body, gzipped, blake2b(body, digest_size=16).hexdigest())


def shown_item(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of an item."""
    return {
        "item_id": str(payload["item_id"]),
        "title": str(payload.get("title") or ""),
        "category": str(payload.get("category") or ""),
        "price": payload.get("price"),
        "available": payload.get("available", True) is True,
    }


def _body(
    bundle: str,
    items: int,
    axes: Axes | None,
    keys: Sequence[int],
    vectors: F32,
    payloads: Mapping[int, Mapping[str, Any]],
) -> tuple[bytes, list[tuple[str, int]]]:
    """The map as JSON, and its titles with their keys. ``vectors`` (n, D) are those of ``keys``."""
    places = axes.places(vectors) if axes is not None and len(keys) else []
    categories: dict[str, int] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("ids", "titles", "category", "x", "y")}
    titles = []
    for key, (x, y) in zip(keys, places, strict=True):
        if (payload := payloads.get(key)) is None:
            continue
        item = shown_item(payload)
        columns["ids"].append(item["item_id"])
        columns["titles"].append(item["title"])
        columns["category"].append(categories.setdefault(item["category"], len(categories)))
        columns["x"].append(x)
        columns["y"].append(y)
        titles.append((item["title"].lower(), key))
    said = {
        "bundle": bundle,
        "items": items,
        "shown": len(titles),
        "spread": axes.spread if axes is not None else [],
        "categories": list(categories),
        **columns,
    }
    return msgspec.json.encode(said), titles
