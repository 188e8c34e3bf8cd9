"""A sentence encoder tuned to a shop: texts of items that the same users take together move closer.

Contrastive, as SimCSE (Gao et al., EMNLP 2021, arXiv:2104.08821): each text of a pair is to find the other among the
batch. Items with events are paired with what the same user took next to them, items without events with themselves,
which dropout reads differently each time. Or whole histories at once, by the loss of ELSA (`elsa.py`). By default only
small updates of the attention weights are learned (LoRA).
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.errors import HeadwaterError
from headwater_models.arrays import I64
from headwater_models.bundles.language_model import model_folder
from headwater_models.bundles.sentence_config import Configured, Reading, reading_of
from headwater_models.bundles.text_encoder import Pooling
from headwater_models.data.datasets import Dataset
from headwater_models.data.events import Log, of_items
from headwater_models.progress import Report
from headwater_models.training import elsa, losses
from headwater_models.training.denormals import flushed_denormals


class TuneError(HeadwaterError):
    """Nothing can be tuned; the message says why and what to do."""


@dataclass(frozen=True)
class TuneConfig:
    """How a sentence encoder is tuned."""

    steps: int = 200
    loss: Literal["contrastive", "elsa"] = "contrastive"
    batch: int = 48  # pairs; with elsa, texts of one backward pass
    users: int = 256  # of a step of elsa
    texts: int = 192  # of a step of elsa, half of them at random
    rank: int = 8  # of the LoRA updates; 0: all weights are learned
    learning_rate: float = 5e-4  # a tenth of it if all weights are learned
    temperature: float = 0.05
    reach: int = 5  # events apart, at most, to count as together
    silent: float = 0.1  # share of the pairs for items without events
    max_tokens: int = 64  # at most; the model may want less
    pooling: Pooling | None = None  # None: as the model's own files say
    seed: int = 0


class LoRA(nn.Module):
    """A frozen linear layer plus a product of two thin matrices (Hu et al., 2021, arXiv:2106.09685)."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float = 2.0) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(rank))
        self.up = nn.Parameter(
            torch.zeros(linear.out_features, rank)
        )  # zero, so that it begins as the layer itself

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        out: Tensor = self.linear(x) + self.scale * (x @ self.down.T @ self.up.T)
        return out

    def merged(self) -> nn.Linear:
        """One layer that computes the same."""
        with torch.no_grad():
            self.linear.weight += self.scale * self.up @ self.down
        return self.linear


# Names of query and value layers in BERT, RoBERTa, E5; DistilBERT; MPNet; LLaMA.
_ADAPTED = ("query", "value", "q_lin", "v_lin", "attn.q", "attn.v", "q_proj", "v_proj")


def adapt(model: nn.Module, rank: int) -> list[nn.Parameter]:
    """Freeze the model, put LoRA around the attention's queries and values, and return the parameters left to learn.

    Raises TuneError: the model has no such layers.
    """
    model.requires_grad_(False)
    found = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.endswith(_ADAPTED)
    }
    if not found:
        raise TuneError(f"no layer is called {', '.join(_ADAPTED)}: tune all weights with --rank 0")
    for name, linear in found.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LoRA(linear, rank))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def merge(model: nn.Module) -> None:
    """Replace every LoRA by the one layer that computes the same."""
    for name, part in list(model.named_modules()):
        if isinstance(part, LoRA):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, part.merged())


def pairs(log: Log, of_item: I64, config: TuneConfig) -> Iterator[I64]:
    """Endless batches (2 to `batch`, 2) of texts to bring together, no text twice in a column.

    `of_item` (items,): the text of each item. Items are drawn by the square root of their frequency.
    """
    rng = np.random.default_rng(config.seed)
    counts = np.bincount(log.items, minlength=len(of_item))
    owners = log.owners
    chances = np.cumsum(counts[log.items] ** -0.5)
    silent = np.setdiff1d(of_item, of_item[counts > 0])
    few = round(config.silent * config.batch) if len(silent) else 0
    while True:
        rows = np.searchsorted(chances, rng.random(4 * config.batch) * chances[-1])
        others = rows + rng.integers(1, config.reach + 1, len(rows)) * rng.choice((-1, 1), len(rows))
        others = others.clip(0, len(owners) - 1)
        together = of_item[log.items[np.stack([rows, others], axis=1)]]
        together = together[(owners[rows] == owners[others]) & (together[:, 0] != together[:, 1])]
        alone = rng.choice(silent, (few, 1)).repeat(2, axis=1) if few else np.empty((0, 2), dtype=np.int64)
        batch = np.concatenate([alone, together])
        for column in (0, 1):
            batch = batch[np.sort(np.unique(batch[:, column], return_index=True)[1])]
        if len(batch) > 1:
            yield batch[: config.batch]


