"""The graphs of a bundle as sessions of ONNX Runtime: on which device, of which opset, with which shapes."""

from pathlib import Path
from typing import Literal

import onnxruntime as ort

from headwater.encoder.bundle import OPSETS, BundleError, Manifest, opset_of, refuse_external_data

Device = Literal["cpu", "cuda", "auto"]


def opened(path: Path, file: str, threads: int, device: Device, manifest: Manifest) -> ort.InferenceSession:
    """A graph of the bundle in the folder ``path``.

    Raises:
        BundleError: its opset is another one, or ONNX Runtime cannot load it on this device.
    """
    refuse_external_data(path / file)
    opset = opset_of(path / file)
    # The manifest's is the item graph's: a ready text encoder may be newer than the user encoder beside it.
    said = manifest.opset if file == manifest.graphs.item else opset
    if opset != said or opset not in OPSETS:
        raise BundleError(
            f"{path / file} has opset {opset}, its manifest says {said} and this version runs "
            f"{OPSETS.start} to {OPSETS.stop - 1}: export it again"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads of a session must not spin: the worker's event loop shares these cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers():
        ort.preload_dlls()  # CUDA and cuDNN come as wheels, where the loader does not look by itself
        # The probe compares with full precision.
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    try:
        session = ort.InferenceSession(str(path / file), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no common class below Exception
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {path / file}: {error}") from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise BundleError(
            f"device cuda was asked for, {file} runs on {', '.join(session.get_providers())}: install onnxruntime-gpu and a "
            "CUDA it supports, or use device cpu"
        )
    return session


def check_shapes(manifest: Manifest, item: ort.InferenceSession, *users: ort.InferenceSession | None) -> None:
    """Raises BundleError for graphs whose fixed sizes are not those of the manifest."""
    dim, state, interests = manifest.dim, manifest.state_size, manifest.interests
    sizes = {
        "vectors": (None, dim),
        "items": (None, None, dim),
        "state": (None, state),
        "new_state": (None, state),
        "interests": (None, interests, dim),
        "weights": (None, interests),
        "features": (None, len(manifest.scoring.features) if manifest.scoring else None),
        "nearest": (None, dim),
        "candidates": (None, dim),
    }
    for session in (item, *users):
        for port in [*session.get_inputs(), *session.get_outputs()] if session else []:
            wanted = sizes.get(port.name)
            if wanted is None:
                continue
            given = tuple(size if isinstance(size, int) else None for size in port.shape)
            if len(given) != len(wanted) or any(
                a and b and a != b for a, b in zip(given, wanted, strict=True)
            ):
                raise BundleError(
                    f"{port.name} of bundle {manifest.name} has shape {list(port.shape)}, its manifest says {list(wanted)} "
                    f"(dim {dim}, state_size {state}, interests {interests}): export it again"
                )
