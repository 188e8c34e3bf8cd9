"""Where the live page is, and when it opens by itself."""

import threading
from collections.abc import Mapping

import pytest

from headwater.commands import live_page


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({}, "linux", False),
        ({"DISPLAY": ""}, "linux", False),
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "darwin", True),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "linux", False),
        ({"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, "darwin", False),
    ],
)
def test_a_browser_opens_where_somebody_sits_before_a_display(
    environment: Mapping[str, str], platform: str, expected: bool
) -> None:
    assert live_page.has_display(environment, platform) is expected


def test_a_browser_that_does_not_come_back_holds_up_nothing() -> None:
    closed, asked = threading.Event(), list[str]()

    def browse(address: str) -> bool:
        asked.append(address)
        return closed.wait(30)

    thread = live_page.show("http://127.0.0.1:1234/", browse)
    assert thread.daemon  # the process may end before it
    closed.set()
    thread.join(30)
    assert asked == ["http://127.0.0.1:1234/"]


@pytest.mark.parametrize("opens", [True, False])
def test_the_address_is_told_and_only_a_terminal_gets_a_browser(
    opens: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr(live_page, "show", shown.append)
    live_page.tell("http://127.0.0.1:1234", opens=opens)
    assert capsys.readouterr().err == "live page: http://127.0.0.1:1234/\n"
    assert shown == []  # standard error is no terminal here
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    live_page.tell("http://127.0.0.1:1234", opens=opens)
    assert shown == (["http://127.0.0.1:1234/"] if opens else [])
