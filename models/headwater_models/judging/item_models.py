"""Item models learned from users' items, each a scorer: ItemKNN, EASE, implicit ALS, TIFU-KNN for baskets; and SVD."""

from itertools import pairwise
from typing import Final

import numpy as np
from scipy import sparse
from scipy.linalg import lapack
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits

from headwater_models.arrays import F32, I64
from headwater_models.data.events import Log
from headwater_models.judging.protocols import Cases, Scorer, baskets, histories

SHRINKS: Final = (0.0, 10.0, 50.0, 200.0, 1000.0)  # from cosine almost to plain counts of common users
EASE_ITEMS: Final = 10_000  # a dense matrix of 400 MB


def item_knn(train: Log, items: int, neighbours: int = 100, shrink: float = 10.0) -> Scorer:
    """ItemKNN: cosine of items by their users. An item scores the sum over the user's distinct items whose neighbour it is.

    `shrink` is added to the cosine's denominator, so that items which share one user of one are no close neighbours. Each
    item keeps its nearest `neighbours`, and itself, which counts where seen items may come again.
    """
    seen = _matrix(train.owners, train.items, len(train.users), items).tocsc()
    norms = np.sqrt(np.asarray(seen.sum(axis=0)).ravel())
    kept = []
    for start in range(0, items, 1024):
        near = (seen[:, start : start + 1024].T @ seen).tocsr()  # (items of the chunk, items)
        own = start + np.repeat(np.arange(near.shape[0]), np.diff(near.indptr))
        near.data /= norms[own] * norms[near.indices] + shrink
        near.data[own == near.indices] = 1
        for a, b in pairwise(near.indptr):
            if (far := b - a - neighbours - 1) > 0:
                near.data[a + np.argpartition(near.data[a:b], far)[:far]] = 0
        near.eliminate_zeros()
        kept.append(near)
    similar = sparse.vstack(kept, format="csr")
    return lambda log, cases, part: (_seen(log, cases, part, items) @ similar).toarray()


def ease(train: Log, items: int, penalty: float = 100.0, most: int = EASE_ITEMS) -> Scorer:
    """EASE (Steck, WWW 2019): the closed-form linear item-item model without self-similarity.

    Its matrix is dense, so only the `most` popular items take part and can be recommended.
    """
    counts = np.bincount(train.items, minlength=items)
    chosen = np.sort(np.argsort(-counts, kind="stable")[: min(most, items)])
    seen = _matrix(train.owners, train.items, len(train.users), items)[:, chosen]
    gram = (seen.T @ seen).toarray()
    gram[np.diag_indices_from(gram)] += np.float32(penalty)
    factor, failed = lapack.spotrf(gram, lower=True, overwrite_a=True)
    assert not failed, "a Gram matrix plus a penalty is positive definite"
    inverse, _ = lapack.spotri(factor, lower=True, overwrite_c=True)
    lower = np.tril(inverse)
    weights = lower + np.tril(inverse, -1).T
    weights /= -np.diag(weights)
    np.fill_diagonal(weights, 0)

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        found = np.full((part.stop - part.start, items), -np.inf, dtype=np.float32)
        found[:, chosen] = _seen(log, cases, part, items)[:, chosen] @ weights
        return found

    return scores


def als(
    train: Log,
    items: int,
    factors: int = 128,
    penalty: float = 0.05,
    alpha: float = 10.0,
    rounds: int = 15,
    seed: int = 0,
    threads: int = 1,
) -> Scorer:
    """Implicit ALS (Hu, Koren, Volinsky, ICDM 2008). A user's factors are solved anew from the history of the question.

    Needs the package `implicit` (extra `train`).
    """
    from implicit.cpu.als import AlternatingLeastSquares

    seen = _matrix(train.owners, train.items, len(train.users), items)
    with threadpool_limits(1, "blas"):  # implicit's own threads do the work
        model = AlternatingLeastSquares(
            factors,
            regularization=penalty,
            alpha=alpha,
            iterations=rounds,
            num_threads=threads,
            random_state=seed,
        )
        model.fit(seen, show_progress=False)

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        own = _seen(log, cases, part, items)
        users = model.recalculate_user(np.arange(own.shape[0]), own)
        return np.asarray(users @ model.item_factors.T, dtype=np.float32)

    return scores


