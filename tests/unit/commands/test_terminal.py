"""What commands share."""

import sys
from typing import Any

import pytest
from rich.table import Table

from headwater import client
from headwater.commands.terminal import (
    CommandError,
    Exit,
    Expired,
    NoAnswer,
    Rejected,
    UsageError,
    answer_as,
    command_line,
    exit_code_of,
    http_get,
    moment_ms,
    print_json,
    required_admin_endpoint,
    say,
    stdout,
    tell,
)
from headwater.errors import HeadwaterError
from headwater.kafka import topics
from headwater.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HeadwaterError, Exit.FAILED),
        (SettingsError, Exit.FAILED),
        (CommandError, Exit.FAILED),
        (UsageError, Exit.USAGE),
        (Rejected, Exit.REJECTED),
        (Expired, Exit.EXPIRED),
        (NoAnswer, Exit.UNREACHABLE),
        (client.NoBroker, Exit.UNREACHABLE),
        (client.NotPublished, Exit.UNREACHABLE),
        (client.RecallTimeout, Exit.UNREACHABLE),
        (topics.NoBroker, Exit.UNREACHABLE),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: type[HeadwaterError], code: Exit) -> None:
    assert exit_code_of(error.__new__(error)) is code


def test_a_worker_that_does_not_answer_is_told_with_its_address(unused_port: int) -> None:
    with pytest.raises(NoAnswer, match=f"no answer from http://127.0.0.1:{unused_port}"):
        http_get(f"127.0.0.1:{unused_port}", "/healthz")


def test_the_worker_is_the_one_on_the_port_that_is_set() -> None:
    token = "x" * 16
    endpoint = required_admin_endpoint(Settings(admin_port=4711, admin_token=token))  # type: ignore[arg-type]
    assert endpoint == ("127.0.0.1:4711", token)
    assert token not in repr(endpoint)
    for unknown in (Settings(), Settings(admin_port=4711), Settings(admin_token=token)):  # type: ignore[arg-type]
        with pytest.raises(NoAnswer, match="no running worker that serves users' data is known here"):
            required_admin_endpoint(unknown)


@pytest.mark.parametrize("body", [b"<html>", b"\xff\xfe{", b"[]", b"[" * 100_000, b"", b"1" * 5_000])
def test_what_is_no_worker_is_told_with_its_address(body: bytes) -> None:
    with pytest.raises(NoAnswer, match=r"http://127\.0\.0\.1:80 answered something else than a worker"):
        answer_as(dict[str, Any], "127.0.0.1:80", body)
    assert answer_as(dict[str, Any], "127.0.0.1:80", b'{"ok":true}') == {"ok": True}


# It ends markup that nobody began, has an emoji's name, a colour, and a line of its own.
TITLE = "[/b] :tea: \x1b[31mred\x9b2J\nok \u202e"
SPELT = "[/b] :tea: \\x1b[31mred\\x9b2J\\nok \\u202e"


def test_text_of_strangers_is_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("title", box=None)
    table.add_row(TITLE)
    stdout().print(table)
    stdout().print(TITLE)
    printed = capsys.readouterr().out
    assert printed.count(SPELT) == 2
    assert not any(each in printed for each in "\x1b\x9b\u202e")


def test_lines_and_json_cannot_steer_a_terminal_either(capsys: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo \x1b[2J")
    tell("\x9b2J")
    print_json('{"title":"\x7f\u202e"}'.encode())
    printed = capsys.readouterr()
    assert printed.err == "one\ntwo \\x1b[2J\n"
    assert printed.out == '\\x9b2J\n{"title":"\\u007f\\u202e"}\n'


@pytest.mark.parametrize("text", ["noon", "9" * 5_000, "\udcff"])
def test_what_is_no_moment_is_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"--at is .{1,80}: expected a date and time"):
        moment_ms("--at", text)


def test_the_command_line_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["/bin/headwater", "train", "lru", "--set", "fit.loss=gbce", "--out", "my bundle"]
    )
    assert command_line() == "headwater train lru --set fit.loss=gbce --out 'my bundle'"
