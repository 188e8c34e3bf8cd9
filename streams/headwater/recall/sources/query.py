"""The items nearest to the request's text. Pure."""

from collections.abc import Iterable

from headwater.recall.sources import F32, Ask, VectorSource


class TextQuery(VectorSource):
    """The nearest items of the request's text, by the vectors of the item encoder."""

    name = "query"
    default_weight = 1.0

    def vectors(self, ask: Ask, vote: float) -> Iterable[tuple[F32, float]]:
        """The vector (D,) of the request's text with the whole vote; nothing without a text."""
        return () if ask.query is None else ((ask.query, vote),)