@flushed_denormals()
def tune(model: str, data: Dataset, train: Log, out: Path, config: TuneConfig, report: Report) -> list[float]:
    """Tune, save model and tokenizer as a Hugging Face folder, and return the loss of each step.

    What the model's files say of pooling, prefixes and lengths goes with it.

    Raises TuneError: a negative rank, data without texts, no user with two items of different texts, a model that does not
    say how it pools, or an `out` that holds something else.
    """
    from transformers import AutoModel, AutoTokenizer  # takes seconds to import

    if config.rank < 0:
        raise TuneError(f"--rank is {config.rank}: expected 0 (all weights) or more")
    if out.exists() and any(out.iterdir()) and not (out / "config.json").exists():
        raise TuneError(f"{out} is not empty and holds no model: name a new folder, or the model to replace")
    if data.texts is None:
        raise TuneError(f"{data.name} has no texts of items: expected a column title in the file of events")
    texts = sorted(set(data.texts))
    place = {text: n for n, text in enumerate(texts)}
    of_item = np.array([place[text] for text in data.texts])
    train = of_items(train, len(of_item))
    taken = of_item[train.items]
    if not ((taken[1:] != taken[:-1]) & (train.owners[1:] == train.owners[:-1])).any():
        raise TuneError(
            "expected a user with two items of different texts: there is nothing to bring together"
        )
    torch.manual_seed(config.seed)
    folder = model_folder(model)
    reading = reading_of(folder).overruled(Configured(pooling=config.pooling))
    if reading.pooling is None:
        raise TuneError(
            f"{folder} has no modules.json and no 1_Pooling/config.json, so nothing says how token vectors become one: name "
            "it, --pooling mean|cls|lasttoken|... (the model's card says which)"
        )
    longest = min(config.max_tokens, reading.max_tokens or config.max_tokens)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokenizer.padding_side = "right"  # as it is served
    network = AutoModel.from_pretrained(str(folder), local_files_only=True).train()
    learned = adapt(network, config.rank) if config.rank else list(network.parameters())
    rate = config.learning_rate if config.rank else config.learning_rate / 10
    optimizer = torch.optim.AdamW(learned, rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, config.steps, pct_start=0.11
    )  # with .1, ten steps divide by zero
    reader = _Reader(network, tokenizer, longest, reading)
    steps = _elsa_losses if config.loss == "elsa" else _contrastive_losses
    found = []
    for step, loss in zip(range(config.steps), steps(reader, texts, train, of_item, config), strict=False):
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append(loss)
        report(f"tuning, loss {np.mean(found[-20:]):.3f}", step + 1, config.steps)
    merge(network)
    network.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    _copy_reading(folder, out, reading.pooling)
    return found


@dataclass(frozen=True)
class _Reader:
    """Texts -> vectors of length one (texts, dim), read as `language_model` exports them."""

    network: nn.Module
    tokenizer: Any
    max_tokens: int
    reading: Reading

    def __call__(self, texts: Sequence[str]) -> Tensor:
        reading = self.reading
        assert reading.pooling is not None
        read = [(reading.prefix or "") + text for text in texts]
        read = [text.lower() for text in read] if reading.lower_case else read
        given = self.tokenizer(
            read, truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt"
        )
        hidden = self.network(**given).last_hidden_state
        vectors = pooled(hidden, given["attention_mask"].float(), reading.pooling)
        for dense in reading.dense:
            vectors = vectors @ torch.from_numpy(dense.weight)
            vectors = vectors if dense.bias is None else vectors + torch.from_numpy(dense.bias)
            vectors = torch.tanh(vectors) if dense.tanh else vectors
        return F.normalize(vectors, dim=-1)


def _contrastive_losses(
    reader: _Reader, texts: list[str], log: Log, of_item: I64, config: TuneConfig
) -> Iterator[float]:
    """The loss of each step, whose gradient is in the weights."""
    for batch in pairs(log, of_item, config):
        one, other = (reader([texts[n] for n in column]) for column in batch.T)
        loss = losses.info_nce(one, other, config.temperature)
        loss.backward()
        yield float(loss.detach())


def _elsa_losses(
    reader: _Reader, texts: list[str], log: Log, of_item: I64, config: TuneConfig
) -> Iterator[float]:
    """The same, of whole histories. Without dropout: each text is read twice, and must be read the same."""
    reader.network.eval()
    for batch in elsa.batches(log, of_item, config.users, config.texts, config.seed):
        yield elsa.step(reader, [texts[n] for n in batch.texts], batch.taken, config.batch)


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector per text (texts, dim) from those of its tokens (texts, tokens, dim); mask (texts, tokens), padding last."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "lasttoken":
        last = mask.sum(1).long() - 1
        return hidden[torch.arange(len(hidden)), last]
    if pooling == "max":
        return (hidden + (1 - mask)[..., None] * -1e9).amax(1)
    weight = mask.cumsum(1) * mask if pooling == "weightedmean" else mask
    summed, count = (hidden * weight[..., None]).sum(1), weight.sum(1, keepdim=True)
    return summed / (count.sqrt() if pooling == "mean_sqrt_len_tokens" else count)


def _copy_reading(source: Path, out: Path, pooling: Pooling) -> None:
    """Copy what the source says of its reading, and the pooling where an option said it."""
    for pattern in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        for file in source.glob(pattern):
            shutil.copyfile(file, out / file.name)
    for part in source.glob("[0-9]_*"):
        if part.is_dir() and source != out:
            shutil.copytree(part, out / part.name, dirs_exist_ok=True)
    (out / "1_Pooling").mkdir(exist_ok=True)
    (out / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
