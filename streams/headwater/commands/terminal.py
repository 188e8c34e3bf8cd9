"""What the commands share: sentences, consoles, the running system, HTTP to a worker."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cyclopts import Parameter

from headwater.errors import HeadwaterError

if TYPE_CHECKING:
    from rich.console import Console

    from headwater.settings import Settings


Result = TypeVar("Result")


MANY = Parameter(negative=(), consume_multiple=False)


_BROKER_TIMEOUT_S: Final = 10.0


class CommandError(HeadwaterError):
    """A command cannot do what was asked: one sentence with the remedy."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def stdout() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty())


def stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    import uvloop

    return uvloop.run(work)


def quiet_aiokafka() -> None:
    """For commands that end with a sentence: what aiokafka logs on the way to it is in that sentence."""
    import logging

    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def running_settings() -> "Settings":
    """Settings of the running system; of the environment where none runs."""
    from headwater.run_file import running_system

    quiet_aiokafka()
    return running_system()


def running_web() -> str | None:
    """host:port of the running worker's web, if it can be told."""
    from headwater import run_file

    settings = running_settings()
    run = run_file.read(settings)
    if run is not None and run.web:
        return run.web.removeprefix("http://")
    return f"127.0.0.1:{settings.web_port}" if settings.web_port else None


def web_address() -> str:
    if (address := running_web()) is None:
        raise CommandError(
            "no running worker is known here: start one with `headwater up`, or set HEADWATER_WEB_PORT to the port "
            "of a worker on this machine"
        )
    return address


def get(address: str, path: str) -> tuple[int, bytes]:
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException) as error:
        raise CommandError(
            f"no answer from the worker at http://{address} ({error}): is it still running? See `headwater doctor`"
        ) from error
    finally:
        connection.close()


async def within_timeout(work: Coroutine[Any, Any, Result], settings: "Settings") -> Result:
    try:
        return await asyncio.wait_for(work, _BROKER_TIMEOUT_S)
    except TimeoutError as error:
        raise CommandError(
            f"no answer from the Kafka broker at {settings.bootstrap_servers} within {_BROKER_TIMEOUT_S:g} s: start one "
            "(`headwater up`), or set HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
        ) from error
