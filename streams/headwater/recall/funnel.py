"""What an answer went through on its way from the sources to its items, stage by stage. Pure.

Sources search with the request's filter and exclusions, so what these take out never reaches the pipeline. To tell it, the
sources of an explained request are asked a second time, with nothing taken out (`Gatherer.unrestricted`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from headwater.index.filters import EVERYTHING, And, Filter, admitting
from headwater.messages import FunnelItem, FunnelStage
from headwater.recall.fusion import Fused, Ranking, fuse
from headwater.recall.sources import Ask

# What a page shows of a stage without scrolling. Seven sources and nine stages make an answer some 10 kB larger.
SAMPLE: Final = 12
# Each ranking is told as far as here, so that the second asking of a request of 1,000 items is not as costly as the first.
REACH: Final = 100

Why = Callable[[int], str]  # by item key, the code of why it was taken out


class Steps(NamedTuple):
    """The lists of one answer, best first. A step that did not run has the list of the one before it.

    Attributes:
        rankings: of the sources, with nothing taken out.
        restricted: the same as they were asked for the answer.
        fused: out of ``restricted``.
        scored: in the order of the bundle's own scores.
        lowered: after dislikes have pushed away what is like them.
        chosen: the items of the answer.
    """

    rankings: Sequence[Ranking]
    restricted: Sequence[Ranking]
    fused: Sequence[Fused]
    scored: Sequence[Fused]
    lowered: Sequence[Fused]
    chosen: Sequence[Fused]


def unrestricted(ask: Ask) -> Ask:
    """The ask with nothing taken out: neither what is excluded, nor what its filter or availability leave out.

    It wants what the ask wants, up to :data:`REACH` items of each source.
    """
    of_one = ask._replace(limit=1, pool=0).wanted  # more than one where there is to be a choice
    limit = min(ask.limit, REACH // of_one)
    return ask._replace(where=EVERYTHING, exclude=frozenset(), limit=limit, pool=min(ask.pool, REACH))


def items_of(rankings: Sequence[Ranking]) -> set[int]:
    """Keys of the items whose payloads :func:`funnel` wants."""
    return {key for ranking in rankings for key, _ in ranking.items[:REACH]}


def funnel(ask: Ask, steps: Steps, payloads: Mapping[int, Mapping[str, Any]]) -> list[FunnelStage]:
    """The stages of one answer, in their order.

    Args:
        payloads: by key, of all items of ``steps.rankings``; an item that is gone counts as unavailable.
    """
    stages = [*_sources(steps.rankings)]
    free = fuse([each._replace(items=each.items[:REACH]) for each in steps.rankings])
    total = sum(stage.count for stage in stages)
    stages.append(_first("fused", free, total))
    left: Sequence[Fused] = free
    for name, why in _restrictions(ask, payloads):
        kept = [item for item in left if not why(item.key)]
        stages.append(_stage(name, left, kept, why))
        left = kept
    within = [each for each in steps.restricted if len(each.items) > REACH]
    reached = (
        fuse([each._replace(items=each.items[:REACH]) for each in steps.restricted])
        if within
        else steps.fused
    )
    stages.append(_stage("refilled", left, reached, lambda _: "not_found"))
    if steps.scored is not steps.fused:
        stages.append(_stage("scored", steps.fused, steps.scored, lambda _: "no_vector"))
    if steps.lowered is not steps.scored:
        stages.append(_stage("lowered", steps.scored, steps.lowered))
    chosen = {item.key for item in steps.chosen}
    diversified = [*steps.chosen, *(item for item in steps.lowered if item.key not in chosen)]
    stages.append(_stage("diversified", steps.lowered, diversified))
    stages.append(_stage("shown", diversified, steps.chosen, lambda _: "beyond_limit"))
    return stages


def _sources(rankings: Sequence[Ranking]) -> list[FunnelStage]:
    """A stage for each source; several rankings of one are one."""
    by_source: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_source.setdefault(ranking.source, []).append(ranking._replace(items=ranking.items[:REACH]))
    stages = []
    for source, mine in by_source.items():
        found = fuse(mine)
        stages.append(
            FunnelStage(
                "sources",
                len(found),
                source=source,
                weight=round(sum(each.weight for each in mine), 6),
                items=[FunnelItem(item.item_id, rank) for rank, item in enumerate(found[:SAMPLE], 1)],
            )
        )
    return stages


def _first(name: str, items: Sequence[Fused], total: int) -> FunnelStage:
    """The stage where several lists become one: what is in more than one of them is counted once."""
    sample = [
        FunnelItem(item.item_id, rank, source=item.source) for rank, item in enumerate(items[:SAMPLE], 1)
    ]
    return FunnelStage(name, len(items), merged=total - len(items), items=sample)


def _restrictions(ask: Ask, payloads: Mapping[int, Mapping[str, Any]]) -> list[tuple[str, Why]]:
    """What takes items out, in this order, each with why it takes one out; empty where it does not."""
    matches = admitting(_whatever_is_available(ask.where))
    admits = admitting(ask.where)
    seen = {key for key, _, _ in ask.events} if ask.exclude_seen else set()
    seen |= {key for key, _ in ask.counters} if ask.exclude_seen else set()

    def filtered(key: int) -> str:
        return "" if key not in payloads or matches(payloads[key]) else "filter"

    def unavailable(key: int) -> str:
        if key not in payloads:
            return "gone"
        return "" if admits(payloads[key]) else "unavailable"

    def excluded(key: int) -> str:
        if key not in ask.exclude:
            return ""
        return "hidden" if key in ask.unwanted else "seen" if key in seen else "excluded"

    return [("filtered", filtered), ("unavailable", unavailable), ("excluded", excluded)]


def _whatever_is_available(where: Filter | None) -> Filter:
    """The filter without the rule that leaves unavailable items out."""
    return EVERYTHING if where is None else And((where, EVERYTHING))


def _stage(
    name: str, before: Sequence[Fused], after: Sequence[Fused], why: Why = lambda _: ""
) -> FunnelStage:
    """What became of a list. An item has moved if its place among those that stayed is another one.

    The sample is of what has changed, best places first.
    """
    was = {item.key: place for place, item in enumerate(before, 1)}
    rank = {item.key: place for place, item in enumerate(after, 1)}
    moved = _moved(
        [item.key for item in before if item.key in rank], [item.key for item in after if item.key in was]
    )
    out = [item for item in before if item.key not in rank]
    entered = [item for item in after if item.key not in was]
    changed = [
        *(
            (was[item.key], FunnelItem(item.item_id, was=was[item.key], why=why(item.key)))
            for item in out[:SAMPLE]
        ),
        *(
            (rank[item.key], FunnelItem(item.item_id, rank[item.key], source=item.source))
            for item in entered[:SAMPLE]
        ),
        *(
            (min(rank[item.key], was[item.key]), FunnelItem(item.item_id, rank[item.key], was[item.key]))
            for item in after
            if item.key in moved
        ),
    ]
    changed.sort(key=lambda each: each[0])
    sample = [item for _, item in changed[:SAMPLE]]
    return FunnelStage(name, len(after), out=len(out), entered=len(entered), moved=len(moved), items=sample)


def _moved(before: Sequence[int], after: Sequence[int]) -> Collection[int]:
    """The keys whose place is another one; both lists hold the same keys."""
    return {key for key, other in zip(before, after, strict=True) if key != other}
