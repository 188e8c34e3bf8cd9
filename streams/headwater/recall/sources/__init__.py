"""The contract of a source of candidates, and the ask that it gets.

A source is one file here and one line in `registry.py`. It takes one of four shapes, by what it knows:

| shape | a source of it says | the pipeline does once for all of them |
|---|---|---|
| `KeySource` | which items, by their keys | looks up which of them are there and match the filter |
| `VectorSource` | which points of the vector space | searches for the nearest items |
| `SearchSource` | a whole ranking, by calls of its own | bounds its time |
| `Filler` | a whole ranking, whatever the index does | asks it last, where the others left an answer short |

A source that fails or is late costs its answers a rung, never the answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.neighbours import Neighbours
from headwater.index import Index
from headwater.index.filters import Filter
from headwater.recall.popularity import PopularItem

F32 = NDArray[np.float32]
PositiveEvent = tuple[int, int, int]  # item key, time in ms, code of the action
Named = tuple[int, str]  # item key, item id
# By name of source, what each names for an ask: item key -> how much it counts. See `KeySource.keys`.
Keyed = Mapping[str, Mapping[int, float]]
# Why a source brought nothing, or less than was wanted. `commands/answer_words.py` has each in words.
Why = Literal[
    "no_events",
    "no_vectors",
    "no_session",
    "no_new",
    "no_query",
    "no_items",
    "no_like",
    "no_weight",
    "no_text",
    "no_popularity",
    "unknown_items",
    "unavailable",
    "too_recent",
    "seen_excluded",
    "excluded",
    "hidden",
    "filtered",
    "no_more",
    "not_in_bundle",
    "empty_catalog",
    "late",
]

# Maximal marginal relevance needs several times as many candidates as it chooses.
_POOL_FACTOR: Final = 3
_MAX_POOL: Final = 1_000
_NO_INTERESTS: Final[F32] = np.zeros((0, 0), dtype=np.float32)


class Ask(NamedTuple):
    """What one request wants, with everything that sources may know of its user.

    Attributes:
        now_ms: the moment that the answer is for.
        interests: (K, D) the user's interests; K = 0 for a user without events.
        interest_weights: (K,) how much each of them counts.
        log: the user's positive events, oldest first.
        session: the positive what-if events of the request, oldest first; newer than the log.
        unwanted: keys of the items that the user has disliked or hidden; they are in ``exclude`` too.
        dislikes: (item key, time in ms) of those that the user dislikes.
        counters: (item key, level) of the positive events that have left the log.
        query: (D,) the vector of the request's text; None without one, or where the bundle encodes no text.
        has_text: the request has a text.
        items: keys of the items that the request names.
        exclude: keys of the items that no source may bring.
        exclude_seen: items that the user has seen are among these.
        weights: of the sources, by name, as the request gives them; empty: each has its default weight.
        explain: the answer gives reasons.
        pool: how many items each source is asked for at least, for a scorer to choose from; 0: the answer is not scored.
    """

    limit: int = 20
    now_ms: int = 0
    interests: F32 = _NO_INTERESTS
    interest_weights: F32 = _NO_INTERESTS.ravel()
    log: Sequence[PositiveEvent] = ()
    session: Sequence[PositiveEvent] = ()
    unwanted: frozenset[int] = frozenset()
    dislikes: Sequence[tuple[int, int]] = ()
    counters: Sequence[tuple[int, int]] = ()
    query: F32 | None = None
    has_text: bool = False
    items: Sequence[int] = ()
    where: Filter | None = None
    exclude: frozenset[int] = frozenset()
    exclude_seen: bool = False
    diversity: float = 0.0
    weights: Mapping[str, float] = MappingProxyType({})
    explain: bool = False
    pool: int = 0

    @property
    def events(self) -> Sequence[PositiveEvent]:
        """All positive events, oldest first."""
        return [*self.log, *self.session] if self.session else self.log

    @property
    def liked(self) -> Sequence[PositiveEvent]:
        """The positive events whose item is not unwanted, oldest first."""
        return self._wanted_of(self.events)

    @property
    def liked_log(self) -> Sequence[PositiveEvent]:
        """Those of them that are in the log, oldest first."""
        return self._wanted_of(self.log)

    def _wanted_of(self, events: Sequence[PositiveEvent]) -> Sequence[PositiveEvent]:
        unwanted = self.unwanted
        return [event for event in events if event[0] not in unwanted] if unwanted else events

    @property
    def choice(self) -> int:
        """How many of the fused items the answer is chosen from."""
        return min(self.limit * _POOL_FACTOR, _MAX_POOL) if self.diversity > 0 else self.limit

    @property
    def pushes(self) -> bool:
        """Whether candidates like a disliked item lose score. A request with a text, or items, asks for what it says."""
        return bool(self.dislikes) and self.query is None and not self.items

    @property
    def wanted(self) -> int:
        """How many items each source is asked for."""
        if self.pushes:  # others come up for those that are pushed away
            return max(min(self.limit * _POOL_FACTOR, _MAX_POOL), self.pool)
        return max(self.choice, self.pool)


@dataclass(frozen=True)
class Resources:
    """What sources may be made of.

    Attributes:
        neighbours: the bundle's table, if it has one.
        popular: what is popular now, heaviest first.
        new_days: an item is new for so long.
        rising: what is popular of the new items, heaviest first.
    """

    index: Index
    neighbours: Neighbours | None = None
    popular: Callable[[], Sequence[PopularItem]] = tuple
    new_days: float = 30.0
    rising: Callable[[], Sequence[PopularItem]] = tuple


class Source(ABC):
    """One way to find candidates. Subclass one of the four shapes below.

    >>> class EditorsChoice(KeySource):
    ...     name, default_weight, rung = "editors-choice", 2.0, "no-choice"
    ...
    ...     def keys(self, ask):
    ...         return {17: 1.0, 4: 0.5}
    >>> list(EditorsChoice().keys(Ask()))
    [17, 4]

    Attributes:
        name: as a request names it in ``sources``.
        default_weight: of its vote in a request that names no sources; 0: only requests that name it ask it.
        rung: of an answer that it was asked for and that it failed, or was late for.
        is_there: False where the bundle lacks what it needs. It then finds nothing, and a request that names it is told
            its rung.
    """

    name: ClassVar[str]
    default_weight: ClassVar[float] = 0.0
    rung: ClassVar[str]
    is_there: bool = True

    @classmethod
    def made_of(cls, given: Resources) -> Self:
        """The source over an index and a bundle. Override it where the constructor takes something."""
        return cls()

    def why(self, ask: Ask) -> Why | None:
        """Why it names nothing for this ask; None where it has no reason of its own. Asked of poor answers only."""
        return None

    def because(self, ask: Ask, keys: Sequence[int]) -> Mapping[int, Sequence[tuple[PositiveEvent, float]]]:
        """For items that it brought: the events behind each, largest share first, the shares summing to 1.

        Items that it leaves out are explained by the events whose items lie nearest to them.
        """
        return {}


class KeySource(Source):
    """Names items by their keys. Pure."""

    # Without a filter, this many times the wanted number of the items that it names are looked up; None: all of them.
    looked_up: ClassVar[int | None] = None

    @abstractmethod
    def keys(self, ask: Ask) -> Mapping[int, float]:
        """Item keys with how much they count, best first. They need not be there, match or be allowed."""


class VectorSource(Source):
    """Names points of the vector space, whose nearest items by dot product are its candidates. Pure."""

    rung = "popular"

    @abstractmethod
    def vectors(self, ask: Ask, vote: float) -> Iterable[tuple[F32, float]]:
        """Vectors (D,), each with its part of the source's ``vote``."""


class SearchSource(Source):
    """Asks the index by itself, once for a whole batch."""

    @abstractmethod
    def applies(self, ask: Ask) -> bool:
        """Whether it could find anything; if not it is not asked."""

    @abstractmethod
    async def rankings(self, asks: Sequence[Ask]) -> Sequence[Sequence[Named]]:
        """For each ask at most ``ask.wanted`` items, best first, that match its filter and are not excluded.

        It is cancelled at the deadline.

        Raises:
            IndexUnavailable: its answers take a step down.
        """


class Filled(NamedTuple):
    """What a filler found for an ask, best first; ``rung`` if the index could not say what of it matches."""

    items: Sequence[Named]
    rung: str | None = None


class Filler(Source):
    """Stands in where the others left an answer short; a request may name it as well.

    It also stands in for sources whose rung is its name.
    """

    @abstractmethod
    async def fill(self, asks: Sequence[Ask], deadline: float) -> Sequence[Filled]:
        """For each ask at most ``ask.wanted`` items, by ``deadline`` on the loop's clock. Never raises IndexUnavailable."""
