"""The candidates of a bundle for a question, with the features that its scorer sees; for training and for judging."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from headwater.encoder.features import candidate_features
from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder
from headwater.metrics import Metrics
from headwater.recall.fusion import fuse
from headwater.recall.gathering import Gatherer
from headwater.recall.rescoring import history_of
from headwater.recall.sources import Ask, Keyed
from headwater_models.arrays import F32, I64
from headwater_models.data.events import Log
from headwater_models.judging.evaluation import Catalog, bundle_products
from headwater_models.judging.protocols import Cases, Scorer, Split
from headwater_models.judging.served import Asking, Pipeline
from headwater_models.judging.trending import Trending

# Cases whose candidates are held at once, each with two vectors: 30 MB for a hundred candidates of 128 numbers.
_TOGETHER = 256


@dataclass(frozen=True)
class Pool:
    """One question's candidates."""

    items: I64  # (candidates,)
    features: F32  # (candidates, CANDIDATE_FEATURES)
    nearest: F32  # (candidates, D): the user's interest that each of them is nearest to


class Pooling:
    """Candidates from the sources of a request that names none: buy-again, similar, and each of the user's interests.

    At most `size` items come from each source. Popularity is that of `Trending`.

    Args:
        table: of neighbours. None: the bundle's own, which is right unless the questions are about events it was made from.
    """

    def __init__(
        self, encoder: Encoder, catalog: Catalog, asked: Split, size: int, table: Neighbours | None = None
    ) -> None:
        self.vectors, self._catalog = catalog.vectors, catalog
        self._size, self.length = size, encoder.log_length
        self._asking = Asking(encoder, catalog)
        self._table = table or encoder.neighbours
        self._pipeline = Pipeline(catalog, self._table)
        # Answers that are short are filled up with popular items, which are no candidates for the scorer to learn from.
        sources = [source for source in self._pipeline.sources if source.default_weight > 0]
        self._gatherer = Gatherer(self._pipeline.index, sources, Metrics())
        self._trending = Trending.of(asked, len(catalog.vectors))

    def __call__(self, log: Log, cases: Cases, part: slice) -> tuple[list[Pool], F32]:
        """The pool of each case, and each item's best product with an interest, (cases, items), by which it was chosen."""
        asks, told = self._asking(log, cases, part, self._size, pool=self._size)
        products = bundle_products(told.interests, self._catalog)
        products[~told.any_event] = -np.inf
        pools = []
        for case, (ask, keyed, items) in enumerate(asyncio.run(self._candidates(asks))):
            products[case, [self._pipeline.index.items_of[key] for key in ask.exclude]] = -np.inf
            items = items[np.isfinite(products[case, items])]
            which = (self.vectors[items] @ told.interests[case].T).argmax(axis=1)
            features = candidate_features(
                self._catalog.keys[items],
                products[case, items],
                self._trending.weights(ask.now_ms, items),
                history_of(ask, keyed, self.length, self._table),
                which,
            )
            pools.append(Pool(items, features, told.interests[case][which]))
        return pools, products

    async def _candidates(self, asks: list[Ask]) -> list[tuple[Ask, Keyed, I64]]:
        """For each ask, what its sources name, and all that they bring, in the fused order."""
        keyed = [self._gatherer.keyed(ask) for ask in asks]
        late = asyncio.get_running_loop().time() + 86_400
        gathered = await self._gatherer.gather(asks, keyed, late, late)
        numbers = self._pipeline.index.items_of
        items = [
            np.array([numbers[item.key] for item in fuse(rankings)], dtype=np.int64)
            for rankings in gathered.rankings
        ]
        return list(zip(asks, keyed, items, strict=True))


class Scoring(Protocol):
    """What orders candidates: `Encoder`, or what stands for its score graph."""

    def score(self, features: F32, interests: F32, items: F32, /) -> F32:
        """See `Encoder.score`: (C, F), (C, D) and (C, D) -> (C,)."""
        ...


def rescored(encoder: Scoring, pooling: Pooling) -> Scorer:
    """Scores (cases, items) of a bundle with a score graph: the pool first, in the graph's order."""

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        starts = range(part.start, part.stop, _TOGETHER)
        return np.concatenate(
            [few(log, cases, slice(start, min(start + _TOGETHER, part.stop))) for start in starts]
        )

    def few(log: Log, cases: Cases, part: slice) -> F32:
        pools, found = pooling(log, cases, part)
        given = (
            np.concatenate([pool.features for pool in pools]),
            np.concatenate([pool.nearest for pool in pools]),
            pooling.vectors[np.concatenate([pool.items for pool in pools])],
        )
        starts = np.cumsum([len(pool.items) for pool in pools])[:-1]
        for row, own, pool in zip(found, np.split(encoder.score(*given), starts), pools, strict=True):
            places = np.argsort(-own, kind="stable")
            row[pool.items[places]] = row.max(initial=0.0) + np.arange(len(places), 0, -1)
        return found

    return scores
