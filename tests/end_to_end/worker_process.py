"""A worker as its own process, as a service manager would run it: environment in, exit code out, HTTP in between."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from headwater.commands.worker_process import free_port
from headwater.kafka.embedded_broker import dying_with_us
from tests.support.checkout import ROOT

# Generous, since two cores may be shared with a compiler; a worker that is well needs four seconds.
READY_S = 90.0
STOP_S = 15.0
# A worker that was killed holds its partitions until its session times out; brokers refuse less than this.
SESSION_TIMEOUT_S = 6.0


def command(*arguments: str, module: str = "headwater.commands.main") -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with these settings, and no others of Headwater's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    ours = {f"HEADWATER_{name.upper()}": str(value) for name, value in settings.items()}
    return {**inherited, **ours, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class WorkerProcess:
    """One worker; `home` is its own folder (working directory, data, log). Settings are names of `Settings`."""

    def __init__(self, home: Path, role: str = "all", **settings: object) -> None:
        self.home, self.role, self.settings = home, role, settings
        self.log = home / "worker.log"
        self.within: tuple[
            str, ...
        ] = ()  # a command that becomes the worker, after what it does to its surroundings
        self._process: subprocess.Popen[bytes] | None = None
        self._port = self._admin_port = 0
        self._token = secrets.token_hex(16)
        self.module = "headwater.commands.main"
        self._may_end = False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and return once it is ready."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        self.wait_until("it is ready", lambda: self.health()["ready"])

    def launch(self) -> None:
        """Start, and return at once."""
        assert self._process is None, "it runs already"
        self.home.mkdir(parents=True, exist_ok=True)
        self._port, self._admin_port = free_port("127.0.0.1"), free_port("127.0.0.1")
        admin = {"admin_port": self._admin_port, "admin_token": self._token}
        given = {
            **admin,
            "data_dir": self.home / "data",
            "session_timeout_s": SESSION_TIMEOUT_S,
            **self.settings,
        }
        with self.log.open("ab") as log:
            self._may_end = False
            self._process = subprocess.Popen(
                dying_with_us([*self.within, *command("worker", "--role", self.role, module=self.module)]),
                cwd=self.home,
                env=environment(web_port=self._port, **given),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: nothing is finished, committed or closed. Harmless when it does not run."""
        if self._process is not None:
            self._may_end = True
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def ask_to_stop(self) -> None:
        assert self._process is not None
        self._may_end = True
        self._process.send_signal(signal.SIGTERM)

    def exit_code(self, timeout_s: float = STOP_S) -> int:
        """Wait for its end."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the worker still runs after {timeout_s:g} s\n{self.last_words()}"
            ) from None
        self._process = None
        if code != 0:
            print(
                f"the worker in {self.home} ended with {code}\n{self.last_words()}"
            )  # shown where the test fails
        return code

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.ask_to_stop()
        return self.exit_code()

    def check_alive(self) -> None:
        """Fail with its last words when it has ended by itself."""
        if self._process is not None and self._process.poll() is not None and not self._may_end:
            raise AssertionError(f"the worker ended with {self._process.returncode}\n{self.last_words()}")

    def health(self) -> dict[str, Any]:
        return dict(json.loads(self._get("/healthz")))

    def health_status(self) -> int:
        try:
            self._get("/healthz")
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        return HTTPStatus.OK

    def watermarks(self) -> dict[int, int]:
        """Of the partitions that it owns."""
        return {int(number): offset for number, offset in self.health()["partitions"].items()}

    def clicks_applied(self) -> int:
        """Records of the clicks topic at or below the watermarks."""
        return sum(offset + 1 for offset in self.watermarks().values())

    def wait_until_applied(self, least: int) -> None:
        """Wait for the watermarks to cover so many records of the clicks topic."""
        self.wait_until(f"{least} are applied", lambda: self.clicks_applied() >= least)

    def memory_mib(self) -> float:
        """What it holds in memory now."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def user(self, user_id: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._get(f"/users/{user_id}", self._admin_port)))
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 404:
                    raise
            return None

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by name and labels as they are written there."""
        lines = [line for line in self._get("/metrics").splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        samples = self.metrics().items()
        found = [value for sample, value in samples if sample.partition("{")[0] == name]
        assert found, f"no metric {name}"
        return sum(found)

    def wait_until(self, what: str, is_true: Callable[[], object], timeout_s: float = READY_S) -> None:
        """Poll; while the worker does not answer over HTTP, the condition counts as false."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.check_alive()
            with contextlib.suppress(OSError):
                if is_true():
                    return
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s:g} s until {what}\n{self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def _get(self, path: str, port: int | None = None) -> str:
        asked = urllib.request.Request(f"http://127.0.0.1:{port or self._port}{path}")
        asked.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(asked, timeout=10) as response:
            return str(response.read().decode())


def finished(home: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a command of Headwater's to its end."""
    home.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        command(*arguments),
        cwd=home,
        env=environment(data_dir=home / "data", **settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_S,
    )
