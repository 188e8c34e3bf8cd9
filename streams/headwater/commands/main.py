"""The command line. Standard output carries results only; progress, logs and errors go to standard error.

Every error that a user can cause is one sentence with its remedy and exit code 1. Modules are imported by the
commands that need them, so that `headwater --help` answers at once.
"""

import asyncio
import faulthandler
import os
import sys
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, TypeVar

from cyclopts import App, Parameter

from headwater import __version__
from headwater.errors import HeadwaterError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from headwater.commands.import_files import Kind
    from headwater.messages import Position, Response
    from headwater.settings import Settings
    from headwater_models.data.datasets import Dataset
    from headwater_models.data.tabular_files import TimeUnit
    from headwater_models.judging.protocols import At

ActionOption = Literal[
    "click", "view", "like", "add_to_cart", "purchase", "dislike", "hide", "impression", "retract", "forget"
]
ProtocolOption = Literal["leave-one-out", "global-time", "list-at-split", "prequential"]
Many = Parameter(negative=(), consume_multiple=False)

app = App(
    name="headwater",
    help="Streaming real-time recall: a click changes the next answer, and the answer proves it.",
    version=__version__,
)
topics_app = App(name="topics", help="Create or check the topics.")
import_app = App(name="import", help="Publish a CSV, Parquet or JSON lines file.")
bundle_app = App(name="bundle", help="Show a bundle, or make one that needs no training.")
for _part in (topics_app, import_app, bundle_app):
    app.command(_part)

_EXTRA_OF: Final = {
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "safetensors": "train",
    "scipy": "train",
    "threadpoolctl": "train",
    "implicit": "train",
    "optuna": "train",
    "optimum": "export",
    "transformers": "export",
    "onnxruntime": "cpu",
}
_BROKER_TIMEOUT_S: Final = 10.0
Result = TypeVar("Result")


class CommandError(HeadwaterError):
    """A command cannot do what was asked: one sentence with the remedy."""


def main() -> NoReturn:
    """The console script."""
    if sys.stderr is not None:
        faulthandler.enable()  # where native code ends the process, it ends with the place
    try:
        code = app(result_action="return_value")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our output has enough (`headwater metrics | head`); what is buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(
            f"{error.name} is not installed: install Headwater with its extra `{extra}`: pip install 'headwater[{extra}]'"
        )
    except HeadwaterError as error:
        _fail(" ".join(str(error).split()))
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(sentence: str) -> NoReturn:
    print(f"headwater: {sentence}", file=sys.stderr)
    raise SystemExit(1)


# Running the system


@app.command
def demo(*, once: bool = False, json: bool = False, events: str = "300000") -> int:
    """Everything on embedded parts and real data, then live clicks and answers until Ctrl-C.

    Parameters
    ----------
    once
        Stop after the summary; exit 0 only if every ask was answered and reflected its click.
    json
        Print the summary as one JSON object.
    events
        How many of the last purchases to publish as history, or `all` (1.47 million).
    """
    from headwater.commands.demo import run
    from headwater.settings import Settings

    if events != "all" and not (events.isdecimal() and int(events) > 0):
        raise CommandError(f"--events is {events}: expected a number of purchases, or all")
    _quiet_aiokafka()
    count = None if events == "all" else int(events)
    return _run(run(Settings.load(), once=once, as_json=json, events=count))


@app.command
def up() -> int:
    """A broker (embedded unless one is configured), the topics, and one worker of all roles."""
    from headwater import run_file
    from headwater.kafka import topics
    from headwater.settings import Settings
    from headwater.worker.worker import configure_logging, serve

    settings = Settings.load()
    configure_logging(settings)
    with ExitStack() as stack:
        if not settings.kafka_bootstrap_servers:
            from headwater.kafka.embedded_broker import EmbeddedBroker

            if (run := run_file.read(settings)) is not None:
                raise CommandError(
                    f"another Headwater runs in {settings.data_dir} (process {run.pid}): stop it, or set "
                    "HEADWATER_DATA_DIR to another folder"
                )
            broker = stack.enter_context(EmbeddedBroker(settings.data_dir))
            settings = settings.model_copy(update={"kafka_bootstrap_servers": broker.bootstrap_servers})

        async def beside(worker: Any) -> None:
            web = f"http://{worker.web_address}"
            with run_file.written(settings, web=web, bundle_id=worker.bundle_id):
                await worker.ready.wait()
                _say(f"ready: {web}/metrics, bundle {worker.bundle_id}; Ctrl-C stops it")
                await worker.failed()

        async def serving() -> int:
            created = await topics.create(settings)
            _say(f"broker {settings.bootstrap_servers}, {len(created)} topics created")
            return await serve(settings, "all", beside)

        return _run(serving())


