"""The command line as its users meet it: processes, what they print where, how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import jsonschema
import pytest

from headwater.commands.ask import ActionOption
from headwater.commands.models import ProtocolOption
from headwater.kafka import topics
from headwater.messages import ACTIONS, schemas
from headwater.metrics import DEFINITIONS
from headwater.settings import Settings
from headwater_models.judging.protocols import Protocol
from tests.support.checkout import ROOT


class Terminal:
    """A shell in a folder of its own, with no settings but the given ones."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
        own = {
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "XDG_STATE_HOME": str(folder / "state"),
        }
        self.environment = {**kept, **own, **settings}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "headwater.commands.main", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def succeeds(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, *arguments: str) -> str:
        """The sentence: one line, with our name before it, and nothing on standard output."""
        done = self.run(*arguments)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        last = done.stderr.splitlines()[-1]
        assert last.startswith("headwater: ")
        return last


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    return Terminal(tmp_path)


# Without a broker


def test_a_bundle_is_judged_on_a_file_of_events(terminal: Terminal) -> None:
    drinks = [("tea", "Green tea"), ("milk", "Whole milk"), ("beer", "Lager beer"), ("wine", "Red wine")]
    rows = [
        f"{user},{item},{1_700_000_000_000 + 60_000 * (user + n)},{title}"
        for user in range(6)
        for n, (item, title) in enumerate(drinks)
    ]
    (terminal.folder / "events.csv").write_text("\n".join(["who,item_id,at_ms,title", *rows, ",tea,1,Tea"]))
    arguments = ("evaluate", "--data", "events.csv", "--map", "user_id=who", "--k", "2")
    found = json.loads(terminal.succeeds(*arguments, "--json"))
    assert (found["protocol"], found["dropped"]) == ("leave-one-out", {"no user or no item": 1})
    counted = {"popular", "popular in the last week", "popular texts", "buy again"}
    assert set(found["methods"]) == {"starter", "starter: similar", "starter and similar", *counted}
    quality = found["methods"]["starter"]["all"]
    assert (quality["targets"], quality["hit"]["value"]) == (6, 1.0)  # three of four drinks are seen
    assert "hit@2" in terminal.succeeds(*arguments)


