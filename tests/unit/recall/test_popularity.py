"""Decayed popularity: the sum must be the definition's, whatever the order and the span of time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.encoder.features import ACTION_CODES, item_key
from headwater.messages import Trend
from headwater.profiles.actions import POPULARITY
from headwater.profiles.columns import Log
from headwater.recall.popularity import HALF_LIFE_S, RISING, TOP, Counts, Trends, shares
from tests.support.histories import CLICK, START_MS

HALF_LIFE_MS = int(HALF_LIFE_S * 1000)
A, B, C = (item_key(name) for name in "abc")


def counted(*events: tuple[int, int, int], batch: int = 1000) -> Counts:
    """Counts after (item key, action, time) each, in batches."""
    counts = Counts()
    for start in range(0, len(events), batch):
        part = events[start : start + batch]
        counts.add(
            np.array([key for key, _, _ in part], dtype=np.uint64),
            np.array([action for _, action, _ in part], dtype=np.uint8),
            np.array([at for _, _, at in part], dtype=np.int64),
        )
    return counts


def test_an_event_a_half_life_old_weighs_half() -> None:
    top = counted((A, CLICK, START_MS), (B, CLICK, START_MS + HALF_LIFE_MS)).top()
    assert [key for key, _ in top] == [B, A]
    assert top[0][1] / top[1][1] == pytest.approx(2.0)


def test_weights_are_as_of_the_stated_time() -> None:
    counts = counted((A, CLICK, START_MS), (A, CLICK, START_MS - HALF_LIFE_MS), (A, CLICK, START_MS))
    assert counts.at_ms == START_MS
    assert dict(counts.top())[A] == pytest.approx(2.5)


@pytest.mark.parametrize("action", ["dislike", "hide", "impression"])
def test_what_is_not_positive_does_not_count(action: str) -> None:
    counts = counted((A, ACTION_CODES[action], START_MS))
    assert len(counts) == 0
    assert not counts.changed


def test_a_purchase_counts_more_than_a_click_and_a_click_more_than_a_view() -> None:
    top = counted(
        *((key, ACTION_CODES[name], START_MS) for key, name in ((A, "view"), (B, "click"), (C, "purchase")))
    ).top()
    assert [key for key, _ in top] == [C, B, A]


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B, C]), st.sampled_from([1, 2, 5, 6]), st.integers(0, 300)),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 20),
)
def test_any_order_span_and_batching_gives_the_sum_of_the_definition(
    events: list[tuple[int, int, int]], batch: int
) -> None:
    """Up to 300 half-lives apart, beyond where the origin of time moves."""
    stamped = [(key, action, START_MS + half_lives * HALF_LIFE_MS) for key, action, half_lives in events]
    counts = counted(*stamped, batch=batch)
    found = {key: weight for key, weight in counts.top() if weight > 0}
    expected: dict[int, float] = {}
    for key, action, at_ms in stamped:
        if not POPULARITY[action]:
            continue
        weight = float(POPULARITY[action]) * 2.0 ** ((at_ms - counts.at_ms) / HALF_LIFE_MS)
        expected[key] = expected.get(key, 0.0) + weight
    assert found == {key: pytest.approx(weight, rel=1e-9) for key, weight in expected.items() if weight > 0}


def test_counts_go_on_from_what_was_published() -> None:
    before = counted((A, CLICK, START_MS), (B, CLICK, START_MS), (B, CLICK, START_MS))
    names = {A: "a", B: "b"}
    trend = Trend(0, before.at_ms, HALF_LIFE_S, [(names[key], weight) for key, weight in before.top()])
    after = Counts()
    after.restore(trend)
    after.add(
        np.array([A], dtype=np.uint64),
        np.array([CLICK], dtype=np.uint8),
        np.array([START_MS + HALF_LIFE_MS], dtype=np.int64),
    )
    relative = 2.0 ** ((after.at_ms - START_MS) / HALF_LIFE_MS)
    assert dict(after.top()) == {A: pytest.approx(3.0 * relative), B: pytest.approx(2.0 * relative)}


def test_an_item_that_is_dropped_counts_no_more_and_may_be_counted_again() -> None:
    counts = counted((A, CLICK, START_MS), (B, CLICK, START_MS), (B, CLICK, START_MS))
    counts.drop(np.array([B, C], dtype=np.uint64))
    assert counts.top() == [(A, 1.0)]
    counts.add(np.array([B], np.uint64), np.array([CLICK], np.uint8), np.array([START_MS], np.int64))
    assert dict(counts.top()) == {A: 1.0, B: 1.0}


def dated(counts: Counts, came_in_ms: dict[int, float | None]) -> list[int]:
    """The items that counts still asked about, once they are told when items came in."""
    asked = counts.undated()
    counts.date(asked, came_in_ms)
    return sorted(asked.tolist())


def test_the_heaviest_of_the_new_items_rise() -> None:
    counts = counted((A, CLICK, START_MS), (B, CLICK, START_MS), (B, CLICK, START_MS), (C, CLICK, START_MS))
    assert counts.rising(0, START_MS) == [], "nobody has said that they are new"
    assert dated(counts, {A: START_MS, B: 5.0, C: None}) == sorted([A, B, C])
    assert counts.rising(0, START_MS) == [(B, 2.0), (A, 1.0)]
    assert counts.rising(6, START_MS) == [(A, 1.0)]
    assert counts.rising(0, START_MS - 1) == [(B, 2.0)]


def test_counts_ask_once_when_an_item_came_in_and_again_where_the_catalog_lacks_it() -> None:
    counts = counted((A, CLICK, START_MS), (B, CLICK, START_MS), (C, CLICK, START_MS))
    assert dated(counts, {A: START_MS, B: None}) == sorted([A, B, C])
    assert dated(counts, {}) == []
    counts.add(np.array([A, B, C], np.uint64), np.full(3, CLICK, np.uint8), np.full(3, START_MS, np.int64))
    assert dated(counts, {C: START_MS}) == [C], "with the next event on it"
    assert counts.rising(0, START_MS) == [(key, 2.0) for key in sorted([A, C])]


def test_a_drop_and_another_item_leave_each_its_own_time() -> None:
    counts = counted((A, CLICK, START_MS), (B, CLICK, START_MS))
    dated(counts, {A: START_MS, B: 5.0})
    counts.drop(np.array([min(A, B)], np.uint64))
    counts.add(np.array([C], np.uint64), np.array([CLICK], np.uint8), np.array([START_MS], np.int64))
    assert dated(counts, {C: None}) == [C]
    assert counts.rising(0, START_MS) == [(max(A, B), 1.0)]


def test_new_items_go_on_from_what_was_published_and_so_many_are_published_at_most() -> None:
    counts = Counts()
    counts.restore(Trend(0, START_MS, HALF_LIFE_S, [("a", 9.0), ("b", 5.0)], rising=[("b", 5.0), ("c", 1.0)]))
    assert dict(counts.top()) == {A: 9.0, B: 5.0, C: 1.0}
    assert dated(counts, {C: START_MS}) == sorted([A, B, C])
    assert counts.rising(0, START_MS) == [(C, 1.0)]
    many = counted(*((key, CLICK, START_MS) for key in range(1, 2 * RISING)))
    many.date(many.undated(), dict.fromkeys(range(1, 2 * RISING), START_MS))
    assert len(many.rising(0, START_MS)) == RISING


def test_only_the_top_is_published() -> None:
    events = [(key, CLICK, START_MS) for key in range(1, TOP + 500)]
    assert len(counted(*events).top()) == TOP


def test_the_number_of_items_is_bounded_and_the_popular_ones_stay() -> None:
    counts = Counts()
    keys = np.arange(1, 250_001, dtype=np.uint64)
    for part in (np.full(5, 7, dtype=np.uint64), keys):
        counts.add(part, np.full(len(part), CLICK, np.uint8), np.full(len(part), START_MS, np.int64))
    assert len(counts) <= 200_000
    assert counts.top()[0] == (7, 6.0)


def test_popularity_is_summed_over_partitions_as_of_the_newest() -> None:
    trends = Trends()
    trends.put(Trend(0, START_MS, 100.0, [("old", 8.0), ("both", 2.0)]))
    trends.put(Trend(1, START_MS + 100_000, 100.0, [("new", 3.0), ("both", 3.0)]))
    popular = [(item.item_id, item.weight) for item in trends.popular()]
    assert popular == [("old", 4.0), ("both", 4.0), ("new", 3.0)]
    assert trends.popular()[0].key == item_key("old")


def test_a_newer_trend_of_a_partition_takes_the_place_of_the_older() -> None:
    trends = Trends()
    trends.put(Trend(0, START_MS, 100.0, [("a", 8.0)]))
    assert [item.item_id for item in trends.popular()] == ["a"]
    newer = Trend(0, START_MS, 100.0, [("b", 1.0)])
    trends.put(newer)
    assert [item.item_id for item in trends.popular()] == ["b"]
    assert trends.of(0) == newer
    assert trends.of(1) is None


def test_nothing_is_popular_before_anything_happened() -> None:
    assert Trends().popular() == []
    assert Trends().rising() == []


def test_new_items_are_summed_over_partitions_apart() -> None:
    trends = Trends()
    trends.put(Trend(0, START_MS, 100.0, [("old", 80.0)], rising=[("new", 2.0), ("fading", 4.0)]))
    trends.put(Trend(1, START_MS + 100_000, 100.0, [("old", 80.0)], rising=[("new", 3.0)]))
    trends.put(Trend(2, START_MS, 100.0, [("of an earlier version", 1.0)]))
    assert [(item.item_id, item.weight) for item in trends.rising()] == [("new", 4.0), ("fading", 2.0)]
    trends.put(Trend(1, START_MS + 100_000, 100.0, [("old", 80.0)]))
    assert [item.item_id for item in trends.rising()] == ["fading", "new"]
    trends.put(Trend(0, START_MS, 100.0, [], rising=[(str(number), 1.0) for number in range(RISING)]))
    assert len(trends.rising()) == RISING


# One user, one voice

DAY_MS = 86_400_000
LENGTH = 50


def log_of(entries: list[tuple[int, int]]) -> Log:
    """The log of one user after (item key, time) each."""
    kept = sorted(entries, key=lambda entry: entry[1])[-LENGTH:]
    log = Log(
        np.array([len(kept)]),
        np.zeros((1, LENGTH), np.int64),
        *(np.zeros((1, LENGTH), np.uint64) for _ in range(2)),
        np.zeros((1, LENGTH), np.uint8),
    )
    for place, (item, at_ms) in enumerate(kept):
        log.item[0, place], log.at_ms[0, place] = item, at_ms
    return log


def counted_of(entries: list[tuple[int, int]], batch: int, forgotten_ms: int = 0) -> dict[int, float]:
    """What the events of one user, (item key, time) each and oldest first, add to each item in batches."""
    found: dict[int, float] = {}
    for start in range(0, len(entries), batch):
        part = entries[start : start + batch]
        items, at_ms = np.array([i for i, _ in part], np.uint64), np.array([at for _, at in part], np.int64)
        nobody = np.zeros(len(part), np.int64)
        share = shares(
            log_of(entries[max(start + batch - LENGTH, 0) : start + batch]),
            np.array([forgotten_ms]),
            nobody,
            items,
            at_ms,
        ).tolist()
        for (item, _), each in zip(part, share, strict=True):
            found[item] = found.get(item, 0.0) + each
    return found


@pytest.mark.parametrize("batch", [1, 7, 1_000, 10_000])
@pytest.mark.parametrize("spacing_ms", [0, 1, 1_000])
@pytest.mark.parametrize("items", [1, 3, LENGTH + 1])
def test_ten_thousand_clicks_of_one_user_count_as_a_few(batch: int, spacing_ms: int, items: int) -> None:
    """On one item, on a few, or on more than a log holds in turn; live or dated back."""
    clicks = 500 if batch == 1 else 10_000
    entries = [(A + number % items, START_MS + number * spacing_ms) for number in range(clicks)]
    days = clicks * spacing_ms / DAY_MS
    assert max(counted_of(entries, batch).values()) <= 3.0 + days


@pytest.mark.parametrize("batch", [1, LENGTH - 1])
def test_what_a_usual_user_does_counts_in_full(batch: int) -> None:
    """Other items each time, and a log that spans some days."""
    entries = [(A + number, START_MS + number * DAY_MS // 10) for number in range(3 * LENGTH)]
    found = counted_of(entries, batch)
    assert sum(found.values()) >= 0.9 * len(entries)
    if batch == 1:
        assert set(found.values()) == {1.0}


def test_the_second_event_on_an_item_counts_half_and_that_of_another_user_in_full() -> None:
    entries = [(A, START_MS), (B, START_MS + 1), (A, START_MS + 2), (A, START_MS + 3)]
    assert counted_of(entries, 1) == {A: 1.75, B: 1.0}


def test_late_events_below_a_full_log_count_nothing() -> None:
    """Each would take the place of the log's oldest, and none would know of the one before."""
    recent = [(B + number, START_MS + DAY_MS) for number in range(LENGTH - 1)]
    for number in range(100):
        log = log_of([*recent, (A, START_MS + number)])
        at_ms = np.array([START_MS + number])
        share = shares(log, np.array([0]), np.array([0]), np.array([A], np.uint64), at_ms)
        assert share.tolist() == [0.0]


