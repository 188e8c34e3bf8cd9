"""A worker as a child process on an embedded broker: the demo and the live evaluation start, fill, watch and stop it."""

import asyncio
import contextlib
import errno
import itertools
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import aiohttp
import msgspec

from headwater.errors import HeadwaterError
from headwater.kafka.embedded_broker import dying_with_us
from headwater.kafka.publish import Outgoing, producer_of, write_keyed
from headwater.kafka.topics import Topics
from headwater.messages import Click, Item, encode
from headwater.settings import PREFIX, Settings

Health = dict[str, Any]  # the body of the worker's /healthz
Done = Callable[[int], None]  # is told how many are done so far

_START_TIMEOUT_S: Final = 60.0
_APPLY_TIMEOUT_S: Final = 600.0
_STOP_S: Final = 3.0
_CHUNK: Final = 10_000
_PORTS: Final = range(20_000, 32_000)


class OwnWorkerError(HeadwaterError):
    """The worker cannot go on: one sentence with the remedy."""


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Start a worker of role ``all``, and stop it at the end of the block. Yields its web address, http://host:port.

    The kernel kills it if this process is killed. Its output goes to `worker.log` in the data folder.

    Raises OwnWorkerError, with the last line of that log.
    """
    log = settings.data_dir / "worker.log"
    port = settings.web_port or free_port(settings.web_host)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= _as_environment(settings, port)
    command = dying_with_us([sys.executable, "-m", "headwater.commands.main", "worker", "--role", "all"])
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        web = f"http://{settings.web_host}:{port}"
        await _answers(process, web)
        yield web
    except OwnWorkerError as error:
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise OwnWorkerError(f"{error}; the last line of its log is: {last[0]}") from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def ready(web: str) -> Health:
    """Wait until the worker's state is complete; its health then. Raises OwnWorkerError after 60 s, or if it stopped."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            state = await _health(session, web)
            if state["ready"]:
                return state
            await asyncio.sleep(0.1)
    raise OwnWorkerError(f"the worker was not ready within {_START_TIMEOUT_S:.0f} s")


async def require(web: str) -> None:
    """Check that the worker still runs, for example after a request without an answer. Raises OwnWorkerError."""
    async with aiohttp.ClientSession() as session:
        await _health(session, web)


def _ignore(_: int) -> None: ...


async def publish_items(
    settings: Settings,
    web: str,
    items: Iterator[Item],
    count: int,
    searchable: Done,
    published: Done = _ignore,
) -> None:
    """Publish all ``count`` items, and wait until the worker at ``web`` has them in its index.

    Raises:
        OwnWorkerError: see `come_to`.
    """
    topic, partitions = Topics.named(settings.topic_prefix).catalog, settings.catalog_partitions
    records = (Outgoing(item.item_id.encode(), encode(item)) for item in items)
    async with _publishing(settings, topic, partitions, records, published) as publishing:
        await come_to(web, lambda state: int(state["items"]), count, searchable, publishing)


async def publish_clicks(
    settings: Settings,
    web: str,
    clicks: Iterator[Click],
    count: int,
    processed: Done,
    published: Done = _ignore,
) -> None:
    """Publish all ``count`` clicks, and wait until the worker at ``web`` has applied them.

    Raises:
        OwnWorkerError: see `come_to`.
    """
    topic, partitions = Topics.named(settings.topic_prefix).clicks, settings.partitions
    records = (Outgoing(click.user_id.encode(), encode(click)) for click in clicks)
    async with _publishing(settings, topic, partitions, records, published) as publishing:
        await come_to(web, applied, count, processed, publishing)


@contextlib.asynccontextmanager
async def _publishing(
    settings: Settings, topic: str, partitions: int, records: Iterator[Outgoing], done: Done
) -> AsyncIterator[asyncio.Future[int]]:
    producer = producer_of(settings)
    await producer.start()
    try:
        chunks = iter(lambda: list(itertools.islice(records, _CHUNK)), [])
        yield asyncio.ensure_future(write_keyed(producer, topic, partitions, chunks, done))
    finally:
        await producer.stop()


async def come_to(
    web: str,
    reached: Callable[[Health], int],
    target: int,
    done: Done,
    published: asyncio.Future[int],
) -> None:
    """Wait until everything is published and the worker has processed ``target`` records; report progress to ``done``.

    Raises:
        OwnWorkerError: the worker stopped, or was not done after ten minutes.
    """
    deadline = time.monotonic() + _APPLY_TIMEOUT_S
    now = 0
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            if published.done():
                published.result()
            now = int(reached(await _health(session, web)))
            done(min(now, target))
            if now >= target and published.done():
                return
            await asyncio.sleep(0.2)
    raise OwnWorkerError(
        f"the worker came to {now} of {target} within {_APPLY_TIMEOUT_S:.0f} s, expected all"
    )


def applied(state: Health) -> int:
    """Records of the clicks topic at or below the worker's watermarks."""
    return sum(int(watermark) + 1 for watermark in state["partitions"].values())


async def _health(session: aiohttp.ClientSession, web: str) -> Health:
    try:
        async with session.get(f"{web}/healthz", timeout=aiohttp.ClientTimeout(total=10.0)) as response:
            state: Health = msgspec.json.decode(await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OwnWorkerError(f"the worker at {web} does not answer ({error})") from error
    if not state["ok"]:
        raise OwnWorkerError(f"the worker stopped: {state['reason']}")
    return state


async def _answers(process: asyncio.subprocess.Process, web: str) -> None:
    """Wait until the worker answers over HTTP."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and process.returncode is None:
            try:
                async with session.get(f"{web}/healthz"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    raise OwnWorkerError("the worker did not start")


def _as_environment(settings: Settings, port: int) -> dict[str, str]:
    """The settings that the worker inherits, as environment variables; all others keep their defaults."""
    given: dict[str, Any] = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "TOPIC_PREFIX": settings.topic_prefix,
        "PARTITIONS": settings.partitions,
        "CATALOG_PARTITIONS": settings.catalog_partitions,
        "GRAPH_MIN_ITEMS": settings.graph_min_items,
        "DATA_DIR": settings.data_dir.resolve(),
        "BUNDLE": settings.bundle or "",
        "DEVICE": settings.device,
        "ENCODER_THREADS": settings.encoder_threads,
        "WEB_HOST": settings.web_host,
        "WEB_PORT": port,
        "LIVE_OPEN": settings.live_open,
        "ADMIN_HOST": settings.admin_host,
        "ADMIN_PORT": settings.admin_port,
        "ADMIN_TOKEN": settings.admin_token.get_secret_value() if settings.admin_token is not None else "",
    }
    return {f"{PREFIX}{name}": str(value) for name, value in given.items() if str(value)}


def free_port(host: str) -> int:
    """A port that nobody listens on, for a server that starts a moment later.

    Below those that kernels give to connections, of which one could take it in the meantime.

    Raises:
        OSError: ``host`` is no address of this machine.
    """
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
    raise OSError(f"100 ports of {host} between {_PORTS.start} and {_PORTS.stop} are all in use")