def test_the_choices_are_those_of_the_code() -> None:
    """They are written out once more for the help, which imports nothing heavy."""
    assert get_args(ActionOption) == tuple(ACTIONS)
    assert get_args(ProtocolOption) == get_args(Protocol)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = """
import sys
from headwater.commands.main import app
print(sorted({"faust", "onnxruntime", "polars", "aiokafka", "numpy", "qdrant_client"} & set(sys.modules)))
app(["--help"], result_action="return_value")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("[]\n")
    for command in (
        "demo", "up", "worker", "topics", "import", "click", "ask", "user", "schema", "metrics", "doctor", "train",
        "evaluate", "tune", "export", "bundle",
    ):  # fmt: skip
        assert f" {command} " in done.stdout


def test_schemas_are_printed_one_or_all(terminal: Terminal) -> None:
    assert json.loads(terminal.succeeds("schema")) == json.loads(json.dumps(dict(schemas())))
    click = json.loads(terminal.succeeds("schema", "Click"))
    validator = jsonschema.Draft202012Validator(click)
    good = {"event_id": "e", "user_id": "ann", "item_id": "x", "at_ms": 1_700_000_000_000}
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "action": "buy"})


def test_the_metrics_reference_has_every_metric(terminal: Terminal) -> None:
    printed = terminal.succeeds("metrics")
    for definition in DEFINITIONS:
        assert f"`{definition.exposed_name}" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["schema", "Clicks"], "Clicks is no message: expected one of Click, Item"),
        (
            ["import", "clicks", "nowhere.csv"],
            "nowhere.csv is no file: expected a CSV, Parquet or JSON lines file",
        ),
        (["ask", "ann", "--after", "3"], "--after is 3: expected partition:offset"),
        (["ask", "ann", "--filter", "{"], "--filter is {: expected JSON"),
        (["ask", "ann", "--filter", "[1]"], "--filter is [1]: expected a JSON object"),
        (["demo", "--events", "many"], "--events is many: expected a number of purchases, or all"),
        (["user", "ann"], "no running worker is known here: start one with `headwater up`"),
        (["bundle", "show", "."], "bundle"),
        (["evaluate", "--data", "movielens"], "movielens is no dataset: expected complete-journey"),
        (["evaluate", "--data", "nowhere.csv"], "nowhere.csv is no file: expected a CSV"),
        (["evaluate", "--at", "noon"], "--at is noon: expected a share of the events such as 0.9, or a date"),
        (["bundle", "compare"], "no bundle named: expected the folders of those to compare"),
        (["evaluate", "--through-the-stream", "--with", "other"], "leave --with out"),
        (["train", "nfm", "--out", "b", "--resume"], "--resume does not go with nfm: leave it out"),
        (["train", "lru", "--out", "b", "--study", "s"], "--study s: expected --search with it"),
        (["evaluate", "--k", "0"], "--k is 0: expected a whole number from 1 on"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_remedy(
    terminal: Terminal, arguments: list[str], sentence: str
) -> None:
    assert sentence in terminal.fails(*arguments)


def test_a_missing_column_is_named_with_those_that_are_there(terminal: Terminal) -> None:
    (terminal.folder / "c.csv").write_text("who,item_id,when\nann,x,1700000000\n")
    assert "no column for user_id, at_ms: the file has who, item_id, when" in terminal.fails(
        "import", "clicks", "c.csv"
    )


def test_a_wrong_setting_is_one_sentence(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, HEADWATER_PARTITIONS="many")
    assert "HEADWATER_PARTITIONS is 'many': expected" in terminal.fails("topics", "check")


@pytest.mark.parametrize(
    "arguments",
    [
        ["topics", "create"],
        ["topics", "check"],
        ["click", "ann", "x"],
        ["ask", "ann"],
        ["worker"],
        ["import", "clicks", "c.csv"],
    ],
    ids=" ".join,
)
def test_a_broker_that_is_down_is_one_sentence_with_its_remedy(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "c.csv").write_text("user_id,item_id,at_ms\nann,x,1700000000\n")
    terminal = Terminal(tmp_path, HEADWATER_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    sentence = terminal.fails(*arguments)
    assert "127.0.0.1:1" in sentence
    assert "HEADWATER_KAFKA_BOOTSTRAP_SERVERS" in sentence


@pytest.mark.parametrize(
    "arguments", [["topics", "create"], ["click", "ann", "x"], ["import", "clicks", "c.csv"]], ids=" ".join
)
def test_a_broker_that_takes_connections_and_says_nothing_is_told_too(
    tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "c.csv").write_text("user_id,item_id,at_ms\nann,x,1700000000\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        sentence = Terminal(tmp_path, HEADWATER_KAFKA_BOOTSTRAP_SERVERS=address).fails(*arguments)
    assert f"no answer from the Kafka broker at {address}" in sentence
    assert "10 s" in sentence


def test_the_doctor_says_that_the_broker_is_down(tmp_path: Path) -> None:
    done = Terminal(tmp_path, HEADWATER_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1").run("doctor")
    assert done.returncode == 1
    first, *rest = done.stdout.splitlines()
    assert first.startswith("WRONG  broker: ")
    assert any(line.startswith("ok     bundle: ") for line in rest)


# On a broker


async def test_a_topic_with_the_wrong_partition_count_is_reported_with_the_remedy(
    settings: Settings, tmp_path: Path
) -> None:
    await topics.create(settings.model_copy(update={"partitions": 3}))
    terminal = Terminal(
        tmp_path,
        HEADWATER_KAFKA_BOOTSTRAP_SERVERS=settings.bootstrap_servers,
        HEADWATER_TOPIC_PREFIX=settings.topic_prefix,
    )
    for command in ("check", "create"):
        done = terminal.run("topics", command)
        assert done.returncode == 1
        assert f"error: {settings.topic_prefix}clicks.v1: 3 partitions, expected 4" in done.stderr
        assert "set HEADWATER_PARTITIONS=3" in done.stderr
    assert "3 partitions, expected 4" in terminal.fails("worker", "--role", "interests")


async def test_the_doctor_says_that_no_worker_runs(settings: Settings, tmp_path: Path) -> None:
    await topics.create(settings)
    done = Terminal(
        tmp_path,
        HEADWATER_KAFKA_BOOTSTRAP_SERVERS=settings.bootstrap_servers,
        HEADWATER_TOPIC_PREFIX=settings.topic_prefix,
    ).run("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok     topics: all there") for line in lines)
    for group, role in ((settings.interests_group, "interests"), (settings.catalog_group, "catalog")):
        assert any(
            line.startswith(f"WRONG  group {group}: no worker; start one: `headwater worker --role {role}`")
            for line in lines
        )


def test_topics_are_created_once(embedded_broker: str, topic_prefix: str, tmp_path: Path) -> None:
    terminal = Terminal(
        tmp_path, HEADWATER_KAFKA_BOOTSTRAP_SERVERS=embedded_broker, HEADWATER_TOPIC_PREFIX=topic_prefix
    )
    assert terminal.succeeds("topics", "create").count(f"created {topic_prefix}") == 9
    assert terminal.succeeds("topics", "create") == "nothing to create\n"
    assert terminal.succeeds("topics", "check") == "all topics are as they have to be\n"


# `up`, and a second terminal beside it

CATALOG = """sku,name,kind,price
c1,Ground filter coffee,coffee,5.9
c2,Espresso coffee beans,coffee,8.5
t1,Green tea,tea,3.2
"""


@pytest.fixture(scope="module")
def beside_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A terminal in the folder where `headwater up` runs, with a small catalog published."""
    terminal = Terminal(tmp_path_factory.mktemp("up"))
    with terminal.start("up") as running:
        assert running.stderr
        said: list[str] = []
        for line in running.stderr:
            said.append(line)
            if line.startswith("ready: "):
                break
        assert said[-1].startswith("ready: "), "".join(said)
        (terminal.folder / "catalog.csv").write_text(CATALOG)
        terminal.succeeds(
            "import",
            "catalog",
            "catalog.csv",
            "--map",
            "item_id=sku",
            "--map",
            "title=name",
            "--map",
            "category=kind",
        )
        yield terminal
        (announced,) = (terminal.folder / "state" / "headwater" / "running").iterdir()
        assert announced.name.startswith(f"{running.pid}-")
        running.send_signal(signal.SIGTERM)
        stdout, _ = running.communicate(timeout=60)
        assert running.returncode == 0
        assert stdout == ""
    assert not children_of(running.pid)
    assert not announced.exists()


