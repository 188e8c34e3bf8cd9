"""A student learns from a bundle what the events alone do not say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.extras import needs

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")
needs("onnxscript", extra="train")

from headwater.encoder.bundle import Origin  # noqa: E402 - after the skip
from headwater_models.bundles import sequence_bundle  # noqa: E402 - needs torch
from headwater_models.bundles.sequence_bundle import Named  # noqa: E402 - needs torch
from headwater_models.judging.protocols import split  # noqa: E402 - after the skip
from headwater_models.networks import ARCHITECTURES  # noqa: E402 - needs torch
from headwater_models.training.sequence_loop import FitConfig, FitError, IdModel, fit, validation_ndcg  # noqa: E402 - needs torch
from headwater_models.training.teacher import BundleTeacher  # noqa: E402 - after the skip
from tests.support import cycles  # noqa: E402 - after the skip

SPLIT = split(cycles.dataset(), "leave-one-out")
CONFIG = FitConfig(length=6, epochs=12, patience=12, positions=64, learning_rate=0.01, average=0.5)


def model(kind: str) -> IdModel:
    torch.manual_seed(0)
    config, network = ARCHITECTURES[kind]
    sizes = {"length": 6, "blocks": 1} if kind == "sasrec" else {"width": 16}
    return IdModel(cycles.ITEMS, network(config(dim=16, dropout=0.1, **sizes)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> BundleTeacher:
    """A windowed encoder that has learned the circle."""
    folder, trained = tmp_path_factory.mktemp("teacher"), model("sasrec")
    fit(trained, SPLIT, CONFIG, folder / "checkpoint", lambda *_: None)
    data = cycles.dataset()
    origin = Origin("cycles", None, "a test", 0, 0.0, {}, {})
    bundle = sequence_bundle.write(folder / "bundle", trained, data.item_ids, 6, Named("sasrec", "", origin))
    return BundleTeacher.of(bundle, data)


def test_a_recurrent_student_learns_from_a_windowed_teacher_alone(
    teacher: BundleTeacher, tmp_path: Path
) -> None:
    # A user's events in an order of chance: only the teacher knows what follows.
    rng = np.random.default_rng(0)
    mixed = replace(SPLIT.train, items=rng.permutation(SPLIT.train.items))
    config = replace(CONFIG, teaching=20.0)
    student, alone = model("lru"), model("lru")
    fit(student, replace(SPLIT, train=mixed), config, tmp_path / "student", lambda *_: None, teacher)
    fit(alone, replace(SPLIT, train=mixed), config, tmp_path / "alone", lambda *_: None)
    taught, untaught = (validation_ndcg(one, SPLIT.log, SPLIT.validation, 6) for one in (student, alone))
    assert taught > untaught + 0.3


def test_a_teacher_that_reads_less_than_its_student_is_refused(
    teacher: BundleTeacher, tmp_path: Path
) -> None:
    with pytest.raises(FitError, match="reads 6 events and the student 7"):
        fit(model("lru"), SPLIT, replace(CONFIG, length=7), tmp_path / "checkpoint", lambda *_: None, teacher)
