"""Imports go one way: serving runs without torch, the pure core without Kafka, recall without Faust."""

import ast
import json
import pkgutil
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest

import headwater
from tests.support.checkout import ROOT
from tests.support.file_map import LAYERS

HEAVY = ("torch", "transformers", "optimum", "sentence_transformers")


def modules_of(package: object) -> list[str]:
    name, path = package.__name__, package.__path__  # type: ignore[attr-defined]
    return sorted(found.name for found in pkgutil.walk_packages(path, f"{name}."))


def python(code: str) -> str:
    """What a fresh interpreter prints for ``code``; its errors are ours."""
    run = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def loaded_by(*names: str) -> set[str]:
    """Top-level packages in memory after importing these modules alone."""
    found = python(f"""
        import json, sys
        import {", ".join(names)}
        print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
    """)
    return set(json.loads(found))


class WithoutTypeChecking(ast.NodeTransformer):
    """Takes out what stands under ``if TYPE_CHECKING:``."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        return self.generic_visit(node)


def imported_names(path: Path) -> set[str]:
    """Modules named by import statements anywhere in the file, also inside functions, but for those of types alone."""
    names: set[str] = set()
    for node in ast.walk(WithoutTypeChecking().visit(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_serving_imports_encodes_steps_and_reads_where_torch_cannot_be_imported() -> None:
    printed = python(f"""
        import importlib.machinery, json, sys

        class Refuse:
            # Some libraries look whether torch is there: that is no import yet.
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {HEAVY!r}:
                    return importlib.machinery.ModuleSpec(name, self)
            def create_module(self, spec):
                raise ImportError(f"{{spec.name}} was imported")

        sys.meta_path.insert(0, Refuse())
        for name in {modules_of(headwater)!r}:
            importlib.import_module(name)

        from pathlib import Path
        import numpy as np
        from headwater.encoder import runtime as encoder
        starter = encoder.load(Path("models/headwater_models/starter"))
        items = starter.encode_items(["Green tea", "Ground coffee"])
        state = starter.step(
            starter.initial_state(1), items[None], np.array([[1, 5]]), np.zeros((1, 2), np.float32),
            np.ones((1, 2), np.float32),
        )
        interests, weights = starter.read(state, np.zeros(1, np.float32))
        loaded = [name for name in {HEAVY!r} if name in sys.modules]
        print(json.dumps([list(interests.shape), bool(np.isfinite(interests).all()), loaded]))
    """)
    shape, finite, loaded = json.loads(printed.splitlines()[-1])
    assert (shape[0], finite, loaded) == (1, True, [])


def test_the_pure_core_knows_nothing_of_kafka_faust_or_any_engine() -> None:
    core = (
        "messages",
        "encoder.features",
        "index.item_vectors",
        "profiles.apply_clicks",
        "profiles.columns",
        "profiles.encoder_steps",
        "profiles.event_log",
        "profiles.state_records",
    )
    loaded = loaded_by(*(f"headwater.{module}" for module in core))
    assert not loaded & {
        "aiokafka",
        "faust",
        "mode",
        "qdrant_client",
        "qdrant_edge",
        "onnxruntime",
        "structlog",
    }


def test_recall_knows_nothing_of_faust_kafka_or_an_engine() -> None:
    loaded = loaded_by(*(name for name in HEADWATER if layer_of(name) == "recall"))
    assert not loaded & {"aiokafka", "faust", "mode", "qdrant_client", "qdrant_edge", "onnxruntime"}


# What programs outside import. It stands on kafka/, and only the command line and the gateway import it.
CLIENT = {"headwater", "headwater.client"}
SOURCES = ROOT / "streams" / "headwater" / "recall" / "sources"
# No file of these imports another one of them.
APART = {
    "headwater.paths": {"clicks", "catalog", "requests"},
    "headwater.recall.sources": {path.stem for path in SOURCES.glob("*.py")} - {"__init__", "registry"},
}
# What other packages may be imported by, directly, and from which layers they may be reached at all.
DIRECTLY = {
    "faust": {"headwater.kafka.faust_group"},
    "mode": {"headwater.kafka.faust_group"},
}
REACHED_FROM = {
    "faust": {"commands", "gateway", "worker", "kafka"},  # a gateway redrives dead letters
    "mode": {"commands", "gateway", "worker", "kafka"},
    "qdrant_client": {"commands", "worker", "index"},
    "qdrant_edge": {"commands", "worker", "index"},
    "onnxruntime": {"commands", "worker", "paths", "profiles", "recall", "encoder"},
    "aiohttp": {"commands", "gateway", "worker", "docs", ""},
    "prometheus_client": {
        "commands",
        "gateway",
        "worker",
        "paths",
        "recall",
        "profiles",
        "index",
        "kafka",
        "",
    },
    "cyclopts": {"commands"},
    "polars": {"commands", "files"},
}
# What headwater_models may share with serving, so that training sees what serving feeds, and figures are of what is
# served: encoders and their features, the reader of files, the pipeline with its sources and filters, the counters, the half-life of
# popularity.
SHARED_WITH_MODELS = {
    "headwater.errors",
    "headwater.messages",
    "headwater.encoder.bundle",
    "headwater.encoder.features",
    "headwater.encoder.neighbours",
    "headwater.encoder.readable",
    "headwater.encoder.runtime",
    "headwater.encoder.text_graph",
    "headwater.files.cases",
    "headwater.files.contents",
    "headwater.files.events",
    "headwater.files.presets",
    "headwater.files.table",
    "headwater.files.values",
    "headwater.index.filters",
    "headwater.metrics",
    "headwater.profiles.counters",
    "headwater.recall.fusion",
    "headwater.recall.gathering",
    "headwater.recall.similarity",
    "headwater.recall.pipeline",
    "headwater.recall.popularity",
    "headwater.recall.rescoring",
    "headwater.recall.sources.registry",
}


def sources_of(folder: Path) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(folder.rglob("*.py"))
    }


HEADWATER = sources_of(ROOT / "streams" / "headwater")
MODELS = sources_of(ROOT / "models" / "headwater_models")
MODULES = {**HEADWATER, **MODELS}


def layer_of(module: str) -> str:
    """The folder of a module of headwater; "" at the top level, but for the console script."""
    if module == "headwater.__main__":
        return "commands"
    first = module.split(".")[1:2]
    return first[0] if first and (ROOT / "streams" / "headwater" / first[0]).is_dir() else ""


@cache
def imports_of(module: str) -> frozenset[str]:
    """Modules of ours, and packages of others, that this one names in import statements, wherever they stand.

    What is imported for its types alone is not loaded, and does not count.
    """
    found = set()
    for name in imported_names(MODULES[module]):
        parent = name.rpartition(".")[0]
        if name in MODULES:
            found.add(name)
        elif parent in MODULES:
            continue  # a name of a module that is itself in the list
        else:
            found.add(name.partition(".")[0])
    return frozenset(found - {module})


@cache
def reached_by(module: str) -> frozenset[str]:
    """What ``module`` imports, and what that imports in turn."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imports_of(waiting.pop()) - found:
            found.add(name)
            if name in MODULES:
                waiting.append(name)
    return frozenset(found)


