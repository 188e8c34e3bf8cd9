"""A table of token vectors learns where a teacher puts whole texts."""

from typing import cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.training.distillation import SentenceTeacher, distil, generic_texts  # noqa: E402 - needs torch

VOCABULARY, TEXTS, TEACHER_DIM, DIM = 40, 400, 12, 6


def taught() -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Tokens with directions of their own, of which the teacher tells other ones when it sees them alone."""
    rng = np.random.default_rng(4)
    meaning = rng.normal(size=(VOCABULARY, TEACHER_DIM)).astype(np.float32)
    meaning[:, DIM:] *= 0.05  # what a reduction may lose
    ids = [rng.integers(1, VOCABULARY, rng.integers(2, 6)).tolist() for _ in range(TEXTS)]
    texts = np.stack([meaning[row].mean(0) for row in ids])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    alone = meaning + rng.normal(scale=0.5, size=meaning.shape).astype(np.float32)
    return alone, texts, ids


def test_training_brings_the_means_of_tokens_nearer_to_the_teachers_texts() -> None:
    tokens, texts, ids = taught()
    before = distil(tokens, texts, ids, DIM, epochs=0, seed=1)
    after = distil(tokens, texts, ids, DIM, epochs=40, seed=1)
    assert after.vectors.shape == (VOCABULARY, DIM)
    assert after.teacher_cosine > before.teacher_cosine + 0.05
    assert after.teacher_cosine > 0.85  # on texts that were held out


def test_the_same_seed_gives_the_same_table() -> None:
    tokens, texts, ids = taught()
    one, two = (distil(tokens, texts, ids, DIM, epochs=2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.vectors, two.vectors)


def test_frequent_tokens_start_light() -> None:
    tokens, texts, ids = taught()
    start = distil(np.ones_like(tokens) + np.eye(VOCABULARY, TEACHER_DIM), texts, ids, DIM, epochs=0, seed=0)
    assert np.linalg.norm(start.vectors[0]) == 0.0  # the vocabulary is in order of frequency


def test_generic_texts_are_whole_words_of_the_vocabulary_and_repeat_with_their_seed() -> None:
    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return dict.fromkeys(["garden", "coffee", "##ing", "the", "über", "table", "4711"], 0)

    class Teacher:
        tokenizer = Tokenizer()

    teacher = cast(SentenceTeacher, Teacher())
    texts = generic_texts(teacher, 20, seed=2)
    assert texts == generic_texts(teacher, 20, seed=2)
    assert {word for text in texts for word in text.split()} == {"garden", "coffee", "table"}
    assert {len(text.split()) for text in texts} <= {2, 3, 4}
