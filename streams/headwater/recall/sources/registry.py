"""The sources there are. Among equals the items of the first one come first."""

from collections.abc import Mapping, Sequence
from typing import Final

from headwater.recall.sources import Resources, Source
from headwater.recall.sources.buy_again import BuyAgain
from headwater.recall.sources.interests import Interests
from headwater.recall.sources.named_items import NamedItems
from headwater.recall.sources.new_items import NewItems
from headwater.recall.sources.popular import Popular
from headwater.recall.sources.query import TextQuery
from headwater.recall.sources.similar import Similar

REGISTRY: Final[tuple[type[Source], ...]] = (
    BuyAgain,
    Similar,
    Interests,
    TextQuery,
    NamedItems,
    NewItems,
    Popular,
)
# The sources of a request that names none.
DEFAULT_WEIGHTS: Final[Mapping[str, float]] = {
    source.name: source.default_weight for source in REGISTRY if source.default_weight > 0
}


def sources_of(given: Resources, registry: Sequence[type[Source]] = REGISTRY) -> list[Source]:
    """The registered sources over an index and a bundle, in the order of the registry."""
    return [source.made_of(given) for source in registry]
