"""`headwater train deepfm|dlrm|nfm`: a bundle's candidates ordered again, in training, as a bundle and when judged."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
needs("onnxscript", extra="train")

from headwater.encoder.bundle import BundleError, Origin  # noqa: E402 - after the skip
from headwater.encoder.features import CANDIDATE_FEATURES  # noqa: E402 - after the skip
from headwater.encoder.runtime import Encoder, load, places_of  # noqa: E402 - after the skip
from headwater_models import commands  # noqa: E402 - needs torch
from headwater_models.bundles import neighbour_table, sequence_bundle, torch_export  # noqa: E402 - after the skip
from headwater_models.bundles.export import ExportError  # noqa: E402 - needs onnx
from headwater_models.bundles.light import lighten  # noqa: E402 - needs onnx
from headwater_models.bundles.neighbour_table import TableConfig  # noqa: E402 - needs scipy
from headwater_models.bundles.sequence_bundle import Named  # noqa: E402 - needs torch
from headwater_models.data.datasets import Dataset  # noqa: E402 - after the skip
from headwater_models.data.events import Log  # noqa: E402 - after the skip
from headwater_models.judging.candidates import Pooling, rescored  # noqa: E402 - after the skip
from headwater_models.judging.evaluation import encoded, ranking  # noqa: E402 - after the skip
from headwater_models.judging.protocols import split  # noqa: E402 - after the skip
from headwater_models.judging.served import ANY_SOURCE, served  # noqa: E402 - after the skip
from headwater_models.judging.trending import Trending  # noqa: E402 - after the skip
from headwater_models.networks import ARCHITECTURES, SCORERS  # noqa: E402 - needs torch
from headwater_models.train_scorer import known_before, prepare  # noqa: E402 - needs torch
from headwater_models.training.recipes import ScorerFit  # noqa: E402 - needs torch
from headwater_models.training.sequence_loop import FitError, IdModel  # noqa: E402 - needs torch

torch.set_num_threads(1)
ITEMS = 60


def habits(users: int = 120, length: int = 14) -> Dataset:
    """Everyone has three items of their own and takes them in turn, and something else every fifth time."""
    rng = np.random.default_rng(0)
    own = np.stack([rng.permutation(ITEMS)[:3] for _ in range(users)])
    place = np.arange(length)
    items = own[:, (place - place // 5) % 3]
    items[:, 4::5] = rng.integers(0, ITEMS, (users, length // 5))
    items[::10, -1] = rng.integers(0, ITEMS, len(items[::10]))  # and some of them at the end
    log = Log(
        users=[f"user-{n}" for n in range(users)],
        starts=np.arange(users + 1) * length,
        items=items.ravel(),
        actions=np.ones(users * length, dtype=np.int64),
        at_ms=1_700_000_000_000 + (place * 3_600_000 + rng.integers(0, 3_000_000, (users, length))).ravel(),
    )
    return Dataset("habits", [f"item-{n}" for n in range(ITEMS)], None, log, "made up")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has learned nothing."""
    torch.manual_seed(0)
    config, network = ARCHITECTURES["gru4rec"]
    model = IdModel(ITEMS, network(config(dim=8, hidden=8)))
    out = tmp_path_factory.mktemp("base") / "bundle"
    origin = Origin("habits", None, "a test", 0, 0.0, {}, {})
    sequence_bundle.write(out, model, habits().item_ids, 20, Named("base", "", origin))
    return out


