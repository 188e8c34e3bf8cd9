"""The figures of the live page."""

import numpy as np
import pytest

from headwater.messages import Candidate, Reflects, Response
from headwater.metrics import LATENCY, Metrics
from headwater.paths.observer import Answered, ClickApplied, ItemIndexed
from headwater.worker.live_figures import MOST_SHOWN, WINDOW_S, ClickToAnswer, Figures, quantile_ms, shown


def click(user: str, event: str, came_ms: float, applied_ms: float) -> ClickApplied:
    return ClickApplied(user, "t1", "click", event, 1, 0, 7, applied_ms - came_ms, applied_ms)


def answer(user: str, event: str | None, asked_ms: float, answered_ms: float) -> Answered:
    reflects = Reflects(0, 7, last_event_id=event)
    response = Response("r", user, "ok", items=[Candidate("t2", 0.5, "new")], reflects=reflects)
    return Answered(response, answered_ms - asked_ms, answered_ms)


def test_a_click_counts_to_the_first_answer_that_reflects_it() -> None:
    times = ClickToAnswer()
    assert times.take([click("ann", "e1", 100.0, 104.0)]) == []
    assert times.take([answer("bob", "e1", 101.0, 106.0), answer("ann", "e0", 101.0, 106.0)]) == []
    assert times.take([answer("ann", "e1", 101.0, 109.0), answer("ann", "e1", 101.0, 120.0)]) == [9.0]


def test_time_in_which_nobody_asked_is_left_out() -> None:
    times = ClickToAnswer()
    # Applied after 4 ms; asked ten minutes later, and answered within 3.
    assert times.take([click("ann", "e1", 100.0, 104.0), answer("ann", "e1", 600_000.0, 600_003.0)]) == [7.0]


def test_figures_are_of_the_time_since_the_last_ones() -> None:
    metrics = Metrics()
    metrics.clicks_total.inc(1_000)
    metrics.request_seconds.observe(50.0)
    figures = Figures(metrics)
    metrics.clicks_total.inc(30)
    metrics.requests_total.labels("ok").inc(2)
    metrics.index_fallbacks_total.labels("popular").inc()
    metrics.dead_letters_total.labels("bad_json").inc(4)
    for seconds in (0.0015, 0.002):
        metrics.request_seconds.observe(seconds)
    said = figures.second([click("ann", "e1", 100.0, 104.0), answer("ann", "e1", 101.0, 106.0)])
    assert said["clicks_per_s"] > 0
    assert said["clicks_per_s"] == pytest.approx(15 * said["answers_per_s"], rel=0.1)
    assert (said["rungs"], said["statuses"], said["dead_letters"]) == (
        {"popular": 1.0},
        {"ok": 2.0},
        {"bad_json": 4.0},
    )
    assert 1.0 < said["answer_ms"]["p50"] < said["answer_ms"]["p99"] <= 2.5
    assert said["click_to_applied_ms"] == {"p50": None, "p99": None}
    assert said["click_to_answer_ms"] == {"p50": 6.0, "p99": 6.0, "n": 1}
    assert figures.second([])["clicks_per_s"] == 0


def test_quantiles_forget_what_is_older_than_their_window() -> None:
    metrics = Metrics()
    figures = Figures(metrics)
    metrics.request_seconds.observe(3.0)
    seen = [figures.second([])["answer_ms"]["p50"] for _ in range(WINDOW_S + 1)]
    assert [each is not None for each in seen] == [True] * WINDOW_S + [False]


def test_a_quantile_lies_within_its_bucket() -> None:
    counts = np.zeros(len(LATENCY) + 1)
    assert quantile_ms(counts, 0.5) is None
    counts[0] = 10
    assert quantile_ms(counts, 0.5) == 0.5
    counts[-1] = 1_000
    assert quantile_ms(counts, 0.99) == LATENCY[-1] * 1000.0


def test_a_sample_is_bounded_and_the_newest() -> None:
    clicks = [click("ann", f"e{n}", 1.0, 2.0) for n in range(100)]
    said = shown(
        [*clicks, answer("ann", "e1", 1.0, 3.5), ItemIndexed("t1", "<b>Tea</b>", False, 0, 5, 12.34)]
    )
    assert [each["event_id"] for each in said["clicks"]] == [f"e{n}" for n in range(100 - MOST_SHOWN, 100)]
    assert (said["answers"][0]["items"], said["answers"][0]["took_ms"]) == (["t2"], 2.5)
    assert said["items"] == [{"item_id": "t1", "title": "<b>Tea</b>", "is_removed": False, "lag_ms": 12.3}]
