"""How much the texts of items count beside what was learned, and the lift of items that training did not know.

Both are chosen on the validation questions of the split, so they follow the data: where texts say little, they get no weight.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from headwater.encoder.features import clamp_gap_s
from headwater_models.arrays import F32, I64, Bools
from headwater_models.judging.protocols import Split, histories, some_of
from headwater_models.networks.text_beside import Beside, recent
from headwater_models.training.sequence_loop import TextModel
from headwater_models.training.sequences import batch_of

WEIGHTS: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
LIFTS: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
# New items are worth what validation cannot show: once seen, they get events. So a lift may cost this share of what texts bring.
LIFT_COST: Final = 1 / 3
QUESTIONS: Final = 5_000
K: Final = 10
# Scores held at once: 64 MB.
_SCORES: Final = 2**24


class Part(NamedTuple):
    """Some of the questions (cases), as far as scores need it."""

    learned: F32  # (cases, items) the best cosine of an item with an interest
    texts: F32  # (cases, items) cosine with the texts of the newest events
    never: Bools  # (cases, items) which items are out of the ranking
    targets: I64  # (targets,)
    owners: I64  # (targets,) the case of each


class Found(NamedTuple):
    """NDCG@10 of all targets, and of those without a training event."""

    all: float
    new: float


def weighed(model: TextModel, split: Split, length: int) -> tuple[Beside, str]:
    """The weight of texts and the lift of new items that find most of the validation targets, and a line for a person."""
    counts = np.bincount(split.train.items, minlength=model.items)
    new = counts == 0
    by_weight = tried([Beside(weight) for weight in WEIGHTS], questions(model, split, length), new)
    weight = max(by_weight, key=lambda beside: (by_weight[beside].all, -beside.weight)).weight
    by_lift = tried([Beside(weight, lift) for lift in LIFTS], questions(model, split, length), new)
    before = by_weight[Beside(0.0)]
    unlifted = by_lift[Beside(weight)].all
    cost = LIFT_COST * max(unlifted - before.all, 0.0)
    best = Beside(weight, lifted({beside.lift: found for beside, found in by_lift.items()}, cost))
    after = by_lift[best]
    return best, (
        f"texts beside what was learned: weight {best.weight}, lift of new items {best.lift}, by validation NDCG@10 of at most "
        f"{QUESTIONS:,} questions: {before.all:.4f} -> {after.all:.4f}, of new items {before.new:.4f} -> {after.new:.4f}"
    )


def lifted(by_lift: Mapping[float, Found], cost: float) -> float:
    """The lift that finds most new items, of those that cost at most so much NDCG of all; of equals the smallest.

    `by_lift` holds what is found without a lift as that of 0.
    """
    least = by_lift[0.0].all - cost
    allowed = [lift for lift, found in by_lift.items() if lift == 0 or found.all >= least]
    return max(allowed, key=lambda lift: (by_lift[lift].new, -lift))


def tried(each: Sequence[Beside], parts: Iterable[Part], new: Bools) -> dict[Beside, Found]:
    """What each way to weigh finds; `new` (items,): which items have no training event."""
    sums, targets = np.zeros((len(each), 2)), np.zeros(2)
    for part in parts:
        is_new = new[part.targets]
        targets += len(is_new), is_new.sum()
        for place, beside in enumerate(each):
            scores = part.learned + np.float32(beside.weight) * part.texts + np.float32(beside.lift) * new
            scores[part.never] = -np.inf
            own = scores[part.owners, part.targets]
            ranks = (scores[part.owners] >= own[:, None]).sum(axis=1)
            gains = np.where((ranks <= K) & np.isfinite(own), 1 / np.log2(ranks + 1), 0.0)
            sums[place] += gains.sum(), gains[is_new].sum()
    return {
        beside: Found(*(found / np.maximum(targets, 1)).tolist())
        for beside, found in zip(each, sums, strict=True)
    }


def questions(model: TextModel, split: Split, length: int) -> Iterator[Part]:
    """Validation questions as a bundle would score them, from the newest `length` events."""
    model.eval()
    cases, log = some_of(split.validation, QUESTIONS), split.log
    with torch.inference_mode():
        items = model.vectors()
        texts = F.normalize(model.head.white, dim=-1)
    size = max(1, _SCORES // model.items)
    for start in range(0, len(cases), size):
        part = slice(start, min(start + size, len(cases)))
        ends, users = cases.ends[part], cases.users[part]
        rows = [
            np.arange(max(first, end - length), end)
            for first, end in zip(log.starts[users], ends, strict=True)
        ]
        batch = batch_of(log, rows)
        gaps = clamp_gap_s((cases.now_ms[part] - log.at_ms[ends - 1]) / 1000)
        with torch.inference_mode():
            interests = F.normalize(model.encoder.answer(model.events(batch), torch.from_numpy(gaps)), dim=-1)
            learned = (interests @ items.T).amax(1).numpy()
            counts = recent(torch.from_numpy(batch.actions), torch.from_numpy(batch.mask), model.encoder)
            about = F.normalize((counts[:, None] @ texts[torch.from_numpy(batch.items)])[:, 0], dim=-1)
            near = (about @ texts.T).numpy()
        never = np.zeros(learned.shape, dtype=np.bool_)
        if cases.mask_seen:
            owners, seen = histories(log, cases, part)
            never[owners, log.items[seen]] = True
        targets = slice(cases.target_starts[part.start], cases.target_starts[part.stop])
        yield Part(learned, near, never, cases.targets[targets], cases.case_of_target[targets] - part.start)
