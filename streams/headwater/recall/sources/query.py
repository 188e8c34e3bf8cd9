"""The items nearest to the request's text. Pure."""

from collections.abc import Iterable

from headwater.recall.sources import F32, Ask, VectorSource, Why


class TextQuery(VectorSource):
    """The nearest items of the request's text, by the vectors of the item encoder."""

    name = "query"
    default_weight = 1.0

    def vectors(self, ask: Ask, vote: float) -> Iterable[tuple[F32, float]]:
        """The vector (D,) of the request's text with the whole vote; nothing without a text."""
        return () if ask.query is None else ((ask.query, vote),)

    def why(self, ask: Ask) -> Why | None:
        """Without a text it finds nothing, nor with one that the bundle cannot encode."""
        if ask.query is not None:
            return None
        return "no_text" if ask.has_text else "no_query"