@app.command
def worker(*, role: Literal["all", "interests", "catalog"] = "all") -> int:
    """One worker against a configured broker; SIGTERM drains and stops it.

    Parameters
    ----------
    role
        interests: clicks and requests. catalog: encoding and indexing. all: both in one process.
    """
    from headwater.client import running_system
    from headwater.worker.worker import configure_logging, serve

    settings = running_system()
    configure_logging(settings)
    return _run(serve(settings, role))


@topics_app.command
def create() -> int:
    """Create the topics that are missing, then check all of them."""
    from headwater.kafka import topics

    settings = _settings()

    async def creating() -> tuple[list[str], list[Any]]:
        await _soon(
            topics.check(settings), settings
        )  # a broker that is silent is told at once; creating may take long
        return await topics.create(settings), await topics.check(settings)

    created, problems = _run(creating())
    for name in created:
        print(f"created {name}")
    if not created:
        print("nothing to create")
    return _told(problems)


@topics_app.command
def check() -> int:
    """Compare the topics with what they have to be, and say what to do."""
    from headwater.kafka import topics

    settings = _settings()
    problems = _run(_soon(topics.check(settings), settings))
    if not problems:
        print("all topics are as they have to be")
    return _told(problems)


def _told(problems: list[Any]) -> int:
    for problem in problems:
        print(f"{'error' if problem.fatal else 'note'}: {problem}", file=sys.stderr)
    return 1 if any(problem.fatal for problem in problems) else 0


# Publishing and asking


@import_app.command
def catalog(
    file: Path,
    *,
    map_: Annotated[list[str], Parameter(name="--map"), Many] = [],  # noqa: B006 - cyclopts never changes it
    skip_bad: bool = False,
) -> int:
    """Publish a file of items.

    Parameters
    ----------
    map_
        field=column, such as --map item_id=sku --map attributes.colour=color; repeatable. Tags split on |.
    skip_bad
        Exit 0 although some rows could not be published.
    """
    return _import("catalog", file, map_, "auto", skip_bad)


@import_app.command
def clicks(
    file: Path,
    *,
    map_: Annotated[list[str], Parameter(name="--map"), Many] = [],  # noqa: B006 - cyclopts never changes it
    time: Literal["auto", "iso", "seconds", "ms"] = "auto",
    skip_bad: bool = False,
) -> int:
    """Publish a file of events.

    Parameters
    ----------
    map_
        field=column, such as --map user_id=customer --map at_ms=timestamp; repeatable.
    time
        What the times are: ISO text (without a zone: UTC), or numbers of seconds or milliseconds.
    skip_bad
        Exit 0 although some rows could not be published.
    """
    return _import("clicks", file, map_, time, skip_bad)


def _import(kind: "Kind", file: Path, maps: list[str], unit: "TimeUnit", skip_bad: bool) -> int:
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from headwater.commands import import_files
    from headwater_models.data import tabular_files

    settings = _settings()
    table = tabular_files.read(file)
    columns = import_files.mapping(kind, table.columns, maps)
    unused = [name for name in table.columns if name not in columns.values()]
    _say(
        f"{file}: {len(table):,} rows; {', '.join(f'{name}={column}' for name, column in columns.items())}"
        + (f"; not used: {', '.join(unused)}" if unused else "")
    )
    if kind == "clicks":
        prepared = import_files.prepared_clicks(table, columns, now_ms=int(time.time() * 1000), unit=unit)
    else:
        prepared = import_files.prepared_items(table, columns, unit=unit)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_stderr(),
    )
    with bar:
        task = bar.add_task(f"publishing {kind}", total=len(prepared.rows))
        report = _run(
            import_files.publish(settings, kind, prepared, lambda done: bar.update(task, completed=done))
        )
    for bad in report.first_bad:
        print(f"row {bad.number}: {bad.reason}", file=sys.stderr)
    if report.bad > len(report.first_bad):
        print(f"... and {report.bad - len(report.first_bad):,} more", file=sys.stderr)
    rate = report.published / report.seconds if report.seconds else 0.0
    print(f"published {report.published:,} of {report.rows:,} rows in {report.seconds:.1f} s ({rate:,.0f}/s)")
    if report.bad and not skip_bad:
        raise CommandError(
            f"{report.bad:,} rows of {file} were not published: correct them, or accept it with --skip-bad"
        )
    return 0


