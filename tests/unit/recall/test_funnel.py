"""What an answer went through, told from the lists of its steps."""

from typing import Any

import msgspec

from headwater.encoder.features import item_key
from headwater.index.filters import EVERYTHING, parse
from headwater.messages import FunnelItem, FunnelStage, Response, encode
from headwater.recall.funnel import REACH, SAMPLE, Steps, funnel, items_of, unrestricted
from headwater.recall.fusion import Ranking, fuse
from headwater.recall.sources import Ask

PAYLOADS: dict[int, dict[str, Any]] = {
    item_key(name): {"item_id": name, "category": name[0], "available": not name.endswith("x")}
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "ax")
}


def ranking(source: str, *names: str, weight: float = 1.0) -> Ranking:
    return Ranking(source, weight, [(item_key(name), name) for name in names])


def steps(free: list[Ranking], restricted: list[Ranking], shown: int, **others: Any) -> Steps:
    fused = fuse(restricted)
    scored = others.get("scored", fused)
    lowered = others.get("lowered", scored)
    return Steps(free, restricted, fused, scored, lowered, others.get("chosen", lowered[:shown]))


def told(ask: Ask, taken: Steps) -> dict[str, FunnelStage]:
    stages = funnel(ask, taken, PAYLOADS)
    return {stage.source or stage.stage: stage for stage in stages}


def why(stage: FunnelStage) -> dict[str, str]:
    return {item.item_id: item.why for item in stage.items}


def keys(*names: str) -> frozenset[int]:
    return frozenset(map(item_key, names))


def test_each_stage_says_what_it_took_out_and_why() -> None:
    ask = Ask(
        limit=1,
        where=parse({"category": "a"}),
        log=[(item_key("a1"), 1, 1)],
        exclude=keys("a1", "a2", "a3"),
        unwanted=keys("a2"),
        exclude_seen=True,
    )
    free = [ranking("interests", "a1", "b1", "ax", "a2", "lost"), ranking("popular", "a3", "a1")]
    stages = told(ask, steps(free, [ranking("interests", "a4")], 1))
    assert (stages["interests"].count, stages["popular"].count) == (5, 2)
    assert (stages["fused"].count, stages["fused"].merged) == (6, 1)
    assert (stages["filtered"].count, why(stages["filtered"])) == (5, {"b1": "filter"})
    assert (stages["unavailable"].count, why(stages["unavailable"])) == (
        3,
        {"ax": "unavailable", "lost": "gone"},
    )
    assert (stages["excluded"].count, stages["excluded"].out) == (0, 3)
    assert why(stages["excluded"]) == {"a1": "seen", "a2": "hidden", "a3": "excluded"}
    assert (stages["refilled"].count, stages["refilled"].entered) == (1, 1)
    assert stages["refilled"].items == [FunnelItem("a4", 1, source="interests")]
    assert stages["shown"].count == 1


def test_the_stages_come_in_their_order_and_those_that_did_not_run_are_left_out() -> None:
    found = [ranking("interests", "a1", "a2")]
    plain = [stage.stage for stage in funnel(Ask(), steps(found, found, 2), PAYLOADS)]
    assert plain == [
        *("sources", "fused", "filtered", "unavailable", "excluded", "refilled", "diversified", "shown")
    ]
    fused = fuse(found)
    scored = fused[::-1]
    moved = funnel(Ask(), steps(found, found, 2, scored=scored, lowered=scored[::-1]), PAYLOADS)
    assert [(each.stage, each.moved) for each in moved if each.moved] == [("scored", 2), ("lowered", 2)]


def test_an_answer_from_which_nothing_was_taken_tells_no_change() -> None:
    found = [ranking("interests", "a1", "a2"), ranking("popular", "a2", "b1")]
    stages = funnel(Ask(), steps(found, found, 3), PAYLOADS)
    assert not any(stage.out or stage.entered or stage.moved for stage in stages)
    assert [stage.count for stage in stages if stage.stage != "sources"] == [3] * 7


def test_an_item_that_moved_has_its_place_before_and_after() -> None:
    found = [ranking("interests", "a1", "a2", "b1")]
    fused = fuse(found)
    chosen = [fused[0], fused[2]]  # what is unlike the first one comes up
    stages = told(Ask(limit=2, diversity=0.5), steps(found, found, 2, chosen=chosen))
    assert (stages["diversified"].count, stages["diversified"].moved, stages["diversified"].out) == (3, 2, 0)
    assert stages["diversified"].items == [FunnelItem("b1", 2, 3), FunnelItem("a2", 3, 2)]
    assert stages["shown"].items == [FunnelItem("a2", was=3, why="beyond_limit")]


def test_what_is_behind_an_item_that_went_out_has_not_moved() -> None:
    found = [ranking("interests", "b1", "a1", "a2")]
    ask = Ask(where=parse({"category": "a"}))
    stages = told(ask, steps(found, [ranking("interests", "a1", "a2")], 2))
    assert (stages["filtered"].out, stages["filtered"].moved) == (1, 0)


def test_a_filter_that_names_availability_replaces_the_rule_on_it() -> None:
    found = [ranking("interests", "ax", "a1")]
    stages = told(Ask(where=parse({"available": False})), steps(found, [ranking("interests", "ax")], 1))
    assert why(stages["filtered"]) == {"a1": "filter"}
    assert stages["unavailable"].out == 0


def test_a_funnel_of_a_large_answer_is_small() -> None:
    names = [f"item {number} {'long ' * 10}" for number in range(1_000)]
    found = [ranking(source, *names) for source in ("interests", "similar", "popular", "new", "item")]
    fused = fuse(found)
    assert len(items_of(found)) == REACH
    stages = funnel(Ask(limit=1_000), steps(found, found, 1_000, scored=fused[::-1]), {})
    assert all(len(stage.items) <= SAMPLE for stage in stages)
    assert all(stage.count <= REACH for stage in stages[:6])
    assert len(encode(Response("r", "ann", "ok", funnel=stages))) < 20_000


def test_nothing_is_taken_out_of_what_is_asked_for_again() -> None:
    ask = Ask(
        limit=500, where=parse({"category": "a"}), exclude=keys("a1"), unwanted=keys("a1"), diversity=0.5
    )
    free = unrestricted(ask)
    assert (free.where, free.exclude, free.unwanted) == (EVERYTHING, frozenset(), ask.unwanted)
    assert free.wanted <= REACH
    assert unrestricted(Ask(limit=20, diversity=0.5)).wanted == 60


def test_an_unexplained_answer_has_no_such_field() -> None:
    assert b"funnel" not in encode(Response("r", "ann", "ok"))
    assert not Response("r", "ann", "ok").funnel
    raw = encode(Response("r", "ann", "ok", funnel=[FunnelStage("shown", 1)]))
    assert msgspec.json.decode(raw)["funnel"] == [{"stage": "shown", "count": 1}]
