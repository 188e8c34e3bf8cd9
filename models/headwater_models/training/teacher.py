"""An exported bundle as the teacher of a model in training: a fast encoder learns the answers of a slow one."""

from dataclasses import dataclass

from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32, I64
from headwater_models.data.datasets import Dataset
from headwater_models.judging.evaluation import encoded
from headwater_models.training.sequences import Batch


@dataclass(frozen=True)
class BundleTeacher:
    """A bundle's encoder with the vectors of the whole catalog."""

    encoder: Encoder
    vectors: F32  # (catalog, dim), of every item

    @staticmethod
    def of(encoder: Encoder, data: Dataset) -> "BundleTeacher":
        """Encode the catalog. Raises DatasetError if the bundle reads texts and the data has none."""
        return BundleTeacher(encoder, encoded(encoder, data).vectors)

    def scores(self, batch: Batch, gap_to_now_s: F32, items: I64) -> F32:
        """Scores (windows, items) of the catalog rows `items` (items,), the best over the interests.

        `gap_to_now_s` (windows,): seconds from the last event to the question.
        """
        vectors = self.vectors[batch.items]
        interests, _ = self.encoder.answer(vectors, batch.actions, batch.gaps_s, batch.mask, gap_to_now_s)
        scores: F32 = (interests @ self.vectors[items].T).max(axis=1)
        return scores
