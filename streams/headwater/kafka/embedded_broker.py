"""The embedded broker: a small Kafka-compatible one for demo, development and tests, on loopback only.

The binary comes from the package `noida-db` (the extra `broker`), pinned to one version. It holds the log in memory.
By default a stop forgets everything; with `keep` the next start finds topics, records and committed offsets again.
It serves one worker: as soon as a second one joins a group, it refuses the commits of the first (noida-db 0.2.3).
Production runs on Apache Kafka.
"""

import contextlib
import fcntl
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
from headwater.kafka.membership import describe
from headwater.settings import Settings

VERIFIED_VERSION = "0.2.3"  # the one that was read, measured and tested; others are refused
USUAL_PORT = 9092  # where clients of every language look for Kafka by default

ONE_WORKER = (
    "the embedded broker serves one worker, which `headwater up` brings along; for several start Apache Kafka, and set "
    "HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
)

_SAVE_S = 60.0  # to write the log at a stop; 26 s of its processor time were measured for 1.2 million clicks
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

    The process belongs to the *thread* that starts it: on Linux the kernel kills it when that thread ends.

    Args:
        data_dir: the broker's log file and its data go to the folder `broker` in it.
        port: of the broker on 127.0.0.1. 0: any free one. None: 9092, or any free one if that is taken.
        keep: save the log in `data_dir`, and start from what was saved. The broker then rewrites the whole log as
            one file every few seconds, so this is for small logs. A kill loses the last seconds.

    Raises (on entry):
        BrokerError: the package is missing, the port is taken, the folder cannot be written to, another broker keeps
            its log in the same folder, or the process did not become ready.
    """

    def __init__(
        self, data_dir: Path, *, port: int | None = 0, keep: bool = False, ready_timeout_s: float = 20.0
    ) -> None:
        self._home = data_dir.resolve() / "broker"
        self._port = port
        self._keep = keep
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._lock: int | None = None
        self.log = self._home / "broker.log"
        self.bootstrap_servers = ""

    @property
    def pid(self) -> int | None:
        """The process id of the broker, None before it is started."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        binary = _binary()
        port = _usable_port(self._port)
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            _sweep(self._home)
            self._folder = self._kept_folder() if self._keep else self._passing_folder()
        except OSError as error:
            raise BrokerError(
                f"the embedded broker cannot write to {self._home} ({error}): expected a folder of yours; set "
                "HEADWATER_DATA_DIR to one"
            ) from error
        try:
            self._process = self._start(binary, self._folder, port)
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
        """Stop the broker. Its folder is removed unless it is kept; the log file stays. Harmless when repeated."""
        if self._process is not None:
            if self._keep:
                self._process.terminate()  # it saves the log
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=_SAVE_S)
            # Not SIGTERM otherwise: it would first write the whole log to disk, for seconds and for nobody.
            self._process.kill()
            self._process.wait(timeout=3)
            self._process = None
        if self._folder is not None and not self._keep:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _kept_folder(self) -> Path:
        folder = self._home / "kept"
        folder.mkdir(exist_ok=True)
        self._lock = os.open(self._home / "kept.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise BrokerError(
                f"another embedded broker keeps its log in {folder}: expected one at a time; stop it, or set "
                "HEADWATER_DATA_DIR to another folder"
            ) from None
        return folder

    def _passing_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._home))
        # The broker would rewrite its whole log as one file every few seconds (858 MB written for 60 MB of clicks).
        # A folder in place of that file's draft prevents this; the broker carries on in memory.
        (folder / "kafka.tmp").mkdir()
        return folder

    def is_alive(self) -> bool:
        """Whether the broker's process runs."""
        return self._process is not None and self._process.poll() is None

    def _start(self, binary: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
        command = [str(binary), "start", "--only", "kafka", "--host", "127.0.0.1", "--kafka-port", str(port)]
        command += ["--data-dir", str(folder)]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,  # Ctrl-C goes to us; the broker has to outlive the draining of the worker
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
    """The Kafka client id of this process in a consumer group, from which `make_room` knows it again."""
    return f"{group}-{os.getpid()}"


async def make_room(settings: Settings, group: str) -> list[str]:
    """On the embedded broker, let this process be the only member of a group; call it before joining.

    Returns: the client ids of the removed members.

    Raises:
        BrokerError: a live process is in the group.
    """
    removed, alive = await remove_dead_members(settings, group)
    if alive:
        raise BrokerError(f"the group {group} has a member already ({', '.join(alive)}): {ONE_WORKER}")
    return removed


async def remove_dead_members(settings: Settings, group: str) -> tuple[list[str], list[str]]:
    """On the embedded broker, remove the members of a group whose process is gone, if no other is a member.

    It never does that by itself, so nobody could join after a kill. It listens on loopback only, so all its clients are
    processes of this machine. On Apache Kafka, which removes members after the session timeout and shares partitions
    among many, nothing is done.

    Returns: the client ids of the removed members, and of those whose process lives.
    """
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    try:
        await admin.start()
        if (await admin.describe_cluster())["cluster_id"] != _CLUSTER_ID:
            return [], []
        if group not in [name for name, *_ in await admin.list_consumer_groups()]:
            return [], []
        described = await describe(admin, group)
    finally:
        await admin.close()
    members = described.members if described is not None else ()
    if alive := [member.client_id for member in members if not _is_dead(member.client_id)]:
        return [], alive
    client = AIOKafkaClient(**settings.kafka_options())
    try:
        await client.bootstrap()
        for member in members:
            await client.send(client.get_random_node(), LeaveGroupRequest(group, member.member_id))
    finally:
        await client.close()
    return [member.client_id for member in members], []


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


def _usable_port(port: int | None) -> int:
    """The port to start with. Raises BrokerError if a given one is taken."""
    wanted = USUAL_PORT if port is None else port
    if wanted == 0:
        return 0
    try:
        with socket.create_server(("127.0.0.1", wanted)):
            return wanted
    except OSError as error:
        if port is None:
            return 0
        raise BrokerError(
            f"the embedded broker cannot listen on port {port} ({error.strerror}): expected a free port; stop the "
            "program that listens there, or choose another port"
        ) from error


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
