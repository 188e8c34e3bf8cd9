"""The table of neighbours: what it is made of, that its file gives it back, and what is refused."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

pytest.importorskip("scipy", reason="scipy is not installed (extra train)")
pytest.importorskip("onnx", reason="onnx is not installed (extra train)")

from headwater.encoder import neighbours
from headwater.encoder.bundle import BundleError, Manifest, NeighbourTable
from headwater.encoder.features import item_key
from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import load
from headwater_models import commands
from headwater_models.bundles.light import lighten
from headwater_models.bundles.neighbour_table import FILE, TableConfig, _words, make, table_of
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log
from headwater_models.judging.protocols import split
from tests.support.checkout import GROCERIES

HOUR_MS = 3_600_000
PAIRS = TableConfig(neighbours=2, together=2, shrink=1.0, pause_s=60.0)
ITEM_IDS = ["tea", "milk", "bread", "soap", "rope"]


def shop(users: int = 40) -> Dataset:
    """Every hour somebody buys tea with milk, or bread with soap; rope goes with each of them once."""
    baskets = [(0, 1), (2, 3)]
    items, at_ms = [], []
    for user in range(users):
        for hour in range(6):
            basket = (*baskets[(user + hour) % 2], *((4,) if user == hour == 0 else ()))
            items += basket
            at_ms += [1_700_000_000_000 + (user + hour) * HOUR_MS + 1_000 * n for n in range(len(basket))]
    starts = np.concatenate([[0], np.cumsum([12 + (user == 0) for user in range(users)])])
    log = Log(
        [f"user-{n}" for n in range(users)],
        starts,
        np.array(items),
        np.full(len(items), 5),
        np.array(at_ms),
    )
    return Dataset("shop", ITEM_IDS, ITEM_IDS, log, "made up")


def named(table: Neighbours) -> dict[str, dict[str, float]]:
    names = {item_key(item_id): item_id for item_id in ITEM_IDS}
    of = [names[key] for key in table.keys.tolist()]
    return {
        name: {of[table.items[n]]: float(table.likeness[n]) for n in range(*table.starts[row : row + 2])}
        for row, name in enumerate(of)
    }


def test_neighbours_are_what_is_taken_in_one_session_by_jaccards_damped_index() -> None:
    data = shop(users=2)  # six baskets of either kind, and one rope with tea and milk
    found = named(table_of(data.log, data.item_ids, PAIRS))
    of_six = pytest.approx(6 / (6 + 6 - 6 + 1))
    assert found == {
        "tea": {"milk": of_six},
        "milk": {"tea": of_six},
        "bread": {"soap": of_six},
        "soap": {"bread": of_six},
    }


def test_an_item_counts_once_a_session_and_a_pause_ends_it() -> None:
    at_ms = np.array([0, 10, 20, 500_000, 500_010, 500_020, 1_000_000])
    log = Log(["ann"], np.array([0, 7]), np.array([0, 0, 1, 0, 1, 1, 2]), np.full(7, 1), at_ms)
    assert named(table_of(log, ITEM_IDS, PAIRS))["tea"] == {"milk": pytest.approx(2 / 3)}
    # Without a pause between them all is one session, and no pair is met twice.
    assert not len(table_of(log, ITEM_IDS, TableConfig(together=2, pause_s=3600.0)).items)


def test_items_without_events_stand_by_their_words_behind_what_is_taken_together() -> None:
    at_ms = np.arange(4) * 1_000
    log = Log(["ann", "bob"], np.array([0, 2, 4]), np.array([0, 1, 0, 1]), np.full(4, 1), at_ms)
    # Tea and milk are taken together; bread shares a word with tea, soap a common one with all, rope none.
    words = _words([[1, 2], [1, 3], [1, 2, 4], [1, 5], [6]])
    found = named(table_of(log, ITEM_IDS, replace(PAIRS, new=1), words))
    assert {*found["tea"]} == {"milk", "bread"}
    assert found["tea"]["bread"] < found["tea"]["milk"]
    assert "rope" not in found
    assert [*found["bread"]] == ["soap"]  # of new ones too
    assert named(table_of(log, ITEM_IDS, PAIRS, None))["tea"].keys() == {"milk"}


def test_within_reach_what_comes_closer_together_is_more_alike() -> None:
    """Without times all that a user did is one session: tea, milk, bread, soap and rope, one after the other."""
    log = Log(
        ["ann", "bob"], np.array([0, 5, 10]), np.array([0, 1, 2, 3, 4] * 2), np.full(10, 1), np.arange(10)
    )
    near = named(table_of(log, ITEM_IDS, TableConfig(neighbours=4, together=2, shrink=2.0, reach=2)))
    assert near["tea"] == {
        "milk": pytest.approx(2 / (2 + 2 - 2 + 2)),
        "bread": pytest.approx(1 / (2 + 2 - 1 + 2)),
    }
    assert near["bread"].keys() == {"tea", "milk", "soap", "rope"}
    often = Log(["ann"], np.array([0, 6]), np.array([0, 1] * 3), np.full(6, 1), np.arange(6))
    alike = named(table_of(often, ITEM_IDS, TableConfig(together=1, shrink=0.0, reach=2)))["tea"]["milk"]
    assert alike == 1.0, "one session, however often they meet in it"


def test_the_table_says_how_often_users_come_back_to_an_item_and_whether_it_is_taken_lately() -> None:
    day = 24 * HOUR_MS
    visits = [(0, 1), (0, 1), (0, 1), (0, 2), (2, 3), (2, 3), (2, 3), (1, 2)]  # tea four times, soap three
    ages = [90, 80, 70, 60, 50, 40, 2, 1]
    items, at_ms = np.array(visits).ravel(), np.repeat(1_700_000_000_000 - day * np.array(ages), 2)
    once = np.array([0, 1, 2, 3])  # another user takes each of them once, two months ago
    log = Log(
        ["ann", "bob"],
        np.array([0, 16, 20]),
        np.concatenate([items, once]),
        np.full(20, 1),
        np.concatenate([at_ms, np.full(4, 1_700_000_000_000 - 60 * day)]),
    )
    repeats = table_of(log, ITEM_IDS, TableConfig(neighbours=2, together=2, shrink=0.0)).repeats
    assert repeats is not None
    table = table_of(log, ITEM_IDS, TableConfig(neighbours=2, together=2, shrink=0.0))
    names = [ITEM_IDS[[item_key(each) for each in ITEM_IDS].index(key)] for key in table.keys.tolist()]
    again, lately = (
        dict(zip(names, column.tolist(), strict=True)) for column in (repeats.again, repeats.lately)
    )
    # Of tea and milk the two users have three repeats, of bread four and of soap two: three for two users is the mean.
    mean = 12 / 8
    assert again == {
        name: pytest.approx((times + 5 * mean) / (2 + 5) / mean)
        for name, times in {"tea": 3, "milk": 3, "bread": 4, "soap": 2}.items()
    }
    # Four of twenty entries are late: one with milk, two with bread, one with soap.
    assert lately == {
        name: pytest.approx((late + 5) / (times * 4 / 20 + 5))
        for name, late, times in (("tea", 0, 5), ("milk", 1, 5), ("bread", 2, 6), ("soap", 1, 4))
    }
    assert repeats.at_ms == int(log.at_ms.max())


def test_without_times_each_event_is_a_chance_to_take_an_item_again() -> None:
    log = Log(
        ["ann", "bob"], np.array([0, 4, 7]), np.array([0, 0, 1, 0, 2, 1, 2]), np.full(7, 1), np.arange(7)
    )
    told = table_of(log, ITEM_IDS, TableConfig(together=1, shrink=0.0, reach=5)).repeats
    assert told is not None
    # Tea twice more for one user, milk never for two, bread once for one: three repeats for four users is the mean.
    mean, prior = 3 / 4, 5.0
    order = np.argsort([item_key(item_id) for item_id in ITEM_IDS[:3]])
    wanted = np.array([(r + prior * mean) / (u + prior) / mean for r, u in ((2, 1), (0, 2), (1, 1))])
    np.testing.assert_allclose(told.again, wanted[order], rtol=1e-5)


def test_items_that_nobody_takes_twice_say_nothing_of_repeats() -> None:
    users = 6
    log = Log(
        [f"user-{n}" for n in range(users)],
        np.arange(users + 1) * 2,
        np.tile([0, 1], users),
        np.full(2 * users, 1),
        np.tile([0, 1_000], users),
    )
    assert table_of(log, ITEM_IDS, PAIRS).repeats is None


def test_an_item_keeps_those_of_its_neighbours_that_are_most_alike() -> None:
    sessions = [(0, 1), (0, 1), (0, 1), (0, 2), (0, 2), (2, 3), (2, 3), (2, 3)]
    items = np.array(sessions).ravel()
    at_ms = np.repeat(np.arange(8) * HOUR_MS, 2)
    log = Log(["ann"], np.array([0, 16]), items, np.full(16, 1), at_ms)
    config = TableConfig(neighbours=1, together=2, shrink=0.0)
    assert {name: [*near] for name, near in named(table_of(log, ITEM_IDS, config)).items()} == {
        "tea": ["milk"],
        "milk": ["tea"],
        "bread": ["soap"],
        "soap": ["bread"],
    }


def test_only_the_items_of_most_sessions_are_kept_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headwater_models.bundles.neighbour_table.MAX_ITEMS", 2)
    data = shop(users=3)  # tea and milk in three more baskets
    extra = TableConfig(neighbours=2, together=2, shrink=0.0, pause_s=60.0)
    assert len(named(table_of(data.log, data.item_ids, extra))) == 2


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    out = tmp_path / "bundle"
    data = shop()
    out.mkdir()
    make(GROCERIES, data, split(data, "global-time", 0.9), out, "a test", PAIRS)
    return out


def test_a_bundle_gives_its_table_back_and_says_what_it_is_made_of(bundle: Path) -> None:
    data, encoder = shop(), load(bundle)
    table = table_of(split(data, "global-time", 0.9).train, data.item_ids, PAIRS)
    read = encoder.neighbours
    assert read is not None
    np.testing.assert_array_equal(read.keys, table.keys)
    np.testing.assert_array_equal(read.starts, table.starts)
    np.testing.assert_array_equal(read.items, table.items)
    np.testing.assert_allclose(read.likeness, table.likeness, rtol=0.016)
    assert read.repeats is not None
    assert table.repeats is not None
    np.testing.assert_allclose(read.repeats.again, table.repeats.again, rtol=0.026)
    np.testing.assert_allclose(read.repeats.lately, table.repeats.lately, rtol=0.026)
    assert read.repeats.at_ms == table.repeats.at_ms
    said = encoder.manifest.neighbours
    assert said is not None
    assert (said.items, said.pairs, said.pause_s) == (len(table.keys), len(table.items), 60.0)
    assert any("a test" in note and "made up" in note for note in encoder.manifest.origin.notes)


def test_a_lighter_bundle_keeps_the_table(bundle: Path, tmp_path: Path) -> None:
    light = lighten(bundle, tmp_path / "light", int8=True, dim=None, prune=0.0, command="a test")
    assert light.manifest.neighbours == load(bundle).manifest.neighbours
    assert light.neighbours is not None


def test_what_comes_after_the_split_is_not_in_it(bundle: Path) -> None:
    data = shop()
    log = data.log
    later = log.at_ms > np.quantile(log.at_ms, 0.9)
    changed = replace(data, log=replace(log, items=np.where(later, 4, log.items)))
    out = bundle.with_name("other")
    out.mkdir()
    make(GROCERIES, changed, split(changed, "global-time", 0.9), out, "a test", PAIRS)
    assert (out / FILE).read_bytes() == (bundle / FILE).read_bytes()


def test_events_that_share_no_session_are_refused(tmp_path: Path) -> None:
    data = shop()
    apart = replace(data.log, at_ms=data.log.at_ms[0] + np.arange(len(data.log.items)) * HOUR_MS)
    data = replace(data, log=apart)
    with pytest.raises(DatasetError, match="no two items that share 2 sessions"):
        make(GROCERIES, data, split(data, "global-time", 0.9), tmp_path / "bundle", "a test", PAIRS)


def test_a_damaged_table_is_refused(bundle: Path) -> None:
    (bundle / FILE).write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"neighbours\.npz.*SHA-256"):
        load(bundle)


WHOLE = {"keys": [1, 2], "counts": [1, 1], "steps": [1, 0], "likeness": [0, 0]}


def test_a_table_of_an_earlier_version_says_nothing_of_repeats(tmp_path: Path) -> None:
    np.savez(tmp_path / FILE, **{name: np.array(values, dtype=np.uint16) for name, values in WHOLE.items()})
    manifest = msgspec.json.decode((GROCERIES / "bundle.json").read_bytes(), type=Manifest)
    read = neighbours.read(
        tmp_path, msgspec.structs.replace(manifest, neighbours=NeighbourTable(FILE, 60.0, 2, 2))
    )
    assert read is not None
    assert (read.items.tolist(), read.repeats) == ([1, 0], None)


@pytest.mark.parametrize(
    "arrays",
    [
        {"keys": [1, 2]},
        {"keys": [1, 2], "counts": [5, 1], "steps": [1], "likeness": [0]},
        {"keys": [1, 2], "counts": [1, 1], "steps": [1, 2], "likeness": [0, 0]},
        {"keys": [2, 1], "counts": [1, 1], "steps": [1, 0], "likeness": [0, 0]},
        {**WHOLE, "again": [128, 128], "lately": [128, 128]},
        {**WHOLE, "again": [128], "lately": [128, 128], "repeats_at_ms": [0]},
    ],
    ids=["incomplete", "too short", "beyond its items", "out of order", "without a time", "too few repeats"],
)
def test_a_file_that_is_no_table_is_refused_with_the_remedy(
    tmp_path: Path, arrays: dict[str, list[int]]
) -> None:
    np.savez(tmp_path / FILE, **{name: np.array(values, dtype=np.uint16) for name, values in arrays.items()})
    manifest = msgspec.json.decode((GROCERIES / "bundle.json").read_bytes(), type=Manifest)
    manifest = msgspec.structs.replace(manifest, neighbours=NeighbourTable(FILE, 60.0, 2, 2))
    with pytest.raises(BundleError, match="headwater train similar"):
        neighbours.read(tmp_path, manifest)


def test_the_command_puts_a_table_into_a_bundle_in_its_place_and_says_what_it_finds(bundle: Path) -> None:
    results = commands.train_similar(bundle, shop(), "global-time", bundle, at=0.5, command="once more")
    assert results.methods.keys() >= {"groceries", "groceries: similar", "groceries and similar"}
    # Tea is asked for after milk, with what was had in the ranking: half of all purchases end a basket.
    assert results.methods["groceries: similar"]["all"].hit.value > 0.4
    origin = load(bundle).manifest.origin
    assert origin.figures.keys() == results.methods.keys()
    assert sum(note.startswith("neighbours: ") for note in origin.notes) == 1
