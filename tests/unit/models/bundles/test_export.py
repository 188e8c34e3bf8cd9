"""A finished bundle is put in its place, and only there."""

import shutil
from pathlib import Path

import pytest

from tests.support.checkout import STARTER

pytest.importorskip("onnx", reason="onnx is not installed (extra train)")

from headwater_models.bundles.export import ExportError, move_bundle


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
