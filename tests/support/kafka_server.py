"""A real Apache Kafka for tests and benchmarks, without Docker: one KRaft node on loopback, from Kafka's own jars.

In this order: the cluster named by KAFKA_BOOTSTRAP_SERVERS; the distribution unpacked at KAFKA_HOME; the jars that
Maven resolves into a cache folder (once, some 45 MB). The latter two need Java 17 or newer.

    with kafka_server() as bootstrap_servers: ...
    python -m tests.support.kafka_server          # prints the address and runs until Ctrl-C
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from headwater.commands.worker_process import free_port
from headwater.kafka.embedded_broker import dying_with_us

VERSION = "4.1.2"
READY_TIMEOUT_S = 90.0

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map={protocols}
listeners={listeners}
advertised.listeners={advertised}
log.dirs={log_dir}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
log.cleaner.dedupe.buffer.size=33554432
"""
# As Kafka's own start script has it. In a small heap that grows, a broker under load collects its garbage every second or
# two, on all cores and for 10 to 80 ms, and whoever waits for it is measured with that.
_JVM = (
    "-Xms1g",
    "-Xmx1g",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:MaxInlineLevel=15",
)
# What lives for minutes does not earn back what Java's second compiler costs: a third of a node's processor time in a test.
_SHORT_LIVED = ("-XX:TieredStopAtLevel=1",)


class Listener(NamedTuple):
    """One more way into a node, beside the plain one."""

    name: str
    protocol: str = "PLAINTEXT"
    told_port: int | None = None  # where clients are told to go; None: to the listener itself


class CannotRunError(Exception):
    """This machine has neither a cluster nor what it takes to start one. The message is the reason to skip with."""


class KafkaFailedError(Exception):
    """Kafka could have run here, and did not."""


def external_servers() -> str | None:
    return os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or None


@contextmanager
def kafka_server(*, is_measured: bool = False) -> Iterator[str]:
    """The bootstrap servers of a Kafka that runs as long as the block; it is at its fastest if it ``is_measured``.

    Raises CannotRunError or KafkaFailedError. To be entered in a thread that outlives it: the node dies with that thread.
    """
    if servers := external_servers():
        yield servers
        return
    with own_node(jvm=() if is_measured else _SHORT_LIVED) as node:
        yield node.servers


@contextmanager
def own_node(
    listeners: Sequence[Listener] = (),
    properties: Mapping[str, object] = MappingProxyType({}),
    scram: Sequence[str] = (),
    jvm: Sequence[str] = _SHORT_LIVED,
) -> Iterator["KafkaNode"]:
    """A Kafka of one's own that may be killed, frozen and started again. Raises as :func:`kafka_server` does.

    ``scram``: logins that it knows from the beginning, such as ``SCRAM-SHA-512=[name=ann,password=secret]``.
    """
    java, jars = java_tool("java"), _jars()
    with tempfile.TemporaryDirectory(prefix="headwater-kafka-") as folder:
        node = _started(java, jars, Path(folder), listeners, properties, scram, jvm)
        try:
            yield node
        finally:
            node.kill()  # its data go with the folder: there is nothing to shut down for


