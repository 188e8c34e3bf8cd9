"""Training learns what there is to learn, stops when it should, and survives a kill."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.judging.protocols import select, split  # noqa: E402 - after the skip
from headwater_models.networks import ARCHITECTURES  # noqa: E402 - needs torch
from headwater_models.training import sequence_loop  # noqa: E402 - needs torch
from headwater_models.training.sequence_loop import FitConfig, FitError, IdModel, fit, masked  # noqa: E402 - needs torch
from headwater_models.training.sequences import Augmentation, epoch  # noqa: E402 - after the skip
from tests.support import cycles  # noqa: E402 - after the skip

torch.set_num_threads(1)  # threads of tiny products wait for each other, and on busy cores for long

SPLIT = split(cycles.dataset(), "leave-one-out")
CONFIG = FitConfig(
    length=6, epochs=4, positions=64, learning_rate=0.01, average=0.5, augmentation=Augmentation(drop=0.1)
)


class Killed(Exception):
    pass


def model() -> IdModel:
    torch.manual_seed(0)
    config, network = ARCHITECTURES["lru"]
    return IdModel(cycles.ITEMS, network(config(dim=8, width=8, dropout=0.1)))


def quietly(what: str, done: int, of: int) -> None:
    pass


def test_a_training_that_was_killed_goes_on_to_the_same_result(tmp_path: Path) -> None:
    whole, halved = model(), model()
    wanted = fit(whole, SPLIT, CONFIG, tmp_path / "whole", quietly)

    def killing(what: str, done: int, of: int) -> None:
        if "epoch 3" in what and done > 0.6 * of:  # in the midst of it
            raise Killed

    with pytest.raises(Killed):
        fit(halved, SPLIT, CONFIG, tmp_path / "halved", killing)
    resumed = model()
    found = fit(resumed, SPLIT, CONFIG, tmp_path / "halved", quietly)
    assert found == wanted
    assert found.epoch == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_progress_is_that_of_all_epochs(tmp_path: Path) -> None:
    told = []

    def kept(what: str, done: int, of: int) -> None:
        if what.startswith("training,"):
            told.append((done, of))

    fit(model(), SPLIT, replace(CONFIG, epochs=2, augmentation=Augmentation()), tmp_path / "checkpoint", kept)
    read, totals = zip(*told, strict=True)
    assert read == tuple(sorted(set(read)))
    assert set(totals) == {read[-1]}


def test_a_training_that_is_over_can_be_made_longer(tmp_path: Path) -> None:
    whole, longer = model(), model()
    wanted = fit(whole, SPLIT, replace(CONFIG, epochs=2), tmp_path / "whole", quietly)
    fit(longer, SPLIT, replace(CONFIG, epochs=1), tmp_path / "longer", quietly)
    assert fit(longer, SPLIT, replace(CONFIG, epochs=2), tmp_path / "longer", quietly) == wanted
    assert torch.equal(whole.table.weight, longer.table.weight)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    fit(model(), SPLIT, replace(CONFIG, epochs=1), tmp_path / "checkpoint", quietly)
    with pytest.raises(FitError, match="remove it"):
        fit(model(), SPLIT, replace(CONFIG, seed=1), tmp_path / "checkpoint", quietly)


def test_training_stops_without_progress_and_keeps_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qualities = iter([0.1, 0.3, 0.2, 0.3])
    kept = []

    def judged(model: IdModel, *_: object) -> float:
        kept.append(model.table.weight.clone())
        return next(qualities)

    monkeypatch.setattr(sequence_loop, "validation_ndcg", judged)
    trained = model()
    progress = fit(trained, SPLIT, replace(CONFIG, epochs=9, patience=2), tmp_path / "checkpoint", quietly)
    assert (progress.epoch, progress.best_epoch, progress.best) == (4, 2, 0.3)
    assert torch.equal(trained.table.weight, kept[1])


@pytest.mark.parametrize("loss", ["softmax", "sampled", "gbce", "bpr"])
def test_every_loss_learns_the_circle(tmp_path: Path, loss: str) -> None:
    config = replace(CONFIG, epochs=12, patience=12, loss=loss, negatives=16, augmentation=Augmentation())
    progress = fit(model(), SPLIT, config, tmp_path / "checkpoint", quietly)
    assert progress.best > 0.5  # the most popular items first: about a third


def test_an_item_without_an_event_is_like_the_average_one(tmp_path: Path) -> None:
    trained = model()
    never = IdModel(cycles.ITEMS + 2, trained.encoder)
    fit(never, SPLIT, replace(CONFIG, epochs=1), tmp_path / "checkpoint", quietly)
    rows = never.table.weight.detach()
    assert torch.equal(rows[-1], rows[-2])
    torch.testing.assert_close(rows[-1], rows[: cycles.ITEMS].mean(0))


def test_an_epoch_reports_the_mean_loss_over_its_targets(tmp_path: Path) -> None:
    progress = fit(model(), SPLIT, replace(CONFIG, epochs=1), tmp_path / "checkpoint", quietly)
    assert progress.curve[0][0] == pytest.approx(np.log(cycles.ITEMS), rel=0.2)  # nothing is known yet


def test_masking_takes_items_away_and_nothing_else() -> None:
    torch.manual_seed(0)
    trained = model()
    events = trained.events(next(epoch(SPLIT.train, 6, 64, Augmentation(), (0, 1))))
    hidden = masked(events, 0.3)
    gone = (hidden.items == 0).all(-1)
    assert 0.2 < float(gone.float().mean()) < 0.4
    assert torch.equal(hidden.items[~gone], events.items[~gone])
    assert all(torch.equal(one, other) for one, other in zip(hidden[1:], events[1:], strict=True))


def test_a_contrast_brings_two_readings_of_a_history_closer(tmp_path: Path) -> None:
    def likeness(contrast: float) -> float:
        trained = model()
        config = replace(CONFIG, epochs=6, mask=0.3, contrast=contrast)
        fit(trained, SPLIT, config, tmp_path / f"checkpoint-{contrast}", quietly)
        torch.manual_seed(0)
        batch = next(epoch(SPLIT.train, 6, 64, Augmentation(), (0, 1)))
        with torch.no_grad():
            readings = [
                trained.encoder.answer(masked(trained.events(batch), 0.3), torch.zeros(len(batch.items)))[
                    :, 0
                ]
                for _ in range(2)
            ]
        return float(torch.cosine_similarity(*readings).mean())

    assert likeness(1.0) > likeness(0.0) + 0.05


def test_windowed_encoders_contrast_histories_longer_than_they_read(tmp_path: Path) -> None:
    config, network = ARCHITECTURES["sasrec"]
    trained = IdModel(cycles.ITEMS, network(config(dim=8, length=4, dropout=0.1)))
    shorter = replace(CONFIG, length=4, epochs=1, contrast=0.1)
    assert max(np.diff(SPLIT.train.starts)) > 4
    assert fit(trained, SPLIT, shorter, tmp_path / "checkpoint", quietly).epoch == 1


def test_the_start_from_who_took_what_is_ahead_of_a_start_from_chance(tmp_path: Path) -> None:
    first = {
        start: fit(model(), SPLIT, replace(CONFIG, epochs=1, start=start), tmp_path / start, quietly).best
        for start in ("chance", "svd")
    }
    assert first["svd"] > first["chance"]


def test_nested_training_makes_the_first_dimensions_do_alone(tmp_path: Path) -> None:
    def of_the_first(nested: tuple[int, ...]) -> float:
        trained = model()
        config = replace(CONFIG, epochs=15, patience=15, nested=nested)
        fit(trained, SPLIT, config, tmp_path / f"checkpoint-{len(nested)}", quietly)
        with torch.no_grad():
            trained.table.weight[:, 4:] = 0
        return sequence_loop.validation_ndcg(trained, SPLIT.log, SPLIT.validation, 6)

    assert of_the_first((4,)) > of_the_first(()) + 0.1


@pytest.mark.parametrize("width", [0, 8])
def test_a_nested_width_that_is_none_is_an_error(tmp_path: Path, width: int) -> None:
    with pytest.raises(FitError, match=f"nested is {width}: expected 1 to 7"):
        fit(model(), SPLIT, replace(CONFIG, nested=(width,)), tmp_path / "checkpoint", quietly)


def test_scores_at_a_temperature_are_cosines_over_it() -> None:
    torch.manual_seed(0)
    config, network = ARCHITECTURES["lru"]
    trained = IdModel(cycles.ITEMS, network(config(dim=8, width=8)), temperature=0.1).eval()
    batch = next(epoch(SPLIT.train, 6, 64, Augmentation(), (0, 1)))
    with torch.no_grad():
        answers = trained.encoder.answer(trained.events(batch), torch.zeros(len(batch.items)))
        torch.testing.assert_close(answers.norm(dim=-1), torch.full_like(answers[..., 0], 10.0))
        torch.testing.assert_close(trained.vectors().norm(dim=-1), torch.ones(cycles.ITEMS))


def test_no_validation_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    nobody = replace(SPLIT, validation=select(SPLIT.validation, np.zeros(0, dtype=np.int64)))
    with pytest.raises(FitError, match="at least ten users"):
        fit(model(), nobody, CONFIG, tmp_path / "checkpoint", quietly)
