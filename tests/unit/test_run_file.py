"""The run file: read by a second terminal while its writer lives, ignored afterwards."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headwater import run_file
from headwater.settings import Settings, SettingsError


def _settings(data_dir: Path, **given: object) -> Settings:
    return Settings(data_dir=data_dir, **given)  # type: ignore[arg-type]


def test_a_second_terminal_takes_over_what_it_has_not_set(tmp_path: Path) -> None:
    running = _settings(tmp_path, kafka_bootstrap_servers="127.0.0.1:4711", topic_prefix="shop", partitions=6)
    with run_file.written(running, web="http://127.0.0.1:8080", bundle_id="starter-0123"):
        seen = run_file.resolve(_settings(tmp_path))
        run = run_file.read(seen)
    assert (seen.bootstrap_servers, seen.topic_prefix, seen.partitions) == ("127.0.0.1:4711", "shop.", 6)
    assert run is not None
    assert (run.web, run.bundle_id) == ("http://127.0.0.1:8080", "starter-0123")


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    with run_file.written(_settings(tmp_path, kafka_bootstrap_servers="127.0.0.1:4711", partitions=6)):
        seen = run_file.resolve(_settings(tmp_path, topic_prefix="other."))
        elsewhere = run_file.resolve(_settings(tmp_path, kafka_bootstrap_servers="kafka:9092"))
    assert (seen.bootstrap_servers, seen.topic_prefix) == ("127.0.0.1:4711", "other.")
    assert (elsewhere.bootstrap_servers, elsewhere.partitions) == ("kafka:9092", 4)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with run_file.written(_settings(tmp_path)):
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert list(tmp_path.iterdir()) == []
    assert run_file.read(_settings(tmp_path)) is None


def _write(settings: Settings, **changes: object) -> None:
    with run_file.written(settings) as run:
        stale = msgspec.structs.replace(run, **changes)
    run_file.path(settings).write_bytes(msgspec.json.encode(stale))


def test_the_file_of_a_dead_process_is_ignored(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    settings = _settings(tmp_path)
    _write(settings, pid=gone.pid, bootstrap_servers="127.0.0.1:4711")
    assert run_file.read(settings) is None
    assert run_file.resolve(settings) == settings
    with run_file.written(settings):  # and is written over
        assert run_file.read(settings) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="start times of processes are read from /proc")
def test_another_process_with_the_same_pid_is_not_the_writer(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    _write(settings, pid_started=1)
    assert run_file.read(settings) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"])
def test_a_broken_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    settings = _settings(tmp_path)
    run_file.path(settings).write_bytes(content)
    assert run_file.read(settings) is None


def test_two_systems_do_not_share_a_data_folder(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        _write(settings, pid=other.pid, pid_started=0)
        with pytest.raises(SettingsError) as caught, run_file.written(settings):
            pass
    finally:
        other.communicate(b"\n")
    assert f"process {other.pid}" in str(caught.value)
    assert "HEADWATER_DATA_DIR" in str(caught.value)


def test_secrets_are_not_written(tmp_path: Path) -> None:
    settings = _settings(
        tmp_path,
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_username="me",
        kafka_sasl_password="hunter2",
        qdrant_api_key="hunter3",
    )
    with run_file.written(settings):
        assert b"hunter" not in run_file.path(settings).read_bytes()
