"""A trained model as a bundle: its items as the item graph, its encoder as step and read, or as window."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from headwater.encoder.bundle import ItemRows, Origin
from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder
from headwater_models.bundles import export, text_tower, torch_export
from headwater_models.bundles.text_encoder import TextEncoder
from headwater_models.networks import RecurrentEncoder, UserEncoder, WindowedEncoder
from headwater_models.networks.text_beside import Beside
from headwater_models.networks.text_head import of_layers
from headwater_models.training.sequence_loop import Model, TextModel


@dataclass(frozen=True)
class Named:
    """How a bundle is called, and where it is from."""

    name: str
    summary: str
    origin: Origin


def write(
    out: Path,
    model: Model,
    item_ids: list[str],
    length: int,
    named: Named,
    encoder: UserEncoder | None = None,
) -> Encoder:
    """Export a model of item ids, check that ONNX Runtime agrees with torch, and put the bundle in its place.

    `encoder` is served, by default the model's own. Raises AssertionError: they disagree. ExportError: the place holds
    something else.
    """
    keys = np.array([item_key(item_id) for item_id in item_ids], dtype="<u8")
    order = np.argsort(keys)
    vectors = model.vectors().detach()
    # Row 0, for unknown items, is the mean vector: a vector of zeros would rank above half of the catalog.
    average = vectors.mean(0, keepdim=True)
    if model.cosine:
        average = F.normalize(average, dim=-1)
    rows = torch.cat([average, vectors[torch.from_numpy(order)]])

    def items(folder: Path) -> dict[str, Any]:
        keys[order].tofile(folder / "items.u64")
        torch_export.save_table(rows, folder / "item.onnx")
        return {
            "item_inputs": "item_id",
            "normalised": model.cosine,
            "rows": ItemRows("items.u64", len(item_ids)),
            "probe_item_ids": item_ids[:6],
        }

    return _written(out, encoder or model.encoder, length, named, items)


def write_text(
    out: Path,
    model: TextModel,
    texts: TextEncoder,
    whitened: text_tower.Whitened,
    items: Sequence[tuple[str, str]],
    length: int,
    named: Named,
    encoder: UserEncoder | None = None,
    beside: Beside | None = None,
    known: Sequence[int] = (),
) -> Encoder:
    """`write` for a model over texts; `items`: (id, text) of the model's items, in its order.

    Residuals are bound to id and text, so that another shop's item never meets them. With `beside`, texts stand beside what
    was learned, as `encoder` reads them, and `known` are the items with a training event: those without a residual get an
    empty one, which tells them from new items.
    """
    layers, linear, rows = of_layers(model.head)
    has_row = model.head.own.tolist()
    if beside:
        bare = sorted(set(known) - set(has_row))
        has_row, rows = (
            [*has_row, *bare],
            np.concatenate([rows, np.zeros((len(bare), model.encoder.dim), rows.dtype)]),
        )
    own = [items[item] for item in has_row]
    head = text_tower.Head(
        whitened.mean,
        whitened.matrix,
        layers,
        linear,
        unit_white=True,
        keys=text_tower.residual_keys([item_id for item_id, _ in own], [text for _, text in own]),
        rows=rows if len(own) else None,
        normalised=model.cosine,
        text_weight=beside.weight if beside else 0.0,
        lift=beside.lift if beside else 0.0,
    )

    def tower(folder: Path) -> dict[str, Any]:
        made = text_tower.export_item_tower(texts, head, folder)
        return {
            "text": made.text,
            "rows": made.rows,
            "marks": text_tower.MARKS if head.has_beside else 0,
            "normalised": made.normalised,
            "tolerance": made.tolerance,
            "probe_item_ids": [item_id for item_id, _ in items[:2]],
        }

    return _written(out, encoder or model.encoder, length, named, tower)


def _written(
    out: Path,
    encoder: UserEncoder,
    length: int,
    named: Named,
    save_items: Callable[[Path], dict[str, Any]],
) -> Encoder:
    """The bundle of the item graph that `save_items` writes, whose part of the manifest it returns, and an encoder's graphs."""
    encoder.eval()
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch)
        items = save_items(folder)
        if isinstance(encoder, RecurrentEncoder):
            graphs, state_size = torch_export.save_recurrent(encoder, folder), encoder.state_size
        else:
            assert isinstance(encoder, WindowedEncoder)
            graphs, state_size = torch_export.save_windowed(encoder, folder, length), 0
        bundle = export.write_manifest(
            folder,
            export.Parts(
                name=named.name,
                summary=named.summary,
                dim=encoder.dim,
                state_size=state_size,
                interests=encoder.interests,
                log_length=length,
                kind=encoder.kind,
                graphs=graphs,
                origin=named.origin,
                **items,
            ),
        )
        if isinstance(encoder, RecurrentEncoder):
            torch_export.check_recurrent(bundle, encoder)
        else:
            torch_export.check_windowed(bundle, encoder)
        return export.move_bundle(folder, out)
