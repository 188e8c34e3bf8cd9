"""Rows become clicks that a worker takes, each with an identity of its content; the others are named with the reason."""

import random
from pathlib import Path

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.files.contents import ImportFileError
from headwater.files.events import EventForm, Events, events_of, message_of
from headwater.files.fields import CLICKS, mapping
from headwater.files.table import Table
from headwater.files.times import TimeForm
from headwater.messages import MAX_AHEAD_MS, BadMessage, Click, decode_click

NOW_MS = 1_760_000_000_000
AT_MS = 1_700_000_000_000


def events(rows: pl.DataFrame, *maps: str, form: EventForm | None = None) -> Events:
    table = Table(Path("f.csv"), rows, pl.Series(range(2, len(rows) + 2), dtype=pl.Int64))
    return events_of(table, mapping(CLICKS, rows.columns, maps), form or EventForm(), now_ms=NOW_MS)


def table(**columns: list[object]) -> pl.DataFrame:
    size = len(next(iter(columns.values())))
    return pl.DataFrame(
        {"user_id": ["ann"] * size, "item_id": ["x"] * size, "at_ms": [AT_MS] * size, **columns}, strict=False
    )


def clicks_of(found: Events) -> list[Click]:
    columns = ("event_id", "user_id", "at_ms", "item_id", "action", "context")
    return [decode_click(None, message_of(row), NOW_MS) for row in found.rows.select(columns).iter_rows()]


# Identity


def test_neither_order_nor_repetition_of_a_file_matters() -> None:
    rows = table(item_id=["a", "b", "c", "a"], at_ms=[AT_MS, AT_MS + 1, AT_MS, AT_MS + 2])
    shuffled = rows.sample(fraction=1, shuffle=True, seed=5)
    twice = pl.concat([rows, shuffled])
    once, other, again = (
        sorted(click.event_id for click in clicks_of(events(each))) for each in (rows, shuffled, twice)
    )
    assert len(set(once)) == 4
    assert once == other == again
    assert "4 rows repeat an event" in events(twice).notes[0]


def test_what_differs_in_anything_mapped_is_another_event() -> None:
    rows = table(item_id=["x", "x"]).with_columns(page=pl.Series(["home", "cart"]))
    assert len(clicks_of(events(rows, "context.page=page"))) == 2
    assert len(clicks_of(events(rows))) == 1


def test_event_ids_of_the_file_are_kept_and_missing_ones_made() -> None:
    first, second = clicks_of(events(table(event_id=["e1", None], item_id=["x", "y"])))
    assert first.event_id == "e1"
    assert len(second.event_id) == 32


def test_an_order_number_is_no_event_id_and_loses_no_event() -> None:
    rows = table(event_id=["o1"] * 4 + ["o2"], item_id=["a", "b", "c", "d", "e"], user_id=["ann"] * 5)
    found = events(rows)
    ids = [click.event_id for click in clicks_of(found)]
    assert len(set(ids)) == 5
    assert ids[4] == "o2"
    assert "event_id: 4 rows share theirs" in found.notes[0]


def test_one_id_of_two_users_is_kept_and_a_retraction_keeps_the_id_it_names() -> None:
    rows = table(
        user_id=["ann", "ben", "ann"], event_id=["1", "1", "1"], action=["click", "click", "retract"]
    )
    assert [click.event_id for click in clicks_of(events(rows))] == ["1", "1", "1"]


# Bad rows

AWKWARD: list[dict[str, object]] = [
    {"user_id": "é" * 256, "item_id": "x", "at_ms": AT_MS, "action": "click"},
    {"user_id": "é" * 257, "item_id": "x", "at_ms": AT_MS, "action": "click"},
    {"user_id": "ann", "item_id": "", "at_ms": AT_MS, "action": "forget"},
    {"user_id": "ann", "item_id": "", "at_ms": AT_MS, "action": "hide"},
    {"user_id": "ann", "item_id": "x", "at_ms": AT_MS, "action": "buy"},
    {"user_id": "ann", "item_id": "x", "at_ms": 5, "action": "click"},
    {"user_id": "ann", "item_id": "x", "at_ms": -AT_MS, "action": "click"},
    {"user_id": "ann", "item_id": "x", "at_ms": NOW_MS + MAX_AHEAD_MS, "action": "click"},
    {"user_id": "ann", "item_id": "x", "at_ms": NOW_MS + MAX_AHEAD_MS + 1, "action": "click"},
    {"user_id": "ann", "item_id": "x", "at_ms": 2**45, "action": "click"},
    {"user_id": "ann", "item_id": "y" * 513, "at_ms": AT_MS, "action": "view"},
]


