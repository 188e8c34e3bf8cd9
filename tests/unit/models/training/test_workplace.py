"""What a killed training has done is there when it goes on, and nothing of another training is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed (extra train)")

from headwater_models.arrays import F32
from headwater_models.progress import Report, silent
from headwater_models.training import workplace as module
from headwater_models.training.sequence_loop import FitError
from headwater_models.training.workplace import Workplace, workplace

OF = {"files": "a", "user encoder": "sasrec"}
TEXTS = ["tea", "coffee", "tea", "milk", "hose"]


class Killed(BaseException):
    """As by a signal."""


class Reading:
    """Stands in for a TextEncoder: the length of a text twice. It may die at a text."""

    def __init__(self, dies_at: str = "") -> None:
        self.read: list[str] = []
        self._dies_at = dies_at

    def vectors(self, texts: Sequence[str], _report: Report) -> F32:
        if self._dies_at in texts:
            raise Killed
        self.read += texts
        return np.array([[len(text)] * 2 for text in texts], dtype=np.float32)


def killed(out: Path, do: Callable[[Workplace], object] = lambda _: None) -> None:
    """A training that has made an epoch, does that, and is killed."""

    def trained() -> None:
        with workplace(out, OF, resume=False) as work:
            work.checkpoint("split").write_bytes(b"an epoch")
            do(work)
            raise Killed

    with pytest.raises(Killed):
        trained()


def test_texts_that_were_read_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 2)
    out, first, second = tmp_path / "bundle", Reading("milk"), Reading()
    killed(out, lambda work: work.vectors(first, TEXTS, silent))  # type: ignore[arg-type]
    with workplace(out, OF, resume=True) as work:
        assert work.checkpoint("split").read_bytes() == b"an epoch"
        found = work.vectors(second, TEXTS, silent)  # type: ignore[arg-type]
    assert (first.read, second.read) == (["tea", "coffee"], ["milk", "hose"])
    assert found[:, 0].tolist() == [3, 6, 3, 4, 4]
    assert not list(tmp_path.iterdir())


def test_without_resume_a_training_begins_anew(tmp_path: Path) -> None:
    killed(tmp_path / "bundle")
    with workplace(tmp_path / "bundle", OF, resume=False) as work:
        assert not work.checkpoint("split").exists()


def test_another_training_is_refused_by_what_differs(tmp_path: Path) -> None:
    killed(tmp_path / "bundle")
    other = {**OF, "files": "b", "text encoder": "static"}
    with (
        pytest.raises(FitError, match=r"another training \(files, text encoder differ\): resume it with"),
        workplace(tmp_path / "bundle", other, resume=True),
    ):
        pass
    assert (tmp_path / "bundle.training" / "split.checkpoint").exists()


def test_what_fails_before_its_first_epoch_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FitError), workplace(tmp_path / "bundle", OF, resume=True):
        raise FitError("nothing to learn")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_no_part_of_the_next(tmp_path: Path) -> None:
    def half(work: Workplace) -> None:
        for folder in (work.scratch("judged"), work.folder / "tmp8x2k"):
            folder.mkdir()
            (folder / "item.onnx").write_bytes(b"half")

    killed(tmp_path / "bundle", half)
    with workplace(tmp_path / "bundle", OF, resume=True) as work:
        assert not work.scratch("judged").exists()
        assert sorted(left.name for left in work.folder.iterdir()) == ["split.checkpoint", "training.json"]
