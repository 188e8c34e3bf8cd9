"""A folder is a bundle only if its manifest, its files and its action codes say so."""

import shutil
from pathlib import Path

import pytest

from headwater.encoder import runtime as encoder
from headwater.encoder.bundle import BundleError, opset_of, readable_actions
from headwater.encoder.features import ACTION_CODES
from tests.support.bundles import rewritten
from tests.support.checkout import STARTER


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STARTER, tmp_path / "bundle"))


def test_a_missing_folder_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="headwater train"):
        encoder.load(tmp_path / "nowhere")


def test_a_damaged_file_is_refused_by_its_checksum(copy: Path) -> None:
    data = bytearray((copy / "step.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "step.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"step\.onnx .* has SHA-256 .* bundle\.json says"):
        encoder.load(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        encoder.load(copy)


def test_a_newer_format_is_refused_by_its_number(copy: Path) -> None:
    rewritten(copy, format=2)
    with pytest.raises(BundleError, match="has bundle format 2, this version reads 1"):
        encoder.load(copy)


@pytest.mark.parametrize("length", [0, 256])
def test_a_log_that_no_record_can_hold_is_refused(copy: Path, length: int) -> None:
    rewritten(copy, log_length=length)
    with pytest.raises(BundleError, match=r"`int` .*log_length"):
        encoder.load(copy)


@pytest.mark.parametrize(
    "actions",
    [
        {"click": 3},  # another code for a name of ours
        {"click": 1, "share": 5},  # a code of ours for another name
        {"click": 1, "share": 11, "print": 11},
    ],
)
def test_action_codes_that_contradict_ours_are_refused(copy: Path, actions: dict[str, int]) -> None:
    rewritten(copy, actions=actions)
    with pytest.raises(BundleError, match=r"action codes .*, expected the same code for each name"):
        encoder.load(copy)


def test_a_bundle_that_knows_no_click_is_refused(copy: Path) -> None:
    rewritten(copy, actions={"view": 2})
    with pytest.raises(BundleError, match="expected click among them"):
        encoder.load(copy)


@pytest.mark.parametrize("code", [0, 16])
def test_an_action_code_that_no_record_can_hold_is_refused(copy: Path, code: int) -> None:
    rewritten(copy, actions={"click": 1, "share": code})
    with pytest.raises(BundleError, match=r"`int` .*actions"):
        encoder.load(copy)


def test_files_outside_the_folder_are_refused(copy: Path) -> None:
    manifest = encoder.load(copy).manifest
    rewritten(copy, files={**manifest.files, "../secret": manifest.files["step.onnx"]})
    with pytest.raises(BundleError, match="without a path"):
        encoder.load(copy)


@pytest.mark.parametrize("broken", [b"", b"[]", b"{", b'{"format": 1}', b"\xff"])
def test_a_manifest_that_is_none_is_refused(copy: Path, broken: bytes) -> None:
    (copy / "bundle.json").write_bytes(broken)
    with pytest.raises(BundleError, match="not a manifest"):
        encoder.load(copy)


def test_a_file_that_is_no_onnx_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a model at all")
    with pytest.raises(BundleError, match=r"x\.onnx is not an ONNX model|imports no operator set"):
        opset_of(tmp_path / "x.onnx")


def test_a_bundle_that_knows_all_actions_needs_no_translation() -> None:
    assert readable_actions(ACTION_CODES) is None
    assert readable_actions({**ACTION_CODES, "share": 11}) is None


def test_unknown_actions_are_read_as_a_click_and_padding_stays_padding() -> None:
    codes = readable_actions({"click": 1, "purchase": 5, "share": 11})
    assert codes is not None
    assert codes[[0, 1, 5, 11]].tolist() == [0, 1, 5, 11]
    assert set(codes.tolist()) == {0, 1, 5, 11}
