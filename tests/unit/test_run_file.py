"""Run files: any terminal of the user finds the running system, and no file of somebody else is trusted."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headwater import run_file
from headwater.run_file import Run, SeveralRunning, demo_dir, running_system
from headwater.settings import Settings, SettingsError


@pytest.fixture
def registry() -> Path:
    folder = run_file.registries()[0]
    folder.mkdir(mode=0o700, parents=True)
    return folder


def _settings(data_dir: Path, **given: object) -> Settings:
    return Settings(data_dir=data_dir, **given)  # type: ignore[arg-type]


def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Settings of a terminal in another folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Settings()


def test_a_second_terminal_takes_over_what_it_has_not_set(tmp_path: Path) -> None:
    up = _settings(tmp_path, kafka_bootstrap_servers="127.0.0.1:4711", topic_prefix="shop", partitions=6)
    with run_file.announced(up, web="http://127.0.0.1:8080", bundle_id="starter-0123"):
        seen = running_system(_settings(tmp_path))
        run = run_file.read(seen)
    assert (seen.bootstrap_servers, seen.topic_prefix, seen.partitions) == ("127.0.0.1:4711", "shop.", 6)
    assert run is not None
    assert (run.web, run.bundle_id) == ("http://127.0.0.1:8080", "starter-0123")


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    with run_file.announced(_settings(tmp_path, kafka_bootstrap_servers="127.0.0.1:4711", partitions=6)):
        seen = running_system(_settings(tmp_path, topic_prefix="other."))
        another = _settings(tmp_path, kafka_bootstrap_servers="kafka:9092")
        assert running_system(another) == another
    assert (seen.bootstrap_servers, seen.topic_prefix) == ("127.0.0.1:4711", "other.")


def test_nothing_is_left_behind(tmp_path: Path, registry: Path) -> None:
    mine = _settings(tmp_path)
    with run_file.announced(mine):
        assert len(list(registry.iterdir())) == 1
    assert list(registry.iterdir()) == []
    assert run_file.read(mine) is None
    assert running_system(mine) == mine


def test_the_only_running_system_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_file.announced(_settings(tmp_path / "shop", kafka_bootstrap_servers="127.0.0.1:4711")):
        found = running_system(_elsewhere(monkeypatch, tmp_path))
    assert found.bootstrap_servers == "127.0.0.1:4711"
    assert found.data_dir == tmp_path / "shop"


def test_of_several_systems_that_of_the_folder_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _settings(tmp_path / "first", kafka_bootstrap_servers="127.0.0.1:7001")
    second = _settings(tmp_path / "second", kafka_bootstrap_servers="127.0.0.1:7002")
    with run_file.announced(first), _announced_by_another(second):
        assert running_system(_settings(tmp_path / "first")).bootstrap_servers == "127.0.0.1:7001"
        assert running_system(_settings(tmp_path / "second")).bootstrap_servers == "127.0.0.1:7002"
        elsewhere = _elsewhere(monkeypatch, tmp_path)
        with pytest.raises(SeveralRunning) as caught:
            running_system(elsewhere)
        named = elsewhere.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:7002"})
        assert running_system(named).partitions == second.partitions
    for expected in (
        "2 systems run",
        "127.0.0.1:7001",
        "127.0.0.1:7002",
        "HEADWATER_KAFKA_BOOTSTRAP_SERVERS",
    ):
        assert expected in str(caught.value)


def test_a_system_with_its_data_elsewhere_is_that_of_the_folder_it_was_started_in(tmp_path: Path) -> None:
    here = _settings(tmp_path / "disk", kafka_bootstrap_servers="127.0.0.1:7001")
    with run_file.announced(here) as run, _announced_by_another(_settings(tmp_path / "b")):
        assert run_file.read(_settings(Path("nowhere"))) == run


def test_in_one_folder_up_goes_before_the_demo(tmp_path: Path) -> None:
    mine = _settings(tmp_path)
    demo = _settings(demo_dir(mine), kafka_bootstrap_servers="127.0.0.1:7001")
    with run_file.announced(demo):
        assert running_system(mine).bootstrap_servers == "127.0.0.1:7001"
        with _announced_by_another(_settings(tmp_path, kafka_bootstrap_servers="127.0.0.1:7002")):
            assert running_system(mine).bootstrap_servers == "127.0.0.1:7002"


def test_a_run_file_in_the_working_folder_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = Settings()
    with run_file.announced(_settings(Path(".headwater"), kafka_bootstrap_servers="evil:9092")):
        (theirs,) = registry.iterdir()
        planted = theirs.read_bytes()
    mine.data_dir.mkdir()
    for path in (mine.data_dir / "run.json", tmp_path / "run.json"):
        path.write_bytes(planted)
    assert running_system(mine) == mine


def test_a_registry_that_others_can_write_to_is_not_trusted(tmp_path: Path, registry: Path) -> None:
    with run_file.announced(_settings(tmp_path)):
        assert len(run_file.running()) == 1
        registry.chmod(0o777)
        assert run_file.running() == []


def test_the_token_of_a_worker_is_for_this_user_alone(tmp_path: Path, registry: Path) -> None:
    up = _settings(tmp_path).with_admin_token()
    assert up.admin_token is not None
    token = up.admin_token.get_secret_value()
    old_mask = os.umask(0)
    try:
        with run_file.announced(up, admin="http://127.0.0.1:8081") as run:
            (path,) = registry.iterdir()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert run_file.read(up) == run
            assert (run.admin, run.admin_token) == ("http://127.0.0.1:8081", token)
            assert token not in repr(run) + str(run)
            path.chmod(0o640)
            assert run_file.running() == []
    finally:
        os.umask(old_mask)


def test_a_file_that_others_can_write_to_or_a_link_is_not_trusted(tmp_path: Path, registry: Path) -> None:
    with run_file.announced(_settings(tmp_path)):
        (path,) = registry.iterdir()
        path.chmod(0o666)
        assert run_file.running() == []
        elsewhere = path.rename(tmp_path / "moved.json")
        elsewhere.chmod(0o600)
        path.symlink_to(elsewhere)
        assert run_file.running() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_not_trusted(tmp_path: Path, registry: Path) -> None:
    with run_file.announced(_settings(tmp_path)):
        (path,) = registry.iterdir()
        os.chown(path, 12345, 12345)
        assert run_file.running() == []
        os.chown(path, os.geteuid(), os.getegid())
        os.chown(registry, 12345, 12345)
        assert run_file.running() == []


def test_the_registry_is_for_this_user_alone(tmp_path: Path) -> None:
    with run_file.announced(_settings(tmp_path)):
        assert stat.S_IMODE(run_file.registries()[0].stat().st_mode) == 0o700


def test_without_a_state_folder_a_temporary_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with run_file.announced(_settings(tmp_path / "data")) as run:
        assert run_file.running() == [run]
    (tmp_path / "tmp" / f"headwater-{os.geteuid()}" / "running").chmod(0o777)
    with pytest.raises(SettingsError, match="set XDG_STATE_HOME"), run_file.announced(_settings(tmp_path)):
        pass


def _announced_by_another(settings: Settings, **changes: object) -> "_Another":
    return _Another(settings, changes)


class _Another:
    """A system of another process, which is really there."""

    def __init__(self, settings: Settings, changes: dict[str, object]) -> None:
        self._settings, self._changes = settings, changes

    def __enter__(self) -> Run:
        self._process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        changes = {"pid": self._process.pid, "pid_started": 0, "started_in": "/another", **self._changes}
        self._path, run = _write(self._settings, **changes)
        return run

    def __exit__(self, *_: object) -> None:
        self._process.communicate(b"\n")
        self._path.unlink(missing_ok=True)


def _write(settings: Settings, **changes: object) -> tuple[Path, Run]:
    """A run file as a process with other properties than ours would have left it."""
    changed = msgspec.structs.replace(run_file.this_process(settings), **changes)
    path = run_file.registries()[0] / f"{changed.pid}-test.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.encode(changed))
    return path, changed


def test_the_file_of_a_dead_process_is_ignored_and_swept(tmp_path: Path, registry: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    settings = _settings(tmp_path)
    path, _ = _write(settings, pid=gone.pid, bootstrap_servers="127.0.0.1:4711")
    assert run_file.read(settings) is None
    assert running_system(settings) == settings
    with run_file.announced(settings):
        assert run_file.read(settings) is not None
        assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="start times of processes are read from /proc")
def test_another_process_with_the_same_pid_is_not_the_writer(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    _write(settings, pid_started=1)
    assert run_file.read(settings) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"])
def test_a_broken_file_is_ignored(tmp_path: Path, registry: Path, content: bytes) -> None:
    (registry / "1-1.json").write_bytes(content)
    assert run_file.running() == []
    with run_file.announced(_settings(tmp_path)) as run:
        assert run_file.running() == [run]


def test_two_systems_do_not_share_a_data_folder(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    with (
        _announced_by_another(settings) as other,
        pytest.raises(SettingsError) as caught,
        run_file.announced(settings),
    ):
        pass
    assert f"process {other.pid}" in str(caught.value)
    assert "HEADWATER_DATA_DIR" in str(caught.value)


def test_secrets_are_not_written(tmp_path: Path, registry: Path) -> None:
    settings = _settings(
        tmp_path,
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_username="me",
        kafka_sasl_password="hunter2",
        qdrant_api_key="hunter3",
    )
    with run_file.announced(settings):
        (path,) = registry.iterdir()
        assert b"hunter" not in path.read_bytes()
