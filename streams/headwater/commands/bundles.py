"""`headwater evaluate` and `bundle`: judge bundles, and make them without training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from headwater.commands.case_data import CASES, CaseOptions
from headwater.commands.event_data import EVENTS, DataOptions, positive, print_tables
from headwater.commands.terminal import (
    FLAG,
    CommandError,
    UsageError,
    command_line,
    default_bundle,
    print_indented,
    print_json,
    quiet_aiokafka,
    run_async,
    say,
    stdout,
)

if TYPE_CHECKING:
    from headwater_models.data.datasets import Dataset
    from headwater_models.judging.protocols import Split


def evaluate(
    bundle: Path | None = None,
    *,
    events: DataOptions = EVENTS,
    questions: CaseOptions = CASES,
    with_: Annotated[Path | None, Parameter(name="--with")] = None,
    sample: int | None = None,
    seed: int = 0,
    k: int | None = None,
    baselines: Annotated[bool, FLAG] = False,
    delay: str | None = None,
    through_the_stream: Annotated[bool, FLAG] = False,
    graph: Annotated[bool, FLAG] = False,
    threads: int = 1,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Compare a bundle with baselines on a dataset, or on a file of cases, by full ranking of the catalog.

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
        Seed of the sample.
    k
        Length of the lists; default: 10 for leave-one-out, next-basket and cases, else 20.
    baselines
        Also judge ItemKNN, EASE and ALS, or TIFU-KNN for next-basket. Needs the extra train.
    delay
        Report what freshness is worth: recall as served if clicks counted only after each of these delays, such as
        0s,1m,10m,1h,1d. By the protocol prequential.
    through_the_stream
        Judge the bundle offline and by asking a worker on an embedded broker; exit 0 only if both agree to 1e-3.
    graph
        With --through-the-stream: search a graph instead of all items, as large catalogs do.
    threads
        Threads of the encoder.
    json
        Print the figures as JSON.
    """
    from headwater_models.commands import as_json, judge

    questions.check(events)
    if through_the_stream and (baselines or with_ is not None):
        option = "--baselines" if baselines else "--with"
        raise UsageError(f"--through-the-stream asks about a bundle alone: leave {option} out")
    if graph and not through_the_stream:
        raise UsageError("--graph says how the stream searches: expected --through-the-stream with it")
    if bundle is None and not baselines:
        bundle = default_bundle()
    if with_ is not None and bundle is None:
        raise UsageError(
            f"--with {with_}: expected a bundle to go with it, `headwater evaluate BUNDLE --with {with_}`"
        )
    length, count = positive("--k", k), positive("--sample", sample)
    if delay is not None:
        if (
            baselines
            or with_ is not None
            or through_the_stream
            or questions.cases is not None
            or bundle is None
        ):
            raise UsageError(
                f"--delay {delay}: it is about a bundle alone, by the protocol prequential; leave --baselines, --with, "
                "--through-the-stream and --cases out"
            )
        return _tell_freshness(bundle, events, delay, count, seed, length, threads, json=json)
    data, asked = _asked(events, questions, count, seed)
    if bundle is not None:
        _tell_known(bundle, data)
    if through_the_stream:
        assert bundle is not None
        return _evaluate_through_the_stream(
            bundle, data, asked, seed, length, threads, graph=graph, json=json
        )
    results = judge(bundle, data, asked, other=with_, seed=seed, k=length, learned=baselines, threads=threads)
    if json:
        print_json(as_json(results))
        return 0
    return print_tables(results)


def _tell_freshness(
    bundle: Path,
    events: DataOptions,
    delay: str,
    sample: int | None,
    seed: int,
    k: int | None,
    threads: int,
    *,
    json: bool,
) -> int:
    from headwater_models import commands
    from headwater_models.judging.freshness import delays_of, of_bundle
    from headwater_models.judging.protocols import split

    delays_ms, at = delays_of(delay), events.moment()
    data = events.load()
    asked = split(data, events.protocol or "prequential", at, sample, seed)
    found = of_bundle(bundle, data, asked, delays_ms, k=k, seed=seed, threads=threads)
    if json:
        print_json(commands.as_json(found))
    else:
        stdout().print(commands.freshness_table(found))
    return 0


def _asked(
    events: DataOptions, questions: CaseOptions, sample: int | None, seed: int
) -> "tuple[Dataset, Split]":
    """The data, and what is asked of it: the cases of a file, or the questions of a protocol."""
    from headwater_models.judging.protocols import split

    if questions.cases is not None:
        return questions.load(events, sample, seed)
    at = events.moment()
    data = events.load() if questions.catalog is None else questions.shop(events)
    return data, split(data, events.protocol_or("list-at-split"), at, sample, seed)


def _tell_known(bundle: Path, data: "Dataset") -> None:
    """Say it where a bundle has learned from the events that it is asked for. Raises BundleError: there is no bundle."""
    from headwater.encoder.bundle import manifest_bytes, manifest_of
    from headwater_models.bundles.export import FROM_ALL

    origin = manifest_of(bundle, manifest_bytes(bundle)).origin
    if origin.data_sha256 == data.fingerprint and any(note.startswith(FROM_ALL) for note in origin.notes):
        say(
            f"{bundle} has learned from all of these events, so it knows the answers and its figures here are too high; "
            f"those of events that it had not learned are in `headwater bundle show {bundle}`"
        )


def _evaluate_through_the_stream(
    bundle: Path,
    data: "Dataset",
    asked: "Split",
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

    quiet_aiokafka()
    settings = Settings.load(encoder_threads=threads)
    with progress() as report:
        found = run_async(
            compare(settings, bundle, data, asked, k or usual_k(asked.protocol), seed, report, graph=graph)
        )
    if json:
        print_json(as_json(found.results))
    else:
        print_tables(found.results)
    say(found.search)
    for measure, difference in found.apart.items():
        say(f"{measure} through the stream less offline as it serves: {difference:+.5f}")
    if not found.agree:
        raise CommandError(
            f"the stream does not say what the bundle does: expected figures at most {TOLERANCE} apart"
        )
    return 0


def show(bundle: Path | None = None) -> int:
    """Check a bundle and print its manifest.

    Example: headwater bundle show my-bundle

    Parameters
    ----------
    bundle
        Its folder; default: the one in force (`headwater settings`).
    """

    from headwater_models.commands import describe

    manifest = describe(bundle or default_bundle())
    print_indented(manifest)
    return 0


def compare(
    *bundles: Path,
    events: DataOptions = EVENTS,
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
        bundles, events.load(), protocol, at=events.moment(), sample=positive("--sample", sample)
    )
    if json:
        print_json(commands.as_json(found))
    else:
        stdout().print(commands.weighed_table(found, f"{events.data}, {protocol}"))
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

    print(make_mean(bundle or default_bundle(), out, command=command_line()).id)
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
        Quantize tables and matrices to 8 bits, with a scale for each row or column.
    fp16
        Keep weights in half precision. CPUs compute in single precision anyway; a GPU may be faster.
    dim
        Keep only the first N dimensions, for bundles of `headwater train --nested`.
    prune
        Remove this share of the hidden units of each feed-forward layer.
    """
    from headwater_models import commands

    source = bundle or default_bundle()
    print(
        commands.lighten(source, out, int8=int8, fp16=fp16, dim=dim, prune=prune, command=command_line()).id
    )
    return 0
