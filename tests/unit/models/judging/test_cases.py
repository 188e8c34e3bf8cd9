"""Cases of a file are asked as they stand: each its own history, over the whole catalog."""

from pathlib import Path

import numpy as np
import pytest

from headwater.files.cases import Case
from headwater.messages import Item
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.judging.baselines import mean_of_tower, nearest_to_last
from headwater_models.judging.cases import asked_of
from headwater_models.judging.comparison import judge
from headwater_models.judging.evaluation import evaluate, ranking
from tests.support.checkout import STARTER
from tests.unit.models.judging.test_protocols import dataset

ITEMS = [Item("tea", "Green tea"), Item("coffee", "Ground coffee"), Item("hose", "Garden hose")]
ROWS = [
    Case(1, "ann", ["tea", "tea"], [1_000, 1_000], 2_000, ["coffee", "spade"]),
    Case(2, "ann", ["tea"], [1_000], 2_000, ["tea"]),
    Case(4, None, [], [], 5_000, ["hose"]),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cases.jsonl"
    path.write_text("the rows below")
    return path


def trained() -> Dataset:
    """Two users who had tea, coffee and a mug, which is not in the catalog."""
    clicks = dataset({"one": [(0, 1), (1, 2)], "two": [(0, 1), (2, 2)]})
    return Dataset("clicks", ["tea", "coffee", "mug"], None, clicks.log, "")


def test_each_case_has_its_own_history_and_a_user_may_have_several(path: Path) -> None:
    data, asked = asked_of(path, ROWS, ITEMS, None)
    assert data.item_ids == ["tea", "coffee", "hose", "spade"]
    assert len(set(asked.log.users)) == 3
    assert np.diff(asked.log.starts).tolist() == [2, 1, 0]
    assert asked.log.at_ms.tolist() == [1_000, 1_001, 1_000]
    assert [data.item_ids[item] for item in asked.test.targets] == ["coffee", "spade", "tea", "hose"]
    assert asked.test.people is not None
    assert len(set(asked.test.people.tolist())) == 2  # both of ann's are drawn together


def test_seen_items_come_unless_they_are_excluded(path: Path) -> None:
    flat = np.ones(4, dtype=np.float32)
    first = {}
    for mask_seen in (False, True):
        _, asked = asked_of(path, ROWS, ITEMS, None, mask_seen=mask_seen)
        lists = ranking(
            lambda _log, _cases, part: np.tile(flat, (part.stop - part.start, 1)), asked.log, asked.test, 4, 4
        )
        first[mask_seen] = lists[1][0].tolist()
    assert first == {False: [0, 1, 2, 3], True: [1, 2, 3, -1]}


def test_targets_without_a_training_event_are_told_apart(path: Path) -> None:
    data, asked = asked_of(path, ROWS, ITEMS, trained())
    assert set(data.item_ids) == {"tea", "coffee", "hose", "spade", "mug"}
    found = evaluate(lambda _log, _cases, part: np.ones((part.stop - part.start, 5)), asked, 5, 5)
    assert {name: quality.targets for name, quality in found.items()} == {"all": 4, "cold": 2}
    assert np.bincount(asked.train.items).tolist() == [2, 1, 0, 1]  # the mug comes before the spade
    sampled = asked_of(path, ROWS, ITEMS, trained(), sample=1)[1]
    assert len(sampled.test) == 1


def test_no_cases_are_one_sentence(path: Path) -> None:
    with pytest.raises(DatasetError, match="has no cases"):
        asked_of(path, [], ITEMS, None)


def test_a_tower_alone_finds_what_is_like_the_last_item_or_all_of_them(path: Path) -> None:
    vectors = np.array([[2, 0], [1, 1], [0, 3], [0, 0]], dtype=np.float32)
    known = np.array([True, True, True, False])
    rows = [Case(1, "ann", ["hose", "hose", "tea"], [1_000, 2_000, 3_000], 4_000, ["coffee"]), *ROWS[2:]]
    _, asked = asked_of(path, rows, ITEMS, None)
    part = slice(0, 2)
    last = nearest_to_last(vectors, known)(asked.log, asked.test, part)
    np.testing.assert_allclose(last[0, :3], [1, 0.5**0.5, 0], atol=1e-6)
    mean = mean_of_tower(vectors, known, 50)(asked.log, asked.test, part)
    np.testing.assert_allclose(mean[0, [0, 2]], [1, 0.85 + 0.85**2], rtol=1e-3)
    assert np.isneginf(last[1]).all()  # nothing is like no history
    assert np.isneginf(mean[:, 3]).all()  # nor like anything without a vector


def test_a_bundle_is_judged_on_cases_beside_what_its_tower_finds_alone(path: Path) -> None:
    data, asked = asked_of(path, ROWS[:2], ITEMS, trained())
    found = judge(STARTER, data, asked)
    assert (found.protocol, found.k) == ("cases", 10)
    methods = {name.removeprefix("starter: ") for name in found.methods}
    assert methods >= {"starter", "nearest to the last item", "mean over its tower", "popular", "buy again"}
