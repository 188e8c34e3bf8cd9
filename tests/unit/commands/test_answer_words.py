"""An answer in words."""

from typing import Any, get_args

import pytest

from headwater.commands.answer_words import (
    DID,
    FOUND_BY,
    LACKS,
    WHY,
    ago,
    funnel,
    named,
    proof,
    rows,
    shortcomings,
)
from headwater.messages import (
    SESSION_ACTIONS,
    Candidate,
    FunnelStage,
    Reason,
    Reflects,
    Request,
    Response,
    SourceName,
)
from headwater.recall.sources import Why
from headwater.recall.sources.registry import REGISTRY

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def answer(*items: Candidate, **fields: Any) -> Response:
    return Response("r", "ann", **{"status": "ok", "items": list(items), "catalog": {0: 5}, **fields})


def bought(item_id: str, ago_ms: int, share: float = 1.0) -> Reason:
    return Reason(item_id, NOW_MS - ago_ms, "purchase", share)


def told(response: Response, **fields: Any) -> str:
    return "; ".join(shortcomings(Request("r", "ann", **fields), response))


def test_every_action_source_and_rung_has_its_words() -> None:
    assert set(DID) == set(SESSION_ACTIONS)
    assert set(FOUND_BY) == set(get_args(SourceName))
    of_no_source = {"gap", "newer-format", "other-bundle", "restoring", "stored", "unscored"}
    assert {source.rung for source in REGISTRY} | of_no_source == set(LACKS)
    assert set(WHY) == set(get_args(Why))


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (-5, "just now"),
        (59_999, "just now"),
        (60_000, "1 minute ago"),
        (2 * 3_600_000, "2 hours ago"),
        (3 * DAY_MS + 1, "3 days ago"),
    ],
)
def test_times_are_told_in_the_largest_unit_that_fits(ms: int, words: str) -> None:
    assert ago(ms) == words


def test_the_reason_is_the_weightiest_event_with_its_title_and_share() -> None:
    item = Candidate("c2", 0.5, "interests", [bought("c1", 3 * DAY_MS, 0.7), bought("t1", 0, 0.3)])
    (row,) = rows(answer(item), {"c1": "Ground coffee", "c2": "Espresso"}, NOW_MS)
    assert row.title == "Espresso"
    assert row.reason == "because you bought Ground coffee 3 days ago (70%)"
    assert named(answer(item)) == ["c1", "c2", "t1"]
    put = Candidate("c2", 0.5, "interests", [Reason("c1", NOW_MS, "add_to_cart", 1.0)])
    (row,) = rows(answer(put), {"c1": "Ground {} coffee"}, NOW_MS)
    assert row.reason == "because you put Ground {} coffee into the cart just now"


def test_an_event_that_is_the_only_reason_needs_no_share_and_an_item_without_title_goes_by_its_id() -> None:
    (row,) = rows(answer(Candidate("c2", 0.5, "interests", [bought("c1", 0)])), {}, NOW_MS)
    assert row.reason == "because you bought c1 just now"


def test_an_item_without_events_behind_it_says_how_it_was_found() -> None:
    (row,) = rows(answer(Candidate("c2", 0.5, "popular")), {}, NOW_MS)
    assert row.reason == "popular now"


def test_a_full_answer_has_no_shortcomings() -> None:
    full = answer(Candidate("c2", 0.5, "interests"), reflects=Reflects(2, 7, 1))
    assert told(full, limit=1) == ""


def test_an_answer_that_was_cut_says_so() -> None:
    assert told(answer(Candidate("c2", 0.5, "interests"), truncated=True), limit=2) == (
        "1 item of 2; larger than a message may be: its reasons are left out, and its last items if that was not enough"
    )


def test_a_degraded_answer_says_what_it_lacks() -> None:
    said = told(answer(Candidate("c2", 0.5, "popular"), status="degraded", rung="popular"), limit=1)
    assert said == "degraded (popular): the index did not answer in time, so popular items stand in"


def test_a_short_answer_says_why_by_source_and_reason() -> None:
    said = told(
        answer(why={"interests": "no_events", "similar": "no_events", "popular": "no_popularity"}), limit=5
    )
    assert said == (f"no items of 5; interests, similar: {WHY['no_events']}; popular: {WHY['no_popularity']}")


def test_a_full_answer_says_what_brought_nothing_to_it_and_a_code_of_a_later_version_stands_for_itself() -> (
    None
):
    said = told(answer(Candidate("c2", 0.5, "interests"), why={"query": "not_today"}), limit=1)
    assert said == "query: not_today"


def test_a_funnel_is_two_lines_of_counts() -> None:
    stages = [
        FunnelStage("sources", 20, source="interests", weight=1.0),
        FunnelStage("sources", 5, source="popular"),
        FunnelStage("fused", 24, merged=1),
        FunnelStage("excluded", 10, out=14),
        FunnelStage("refilled", 22, entered=12, moved=3),
    ]
    response = Response("r", "ann", "ok", funnel=stages)
    assert list(funnel(response)) == [
        "found: interests 20, popular 5",
        "fused 24 -> excluded 10 (-14) -> refilled 22 (+12, 3 moved)",
    ]
    assert not list(funnel(Response("r", "ann", "ok")))


def test_the_proof_is_one_line() -> None:
    response = answer(reflects=Reflects(2, 7, 3, 1, "e-7"), timings_ms={"total": 4.26})
    assert proof(response) == (
        "ok, reflects 3 events up to 2-7, last event e-7, 1 pending (no vector of the item yet), 4.3 ms in the worker"
    )


def test_before_the_first_click_is_read_an_answer_reflects_nothing_of_its_partition() -> None:
    response = answer(reflects=Reflects(2, -1, 0, 0, ""), timings_ms={})
    assert "reflects nothing of partition 2 yet" in proof(response)
