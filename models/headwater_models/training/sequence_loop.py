"""The training loop of encoders over items, by id or by text: batches, loss, validation, early stopping, checkpoints.

Each epoch draws its randomness from (seed, epoch) alone and ends with a checkpoint, so a training that was killed
continues to the same weights.
"""

import hashlib
from abc import abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headwater.encoder.features import clamp_gap_s
from headwater.errors import HeadwaterError
from headwater_models.arrays import F32, I64
from headwater_models.data.events import Log
from headwater_models.judging.evaluation import READ, ranking
from headwater_models.judging.item_models import spectral
from headwater_models.judging.metrics import by_case
from headwater_models.judging.protocols import Cases, Scorer, Split, some_of
from headwater_models.networks import Events, UserEncoder
from headwater_models.networks.text_head import TextHead
from headwater_models.networks.user_encoder import Inputs
from headwater_models.progress import Report
from headwater_models.training import losses
from headwater_models.training.denormals import flushed_denormals
from headwater_models.training.sequences import Augmentation, Batch, batch_of, epoch
from headwater_models.training.teacher import BundleTeacher
from headwater_models.whole_file import written_whole

TEMPERATURE = 0.2  # of the contrast between two views of a history


class FitError(HeadwaterError):
    """Training cannot begin; the message says why and what to do."""


@dataclass(frozen=True)
class FitConfig:
    """How an encoder is trained."""

    length: int = 50  # L: events of a window
    epochs: int = 30
    patience: int = 3  # epochs without a better validation
    positions: int = 1024  # events of a batch
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    loss: Literal["softmax", "sampled", "gbce", "bpr"] = "softmax"
    negatives: int = 2000  # for all losses but softmax, drawn anew for each batch
    average: float = 0.0  # decay of the running mean of the weights; 0: the weights themselves
    augmentation: Augmentation = field(default_factory=Augmentation)
    mask: float = 0.0  # share of events whose item is hidden from the encoder; they stay targets
    contrast: float = 0.0  # weight of the contrast between two views of a history (dropout and mask differ)
    start: Literal["chance", "svd"] = (
        "chance"  # item vectors: small random ones, or singular vectors of users x items
    )
    nested: tuple[
        int, ...
    ] = ()  # numbers of first dimensions that must serve alone too; each batch draws one
    teaching: float = 1.0  # weight of the teacher's loss, if there is a teacher
    judged: int = (
        10_000  # validation cases after each epoch, always the same; 0: none, and the last epoch is kept
    )
    seed: int = 0


class Model(nn.Module):
    """A vector per item, and the encoder that reads and answers in the same space. `IdModel` and `TextModel` say how."""

    def __init__(self, items: int, encoder: UserEncoder, temperature: float) -> None:
        super().__init__()
        encoder.temperature = temperature
        self.items = items
        self.cosine = temperature > 0  # then item vectors have length one
        self.encoder = encoder

    @abstractmethod
    def of_items(self, rows: Tensor | None) -> Tensor:
        """Vectors (..., dim) of rows (...) of the catalog, (items, dim) of all without any; not yet of length one."""

    @abstractmethod
    def start_from(self, vectors: F32) -> None:
        """Begin near these item vectors (items, dim)."""

    @abstractmethod
    def settle(self, counts: I64) -> None:
        """After training, give items without any of the events (items,) the vector that they are served with."""

    def vectors(self, rows: Tensor | None = None, width: int | None = None) -> Tensor:
        """Item vectors (rows, dim) as they are read and scored; of the whole catalog if `rows` is None.

        With `width`, dimensions from `width` on are zero.
        """
        found = narrowed(self.of_items(rows), width)
        return F.normalize(found, dim=-1) if self.cosine else found

    def events(self, batch: Batch, width: int | None = None) -> Events:
        """A batch (windows, T) with its items as vectors (windows, T, dim)."""
        items = self.vectors(torch.from_numpy(batch.items), width)
        return Events(items, *(torch.from_numpy(part) for part in (batch.actions, batch.gaps_s, batch.mask)))


