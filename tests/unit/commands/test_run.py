"""`headwater up`, `worker` and `demo`, as processes."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headwater.commands.terminal import Exit
from tests.support.terminal import Terminal


def test_the_demo_wants_a_number_of_purchases(terminal: Terminal) -> None:
    assert "--events is many: expected a number of purchases, or all" in terminal.fails(
        "demo", "--events", "many", code=Exit.USAGE
    )


def test_the_running_system_is_found_from_any_folder(beside_up: Terminal, tmp_path: Path) -> None:
    elsewhere = Terminal(tmp_path, XDG_STATE_HOME=beside_up.environment["XDG_STATE_HOME"])
    elsewhere.succeeds("click", "fay", "c1")
    assert json.loads(elsewhere.succeeds("ask", "fay", "--json"))["reflects"]["events"] == 1
    assert "Ground filter coffee" in elsewhere.succeeds("user", "fay")


def test_a_second_up_in_the_same_folder_is_refused(beside_up: Terminal) -> None:
    assert "another Headwater runs in .headwater" in beside_up.fails("up", code=Exit.FAILED)


def test_a_worker_beside_the_embedded_broker_is_refused_from_any_folder(
    beside_up: Terminal, tmp_path: Path
) -> None:
    elsewhere = Terminal(tmp_path, XDG_STATE_HOME=beside_up.environment["XDG_STATE_HOME"])
    for terminal in (beside_up, elsewhere):
        sentence = terminal.fails("worker", code=Exit.FAILED)
        assert "is the embedded one of process" in sentence
        assert f"in {beside_up.folder}: it serves one worker" in sentence
        assert "set HEADWATER_KAFKA_BOOTSTRAP_SERVERS" in sentence


def test_a_wrong_option_is_one_sentence_before_anything_is_started(
    terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, expected in {
            ("--web-port", "70000"): "HEADWATER_WEB_PORT is 70000: expected",
            ("--kafka-port", "0"): "--kafka-port is 0: expected a port from 1 to 65535",
            ("--kafka-port", port): f"cannot listen on port {port}",
            ("--bundle", "nowhere"): "HEADWATER_BUNDLE is 'nowhere': expected the path of a bundle's folder",
            (
                "--data-dir",
                "file",
            ): "HEADWATER_DATA_DIR is 'file': expected a folder that this user can write to",
            ("--prefix", "my shop"): "HEADWATER_TOPIC_PREFIX is 'my shop': expected",
        }.items():
            done = terminal.run("up", *arguments)
            assert done.returncode in (Exit.FAILED, Exit.USAGE)
            assert "Traceback" not in done.stderr
            assert expected in done.stderr.splitlines()[-1]


def test_a_taken_web_port_is_one_sentence(terminal: Terminal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = terminal.fails("up", "--web-port", str(port), code=Exit.FAILED)
    assert f"HEADWATER_WEB_PORT is {port}: expected an address of this machine and a free port" in sentence


def test_options_of_the_embedded_broker_do_not_go_with_another_one(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, HEADWATER_KAFKA_BOOTSTRAP_SERVERS="kafka:9092")
    sentence = terminal.fails("up", "--keep", code=Exit.USAGE)
    assert (
        "--keep is for the embedded broker, but HEADWATER_KAFKA_BOOTSTRAP_SERVERS is kafka:9092" in sentence
    )


@pytest.mark.parametrize("command", ["up", "worker", "demo", "doctor", "ask ann", "topics check"])
def test_a_wrong_setting_is_told_before_anything_heavy_is_imported(tmp_path: Path, command: str) -> None:
    """Which is what takes seconds."""
    code = (
        "import sys\n"
        "from headwater.commands.main import main\n"
        f"try: main({command.split()!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'aiokafka', 'faust', 'numpy', 'onnxruntime', 'polars', 'rich.console'} & set(sys.modules)))\n"
    )
    environment = {**Terminal(tmp_path).environment, "HEADWATER_PARTITIONS": "many"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[]\n"
    assert "HEADWATER_PARTITIONS is 'many': expected" in done.stderr


@contextmanager
def running_up(terminal: Terminal, *options: str) -> Iterator[str]:
    """`up` with options, from the moment it is ready to its end by Ctrl-C; what it has said by then."""
    with terminal.start("up", *options) as running:
        assert running.stderr
        said: list[str] = []
        for line in running.stderr:
            said.append(line)
            if line.startswith("ready: "):
                break
        assert said[-1].startswith("ready: "), "".join(said)
        try:
            yield "".join(said)
        finally:
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=60)
    assert running.returncode == 0


def test_up_takes_its_ports_folder_and_prefix_and_keeps_what_it_is_asked_to(
    terminal: Terminal, unused_port: int
) -> None:
    options = ("--data-dir", "kept", "--prefix", "shop", "--kafka-port", str(unused_port))
    with running_up(terminal, *options, "--keep") as said:
        assert (
            f"embedded broker (saved every few seconds) on 127.0.0.1:{unused_port}, 11 topics created" in said
        )
        terminal.succeeds("click", "ann", "c1")
    with running_up(terminal, *options, "--keep") as said:
        assert f"127.0.0.1:{unused_port}, 0 topics created" in said
        assert json.loads(terminal.succeeds("ask", "ann", "--json"))["reflects"]["events"] == 1
    with running_up(terminal, *options) as said:
        assert "embedded broker (a stop forgets everything, unless --keep is given)" in said
        assert json.loads(terminal.succeeds("ask", "ann", "--json"))["reflects"]["events"] == 0
    assert not (terminal.folder / ".headwater").exists()
