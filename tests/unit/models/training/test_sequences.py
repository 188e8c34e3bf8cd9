"""Windows cover a log, batches keep its order, and each augmentation does what its name says."""

import numpy as np
import pytest

from headwater_models.data.events import Log
from headwater_models.training.sequences import Augmentation, batch_of, crop, drop, epoch, reorder, windows

LENGTHS = (1, 2, 9, 5)


@pytest.fixture
def log() -> Log:
    events = sum(LENGTHS)
    return Log(
        users=["a", "b", "c", "d"],
        starts=np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64),
        items=np.arange(100, 100 + events),
        actions=np.full(events, 5),
        at_ms=np.arange(events) ** 2 * 1000,
    )


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_every_event_but_a_users_first_is_a_target_once(log: Log, shift: int) -> None:
    found = windows(log, 3, shift)
    assert all(2 <= len(rows) <= 4 and (np.diff(rows) == 1).all() for rows in found)
    targets = np.sort(np.concatenate([rows[1:] for rows in found]))
    np.testing.assert_array_equal(targets, np.setdiff1d(np.arange(len(log.items)), log.starts[:-1]))


def test_an_epoch_holds_every_target_once_with_little_padding(log: Log) -> None:
    batches = list(epoch(log, 50, 6, Augmentation(), (0, 1)))
    targets = np.concatenate([batch.items[:, 1:][batch.mask[:, 1:] > 0] for batch in batches])
    np.testing.assert_array_equal(np.sort(targets), np.delete(log.items, log.starts[:-1]))
    assert len(batches) > 1


def test_an_epoch_is_the_same_for_the_same_seed_only(log: Log) -> None:
    augmentation = Augmentation(crop=0.5, drop=0.3, reorder=0.5)

    def drawn(number: int) -> list[list[int]]:
        return [batch.items.ravel().tolist() for batch in epoch(log, 4, 4, augmentation, (0, number))]

    assert drawn(1) == drawn(1) != drawn(2)


def test_windows_side_by_side_have_gaps_of_their_own_and_padding_behind(log: Log) -> None:
    batch = batch_of(log, [np.array([3, 4, 5]), np.array([12, 13])])
    np.testing.assert_array_equal(batch.items, [[103, 104, 105], [112, 113, 100]])
    np.testing.assert_array_equal(batch.mask, [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(batch.gaps_s, [[0, 7, 9], [0, 25, 0]])
    np.testing.assert_array_equal(batch.actions, [[5, 5, 5], [5, 5, 0]])


def test_cropping_keeps_the_end() -> None:
    views = [crop(np.arange(10), np.random.default_rng(seed)) for seed in range(50)]
    assert {len(rows) for rows in views} > {2, 10}
    assert all(rows[-1] == 9 and (np.diff(rows) == 1).all() and len(rows) >= 2 for rows in views)


def test_dropping_keeps_order_last_event_and_about_the_right_share() -> None:
    views = [drop(np.arange(100), 0.3, np.random.default_rng(seed)) for seed in range(50)]
    assert all(rows[-1] == 99 and (np.diff(rows) > 0).all() for rows in views)
    assert 65 < np.mean([len(rows) for rows in views]) < 75


def test_reordering_moves_one_stretch_only() -> None:
    rows = np.arange(100, 120)
    views = [reorder(rows, 0.2, np.random.default_rng(seed)) for seed in range(50)]
    assert any((view != rows).any() for view in views)
    for view in views:
        moved = np.flatnonzero(view != rows)
        assert set(view) == set(rows)
        assert not len(moved) or moved[-1] - moved[0] < 4