class IdModel(Model):
    """Items by id: a table of vectors."""

    def __init__(self, items: int, encoder: UserEncoder, temperature: float = 0.0) -> None:
        super().__init__(items, encoder, temperature)
        self.table = nn.Embedding(items, encoder.dim)
        # Small, so that a few events outweigh the random start.
        nn.init.normal_(self.table.weight, std=0.02)

    def of_items(self, rows: Tensor | None) -> Tensor:
        """Rows of the table: (...) -> (..., dim), (items, dim) of all without any."""
        found: Tensor = self.table.weight if rows is None else self.table(rows)
        return found

    def start_from(self, vectors: F32) -> None:
        """Added to the table's own start, which keeps equal vectors apart: (items, dim)."""
        with torch.no_grad():
            self.table.weight += torch.from_numpy(vectors)

    def settle(self, counts: I64) -> None:
        """An item without events (items,) gets the mean of those with events, not its random start."""
        with torch.no_grad():
            seen = torch.from_numpy(counts > 0)
            self.table.weight[~seen] = self.table.weight[seen].mean(0)


class TextModel(Model):
    """Items by text: see `networks.text_head`."""

    def __init__(self, head: TextHead, encoder: UserEncoder, temperature: float = 0.0) -> None:
        super().__init__(len(head.white), encoder, temperature)
        self.head = head

    def of_items(self, rows: Tensor | None) -> Tensor:
        """What the head makes of the texts, with the residuals: (...) -> (..., dim), (items, dim) of all without any."""
        found: Tensor = self.head(rows)
        return found

    def start_from(self, vectors: F32) -> None:
        """As far as the texts can say them, (items, dim); residuals take the rest."""
        self.head.start_from(vectors)

    def settle(self, counts: I64) -> None:
        """Nothing to do: an item without events (items,) has the vector of its text."""


def measure_worth(encoder: UserEncoder, log: Log) -> None:
    """Let what actions are worth be relative to the one that a log has most of."""
    for part in encoder.modules():
        if isinstance(part, Inputs) and len(log.actions):
            part.usual.fill_(int(np.bincount(log.actions).argmax()))


@dataclass
class Progress:
    """What is known after an epoch, and what a checkpoint needs to continue."""

    epoch: int = 0
    best_epoch: int = 0
    best: float = -1.0
    curve: list[tuple[float, float]] = field(
        default_factory=list
    )  # (training loss, validation NDCG@10) of each epoch


@flushed_denormals()
def fit(
    model: Model,
    split: Split,
    config: FitConfig,
    checkpoint: Path,
    report: Report,
    teacher: BundleTeacher | None = None,
) -> Progress:
    """Train the model in place up to the epoch with the best validation. Continues from `checkpoint` if that file exists.

    Raises FitError: nothing to learn or to validate on, settings that do not fit the model or the teacher, or a checkpoint
    of another training.
    """
    _check(model, config, teacher)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    best: dict[str, Any] = {}
    progress = Progress()
    if config.start == "svd" and not checkpoint.exists():
        model.start_from(spectral(split.train, model.items, model.encoder.dim))
    settled = _settled(model, split, config, teacher)
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
    if config.judged and not len(split.validation):
        raise FitError(
            "nothing to validate on: training needs at least ten users with two events before the split"
        )
    judged = some_of(split.validation, config.judged)
    counts = np.bincount(split.train.items, minlength=model.items)
    # The sampled softmax draws popular items more often and corrects for it; the other losses need uniform draws.
    chances = torch.from_numpy(np.sqrt(counts) if config.loss == "sampled" else np.ones(len(counts)))
    while progress.epoch < config.epochs and progress.epoch - progress.best_epoch < config.patience:
        progress.epoch += 1
        loss = _epoch(model, mean, optimizer, split.train, chances, config, progress.epoch, report, teacher)
        averaged = mean.module
        assert isinstance(averaged, Model)
        quality = validation_ndcg(averaged, split.log, judged, config.length) if config.judged else 0.0
        progress.curve.append((loss, quality))
        if quality > progress.best or not config.judged:
            progress.best, progress.best_epoch = quality, progress.epoch
            best = {name: value.clone() for name, value in averaged.state_dict().items()}
        said = f"best validation NDCG@10, {progress.best:.4f} after epoch {progress.best_epoch}"
        if not config.judged:
            said = "epochs over all events"
        report(said, progress.epoch, config.epochs)
        saved = {
            "settled": settled,
            "model": model.state_dict(),
            "mean": mean.state_dict(),
            "optimizer": optimizer.state_dict(),
            "best": best,
            "progress": asdict(progress),
        }
        with written_whole(checkpoint) as partial:
            torch.save(saved, partial)
    model.load_state_dict(best)
    model.settle(counts)
    model.eval()
    return progress


