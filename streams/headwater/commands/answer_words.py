"""An answer in words: one reason per item, what the answer rests on, and why it is short. Pure; time is passed in."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from headwater.messages import Candidate, FunnelStage, Position, Reason, Reflects, Request, Response

# What the user did to an item, after "because you". A test holds the keys equal to the actions that can be a reason.
DID: Final[Mapping[str, str]] = {
    "click": "clicked {}",
    "view": "viewed {}",
    "like": "liked {}",
    "add_to_cart": "put {} into the cart",
    "purchase": "bought {}",
}
# What to say of an item for which no event of the user stands. A test holds the keys equal to the sources.
FOUND_BY: Final[Mapping[str, str]] = {
    "interests": "near your interests",
    "query": "matches the query",
    "item": "like the item you named",
    "popular": "popular now",
    "buy-again": "you may want it again",
    "similar": "goes with what you look at",
    "new": "new in the catalog",
}
# What a degraded answer lacks, by its rung.
LACKS: Final[Mapping[str, str]] = {
    "gap": "the demanded click was deleted from the log before a worker read it, so it never counts",
    "newer-format": "a newer version wrote the user's state, so nothing that the user did counts, hides neither",
    "restoring": "the user's partition is being read, so no click counts yet",
    "other-bundle": "the catalog is encoded by another bundle, so what changes in it is not found",
    "stored": "some vectors of clicked items could not be fetched, so these clicks do not count yet",
    "popular": "the index did not answer in time, so popular items stand in",
    "none": "the index did not answer in time, so nothing can be said about the filter",
    "no-repeats": "what the user may want again could not be looked up",
    "no-similar": "similar items could not be looked up, or the bundle has no table of them",
    "no-new": "new items could not be looked up",
    "no-item": "items like the named ones could not be looked up",
    "unscored": "the bundle's scores had no time, so the order is that of the sources",
}
# Why a source brought nothing or too little, by its code. A test holds the keys equal to the codes.
WHY: Final[Mapping[str, str]] = {
    "no_events": "the user has no events that count yet; publish one, `headwater click USER ITEM`",
    "no_vectors": "none of the items in the user's events has a vector yet",
    "no_session": "the user's last events are too old for a current session",
    "no_new": "no new item of the catalog can come",
    "no_query": "the request has no text (--query)",
    "no_items": "the request names no item (--item)",
    "no_like": "the named items are not in the catalog, or nothing else that may come is like them",
    "no_weight": "the request gives it the weight 0",
    "no_text": "the bundle encodes no text",
    "no_popularity": "no item is popular yet",
    "unknown_items": "the bundle's table knows none of the session's items",
    "unavailable": "the items it names are not in the catalog, or not available",
    "too_recent": "all that the user may want again is of the last hour",
    "seen_excluded": "items the user has seen are excluded (--include-seen lifts this)",
    "hidden": "the user has disliked or hidden what it would bring",
    "excluded": "all others are excluded or seen (--include-seen lifts the second)",
    "filtered": "no more items match the filter",
    "no_more": "the catalog has no more items that are available",
    "not_in_bundle": "the bundle has no table for it",
    "empty_catalog": "the catalog is empty; publish items, `headwater import catalog FILE`",
    "late": "it failed, or did not answer in time",
}
_SPANS: Final = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"))


class Row(NamedTuple):
    """One item of an answer, as a table shows it; no similarity where the worker does not tell it."""

    item_id: str
    title: str
    similarity: str
    score: float
    source: str
    reason: str


def rows(response: Response, titles: Mapping[str, str], now_ms: int) -> list[Row]:
    """The items of an answer, best first.

    Args:
        titles: by item id; an item without one goes by its id.
        now_ms: the moment that reasons are told from, in milliseconds since 1970.
    """
    return [
        Row(
            item.item_id,
            titles.get(item.item_id, ""),
            f"{item.similarity:.2f}" if isinstance(item.similarity, float) else "",
            item.score,
            item.source,
            _reason(item, titles, now_ms),
        )
        for item in response.items
    ]


def named(response: Response) -> list[str]:
    """The ids of all items that an answer names: its own and those of its reasons, each once."""
    ids = {item.item_id for item in response.items}
    ids |= {reason.item_id for item in response.items for reason in item.because}
    return sorted(ids)


def ago(ms: int) -> str:
    """A span of time in words.

    >>> ago(3 * 86_400_000), ago(5_000)
    ('3 days ago', 'just now')
    """
    for length, name in _SPANS:
        if ms >= length:
            count = ms // length
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def proof(response: Response) -> str:
    """What the answer rests on, in one line."""
    words: list[str] = [response.status]
    if response.reflects is not None:
        words += _reflected(response.reflects)
    total_ms = response.timings_ms.get("total", 0.0)
    return f"{', '.join(words)}, {total_ms:.1f} ms in the worker"


def shortcomings(request: Request, response: Response) -> Iterator[str]:
    """Why the answer is poorer or shorter than asked for; nothing where it is not."""
    if response.rung is not None:
        yield f"degraded ({response.rung}): {LACKS.get(response.rung, 'a part of the system failed or was late')}"
    found = len(response.items)
    if found < request.limit:
        yield f"{found or 'no'} {'item' if found == 1 else 'items'} of {request.limit}"
    if response.truncated:
        yield "larger than a message may be: its reasons are left out, and its last items if that was not enough"
    by_reason: dict[str, list[str]] = {}
    for source, code in response.why.items():
        by_reason.setdefault(code, []).append(source)
    for code, sources in by_reason.items():
        yield f"{', '.join(sources)}: {WHY.get(code, code)}"


def funnel(response: Response) -> Iterator[str]:
    """What the candidates went through, in at most three lines; nothing where the answer does not tell it."""
    stages = response.funnel or []
    sources = [f"{stage.source} {stage.count}" for stage in stages if stage.stage == "sources"]
    if sources:
        yield f"found: {', '.join(sources)}"
    steps = [_step(stage) for stage in stages if stage.stage != "sources"]
    if steps:
        yield " -> ".join(steps)


def _step(stage: FunnelStage) -> str:
    changes = [
        f"{sign}{count}{word}"
        for sign, count, word in (
            ("-", stage.out, ""),
            ("+", stage.entered, ""),
            ("", stage.moved, " moved"),
        )
        if count
    ]
    return f"{stage.stage} {stage.count}" + (f" ({', '.join(changes)})" if changes else "")


def _reason(item: Candidate, titles: Mapping[str, str], now_ms: int) -> str:
    if not item.because:
        return FOUND_BY.get(item.source, "")
    first: Reason = item.because[0]
    what = titles.get(first.item_id) or first.item_id
    did = DID.get(first.action, f"({first.action}) {{}}").replace("{}", what)
    share = f" ({first.share:.0%})" if len(item.because) > 1 else ""
    return f"because you {did} {ago(now_ms - first.at_ms)}{share}"


def _reflected(reflects: Reflects) -> Iterator[str]:
    events = f"{reflects.events} {'event' if reflects.events == 1 else 'events'}"
    if reflects.offset < 0:
        yield f"reflects nothing of partition {reflects.partition} yet"
    else:
        yield f"reflects {events} up to {Position(reflects.partition, reflects.offset)}"
    if reflects.last_event_id:
        yield f"last event {reflects.last_event_id}"
    if reflects.pending:
        yield f"{reflects.pending} pending (no vector of the item yet)"