class KafkaNode:
    """One node in a folder of its own, on ports that it keeps."""

    def __init__(
        self,
        java: str,
        jars: Path,
        home: Path,
        listeners: Sequence[Listener] = (),
        properties: Mapping[str, object] = MappingProxyType({}),
        scram: Sequence[str] = (),
        jvm: Sequence[str] = _SHORT_LIVED,
    ) -> None:
        self._jvm = (*_JVM, *jvm)
        self._home, self._output = home, home / "kafka.log"
        self._java = [java, "-cp", f"{jars}/*"]
        self._properties = home / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        home.mkdir()
        clients = [Listener("PLAINTEXT"), *listeners]
        controller_port, *ports = (free_port("127.0.0.1") for _ in range(1 + len(clients)))
        self._ports = {listener.name: port for listener, port in zip(clients, ports, strict=True)}
        configured = _PROPERTIES.format(
            controller_port=controller_port,
            log_dir=home / "logs",
            protocols=",".join(
                ["CONTROLLER:PLAINTEXT", *(f"{each.name}:{each.protocol}" for each in clients)]
            ),
            listeners=_addresses({**self._ports, "CONTROLLER": controller_port}),
            advertised=_addresses({each.name: each.told_port or self._ports[each.name] for each in clients}),
        )
        more = "".join(f"{name}={value}\n" for name, value in properties.items())
        self._properties.write_text(configured + more)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        formatting = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)]
        for login in scram:
            formatting += ["--add-scram", login]
        done = subprocess.run(
            [*self._java, "-Xmx128m", *_SHORT_LIVED, *formatting], capture_output=True, text=True
        )
        if done.returncode:
            raise KafkaFailedError(f"formatting Kafka's log folder failed:\n{done.stdout}{done.stderr}")

    @property
    def home(self) -> Path:
        """Its log folders are under it."""
        return self._home

    @property
    def servers(self) -> str:
        return self.address("PLAINTEXT")

    def port(self, listener: str) -> int:
        return self._ports[listener]

    def address(self, listener: str) -> str:
        return f"127.0.0.1:{self.port(listener)}"

    def start(self) -> None:
        """Start, and return once it listens."""
        with self._output.open("wb") as log:
            self._process = subprocess.Popen(
                dying_with_us([*self._java, *self._jvm, "kafka.Kafka", str(self._properties)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            for port in self._ports.values():  # they open one after the other
                _wait_until_ready(self._process, port, self._output)
        except BaseException:
            self.kill()
            raise

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; what it had acknowledged is in its folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=10)
            self._process = None


def _addresses(ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())


def _started(
    java: str,
    jars: Path,
    folder: Path,
    listeners: Sequence[Listener],
    properties: Mapping[str, object],
    scram: Sequence[str],
    jvm: Sequence[str],
) -> KafkaNode:
    for attempt in range(3):
        node = KafkaNode(java, jars, folder / str(attempt), listeners, properties, scram, jvm)
        try:
            node.start()
        except KafkaFailedError as failure:
            # Between our look for free ports and Kafka's bind, somebody else may take one.
            if "Address already in use" not in str(failure) or attempt == 2:
                raise
        else:
            return node
    raise AssertionError("unreachable")


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise KafkaFailedError(f"Kafka ended with status {process.returncode}:\n{_tail(output)}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise KafkaFailedError(
        f"Kafka did not listen on port {port} after {READY_TIMEOUT_S:g} s:\n{_tail(output)}"
    )


def _tail(output: Path) -> str:
    return "\n".join(output.read_text(errors="replace").splitlines()[-40:])


def java_tool(name: str) -> str:
    """The program of that name of the Java that Kafka runs on. Raises CannotRunError."""
    home = os.environ.get("JAVA_HOME")
    tool = str(Path(home) / "bin" / name) if home else shutil.which(name)
    if tool is None:
        raise CannotRunError(f"no KAFKA_BOOTSTRAP_SERVERS, and no Java ({name}) to run Apache Kafka with")
    return tool


def _jars() -> Path:
    if home := os.environ.get("KAFKA_HOME"):
        if not list(Path(home, "libs").glob("kafka_2.1*.jar")):
            raise KafkaFailedError(
                f"KAFKA_HOME is {home}: expected an unpacked Kafka, with its jars in libs/"
            )
        return Path(home) / "libs"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headwater"
    jars = cache / f"kafka-{VERSION}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise CannotRunError(
            "no KAFKA_BOOTSTRAP_SERVERS, no KAFKA_HOME, and no Maven to fetch Apache Kafka with"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="resolving-", dir=cache) as folder:
        (Path(folder) / "pom.xml").write_text(_POM)
        fetching = [maven, "-B", "-q", "dependency:copy-dependencies", "-DincludeScope=runtime"]
        done = subprocess.run(
            [*fetching, "-DoutputDirectory=jars"], cwd=folder, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise KafkaFailedError(
                f"Maven could not fetch Apache Kafka {VERSION}:\n{done.stdout}{done.stderr}"
            )
        try:
            Path(folder, "jars").rename(jars)  # whole or not at all, also when two runs fetch at once
        except OSError:
            if not jars.is_dir():
                raise
    return jars


def main() -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with kafka_server(is_measured=True) as servers:
            print(servers, flush=True)
            stop.wait()
    except (CannotRunError, KafkaFailedError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
