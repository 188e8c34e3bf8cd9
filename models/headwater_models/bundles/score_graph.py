"""A bundle and a trained candidate scorer as one bundle: the vectors, and so the indexes over them, stay valid."""

import tempfile
from pathlib import Path

from headwater.encoder.bundle import Origin
from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32
from headwater_models.bundles import export, torch_export
from headwater_models.networks import CandidateScorer


def add(
    base: Encoder, scorer: CandidateScorer, probe: F32, pool: int, name: str, origin: Origin, out: Path
) -> Encoder:
    """Write the bundle `base` with a score graph to `out`, which may be its own folder.

    Args:
        probe: (candidates, F) features, of as many candidates as the bundle's probe has events.
        pool: how many candidates of each source a request has ordered.

    Raises AssertionError: ONNX Runtime and torch disagree. ExportError: the place holds something else.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch)
        export.copy_bundle(base, folder)
        torch_export.save_scorer(scorer, base.dim, folder / "score.onnx")
        made = export.with_scorer(folder, "score.onnx", probe, pool, name, origin)
        torch_export.check_scorer(made, scorer)
        return export.move_bundle(folder, out)
