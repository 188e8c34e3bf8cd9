"""An exported bundle as the teacher of a model in training: a slow encoder's answers for a quick one to learn."""

from dataclasses import dataclass

from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32, I64
from headwater_models.data.datasets import Dataset
from headwater_models.judging.evaluation import encoded
from headwater_models.training.sequences import Batch


@dataclass(frozen=True)
class BundleTeacher:
    encoder: Encoder
    vectors: F32  # (catalog, dim), of every item

    @staticmethod
    def of(encoder: Encoder, data: Dataset) -> "BundleTeacher":
        """Raises DatasetError where the bundle reads texts and the data has none."""
        return BundleTeacher(encoder, encoded(encoder, data).vectors)

    def scores(self, batch: Batch, gap_to_now_s: F32, items: I64) -> F32:
        """(windows, items): scores of catalog rows `items`, the best over the interests."""
        vectors = self.vectors[batch.items]
        interests, _ = self.encoder.answer(vectors, batch.actions, batch.gaps_s, batch.mask, gap_to_now_s)
        scores: F32 = (interests @ self.vectors[items].T).max(axis=1)
        return scores
