"""`headwater train`, `evaluate`, `tune`, `export` and `bundle`: from data to bundles and their figures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Parameter

from headwater.commands.terminal import (
    FLAG,
    MANY,
    CommandError,
    TimeOption,
    UsageError,
    command_line,
    quiet_aiokafka,
    run_async,
    running_settings,
    say,
    stdout,
)

if TYPE_CHECKING:
    from headwater_models.commands import Results
    from headwater_models.data.datasets import Dataset
    from headwater_models.judging.protocols import At


# Written out for the help, which must not import torch. Tests hold them equal to the registries.
ProtocolOption = Literal["leave-one-out", "global-time", "list-at-split", "prequential"]
ModelOption = Literal[
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
]
SearchOption = Literal["grid", "random", "tpe"]


@Parameter(name="*")
@dataclass(frozen=True)
class DataOptions:
    """Which events to use, and how to split them.

    Parameters
    ----------
    data
        complete-journey, ml-100k, beauty, or a CSV, Parquet or JSON lines file of events.
    path
        The folder of a built-in dataset.
    map_
        field=column of a file: user_id, item_id, at_ms, action, price, title; repeatable.
    time
        The unit of the times of a file.
    protocol
        How events are split: see models/README.md. Default: leave-one-out; for complete-journey global-time to train, and
        list-at-split to evaluate.
    at
        The split of the protocols in time: a share of the events (0.9) or a date. Default: 0.9; for complete-journey
        2017-12-01.
    """

    data: str = "complete-journey"
    path: Path | None = None
    map_: Annotated[list[str], Parameter(name="--map"), MANY] = field(default_factory=list)
    time: TimeOption = "auto"
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
            raise UsageError(
                f"--at is {self.at}: expected a share of the events such as 0.9, or a date"
            ) from None

    def load(self) -> "Dataset":
        """The data. Prints what was read differently or left out."""
        from headwater_models.data.datasets import load

        found = load(self.data, self.path, self.map_, self.time)
        for note in found.notes:
            say(f"{found.name}: {note}")
        for reason, rows in found.dropped.items():
            say(f"{found.name}: {rows:,} rows left out, {reason}")
        return found


_EVENTS: Final = DataOptions()


# The options of `train` that only some kinds of model take.
_GOES_WITH: Final = {
    "starter": {"--steps"},
    "table": {"--bundle"},
    "scorer": {"--bundle", "--epochs", "--set", "--search", "--study"},
    "item ids": {"--epochs", "--set", "--search", "--study", "--teacher", "--nested", "--resume"},
}


def train(
    model: ModelOption,
    *,
    out: Path,
    events: DataOptions = _EVENTS,
    bundle: Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    steps: int | None = None,
    set_: Annotated[list[str], Parameter(name="--set"), MANY] = [],  # noqa: B006 - cyclopts never changes it
    search: SearchOption | None = None,
    trials: int = 20,
    study: Path | None = None,
    teacher: Path | None = None,
    nested: Annotated[list[int], MANY] = [],  # noqa: B006 - cyclopts never changes it
    resume: Annotated[bool, FLAG] = False,
    threads: int = 1,
) -> int:
    """Train a model, export it as a bundle, and print its figures.

    Needs the extra train; starter also needs the extra export.

    Example: headwater train gru4rec --data events.csv --map user_id=customer --out my-bundle

    Parameters
    ----------
    model
        starter: item texts, on Complete Journey. deepfm, dlrm, nfm: the order of a bundle's candidates. similar: a table of
        items taken together, added to a bundle. The others: item ids, on any data.
    out
        The folder of the new bundle.
    bundle
        For deepfm, dlrm, nfm and similar: the bundle to extend. Default: the one in force (`headwater settings`).
    seed
        Of all random numbers.
    epochs
        The most epochs; default: the recipe's. For all but starter and similar.
    steps
        Training steps of starter; default: those of the shipped bundle.
    set_
        field=value of the recipe, such as fit.loss=gbce or encoder.dim=32; repeatable. Recipes are in
        headwater_models/training/recipes.py. For all but starter and similar.
    search
        Search the recipe's space by validation, and train with the best values. For all but starter and similar.
    trials
        Variants in all, including those that the study already has.
    study
        The file that keeps the search and resumes it; default: `out` with .study appended.
    teacher
        A bundle whose answers the model also learns. For the models of item ids.
    nested
        Train the first N dimensions to work alone, for `bundle lighten --dim`; repeatable. For the models of item ids.
    resume
        Continue from the checkpoint that a killed training left beside `out`.
    threads
        Threads of torch. More than one pays only on idle cores, since the threads mostly wait for each other.
    """
    from headwater_models.commands import (
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
            raise UsageError(f"{option} does not go with {model}: leave it out")
    if study is not None and search is None:
        raise UsageError(f"--study {study}: expected --search with it, which says how to search")
    if kind == "starter":
        print(train_starter(out, steps=steps, seed=seed, threads=threads, command=command_line()).id)
        return 0
    chosen, moment = events.protocol_or("global-time"), events.moment()
    training: dict[str, Any] = {"at": moment, "threads": threads, "command": command_line()}
    if kind == "table":
        base = bundle or running_settings().bundle_path
        return _print_tables(train_similar(base, events.load(), chosen, out, **training))
    training |= {"seed": seed, "epochs": _positive("--epochs", epochs), "settings": set_}
    if search is not None:
        _positive("--trials", trials)
        from headwater_models.training.search import Search

        training["search"] = Search(search, trials, study or out.with_name(f"{out.name}.study"))
    if kind == "scorer":
        base = bundle or running_settings().bundle_path
        return _print_tables(train_scorer(model, base, events.load(), chosen, out, **training))
    training |= {"teacher": teacher, "nested": nested, "resume": resume}
    return _print_tables(train_sequence(model, events.load(), chosen, out, **training))


def evaluate(
    bundle: Path | None = None,
    *,
    events: DataOptions = _EVENTS,
    with_: Annotated[Path | None, Parameter(name="--with")] = None,
    sample: int | None = None,
    seed: int = 0,
    k: int | None = None,
    baselines: Annotated[bool, FLAG] = False,
    through_the_stream: Annotated[bool, FLAG] = False,
    graph: Annotated[bool, FLAG] = False,
    threads: int = 1,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Compare a bundle with baselines on a dataset, by full ranking of its catalog.

    Example: headwater evaluate my-bundle --data events.csv --protocol leave-one-out

    Parameters
    ----------
    bundle
        Its folder; default: the one in force (`headwater settings`). With --baselines and no bundle: baselines only.
    with_
        A second bundle, judged alone and fused with the first.
    sample
        The number of questions, drawn by the seed; default: all, 10,000 for prequential.
    seed
        Of the sample.
    k
        The length of lists; default: 10 for leave-one-out, else 20.
    baselines
        Also judge ItemKNN, EASE and ALS. Needs the extra train.
    through_the_stream
        Judge the bundle offline and by asking a worker on an embedded broker; exit 0 only if both agree to 1e-3.
    graph
        With --through-the-stream: search a graph, as for large catalogs, instead of all items.
    threads
        Threads of the encoder.
    json
        Print the figures as JSON.
    """
    from headwater_models.commands import as_json, compare

    if through_the_stream and (baselines or with_ is not None):
        option = "--baselines" if baselines else "--with"
        raise UsageError(f"--through-the-stream asks about a bundle alone: leave {option} out")
    if graph and not through_the_stream:
        raise UsageError("--graph says how the stream searches: expected --through-the-stream with it")
    if bundle is None and not baselines:
        bundle = running_settings().bundle_path
    if with_ is not None and bundle is None:
        raise UsageError(
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
        return 0
    return _print_tables(results)


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
    from headwater_models.commands import as_json, progress, usual_k
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
        _print_tables(found.results)
    say(found.search)
    for measure, difference in found.apart.items():
        say(f"{measure} through the stream less offline as it serves: {difference:+.5f}")
    if not found.agree:
        raise CommandError(
            f"the stream does not say what the bundle does: expected figures at most {TOLERANCE} apart"
        )
    return 0


def _print_tables(results: "Results") -> int:
    from headwater_models.commands import tables

    for table in tables(results):
        stdout().print(table)
    return 0


def _positive(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise UsageError(f"{option} is {value}: expected a whole number from 1 on")
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
    """Tune a Hugging Face sentence encoder to items taken together, for `headwater export`.

    Needs the extra export.

    Example: headwater tune --model all-MiniLM-L6-v2 --data events.csv --out tuned

    Parameters
    ----------
    model
        A folder, or a name that transformers can load.
    out
        The folder of the tuned model, for `headwater export --model`.
    steps
        Batches of pairs; default: 200.
    rank
        Rank of the LoRA updates; default: 8; 0: all weights are trained.
    seed
        Of all random numbers.
    threads
        Threads of torch.
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


def export(*, model: str, out: Path, int8: Annotated[bool, FLAG] = False) -> int:
    """Export a Hugging Face sentence encoder as the item tower of a new bundle.

    Needs the extra export.

    Example: headwater export --model tuned --out my-bundle --int8

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

    print(export_lm(model, out, int8=int8, command=command_line()).id)
    return 0


def show(bundle: Path | None = None) -> int:
    """Check a bundle and print its manifest.

    Example: headwater bundle show my-bundle

    Parameters
    ----------
    bundle
        Its folder; default: the one in force (`headwater settings`).
    """
    import msgspec

    from headwater_models.commands import describe

    manifest = describe(bundle or running_settings().bundle_path)
    print(msgspec.json.format(msgspec.json.encode(manifest)).decode())
    return 0


def mean(*, out: Path, bundle: Path | None = None) -> int:
    """Put the training-free user encoder on the item tower of a bundle.

    Needs the extra train.

    Example: headwater bundle mean --bundle my-bundle --out mean-bundle

    Parameters
    ----------
    out
        The folder of the new bundle.
    bundle
        The bundle with the item tower; default: the one in force (`headwater settings`).
    """
    from headwater_models.commands import make_mean

    print(make_mean(bundle or running_settings().bundle_path, out, command=command_line()).id)
    return 0


def lighten(
    *,
    out: Path,
    bundle: Path | None = None,
    int8: Annotated[bool, FLAG] = False,
    fp16: Annotated[bool, FLAG] = False,
    dim: int | None = None,
    prune: float = 0.0,
) -> int:
    """Make a lighter bundle, by one or several of the options below.

    Needs the extra train.

    Example: headwater bundle lighten --bundle my-bundle --out light --int8

    Parameters
    ----------
    out
        The folder of the new bundle.
    bundle
        The bundle to lighten; default: the one in force (`headwater settings`).
    int8
        Tables and matrices in 8 bits, with a scale for each row or column.
    fp16
        Weights and arithmetic in half precision. CPUs compute in single precision anyway; a GPU may be faster.
    dim
        Keep only the first N dimensions, for bundles of `headwater train --nested`.
    prune
        Remove this share of the hidden units of each feed-forward layer.
    """
    from headwater_models import commands

    source = bundle or running_settings().bundle_path
    print(
        commands.lighten(source, out, int8=int8, fp16=fp16, dim=dim, prune=prune, command=command_line()).id
    )
    return 0


def compare(
    *bundles: Path,
    events: DataOptions = _EVENTS,
    sample: int | None = None,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Compare bundles: figures, size, and the cost of a click, an answer and a search.

    Example: headwater bundle compare my-bundle light --data events.csv

    Parameters
    ----------
    bundles
        Their folders.
    sample
        The number of questions; default: all, 10,000 for prequential.
    json
        Print the comparison as JSON.
    """
    if not bundles:
        raise UsageError("no bundle named: expected the folders of those to compare")
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
