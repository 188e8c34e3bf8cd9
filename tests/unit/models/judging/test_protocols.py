"""What is asked and what may be learned, on logs small enough to count by hand."""

from datetime import UTC, datetime

import numpy as np
import pytest

from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log
from headwater_models.judging.protocols import (
    BASKET_PAUSE_MS,
    Cases,
    baskets,
    delayed,
    discoveries,
    histories,
    select,
    split,
)


def dataset(users: dict[str, list[tuple[int, int]]]) -> Dataset:
    """Events (item, at_ms) of each user."""
    pairs = [pair for events in users.values() for pair in events]
    starts = np.concatenate([[0], np.cumsum([len(events) for events in users.values()])])
    log = Log(
        list(users),
        starts,
        np.array([item for item, _ in pairs]),
        np.full(len(pairs), 1),
        np.array([at_ms for _, at_ms in pairs]),
    )
    return Dataset("made up", [f"item-{n}" for n in range(10)], None, log, "")


THREE = dataset({"ann": [(0, 10), (1, 20), (0, 30), (2, 40)], "bob": [(3, 15), (4, 45)], "eve": [(5, 50)]})
HALF = datetime.fromtimestamp(0.03, UTC)


def asked(found: Cases) -> list[tuple[int, int, int, list[int]]]:
    """(user, end of the history, now, targets) of each case."""
    return [
        (int(user), int(end), int(now), found.targets[a:b].tolist())
        for user, end, now, a, b in zip(
            found.users, found.ends, found.now_ms, found.target_starts, found.target_starts[1:], strict=False
        )
    ]


def test_leave_one_out_asks_for_the_last_and_validates_with_the_one_before() -> None:
    found = split(THREE, "leave-one-out")
    assert asked(found.test) == [(0, 3, 40, [2])]
    assert asked(found.validation) == [(0, 2, 30, [0])]
    assert found.train.starts.tolist() == [
        0,
        2,
        4,
        5,
    ]  # users with fewer than three events are trained on whole
    assert found.test.mask_seen


def test_global_time_asks_for_each_later_event_from_all_before_it() -> None:
    found = split(THREE, "global-time", HALF)
    assert asked(found.test) == [(0, 2, 30, [0]), (0, 3, 40, [2]), (1, 5, 45, [4]), (2, 6, 50, [5])]
    assert found.train.at_ms.tolist() == [10, 20, 15]
    assert found.at_ms == 30


def test_a_quantile_splits_at_that_share_of_the_events() -> None:
    found = split(THREE, "global-time", 0.5)
    assert found.at_ms == 30
    with pytest.raises(DatasetError, match="between 0 and 1"):
        split(THREE, "global-time", 1.5)


def test_a_list_at_the_split_has_all_later_events_as_targets() -> None:
    found = split(THREE, "list-at-split", HALF)
    assert asked(found.test) == [(0, 2, 30, [0, 2]), (1, 5, 30, [4]), (2, 6, 30, [5])]


def test_prequential_asks_in_the_order_of_time_and_samples_by_seed() -> None:
    found = split(THREE, "prequential", HALF)
    assert found.test.now_ms.tolist() == [30, 40, 45, 50]
    some = [split(THREE, "prequential", HALF, sample=2, seed=seed).test for seed in (1, 1, 2)]
    assert len(some[0]) == 2
    assert asked(some[0]) == asked(some[1])
    assert some[0].now_ms.tolist() == sorted(some[0].now_ms)


def test_what_validates_in_time_is_not_trained_on() -> None:
    users = {f"user-{n:02}": [(0, 10 + n), (1, 50 + n), (2, 100 + n)] for n in range(40)}
    found = split(dataset(users), "global-time", datetime.fromtimestamp(0.1, UTC))
    assert len(found.validation) == 4  # a tenth of the users with two events before
    assert len(found.train.items) == 2 * 40 - 4
    for user, end, now, targets in asked(found.validation):
        assert targets == [1]
        assert now == 50 + user
        assert end - found.log.starts[user] == 1
        assert found.train.starts[user + 1] - found.train.starts[user] == 1


def test_discoveries_are_what_the_user_never_had_once_each_with_the_rest_masked() -> None:
    log = dataset({"ann": [(0, 10), (1, 20), (0, 30), (2, 40), (2, 50)], "bob": [(3, 5), (3, 60)]})
    found = discoveries(log.log, split(log, "list-at-split", HALF).test)
    assert asked(found) == [(0, 2, 30, [2])]  # bob's only later event is no discovery
    assert found.mask_seen


def test_a_delay_hides_the_newest_events() -> None:
    cases = split(THREE, "leave-one-out").test
    # Ann is asked about at 40 ms; her events before are at 10, 20 and 30.
    assert [delayed(THREE.log, cases, delay).ends.tolist() for delay in (0, 10, 11, 25, 100)] == [
        [3], [3], [2], [1], [0],
    ]  # fmt: skip


def test_histories_and_selection_agree_with_the_cases() -> None:
    cases = split(THREE, "list-at-split", HALF).test
    owners, rows = histories(THREE.log, cases, slice(0, 3))
    assert list(zip(owners.tolist(), rows.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 4)]
    owners, rows = histories(THREE.log, cases, slice(1, 3))
    assert (owners.tolist(), rows.tolist()) == ([0], [4])
    assert asked(select(cases, np.array([2, 0]))) == [(2, 6, 30, [5]), (0, 2, 30, [0, 2])]


def test_a_dataset_that_leaves_nothing_to_ask_is_explained() -> None:
    short = dataset({"ann": [(0, 1), (1, 2)]})
    with pytest.raises(DatasetError, match="nothing to ask under leave-one-out"):
        split(short, "leave-one-out")


def test_next_basket_asks_for_the_last_basket_from_all_before() -> None:
    later = 10 * BASKET_PAUSE_MS
    shop = dataset(
        {
            "ann": [(0, 1), (1, 2), (0, later), (2, 2 * later), (0, 2 * later + 1), (2, 2 * later + 2)],
            "bob": [(3, 5), (4, later + 5)],
            "eve": [(5, 5), (6, 5 + BASKET_PAUSE_MS)],  # one basket: nothing came before it
        }
    )
    assert baskets(shop.log).tolist() == [0, 2, 3, 6, 7, 8]
    found = split(shop, "next-basket")
    assert asked(found.test) == [(0, 3, 2 * later, [0, 2]), (1, 7, later + 5, [4])]
    assert asked(found.validation) == [(0, 2, later, [0])]  # bob has nothing before his last but one
    assert found.train.items.tolist() == [0, 1, 3, 5, 6]
    with pytest.raises(DatasetError, match="with two baskets for next-basket"):
        split(THREE, "next-basket")


def test_a_small_shop_validates_on_as_many_users_as_are_asked_for_or_on_half_of_them() -> None:
    data = dataset({f"user {n}": [(0, 10), (1, 20), (2, 60)] for n in range(40)})
    for wanted, found in ((0, 4), (15, 15), (1_000, 20)):
        half = split(data, "global-time", HALF, validation=wanted)
        assert len(half.validation) == found
        assert len(half.train.items) == 80 - found, "what validates is not learned"
        assert len(half.test) == 40
