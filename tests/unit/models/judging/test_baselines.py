"""Counting baselines order items as anyone would count."""

from datetime import UTC, datetime

import numpy as np

from headwater_models.judging.baselines import (
    DAY_MS,
    buy_again,
    personal_top,
    popularity,
    popularity_now,
    popularity_of_texts,
    repeat_shares,
    repeats_by_time,
)
from headwater_models.judging.protocols import split
from tests.unit.models.judging.test_protocols import dataset

ITEMS = 6
# Item 0 was popular long ago, item 1 in the last days.
DATA = dataset(
    {
        "ann": [(0, 0), (0, 1), (0, 2), (1, 20 * DAY_MS), (2, 30 * DAY_MS)],
        "bob": [(1, 21 * DAY_MS), (4, 22 * DAY_MS), (4, 31 * DAY_MS)],
        "eve": [(3, 40 * DAY_MS)],
    }
)
AT = datetime.fromtimestamp(25 * 86_400, UTC)
ASKED = split(DATA, "global-time", AT)
ALL = slice(0, len(ASKED.test))


def test_popularity_counts_what_was_learned_and_is_the_same_for_all() -> None:
    found = popularity(ASKED.train, ITEMS)(ASKED.log, ASKED.test, ALL)
    assert found.tolist() == [[3, 2, 0, 0, 1, 0]] * 3


def test_an_item_is_as_popular_as_all_with_its_text() -> None:
    texts = ["tea", "milk", "tea", "tea", "bread"]  # item 5 has none
    found = popularity_of_texts(ASKED.train, texts, ITEMS)(ASKED.log, ASKED.test, ALL)
    assert found.tolist() == [[3, 2, 3, 3, 1, 0]] * 3


def test_popularity_of_the_last_week_forgets_what_is_older() -> None:
    found = popularity_now(ASKED.train, ITEMS, days=7, until_ms=ASKED.at_ms)(ASKED.log, ASKED.test, ALL)
    assert found.tolist() == [[0, 2, 0, 0, 1, 0]] * 3  # the week before the split, whenever it is asked


def test_popularity_goes_on_where_nothing_ends_it_and_never_sees_the_event_it_predicts() -> None:
    found = popularity_now(ASKED.log, ITEMS, days=10)(ASKED.log, ASKED.test, ALL)
    # Asked at days 30 (ann), 31 (bob) and 40 (eve); each window reaches ten days back.
    assert found.tolist() == [[0, 2, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 0]]


def test_buy_again_ranks_a_users_own_counts_and_fills_with_the_popular() -> None:
    found = buy_again(popularity(ASKED.train, ITEMS))(ASKED.log, ASKED.test, ALL)
    order = np.argsort(-found, axis=1, kind="stable")
    assert order[0, :3].tolist() == [0, 1, 4]  # ann: 0 three times, 1 once; then the popular
    assert order[1, :3].tolist() == [1, 4, 0]  # bob: 1 before 4, once each
    assert order[2, :3].tolist() == [0, 1, 4]  # eve is new


def test_personal_top_prefers_the_latest_of_equally_frequent_items() -> None:
    data = dataset({"ann": [(3, 0), (0, 1), (1, 2), (1, 3), (0, 4), (2, 5)], "bob": [(4, 0), (4, 1), (4, 2)]})
    asked = split(data, "leave-one-out")
    found = personal_top(popularity(asked.train, ITEMS))(asked.log, asked.test, slice(0, 1))
    assert np.argsort(-found[0], kind="stable")[:4].tolist() == [0, 1, 3, 4]  # 0 was last of the two


def test_an_item_that_is_in_the_next_basket_again_and_lately_comes_first() -> None:
    day = DAY_MS
    data = dataset(
        {
            # 0 is taken in every basket, 1 once, 2 in every other one.
            "ann": [
                (0, 0),
                (1, 1),
                (0, day),
                (2, day + 1),
                (0, 2 * day),
                (0, 3 * day),
                (2, 3 * day + 1),
                (5, 4 * day),
            ],
            "bob": [(2, 0), (1, 2 * day), (5, 9 * day)],
        }
    )
    shares = repeat_shares(data.log, ITEMS, prior=0.0001)
    np.testing.assert_allclose(shares[:3], [3 / 4, 0, 0], atol=1e-3)
    asked = split(data, "next-basket")
    found = repeats_by_time(asked.train, ITEMS, half_life_days=1)(asked.log, asked.test, slice(0, 2))
    assert np.argsort(-found[0], kind="stable")[:3].tolist() == [0, 2, 1]
    assert np.argsort(-found[1], kind="stable")[:2].tolist() == [1, 2]  # later, and as rarely taken again
    assert np.isneginf(found[0, 3:]).all()
