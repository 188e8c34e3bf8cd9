"""Lists as the request path makes them, from arrays: its fusion of what each interest finds, by exact search.

`bundle_scorer` gives an item its best dot product with any interest. Serving asks the index once an interest and fuses the
lists by their ranks; it forgets what fell out of a user's log. For a bundle with one interest only the latter differs.
"""

import numpy as np

from models.evaluation import Catalog, best, interests_of
from models.events import Log
from models.protocols import Cases, Floats, Ints, Scorer, histories
from streams.encoder import Encoder
from streams.recall.fusion import Ranking, fuse


def served(encoder: Encoder, catalog: Catalog, k: int) -> Scorer:
    """Lists of length k as scores: k for the first of a list, 1 for its last, -inf for what is not in it.

    Ask with cases that remember no more than the log of the service does (`encoder.log_length`).
    """

    def scores(log: Log, cases: Cases, part: slice) -> Floats:
        asked = interests_of(encoder, catalog, log, cases, part)
        hidden = np.tile(~catalog.known, (part.stop - part.start, 1))
        if cases.mask_seen:
            owners, rows = histories(log, cases, part)
            hidden[owners, log.items[rows]] = True
        nearest = [
            _nearest(asked.interests[:, interest] @ catalog.vectors.T, hidden, k)
            for interest in range(encoder.interests)
        ]
        found = np.full(hidden.shape, -np.inf, dtype=np.float32)
        for case in np.flatnonzero(asked.any_event):
            votes = zip(asked.weights[case], (lists[case] for lists in nearest), strict=True)
            rankings = [
                Ranking("interests", float(weight), [(int(item), "") for item in items[items >= 0]])
                for weight, items in votes
                if weight > 0
            ]
            for place, item in enumerate(fuse(rankings)[:k]):
                found[case, item.key] = k - place
        return found

    return scores


def _nearest(scores: Floats, hidden: np.typing.NDArray[np.bool_], k: int) -> Ints:
    """The best k items of each case that are not hidden, -1 where there are fewer."""
    scores[hidden] = -np.inf
    lists = best(scores, k)
    lists[np.isneginf(np.take_along_axis(scores, lists, axis=1))] = -1
    return lists
