"""From a bundle and events to the bundle with a score graph: candidates of past questions, labelled by what came next.

The loss is the binary cross-entropy of each question's right candidate and some others of its pool. The best epoch is
the one that orders the pools of held-out users best.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headwater.encoder.features import CANDIDATE_FEATURES
from headwater.encoder.neighbours import Neighbours
from headwater.encoder.runtime import Encoder, load
from headwater_models.arrays import F32, I64
from headwater_models.bundles import export, score_graph
from headwater_models.bundles.neighbour_table import TableConfig, table_of
from headwater_models.data.datasets import Dataset
from headwater_models.data.events import Log, ends_at, prefixes
from headwater_models.judging.candidates import Pool, Pooling
from headwater_models.judging.evaluation import encoded
from headwater_models.judging.metrics import NEVER, by_case
from headwater_models.judging.protocols import Cases, Split, discoveries, next_events
from headwater_models.networks import SCORERS, CandidateScorer
from headwater_models.progress import Report
from headwater_models.training.denormals import flushed_denormals
from headwater_models.training.recipes import ScorerFit, ScorerRecipe
from headwater_models.training.sequence_loop import FitError

_K = 10  # of the validation's NDCG
_CASES = 128  # questions multiplied with all items at once


class Questions(NamedTuple):
    """Some candidates of each question, the right one first."""

    features: Tensor  # (questions, candidates, features)
    nearest: Tensor  # (questions, candidates, D)
    items: Tensor  # (questions, candidates) rows of the catalog


class Judged(NamedTuple):
    """Whole pools of held-out users, with the item that came next.

    A question whose pool lacks it counts as missed.
    """

    pools: list[Pool]
    targets: I64


class Material(NamedTuple):
    """What any scorer is trained on."""

    encoder: Encoder
    vectors: Tensor  # (items, D)
    questions: Questions
    judged: Judged


def prepare(base: Path, data: Dataset, asked: Split, config: ScorerFit, report: Report) -> Material:
    """The candidates of the bundle `base` for past questions. Raises FitError if there are too few."""
    encoder = load(base, device="cpu")
    catalog = encoded(encoder, data, lambda *done: report("encoding items", *done))
    since_ms, table = known_before(encoder, data, asked.train, config)
    pooling = Pooling(encoder, catalog, asked, config.pool, table)
    questions, judged = examples(pooling, asked, since_ms, config, report)
    return Material(encoder, torch.from_numpy(pooling.vectors), questions, judged)


def known_before(
    encoder: Encoder, data: Dataset, train: Log, config: ScorerFit
) -> tuple[int, Neighbours | None]:
    """The moment from which on questions are asked, and the table of neighbours that they are asked with.

    A table knows the sessions it was made from better than any other, and a scorer would trust it too much. So over a bundle
    with a table, questions are of the newest events only, with a table made from the events before.
    """
    if encoder.neighbours is None or not len(train.at_ms):
        return 0, None
    since_ms = int(np.quantile(train.at_ms, 1 - config.newest))
    before = prefixes(train, ends_at(train, since_ms))
    pause_s = encoder.neighbours.pause_ms / 1000
    return since_ms, table_of(before, data.item_ids, TableConfig(pause_s=pause_s))


def make(
    model: str,
    material: Material,
    data: Dataset,
    asked: Split,
    recipe: ScorerRecipe,
    out: Path,
    command: str,
    report: Report,
) -> Encoder:
    """Train a scorer and write it and its bundle as one. Raises ExportError."""
    started = time.monotonic()
    encoder = material.encoder
    scorer, best, epoch = _trained(model, material, recipe, report)
    source = encoder.manifest
    origin = msgspec.structs.replace(
        source.origin,
        command=command,
        seed=recipe.fit.seed,
        seconds=round(time.monotonic() - started, 1),
        versions=export.versions("torch", "onnx", "numpy"),
        figures={},
        notes=[
            f"{model} over the bundle {encoder.id}, made by: {source.origin.command}",
            f"scorer: {json.dumps(asdict(recipe))}",
            f"{len(material.questions.items):,} questions of {asked.protocol} on {data.name}; best epoch: {epoch}, "
            f"NDCG@{_K} of held-out users' pools {best:.4f}, in the bundle's own order {own_order(material.judged):.4f}",
            *source.origin.notes,
        ],
    )
    probe = material.questions.features[:, 0].numpy()
    return score_graph.add(encoder, scorer, probe, recipe.fit.pool, f"{source.name}-{model}", origin, out)


def validated(model: str, material: Material, recipe: ScorerRecipe, report: Report) -> float:
    """The best validation of a training of which nothing else is kept."""
    return _trained(model, material, recipe, report)[1]


def _trained(
    model: str, material: Material, recipe: ScorerRecipe, report: Report
) -> tuple[CandidateScorer, float, int]:
    torch.manual_seed(recipe.fit.seed)
    _, network = SCORERS[model]
    scorer = network(recipe.network, len(CANDIDATE_FEATURES), material.encoder.dim)
    return scorer, *fit(scorer, material, recipe.fit, report)


def examples(
    pooling: Pooling, asked: Split, since_ms: int, config: ScorerFit, report: Report
) -> tuple[Questions, Judged]:
    """Questions from the training events since a moment: nine tenths of the users to learn from, the others to judge by.

    Where items come again, the same questions are also asked for discoveries, as a request does that excludes seen items.
    Raises FitError: too few questions.
    """
    log, rng = asked.train, np.random.default_rng(config.seed)
    several = np.arange(len(log.items)) - log.starts[log.owners] >= config.least
    rows = np.flatnonzero(several & (log.at_ms >= since_ms))
    rows = np.sort(rng.permutation(rows)[: config.questions])
    every = next_events(log, rows, mask_seen=False)
    # As in serving, an item that fell out of the log may come up again.
    masked = replace(discoveries(log, every), remembered=pooling.length)
    held_out = rng.random(len(log.users)) < 0.1
    learned: list[tuple[F32, F32, I64]] = []
    judged, targets = [], []
    for cases in [masked] if asked.test.mask_seen else [every, masked]:
        for case, pool in enumerate(_pools(pooling, asked, cases, report)):
            right = pool.items == cases.targets[case]
            if held_out[cases.users[case]]:
                judged.append(pool)
                targets.append(cases.targets[case])
            elif right.any() and len(right) > config.negatives:
                others = rng.choice(np.flatnonzero(~right), config.negatives, replace=False)
                chosen = np.concatenate([np.flatnonzero(right), others])
                learned.append((pool.features[chosen], pool.nearest[chosen], pool.items[chosen]))
    if not learned or not judged:
        raise FitError(
            f"nothing to learn a scorer from: {len(rows):,} questions with at least {config.least} events before them, "
            f"{len(learned):,} of them with the right item among {config.pool} candidates; expected more of either"
        )
    questions = Questions(*(torch.from_numpy(np.stack(part)) for part in zip(*learned, strict=True)))
    return questions, Judged(judged, np.array(targets))


def _pools(pooling: Pooling, asked: Split, cases: Cases, report: Report) -> Iterator[Pool]:
    """The pool of each question, one slice at a time, since all together are large."""
    what = "discoveries" if cases.mask_seen else "candidates"
    for start in range(0, len(cases), _CASES):
        part = slice(start, min(start + _CASES, len(cases)))
        yield from pooling(asked.train, cases, part)[0]
        report(what, part.stop, len(cases))


@flushed_denormals()
def fit(scorer: CandidateScorer, material: Material, config: ScorerFit, report: Report) -> tuple[float, int]:
    """Train in place up to the epoch that orders the judged pools best: its NDCG and its number."""
    _, vectors, questions, judged = material
    scorer.settle(questions.features.flatten(0, 1))
    optimizer = torch.optim.AdamW(
        scorer.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    best, best_epoch, kept = -1.0, 0, scorer.state_dict()
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in range(1, config.epochs + 1):
        scorer.train()
        for batch in torch.randperm(len(questions.items), generator=generator).split(config.batch):
            features, nearest, items = (part[batch].flatten(0, 1) for part in questions)
            logits = scorer(features, nearest, vectors[items]).view(len(batch), -1)
            labels = torch.zeros_like(logits)
            labels[:, 0] = 1.0
            loss = F.binary_cross_entropy_with_logits(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        quality = ndcg(scorer, judged, vectors)
        if quality > best:
            best, best_epoch = quality, epoch
            kept = {name: value.clone() for name, value in scorer.state_dict().items()}
        report(f"training, best NDCG@{_K} {best:.4f} after epoch {best_epoch}", epoch, config.epochs)
        if epoch - best_epoch >= config.patience:
            break
    scorer.load_state_dict(kept)
    scorer.eval()
    return best, best_epoch


def ndcg(scorer: CandidateScorer, judged: Judged, vectors: Tensor) -> float:
    """NDCG of the judged pools in the scorer's order; `vectors` (items, D)."""
    scorer.eval()
    with torch.inference_mode():
        return _ndcg(
            judged,
            [
                scorer(
                    torch.from_numpy(pool.features),
                    torch.from_numpy(pool.nearest),
                    vectors[torch.from_numpy(pool.items)],
                ).numpy()
                for pool in judged.pools
            ],
        )


def own_order(judged: Judged) -> float:
    """NDCG of the judged pools in the bundle's own order, without a scorer."""
    return _ndcg(judged, [pool.features[:, 0] for pool in judged.pools])


def _ndcg(judged: Judged, scores: list[F32]) -> float:
    ranks = np.full(len(judged.targets), NEVER)
    for case, (pool, own) in enumerate(zip(judged.pools, scores, strict=True)):
        place = np.flatnonzero(pool.items == judged.targets[case])
        if len(place):
            ranks[case] = np.count_nonzero(own >= own[place[0]])
    return float(by_case(ranks, np.arange(len(ranks) + 1), _K)["NDCG"].mean())
