"""Topics, doctor, settings and reference, as processes print them."""

import json
from pathlib import Path

import jsonschema
import pytest

from headwater.commands.operate import settings_in_force
from headwater.commands.terminal import Exit
from headwater.kafka import topics
from headwater.messages import schemas
from headwater.metrics import DEFINITIONS
from headwater.settings import Settings
from tests.support.terminal import Terminal


def test_schemas_are_printed_one_or_all(terminal: Terminal) -> None:
    assert json.loads(terminal.succeeds("schema")) == json.loads(json.dumps(dict(schemas())))
    click = json.loads(terminal.succeeds("schema", "Click"))
    validator = jsonschema.Draft202012Validator(click)
    good = {"event_id": "e", "user_id": "ann", "item_id": "x", "at_ms": 1_700_000_000_000}
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "action": "buy"})


def test_the_topics_are_described_as_the_settings_name_them(terminal: Terminal) -> None:
    terminal.environment["HEADWATER_TOPIC_PREFIX"] = "shop."
    told = json.loads(terminal.succeeds("schema", "--asyncapi"))
    assert (told["asyncapi"], told["channels"]["clicks"]["address"]) == ("3.0.0", "shop.clicks.v1")
    assert "Click beside --asyncapi" in terminal.fails("schema", "Click", "--asyncapi", code=Exit.USAGE)


def test_the_metrics_reference_has_every_metric(terminal: Terminal) -> None:
    printed = terminal.succeeds("metrics")
    for definition in DEFINITIONS:
        assert f"`{definition.exposed_name}" in printed


def test_the_help_names_every_message(terminal: Terminal) -> None:
    printed = terminal.succeeds("schema", "--help")
    assert all(name in printed for name in schemas())


def test_a_message_that_there_is_not_is_told_with_those_there_are(terminal: Terminal) -> None:
    assert "Clicks is no message: expected one of Click, Item" in terminal.fails(
        "schema", "Clicks", code=Exit.USAGE
    )


# Settings


def in_force(
    monkeypatch: pytest.MonkeyPatch, running: Settings, **environment: str
) -> dict[str, tuple[str, str]]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = settings_in_force(Settings.load(), running, environment, Path("headwater.toml"), "process 7")
    return {each.variable: (each.value, each.origin) for each in found}


def test_each_setting_is_shown_with_its_origin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headwater.toml").write_text("partitions = 12\n")
    running = Settings(partitions=12, kafka_bootstrap_servers="broker:9092")
    found = in_force(monkeypatch, running, HEADWATER_MAX_PARKED="10000")
    assert set(found) == {f"HEADWATER_{name.upper()}" for name in Settings.model_fields}
    assert found["HEADWATER_MAX_PARKED"] == ("10000", "environment")
    assert found["HEADWATER_PARTITIONS"] == ("12", "headwater.toml")
    assert found["HEADWATER_KAFKA_BOOTSTRAP_SERVERS"] == ("broker:9092", "process 7")
    assert found["HEADWATER_LOG_JSON"] == ("false", "default")
    assert found["HEADWATER_USER_TTL_DAYS"] == ("not set", "default")
    assert found["HEADWATER_BUNDLE"][0].endswith("starter")


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Settings(qdrant_api_key="hush-1", kafka_ssl_key_password="hush-2")
    found = in_force(monkeypatch, running, HEADWATER_QDRANT_API_KEY="hush-1")
    assert found["HEADWATER_QDRANT_API_KEY"] == ("********", "environment")
    assert not [value for value, _ in found.values() if "hush" in value]


def test_settings_are_printed_as_json_too(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, HEADWATER_PARTITIONS="7")
    found = json.loads(terminal.succeeds("settings", "--json"))
    assert found["HEADWATER_PARTITIONS"] == {"value": "7", "from": "environment"}
    assert "HEADWATER_PARTITIONS               7 " in terminal.succeeds("settings")


# The doctor


def test_the_doctor_says_that_the_broker_is_down(tmp_path: Path) -> None:
    done = Terminal(tmp_path, HEADWATER_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1").run("doctor")
    assert done.returncode == 1
    first, *rest = done.stdout.splitlines()
    assert first.startswith("WRONG  broker: ")
    assert any(line.startswith("ok     bundle: ") for line in rest)


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
    assert "3 partitions, expected 4" in terminal.fails("worker", "--role", "interests", code=Exit.FAILED)


async def test_the_doctor_says_that_no_worker_runs(settings: Settings, tmp_path: Path) -> None:
    await topics.create(settings)
    done = Terminal(
        tmp_path,
        HEADWATER_KAFKA_BOOTSTRAP_SERVERS=settings.bootstrap_servers,
        HEADWATER_TOPIC_PREFIX=settings.topic_prefix,
    ).run("doctor")
    assert done.returncode == 1, done.stdout
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
    assert terminal.succeeds("topics", "create").count(f"created {topic_prefix}") == 11
    assert terminal.succeeds("topics", "create") == "nothing to create\n"
    assert terminal.succeeds("topics", "check") == "all topics are as they should be\n"


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
