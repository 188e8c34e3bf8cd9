"""The items nearest to each of the user's interests. Pure."""

from collections.abc import Iterable

from headwater.recall.sources import F32, Ask, VectorSource, Why


class Interests(VectorSource):
    """The nearest items of each interest; the one that counts most has the source's whole vote.

    An interest is a list of its own to the fusion, as a source is. Were the vote shared, a user with two themes would hear
    more of the other sources than of either.
    """

    name = "interests"
    default_weight = 1.0

    def vectors(self, ask: Ask, vote: float) -> Iterable[tuple[F32, float]]:
        """Each interest (D,) with its vote."""
        most = float(ask.interest_weights.max(initial=0.0)) or 1.0
        return [
            (interest, vote * float(weight) / most)
            for interest, weight in zip(ask.interests, ask.interest_weights, strict=True)
            if weight > 0
        ]

    def why(self, ask: Ask) -> Why | None:
        """Without events there is no interest, nor where none of their items has a vector, or all are like disliked ones."""
        if (ask.interest_weights > 0).any():
            return None
        if len(ask.interests) and ask.dislikes:
            return "hidden"
        return "no_vectors" if ask.events else "no_events"
