"""What is installed and how: the locks, the wheel, the commands of the Makefile."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from headwater.docs import readmes
from tests.support.checkout import ROOT

LOCKS = ROOT / "deploy" / "requirements"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
# The extras that each lock holds beside the base.
EXTRAS = {
    "client": [],
    "cpu": ["worker", "cpu"],
    "gpu": ["worker", "gpu"],
    "dev": ["worker", "cpu", "demo", "mcp", "train", "export", "test", "check"],
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def locked(lock: str) -> list[Requirement]:
    text = (LOCKS / f"{lock}.txt").read_text()
    return [Requirement(line.rstrip(" \\")) for line in text.splitlines() if re.match(r"[a-z0-9]", line)]


def version_in(lock: str, package: str, python: str) -> str | None:
    """The version that `lock` gives to a Linux machine with that Python."""
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    for requirement in locked(lock):
        if canonicalize_name(requirement.name) == canonicalize_name(package) and (
            requirement.marker is None or requirement.marker.evaluate(environment)
        ):
            return str(next(iter(requirement.specifier)).version)
    return None


# Locks


@pytest.mark.parametrize("lock", sorted(path.stem for path in LOCKS.glob("*.txt")))
def test_a_lock_pins_everything_by_hash_and_names_no_address(lock: str) -> None:
    text = (LOCKS / f"{lock}.txt").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text)
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.]+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]
    for unwanted in ("://", "--index", "--find-links", "--extra-index", " @ ", "file:"):
        assert unwanted not in text


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", EXTRAS)
def test_a_lock_is_up_to_date_with_the_project(lock: str, python: str) -> None:
    wanted = PROJECT["dependencies"] + [
        requirement for extra in EXTRAS[lock] for requirement in PROJECT["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"python_version": python}):
            continue
        if requirement.name == PROJECT["name"]:  # an extra that brings another one
            continue
        version = version_in(lock, requirement.name, python)
        assert version, f"{requirement} is missing in {lock}.txt: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} is {version}: run `make lock`"


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("broker", PROJECT["optional-dependencies"]["broker"]),
        ("demo", PROJECT["optional-dependencies"]["demo"]),
        ("mcp", PROJECT["optional-dependencies"]["mcp"]),
        ("build", PYPROJECT["build-system"]["requires"]),
    ],
)
def test_a_small_lock_is_up_to_date_with_the_project(lock: str, wanted: list[str]) -> None:
    for requirement in map(Requirement, wanted):
        version = version_in(lock, requirement.name, "3.12")
        assert version, f"{requirement} is missing in {lock}.txt: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} is {version}: run `make lock`"


@pytest.mark.parametrize("lock", ["client", "cpu", "gpu", "broker", "demo", "mcp"])
def test_serving_installs_neither_torch_nor_what_training_needs(lock: str) -> None:
    names = {canonicalize_name(requirement.name) for requirement in locked(lock)}
    assert not names & {"torch", "transformers", "optimum", "onnx", "pandas", "pyarrow", "pytest", "ruff"}


@pytest.mark.parametrize("lock", sorted(path.stem for path in LOCKS.glob("*.txt")))
def test_pandas_and_pyarrow_come_with_nothing(lock: str) -> None:
    names = {canonicalize_name(requirement.name) for requirement in locked(lock)}
    assert not names & {"pandas", "pyarrow", "sentence-transformers"}


@pytest.mark.parametrize("lock", ["client", "cpu", "gpu", "broker", "demo", "mcp", "build"])
def test_what_is_deployed_is_what_was_tested(lock: str) -> None:
    tested = {(one.name, str(one.specifier)) for one in locked("dev")}
    untested = {one.name for one in locked(lock) if (one.name, str(one.specifier)) not in tested}
    # Only the GPU's own runtime cannot stand in an environment with the CPU's.
    assert untested <= ({"onnxruntime-gpu"} if lock == "gpu" else set())


def test_each_serving_lock_has_one_onnx_runtime() -> None:
    for lock, runtime in {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}.items():
        assert {one.name for one in locked(lock) if one.name.startswith("onnxruntime")} == runtime
    base = {Requirement(requirement).name for requirement in PROJECT["dependencies"]}
    assert not {name for name in base if name.startswith("onnxruntime")}


def test_every_dependency_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    blocks = re.findall(r"^(?:dependencies|worker) = \[\n(.*?)^\]", text, flags=re.M | re.S)
    assert len(blocks) == 2
    for line in "".join(blocks).splitlines():
        assert re.search(r'",?\s+# \S+', line), line


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.Path(path)


def in_the_tree(*folders: str) -> set[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return {
        path.relative_to(ROOT).as_posix().partition("/")[2]
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_the_packages_the_bundle_and_the_license(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    assert in_the_tree("models/headwater_models/starter") <= names
    assert "headwater_models/starter/bundle.json" in names
    assert {
        path for path in in_the_tree("streams/headwater", "models/headwater_models") if path.endswith(".py")
    } <= names
    assert (
        in_the_tree("streams/headwater/worker/web/page") <= names
    )  # the live page, and what it took from others
    assert any(name.endswith("page/vendor/uplot/LICENSE.txt") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"headwater", "headwater_models"}


def test_the_wheel_has_the_readmes_and_all_that_they_link_to(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    for name, path in readmes.files().items():
        place = (
            name.partition("/")[2]
            if name.startswith(readmes.PACKAGES)
            else f"{readmes.FOLDER_IN_WHEEL}/{name}"
        )
        assert place in names, name
        assert wheel.root.read(place) == path.read_bytes(), name
    pages = [each for each in wheel.root.infolist() if each.filename.startswith(readmes.FOLDER_IN_WHEEL)]
    assert sum(each.compress_size for each in pages) < 200_000
    assert {f"headwater/docs/viewer/{name}" for name in ("viewer.html", "api.js", "viewer.css")} <= names


def test_the_wheel_brings_the_command(wheel: zipfile.Path) -> None:
    (entry_points,) = (name for name in wheel.root.namelist() if name.endswith("entry_points.txt"))
    assert "headwater = headwater.__main__:main" in wheel.root.read(entry_points).decode()


def test_an_unpacked_wheel_finds_its_bundle_and_its_pages(wheel: zipfile.Path, tmp_path: Path) -> None:
    wheel.root.extractall(tmp_path / "site")
    code = (
        "import headwater.settings as s, headwater.encoder.runtime as e; "
        "path = s.Settings.load().bundle_path; print(path); print(e.load(path).dim); "
        "import headwater.docs.readmes as r; print(r.files()['deploy/README.md'])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path, dim, page = done.stdout.split()
    assert Path(path).is_relative_to(tmp_path / "site")
    assert Path(page).is_relative_to(tmp_path / "site")
    assert int(dim) > 0


# Serving stays light


def test_no_part_of_serving_imports_torch_or_its_company() -> None:
    code = """