def spectral(train: Log, items: int, dim: int, prior: float = 5.0) -> F32:
    """Item vectors (items, dim) whose dot products are high for items with the same users; mean square length one.

    They are the leading singular vectors of users x items, with each entry divided by the root of its user's and its item's
    number of entries. `prior` is added to these numbers; otherwise a few users with items of their own would fill whole
    dimensions (Chaudhuri et al., COLT 2012). Missing dimensions are zero.
    """
    seen = _matrix(train.owners, train.items, len(train.users), items).astype(np.float64)
    of_users, of_items = (np.asarray(seen.sum(axis)).ravel() + prior for axis in (1, 0))
    seen = sparse.diags(of_users**-0.5) @ seen @ sparse.diags(of_items**-0.5)
    found = min(dim, min(seen.shape) - 1)
    if found < 1:  # one user, or one item, has no directions
        return np.zeros((items, dim), dtype=np.float32)
    start = np.random.default_rng(0).random(min(seen.shape))
    _, values, axes = svds(seen, k=found, v0=start, tol=1e-2)
    vectors = np.zeros((items, dim), dtype=np.float32)
    vectors[:, :found] = (axes.T * np.sqrt(values))[:, ::-1]  # the most telling ones first
    lengths: F32 = vectors / np.sqrt((vectors**2).sum(axis=1).mean())
    return lengths


def tifu_knn(
    train: Log,
    items: int,
    neighbours: int = 900,
    size: int = 3,
    within: float = 0.9,
    across: float = 0.6,
    own: float = 0.2,
) -> Scorer:
    """TIFU-KNN (Hu et al., SIGIR 2020) with its parameters for Dunnhumby: a user's decayed baskets, and those of the nearest users.

    Baskets are decayed in groups of `size`: by `within` in a group, by `across` from group to group. The user's own baskets
    weigh `own`, the mean of the `neighbours` nearest users, by Euclidean distance, the rest.
    """
    ends = train.starts[1:]
    everyone = Cases(
        np.arange(len(ends)),
        ends,
        np.zeros_like(ends),
        np.zeros(len(ends) + 1, np.int64),
        ends[:0],
        mask_seen=False,
    )
    taken = _by_baskets(train, everyone, slice(0, len(ends)), items, size, within, across)
    lengths = np.asarray(taken.multiply(taken).sum(axis=1)).ravel()

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        wanted = _by_baskets(log, cases, part, items, size, within, across)
        apart = lengths - 2 * (wanted @ taken.T).toarray()  # squared distances, up to the case's own length
        apart[np.arange(len(apart)), cases.users[part]] = np.inf
        count = min(neighbours, apart.shape[1] - 1)
        nearest = (
            np.argpartition(apart, count - 1, axis=1)[:, :count] if count else np.zeros((len(apart), 0), int)
        )
        chosen = sparse.csr_matrix(
            (
                np.full(nearest.size, 1 / max(count, 1), dtype=np.float32),
                (np.repeat(np.arange(len(apart)), count), nearest.ravel()),
            ),
            shape=apart.shape,
        )
        found: F32 = (own * wanted + (1 - own) * (chosen @ taken)).toarray().astype(np.float32)
        return found

    return scores


def _by_baskets(
    log: Log, cases: Cases, part: slice, items: int, size: int, within: float, across: float
) -> sparse.csr_matrix:
    """(cases, items) the decayed baskets of each case's history. Groups are counted from the newest basket."""
    begins = baskets(log)
    owners, rows = histories(log, cases, part)
    basket = np.searchsorted(begins, rows, side="right") - 1
    newest, oldest = np.zeros(part.stop - part.start, np.int64), np.full(part.stop - part.start, len(begins))
    np.maximum.at(newest, owners, basket)
    np.minimum.at(oldest, owners, basket)
    pairs, first = np.unique(np.stack([owners, basket, log.items[rows]]), axis=1, return_index=True)
    since = newest[owners[first]] - basket[first]
    count = (newest - oldest + 1)[owners[first]]
    groups = -(-count // size)
    weight = within ** (since % size) / np.minimum(size, count) * across ** (since // size) / groups
    shape = (part.stop - part.start, items)
    return sparse.csr_matrix((weight.astype(np.float32), (pairs[0], pairs[2])), shape=shape)


def _seen(log: Log, cases: Cases, part: slice, items: int) -> sparse.csr_matrix:
    owners, rows = histories(log, cases, part)
    return _matrix(owners, log.items[rows], part.stop - part.start, items)


def _matrix(owners: I64, items_of: I64, rows: int, items: int) -> sparse.csr_matrix:
    """1 where a row has an item, however often."""
    matrix = sparse.csr_matrix(
        (np.ones(len(owners), dtype=np.float32), (owners, items_of)), shape=(rows, items)
    )
    matrix.data[:] = 1  # duplicates were summed
    return matrix
