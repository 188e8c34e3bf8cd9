"""`headwater train`, `evaluate`, `tune`, `export` and `bundle`: data to models to bundles, and their figures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from headwater.commands.terminal import (
    MANY,
    CommandError,
    quiet_aiokafka,
    run_async,
    running_settings,
    say,
    stdout,
)

if TYPE_CHECKING:
    from headwater_models.data.datasets import Dataset
    from headwater_models.judging.protocols import At


ProtocolOption = Literal["leave-one-out", "global-time", "list-at-split", "prequential"]


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    """Which events, and what is asked of them.

    Parameters
    ----------
    data
        complete-journey, ml-100k, beauty, or a CSV, Parquet or JSON lines file of events.
    path
        Where the files of a built-in dataset lie.
    map_
        field=column of a file: user_id, item_id, at_ms, action, price, title; repeatable.
    time
        What the times of a file are.
    protocol
        See models/README.md; default: leave-one-out; for complete-journey global-time to train, list-at-split to evaluate.
    at
        Where the protocols in time split: a share of the events (0.9) or a date; default: 0.9, complete-journey 2017-12-01.
    """

    data: str = "complete-journey"
    path: Path | None = None
    map_: Annotated[list[str], Parameter(name="--map"), MANY] = field(default_factory=list)
    time: Literal["auto", "iso", "seconds", "ms"] = "auto"
    protocol: ProtocolOption | None = None
    at: str | None = None

    def protocol_or(self, of_complete_journey: ProtocolOption) -> ProtocolOption:
        usual = of_complete_journey if self.data == "complete-journey" else "leave-one-out"
        return self.protocol or usual

    def moment(self) -> "At | None":
        from datetime import datetime

        if self.at is None:
            return None
        try:
            return float(self.at)
        except ValueError:
            pass
        try:
            return datetime.fromisoformat(self.at)
        except ValueError:
            raise CommandError(
                f"--at is {self.at}: expected a share of the events such as 0.9, or a date"
            ) from None

    def load(self) -> "Dataset":
        """The data, having said what was read otherwise or left out."""
        from headwater_models.data.datasets import load

        found = load(self.data, self.path, self.map_, self.time)
        for note in found.notes:
            say(f"{found.name}: {note}")
        for reason, rows in found.dropped.items():
            say(f"{found.name}: {rows:,} rows left out, {reason}")
        return found


_EVENTS: Final = DataOptions()


# Which options of `train` go with which kind of model, beside those that go with all.
_GOES_WITH: Final = {
    "starter": {"--steps"},
    "table": {"--bundle"},
    "scorer": {"--bundle", "--epochs", "--set", "--search", "--study"},
    "item ids": {"--epochs", "--set", "--search", "--study", "--teacher", "--nested", "--resume"},
}


def train(
    model: Literal[
        "starter",
        "bert4rec",
        "gru4rec",
        "lru",
        "multi-interest",
        "narm",
        "sasrec",
        "deepfm",
        "dlrm",
        "nfm",
        "similar",
    ],
    *,
    out: Path,
    events: DataOptions = _EVENTS,
    bundle: Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    steps: int | None = None,
    set_: Annotated[list[str], Parameter(name="--set"), MANY] = [],  # noqa: B006 - cyclopts never changes it
    search: Literal["grid", "random", "tpe"] | None = None,
    trials: int = 20,
    study: Path | None = None,
    teacher: Path | None = None,
    nested: Annotated[list[int], MANY] = [],  # noqa: B006 - cyclopts never changes it
    resume: Annotated[bool, Parameter(negative=())] = False,
    threads: int = 1,
) -> int:
    """Data -> model -> bundle -> figures. Needs the extra train; starter also the extra export.

    Parameters
    ----------
    model
        starter: texts, on Complete Journey. deepfm, dlrm, nfm: how a bundle's candidates are ordered. similar: a table of what
        is taken together, put into a bundle. The others: item ids, on any data.
    out
        The folder of the new bundle.
    bundle
        Whose candidates deepfm, dlrm and nfm order, or which gets the table of similar; default: the one that is set, else the
        shipped starter.
    epochs
        At most so many; default: the recipe's. For all but starter and similar.
    steps
        Training steps of starter; default: those of the shipped bundle.
    set_
        field=value of the recipe (models/headwater_models/training/recipes.py): fit.loss=gbce, encoder.dim=32; repeatable. For all but starter and
        similar.
    search
        Try values of the space in models/headwater_models/training/recipes.py, by the validation, and train with the best. For all but starter and
        similar.
    trials
        Variants in all, with those that the study has already.
    study
        The file that keeps the search, which goes on from it when it is there; default: `out` with .study behind its name.
    teacher
        A bundle whose answers the model learns too. For the models of item ids.
    nested
        So many first dimensions have to do alone too, for `bundle lighten --dim`; repeatable. For the models of item ids.
    resume
        Go on from the checkpoint that a killed training left beside `out`.
    threads
        More than one only on cores that nobody else uses: torch's threads wait for each other most of the time.
    """
    from headwater_models.commands import (
        tables,
        train_scorer,
        train_sequence,
        train_similar,
        train_starter,
    )

    kinds = {"starter": "starter", "similar": "table", **dict.fromkeys(("deepfm", "dlrm", "nfm"), "scorer")}
    kind = kinds.get(model, "item ids")
    given = {
        "--steps": steps,
        "--bundle": bundle,
        "--epochs": epochs,
        "--set": set_,
        "--search": search,
        "--study": study,
        "--teacher": teacher,
        "--nested": nested,
        "--resume": resume,
    }
    for option, value in given.items():
        if value and option not in _GOES_WITH[kind]:
            raise CommandError(f"{option} does not go with {model}: leave it out")
    if study is not None and search is None:
        raise CommandError(f"--study {study}: expected --search with it, which says how to search")
    if kind == "starter":
        command = f"headwater train starter --seed {seed}" + (f" --steps {steps}" if steps else "")
        print(train_starter(out, steps=steps, seed=seed, threads=threads, command=command).id)
        return 0
    chosen = events.protocol_or("global-time")
    command = f"headwater train {model} --data {events.data} --protocol {chosen} --seed {seed}"
    command += (f" --at {events.at}" if events.at else "") + (f" --epochs {epochs}" if epochs else "")
    command += "".join(f" --set {one}" for one in set_)
    training: dict[str, Any] = {
        "at": events.moment(),
        "seed": seed,
        "epochs": _positive("--epochs", epochs),
        "settings": set_,
        "threads": threads,
        "command": command,
    }
    if search is not None:
        _positive("--trials", trials)
        from headwater_models.training.search import Search

        training["search"] = Search(search, trials, study or out.with_name(f"{out.name}.study"))
        training["command"] += f" --search {search} --trials {trials}"
    if kind == "table":
        command = f"headwater train similar --data {events.data} --protocol {chosen}"
        command += f" --at {events.at}" if events.at else ""
        results = train_similar(
            bundle or running_settings().bundle_path,
            events.load(),
            chosen,
            out,
            at=events.moment(),
            threads=threads,
            command=command,
        )
    elif kind == "scorer":
        base = bundle or running_settings().bundle_path
        results = train_scorer(model, base, events.load(), chosen, out, **training)
    else:
        training["command"] += f" --teacher {teacher}" if teacher else ""
        training["command"] += "".join(f" --nested {dim}" for dim in nested)
        results = train_sequence(
            model, events.load(), chosen, out, teacher=teacher, nested=nested, resume=resume, **training
        )
    for table in tables(results):
        stdout().print(table)
    return 0


def evaluate(
    bundle: Path | None = None,
    *,
    events: DataOptions = _EVENTS,
    with_: Annotated[Path | None, Parameter(name="--with")] = None,
    sample: int | None = None,
    seed: int = 0,
    k: int | None = None,
    baselines: Annotated[bool, Parameter(negative=())] = False,
    through_the_stream: Annotated[bool, Parameter(negative=())] = False,
    graph: Annotated[bool, Parameter(negative=())] = False,
    threads: int = 1,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """A bundle against baselines on a dataset, by full ranking of its catalog.

    Parameters
    ----------
    bundle
        Its folder; default: the one that is set, else the shipped starter. With --baselines and none named: baselines only.
    with_
        Another bundle beside it, and the ranks of both fused.
    sample
        Ask only so many questions, drawn by the seed; default: all, 10,000 for prequential.
    k
        The length of lists; default: 10 for leave-one-out, else 20.
    baselines
        Also ItemKNN, EASE and ALS. Needs the extra train.
    through_the_stream
        The bundle alone, offline and by asking a worker on an embedded broker; exit 0 only if both agree to 1e-3.
    graph
        Through the stream, search a graph as large catalogs are served, and not all items.
    """
    from headwater_models.commands import as_json, compare, tables

    if through_the_stream and (baselines or with_ is not None):
        option = "--baselines" if baselines else "--with"
        raise CommandError(f"--through-the-stream asks about a bundle alone: leave {option} out")
    if graph and not through_the_stream:
        raise CommandError("--graph says how the stream searches: expected --through-the-stream with it")
    if bundle is None and not baselines:
        bundle = running_settings().bundle_path
    if with_ is not None and bundle is None:
        raise CommandError(
            f"--with {with_}: expected a bundle to go with it, `headwater evaluate BUNDLE --with {with_}`"
        )
    length, questions, at = _positive("--k", k), _positive("--sample", sample), events.moment()
    if through_the_stream:
        assert bundle is not None
        return _evaluate_through_the_stream(
            bundle, events, questions, seed, length, threads, graph=graph, json=json
        )
    results = compare(
        bundle,
        events.load(),
        events.protocol_or("list-at-split"),
        other=with_,
        at=at,
        sample=questions,
        seed=seed,
        k=length,
        learned=baselines,
        threads=threads,
    )
    if json:
        print(as_json(results).decode())
    else:
        for table in tables(results):
            stdout().print(table)
    return 0


def _evaluate_through_the_stream(
    bundle: Path,
    events: DataOptions,
    sample: int | None,
    seed: int,
    k: int | None,
    threads: int,
    *,
    graph: bool,
    json: bool,
) -> int:
    from headwater.commands.live_evaluation import TOLERANCE, compare
    from headwater.settings import Settings
    from headwater_models.commands import as_json, progress, tables, usual_k
    from headwater_models.judging.protocols import split

    quiet_aiokafka()
    protocol, data = events.protocol_or("list-at-split"), events.load()
    questions = split(data, protocol, events.moment(), sample, seed)
    settings = Settings.load(encoder_threads=threads)
    with progress() as report:
        found = run_async(
            compare(settings, bundle, data, questions, k or usual_k(protocol), seed, report, graph=graph)
        )
    if json:
        print(as_json(found.results).decode())
    else:
        for table in tables(found.results):
            stdout().print(table)
    say(found.search)
    for measure, difference in found.apart.items():
        say(f"{measure} through the stream less offline as it serves: {difference:+.5f}")
    if not found.agree:
        raise CommandError(
            f"the stream does not say what the bundle does: expected figures at most {TOLERANCE} apart"
        )
    return 0


def _positive(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise CommandError(f"{option} is {value}: expected a whole number from 1 on")
    return value


def tune(
    *,
    model: str,
    out: Path,
    events: DataOptions = _EVENTS,
    steps: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    threads: int = 1,
) -> int:
    """A Hugging Face sentence encoder tuned to what users take together, for `headwater export`. Needs the extra export.

    Parameters
    ----------
    model
        A folder, or a name that transformers can load.
    out
        The folder of the tuned model: `headwater export --model` takes it.
    steps
        Batches of pairs; default: 200.
    rank
        Of the updates that are learned (LoRA); default: 8; 0: all weights are learned.
    """
    from headwater_models.commands import tune_lm

    tune_lm(
        model,
        events.load(),
        events.protocol_or("global-time"),
        out,
        at=events.moment(),
        steps=_positive("--steps", steps),
        rank=rank,
        seed=seed,
        threads=threads,
    )
    print(out)
    return 0


def export(*, model: str, out: Path, int8: Annotated[bool, Parameter(negative=())] = False) -> int:
    """A Hugging Face sentence encoder as item tower of a new bundle. Needs the extra export.

    Parameters
    ----------
    model
        A folder, or a name that transformers can load.
    out
        The folder of the new bundle.
    int8
        Weights and activations in 8 bits, per channel.
    """
    from headwater_models.commands import export_lm

    command = f"headwater export --model {model} --out {out}" + (" --int8" if int8 else "")
    print(export_lm(model, out, int8=int8, command=command).id)
    return 0


def show(bundle: Path | None = None) -> int:
    """Check a bundle and print its manifest.

    Parameters
    ----------
    bundle
        Its folder; default: the one that is set, else the shipped starter.
    """
    import msgspec

    from headwater_models.commands import describe

    manifest = describe(bundle or running_settings().bundle_path)
    print(msgspec.json.format(msgspec.json.encode(manifest)).decode())
    return 0


def mean(*, out: Path, bundle: Path | None = None) -> int:
    """The item tower of a bundle under the training-free user encoder. Needs the extra train.

    Parameters
    ----------
    bundle
        Whose item tower; default: the one that is set, else the shipped starter.
    """
    from headwater_models.commands import make_mean

    print(make_mean(bundle or running_settings().bundle_path, out).id)
    return 0


def lighten(
    *,
    out: Path,
    bundle: Path | None = None,
    int8: Annotated[bool, Parameter(negative=())] = False,
    fp16: Annotated[bool, Parameter(negative=())] = False,
    dim: int | None = None,
    prune: float = 0.0,
) -> int:
    """A lighter bundle out of another, by one of these or several. Needs the extra train.

    Parameters
    ----------
    bundle
        The one to lighten; default: the one that is set, else the shipped starter.
    int8
        Tables and matrices in 8 bits, a scale for each row or column.
    fp16
        Weights and arithmetic in half precision. A processor computes in single all the same; a GPU may be quicker.
    dim
        Keep only so many dimensions, the first ones: for bundles of `headwater train --nested`.
    prune
        Leave out this share of each feed-forward's hidden units.
    """
    from headwater_models import commands

    command = f"headwater bundle lighten{' --int8' if int8 else ''}{' --fp16' if fp16 else ''}"
    command += (f" --dim {dim}" if dim else "") + (f" --prune {prune:g}" if prune else "")
    source = bundle or running_settings().bundle_path
    print(commands.lighten(source, out, int8=int8, fp16=fp16, dim=dim, prune=prune, command=command).id)
    return 0


def compare(
    *bundles: Path,
    events: DataOptions = _EVENTS,
    sample: int | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Bundles side by side: how much they find, their size, and what a click, an answer and a search cost.

    Parameters
    ----------
    bundles
        Their folders.
    sample
        Ask only so many questions; default: all, 10,000 for prequential.
    """
    if not bundles:
        raise CommandError("no bundle named: expected the folders of those to compare")
    from headwater_models import commands

    protocol = events.protocol_or("list-at-split")
    found = commands.weigh(
        bundles, events.load(), protocol, at=events.moment(), sample=_positive("--sample", sample)
    )
    if json:
        print(commands.as_json(found).decode())
    else:
        stdout().print(commands.weighed_table(found, f"{events.data}, {protocol}"))
    return 0