def _settled(model: Model, split: Split, config: FitConfig, teacher: BundleTeacher | None) -> dict[str, Any]:
    """Settings that may not change between checkpoints; the number of epochs may."""
    log = split.train
    events = hashlib.sha256(log.starts.tobytes() + log.items.tobytes() + log.at_ms.tobytes()).hexdigest()
    fixed = {name: value for name, value in asdict(config).items() if name not in ("epochs", "patience")}
    return {
        **fixed,
        "events": events,
        "model": str(model),
        "teacher": teacher.encoder.id if teacher else None,
    }


def _epoch(
    model: Model,
    mean: AveragedModel,
    optimizer: torch.optim.Optimizer,
    log: Log,
    chances: Tensor,
    config: FitConfig,
    number: int,
    report: Report,
    teacher: BundleTeacher | None,
) -> float:
    """One pass over the training log: the mean loss."""
    seed = (config.seed, number)
    rng = np.random.default_rng((*seed, 2))
    torch.manual_seed(int(np.random.default_rng((*seed, 1)).integers(2**62)))
    model.train()
    total, done, expected = 0.0, 0, len(log.items) - int((np.diff(log.starts) > 0).sum())
    for batch in epoch(log, config.length, config.positions, config.augmentation, seed):
        width = rng.choice((model.encoder.dim, *config.nested)) if config.nested else None
        users, targets = _pairs(model, batch, config.mask, width)
        loss = _loss(model, users, targets, chances, config, width)
        if teacher is not None:
            loss = loss + config.teaching * _taught(model, teacher, batch, chances, config, rng)
        if config.contrast:
            loss = loss + config.contrast * _contrast(model, batch, config)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        mean.update_parameters(model)
        total += float(loss.detach()) * len(targets)
        done += len(targets)
        # Of all epochs, so that the time that is left is that of the training.
        before, all_epochs = (number - 1) * expected, config.epochs * expected
        report(
            f"training, epoch {number} of {config.epochs}, loss {total / done:.3f}", before + done, all_epochs
        )
    return total / done


def _pairs(model: Model, batch: Batch, mask: float, width: int | None) -> tuple[Tensor, Tensor]:
    """User vectors (N, dim), and the items (N,) that they should score highest."""
    vectors, places = model.encoder.predictions(masked(model.events(batch, width), mask))
    vectors = model.encoder.scored(vectors)
    targets = torch.from_numpy(batch.items)[places]
    # Of several interests, only the one nearest to the item learns it; the others stay free for other items.
    best = (vectors.detach() @ model.vectors(targets, width).detach()[:, :, None]).argmax(1)  # (N, 1)
    return vectors.take_along_dim(best[:, :, None], dim=1)[:, 0], targets


def _contrast(model: Model, batch: Batch, config: FitConfig) -> Tensor:
    """DuoRec (Qiu et al., WSDM 2022, arXiv:2110.05730): two views of one history are closer than those of two
    users.
    """
    now = torch.zeros(len(batch.items))
    # A window has one event more than the encoder reads: the last of a full one is a target only.
    events = Events(*(column[:, : config.length] for column in model.events(batch)))
    one, other = (model.encoder.answer(masked(events, config.mask), now).flatten(1) for _ in range(2))
    return losses.info_nce(one, other, TEMPERATURE)


def masked(events: Events, share: float) -> Events:
    """Events whose items are zero vectors for a random share of the positions: (users, T)."""
    if not share:
        return events
    return events._replace(items=events.items * (torch.rand(events.mask.shape) >= share)[..., None])


