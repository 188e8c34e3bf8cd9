"""A finished bundle is put in its place, and only there."""

import shutil
from pathlib import Path

import pytest

from tests.support.checkout import STARTER

pytest.importorskip("onnx", reason="onnx is not installed (extra train)")

from headwater_models.bundles.export import ExportError, make_place, move_bundle


def test_a_bundle_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("irreplaceable")
    with pytest.raises(ExportError, match="holds no bundle"):
        move_bundle(STARTER, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter").exists()
    old = Path(shutil.copytree(STARTER, tmp_path / "old"))
    (old / "left-over.onnx").write_bytes(b"")
    move_bundle(STARTER, old)
    assert {file.name for file in old.iterdir()} == {file.name for file in STARTER.iterdir()}


def test_an_export_that_fails_leaves_what_was_there_and_no_half_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Path(shutil.copytree(STARTER, tmp_path / "old"))
    before = {file.name: file.read_bytes() for file in old.iterdir()}
    copied, real = 0, shutil.copyfile

    def dying(source: Path, target: Path) -> None:
        nonlocal copied
        copied += 1
        if copied == 3:
            raise OSError(28, "No space left on device")
        real(source, target)

    make_place(tmp_path / "new")  # and then the work for it fails
    monkeypatch.setattr(shutil, "copyfile", dying)
    for place in (old, tmp_path / "new"):
        copied = 0
        with pytest.raises(OSError, match="No space left"):
            move_bundle(STARTER, place)
        assert {file.name: file.read_bytes() for file in old.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_place_that_is_a_file_or_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(ExportError, match="bundle is a file: name a new folder"):
        make_place(tmp_path / "bundle")
    with pytest.raises(ExportError, match="nothing can be written beside"):
        make_place(tmp_path / "bundle" / "inside")


def test_a_mount_point_is_filled_with_its_manifest_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Path(shutil.copytree(STARTER, tmp_path / "old"))
    (old / "left-over.onnx").write_bytes(b"")
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name == "old":
            raise OSError(16, "Device or resource busy")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    move_bundle(STARTER, old)
    assert {file.name for file in old.iterdir()} == {file.name for file in STARTER.iterdir()}
    newest = max(old.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert newest.name == "bundle.json"
