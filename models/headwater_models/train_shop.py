"""From a shop's catalog and clicks to its bundle, top to bottom: a plan by statistics, training, figures, everything, export.

The figures are of a bundle that learned up to a split in time. The bundle that is kept learns from all events, by the same
plan and for as many epochs as that one was best after.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F

from headwater.encoder.bundle import Origin
from headwater.encoder.runtime import Encoder, load
from headwater_models.arrays import F32
from headwater_models.bundles import export, neighbour_table, score_graph, sequence_bundle
from headwater_models.bundles.neighbour_table import TableConfig
from headwater_models.bundles.sequence_bundle import Named
from headwater_models.bundles.text_encoder import TextEncoder
from headwater_models.bundles.text_tower import Whitened, whitened
from headwater_models.data.datasets import Dataset, DatasetError
from headwater_models.data.events import Log, of_items
from headwater_models.data.statistics import Statistics, statistics_of
from headwater_models.judging import source_weights
from headwater_models.judging.candidates import Pooling
from headwater_models.judging.comparison import SCORED, Results, figures, judge
from headwater_models.judging.evaluation import Catalog, encoded
from headwater_models.judging.protocols import At, Protocol, Split, select, some_of, split
from headwater_models.networks import ARCHITECTURES, UserEncoder, WindowedEncoder
from headwater_models.networks.blend import TERMS, TIMED_TERMS, Blend
from headwater_models.networks.text_beside import Beside, TextBeside
from headwater_models.networks.text_head import TextHead, TextHeadConfig
from headwater_models.networks.themes import Themes
from headwater_models.progress import Report, silent
from headwater_models.training import blending, recipes
from headwater_models.training.blending import Question
from headwater_models.training.how_many_interests import SEVERAL, themed
from headwater_models.training.recipes import Recipe
from headwater_models.training.sequence_loop import IdModel, Model, Progress, TextModel, fit, measure_worth
from headwater_models.training.weighing import weighed
from headwater_models.training.workplace import digest, workplace

# Questions that the bundle is judged on: lists with a table of neighbours are made one by one.
_JUDGED: Final = 5_000
# With so many questions to judge by, and a third of them to validate by, a split in time does.
_ENOUGH: Final = 30
# The number of epochs and the weights of sources and of the order are chosen by the last events of so many users, of as many as
# leave 99 % of the events to learn from, or of half of all. A shop of many events has enough of them, however few its users are.
_VALIDATED: Final = 200
_VALIDATED_SHARE: Final = 0.01
# New items that each item is next to by their words, where candidates have an order that tells them apart. Of 5, 10 and 20 ten
# found most in two splits (`models/RESULTS.md`).
_NEW: Final = 10
# From this share of the events on, users take items again.
_REPEATS: Final = 0.01


@dataclass(frozen=True)
class Plan:
    """What is trained, and why."""

    statistics: Statistics
    interests: int | None  # of the bundle, where the model has one; None: the validation decides
    model: str  # one of ARCHITECTURES
    recipe: Recipe
    protocol: Protocol
    table: TableConfig
    why: list[str] = field(default_factory=list)  # for a person


class Trained(NamedTuple):
    """A model, its text vectors' whitening (None: it reads ids), how its training went, and how texts stand beside it."""

    model: Model
    white: Whitened | None
    progress: Progress
    beside: Beside | None = None


def plan(
    data: Dataset,
    model: str | None,
    epochs: int | None,
    seed: int,
    settings: Sequence[str] = (),
    interests: int | None = None,
    at: At | None = None,
) -> Plan:
    """Choose by the statistics of the data; the rest, such as `settings` (field=value), where a person chose.

    Raises RecipeError: settings that the recipe does not have. DatasetError: too little to learn from.
    """
    found = statistics_of(data)
    why = []
    if found.has_texts:
        why.append(f"items are read by their texts ({found.with_text:.0%} have one, {found.texts:,} differ)")
    else:
        told = f"texts do not tell them apart ({found.with_text:.0%} have one, {found.texts:,} differ)"
        why.append(
            f"items are known by their ids, since {told if found.texts else 'they have no texts'}: an item without events is "
            "not recommended"
        )
    chosen = model or recipes.model_for(found)
    lengths = "short" if found.is_sparse else "long" if found.is_dense else "middling"
    why.append(
        f"user encoder {chosen}: "
        + ("as asked" if model else f"{lengths} histories, {found.events_per_user:.1f} events per user")
    )
    recipe = recipes.within_the_hour(recipes.recipe(chosen, found, texts=found.has_texts), found)
    recipe = recipes.varied(recipe, recipes.settings(recipe, settings))
    recipe = recipes.varied(recipe, {"fit.seed": seed, "fit.epochs": epochs or recipe.fit.epochs})
    if interests is None:
        why.append(
            f"a history is read for each of its themes, up to {SEVERAL}, unless that costs too much of what the validation finds"
        )
    why.append(
        f"trained twice, up to a split for figures and on all events to serve; epochs at most: {recipe.fit.epochs}"
    )
    protocol, said = asked_by(data, found, at)
    why.append(said)
    return Plan(
        found,
        interests,
        chosen,
        recipe,
        protocol,
        recipes.table_for(found),
        why,
    )


