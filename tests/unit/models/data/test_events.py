"""The log keeps the order of the file and the borders of users."""

import numpy as np
import polars as pl

from headwater_models.data.events import ends_at, in_order, log_of, newest, of_items, prefixes


def frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    users, items, times = zip(*rows, strict=True)
    return pl.DataFrame(
        {"user_id": users, "item_id": items, "action": ["purchase"] * len(rows), "at_ms": times}
    )


def test_ties_of_a_user_move_one_millisecond_apart_in_file_order() -> None:
    rows = [
        ("ann", "a", 10),
        ("ann", "b", 10),
        ("bob", "x", 10),
        ("ann", "c", 10),
        ("ann", "d", 11),
        ("ann", "e", 50),
    ]
    found = in_order(frame(rows))
    ann = found.filter(pl.col("user_id") == "ann")
    assert ann["item_id"].to_list() == ["a", "b", "c", "d", "e"]
    assert ann["at_ms"].to_list() == [10, 11, 12, 13, 50]
    assert found.filter(pl.col("user_id") == "bob")["at_ms"].to_list() == [10]


def test_events_out_of_order_are_sorted_before_ties_are_moved() -> None:
    found = in_order(frame([("ann", "late", 20), ("ann", "early", 10), ("ann", "early too", 10)]))
    assert found["item_id"].to_list() == ["early", "early too", "late"]
    assert found["at_ms"].to_list() == [10, 11, 20]


def test_a_log_holds_each_users_events_in_order() -> None:
    rows = [("bob", "a", 1), ("ann", "b", 2), ("bob", "b", 3), ("ann", "nowhere", 4), ("bob", "a", 5)]
    found = log_of(in_order(frame(rows)), pl.Series("item_id", ["a", "b"]))
    assert found.users == ["ann", "bob"]
    assert found.starts.tolist() == [0, 1, 4]  # what is not in the list of items is left out
    assert found.items.tolist() == [1, 0, 1, 0]
    assert found.at_ms.tolist() == [2, 1, 3, 5]


def test_what_came_before_a_moment_keeps_the_users_numbers() -> None:
    found = log_of(
        frame([("ann", "a", 9), ("bob", "a", 2), ("bob", "b", 9)]), pl.Series("item_id", ["a", "b"])
    )
    before = prefixes(found, ends_at(found, 9))
    assert before.starts.tolist() == [0, 0, 1]
    assert before.at_ms.tolist() == [2]
    assert of_items(found, 1).starts.tolist() == [0, 1, 2]


def test_the_newest_events_come_oldest_first_with_padding_behind() -> None:
    rows = [("ann", "a", 1), ("bob", "a", 1), ("bob", "b", 2), ("bob", "c", 3), ("bob", "a", 4)]
    found = log_of(frame(rows), pl.Series("item_id", ["a", "b", "c"]))
    places, mask = newest(found, np.array([0, 1]), found.starts[1:], length=3)
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert found.items[places[1]].tolist() == [1, 2, 0]
    assert found.at_ms[places[0, :1]].tolist() == [1]