def _loss(
    model: Model,
    users: Tensor,
    targets: Tensor,
    chances: Tensor,
    config: FitConfig,
    width: int | None = None,
) -> Tensor:
    if config.loss == "softmax":
        return losses.full_softmax(users, model.vectors(width=width), targets)
    drawn, log_counts = _drawn(chances, config)
    right = (users * model.vectors(targets, width)).sum(-1)
    sampled = users @ model.vectors(drawn, width).T
    hits = drawn == targets[:, None]
    if config.loss == "sampled":
        return losses.sampled_softmax(right, sampled, log_counts, hits)
    sampled = sampled.masked_fill(hits, -torch.inf)
    if config.loss == "bpr":
        return losses.bpr(right, sampled)
    return losses.gbce(right, sampled, model.items)


def _drawn(chances: Tensor, config: FitConfig) -> tuple[Tensor, Tensor]:
    """Negatives (C,), and the log of how often each is expected among them (C,)."""
    drawn = torch.multinomial(chances, config.negatives, replacement=True)
    return drawn, torch.log(config.negatives * chances[drawn] / chances.sum()).float()


def _taught(
    model: Model,
    teacher: BundleTeacher,
    batch: Batch,
    chances: Tensor,
    config: FitConfig,
    rng: np.random.Generator,
) -> Tensor:
    """Distance of the scores from the teacher's, on histories that end at a random event."""
    lengths = batch.mask.sum(1).astype(np.int64) - 1  # the last event is a target, never read
    ends = 1 + (rng.random(len(lengths)) * lengths).astype(np.int64)
    read = slice(0, ends.max())
    mask = (np.arange(ends.max()) < ends[:, None]).astype(np.float32)
    known = Batch(batch.items[:, read], batch.actions[:, read], batch.gaps_s[:, read], mask)
    now = np.zeros(len(ends), dtype=np.float32)
    few = model.items <= config.negatives
    drawn = torch.arange(model.items) if few else _drawn(chances, config)[0]
    answers = model.encoder.answer(model.events(known), torch.from_numpy(now))
    students = (answers @ model.vectors(drawn).T).amax(1)
    return losses.distillation(students, torch.from_numpy(teacher.scores(known, now, drawn.numpy())), 1.0)


def narrowed(vectors: Tensor, width: int | None) -> Tensor:
    """Vectors (..., dim) with dimensions from `width` on set to zero, as
    `headwater_models.bundles.light.truncate` serves them.
    """
    if width is None:
        return vectors
    return vectors * (torch.arange(vectors.shape[-1]) < width)


def _check(model: Model, config: FitConfig, teacher: BundleTeacher | None) -> None:
    wrong = [width for width in config.nested if not 0 < width < model.encoder.dim]
    if wrong:
        raise FitError(f"nested is {wrong[0]}: expected 1 to {model.encoder.dim - 1} of the dimensions")
    if teacher is not None and teacher.encoder.log_length < config.length:
        raise FitError(
            f"the teacher reads {teacher.encoder.log_length} events and the student {config.length}: expected a teacher "
            "that reads as many"
        )


def validation_ndcg(model: Model, log: Log, cases: Cases, length: int) -> float:
    """NDCG@10 by full ranking, the mean over the cases."""
    model.eval()
    with torch.inference_mode():
        vectors = model.vectors()
    ranks, _ = ranking(scorer_of(model.encoder, vectors, length), log, cases, model.items, 10)
    return float(by_case(ranks, cases.target_starts, 10)["NDCG"].mean())


def scorer_of(encoder: UserEncoder, vectors: Tensor, length: int) -> Scorer:
    """An encoder over item vectors (items, dim) as a scorer that reads what its bundle will: the newest `length` events at the
    question.
    """

    def scores(log: Log, cases: Cases, part: slice) -> F32:
        ends, users = cases.ends[part], cases.users[part]
        starts = np.maximum(log.starts[users], ends - length)
        histories = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        gaps = torch.from_numpy(clamp_gap_s((cases.now_ms[part] - log.at_ms[ends - 1]) / 1000))
        found = []
        for first in range(0, len(histories), READ):
            batch = batch_of(log, histories[first : first + READ])
            columns = (torch.from_numpy(column) for column in (batch.actions, batch.gaps_s, batch.mask))
            with torch.inference_mode():
                events = Events(vectors[torch.from_numpy(batch.items)], *columns)
                interests = encoder.answer(events, gaps[first : first + READ])
                found.append((interests @ vectors.T).amax(1).numpy())
        return np.concatenate(found)

    return scores
