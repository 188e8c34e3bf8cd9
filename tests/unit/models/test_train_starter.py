"""The shipped starter: text only, of no shop, small, and made of the vocabulary that its encoder reads."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from headwater.encoder import runtime as encoders
from tests.support.checkout import GROCERIES, STARTER

pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.train_starter import in_bytes, rarity, readable, whitened


def test_the_starter_knows_no_shop_and_the_groceries_are_a_bundle_of_their_own() -> None:
    starter, groceries = encoders.load(STARTER), encoders.load(GROCERIES)
    assert (starter.name, groceries.name) == ("starter", "groceries")
    assert starter.manifest.rows is None
    assert starter.neighbours is None
    number = groceries.manifest.probe.item_ids[0]  # the number of a product of the demo's shop
    wheel = starter.encode_items(["Racing wheel with pedals"] * 2, [number, "unknown"])
    np.testing.assert_array_equal(wheel[0], wheel[1])
    assert sum(file.stat().st_size for file in STARTER.iterdir()) <= 4 * 2**20


def test_the_vocabulary_is_what_the_encoder_reads() -> None:
    whole = Tokenizer.from_file(str(GROCERIES / "tokenizer.json"))
    made, places = readable(whole)
    assert made.get_vocab_size() == len(places)
    assert made.to_str() == json.dumps(json.loads(made.to_str()), ensure_ascii=False, separators=(",", ":"))
    old = whole.encode("Café au lait, 12 oz. Kaffeebohnen", add_special_tokens=False)
    new = made.encode("Café au lait, 12 oz. Kaffeebohnen")
    assert new.tokens == old.tokens
    assert places[new.ids].tolist() == old.ids
    assert set(made.encode("咖啡 กาแฟ кофе").tokens) == {"[UNK]"}
    assert [made.id_to_token(number) for number in (0, 1)] == ["[PAD]", "[UNK]"]


def test_directions_have_variance_one_and_tables_keep_their_products() -> None:
    rng = np.random.default_rng(0)
    white = whitened(
        rng.normal(size=(500, 12)).astype(np.float32) * np.arange(1, 13, dtype=np.float32), 4, 1e-6
    )
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(4), atol=0.02)
    weights = rarity(np.arange(1000, 1500), 1e-4)
    assert (np.diff(weights) >= 0).all()
    table, scales = in_bytes(white, weights)
    wanted = white * weights[:, None]
    assert np.abs(table * scales.astype(np.float32) - wanted).max() < 0.01 * np.abs(wanted).max()