@pytest.mark.parametrize("module", [name for name in HEADWATER if name not in CLIENT])
def test_a_layer_reaches_only_layers_below_it(module: str) -> None:
    layers = list(LAYERS)
    own = layers.index(layer_of(module))
    for name in reached_by(module):
        if name in HEADWATER and name != "headwater":
            assert name not in CLIENT or layer_of(module) in ("commands", "gateway"), (
                f"{module} reaches {name}"
            )
            assert layers.index(layer_of(name)) >= own, f"{module} reaches {name}, which is above it"


def test_the_client_reaches_no_layer_but_kafka() -> None:
    layers = {layer_of(name) for name in reached_by("headwater.client") if name in HEADWATER}
    assert layers <= {"kafka", ""}


# The base install: what a program with a client of ours has to carry. cramjam is found by aiokafka where it is there.
CLIENT_LOADS = {
    "aiokafka",
    "annotated_types",
    "async_timeout",
    "cramjam",
    "dotenv",
    "msgspec",
    "packaging",
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "typing_extensions",
    "typing_inspection",
}


def test_the_client_loads_the_packages_of_the_base_install_alone() -> None:
    nothing = python("""
        import json, sys
        print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
    """)
    ours = {"headwater", "cython_runtime", *sys.stdlib_module_names, *json.loads(nothing)}
    loaded = {name for name in loaded_by("headwater.client") - ours if not name.startswith("_")}
    assert loaded == CLIENT_LOADS


@pytest.mark.parametrize("folder", APART)
def test_files_that_stand_apart_do_not_import_each_other(folder: str) -> None:
    for name in APART[folder]:
        others = {f"{folder}.{other}" for other in APART[folder] - {name}}
        assert not reached_by(f"{folder}.{name}") & others


@pytest.mark.parametrize("package", DIRECTLY)
def test_a_package_is_imported_where_the_table_says(package: str) -> None:
    assert {name for name in HEADWATER if package in imports_of(name)} == DIRECTLY[package]


@pytest.mark.parametrize("package", REACHED_FROM)
def test_a_package_is_reached_from_the_layers_of_the_table(package: str) -> None:
    assert {layer_of(name) for name in HEADWATER if package in reached_by(name)} <= REACHED_FROM[package]


@pytest.mark.parametrize("module", [name for name in HEADWATER if layer_of(name) != "commands"])
def test_serving_does_not_reach_training(module: str) -> None:
    assert not [name for name in reached_by(module) if name.partition(".")[0] == "headwater_models"]


@pytest.mark.parametrize("module", MODELS)
def test_training_shares_with_serving_what_the_table_says(module: str) -> None:
    ours = {
        name for name in imports_of(module) if name in HEADWATER and HEADWATER[name].name != "__init__.py"
    }
    assert not ours - SHARED_WITH_MODELS


def test_what_training_shares_brings_no_streaming_along() -> None:
    loaded = loaded_by(*sorted(SHARED_WITH_MODELS))
    assert not loaded & {"aiokafka", "faust", "mode", "qdrant_client", "qdrant_edge"}


def test_data_and_figures_need_no_torch() -> None:
    assert not loaded_by("headwater_models.commands") & {*HEAVY, "scipy", "implicit", "matplotlib"}