@pytest.fixture(scope="module", params=sorted(SCORERS))
def trained(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[commands.Results, Encoder]:
    out = tmp_path_factory.mktemp(request.param) / "bundle"
    results = commands.train_scorer(request.param, base, habits(), "global-time", out, epochs=5)
    return results, load(out)


def test_it_learns_what_comes_again(trained: tuple[commands.Results, Encoder]) -> None:
    results, bundle = trained
    plain, scored = (
        results.methods[name]["all"].ndcg.value for name in (bundle.name, f"{bundle.name}, scored again")
    )
    assert plain < 0.3
    assert scored > 0.6
    assert bundle.manifest.origin.figures.keys() == results.methods.keys()


def test_a_request_that_names_no_sources_is_answered_in_that_order(
    trained: tuple[commands.Results, Encoder],
) -> None:
    _, bundle = trained
    data = habits()
    asked, catalog = split(data, "global-time"), encoded(bundle, data)
    scorers = [
        served(bundle, catalog, 10, ANY_SOURCE, trending=Trending.of(asked, len(data.item_ids))),
        rescored(bundle, Pooling(bundle, catalog, asked, bundle.pool)),
        served(bundle, catalog, 10),
    ]
    own, expected, fused = (
        ranking(each, asked.log, asked.test, len(data.item_ids), 10)[1] for each in scorers
    )
    np.testing.assert_array_equal(own, expected)
    assert (own != fused).any()


def test_it_is_compared_by_what_it_orders_and_what_that_takes(
    trained: tuple[commands.Results, Encoder], base: Path
) -> None:
    results, bundle = trained
    found = commands.weigh([base, bundle.path], habits(), "global-time")
    plain, scored = found.values()
    assert (
        scored.ndcg.value
        == results.methods[f"{bundle.name}, scored again"]["all"].ndcg.value
        > plain.ndcg.value
    )
    assert plain.cost.score_us is None
    assert scored.cost.score_us is not None
    assert scored.cost.score_us[0] > 0


def test_all_but_the_score_graph_is_the_bundle_it_was_made_over(
    trained: tuple[commands.Results, Encoder], base: Path
) -> None:
    _, bundle = trained
    old, new = load(base), dict(bundle.manifest.files)
    assert new.pop("score.onnx").bytes > 0
    assert new == old.manifest.files
    assert (old.pool, bundle.pool) == (0, 200)
    with pytest.raises(BundleError, match="has no score graph"):
        old.score(*candidates(old.dim, 1))


def test_a_candidate_has_the_same_score_alone_and_among_others(
    trained: tuple[commands.Results, Encoder],
) -> None:
    _, bundle = trained
    given = candidates(bundle.dim, 50)
    together = bundle.score(*given)
    assert together.shape == (50,)
    assert ((together >= 0) & (together <= 1)).all()
    for place in range(50):
        alone = bundle.score(*(part[place : place + 1] for part in given))
        np.testing.assert_allclose(alone, together[place : place + 1], atol=1e-5)


def test_over_a_table_the_newest_events_are_asked_for_with_a_table_of_those_before(
    base: Path, tmp_path: Path
) -> None:
    data = habits()
    asked = split(data, "global-time")
    bundle = neighbour_table.make(
        base, data, asked, tmp_path / "bundle", "a test", TableConfig(pause_s=7_200)
    )
    config = ScorerFit(newest=0.5, pool=20, negatives=5)
    since_ms, table = known_before(bundle, data, asked.train, config)
    assert since_ms == pytest.approx(np.median(asked.train.at_ms))
    assert table is not None
    assert bundle.neighbours is not None
    assert 0 < len(table.items) < len(bundle.neighbours.items)
    assert table.pause_ms == 7_200_000
    material = prepare(bundle.path, data, asked, config, lambda *_: None)
    features = dict(zip(CANDIDATE_FEATURES, material.questions.features.permute(2, 0, 1), strict=True))
    assert (features["similar"] > 0).any()
    assert (
        features["events"].min() >= 0.2
    )  # half of the 14 events, less what is of the last tenth, of a log of 20
    assert known_before(load(base), data, asked.train, config) == (0, None)


@pytest.mark.parametrize("model", sorted(SCORERS))
def test_an_export_that_computes_something_else_is_not_shipped(
    model: str, trained: tuple[commands.Results, Encoder]
) -> None:
    _, bundle = trained
    config, network = SCORERS[model]
    with pytest.raises(AssertionError, match=r"differ by .* in the scores"):
        torch_export.check_scorer(bundle, network(config(), len(CANDIDATE_FEATURES), bundle.dim))


def test_what_was_scored_for_other_vectors_is_not_lightened(
    trained: tuple[commands.Results, Encoder], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="lighten the bundle that it was trained over"):
        lighten(trained[1].path, tmp_path / "light", int8=True, dim=None, prune=0.0, command="a test")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"features": [*CANDIDATE_FEATURES[1:], "colour"]},
            "scores candidates by .*colour, this version knows",
        ),
        ({"scores": [0.5] * 6}, "gives scores that differ by .* from its probe"),
        (None, "only one of a score graph and its settings"),
    ],
)
def test_a_scorer_of_another_version_or_another_graph_is_refused(
    trained: tuple[commands.Results, Encoder],
    tmp_path: Path,
    changes: dict[str, object] | None,
    sentence: str,
) -> None:
    _, bundle = trained
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    scoring = bundle.manifest.scoring
    assert scoring is not None
    scoring = msgspec.structs.replace(scoring, **changes) if changes else None
    changed = msgspec.structs.replace(bundle.manifest, scoring=scoring)
    (copy / "bundle.json").write_bytes(msgspec.json.encode(changed))
    with pytest.raises(BundleError, match=sentence):
        load(copy)


def test_a_scorer_of_an_earlier_version_is_told_the_features_that_it_was_trained_with(
    trained: tuple[commands.Results, Encoder],
) -> None:
    _, bundle = trained
    scoring = bundle.manifest.scoring
    assert scoring is not None
    for names in (CANDIDATE_FEATURES[:16], ("similar", "score")):
        earlier = msgspec.structs.replace(scoring, features=list(names))
        told = np.arange(len(CANDIDATE_FEATURES))[
            places_of(msgspec.structs.replace(bundle.manifest, scoring=earlier))
        ]
        assert [CANDIDATE_FEATURES[place] for place in told] == list(names)


def test_without_questions_that_a_pool_can_answer_nothing_is_trained(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FitError, match="nothing to learn a scorer from: 0 questions"):
        commands.train_scorer("nfm", base, habits(length=5), "leave-one-out", tmp_path / "bundle")


def candidates(dim: int, count: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    widths = (len(CANDIDATE_FEATURES), dim, dim)
    return tuple(rng.normal(size=(count, width)).astype(np.float32) for width in widths)
