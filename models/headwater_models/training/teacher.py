"""An exported bundle as the teacher of a model in training: a slow encoder's answers for a quick one to learn."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headwater.encoder.runtime import Encoder
from headwater_models.data.datasets import Dataset
from headwater_models.judging.evaluation import encoded
from headwater_models.training.sequences import Batch

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Teacher:
    encoder: Encoder
    vectors: Floats  # (catalog, dim), of every item

    @staticmethod
    def of(encoder: Encoder, data: Dataset) -> "Teacher":
        """Raises DatasetError where the bundle reads texts and the data has none."""
        return Teacher(encoder, encoded(encoder, data).vectors)

    def scores(self, batch: Batch, gap_to_now_s: Floats, items: NDArray[np.int64]) -> Floats:
        """(windows, items): scores of catalog rows `items`, the best over the interests."""
        vectors = self.vectors[batch.items]
        interests, _ = self.encoder.answer(vectors, batch.actions, batch.gaps_s, batch.mask, gap_to_now_s)
        scores: Floats = (interests @ self.vectors[items].T).max(axis=1)
        return scores