def children_of(pid: int) -> list[int]:
    """Live processes that were started by `pid`, found by the folder they run in: their parent may be gone."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = stat.read_text().rpartition(")")
            if int(fields.split()[1]) == pid:
                found.append(int(name.split()[0]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_ask_waits_for_the_last_click_from_another_terminal(beside_up: Terminal) -> None:
    partition, offset = map(int, beside_up.succeeds("click", "ann", "c1", "--action", "purchase").split(":"))
    answer = json.loads(beside_up.succeeds("ask", "ann", "--json"))
    jsonschema.validate(answer, schemas()["Response"])
    assert answer["status"] == "ok"
    assert answer["reflects"]["partition"] == partition
    assert answer["reflects"]["offset"] >= offset
    assert answer["reflects"]["events"] == 1
    assert [item["item_id"] for item in answer["items"]] == ["c2", "t1"]
    assert answer["items"][0]["because"][0]["item_id"] == "c1"


def test_ask_prints_a_table_for_people(beside_up: Terminal) -> None:
    beside_up.succeeds("click", "bob", "t1")
    printed = beside_up.succeeds("ask", "bob", "--limit", "2")
    assert "because of" in printed
    assert "click t1 100%" in printed
    assert "reflects 1 events up to" in printed


def test_ask_takes_filters_exclusions_and_sessions(beside_up: Terminal) -> None:
    def asked(*options: str) -> list[str]:
        return [
            item["item_id"]
            for item in json.loads(beside_up.succeeds("ask", "cat", "--json", *options))["items"]
        ]

    assert asked("--session", "c1", "--filter", '{"category": "tea"}') == ["t1"]
    assert asked("--session", "c1", "--exclude", "c2") == ["t1"]
    assert set(asked("--session", "c1", "--include-seen")) == {"c1", "c2", "t1"}
    assert asked("--query", "espresso coffee beans", "--limit", "1") == ["c2"]


def test_what_a_worker_refuses_is_one_sentence(beside_up: Terminal) -> None:
    assert "limit: got 0" in beside_up.fails("ask", "ann", "--limit", "0")
    assert "filter.colour: unknown field" in beside_up.fails("ask", "ann", "--filter", '{"colour": "red"}')
    assert "expired" in beside_up.fails("ask", "ann", "--after", "0:999999", "--deadline-ms", "200")
    assert "user_id" in beside_up.fails("click", "u" * 600, "c1")


def test_user_shows_the_events_with_titles(beside_up: Terminal) -> None:
    beside_up.succeeds("click", "dan", "c2", "--event-id", "e-77")
    beside_up.succeeds("ask", "dan")
    found = json.loads(beside_up.succeeds("user", "dan", "--json"))
    assert [(event["item_id"], event["title"]) for event in found["events"]] == [
        ("c2", "Espresso coffee beans")
    ]
    assert found["last_event_id"] == "e-77"
    assert "Espresso coffee beans" in beside_up.succeeds("user", "dan")
    assert "no user nobody" in beside_up.fails("user", "nobody")


def test_a_repeated_import_changes_nothing(beside_up: Terminal) -> None:
    path = beside_up.folder / "clicks.csv"
    path.write_text("user_id,item_id,at_ms\neve,c1,2023-11-14 22:13:20\neve,t1,2023-11-14 22:13:20\n")
    last = ""
    for _ in range(2):
        assert beside_up.succeeds("import", "clicks", str(path)).startswith("published 2 of 2 rows")
        place = beside_up.succeeds("click", "eve", "c2", "--event-id", "the same").strip()
        found = json.loads(beside_up.succeeds("ask", "eve", "--json", "--after", place))
        assert found["reflects"]["events"] == 3
        last = place
    assert last


def test_bad_rows_are_shown_and_fail_the_import_unless_accepted(beside_up: Terminal) -> None:
    path = beside_up.folder / "bad.csv"
    path.write_text("item_id,price\nbad-1,cheap\n,1\n")
    done = beside_up.run("import", "catalog", str(path))
    assert done.returncode == 1
    assert "row 1: price: got 'cheap', expected a number >= 0" in done.stderr
    assert "row 2: item_id: empty" in done.stderr
    assert "2 rows of" in done.stderr.splitlines()[-1]
    assert beside_up.run("import", "catalog", str(path), "--skip-bad").returncode == 0


def test_the_doctor_finds_a_running_system_well(beside_up: Terminal) -> None:
    printed = beside_up.succeeds("doctor")
    assert "WRONG" not in printed
    for what in (
        "broker",
        "topics",
        "group headwater-interests",
        "group headwater-catalog",
        "bundle",
        "worker",
    ):
        assert f"ok     {what}: " in printed


def test_the_running_system_is_found_from_any_folder(beside_up: Terminal, tmp_path: Path) -> None:
    elsewhere = Terminal(tmp_path, XDG_STATE_HOME=beside_up.environment["XDG_STATE_HOME"])
    elsewhere.succeeds("click", "fay", "c1")
    assert json.loads(elsewhere.succeeds("ask", "fay", "--json"))["reflects"]["events"] == 1
    assert "Ground filter coffee" in elsewhere.succeeds("user", "fay")


def test_a_second_up_in_the_same_folder_is_refused(beside_up: Terminal) -> None:
    assert "another Headwater runs in .headwater" in beside_up.fails("up")