def accepted_by_a_worker(row: dict[str, object]) -> bool:
    try:
        decode_click(None, msgspec.json.encode({"event_id": "e", **row}), NOW_MS)
    except BadMessage:
        return False
    return True


@given(st.lists(st.sampled_from(AWKWARD), min_size=1, max_size=6, unique_by=str))
def test_a_row_is_bad_exactly_when_a_worker_would_refuse_it(rows: list[dict[str, object]]) -> None:
    # Good rows, so that most of the column is in milliseconds.
    good = [
        {"user_id": f"zoe {n}", "item_id": "x", "at_ms": AT_MS, "action": "click"}
        for n in range(len(rows) + 1)
    ]
    found = events(pl.DataFrame([*rows, *good]))
    refused = [line for line, row in enumerate(rows, 2) if not accepted_by_a_worker(row)]
    assert [bad.line for bad in found.bad] == refused
    assert len(clicks_of(found)) == len(rows) + len(good) - len(refused)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"user_id": ["NULL"]}, "user_id: missing, expected an id"),
        ({"item_id": ["nan"]}, "item_id: missing, expected an id"),
        (
            {"user_id": [2.0**53 + 2]},
            "user_id: got 9007199254740994.0, a number that has lost digits",
        ),
        (
            {"at_ms": ["soon"]},
            "at_ms: got 'soon', expected a time: ISO, another date format (--time-format), or a number",
        ),
        ({"at_ms": [None]}, "at_ms: missing, expected a time"),
        ({"at_ms": ["0"]}, "at_ms: got '0', expected a time"),
        ({"action": ["buy"]}, "action: got 'buy', expected one of click, view"),
        (
            {"action": ["buy"]},
            "name it with --action buy=purchase, or leave such rows out with --action buy=ignore",
        ),
        ({"action": ["retract"]}, "event_id: missing, expected the id of the event to retract"),
        ({"event_id": ["e" * 513]}, "event_id: got 513 bytes, expected 1 to 512 bytes of UTF-8"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_the_others_go_on(
    columns: dict[str, list[object]], reason: str
) -> None:
    rows = pl.concat(
        [
            table(**columns).cast(pl.String),
            table(item_id=["y"] * 3, at_ms=["2023-11-14"] * 3).cast(pl.String),
        ],
        how="diagonal",
    )
    if "user_id" in columns and isinstance(columns["user_id"][0], float):
        rows = table(user_id=[columns["user_id"][0], 1.0, 2.0, 3.0])
    found = events(rows)
    (bad,) = found.bad
    assert bad.line == 2
    assert reason in bad.reason
    assert len(found.rows) in (1, 3)  # equal rows are one event


# Actions


def test_actions_of_others_are_named() -> None:
    rows = table(
        action=["addtocart", "PV", "Add to Cart", "view", "search", None], at_ms=[AT_MS + n for n in range(6)]
    )
    form = EventForm(actions=("addtocart=add_to_cart", "pv=view", "*=ignore"))
    found = events(rows, form=form)
    assert [click.action for click in clicks_of(found)] == ["add_to_cart", "view", "add_to_cart", "view"]
    assert "2 rows are left out" in found.notes[0]
    with pytest.raises(
        ImportFileError, match="--action pv=look: expected name=action, with one of click, view"
    ):
        events(rows, form=EventForm(actions=("pv=look",)))


def test_a_file_without_actions_has_the_one_that_is_named_for_all() -> None:
    (click,) = clicks_of(events(table(item_id=["x"]), form=EventForm(actions=("*=purchase",))))
    assert click.action == "purchase"


def test_ratings_are_likes_and_dislikes_by_a_threshold() -> None:
    rows = table(stars=["5", "4,0", "3", "1", None], item_id=list("abcde"))
    found = events(rows, "rating=stars", form=EventForm(like_from=4, dislike_to=2))
    assert [click.action for click in clicks_of(found)] == ["like", "like", "click", "dislike", "click"]
    with pytest.raises(ImportFileError, match="need ratings: name their column with --map rating=COLUMN"):
        events(rows, form=EventForm(like_from=4))


def test_context_columns_become_an_object() -> None:
    rows = table(item_id=["x"]).with_columns(page=pl.lit("home"), place=pl.lit(3))
    (click,) = clicks_of(events(rows, "context.page=page", "context.place=place"))
    assert msgspec.json.decode(click.context) == {"page": "home", "place": 3}


def test_many_rows_keep_their_order() -> None:
    rng = random.Random(1)
    items = [str(rng.randrange(10**9)) for _ in range(1_000)]
    assert events(table(item_id=items)).rows["item_id"].to_list() == items


def test_names_of_actions_are_told_with_the_options_that_may_be_meant() -> None:
    names = ["buy", "-1", "Order Placed", "pv", "addToCart", "buy"]
    found = events(table(action=names, item_id=list("abcdef")))
    assert [click.action for click in clicks_of(found)] == ["add_to_cart"]
    (note,) = found.notes
    assert note.startswith("buy (2), ")
    for option in (
        "--action buy=purchase",
        "--action=-1=dislike",
        "--action 'Order Placed=purchase'",
        "--action pv=view",
    ):
        assert option in note


def test_what_a_code_means_only_the_shop_knows() -> None:
    (note,) = events(table(action=["0", "1", "3"], item_id=list("abc"))).notes
    assert note.endswith("perhaps --action 0=ACTION --action 1=ACTION --action 3=ACTION")
    (note,) = events(table(action=["Kauf", "Ansicht", "xyz"], item_id=list("abc"))).notes
    assert note.endswith("perhaps --action Kauf=purchase --action Ansicht=view --action xyz=ACTION")


def test_one_user_with_much_of_the_events_is_told_as_all_unknown_visitors() -> None:
    users = [f"u{each}" for each in range(40)]
    assert events(table(user_id=users)).notes == []
    (note,) = events(table(user_id=[*users, *["0"] * 20], item_id=[str(each) for each in range(60)])).notes
    assert note.startswith("user_id: 20 of 60 events are of '0'; if it stands for visitors who are not known")


def test_ids_that_may_be_several_are_told() -> None:
    (note,) = events(table(item_id=["12;7", "5", "7;31"])).notes
    assert note.startswith("item_id: ids such as '12;7' look like several")
    assert events(table(item_id=["Half-Life 2", "Red shoes, large"])).notes == []


def test_ratings_without_a_threshold_are_told_and_one_that_is_no_number_is_bad() -> None:
    rows = table(rating=["5", "1", "3/10"], item_id=["a", "b", "c"])
    (note,) = events(rows).notes
    assert note.startswith("rating: all from 1 to 5 count as a click; --like-from and --dislike-to")
    found = events(rows, form=EventForm(like_from=4, dislike_to=2))
    assert [click.action for click in clicks_of(found)] == ["like", "dislike"]
    assert [row.reason for row in found.bad] == ["rating: got '3/10', expected a number"]


def test_a_time_in_the_future_is_shown_as_it_is_written() -> None:
    found = events(table(at_ms=["2031-01-01", "2023-11-14"], item_id=["a", "b"]))
    assert [row.reason for row in found.bad] == [
        "at_ms: got '2031-01-01', expected at most two days after the time now"
    ]


def test_a_type_that_is_named_holds_for_a_context_too() -> None:
    rows = table(item_id=["a", "b"], **{"context.n": ["5", "many"]})
    text, number = (events(rows, *maps) for maps in ((), ("context.n=context.n:number",)))
    assert text.rows["context"].to_list() == ['{"n":"5"}', '{"n":"many"}']
    assert number.rows["context"].to_list() == ['{"n":5.0}', "{}"]
    assert number.notes == ["context.n: 1 values are no number and are left out"]


def test_a_format_that_was_named_is_named_in_the_reason() -> None:
    (bad,) = events(table(at_ms=["2023-11-14"]), form=EventForm(times=TimeForm(pattern="%d.%m.%Y"))).bad
    assert bad.reason == "at_ms: got '2023-11-14', expected a time as --time-format '%d.%m.%Y' has it"
