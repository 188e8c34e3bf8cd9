"""The training of the bundle of groceries: tower and user encoder together, on what households bought next.

An example is a household at a moment: the newest L events before it, the gap since the last one, and as right answers
all purchases of the next four weeks. Serving does the same: one list from what is known now.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headwater.encoder.features import ACTION_CODES, MAX_GAP_S, gaps_s
from headwater_models.arrays import F32, I64
from headwater_models.data.events import POSITIVE_ACTIONS, Log, newest
from headwater_models.networks.groceries_encoder import GroceriesEncoder
from headwater_models.networks.static_tower import StaticTower
from headwater_models.training.denormals import flushed_denormals
from headwater_models.training.losses import first_purchases, next_purchases, same_geometry

DAY_MS = 86_400_000


@dataclass(frozen=True)
class TrainingConfig:
    """How the bundle of groceries is trained."""

    steps: int = 1500
    batch: int = 128
    length: int = 50  # L: events of a log
    horizon_days: int = 28  # purchases within this time are right answers
    recency_days: float = (
        90.0  # half-life of a moment's chance to be drawn: assortments change with the seasons
    )
    learning_rate: float = 3e-3
    row_learning_rate: float = 1e-2  # for residuals, which few batches touch
    residual_penalty: float = 0.01
    geometry: float = 3.0
    discovery: float = 1.0
    themes: float = 0.3
    tail: int = 2000  # rare items in each step's softmax, drawn anew
    seed: int = 0


@dataclass(frozen=True)
class Texts:
    """What the tower reads, already summed and whitened, and the text of each item."""

    white: Tensor  # (texts, token_dim)
    of_item: I64  # (items,) row of white
    teacher: Tensor  # (texts + generic, teacher dim), length one
    generic: Tensor  # (generic, token_dim): texts about anything, which keep the geometry general

    @property
    def all(self) -> Tensor:
        """Whitened texts and generic texts: (texts + generic, token_dim)."""
        return torch.cat([self.white, self.generic])


@dataclass
class GroceriesBatch:
    """Examples of one step.

    Pairs such as (target_users, targets) are flat, (pairs,) each; users are rows of the batch.
    """

    items: I64  # (users, L) catalog rows
    actions: I64  # (users, L)
    gaps_s: F32  # (users, L)
    mask: F32  # (users, L)
    gap_to_now_s: F32  # (users,)
    target_users: I64
    targets: I64
    new_users: I64
    new_targets: I64
    known_users: I64
    known: I64


@dataclass
class Examples:
    """Draws moments from a log that ends at the split."""

    log: Log
    until_ms: int
    config: TrainingConfig
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.config.seed)
        owners = self.log.owners
        place = np.arange(len(owners)) - self.log.starts[owners]
        # A moment needs something before it and a week of purchases after it.
        open_ = (place >= 5) & (self.log.at_ms < self.until_ms - 7 * DAY_MS)
        self._rows = np.flatnonzero(open_)
        age_days = (self.until_ms - self.log.at_ms[self._rows]) / DAY_MS
        weight = 0.5 ** (age_days / self.config.recency_days)
        # A household's weight is the square root of its purchases, between equal weights and equal purchases.
        weight /= np.sqrt(np.diff(self.log.starts))[owners[self._rows]]
        self._weights = np.cumsum(weight / weight.sum())
        self._owners = owners

    def draw(self) -> GroceriesBatch:
        """`config.batch` moments: events (users, L) and the pairs of right, new and known items (pairs,)."""
        config, log = self.config, self.log
        rows = self._rows[
            np.searchsorted(self._weights, self.rng.random(config.batch)).clip(max=len(self._rows) - 1)
        ]
        owners = self._owners[rows]
        # Half of the moments follow an event directly, half come up to two weeks later. Items of one basket are a
        # millisecond apart in this data, so 100 ms later the basket is over: no moment is inside one.
        later = self.rng.random(config.batch) < 0.5
        wait_ms = np.where(
            later, self.rng.exponential(5 * DAY_MS, config.batch).clip(max=14 * DAY_MS), 100
        ).astype(np.int64)
        now = np.minimum(log.at_ms[rows] + wait_ms, self.until_ms - 6 * DAY_MS)
        ends = np.empty_like(rows)
        stops = np.empty_like(rows)
        for n, (owner, moment) in enumerate(zip(owners, now, strict=True)):
            start, stop = log.starts[owner], log.starts[owner + 1]
            times = log.at_ms[start:stop]
            ends[n] = start + np.searchsorted(times, moment)
            stops[n] = start + np.searchsorted(times, moment + config.horizon_days * DAY_MS)
        ends = np.maximum(ends, rows + 1)
        stops = np.maximum(stops, ends)
        places, mask = newest(log, owners, ends, config.length)
        times = np.where(mask > 0, log.at_ms[places], log.at_ms[ends - 1][:, None])
        target_users = np.repeat(np.arange(config.batch), stops - ends)
        targets = np.concatenate([log.items[a:b] for a, b in zip(ends, stops, strict=True)])
        known = [np.unique(log.items[log.starts[o] : end]) for o, end in zip(owners, ends, strict=True)]
        new = [np.setdiff1d(log.items[a:b], own) for a, b, own in zip(ends, stops, known, strict=True)]
        return GroceriesBatch(
            items=log.items[places],
            actions=log.actions[places] * (mask > 0),
            gaps_s=gaps_s(times) * mask,
            mask=mask,
            gap_to_now_s=((now - log.at_ms[ends - 1]) / 1000).clip(0, MAX_GAP_S).astype(np.float32),
            target_users=target_users,
            targets=targets,
            new_users=np.repeat(np.arange(config.batch), [len(x) for x in new]),
            new_targets=np.concatenate(new),
            known_users=np.repeat(np.arange(config.batch), [len(x) for x in known]),
            known=np.concatenate(known),
        )


def start_from_popularity(tower: StaticTower, texts: Texts, item_rows: I64, counts: I64) -> None:
    """Set the popularity dimension to log counts: a linear guess from the text, the rest in the items' own biases.

    `item_rows` (items,): residual row of each item; `counts` (items,): recent purchases of each.
    """
    wanted = torch.from_numpy(np.log(counts + 0.5).astype(np.float32))
    wanted = wanted - wanted.mean()
    white = texts.white[torch.from_numpy(texts.of_item)]
    with torch.no_grad():
        gram = white.T @ white + 0.01 * len(white) * torch.eye(white.shape[1])
        slope = torch.linalg.solve(gram, white.T @ wanted)
        tower.linear.weight[-1] = slope
        tower.linear.bias[-1] = 0
        rest = wanted - white @ slope
        tower.bias.weight[torch.from_numpy(item_rows), 0] = rest
        tower.bias.weight[0] = 0


@flushed_denormals()
def train(
    tower: StaticTower,
    encoder: GroceriesEncoder,
    texts: Texts,
    item_rows: I64,
    frequent: I64,
    examples: Examples,
    report: Callable[[int, float], None],
) -> None:
    """Fit tower and encoder in place.

    Args:
        item_rows: (items,) residual row of each item, 0: none
        frequent: (frequent,) items that are in every softmax
        report: called with the step and its loss
    """
    config = examples.config
    torch.manual_seed(config.seed)
    tower.train()
    encoder.train()
    rare = np.setdiff1d(np.arange(len(item_rows)), frequent)
    tail = min(config.tail, len(rare))
    offsets = torch.zeros(len(frequent) + tail)
    offsets[len(frequent) :] = np.log(len(rare) / tail) if tail else 0.0
    parameters = [*tower.parameters(), *encoder.parameters()]
    rows = [*tower.residual.parameters(), *tower.bias.parameters()]
    shared = [parameter for parameter in parameters if all(parameter is not row for row in rows)]
    groups = [{"params": shared, "weight_decay": 1e-4}, {"params": rows, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    rates = [config.learning_rate, config.row_learning_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, config.steps, pct_start=0.1)
    every_text = texts.all
    for step in range(config.steps):
        batch = examples.draw()
        candidates = np.concatenate([frequent, examples.rng.choice(rare, tail, replace=False)])
        column = np.full(len(item_rows), -1)  # place of an item among the candidates
        column[candidates] = np.arange(len(candidates))
        vectors = _vectors(tower, texts, item_rows, candidates)
        history, places = np.unique(batch.items, return_inverse=True)
        interests = encoder(
            _vectors(tower, texts, item_rows, history)[torch.from_numpy(places.reshape(batch.items.shape))],
            torch.from_numpy(batch.actions),
            torch.from_numpy(batch.gaps_s),
            torch.from_numpy(batch.mask),
            torch.from_numpy(batch.gap_to_now_s),
        )  # (users, K, dim)
        scores = (interests @ vectors.T).amax(1)  # (users, candidates)
        loss = next_purchases(scores, offsets, *_among(column, batch.target_users, batch.targets))
        known = _among(column, batch.known_users, batch.known)
        new = _among(column, batch.new_users, batch.new_targets)
        loss = loss + config.discovery * first_purchases(scores, offsets, *new, known)
        pick = torch.from_numpy(examples.rng.integers(0, len(every_text), 512))
        geometry = same_geometry(tower.from_text(every_text[pick])[:, :-1], texts.teacher[pick])
        themes = _themes(tower, encoder, every_text, texts.teacher, examples.rng)
        total = loss + config.geometry * geometry + config.themes * themes
        total = total + config.residual_penalty * tower.residual_penalty()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1, float(loss.detach()))
    tower.eval()
    encoder.eval()


def _vectors(tower: StaticTower, texts: Texts, item_rows: I64, items: I64) -> Tensor:
    used, places = np.unique(texts.of_item[items], return_inverse=True)
    from_text = tower.from_text(texts.white[torch.from_numpy(used)])
    return tower.with_residual(from_text[torch.from_numpy(places)], torch.from_numpy(item_rows[items]))


def _themes(
    tower: StaticTower, encoder: GroceriesEncoder, white: Tensor, teacher: Tensor, rng: np.random.Generator
) -> Tensor:
    """Loss over invented users with one theme each: after three texts they want others of the same meaning.

    This keeps the encoder useful for catalogs unlike the training data, and trains actions other than purchase.
    """
    users, length = 64, 3
    pool = torch.from_numpy(rng.integers(0, len(white), 1024))
    close = (
        (teacher[pool[:users]] @ teacher[pool].T).topk(2 * length, dim=1).indices
    )  # (users, 6), themselves first
    vectors = tower.from_text(white[pool])
    actions = torch.from_numpy(
        rng.choice([ACTION_CODES[action] for action in POSITIVE_ACTIONS], (users, length))
    )
    gaps = torch.from_numpy(rng.exponential(60, (users, length)).astype(np.float32))
    interests = encoder(
        vectors[close[:, :length]], actions, gaps, torch.ones(users, length), torch.zeros(users)
    )
    scores = (interests @ vectors.T).amax(1).scatter(1, close[:, :length], -1e4)
    wanted = close[:, length:]
    return next_purchases(
        scores, torch.zeros(len(pool)), torch.arange(users).repeat_interleave(length), wanted.reshape(-1)
    )


def _among(column: I64, users: I64, items: I64) -> tuple[Tensor, Tensor]:
    places = column[items]
    return torch.from_numpy(users[places >= 0]), torch.from_numpy(places[places >= 0])
