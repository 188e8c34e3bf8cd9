"""The embedded broker: a small Kafka-compatible one for demo, development and tests, on loopback only.

The binary comes from the package `noida-db` (the extra `broker`), pinned to one version. It keeps the log in memory;
each start is fresh and each stop forgets everything. Production runs on Apache Kafka.
"""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.group import LeaveGroupRequest

from headwater.errors import HeadwaterError
from headwater.settings import Settings

VERIFIED_VERSION = "0.2.3"  # what was read, measured and tested; another one is refused

_LISTENING = re.compile(r"^\s*kafka\s+127\.0\.0\.1:(\d+)\s*$", re.MULTILINE)

_CLUSTER_ID = "MkU3OEVBNTctOEUyRi00"  # the same for every embedded broker, and for no other
_DYING_WITH_US = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGKILL = 1, 9
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):  # the parent died before the kernel was asked
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class BrokerError(HeadwaterError):
    """The embedded broker is missing or does not start. The message says what to do."""


class EmbeddedBroker:
    """A context manager; `bootstrap_servers` is usable inside. Blocks for some 100 ms to start, less to stop.

    The process is killed by the id that we started, and by the kernel (Linux) if this process dies without a
    goodbye. It belongs to the *thread* that starts it: start it in one that lives as long as the broker should.
    """

    def __init__(self, data_dir: Path, *, ready_timeout_s: float = 20.0) -> None:
        self._home = data_dir.resolve() / "broker"
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.log = self._home / "broker.log"
        self.bootstrap_servers = ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        binary = _binary()
        self._home.mkdir(parents=True, exist_ok=True)
        _sweep(self._home)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._home))
        try:
            self._process = self._start(binary, self._folder)
            self.bootstrap_servers = f"127.0.0.1:{self._wait_until_ready(self._process)}"
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the broker and removes its folder; the log file stays. Harmless when repeated."""
        if self._process is not None:
            # No SIGTERM: it would first write the whole log to disk, for seconds, and nobody will read it.
            self._process.kill()
            self._process.wait(timeout=3)
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self, binary: Path, folder: Path) -> subprocess.Popen[bytes]:
        # It would rewrite its whole log as one file every few seconds (858 MB written for 60 MB of clicks). A folder
        # where the draft of that file belongs stops this; it carries on in memory.
        (folder / "kafka.tmp").mkdir()
        command = [str(binary), "start", "--only", "kafka", "--host", "127.0.0.1", "--kafka-port", "0"]
        command += ["--data-dir", str(folder)]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,  # Ctrl-C goes to us; the broker has to outlive the draining of the workers
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> int:
        """The port, once it accepts connections."""
        deadline = time.monotonic() + self._ready_timeout_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise BrokerError(
                    f"the embedded broker ended at its start with status {process.returncode}: {self._last_words()}; "
                    f"see {self.log}, or use a Kafka of yours: set HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
                )
            if match := _LISTENING.search(self.log.read_text(errors="replace")):
                try:
                    socket.create_connection(("127.0.0.1", int(match[1])), timeout=1).close()
                    return int(match[1])
                except OSError:
                    pass
            time.sleep(0.01)
        raise BrokerError(
            f"the embedded broker was not ready after {self._ready_timeout_s:g} s: {self._last_words()}; see "
            f"{self.log}, or use a Kafka of yours: set HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
        )

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def dying_with_us(command: Sequence[str]) -> list[str]:
    """`command`, which the kernel kills when the thread that starts it dies, however it dies (on Linux).

    A few lines of Python ask for this and then become the program, under the same pid: a `preexec_fn` would run
    between fork and exec, where a process with threads may deadlock.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _DYING_WITH_US, str(os.getpid()), *command]


def client_id(group: str) -> str:
    """The Kafka client id of this process in a consumer group, from which `expel_dead_members` knows it again."""
    return f"{group}-{os.getpid()}"


async def expel_dead_members(settings: Settings, group: str) -> list[str]:
    """Removes members of the group whose process is gone, and returns their client ids; to be called before joining.

    Apache Kafka does this by itself, with the session timeout, and is left alone here. The embedded broker (0.2.3)
    does it never: after one kill -9 nobody could join the group any more. It listens on loopback only, so that all
    its clients are processes of this machine.
    """
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    try:
        await admin.start()
        if (await admin.describe_cluster())["cluster_id"] != _CLUSTER_ID:
            return []
        if group not in [name for name, *_ in await admin.list_consumer_groups()]:
            return []
        (described,) = await admin.describe_consumer_groups([group])
        members = described.to_object()["groups"][0]["members"]
    finally:
        await admin.close()
    dead = [member for member in members if _is_dead(member["client_id"])]
    client = AIOKafkaClient(**settings.kafka_options())
    try:
        await client.bootstrap()
        for member in dead:
            await client.send(client.get_random_node(), LeaveGroupRequest(group, member["member_id"]))
    finally:
        await client.close()
    return [member["client_id"] for member in dead]


def _is_dead(client: str) -> bool:
    pid = client.rpartition("-")[2]
    return pid.isascii() and pid.isdigit() and not _process_exists(int(pid))


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _binary() -> Path:
    remedy = (
        f"install it with `make install` in a checkout, or with `pip install noida-db=={VERIFIED_VERSION}`; "
        "or use a Kafka of yours: set HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
    )
    spec = importlib.util.find_spec("noida_db")
    if spec is None or spec.origin is None:
        raise BrokerError(f"the embedded broker is not installed (no package noida-db): {remedy}")
    version = metadata.version("noida-db")
    if version != VERIFIED_VERSION:
        raise BrokerError(f"the embedded broker is noida-db {version}: expected {VERIFIED_VERSION}; {remedy}")
    # The package's own console script is a Python process around this binary; killing it would orphan the broker.
    binary = Path(spec.origin).with_name("noida-db.exe" if os.name == "nt" else "noida-db")
    if not binary.is_file():
        raise BrokerError(f"the embedded broker's binary is missing at {binary}: {remedy}")
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    return binary


def _sweep(home: Path) -> None:
    """Removes the folders of brokers whose owner was killed."""
    for folder in home.glob("[0-9]*-*"):
        if not _process_exists(int(folder.name.partition("-")[0])):
            shutil.rmtree(folder, ignore_errors=True)
