"""A pending request and its user's interests become what recall is asked. Pure."""

from collections.abc import Iterable
from typing import Final

from headwater.encoder.features import item_key
from headwater.index.item_vectors import ItemVectors
from headwater.paths.accepting import PendingRequest
from headwater.profiles.actions import SEEN, STEPS
from headwater.profiles.columns import Log
from headwater.profiles.hides import in_force, repelling
from headwater.profiles.interests import UserInterests
from headwater.recall.rescoring import pool_size
from headwater.recall.sources import F32, Ask, PositiveEvent

# As lists: an event at a time, indexing an array takes several times as long.
_SEEN: Final[list[bool]] = SEEN.tolist()
_STEPS: Final[list[bool]] = STEPS.tolist()


def ask_of(pending: PendingRequest, user: UserInterests, query: F32 | None, pool: int) -> Ask:
    """What recall is asked for a request.

    Args:
        query: (D,) the vector of the request's text; None without one.
        pool: how many candidates of each source the bundle's scorer chooses from; 0 without a scorer.
    """
    request, session = pending.request, pending.session
    logged = _entries(user.log)
    what_if = list(zip(session.items, session.at_ms, session.actions, strict=True))
    # What-if events are the last word, whatever their times.
    hidden = in_force(logged, user.hides, what_if)
    exclude = {item_key(item_id) for item_id in request.exclude}
    if request.exclude_seen:
        exclude.update(session.items)
        exclude.update(key for key, _, action in logged if _SEEN[action])
        exclude.update(key for key, _ in user.counters)
    weights = {str(name): weight for name, weight in request.sources.items()}
    return Ask(
        limit=request.limit,
        now_ms=pending.at_ms,
        interests=user.interests,
        interest_weights=user.weights,
        log=_positive(logged),
        session=_positive(what_if),
        unwanted=frozenset(hidden),
        dislikes=repelling(hidden),
        counters=user.counters,
        query=query,
        has_text=bool(request.query.strip()),
        items=[*dict.fromkeys(map(item_key, request.items))],
        where=pending.where,
        exclude=frozenset(exclude.union(hidden)),
        exclude_seen=request.exclude_seen,
        diversity=request.diversity,
        weights=weights,
        explain=request.explain,
        pool=pool_size(pool, weights, query, user.interests),
    )


def lacks_vectors(pending: PendingRequest, user: UserInterests, vectors: ItemVectors) -> bool:
    """Whether events of the user, or of the request, could not be taken in for lack of their items' vectors."""
    return user.pending > 0 or any(key not in vectors for key in pending.session.items)


def _entries(log: Log | None) -> list[PositiveEvent]:
    """(item key, time, action) of each entry of a one-user log."""
    if log is None:
        return []
    n = int(log.n[0])
    columns = (log.item[0, :n].tolist(), log.at_ms[0, :n].tolist(), log.action[0, :n].tolist())
    return list(zip(*columns, strict=True))


def _positive(events: Iterable[PositiveEvent]) -> list[PositiveEvent]:
    return [event for event in events if _STEPS[event[2]]]