def asked_by(data: Dataset, found: Statistics, at: At | None) -> tuple[Protocol, str]:
    """How the data is split, and why: in time if its times tell, and if that leaves enough to learn from and to ask.

    Raises DatasetError: no split leaves anything to learn from.
    """
    why: dict[Protocol, str] = {
        "global-time": "figures by a split in time: the newest tenth of the events is asked for",
        "leave-one-out": "no times, so figures ask for each user's last event",
    }
    if found.has_times:
        why["leave-one-out"] = (
            "figures ask for each user's last event: a split in time leaves too little to learn from"
        )
    else:
        del why["global-time"]
    left: dict[Protocol, int] = {}
    for protocol in why:
        try:
            asked = _split(data, protocol, at)
        except DatasetError:  # nothing to ask
            continue
        if np.diff(asked.train.starts).max(initial=0) >= 2:
            left[protocol] = min(3 * len(asked.validation), len(asked.test), _ENOUGH)
    chosen = max(left, key=left.__getitem__, default=None)  # of equal ones the first
    if chosen is None or not left[chosen] or (chosen != "global-time" and at is not None):
        raise DatasetError(
            f"{found.events:,} events of {found.users:,} users are too few to learn from: expected ten users or more with "
            "four events each; until then serve the shipped starter, which reads the texts of any catalog and needs no "
            "training (`headwater up`)"
        )
    return chosen, why[chosen]


