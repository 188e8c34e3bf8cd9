"""Models of who had which items: their closed forms by hand, and the obvious answer on two camps of users."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed (extra train)")

from headwater_models.judging.item_models import als, ease, item_knn, spectral, tifu_knn
from headwater_models.judging.protocols import split
from tests.unit.models.judging.test_protocols import dataset

CAMPS = dataset(
    {
        f"user-{user}": [
            (int(item) + 5 * (user % 2), n)
            for n, item in enumerate(np.random.default_rng(user).permutation(5))
        ]
        for user in range(40)
    }
)
ASKED = split(CAMPS, "leave-one-out")
ALL = slice(0, 40)


def test_item_knn_is_the_sum_of_cosines() -> None:
    data = dataset({"ann": [(0, 1), (1, 2)], "bob": [(0, 1), (1, 2)], "eve": [(0, 1), (2, 2), (3, 3)]})
    asked = split(data, "leave-one-out")
    found = item_knn(data.log, 10, shrink=0)(asked.log, asked.test, slice(0, 1))  # eve has 0 and 2
    cosine = {1: 2 / np.sqrt(3 * 2), 2: 1 / np.sqrt(3 * 1), 3: 1 / np.sqrt(3 * 1)}
    np.testing.assert_allclose(
        found[0, :4], [1 + cosine[2], cosine[1], 1 + cosine[2], cosine[3] + 1], rtol=1e-6
    )
    assert not found[0, 4:].any()


def test_shrinking_mistrusts_what_few_users_share() -> None:
    twice = {"ann": [(0, 1), (1, 2)], "bob": [(0, 1), (1, 2)]}
    data = dataset({**twice, "eve": [(2, 1), (3, 2), (0, 3)], "joe": [(0, 1), (2, 2), (4, 3)]})
    asked = split(data, "leave-one-out")  # joe has 0 and 2
    plain, shrunk = (
        item_knn(data.log, 10, shrink=shrink)(asked.log, asked.test, slice(1, 2))[0] for shrink in (0, 100)
    )
    assert plain[3] > plain[1]  # 3 and 2 share their only user
    assert shrunk[1] > shrunk[3] / 2 > 0
    assert shrunk[0] > 1  # itself counts in full


def test_item_knn_keeps_the_nearest_only() -> None:
    data = dataset({"ann": [(0, 1), (1, 2)], "bob": [(0, 1), (1, 2)], "eve": [(0, 1), (2, 2), (3, 3)]})
    asked = split(data, "leave-one-out")
    found = item_knn(data.log, 10, neighbours=1, shrink=0)(asked.log, asked.test, slice(0, 1))
    assert found[0, 1] > 0  # the nearest of 0
    assert found[0, 0] == pytest.approx(1)  # itself; 2's nearest is 3


def test_ease_is_its_closed_form() -> None:
    found = ease(ASKED.train, 10, penalty=2.0)(ASKED.log, ASKED.test, ALL)
    seen = np.zeros((40, 10))
    seen[ASKED.train.owners, ASKED.train.items] = 1
    inverse = np.linalg.inv(seen.T @ seen + 2 * np.eye(10))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    history = np.zeros((40, 10))
    for case, (user, end) in enumerate(zip(ASKED.test.users, ASKED.test.ends, strict=True)):
        history[case, ASKED.log.items[ASKED.log.starts[user] : end]] = 1
    np.testing.assert_allclose(found, history @ weights, atol=1e-5)


def test_ease_recommends_only_among_the_most_popular_that_it_was_given_room_for() -> None:
    found = ease(ASKED.train, 10, most=4)(ASKED.log, ASKED.test, ALL)
    assert (np.isfinite(found).sum(axis=1) == 4).all()
    most = np.argsort(-np.bincount(ASKED.train.items, minlength=10), kind="stable")[:4]
    assert set(np.flatnonzero(np.isfinite(found[0]))) == set(most)


def test_als_tells_two_camps_apart() -> None:
    pytest.importorskip("implicit", reason="implicit is not installed (extra train)")
    found = als(ASKED.train, 10, factors=4)(ASKED.log, ASKED.test, ALL)
    assert (found.argmax(axis=1) // 5).tolist() == [0, 1] * 20


def test_spectral_vectors_tell_the_camps_apart_and_are_of_mean_square_length_one() -> None:
    vectors = spectral(ASKED.train, 12, 2)  # the camps have items 0-4 and 5-9; nobody took 10 and 11
    cosines = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1) + 1e-9] * 2)
    assert (cosines[:5, :5] > 0.9).all()
    assert (cosines[5:10, 5:10] > 0.9).all()
    assert (np.abs(cosines[:5, 5:10]) < 0.1).all()
    np.testing.assert_allclose(vectors[10:], 0, atol=1e-6)
    np.testing.assert_allclose((vectors**2).sum(axis=1).mean(), 1, rtol=1e-5)
    assert not spectral(ASKED.train, 12, 40)[:, 11:].any()


def test_tifu_knn_decays_own_baskets_in_groups_and_adds_those_of_the_nearest() -> None:
    hour = 3_600_000
    data = dataset(
        {
            "ann": [(0, 0), (1, hour), (1, 2 * hour), (2, 3 * hour), (9, 4 * hour)],
            "bob": [(0, 0), (1, hour), (3, 2 * hour)],
            "eve": [(8, 0), (8, hour)],
        }
    )
    asked = split(data, "next-basket")
    part = slice(0, len(asked.test))
    alone = tifu_knn(asked.train, 10, neighbours=1, size=2, own=1.0)(asked.log, asked.test, part)
    # Two groups of two baskets: 2 and 1 in the newer one, 1 and 0 in the older one.
    expected = np.array([0.9 * 0.6, 0.9 + 0.6, 1.0, *[0] * 7]) / 4
    np.testing.assert_allclose(alone[0], expected, rtol=1e-6)
    both = tifu_knn(asked.train, 10, neighbours=1, size=2)(asked.log, asked.test, part)
    assert both[0, 1] > 0.2 * expected[1]  # bob is nearest, and took 1
    assert both[0, 8] == 0  # eve is not