@app.command
def click(
    user: str,
    item: str = "",
    *,
    action: ActionOption = "click",
    at_ms: int | None = None,
    event_id: str | None = None,
) -> int:
    """Publish one event of a user; prints its partition and offset. `ask` then waits for it.

    Parameters
    ----------
    at_ms
        When it happened, in milliseconds since 1970; default: now.
    event_id
        Default: a new one. For retract: the event to take back.
    """
    from headwater.client import Client

    settings = _settings()

    async def clicking() -> "Position":
        async with Client(settings) as client:
            return await client.click(user, item, action, at_ms=at_ms, event_id=event_id)

    place = _run(clicking())
    _LastClicks(settings).put(user, place)
    print(f"{place.partition}:{place.offset}")
    return 0


@app.command
def ask(
    user: str,
    *,
    limit: int = 10,
    after: str | None = None,
    after_event_id: str | None = None,
    no_wait: Annotated[bool, Parameter(negative=())] = False,
    filter_: Annotated[str | None, Parameter(name="--filter")] = None,
    exclude: Annotated[list[str], Many] = [],  # noqa: B006 - cyclopts never changes it
    include_seen: Annotated[bool, Parameter(negative=())] = False,
    query: str = "",
    session: Annotated[list[str], Many] = [],  # noqa: B006 - cyclopts never changes it
    diversity: float = 0.0,
    deadline_ms: int = 2_000,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Ask for items for a user, and wait for the last click made by `headwater click` to count.

    Parameters
    ----------
    after
        P:O, a partition and offset of the clicks topic that the answer has to reflect.
    after_event_id
        Instead, the id of an event that it has to reflect.
    no_wait
        Do not wait for the last click.
    filter_
        JSON over the catalog's fields, such as '{"category": "garden", "price": {"lt": 20}}'.
    exclude
        An item that must not come; repeatable.
    include_seen
        Items the user has seen may come again.
    query
        Free text.
    session
        An item as if it had just been clicked, without storing it; repeatable.
    diversity
        0 (best first) to 1 (as different as possible).
    json
        Print the whole answer as JSON.
    """
    import msgspec

    from headwater.client import Client
    from headwater.messages import SessionEvent, encode

    settings = _settings()
    where = None
    if filter_ is not None:
        try:
            where = msgspec.json.decode(filter_)
        except msgspec.DecodeError as error:
            raise CommandError(
                f'--filter is {filter_}: expected JSON such as \'{{"category": "garden"}}\' ({error})'
            ) from None
        if not isinstance(where, dict):
            raise CommandError(
                f'--filter is {filter_}: expected a JSON object such as \'{{"category": "garden"}}\''
            )
    place = _place(after) if after is not None else None
    if place is None and after_event_id is None and not no_wait:
        place = _LastClicks(settings).get(user)

    async def asking() -> "Response":
        async with Client(settings) as client:
            return await client.recall(
                user,
                limit=limit,
                filter=where,
                exclude=exclude,
                exclude_seen=not include_seen,
                diversity=diversity,
                query=query,
                session=[SessionEvent(item_id) for item_id in session],
                explain=True,
                after=place,
                after_event_id=after_event_id,
                deadline_ms=deadline_ms,
            )

    response = _run(asking())
    if json:
        print(encode(response).decode())
    else:
        _stdout().print(_answer_table(response))
        _stdout().print(_reflected(response), highlight=False)
    return 0


def _place(text: str) -> "Position":
    from headwater.messages import Position

    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise CommandError(f"--after is {text}: expected partition:offset, as `headwater click` prints it")
    return Position(int(partition), int(offset))


def _answer_table(response: "Response") -> "Table":
    from rich.table import Table

    table = Table("#", "item", "score", "source", "because of", box=None, pad_edge=False)
    for rank, item in enumerate(response.items, 1):
        because = ", ".join(
            f"{reason.action} {reason.item_id} {reason.share:.0%}" for reason in item.because[:3]
        )
        table.add_row(str(rank), item.item_id, f"{item.score:.4f}", item.source, because)
    return table


def _reflected(response: "Response") -> str:
    proof = response.reflects
    words = f"{response.status}{f' ({response.rung})' if response.rung else ''}"
    if proof is not None:
        words += f", reflects {proof.events} events up to {proof.partition}:{proof.offset}"
        if proof.last_event_id:
            words += f", last event {proof.last_event_id}"
        if proof.pending:
            words += f", {proof.pending} pending (their items have no vector yet)"
    return f"{words}, {response.timings_ms.get('total', 0.0):.1f} ms in the worker"


@app.command
def user(user: str, *, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """What is known of a user: events, pending ones, the watermark of the partition.

    Parameters
    ----------
    json
        Print it as JSON.
    """
    import time
    from urllib.parse import quote

    import msgspec
    from rich.table import Table

    status, body = _get(_web_address(), f"/users/{quote(user, safe='')}")
    if status != 200:
        raise CommandError(
            f"no user {user} at the worker that was asked: expected one with events in a partition of that worker; "
            "try `headwater click` first, or look at the dead letters"
        )
    if json:
        print(body.decode())
        return 0
    found = msgspec.json.decode(body)
    table = Table("when", "action", "item", "title", "", box=None, pad_edge=False)
    for event in reversed(found["events"]):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["at_ms"] / 1000))
        pending = "pending" if event["pending"] else ""
        table.add_row(when, event["action"], event["item_id"] or "?", event["title"] or "", pending)
    _stdout().print(table)
    _stdout().print(
        f"{len(found['events'])} events, {found['pending']} pending, partition {found['partition']}, watermark "
        f"{found['watermark']}, last event {found['last_event_id']}, {found.get('counters', 0)} items counted from before",
        highlight=False,
    )
    return 0


# Reference


@app.command
def schema(message: str | None = None) -> int:
    """Print the JSON Schema of one message, or of all by name.

    Parameters
    ----------
    message
        Click, Item, Request, Response, ItemVector or Trend.
    """
    import msgspec

    from headwater.messages import schemas

    known = schemas()
    if message is not None and message not in known:
        raise CommandError(f"{message} is no message: expected one of {', '.join(known)}")
    chosen = known[message] if message is not None else dict(known)
    print(msgspec.json.format(msgspec.json.encode(chosen)).decode())
    return 0


@app.command
def metrics() -> int:
    """Print what every metric means, and what to do when it looks wrong (Markdown)."""
    from headwater.metrics import reference

    print(reference(), end="")
    return 0


@app.command
def doctor() -> int:
    """Look at broker, topics, co-partitioning, groups, lag, index and bundle; say what is wrong and what to do."""
    from headwater.commands.doctor import examine

    settings = _settings()
    findings = _run(examine(settings, _running_web()))
    for finding in findings:
        print(finding)
    return 1 if any(not finding.ok for finding in findings) else 0


# Models


@Parameter(name="*")
@dataclass(frozen=True)
class Asked:
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
    map_: Annotated[list[str], Parameter(name="--map"), Many] = field(default_factory=list)
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
            _say(f"{found.name}: {note}")
        for reason, rows in found.dropped.items():
            _say(f"{found.name}: {rows:,} rows left out, {reason}")
        return found


_ASKED: Final = Asked()

# Which options of `train` go with which kind of model, beside those that go with all.
_GOES_WITH: Final = {
    "starter": {"--steps"},
    "table": {"--bundle"},
    "scorer": {"--bundle", "--epochs", "--set", "--search", "--study"},
    "item ids": {"--epochs", "--set", "--search", "--study", "--teacher", "--nested", "--resume"},
}


@app.command
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
    asked: Asked = _ASKED,
    bundle: Path | None = None,
    seed: int = 0,
    epochs: int | None = None,
    steps: int | None = None,
    set_: Annotated[list[str], Parameter(name="--set"), Many] = [],  # noqa: B006 - cyclopts never changes it
    search: Literal["grid", "random", "tpe"] | None = None,
    trials: int = 20,
    study: Path | None = None,
    teacher: Path | None = None,
    nested: Annotated[list[int], Many] = [],  # noqa: B006 - cyclopts never changes it
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
    chosen = asked.protocol_or("global-time")
    command = f"headwater train {model} --data {asked.data} --protocol {chosen} --seed {seed}"
    command += (f" --at {asked.at}" if asked.at else "") + (f" --epochs {epochs}" if epochs else "")
    command += "".join(f" --set {one}" for one in set_)
    training: dict[str, Any] = {
        "at": asked.moment(),
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
        command = f"headwater train similar --data {asked.data} --protocol {chosen}"
        command += f" --at {asked.at}" if asked.at else ""
        results = train_similar(
            bundle or _settings().bundle_path,
            asked.load(),
            chosen,
            out,
            at=asked.moment(),
            threads=threads,
            command=command,
        )
    elif kind == "scorer":
        base = bundle or _settings().bundle_path
        results = train_scorer(model, base, asked.load(), chosen, out, **training)
    else:
        training["command"] += f" --teacher {teacher}" if teacher else ""
        training["command"] += "".join(f" --nested {dim}" for dim in nested)
        results = train_sequence(
            model, asked.load(), chosen, out, teacher=teacher, nested=nested, resume=resume, **training
        )
    for table in tables(results):
        _stdout().print(table)
    return 0


@app.command
def evaluate(
    bundle: Path | None = None,
    *,
    asked: Asked = _ASKED,
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
        bundle = _settings().bundle_path
    if with_ is not None and bundle is None:
        raise CommandError(
            f"--with {with_}: expected a bundle to go with it, `headwater evaluate BUNDLE --with {with_}`"
        )
    length, questions, at = _positive("--k", k), _positive("--sample", sample), asked.moment()
    if through_the_stream:
        assert bundle is not None
        return _evaluate_through_the_stream(
            bundle, asked, questions, seed, length, threads, graph=graph, json=json
        )
    results = compare(
        bundle,
        asked.load(),
        asked.protocol_or("list-at-split"),
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
            _stdout().print(table)
    return 0


def _evaluate_through_the_stream(
    bundle: Path,
    asked: Asked,
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

    _quiet_aiokafka()
    protocol, data = asked.protocol_or("list-at-split"), asked.load()
    questions = split(data, protocol, asked.moment(), sample, seed)
    settings = Settings.load(encoder_threads=threads)
    with progress() as report:
        found = _run(
            compare(settings, bundle, data, questions, k or usual_k(protocol), seed, report, graph=graph)
        )
    if json:
        print(as_json(found.results).decode())
    else:
        for table in tables(found.results):
            _stdout().print(table)
    _say(found.search)
    for measure, difference in found.apart.items():
        _say(f"{measure} through the stream less offline as it serves: {difference:+.5f}")
    if not found.agree:
        raise CommandError(
            f"the stream does not say what the bundle does: expected figures at most {TOLERANCE} apart"
        )
    return 0


def _positive(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise CommandError(f"{option} is {value}: expected a whole number from 1 on")
    return value


@app.command
def tune(
    *,
    model: str,
    out: Path,
    asked: Asked = _ASKED,
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
        asked.load(),
        asked.protocol_or("global-time"),
        out,
        at=asked.moment(),
        steps=_positive("--steps", steps),
        rank=rank,
        seed=seed,
        threads=threads,
    )
    print(out)
    return 0


@app.command
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


@bundle_app.command
def show(bundle: Path | None = None) -> int:
    """Check a bundle and print its manifest.

    Parameters
    ----------
    bundle
        Its folder; default: the one that is set, else the shipped starter.
    """
    import msgspec

    from headwater_models.commands import describe

    manifest = describe(bundle or _settings().bundle_path)
    print(msgspec.json.format(msgspec.json.encode(manifest)).decode())
    return 0


@bundle_app.command
def mean(*, out: Path, bundle: Path | None = None) -> int:
    """The item tower of a bundle under the training-free user encoder. Needs the extra train.

    Parameters
    ----------
    bundle
        Whose item tower; default: the one that is set, else the shipped starter.
    """
    from headwater_models.commands import make_mean

    print(make_mean(bundle or _settings().bundle_path, out).id)
    return 0


@bundle_app.command
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
    source = bundle or _settings().bundle_path
    print(commands.lighten(source, out, int8=int8, fp16=fp16, dim=dim, prune=prune, command=command).id)
    return 0


@bundle_app.command
def compare(
    *bundles: Path,
    asked: Asked = _ASKED,
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

    protocol = asked.protocol_or("list-at-split")
    found = commands.weigh(
        bundles, asked.load(), protocol, at=asked.moment(), sample=_positive("--sample", sample)
    )
    if json:
        print(commands.as_json(found).decode())
    else:
        _stdout().print(commands.weighed_table(found, f"{asked.data}, {protocol}"))
    return 0


# Shared by the commands


def _settings() -> "Settings":
    """Settings of the system that runs in this folder; of the environment where none does."""
    from headwater.client import running_system

    _quiet_aiokafka()
    return running_system()


def _running_web() -> str | None:
    """host:port of the running worker's web, if it can be told."""
    from headwater import run_file

    settings = _settings()
    run = run_file.read(settings)
    if run is not None and run.web:
        return run.web.removeprefix("http://")
    return f"127.0.0.1:{settings.web_port}" if settings.web_port else None


def _web_address() -> str:
    if (address := _running_web()) is None:
        raise CommandError(
            "no running worker is known here: start one with `headwater up`, or set HEADWATER_WEB_PORT to the port "
            "of a worker on this machine"
        )
    return address


def _get(address: str, path: str) -> tuple[int, bytes]:
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException) as error:
        raise CommandError(
            f"no answer from the worker at http://{address} ({error}): is it still running? See `headwater doctor`"
        ) from error
    finally:
        connection.close()