import importlib, pkgutil, sys
import headwater
modules = ["headwater", *(found.name for found in pkgutil.walk_packages(headwater.__path__, "headwater."))]
for name in modules:
    importlib.import_module(name)
heavy = {"torch", "transformers", "optimum", "onnx", "pandas", "pyarrow", "sklearn", "scipy", "pytest"}
print(len(modules), sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "streams")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, heavy = done.stdout.strip().split(" ", 1)
    assert int(count) > 10
    assert heavy == "[]"


# House


def test_the_changelog_knows_this_version() -> None:
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_every_ignored_lint_rule_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    ignored = re.findall(r'^  "[A-Z]+\d*",.*$', text.split("\nignore = [")[1].split("\n]")[0], flags=re.M)
    assert ignored
    for line in ignored:
        assert re.search(r"# \S+ \S+", line), line


# The Makefile: a copy whose environment is already there, with a program of ours in it


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    return tmp_path


def install_program(checkout: Path, body: str) -> None:
    program = checkout / ".venv" / "bin" / "headwater"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!{sys.executable}\n{body}\n")
    program.chmod(0o755)
    for stamp in ("installed-cpu", "installed-cpu-demo"):
        (checkout / ".venv" / stamp).touch()


def environment() -> dict[str, str]:
    """Without what a surrounding `make test` hands down to its children."""
    handed_down = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "ARGS", "EXTRA", "PYTHON")
    return {name: value for name, value in os.environ.items() if name not in handed_down}


