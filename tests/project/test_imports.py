"""Imports go one way: serving runs without torch, the pure core without Kafka, recall without Faust."""

import ast
import json
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import headwater
from tests.support.checkout import ROOT

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


def imported_names(path: Path) -> set[str]:
    """Modules named by import statements anywhere in the file, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
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


def test_no_line_of_serving_names_torch() -> None:
    """Not even inside a function that no test calls."""
    for path in sorted((ROOT / "streams" / "headwater").rglob("*.py")):
        heavy = {name for name in imported_names(path) if name.partition(".")[0] in HEAVY}
        assert not heavy, f"{path.name} imports {heavy}"


def test_the_pure_core_knows_nothing_of_kafka_faust_or_any_engine() -> None:
    core = ("messages", "features", "profile", "columns", "fold", "states", "state_records", "vectors")
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
    loaded = loaded_by(
        *(
            f"headwater.recall.{module}"
            for module in ("buy_again", "filters", "fusion", "reasons", "rescoring", "pipeline", "similar")
        )
    )
    assert not loaded & {"aiokafka", "faust", "mode", "qdrant_client", "qdrant_edge", "onnxruntime"}


def test_only_the_engine_and_the_app_know_faust() -> None:
    knowing = {
        path.name
        for path in (ROOT / "streams" / "headwater").rglob("*.py")
        if any(name.partition(".")[0] in ("faust", "mode") for name in imported_names(path))
    }
    assert "engine.py" in knowing
    assert knowing <= {"engine.py", "profiles.py", "app.py"}


# What models may share with serving: the features, bundles with the one way to load and run them, by which an export
# is shown to compute what torch does, the sources, the counters and their fusion, by which figures are of what is served,
# the half-life of popularity, and the reading of users' files. Nothing of the streaming system.
SHARED = {
    "headwater.encoder.features",
    "headwater.encoder.bundle",
    "headwater.profiles.counters",
    "headwater.encoder.runtime",
    "headwater.recall.sources.buy_again",
    "headwater.encoder.neighbours",
    "headwater.recall.fusion",
    "headwater.recall.sources.new_items",
    "headwater.recall.sources.similar",
    "headwater_models.data.tabular_files",
    "headwater.recall.popularity",
}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "models" / "headwater_models").glob("*.py")), ids=lambda path: path.stem
)
def test_models_share_features_and_bundles_with_serving_and_nothing_else(path: Path) -> None:
    ours = {name for name in imported_names(path) if name.partition(".")[0] == "headwater"}
    foreign = {name for name in ours if not any(name == one or name.startswith(f"{one}.") for one in SHARED)}
    assert not foreign - {"headwater"}, f"{path.name} imports {foreign}"


def test_data_and_figures_need_no_torch() -> None:
    assert not loaded_by("headwater_models.commands") & {*HEAVY, "scipy", "implicit", "matplotlib"}


def test_what_models_share_brings_no_streaming_along() -> None:
    loaded = loaded_by(*sorted(SHARED))
    assert not loaded & {"aiokafka", "faust", "mode", "qdrant_client", "qdrant_edge"}
