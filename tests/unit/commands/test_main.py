"""How commands are listed and how they end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from headwater import __version__
from headwater.commands.terminal import EXIT_MEANINGS, Exit
from tests.support.checkout import ROOT
from tests.support.terminal import Terminal

COMMANDS = {
    "Run": ("up", "demo", "worker"),
    "Publish and ask": ("import", "click", "ask", "user"),
    "Operate": ("doctor", "settings", "topics", "metrics", "schema"),
    "Train": ("train", "evaluate", "tune", "export", "bundle"),
}
LEAVES = [
    *((name,) for names in COMMANDS.values() for name in names if name not in ("import", "topics", "bundle")),
    *(("import", name) for name in ("catalog", "clicks")),
    *(("topics", name) for name in ("create", "check")),
    *(("bundle", name) for name in ("show", "compare", "mean", "lighten")),
]


def printed_by(*statements: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(statements)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def test_help_lists_every_command_in_its_group_and_imports_nothing_heavy() -> None:
    printed = printed_by(
        "import sys",
        "from headwater.commands.main import main",
        "try: main(['--help'])",
        "except SystemExit: pass",
        "heavy = {'faust', 'onnxruntime', 'polars', 'aiokafka', 'numpy', 'qdrant_client', 'pydantic'}",
        "print(sorted(heavy & set(sys.modules)))",
    )
    assert printed.endswith("[]\n")
    places = [printed.index(f" {name} ") for name in (*COMMANDS, "Options")]
    assert places == sorted(places)
    for (group, names), start, stop in zip(COMMANDS.items(), places, places[1:], strict=False):
        for name in names:
            assert f"│ {name} " in printed[start:stop], f"{name} is not listed under {group}"


def test_the_help_of_each_command_has_an_example_of_it_and_no_breaks_within_sentences() -> None:
    printed = printed_by(
        "import os; os.environ['COLUMNS'] = '1000'",
        "from headwater.commands.main import main",
        f"for words in {LEAVES!r}:",
        "    print('<<' + ' '.join(words))",
        "    try: main([*words, '--help'])",
        "    except SystemExit: pass",
    )
    helps = dict(each.split("\n", 1) for each in printed.split("<<")[1:])
    assert set(helps) == {" ".join(words) for words in LEAVES}
    for command, text in helps.items():
        assert f"headwater {command}" in text.partition("Example: ")[2], command
    assert "every few seconds, and load it at the next start. A kill loses" in helps["up"]


def test_help_tells_what_the_exit_codes_mean(terminal: Terminal) -> None:
    printed = terminal.succeeds("--help")
    assert set(EXIT_MEANINGS) == set(Exit)
    for code, meaning in EXIT_MEANINGS.items():
        assert f"{code:>5}  {meaning}\n" in printed


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_told(terminal: Terminal, flag: str) -> None:
    assert terminal.succeeds(flag) == f"{__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    script = printed_by(
        "from headwater.commands.main import app", f"print(app.generate_completion(shell={shell!r}))"
    )
    for word in ("doctor", "catalog", "lighten", "include-seen", "purchase"):
        assert word in script


def test_a_command_line_that_cannot_be_read_is_one_sentence(terminal: Terminal) -> None:
    expected = {
        "demonstrate": 'Unknown command "demonstrate".',
        "topics delete": 'Unknown command "delete". Available commands: create, check, accept.',
        "worker --role none": 'Invalid value "none" for --role.',
        "ask ann --lmit 3": "Unknown option: --lmit. Did you mean --limit?",
        "click": "user",
        "click ann x --action buy": 'Invalid value "buy" for --action.',
    }
    for sentence, part in zip(terminal.mistakes(*map(str.split, expected)), expected.values(), strict=True):
        assert part.lower() in sentence.lower()
        assert "See `headwater" in sentence


def test_a_wrong_setting_is_one_sentence(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, HEADWATER_PARTITIONS="many")
    assert "HEADWATER_PARTITIONS is 'many': expected" in terminal.fails("topics", "check", code=Exit.FAILED)


def test_a_wrong_setting_is_told_before_anything_heavy_is_imported() -> None:
    printed = printed_by(
        "import os, sys",
        "os.environ['HEADWATER_PARTITIONS'] = 'many'",
        "from headwater.commands.main import main",
        "for line in ('up', 'demo', 'worker', 'ask ann', 'click ann x', 'topics create', 'doctor', 'settings', 'import catalog f'):",
        "    try: main(line.split())",
        "    except SystemExit as end: print(end.code, end=' ')",
        "heavy = {'faust', 'onnxruntime', 'polars', 'aiokafka', 'numpy', 'qdrant_client', 'uvloop'}",
        "print(sorted(heavy & set(sys.modules)))",
    )
    assert printed == 9 * "1 " + "[]\n"


@pytest.mark.parametrize("command", [["up"], ["demo", "--once"]], ids=" ".join)
def test_a_data_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "file").write_text("")
    terminal = Terminal(tmp_path, HEADWATER_DATA_DIR=str(tmp_path / "file" / "data"))
    sentence = terminal.fails(*command, code=Exit.FAILED)
    assert str(tmp_path / "file" / "data") in sentence
    assert "HEADWATER_DATA_DIR" in sentence


def test_a_web_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = Terminal(tmp_path, HEADWATER_WEB_PORT=str(port)).fails("up", code=Exit.FAILED)
    assert str(port) in sentence
    assert "HEADWATER_WEB_PORT" in sentence


def test_an_interrupt_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with Terminal(tmp_path, HEADWATER_KAFKA_BOOTSTRAP_SERVERS=address).start("ask", "ann") as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert "Traceback" not in stderr


def test_a_reader_that_has_enough_ends_a_command_in_peace(terminal: Terminal) -> None:
    with terminal.start("metrics") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=60) == Exit.DONE
        assert process.stderr.read() == ""


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
    sentence = terminal.fails(*arguments, code=Exit.UNREACHABLE)
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
        terminal = Terminal(tmp_path, HEADWATER_KAFKA_BOOTSTRAP_SERVERS=address)
        sentence = terminal.fails(*arguments, code=Exit.UNREACHABLE)
    assert f"no answer from the Kafka broker at {address}" in sentence
    assert "10 s" in sentence