class _LastClicks:
    """The last click of each user that this machine published, so that `ask` in another process waits for it.

    Positions mean something on one broker only, so the file forgets them when it meets another one.
    """

    _KEPT: Final = 1_000

    def __init__(self, settings: "Settings") -> None:
        from headwater import run_file

        run = run_file.read(settings)
        self._path = settings.data_dir / "last-clicks.json"
        # An embedded broker starts empty each time, perhaps on the same port.
        self._system = [
            settings.bootstrap_servers,
            settings.topic_prefix,
            f"{run.pid}-{run.pid_started}" if run else "",
        ]

    def get(self, user: str) -> "Position | None":
        from headwater.messages import Position

        place = self._read().get(user)
        return Position(*place) if place else None

    def put(self, user: str, place: "Position") -> None:
        import msgspec

        known = self._read()
        known.pop(user, None)
        known[user] = (place.partition, place.offset)
        kept = dict(list(known.items())[-self._KEPT :])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_bytes(msgspec.json.encode({"system": self._system, "clicks": kept}))
        draft.replace(self._path)

    def _read(self) -> dict[str, tuple[int, int]]:
        import msgspec

        class File(msgspec.Struct):
            system: list[str]
            clicks: dict[str, tuple[int, int]]

        try:
            file = msgspec.json.decode(self._path.read_bytes(), type=File)
        except (OSError, msgspec.DecodeError):
            return {}
        return file.clicks if file.system == self._system else {}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stdout() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty())


def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    import uvloop

    return uvloop.run(work)


def _quiet_aiokafka() -> None:
    """For commands that end with a sentence: what aiokafka logs on the way to it is in that sentence."""
    import logging

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


async def _soon(work: Coroutine[Any, Any, Result], settings: "Settings") -> Result:
    try:
        return await asyncio.wait_for(work, _BROKER_TIMEOUT_S)
    except TimeoutError as error:
        raise CommandError(
            f"no answer from the Kafka broker at {settings.bootstrap_servers} within {_BROKER_TIMEOUT_S:g} s: start one "
            "(`headwater up`), or set HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
        ) from error


if __name__ == "__main__":
    main()