def make(
    data: Dataset,
    texts: TextEncoder | None,
    chosen: Plan,
    out: Path,
    at: At | None,
    command: str,
    report: Report,
    *,
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> Results:
    """Train, judge, train on everything, and write the bundle with its table of neighbours and its figures.

    What is done lies beside `out` until the bundle is written; with `resume` it is gone on with. `texts` is None for a plan
    without texts. Raises FitError, DatasetError or ExportError.
    """
    started = time.monotonic()
    export.make_place(out)
    if texts is not None:
        data = with_texts(data)
    asked = asked_of(data, chosen, at)
    with workplace(out, _settled(data, asked, texts, chosen), resume=resume) as work:
        vectors = None if texts is None else work.vectors(texts, data.texts or [], report)
        learned = _trained(data, asked, vectors, chosen, chosen.recipe, work.checkpoint("split"), report)
        chosen_notes = []
        if isinstance(learned.model, TextModel) and can_stand_beside(learned.model, chosen.interests):
            report("weighing texts", 0, 1)
            beside, note = weighed(learned.model, asked, chosen.recipe.fit.length)
            report("weighing texts", 1, 1)
            learned, chosen_notes = learned._replace(beside=beside), [note]
        if chosen.interests is None and learned.model.encoder.interests == 1:
            report("one interest or themes", 0, 1)
            found = themed(*_reading(learned, asked.train)[:2], asked, chosen.recipe.fit.length)
            report("one interest or themes", 1, 1)
            chosen, chosen_notes = replace(chosen, interests=found.interests), [*chosen_notes, found.note]
            say(found.note)
        judged = work.scratch("judged")
        notes = [f"learned up to a split: {chosen.protocol}"]
        encoder = _written(judged, data, asked, texts, learned, chosen, command, started, notes, report)
        catalog = encoded(encoder, data, partial(report, "encoding items"))
        weights = source_weights.chosen(encoder, catalog, asked, chosen.statistics.has_times, report)
        near_new = partial(_near_new, data=data, chosen=chosen, beside=learned.beside, command=command)
        order, results = _ordered(
            encoder,
            data,
            catalog,
            asked,
            chosen,
            learned.beside,
            weights.weights,
            partial(near_new, asked=asked, out=work.scratch("near-new")),
            work.scratch("trial"),
            report,
        )
        best = learned.progress.best_epoch
        recipe = recipes.varied(chosen.recipe, {"fit.epochs": best, "fit.judged": 0})
        every = replace(asked, protocol="all events", train=data.log)
        final = _trained(data, every, vectors, chosen, recipe, work.checkpoint("all"), report)
        final = final._replace(beside=learned.beside)
        notes = [
            f"{export.FROM_ALL} for {best} epochs; the figures are of the same plan up to a split: {chosen.protocol}",
            f"validation NDCG@10 {learned.progress.best:.4f} after {best} of {learned.progress.epoch} epochs",
            f"weights of sources{' without the order' if order else ''}: {weights.weights or 'the usual ones'}, NDCG@{source_weights.K} of {weights.questions:,} "
            f"validation events {weights.usual:.4f} with the usual ones, {weights.best:.4f} with these",
            *chosen_notes,
            f"{export.CURVE}{json.dumps(learned.progress.curve)}",
        ]
        whole = work.scratch("bundle")
        bundle = _written(whole, data, every, texts, final, chosen, command, started, notes, report)
        if order is None:
            export.with_sources(whole, weights.weights)
        else:
            _with_order(near_new(bundle, asked=every, out=whole), order, whole)
        export.with_figures(whole, figures(results))
        export.move_bundle(whole, out)
    return results


def asked_of(data: Dataset, chosen: Plan, at: At | None) -> Split:
    """The questions that the bundle is chosen and judged by.

    Where users take items again, these are asked for too, as they are in serving: a bundle that leaves them out of its figures
    would not learn to bring them. Elsewhere they may not come, as in a request that says nothing of them: whatever keeps them
    away would seem to find more.
    """
    asked = _split(data, chosen.protocol, at)
    mask_seen = chosen.statistics.repeats < _REPEATS
    validation, test = (replace(cases, mask_seen=mask_seen) for cases in (asked.validation, asked.test))
    return replace(asked, validation=validation, test=test)


def _split(data: Dataset, protocol: Protocol, at: At | None) -> Split:
    wanted = max(_VALIDATED, int(_VALIDATED_SHARE * len(data.log.items)))
    return split(data, protocol, at, validation=wanted)


class Order(NamedTuple):
    """The weights of a bundle's candidates, what its probe is told of them, and how they were found."""

    blend: Blend
    probe: F32  # (candidates, CANDIDATE_FEATURES)
    note: str


def _ordered(
    bundle: Encoder,
    data: Dataset,
    catalog: Catalog,
    asked: Split,
    chosen: Plan,
    beside: Beside | None,
    weights: source_weights.Weights,
    near_new: Callable[[Encoder], Encoder],
    trial: Path,
    report: Report,
) -> tuple[Order | None, Results]:
    """The order of candidates that the bundle is better with, None if it is not, and the bundle's figures with it.

    The validation says whether it is better: an order from half of its questions, beside the fusion by the `weights` of sources,
    on the other half. The figures are of an order from all of the validation. The order that is kept is from all questions.

    Args:
        near_new: see `_near_new`, of the split.
        trial: a place for the bundle with the order from half of the questions.
    """
    timed = chosen.statistics.has_times
    parts = blending.parts_of(asked.train, data.log, len(data.item_ids))
    if beside is None or beside.lift == 0:  # vectors do not tell what is new
        parts[:] = 0
    with_new = near_new(bundle)
    pooling = Pooling(with_new, catalog, asked, blending.POOL)
    questions_of = partial(blending.questions_of, pooling, asked.log, parts=parts, timed=timed, report=report)
    # Of the validation, whose users all have a history: the first question of the test may be a new user's, without candidates.
    probe = pooling(asked.log, replace(asked.validation, mask_seen=False), slice(0, 1))[0][0].features
    some = np.random.default_rng(0).permutation(len(asked.validation))[:_JUDGED]
    halves = [select(asked.validation, np.sort(some[half::2])) for half in range(2)]
    questions, others = map(questions_of, halves)
    export.with_sources(bundle.path, weights)
    order = None
    enough = min(len(questions), len(others)) >= blending.LEAST // 2
    if enough and len(probe) >= len(bundle.manifest.probe.item_ids):
        _with_order(with_new, _order(questions, probe, timed=timed), trial)
        if is_better(judge(trial, data, replace(asked, test=halves[1]), catalog=catalog)):
            questions += others
            _with_order(with_new, _order(questions, probe, timed=timed), bundle.path)
            order = _order(questions + questions_of(asked.test), probe, timed=timed)
    tested = replace(asked, test=some_of(asked.test, _JUDGED))
    return order, judge(bundle.path, data, tested, catalog=catalog)


def _near_new(
    bundle: Encoder, data: Dataset, asked: Split, chosen: Plan, beside: Beside | None, command: str, out: Path
) -> Encoder:
    """The bundle in `out`, its table with new items too, by their words; as it was where its vectors do not tell what is new.

    Only an order keeps them behind what is taken together, so bundles without one do not get them.
    """
    if beside is None or beside.lift == 0 or bundle.neighbours is None:
        return bundle
    return neighbour_table.make(bundle.path, data, asked, out, command, replace(chosen.table, new=_NEW))


def _order(questions: Sequence[Question], probe: F32, *, timed: bool) -> Order:
    blend = blending.blended(questions, timed=timed)
    named = zip(TERMS + (TIMED_TERMS if timed else ()), blend.weight.tolist(), strict=True)
    told = ", ".join(f"{name} {value:.3g}" for name, value in named)
    lift = f"lift of new items {float(blend.lift):g}"
    return Order(blend, probe, f"order of candidates from {len(questions):,} questions: {told}, {lift}")


def _with_order(bundle: Encoder, order: Order, out: Path) -> None:
    origin = bundle.manifest.origin
    origin = msgspec.structs.replace(origin, notes=[order.note, *origin.notes])
    score_graph.add(bundle, order.blend, order.probe, blending.POOL, bundle.name, origin, out)


def is_better(results: Results) -> bool:
    """Whether the bundle's own order of candidates finds more than any other way to ask it, by NDCG."""
    found = {
        name: sets["all"].ndcg.value for name, sets in results.methods.items() if name.startswith("shop-")
    }
    own = [value for name, value in found.items() if name.endswith(SCORED)]
    others = [value for name, value in found.items() if not name.endswith(SCORED)]
    return bool(own) and own[0] > max(others)


def _settled(data: Dataset, asked: Split, texts: TextEncoder | None, chosen: Plan) -> dict[str, str]:
    """What a training is of: may not change until it is done. The number of epochs may."""
    fixed = recipes.varied(chosen.recipe, {"fit.epochs": 0, "fit.patience": 0})
    log = asked.train
    found = {
        "files": data.fingerprint,
        "events": digest(
            log.starts.tobytes(), log.items.tobytes(), log.actions.tobytes(), log.at_ms.tobytes()
        ),
        "items": digest(*data.item_ids, *(data.texts or ())),
        "user encoder": chosen.model,
        "settings": str(fixed),
    }
    if texts is not None:
        probe = np.round(texts.vectors(export.PROBE_TEXTS[:1], silent), 2) + 0.0
        found["text encoder"] = f"{texts.name} {texts.text} {digest(probe.tobytes())}"
    return found


def verdict(results: Results) -> str:
    """How what a worker answers compares with the baselines, by the NDCG of what is new to the user; one sentence."""
    ndcg = {name: found.get("discovery") or found["all"] for name, found in results.methods.items()}
    own = {name: found for name, found in ndcg.items() if name.startswith("shop-")}
    # Alone, with its neighbours, by its own weights: the last one there is. Repeats are no discovery.
    answer = ndcg[[name for name in own if ":" not in name and "buy again" not in name][-1]]
    others = {name: found for name, found in ndcg.items() if name not in own}
    best = max(others, key=lambda name: others[name].ndcg.value)
    found, other = answer.ndcg, others[best].ndcg
    figures = f"NDCG@{results.k} {found.value:.4f} of {answer.targets:,} events that were new to their users"
    baseline = f"the best baseline, {best}, {other.value:.4f}"
    if found.low > other.high:
        return f"what a worker answers beats every baseline: {figures}; {baseline}"
    if found.value > other.value:
        return (
            f"what a worker answers is above every baseline, within what chance may do: {figures}; {baseline}"
        )
    return (
        f"what a worker answers does NOT beat {best}: {figures}; {baseline}. These events say little about what comes next: "
        "more of them, or texts that tell items apart, may help"
    )


def can_stand_beside(model: TextModel, interests: int | None) -> bool:
    """Whether texts can stand beside what a model learned: it scores by cosines, and keeps no state, which has no place for them."""
    return model.cosine and (isinstance(model.encoder, WindowedEncoder) or interests != 1)


def with_texts(data: Dataset) -> Dataset:
    """The data without the items that have no text: a bundle of texts cannot have them."""
    assert data.texts is not None
    count = len(data.texts)
    came_in = None if data.came_in is None else data.came_in[:count]
    return replace(data, item_ids=data.item_ids[:count], log=of_items(data.log, count), came_in=came_in)


def _trained(
    data: Dataset,
    asked: Split,
    vectors: F32 | None,
    chosen: Plan,
    recipe: Recipe,
    checkpoint: Path,
    report: Report,
) -> Trained:
    torch.manual_seed(recipe.fit.seed)
    _, network = ARCHITECTURES[chosen.model]
    encoder: UserEncoder = network(recipe.encoder)
    measure_worth(encoder, asked.train)
    model: Model
    white = None
    if vectors is None:
        model = IdModel(len(data.item_ids), encoder, recipe.temperature)
    else:
        white = whitened(vectors)
        counts = np.bincount(asked.train.items, minlength=len(vectors))
        model = TextModel(
            TextHead(recipe.head or TextHeadConfig(), unit_white(vectors, white), counts, encoder.dim),
            encoder,
            recipe.temperature,
        )
    return Trained(model, white, fit(model, asked, recipe.fit, checkpoint, report))


def unit_white(vectors: F32, white: Whitened) -> torch.Tensor:
    """Whitened texts of length sqrt(k), as the exported head makes them: (items, d) -> (items, k)."""
    found = torch.from_numpy((vectors - white.mean) @ white.matrix)
    return F.normalize(found, dim=-1) * math.sqrt(found.shape[1])


class Reading(NamedTuple):
    """What reads a user, and the vectors of the items that it reads: of a trained model, with the texts that stand beside it."""

    encoder: UserEncoder
    vectors: F32  # (items, dim)
    beside: Beside | None = None  # None: no text says anything


def _reading(trained: Trained, train: Log) -> Reading:
    model, beside = trained.model, trained.beside
    with torch.inference_mode():
        found = model.vectors()
    if beside is None or beside.weight + beside.lift == 0:
        return Reading(model.encoder, found.detach().numpy())  # those of ids are the parameter itself
    assert isinstance(model, TextModel)
    white = model.head.white
    new = torch.from_numpy(np.bincount(train.items, minlength=model.items) == 0)
    vectors = beside.vectors(found, F.normalize(white, dim=-1), new)
    return Reading(TextBeside(model.encoder, white.shape[1], beside), vectors.detach().numpy(), beside)


def _written(
    out: Path,
    data: Dataset,
    asked: Split,
    texts: TextEncoder | None,
    trained: Trained,
    chosen: Plan,
    command: str,
    started: float,
    notes: list[str],
    report: Report,
) -> Encoder:
    """Export a trained model, and give it a table of neighbours of the training events."""
    report("exporting", 0, 1)
    model, length = trained.model, chosen.recipe.fit.length
    served, vectors, beside = _reading(trained, asked.train)
    interests = chosen.interests or 1
    if served.interests == 1 and interests > 1:
        served = Themes(served, vectors, interests)
    stem = Path(data.name).name.partition(".")[0]
    reads = "ids" if texts is None else f"texts, by {texts.name},"
    named = Named(
        f"shop-{stem}",
        f"item {reads} and {chosen.model} with {served.interests} interests, trained on {data.name}",
        Origin(
            data=f"{data.name}: {len(asked.train.items):,} events of {len(asked.train.users):,} users on {len(data.item_ids):,} items",
            data_sha256=data.fingerprint,
            command=command,
            seed=chosen.recipe.fit.seed,
            seconds=round(time.monotonic() - started, 1),
            versions=export.versions("torch", "onnx", "numpy"),
            figures={},
            notes=[
                *notes,
                f"statistics: {chosen.statistics}",
                f"configuration: {json.dumps(asdict(chosen.recipe))}",
                *(texts.notes if texts else ()),
                *([trained.white.note] if trained.white else []),
                *(f"left out, {reason}: {rows:,}" for reason, rows in data.dropped.items()),
                *data.notes,
            ],
        ),
    )
    if texts is None or trained.white is None:
        sequence_bundle.write(out, model, data.item_ids, length, named, served)
    else:
        assert isinstance(model, TextModel)
        assert data.texts is not None
        items = list(zip(data.item_ids, data.texts, strict=True))
        known = np.unique(asked.train.items).tolist()
        sequence_bundle.write_text(
            out, model, texts, trained.white, items, length, named, served, beside, known
        )
    try:
        neighbour_table.make(out, data, asked, out, command, chosen.table)
    except DatasetError as none:  # without a table the bundle serves as well, with one source less
        report(f"no table of neighbours, {none}", 1, 1)
    report("exporting", 1, 1)
    return load(out, device="cpu")
