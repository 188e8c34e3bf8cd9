"""What can be known of the deployment without Docker: its files against their schema, our settings, metrics and commands."""

import http.server
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from headwater.metrics import DEFINITIONS, NAMESPACE, Histogram
from headwater.settings import PREFIX, Settings
from tests.support.checkout import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.gpu.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
WORKERS = ("interests", "catalog")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/headwater.json").read_text())


def compose_schema() -> dict[str, Any]:
    """The copy that check-jsonschema carries; the package itself wants a newer click than Faust and is not imported."""
    found = importlib.util.find_spec("check_jsonschema")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "builtin_schemas/vendor/compose-spec.json"
    schema: dict[str, Any] = json.loads(path.read_text())
    return schema


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, argument), continuation lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def image_environment() -> dict[str, str]:
    pairs = (shlex.split(argument) for instruction, argument in instructions() if instruction == "ENV")
    return dict(pair.split("=", 1) for line in pairs for pair in line)


def interpolated(value: object, environment: dict[str, str]) -> str:
    """As Compose does it: `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], str(value))


def locked_version(lock: str, package: str) -> tuple[int, ...]:
    text = (DEPLOY / "requirements" / f"{lock}.txt").read_text()
    found = re.search(rf"^{re.escape(package)}==([\d.]+)", text, flags=re.M)
    assert found, f"{package} is not in {lock}.txt"
    return tuple(int(part) for part in found[1].split("."))


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A web server on a free port that answers everything with `status`."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


# Compose


@pytest.mark.parametrize("compose", [COMPOSE, GPU], ids=["docker-compose.yml", "compose.gpu.yml"])
def test_compose_files_obey_the_compose_schema(compose: dict[str, Any]) -> None:
    schema = compose_schema()
    jsonschema.validate(compose, schema, cls=jsonschema.validators.validator_for(schema))


def test_the_schema_would_notice_a_mistake() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"a": {"imagee": "x"}}}, compose_schema())


def test_the_parts_of_the_system_are_there() -> None:
    assert {"kafka", "qdrant", "topics", *WORKERS} <= set(SERVICES)
    behind_a_profile = {name for name, service in SERVICES.items() if service.get("profiles")}
    assert behind_a_profile == {"kafka-ui", "prometheus", "grafana", "gateway"}


def test_the_gateway_listens_where_its_port_and_its_health_command_look_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = SERVICES["gateway"]
    keys = "correct-horse-battery,another-long-enough-key"
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, interpolated(value, {"HEADWATER_GATEWAY_KEYS": keys}))
    settings = Settings.load()
    assert len(settings.gateway_keys) == 2
    assert (settings.gateway_host, settings.gateway_rate) == ("0.0.0.0", 1000)
    assert service["ports"] == [f"127.0.0.1:8081:{settings.gateway_port}"]
    assert f":{settings.gateway_port}/healthz" in service["healthcheck"]["test"][-1]
    used = [port for each in SERVICES.values() for port in each.get("ports", [])]
    assert len({port.rpartition(":")[0] for port in used}) == len(used)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_to_a_version(name: str) -> None:
    tag = SERVICES[name]["image"].rpartition(":")[2]
    assert re.match(r"v?\d+\.\d+\.\d+", tag), f"{name} runs {SERVICES[name]['image']}"


def test_our_image_carries_our_version() -> None:
    version = PYPROJECT["project"]["version"]
    assert {service["image"] for service in OURS.values()} == {f"headwater:{version}-cpu"}
    assert GPU["services"]["catalog"]["image"] == f"headwater:{version}-gpu"


def test_qdrant_server_and_client_are_at_most_one_minor_version_apart() -> None:
    server = tuple(int(part) for part in SERVICES["qdrant"]["image"].rpartition(":v")[2].split("."))
    client = locked_version("cpu", "qdrant-client")
    assert server[0] == client[0]
    assert abs(server[1] - client[1]) <= 1


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_on_the_loopback_address_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_can_be_scaled(name: str) -> None:
    worker = SERVICES[name]
    assert not worker.get("ports"), "two containers cannot have the same port of the host"
    assert "container_name" not in worker
    assert not worker.get("volumes"), "two containers would write to the same folder"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_what_can_become_ready(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert SERVICES[other]["healthcheck"]["test"], f"{other} has no health check"
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"].startswith("on-failure"), f"{other} would start again for ever"


def test_workers_start_after_the_topics_exist() -> None:
    for name in WORKERS:
        assert SERVICES[name]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
        assert {"kafka", "qdrant"} <= set(SERVICES[name]["depends_on"])


@pytest.mark.parametrize("name", SERVICES)
def test_mounted_files_exist_and_volumes_are_declared(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (ROOT / source).is_dir(), source
            assert volume.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_a_worker_starts_with_settings_that_we_know(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**image_environment(), **SERVICES[name]["environment"]}
    ours = {key: interpolated(value, {}) for key, value in environment.items() if key.startswith(PREFIX)}
    fields = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert set(ours) <= fields
    for key, value in ours.items():
        monkeypatch.setenv(key, value)
    settings = Settings.load()
    assert settings.kafka_bootstrap_servers == "kafka:19092"
    assert settings.qdrant_url == "http://qdrant:6333"
    assert (settings.web_host, settings.web_port) == ("0.0.0.0", 6066)
    assert settings.topic_prefix == "headwater."


def test_workers_reach_kafka_under_the_address_it_advertises() -> None:
    kafka = SERVICES["kafka"]["environment"]
    advertised = dict(entry.split("://") for entry in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert SERVICES["interests"]["environment"][f"{PREFIX}KAFKA_BOOTSTRAP_SERVERS"] == advertised["INSIDE"]
    host, _, container = SERVICES["kafka"]["ports"][0].rpartition(":")
    assert host == advertised["HOST"], "clients on the host are sent back to what is advertised"
    listened = dict(entry.split("://:") for entry in kafka["KAFKA_LISTENERS"].split(","))
    assert container == listened["HOST"]
    assert advertised["INSIDE"].endswith(f":{listened['INSIDE']}")
    assert set(listened) == {
        entry.split(":")[0] for entry in kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    }


def test_kafka_keeps_its_data_on_its_volume() -> None:
    folder = SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"]
    assert f"kafka-data:{folder}" in SERVICES["kafka"]["volumes"]


def test_the_gpu_file_changes_only_what_a_gpu_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(GPU["services"]) <= set(WORKERS)
    catalog = GPU["services"]["catalog"]
    assert catalog["build"]["args"] == {"EXTRA": "gpu"}
    for key, value in catalog["environment"].items():
        monkeypatch.setenv(key, value)
    assert Settings.load().device == "cuda"
    assert catalog["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


# Health commands, really run


@pytest.mark.parametrize("source", ["docker-compose.yml", "Dockerfile"])
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_worker_is_healthy_when_its_health_page_says_so(source: str, status: int, healthy: bool) -> None:
    if source == "Dockerfile":
        (line,) = (argument for instruction, argument in instructions() if instruction == "HEALTHCHECK")
        command = json.loads(line.partition("CMD ")[2])
    else:
        command = SERVICES["interests"]["healthcheck"]["test"][1:]
    assert command[0] == "python"
    with answering(status) as port:
        here = [sys.executable, *(part.replace(":6066/", f":{port}/") for part in command[1:])]
        done = subprocess.run(here, capture_output=True, timeout=60, check=False)
    assert (done.returncode == 0) == healthy, done.stderr.decode()


def test_a_worker_that_does_not_listen_is_unhealthy() -> None:
    with answering(200) as port:
        pass  # closed again, so nothing listens there
    command = [
        part.replace(":6066/", f":{port}/") for part in SERVICES["interests"]["healthcheck"]["test"][2:]
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, timeout=60, check=False)
    assert done.returncode != 0


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_qdrant_is_healthy_when_it_says_ready(status: int, healthy: bool) -> None:
    kind, *command = SERVICES["qdrant"]["healthcheck"]["test"]
    assert kind == "CMD"
    with answering(status) as port:
        here = [part.replace("127.0.0.1/6333", f"127.0.0.1/{port}") for part in command]
        assert here != command
        done = subprocess.run(here, capture_output=True, timeout=60, check=False)
    assert (done.returncode == 0) == healthy, done.stderr.decode()


# The image


def test_what_the_image_copies_exists_and_reaches_the_build() -> None:
    ignored = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    assert ignored[0] == "*", "only what is named reaches the build"
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for instruction, argument in instructions():
        if instruction == "COPY" and not argument.startswith("--from"):
            for source in argument.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


def test_both_kinds_of_image_have_their_lock() -> None:
    (extra,) = {argument for instruction, argument in instructions() if argument.startswith("EXTRA=")}
    assert extra == "EXTRA=cpu"
    for kind, runtime in {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}.items():
        assert locked_version(kind, runtime)
    synced = [argument for instruction, argument in instructions() if "uv pip sync" in argument]
    assert len(synced) == 1
    assert "--require-hashes deploy/requirements/${EXTRA}.txt" in synced[0]


def test_the_image_does_not_run_as_root() -> None:
    users = [argument for instruction, argument in instructions() if instruction == "USER"]
    assert users
    assert int(users[-1].split(":")[0]) > 0


def test_the_image_runs_our_command() -> None:
    last = dict(instructions())
    (program,) = json.loads(last["ENTRYPOINT"])
    assert program in PYPROJECT["project"]["scripts"]
    assert last["EXPOSE"] == image_environment()[f"{PREFIX}WEB_PORT"]


def test_the_cuda_libraries_are_looked_for_under_the_python_of_the_image() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    (version,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)\.\d+-slim", text, flags=re.M)
    for folder in image_environment()["LD_LIBRARY_PATH"].split(":"):
        assert f"/python{version}/site-packages/nvidia/" in folder


def commands() -> list[list[str]]:
    """The arguments after `headwater` wherever the deployment or the Makefile runs it."""
    last = dict(instructions())
    found = [service["command"] for service in OURS.values()] + [json.loads(last["CMD"])]
    makefile = (ROOT / "Makefile").read_text()
    found += [line.split() for line in re.findall(r"exec \.venv/bin/headwater (.*) \$\(ARGS\)", makefile)]
    return sorted(map(list, {tuple(command) for command in found}))


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_command_line_knows_the_commands_that_are_deployed(command: list[str]) -> None:
    words = [word for word in command if not word.startswith("-")]
    name = words[:-1] if "--role" in command else words
    done = subprocess.run(
        [sys.executable, "-c", "from headwater.commands.main import main; main()", *name, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    for word in command:
        if word not in name:
            assert word in done.stdout, f"{' '.join(name)} --help does not mention {word}"


# Prometheus and Grafana


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    variables = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"]]
    alerts = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    return panels + variables + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


def series() -> dict[str, set[str]]:
    """Every series that a worker exposes, with its labels."""
    found: dict[str, set[str]] = {}
    for definition in DEFINITIONS:
        labels = set(definition.about.labels)
        name = definition.exposed_name
        if definition.kind is Histogram:
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        elif definition.kind.__name__ == "Info":
            found[f"{name}_info"] = {"version", "role", "bundle", "providers", "index"}
        else:
            found[name] = labels
    return found


@pytest.mark.parametrize("expression", expressions())
def test_dashboard_and_alerts_ask_only_for_what_is_exposed(expression: str) -> None:
    known = series()
    names = re.findall(rf"\b{NAMESPACE}_\w+", expression)
    assert names or "process_" in expression or expression.startswith("up{")
    for name in names:
        assert name in known, f"{name} is no metric of ours"
    # Prometheus itself adds instance and job, our scraping adds service.
    labels = set().union(*(known[name] for name in names), {"instance", "job", "service"})
    used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        used |= {label.strip() for label in group.split(",")}
    assert used <= labels, f"{used - labels} are no labels of {names}"


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.name)
def test_every_metric_is_on_the_dashboard(definition: Any) -> None:
    assert any(
        re.search(rf"\b{definition.exposed_name}(_bucket|_sum|_info)?\{{", text) for text in expressions()
    )


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_finds_every_worker() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    ours, qdrant = config["scrape_configs"]
    (discovery,) = ours["dns_sd_configs"]
    assert set(discovery["names"]) == set(WORKERS)
    assert str(discovery["port"]) == SERVICES["interests"]["environment"][f"{PREFIX}WEB_PORT"]
    assert qdrant["static_configs"][0]["targets"] == ["qdrant:6333"]
    for rule_file in config["rule_files"]:
        assert (DEPLOY / "prometheus" / rule_file).is_file()


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    used = {
        target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
    }
    assert used == {source["uid"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards/headwater.yml").read_text())["providers"]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/headwater.json"


# The documentation of it


def test_the_guide_names_only_settings_and_files_that_exist() -> None:
    guide = (DEPLOY / "README.md").read_text()
    fields = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    assert set(re.findall(rf"{PREFIX}[A-Z_]+[A-Z]", guide)) - {f"{PREFIX}CONFIG"} <= fields
    for cell in re.findall(r"^\| ((?:`[\w./-]+`(?:, )?)+) \|", guide, flags=re.M):
        for name in re.findall(r"`([\w./-]+)`", cell):
            if ("/" in name and not name.startswith("/")) or name.endswith((".yml", ".sh")):
                assert (DEPLOY / name).exists(), name


def test_the_guide_lists_what_compose_takes_from_the_environment() -> None:
    guide = (DEPLOY / "README.md").read_text()
    compose = (ROOT / "docker-compose.yml").read_text()
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", compose):
        row = next((line for line in guide.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert default in row, f"{name} with its default {default} is missing"


def test_no_lock_or_script_is_forgotten_in_the_guide() -> None:
    guide = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.iterdir():
        if path.name != "README.md":
            assert f"`{path.name}" in guide, path.name
    for lock in (DEPLOY / "requirements").glob("*.txt"):
        assert f"`{lock.stem}`" in guide, lock.name
