"""Processes under measurement: a worker or a baseline, each on its own, watched from outside."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from headwater.kafka.embedded_broker import dying_with_us

START_S = 120.0
GRAPH_S = 300.0
GRAPH_ITEMS = 10_000  # the edge index scans smaller collections
_STOP_S = 20.0


class BenchError(Exception):
    """A measurement cannot be made: one sentence that says why."""


class Process:
    """A child process with its log."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, started_s: float) -> None:
        self._process, self._log, self.started_s = process, log, started_s

    @property
    def pid(self) -> int:
        return self._process.pid

    def hold(self) -> None:
        """Stop it where it is, until :meth:`go_on`."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def memory_mib(self) -> float:
        """Resident memory now."""
        return self._status_mib("VmRSS")

    def mapped_mib(self) -> float:
        """Of that, pages of files: what the kernel can take back."""
        return self._status_mib("RssFile")

    def _status_mib(self, name: str) -> float:
        found = re.search(rf"{name}:\s*(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def proportional_mib(self) -> dict[str, float]:
        """Pages that it shares with others are divided by their number: Pss, and of that Pss_Anon and Pss_File."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return {
            name: int(kb) / 1024 for name, kb in re.findall(r"(?m)^(Pss|Pss_Anon|Pss_File):\s*(\d+) kB", text)
        }

    def open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def threads(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/task").iterdir())

    def used_cpu_s(self) -> float:
        """Processor time so far, all threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def require_running(self) -> None:
        if self._process.returncode is not None:
            raise BenchError(f"a process ended with status {self._process.returncode}:\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])

    async def finished(self) -> str:
        """Wait for it to end by itself, well; the last line of what it said."""
        if await self._process.wait():
            self.require_running()
        lines = self._log.read_text().splitlines()
        return lines[-1] if lines else ""

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


@asynccontextmanager
async def python(
    arguments: list[str],
    folder: Path,
    name: str,
    environment: Mapping[str, str] | None = None,
    *,
    interpreter: str = sys.executable,
) -> AsyncIterator[Process]:
    """A Python process with these arguments, ended with the block."""
    log = folder / f"{name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        started_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *dying_with_us([interpreter, *arguments]),
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    child = Process(process, log, started_s)
    try:
        yield child
    finally:
        await child.stop()


class Worker:
    """A running worker, asked over its own HTTP port."""

    def __init__(self, process: Process, address: str, http: aiohttp.ClientSession) -> None:
        self.process, self.address, self._http = process, address, http
        self.ready_s = 0.0  # from the start of its process

    async def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self._get("/healthz"))
        return found

    async def metrics(self) -> dict[str, float]:
        """Every sample by its whole name, labels included: `headwater_lag{partition="0",topic="x"}`."""
        text = await self._get("/metrics")
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    async def _get(self, path: str) -> str:
        """Raises BenchError, with the worker's last words, when it does not answer."""
        try:
            async with self._http.get(f"{self.address}{path}") as answer:
                return await answer.text()
        except aiohttp.ClientError as error:
            raise BenchError(f"the worker does not answer ({error}):\n{self.process.last_words()}") from error

    async def wait_ready(self) -> None:
        while True:
            self.process.require_running()
            try:
                if (await self.health())["ready"]:
                    break
            except BenchError:
                pass  # it does not listen yet
            if time.monotonic() - self.process.started_s > START_S:
                raise BenchError(
                    f"the worker was not ready after {START_S:.0f} s:\n{self.process.last_words()}"
                )
            await asyncio.sleep(0.02)
        self.ready_s = time.monotonic() - self.process.started_s

    async def wait_graph(self) -> None:
        """Until the edge index has built its search graph, which takes a core for as long; small ones have none."""
        deadline = time.monotonic() + GRAPH_S
        while (health := await self.health())["items"] >= GRAPH_ITEMS and not health["graph"]:
            if time.monotonic() > deadline:
                raise BenchError(f"the search graph was not built after {GRAPH_S:.0f} s: {health}")
            await asyncio.sleep(0.5)


@asynccontextmanager
async def worker(
    role: str,
    folder: Path,
    environment: Mapping[str, str],
    command: Sequence[str] = ("-m", "headwater.commands.main"),
) -> AsyncIterator[Worker]:
    """A worker that is ready."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    given = {**environment, "HEADWATER_WEB_PORT": str(port)}
    async with (
        aiohttp.ClientSession() as http,
        python([*command, "worker", "--role", role], folder, role, given) as process,
    ):
        running = Worker(process, f"http://127.0.0.1:{port}", http)
        await running.wait_ready()
        yield running
