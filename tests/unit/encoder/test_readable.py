"""Texts that an encoder cannot read: they are counted, and are not all one vector."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer

from headwater.encoder import runtime as encoders
from headwater.encoder.readable import Reading, spelled
from headwater.encoder.runtime import Encoder
from tests.support.checkout import GROCERIES, STARTER

FOREIGN = [
    "咖啡豆 哥伦比亚",
    "跑步鞋 男款",
    "กาแฟอาราบิก้า",
    "รองเท้าวิ่ง",
    "Кофе молотый",
    "Кроссовки",
    "☕🙂",
    "👟👟",
]


@pytest.fixture(scope="module", params=[STARTER, GROCERIES], ids=["starter", "groceries"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return encoders.load(request.param)


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def test_texts_of_other_scripts_are_unreadable_and_not_all_alike(encoder: Encoder) -> None:
    read = encoder.read_items(FOREIGN)
    assert read.unreadable.tolist() == list(range(len(FOREIGN)))
    likeness = cosines(read.vectors)
    assert np.abs(likeness - np.eye(len(FOREIGN))).max() < 0.5
    np.testing.assert_array_equal(encoder.encode_items(FOREIGN), read.vectors)
    np.testing.assert_array_equal(encoder.encode_queries(FOREIGN), read.vectors)


def test_unreadable_texts_that_share_words_are_near_each_other(encoder: Encoder) -> None:
    likeness = cosines(encoder.encode_items(["咖啡豆 哥伦比亚", "咖啡豆 巴西", "跑步鞋 男款"]))
    assert likeness[0, 1] > likeness[0, 2] + 0.2


def test_a_known_brand_or_some_foreign_words_leave_a_text_readable(encoder: Encoder) -> None:
    texts = ["Ground coffee, 12 oz", "Nescafe กาแฟ instant coffee 200 g", "Kaffee, geröstet", "12345", ""]
    read = encoder.read_items(texts)
    assert not len(read.unreadable)
    assert read.unknown.tolist() == pytest.approx([0, 1 / 7, 0, 0, 0], abs=0.08)
    assert read.unknown[1] > 0


def test_an_item_that_the_bundle_knows_by_its_id_needs_no_text_that_it_reads() -> None:
    encoder = encoders.load(GROCERIES)
    known = encoder.manifest.probe.item_ids[0]
    read = encoder.read_items(["咖啡豆", "咖啡豆"], [known, "unknown"])
    assert read.unreadable.tolist() == [1]


def tokenizer(words: Sequence[str]) -> Tokenizer:
    """Words of one script, each a token, and its single letters."""
    tokens = ["[UNK]", *words, *sorted({letter for word in words for letter in word} - set(words))]
    return Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": {"type": "BertPreTokenizer"},
                "model": {
                    "type": "WordPiece",
                    "unk_token": "[UNK]",
                    "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100,
                    "vocab": {token: number for number, token in enumerate(tokens)},
                },
            }
        )
    )


def test_a_vocabulary_of_ideographs_reads_them() -> None:
    chinese = tokenizer([chr(number) for number in range(0x4E00, 0x4E00 + 3_000)])
    assert Reading(chinese).unknown_shares([[5, 6, 7], [5, 0], [0]]).tolist() == [0.0, 0.5, 1.0]


def test_single_letters_of_a_script_are_not_read_where_it_has_no_words() -> None:
    english = tokenizer(
        [f"{first}{second}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz"] + ["к", "о"]
    )
    cyrillic = [english.token_to_id(letter) for letter in "ко"]
    assert Reading(english).unknown_shares([cyrillic, [1, 2], [*cyrillic, 1, 2]]).tolist() == [1.0, 0.0, 0.5]


def test_a_prefix_says_nothing_of_a_text() -> None:
    reading = Reading(tokenizer(["passage", "coffee"]))
    assert reading.unknown_shares([[1, 0], [1, 2]], prefix=[1]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dim", [1, 64, 129, 384])
def test_a_spelling_is_one_direction_of_any_size(dim: int) -> None:
    assert np.linalg.norm(spelled("咖啡豆 500 g", dim)) == pytest.approx(1, abs=1e-5) or dim == 1
    np.testing.assert_array_equal(spelled("咖啡豆", dim), spelled("咖啡豆", dim))
    assert not spelled(" .", dim).any()
    assert np.isfinite(spelled("\ud800", dim)).all()
