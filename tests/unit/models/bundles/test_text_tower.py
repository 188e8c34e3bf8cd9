"""Item towers over text compute what their head says, and give a residual to the item it was trained for alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

needs("onnx", extra="train")

from headwater.encoder.bundle import Graphs, Origin  # noqa: E402 - after the skip
from headwater.encoder.runtime import Encoder  # noqa: E402 - after the skip
from headwater_models.bundles import mean  # noqa: E402 - needs onnx
from headwater_models.bundles.export import Parts, write_manifest  # noqa: E402 - needs onnx
from headwater_models.bundles.language_model import Configured  # noqa: E402 - needs onnx
from headwater_models.bundles.mean_config import MeanConfig  # noqa: E402 - needs onnx
from headwater_models.bundles.text_encoder import TextEncoder, UnfitModel  # noqa: E402 - needs onnx
from headwater_models.bundles.text_tower import (  # noqa: E402 - needs onnx
    MARKS,
    Head,
    export_item_tower,
    open_text_encoder,
    residual_keys,
    whitened,
)
from headwater_models.progress import silent  # noqa: E402 - after the skip
from tests.support.text_encoders import save  # noqa: E402 - needs onnx

TEXTS = ["coffee beans", "tea", "garden hose", "shoes", "coffee"]
READ = Configured(pooling="mean", prefix="passage: ", query_prefix="query: ", max_tokens=16)
RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return open_text_encoder(str(save(tmp_path_factory.mktemp("tiny"))), READ)


def served(encoder: TextEncoder, head: Head, folder: Path) -> Encoder:
    """A bundle of this tower and the decayed mean."""
    folder.mkdir()
    tower = export_item_tower(encoder, head, folder)
    mean.write_user_graphs(folder, tower.dim, MeanConfig())
    parts = Parts(
        name="tower",
        summary="",
        dim=tower.dim,
        state_size=tower.dim,
        normalised=tower.normalised,
        text=tower.text,
        rows=tower.rows,
        probe_item_ids=["item-0"],
        probe_texts=TEXTS[:1],
        graphs=Graphs(item=tower.graph, step="step.onnx", read="read.onnx"),
        tolerance=tower.tolerance,
        origin=Origin("", None, "", None, 0.0, {}, {}),
    )
    return write_manifest(folder, parts)


def head(residuals: int = 0, **changes: object) -> Head:
    ids = [f"item-{n}" for n in range(residuals)]
    of_items = {"keys": residual_keys(ids, TEXTS[:residuals]), "rows": normal(residuals, 3)}
    usual = {
        "mean": normal(6),
        "whitening": normal(6, 5),
        "layers": ((normal(5, 4), normal(4)), (normal(4, 3), normal(3))),
        **(of_items if residuals else {}),
    }
    return Head(**(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "chosen",
    [
        head(),
        head(unit_white=True, normalised=True),
        head(layers=()),
        head(layers=(), linear=normal(5, 3)),
        head(linear=normal(5, 3), unit_white=True),
        head(residuals=3, linear=normal(5, 3), normalised=True),
        head(residuals=3, unit_white=True, normalised=True, text_weight=0.6, lift=0.1),
    ],
    ids=["two layers", "unit lengths", "white", "linear", "both", "with residuals", "texts beside"],
)
def test_the_served_tower_computes_what_its_head_says(
    tiny: TextEncoder, chosen: Head, tmp_path: Path
) -> None:
    bundle = served(tiny, chosen, tmp_path / "bundle")
    wanted = chosen.vectors(tiny.vectors(TEXTS, silent))
    np.testing.assert_allclose(bundle.encode_items(TEXTS), wanted, atol=1e-4)
    if chosen.rows is None:
        return
    rows = np.array([0, 1, 2, -1, -1])
    wanted = chosen.vectors(tiny.vectors(TEXTS, silent), rows)
    np.testing.assert_allclose(bundle.encode_items(TEXTS, [f"item-{n}" for n in range(5)]), wanted, atol=2e-3)


def test_the_marks_of_new_and_known_items_are_the_last_numbers_of_a_vector(tiny: TextEncoder) -> None:
    chosen = head(residuals=3, unit_white=True, normalised=True, text_weight=0.6, lift=0.1)
    found = chosen.vectors(tiny.vectors(TEXTS[:2], silent), np.array([0, -1]))[:, -MARKS:]
    mark = (0.1 / 1.7) ** 0.5
    np.testing.assert_allclose(found, [[0, mark], [mark, 0]], atol=1e-5)


def test_a_residual_meets_neither_a_foreign_item_of_its_id_nor_its_own_item_under_another_text(
    tiny: TextEncoder, tmp_path: Path
) -> None:
    bundle = served(tiny, head(residuals=2), tmp_path / "bundle")
    own, foreign, stranger = (
        bundle.encode_items([text], [item_id])[0]
        for text, item_id in (
            ("coffee beans", "item-0"),
            ("garden hose", "item-0"),
            ("coffee beans", "other"),
        )
    )
    by_text, hose = bundle.encode_items(["coffee beans", "garden hose"])
    assert np.abs(own - by_text).max() > 0.01
    np.testing.assert_allclose(bundle.manifest.probe.vectors[0], own, rtol=1e-4)  # a load tries a residual
    np.testing.assert_array_equal(foreign, hose)
    np.testing.assert_array_equal(stranger, by_text)


def test_a_query_is_read_behind_its_own_prefix(tiny: TextEncoder, tmp_path: Path) -> None:
    chosen = head()
    bundle = served(tiny, chosen, tmp_path / "bundle")
    queries = bundle.encode_queries(["coffee"])
    assert np.abs(queries - bundle.encode_items(["coffee"])).max() > 0.01
    np.testing.assert_allclose(queries, chosen.vectors(tiny.queries(["coffee"], silent)), atol=1e-4)
    assert bundle.tokens(["coffee"], "query: ") != bundle.tokens(["coffee"], "passage: ")


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((0, 6)),
        normal(1, 6),
        np.repeat(normal(1, 6), 50, axis=0),
        normal(3, 6),
        normal(500, 6) @ normal(6, 2) @ normal(2, 6),
    ],
    ids=["none", "one", "equal", "fewer than directions", "rank two"],
)
def test_whitening_never_blows_up(vectors: np.ndarray) -> None:
    found = whitened(vectors.astype(np.float32))
    white = (vectors - found.mean) @ found.matrix
    assert np.isfinite(found.matrix).all()
    assert not len(white) or np.abs(white).max() < 10 * max(1.0, np.abs(vectors).max())
    assert found.note


def test_whitening_makes_directions_equal_and_keeps_those_asked_for() -> None:
    vectors = normal(4000, 6) * np.array([5, 4, 2, 1, 1, 1], dtype=np.float32)
    white = whitened(vectors, shrink=0.0)
    spread = np.cov((vectors - white.mean) @ white.matrix, rowvar=False)
    assert np.abs(spread - np.eye(6)).max() < 0.1
    two = whitened(vectors, dim=2, shrink=0.0)
    assert two.matrix.shape == (6, 2)
    # The first two numbers vary most, so these two directions are theirs.
    assert np.abs(two.matrix[2:]).max() < 0.2 * np.abs(two.matrix[:2]).max()


def test_a_head_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 1 of the head has shape \(9, 3\), expected \(4, 3\)"):
        head(layers=((normal(5, 4), normal(4)), (normal(9, 3), normal(3))))
    with pytest.raises(ValueError, match="one key"):
        head(keys=np.array([7, 7], dtype=np.uint64), rows=normal(2, 3))
    with pytest.raises(ValueError, match="stand beside what was learned only in a head with unit_white"):
        head(residuals=2, text_weight=0.5)
    with pytest.raises(ValueError, match="diverged"):
        head(mean=np.full(6, np.nan, dtype=np.float32))


def test_the_static_encoder_reads_as_the_shipped_starter_does(starter_texts: list[str]) -> None:
    found = open_text_encoder().vectors(starter_texts, silent)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    coffee, espresso, hose = unit
    assert coffee @ espresso > coffee @ hose + 0.1


def test_texts_of_an_alphabet_that_the_encoder_does_not_have_are_told(starter_texts: list[str]) -> None:
    texts = [*starter_texts, "شاي أخضر من المغرب"]
    assert open_text_encoder().unreadable(texts) == 0.25
    assert open_text_encoder().unreadable([]) == 0.0


@pytest.fixture
def starter_texts() -> list[str]:
    return ["Ground coffee, 12 oz", "Espresso beans, dark roast", "Garden hose"]


def test_a_sentence_encoder_is_distilled_into_the_vectors_of_its_tokens(tmp_path: Path) -> None:
    model = str(save(tmp_path / "tiny"))
    static = open_text_encoder(f"static:{model}", READ)
    assert static.name == "static-model"
    assert (static.text.prefix, static.text.special_tokens) == ("passage: ", False)
    coffee, both, tea, nothing = static.queries(["coffee", "coffee tea", "tea", ""], silent)
    # Each text is the mean of its tokens behind the query's own: 2 (q + c) + 2 (q + t) = 3 (q + c + t) + q.
    asked = static.queries([""], silent)[0]
    np.testing.assert_allclose(2 * coffee + 2 * tea, 3 * both + asked, atol=1e-3)
    np.testing.assert_array_equal(nothing, asked)
    with pytest.raises(UnfitModel, match="--int8 goes with a sentence encoder"):
        open_text_encoder("static", replace(READ, pooling=None, int8=True))
    with pytest.raises(UnfitModel, match="--pooling cls goes with a sentence encoder"):
        open_text_encoder("static", replace(READ, pooling="cls"))


def test_few_texts_of_many_variants_stay_near_what_is_about_the_same() -> None:
    kinds, products = normal(6, 128), normal(120, 128)
    kind = np.arange(60) % 6
    own, asked = (_unit(kinds[kind] + 0.6 * each) for each in (products[:60], products[60:]))
    variants = _unit(np.repeat(own, 5, axis=0) + 0.02 * normal(300, 128))
    white = whitened(variants)
    found, wanted = (_unit((each - white.mean) @ white.matrix) for each in (variants, asked))
    nearest = (-wanted @ found.T).argsort(axis=1)[:, :5]
    assert (np.repeat(kind, 5)[nearest] == kind[:, None]).mean() > 0.8


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
