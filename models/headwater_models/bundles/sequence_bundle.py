"""A trained model as a bundle: its table as the item graph, its encoder as step and read, or as window."""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from headwater.encoder.bundle import ItemRows, Origin
from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder
from headwater_models.bundles import export, torch_export
from headwater_models.networks import RecurrentEncoder, WindowedEncoder
from headwater_models.training.sequence_loop import Model


def write(
    out: Path, model: Model, item_ids: list[str], length: int, name: str, summary: str, origin: Origin
) -> Encoder:
    """Export the model, check that ONNX Runtime agrees with torch, and put the bundle in its place.

    Raises AssertionError: they disagree. ExportError: the place holds something else.
    """
    keys = np.array([item_key(item_id) for item_id in item_ids], dtype="<u8")
    order = np.argsort(keys)
    vectors = model.vectors().detach()
    # Row 0, for unknown items, is the mean vector: a vector of zeros would rank above half of the catalog.
    average = vectors.mean(0, keepdim=True)
    if model.cosine:
        average = F.normalize(average, dim=-1)
    rows = torch.cat([average, vectors[torch.from_numpy(order)]])
    encoder = model.encoder.eval()
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch)
        keys[order].tofile(folder / "items.u64")
        torch_export.save_table(rows, folder / "item.onnx")
        if isinstance(encoder, RecurrentEncoder):
            graphs, state_size = torch_export.save_recurrent(encoder, folder), encoder.state_size
        else:
            assert isinstance(encoder, WindowedEncoder)
            graphs, state_size = torch_export.save_windowed(encoder, folder, length), 0
        bundle = export.write_manifest(
            folder,
            export.Parts(
                name=name,
                summary=summary,
                dim=encoder.dim,
                state_size=state_size,
                interests=encoder.interests,
                log_length=length,
                kind=encoder.kind,
                item_inputs="item_id",
                normalised=model.cosine,
                rows=ItemRows("items.u64", len(item_ids)),
                graphs=graphs,
                probe_item_ids=item_ids[:6],
                origin=origin,
            ),
        )
        if isinstance(encoder, RecurrentEncoder):
            torch_export.check_recurrent(bundle, encoder)
        else:
            torch_export.check_windowed(bundle, encoder)
        return export.move_bundle(folder, out)