def make(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_make_demo_hands_on_arguments_and_prints_only_what_the_program_prints(checkout: Path) -> None:
    install_program(checkout, "import json, sys; print(json.dumps(sys.argv[1:]))")
    done = make(checkout, "demo", "ARGS=--once --json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["demo", "--once", "--json"]


def test_make_demo_fails_when_the_demo_fails(checkout: Path) -> None:
    install_program(checkout, "print('{}'); raise SystemExit(1)")
    done = make(checkout, "demo")
    assert done.returncode != 0
    assert done.stdout == "{}\n"


def test_ctrl_c_reaches_the_demo_and_leaves_nothing(checkout: Path) -> None:
    install_program(
        checkout,
        "import os, signal\n"
        "try:\n    print(os.getpid(), flush=True); signal.pause()\n"
        "except KeyboardInterrupt:\n    print('stopped', flush=True)",
    )
    with subprocess.Popen(
        ["make", "demo"],
        cwd=checkout,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout
        program = int(running.stdout.readline())
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        rest, _ = running.communicate(timeout=60)
    assert rest == "stopped\n"
    with pytest.raises(ProcessLookupError):
        os.kill(program, 0)


def test_a_second_make_demo_installs_nothing(checkout: Path) -> None:
    install_program(checkout, "print('ran')")
    (checkout / "deploy" / "install.sh").write_text("#!/bin/sh\nexit 7\n")
    assert make(checkout, "demo").stdout == "ran\n"


def test_make_install_brings_the_embedded_broker(checkout: Path) -> None:
    (checkout / "deploy" / "install.sh").write_text('#!/bin/sh\nmkdir -p "$1"\necho installing "$@"\n')
    assert make(checkout, "install").stderr == "installing .venv cpu broker\n"


def test_a_changed_lock_is_installed(checkout: Path) -> None:
    install_program(checkout, "print('ran')")
    (checkout / "deploy" / "install.sh").write_text('#!/bin/sh\necho installing "$@"\n')
    for stamp in (checkout / ".venv").glob("installed-*"):
        os.utime(stamp, (1, 1))  # older than every lock
    done = make(checkout, "demo")
    assert done.stdout == "ran\n"
    assert done.stderr == "installing .venv cpu demo\n"


def test_an_installed_gpu_environment_stays_one(checkout: Path) -> None:
    install_program(checkout, "print('ran')")
    for stamp in ("installed-cpu", "installed-cpu-demo"):
        (checkout / ".venv" / stamp).unlink()
    (checkout / ".venv" / "installed-gpu").touch()
    (checkout / "deploy" / "install.sh").write_text('#!/bin/sh\necho installing "$@"\n')
    assert make(checkout, "demo").stderr == "installing .venv gpu demo\n"


def test_an_unknown_extra_is_refused_with_what_is_allowed(checkout: Path) -> None:
    done = make(checkout, "install", "EXTRA=tpu")
    assert done.returncode != 0
    assert "EXTRA is 'tpu': expected cpu or gpu" in done.stderr


def test_an_old_python_is_refused_with_what_is_expected(checkout: Path) -> None:
    old = checkout / "python3"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.2'\nexit 1\n")
    old.chmod(0o755)
    done = make(checkout, "install", f"PYTHON={old}")
    assert done.returncode != 0
    assert "'Python 3.9.2': expected Python 3.11 to 3.14" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_machine_without_uv_venv_and_pip_is_told_what_to_install(checkout: Path) -> None:
    bare = checkout / "bin" / "python3"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exit 1\nexec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    for tool in ("sh", "make", "dirname", "rm", "basename"):
        found = shutil.which(tool)
        assert found
        (bare.parent / tool).symlink_to(found)
    done = make(checkout, "install", f"PYTHON={bare}", PATH=str(bare.parent))
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".uv").exists()


def test_make_alone_lists_the_commands(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0
    for target in ("install", "demo", "test", "check", "bench", "lock", "clean"):
        assert f"make {target}" in done.stdout
