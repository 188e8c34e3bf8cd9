"""What the commands share: how a command ends, consoles, the running system, HTTP to a worker.

Imports nothing heavy: every command, and the list of all of them, loads this file.
"""

import asyncio
import shlex
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from cyclopts import Parameter

from headwater.errors import HeadwaterError, Unreachable
from headwater.plain_text import plain, plain_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from headwater.settings import Settings

MANY: Final = Parameter(negative=(), consume_multiple=False, show_default=False)
FLAG: Final = Parameter(negative=(), show_default=False)
# Several values after one name, as a shell makes of days/*.csv.
FILES: Final = Parameter(negative=(), consume_multiple=True, show_default=False)
Result = TypeVar("Result")

_BROKER_TIMEOUT_S: Final = 10.0
_WORKER_TIMEOUT_S: Final = 10.0


class Exit(IntEnum):
    """The exit codes, so that a script can tell what happened."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    EXPIRED = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


EXIT_MEANINGS: Final = {
    Exit.DONE: "done",
    Exit.FAILED: "failed, or `doctor`, `topics` or a comparison found something wrong",
    Exit.USAGE: "an option or argument is wrong; nothing was tried",
    Exit.REJECTED: "the worker rejected the request as invalid, or is overloaded",
    Exit.EXPIRED: "the demanded click was not applied by the deadline",
    Exit.UNREACHABLE: "no broker or worker answered in time",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
}


class CommandError(HeadwaterError):
    """A command cannot do what it was told: one sentence with the remedy."""

    exit_code = Exit.FAILED


class UsageError(CommandError):
    """An option or argument is wrong."""

    exit_code = Exit.USAGE


class Rejected(CommandError):
    """A worker refused the request."""

    exit_code = Exit.REJECTED


class Expired(CommandError):
    """The demanded click was not applied by the deadline."""

    exit_code = Exit.EXPIRED


class NoAnswer(CommandError, Unreachable):
    """No broker or worker answered in time."""

    exit_code = Exit.UNREACHABLE


def exit_code_of(error: HeadwaterError) -> Exit:
    """The exit code of a command that ended with ``error``."""
    if isinstance(error, CommandError):
        return error.exit_code
    return Exit.UNREACHABLE if isinstance(error, Unreachable) else Exit.FAILED


def command_line() -> str:
    """The command line of this process, as a bundle records what made it."""
    return shlex.join(["headwater", *sys.argv[1:]])


def say(text: str) -> None:
    """Print a line of progress, on standard error."""
    print(plain(text, kept="\n"), file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Print a line of a result, on standard output."""
    print(plain(text, kept="\n"))


def print_json(json: bytes) -> None:
    """Print JSON as a result."""
    print(plain_json(json.decode()))


def print_indented(value: object) -> None:
    """Print a value as JSON for a person: a field a line."""
    import msgspec

    print_json(msgspec.json.format(msgspec.json.encode(value)))


def stdout() -> "Console":
    """The console for results. It prints text as it is: no markup, and nothing that steers the terminal."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> "Text":  # of every line and every cell of a table
            return super().render_str(plain(text), **options)

    return Plain(soft_wrap=not sys.stdout.isatty(), markup=False, emoji=False, highlight=False)


def stderr() -> "Console":
    """The console for progress bars."""
    from rich.console import Console

    return Console(stderr=True)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine on a new event loop."""
    import uvloop

    return uvloop.run(work)


async def within_timeout(
    work: Coroutine[Any, Any, Result], settings: "Settings", waits_s: float = 0.0
) -> Result:
    """The result of a call to the broker that should take milliseconds, beside up to ``waits_s`` of waiting.

    Raises:
        NoAnswer: the broker was silent for ten seconds.
    """
    timeout_s = _BROKER_TIMEOUT_S + waits_s
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError as error:
        raise NoAnswer(
            f"no answer from the Kafka broker at {settings.bootstrap_servers} within {timeout_s:g} s: start one "
            "(`headwater up`), or set HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
        ) from error


def moment_ms(option: str, text: str) -> int:
    """A date and time, or milliseconds since 1970, as given to an option; in milliseconds since 1970.

    Raises:
        UsageError: it is neither.
    """
    try:
        if text.isdecimal():
            return int(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{option} is {text[:80]}: expected a date and time such as 2026-11-30T12:00, or milliseconds since 1970"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def quiet_aiokafka() -> None:
    """Silence aiokafka's log in commands that end with a sentence: the sentence repeats what it says."""
    import logging

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def running_settings() -> "Settings":
    """The settings of the running system, or of the environment where none runs.

    Raises:
        SettingsError: a setting is wrong, or several systems run.
    """
    from headwater.run_file import running_system

    quiet_aiokafka()
    return running_system()


def default_bundle() -> Path:
    """The folder of the bundle that is set, of the running system, or the shipped one.

    Which system is meant matters to commands that talk to one. These do not, so several running systems are no error.
    """
    from headwater.run_file import SeveralRunning, running_system
    from headwater.settings import Settings

    quiet_aiokafka()
    try:
        return running_system().bundle_path
    except SeveralRunning:
        return Settings.load().bundle_path


def running_web(settings: "Settings") -> str | None:
    """host:port of the running worker's HTTP server; None where it is not known."""
    from headwater import run_file

    run = run_file.read(settings)
    if run is not None and run.web:
        return run.web.removeprefix("http://")
    return f"127.0.0.1:{settings.web_port}" if settings.web_port else None


class AdminEndpoint(NamedTuple):
    """Where a worker serves data of users and items, and the token that it asks for."""

    address: str  # host:port
    token: str

    def __repr__(self) -> str:
        return f"AdminEndpoint({self.address})"


def admin_endpoint(settings: "Settings") -> AdminEndpoint | None:
    """The endpoint of the running worker; None if it is not known."""
    from headwater import run_file

    run = run_file.read(settings)
    if run is not None and run.admin and run.admin_token:
        return AdminEndpoint(run.admin.removeprefix("http://"), run.admin_token)
    if settings.admin_port and settings.admin_token is not None:
        return AdminEndpoint(f"127.0.0.1:{settings.admin_port}", settings.admin_token.get_secret_value())
    return None


def required_admin_endpoint(settings: "Settings") -> AdminEndpoint:
    """The endpoint of the running worker.

    Raises:
        NoAnswer: no worker that serves users' data is known on this machine.
    """
    if (endpoint := admin_endpoint(settings)) is None:
        raise NoAnswer(
            "no running worker that serves users' data is known here: start one with `headwater up`, or set "
            "HEADWATER_ADMIN_PORT and HEADWATER_ADMIN_TOKEN to those of a worker on this machine"
        )
    return endpoint


def http_get(address: str, path: str, token: str | None = None) -> tuple[int, bytes]:
    """Status and body of a GET from the worker at ``address`` (host:port), which may ask for a token.

    Raises:
        NoAnswer: nothing answers there within ten seconds.
    """
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(address, timeout=_WORKER_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException) as error:
        raise NoAnswer(
            f"no answer from http://{address} ({error}): is it still running? See `headwater doctor`"
        ) from error
    finally:
        connection.close()


def answer_as(kind: type[Result], address: str, body: bytes) -> Result:
    """What the worker at ``address`` answered with, as a type of JSON.

    Raises:
        NoAnswer: something else than a worker listens there.
    """
    import msgspec

    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError):
        raise NoAnswer(
            f"http://{address} answered something else than a worker does: expected the port of one; see `headwater doctor`"
        ) from None
