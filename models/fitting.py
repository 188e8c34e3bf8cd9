"""The training loop of user encoders over a table of items: batches, loss, validation, early stopping, checkpoints.

Every epoch draws its randomness from (seed, epoch) alone, and a checkpoint is written at the end of each: training that was
killed goes on from there to the same result.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models import losses
from models.architectures import Events, UserEncoder
from models.denormals import flushed_denormals
from models.evaluation import ranking
from models.events import Log
from models.metrics import by_case
from models.protocols import Cases, Floats, Scorer, Split, select
from models.sequences import Augmentation, Batch, batch_of, epoch
from streams.features import clamp_gap_s

Report = Callable[[str, int, int], None]
TEMPERATURE = 0.2  # of the contrast between two readings of a history


class FitError(Exception):
    """Training cannot begin; the message says why and what to do."""


@dataclass(frozen=True)
class FitConfig:
    length: int = 50  # L: events of a window
    epochs: int = 30
    patience: int = 3  # epochs without a better validation
    positions: int = 1024  # events of a batch
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    loss: Literal["softmax", "sampled", "gbce", "bpr"] = "softmax"
    negatives: int = 2000  # of all losses but softmax, drawn anew for each batch
    average: float = (
        0.0  # how much of the running mean of the weights a step keeps; 0: the weights as they are
    )
    augmentation: Augmentation = field(default_factory=Augmentation)
    mask: float = 0.0  # share of the read events whose item is hidden; each is asked for all the same
    contrast: float = (
        0.0  # weight of the contrast: a history read twice, each time with its own dropout and mask
    )
    judged: int = 10_000  # validation cases after an epoch, always the same ones
    seed: int = 0


class Model(nn.Module):
    """A vector for each item, and the encoder that reads and answers in them."""

    def __init__(self, items: int, encoder: UserEncoder) -> None:
        super().__init__()
        self.table = nn.Embedding(items, encoder.dim)
        # Small: what few events teach of an item must outweigh what chance put there.
        nn.init.normal_(self.table.weight, std=0.02)
        self.encoder = encoder

    def events(self, batch: Batch) -> Events:
        items = self.table(torch.from_numpy(batch.items))
        return Events(items, *(torch.from_numpy(part) for part in (batch.actions, batch.gaps_s, batch.mask)))


@dataclass
class Progress:
    """What is known after an epoch, and all that is needed to go on."""

    epoch: int = 0
    best_epoch: int = 0
    best: float = -1.0
    curve: list[tuple[float, float]] = field(
        default_factory=list
    )  # (training loss, validation NDCG@10) of each epoch


@flushed_denormals()
def fit(model: Model, split: Split, config: FitConfig, checkpoint: Path, report: Report) -> Progress:
    """Train in place, up to the epoch with the best validation. Goes on from `checkpoint` if that file exists."""
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    best: dict[str, Any] = {}
    progress = Progress()
    settled = _settled(model, split, config)
    if checkpoint.exists():
        found = torch.load(checkpoint, weights_only=True)
        if found["settled"] != settled:
            differ = [name for name, value in settled.items() if found["settled"].get(name) != value]
            raise FitError(
                f"{checkpoint} is of another training, {', '.join(differ)} differ: remove it, or use its settings"
            )
        model.load_state_dict(found["model"])
        mean.load_state_dict(found["mean"])
        optimizer.load_state_dict(found["optimizer"])
        best, progress = found["best"], Progress(**found["progress"])
    if np.diff(split.train.starts).max(initial=0) < 2:
        raise FitError("nothing to learn: expected users with two events or more to train on")
    if not len(split.validation):
        raise FitError(
            "nothing to validate on: training needs at least ten users with two events before the split"
        )
    chosen = np.random.default_rng(0).permutation(len(split.validation))[: config.judged]
    judged = select(split.validation, np.sort(chosen))
    counts = np.bincount(split.train.items, minlength=model.table.num_embeddings)
    # Popular items are drawn more often for the softmax, which corrects for it; the other losses want them uniform.
    chances = torch.from_numpy(np.sqrt(counts) if config.loss == "sampled" else np.ones(len(counts)))
    while progress.epoch < config.epochs and progress.epoch - progress.best_epoch < config.patience:
        progress.epoch += 1
        loss = _epoch(model, mean, optimizer, split.train, chances, config, progress.epoch, report)
        averaged = mean.module
        assert isinstance(averaged, Model)
        quality = validation_ndcg(averaged, split.log, judged, config.length)
        progress.curve.append((loss, quality))
        if quality > progress.best:
            progress.best, progress.best_epoch = quality, progress.epoch
            best = {name: value.clone() for name, value in averaged.state_dict().items()}
        said = f"best validation NDCG@10, {progress.best:.4f} after epoch {progress.best_epoch}"
        report(said, progress.epoch, config.epochs)
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "settled": settled,
                "model": model.state_dict(),
                "mean": mean.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best": best,
                "progress": asdict(progress),
            },
            partial,
        )
        partial.replace(checkpoint)
    model.load_state_dict(best)
    with (
        torch.no_grad()
    ):  # an item without an event is like the average one, not like what chance put in its row
        seen = torch.from_numpy(counts > 0)
        model.table.weight[~seen] = model.table.weight[seen].mean(0)
    model.eval()
    return progress


def _settled(model: Model, split: Split, config: FitConfig) -> dict[str, Any]:
    """What may not change on the way; how long to go on may."""
    log = split.train
    events = hashlib.sha256(log.starts.tobytes() + log.items.tobytes() + log.at_ms.tobytes()).hexdigest()
    fixed = {name: value for name, value in asdict(config).items() if name not in ("epochs", "patience")}
    return {**fixed, "events": events, "model": str(model)}


def _epoch(
    model: Model,
    mean: AveragedModel,
    optimizer: torch.optim.Optimizer,
    log: Log,
    chances: Tensor,
    config: FitConfig,
    number: int,
    report: Report,
) -> float:
    """One pass over the training log: the mean loss."""
    seed = (config.seed, number)
    torch.manual_seed(int(np.random.default_rng((*seed, 1)).integers(2**62)))
    model.train()
    total, done, expected = 0.0, 0, len(log.items) - int((np.diff(log.starts) > 0).sum())
    for batch in epoch(log, config.length, config.positions, config.augmentation, seed):
        users, targets = _pairs(model, batch, config.mask)
        loss = _loss(model, users, targets, chances, config)
        if config.contrast:
            loss = loss + config.contrast * _contrast(model, batch, config.mask)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        mean.update_parameters(model)
        total += float(loss.detach()) * len(targets)
        done += len(targets)
        report(f"training, epoch {number}, loss {total / done:.3f}", done, expected)
    return total / done


def _pairs(model: Model, batch: Batch, mask: float) -> tuple[Tensor, Tensor]:
    """User vectors (N, dim) and the items (N,) that they should find."""
    vectors, places = model.encoder.predictions(masked(model.events(batch), mask))
    targets = torch.from_numpy(batch.items)[places]
    # Of several interests, the one that the item is of: the others stay free for other items.
    best = (vectors.detach() @ model.table(targets).detach()[:, :, None]).argmax(1)  # (N, 1)
    return vectors.take_along_dim(best[:, :, None], dim=1)[:, 0], targets


def _contrast(model: Model, batch: Batch, mask: float) -> Tensor:
    """DuoRec (Qiu et al., WSDM 2022, arXiv:2110.05730): two readings of a history are closer than those of two users."""
    now = torch.zeros(len(batch.items))
    one, other = (model.encoder.answer(masked(model.events(batch), mask), now).flatten(1) for _ in range(2))
    return losses.info_nce(one, other, TEMPERATURE)


def masked(events: Events, share: float) -> Events:
    """A random share of the events without their items: vectors of zeros."""
    if not share:
        return events
    return events._replace(items=events.items * (torch.rand(events.mask.shape) >= share)[..., None])


def _loss(model: Model, users: Tensor, targets: Tensor, chances: Tensor, config: FitConfig) -> Tensor:
    """`chances`: how often each item is drawn as a wrong answer, up to a factor."""
    table = model.table.weight
    if config.loss == "softmax":
        return losses.full_softmax(users, table, targets)
    drawn = torch.multinomial(chances, config.negatives, replacement=True)
    right = (users * table[targets]).sum(-1)
    sampled = users @ table[drawn].T
    hits = drawn == targets[:, None]
    if config.loss == "sampled":
        log_counts = torch.log(config.negatives * chances[drawn] / chances.sum()).float()
        return losses.sampled_softmax(right, sampled, log_counts, hits)
    sampled = sampled.masked_fill(hits, -torch.inf)
    return losses.bpr(right, sampled) if config.loss == "bpr" else losses.gbce(right, sampled, len(table))


def validation_ndcg(model: Model, log: Log, cases: Cases, length: int) -> float:
    """NDCG@10 by full ranking."""
    model.eval()
    ranks, _ = ranking(scorer_of(model, length), log, cases, model.table.num_embeddings, 10)
    return float(by_case(ranks, cases.target_starts, 10)["NDCG"].mean())


def scorer_of(model: Model, length: int) -> Scorer:
    """A model in training, read as its bundle will be: from the newest `length` events at the moment asked."""

    def scores(log: Log, cases: Cases, part: slice) -> Floats:
        ends, users = cases.ends[part], cases.users[part]
        starts = np.maximum(log.starts[users], ends - length)
        histories = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        gaps = clamp_gap_s((cases.now_ms[part] - log.at_ms[ends - 1]) / 1000)
        with torch.inference_mode():
            interests = model.encoder.answer(model.events(batch_of(log, histories)), torch.from_numpy(gaps))
            return (interests @ model.table.weight.T).amax(1).numpy()

    return scores