def test_a_forget_gives_no_new_voice() -> None:
    entries = [(A, START_MS + 1_000)]
    assert counted_of(entries, 1, forgotten_ms=START_MS)[A] == pytest.approx(1_000 / DAY_MS)


def test_trends_as_of_the_future_fade_from_now_on() -> None:
    """Of a version that let a publisher's clock into the counts: the item would be first for ten years."""
    now_ms = START_MS
    trends = Trends(lambda: now_ms / 1000.0)
    trends.put(Trend(0, now_ms + 520 * HALF_LIFE_MS, HALF_LIFE_S, [("captured", 1.0)]))
    trends.put(Trend(1, now_ms, HALF_LIFE_S, [("tea", 4.0)]))
    assert [(item.item_id, item.weight) for item in trends.popular()] == [("tea", 4.0), ("captured", 1.0)]
    trend = trends.of(0)
    assert trend is not None
    assert trend.at_ms == now_ms


def test_a_stale_owners_trend_and_a_late_copy_change_nothing() -> None:
    trends = Trends()
    newest = Trend(0, START_MS, 100.0, [("a", 1.0)], epoch=2, written_ms=50)
    assert trends.put(newest)
    assert not trends.put(Trend(0, START_MS, 100.0, [("stale", 9.0)], epoch=1, written_ms=99))
    assert not trends.put(Trend(0, START_MS, 100.0, [("late", 9.0)], epoch=2, written_ms=49))
    assert [item.item_id for item in trends.popular()] == ["a"]
    assert trends.put(Trend(0, START_MS, 100.0, [("heir", 1.0)], epoch=3, written_ms=1))
    assert [item.item_id for item in trends.popular()] == ["heir"], "whatever its clock says"
