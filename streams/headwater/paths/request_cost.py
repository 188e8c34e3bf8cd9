"""What a request costs: microseconds of the event loop, estimated from its fields before any work is done. Pure.

The figures are processor time on one core of a small machine, with 20,000 items in the edge index and four interests a user.
They need not be exact: they refuse what is out of all proportion, and cut batches into parts of about the same work.

| part | microseconds |
|---|---|
| any request | 500 |
| `limit` | 30 an item: four searches, fusion, the answer |
| `diversity` | 30 a candidate, of three times `limit` and at most 1,000, and 10 for each thousand that it is compared with |
| `explain` | 1,000, 13 an item, 20 for each of the first 100, and 0.1 an item for each event of the session; what `new` and `items` say, again for the first 100 |
| `filter` | 100 a condition, 20 a value: in four searches, and over 1,000 popular items |
| `exclude` | 5 an item |
| `session` | 150 an event |
| `until_ms` | 5,000: a log of 50 events is read again |
| `query` | 1 a character |
| `new` among `sources` | 100 an item: eight more searches, and the attributes of what they find |
| `items` | 6 an item of the answer for each |
"""

from typing import Final

from headwater.index import filters
from headwater.messages import Request
from headwater.recall.funnel import REACH

# A request of 1,000 items with reasons, diversity, 100 events, 1,000 exclusions and a plain filter is below it.
MAX_COST_US: Final = 150_000
_MAX_POOL: Final = 1_000
_NEW_US: Final = 100.0
# Of comparing what others take of new items, whatever the limit.
_RISING_US: Final = 1_500.0
# The fields whose parts are told apart, with what makes each of them cheaper.
_REMEDY: Final = {
    "limit": "ask for fewer items",
    "diversity": "ask for fewer items, or without diversity",
    "explain": "ask for fewer items, or without reasons",
    "filter": "name fewer values",
    "exclude": "exclude fewer items",
    "session": "send fewer events",
    "query": "send a shorter text",
    "sources": "ask for fewer items of `new`",
    "items": "name fewer of them, or ask for fewer",
    "until_ms": "ask without it",
}


def cost_us(request: Request, where: filters.Filter | None) -> float:
    """What a request costs, in microseconds of the event loop."""
    return sum(_parts(request, where))


def complaint(request: Request, where: filters.Filter | None, total_us: float) -> str | None:
    """The sentence that refuses a request that costs ``total_us``; None where it may be worked on."""
    if total_us <= MAX_COST_US:
        return None
    _, *parts = _parts(request, where)
    part_us, field = max(zip(parts, _REMEDY, strict=True))
    return (
        f"{field}: the request costs about {total_us / 1000.0:.0f} ms of a worker, {part_us / 1000.0:.0f} of them by "
        f"{field}, expected at most {MAX_COST_US / 1000.0:.0f}: {_REMEDY[field]}"
    )


def _parts(request: Request, where: filters.Filter | None) -> tuple[float, ...]:
    """Of any request, and then in the order of `_REMEDY`."""
    limit, session = request.limit, len(request.session)
    size = filters.size(where) if where is not None else _NO_FILTER
    candidates = min(3 * limit, _MAX_POOL) if request.diversity > 0 else 0
    return (
        500.0,
        30.0 * limit,
        candidates * (30.0 + 0.01 * limit),
        limit * (10.0 + 0.1 * session) + _funnel_us(request) if request.explain else 0.0,
        100.0 * size.conditions + 20.0 * size.values,
        5.0 * len(request.exclude),
        150.0 * session,
        float(len(request.query)),
        _RISING_US + _NEW_US * limit if request.sources.get("new") else 0.0,
        6.0 * limit * len(request.items),
        0.0 if request.until_ms is None else 5_000.0,
    )


def _funnel_us(request: Request) -> float:
    """Of asking the sources again, with nothing taken out, and of telling the lists apart."""
    again = min(request.limit, REACH // 3 if request.diversity > 0 else REACH)
    of_sources = 6.0 * len(request.items) + (_NEW_US if request.sources.get("new") else 0.0)
    rising = _RISING_US if request.sources.get("new") else 0.0
    return 1_000.0 + 20.0 * min(request.limit, REACH) + 3.0 * request.limit + rising + of_sources * again


_NO_FILTER: Final = filters.Size(0, 0)
