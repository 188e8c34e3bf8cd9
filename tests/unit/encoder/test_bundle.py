"""A folder is a bundle only if its manifest, its files and its action codes say so."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.encoder import runtime as encoder
from headwater.encoder.bundle import BundleError, opset_of, readable_actions, refuse_external_data
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


@pytest.mark.parametrize("name", ["a\0b", "", "..", "/etc/passwd", "a\nb"])
def test_names_that_are_no_files_are_refused(copy: Path, name: str) -> None:
    manifest = encoder.load(copy).manifest
    rewritten(copy, files={**manifest.files, name: manifest.files["step.onnx"]})
    with pytest.raises(BundleError):
        encoder.load(copy)


def _outside(tensor: onnx.TensorProto, location: str) -> None:
    """Have a tensor say that its data lie in another file."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def _in_an_initializer(model: onnx.ModelProto, location: str) -> None:
    _outside(model.graph.initializer[0], location)


def _in_a_branch(model: onnx.ModelProto, location: str) -> None:
    """In a constant of a graph within a node of a function."""
    constant = onnx.helper.make_tensor("weight", onnx.TensorProto.FLOAT, [1], [0.0])
    _outside(constant, location)
    node = onnx.helper.make_node("Constant", [], ["weight"], value=constant)
    branch = onnx.helper.make_graph([node], "branch", [], [])
    chosen = onnx.helper.make_node("If", ["which"], ["weight"], then_branch=branch, else_branch=branch)
    model.functions.append(
        onnx.helper.make_function("ours", "chosen", ["which"], ["weight"], [chosen], model.opset_import)
    )


def _without_saying_where(model: onnx.ModelProto, location: str) -> None:
    del location
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


@pytest.mark.parametrize("put", [_in_an_initializer, _in_a_branch, _without_saying_where])
@pytest.mark.parametrize("location", ["weights.bin", "../../etc/passwd"])
def test_tensors_in_other_files_are_refused_wherever_they_stand(
    copy: Path, put: Callable[[onnx.ModelProto, str], None], location: str
) -> None:
    """The side file may be listed with a checksum: what is loaded is still wherever the graph says."""
    model = onnx.load(copy / "step.onnx")
    put(model, location)
    (copy / "weights.bin").write_bytes(b"\0" * 64)
    raw = model.SerializeToString()
    (copy / "step.onnx").write_bytes(raw)
    files = encoder.load(STARTER).manifest.files
    changed = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    rewritten(copy, files={**msgspec.to_builtins(files), "step.onnx": changed})
    with pytest.raises(BundleError, match=r"step\.onnx keeps tensors in another file"):
        encoder.load(copy)


@given(st.binary(max_size=200), st.integers(0, 200))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_make_the_search_for_other_files_fail_otherwise(
    tmp_path: Path, noise: bytes, place: int
) -> None:
    raw = bytearray((STARTER / "read.onnx").read_bytes()[:2_000])
    raw[place : place + len(noise)] = noise
    (tmp_path / "x.onnx").write_bytes(raw)
    with contextlib.suppress(BundleError):
        refuse_external_data(tmp_path / "x.onnx")


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
