"""`headwater demo`, `up`, `worker` and `gateway`: processes that run until they are stopped."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from headwater.commands.terminal import CommandError, UsageError, quiet_aiokafka, run_async, say

if TYPE_CHECKING:
    from headwater.commands.findings import Finding
    from headwater.settings import Settings
    from headwater.worker.live_page import Examine
    from headwater.worker.roles import Role


def demo(
    *,
    once: bool = False,
    json: bool = False,
    events: str = "300000",
    open_page: Annotated[bool, Parameter(name="--open")] = True,
) -> int:
    """Show the whole system on real data, with an embedded broker and index: a history, then live clicks and answers.

    It serves the bundle `groceries`, which was trained on these products; HEADWATER_BUNDLE names another. The first line
    is the address of the live page.

    Example: headwater demo --once --json

    Parameters
    ----------
    once
        Stop after the summary; exit 0 only if every ask was answered and reflected its click.
    json
        Print the summary as one JSON object.
    events
        How many of the last purchases to publish as history, or `all` (1.47 million).
    open_page
        Open the live page in a browser, where there is a display; not with --once.
    """
    from headwater.settings import Settings

    if events != "all" and not (events.isdecimal() and int(events) > 0):
        raise UsageError(f"--events is {events}: expected a number of purchases, or all")
    settings = Settings.load()
    from headwater.commands.demo import run

    quiet_aiokafka()
    count = None if events == "all" else int(events)
    return run_async(run(settings, once=once, as_json=json, events=count, opens=open_page and not once))


def up(
    *,
    keep: Annotated[bool, Parameter(negative=())] = False,
    kafka_port: int | None = None,
    web_port: int | None = None,
    bundle: Path | None = None,
    data_dir: Path | None = None,
    prefix: str | None = None,
    open_page: Annotated[bool, Parameter(name="--open")] = True,
) -> int:
    """Start everything: a broker (embedded unless one is configured), the topics, and one worker of both roles.

    The embedded broker is in memory: without --keep, a stop forgets catalog, clicks and users.

    Example: headwater up --keep

    Parameters
    ----------
    keep
        Save the embedded broker's content in the data folder every few seconds, and load it at the next start. A kill loses
        the last seconds.
    kafka_port
        Port of the embedded broker; default: 9092, or any free port if that is taken.
    web_port
        Port of the live page, /healthz, /readyz and /metrics; default: HEADWATER_WEB_PORT, else any free port.
    bundle
        Folder of the bundle; default: HEADWATER_BUNDLE, else the shipped starter.
    data_dir
        Folder of local data; default: HEADWATER_DATA_DIR, else .headwater in the current folder.
    prefix
        Prefix of topics and consumer groups; default: HEADWATER_TOPIC_PREFIX, else "headwater.".
    open_page
        Open the live page in a browser, where there is a display.
    """
    from headwater import run_file
    from headwater.settings import Settings

    options = {"web_port": web_port, "bundle": bundle, "data_dir": data_dir, "topic_prefix": prefix}
    # First: a wrong setting is reported before anything heavy is imported.
    settings = Settings.load(**{name: value for name, value in options.items() if value is not None})
    # Other terminals of this user find the token in the run file.
    settings = settings.with_open_page().with_admin_token()
    is_embedded = not settings.kafka_bootstrap_servers
    if not is_embedded and (keep or kafka_port is not None):
        raise UsageError(
            f"{'--keep' if keep else '--kafka-port'} is for the embedded broker, but HEADWATER_KAFKA_BOOTSTRAP_SERVERS is "
            f"{settings.kafka_bootstrap_servers}: leave one of them out"
        )
    if kafka_port is not None and not 0 < kafka_port < 65_536:
        raise UsageError(f"--kafka-port is {kafka_port}: expected a port from 1 to 65535")
    run_file.refuse_second(settings)
    settings.make_data_dir()
    from headwater.commands import live_page
    from headwater.kafka import topics
    from headwater.worker.logging_setup import configure_logging
    from headwater.worker.process import serve
    from headwater.worker.worker import Worker

    configure_logging(settings)
    with ExitStack() as stack:
        where = "broker"
        if is_embedded:
            from headwater.kafka.embedded_broker import EmbeddedBroker

            broker = stack.enter_context(EmbeddedBroker(settings.data_dir, port=kafka_port, keep=keep))
            settings = settings.model_copy(update={"kafka_bootstrap_servers": broker.bootstrap_servers})
            memory = (
                "saved every few seconds" if keep else "a stop forgets everything, unless --keep is given"
            )
            where = f"embedded broker ({memory})"

        created: list[str] = []

        async def alongside(worker: Worker) -> None:
            web, admin = f"http://{worker.web_address}", f"http://{worker.admin_address}"
            live_page.tell(web, opens=open_page)
            say(f"{where} on {settings.bootstrap_servers}, {len(created)} topics created")
            with run_file.announced(
                settings,
                embedded_broker=is_embedded,
                web=web,
                admin=admin,
                bundle_id=worker.status.bundle_id,
            ):
                await worker.status.ready.wait()
                say(f"ready: {web}/metrics, bundle {worker.status.bundle_id}; Ctrl-C stops it")
                await worker.failed()

        async def serving() -> int:
            created.extend(await topics.create(settings))
            return await serve(settings, "all", alongside, _examining(settings, "all"))

        return run_async(serving())


def worker(*, role: Literal["all", "interests", "catalog"] = "all") -> int:
    """Start one worker on a configured broker; SIGTERM drains and stops it.

    Example: headwater worker --role interests

    Parameters
    ----------
    role
        interests: clicks and requests. catalog: encoding and indexing. all: both in one process.
    """
    from headwater import run_file

    settings = run_file.running_system()
    run = run_file.read(settings)
    if run is not None and run.embedded_broker:
        raise CommandError(
            f"the broker at {run.bootstrap_servers} is the embedded one of process {run.pid} in {run.started_in}: it "
            "serves one worker, which that process brings along; for several start Apache Kafka, and set "
            "HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
        )
    from headwater.worker.logging_setup import configure_logging
    from headwater.worker.process import serve

    configure_logging(settings)
    return run_async(serve(settings, role, examine=_examining(settings, role)))


def _examining(settings: "Settings", role: "Role") -> "Examine":
    """What `headwater doctor` would find, for the live page of a worker of that role."""

    async def examine(web: str | None) -> "list[Finding]":
        from headwater.commands import doctor

        return await doctor.examine(settings, web, ("interests", "catalog") if role == "all" else (role,))

    return examine


def gateway(*, host: str | None = None, port: int | None = None) -> int:
    """Serve HTTP to programs that do not speak Kafka: clicks, items and answers as JSON.

    Example: headwater gateway --port 8080

    Parameters
    ----------
    host
        Address to listen on; default: HEADWATER_GATEWAY_HOST, else 127.0.0.1. Other addresses need HEADWATER_GATEWAY_KEYS.
    port
        Port to listen on; default: HEADWATER_GATEWAY_PORT, else 8080; 0: any free one.
    """
    from headwater.run_file import running_system
    from headwater.settings import Settings

    options = {"gateway_host": host, "gateway_port": port}
    settings = running_system(
        Settings.load(**{name: value for name, value in options.items() if value is not None})
    )
    from headwater.gateway.process import serve

    quiet_aiokafka()

    def listening(address: str) -> None:
        say(
            f"gateway: http://{address}, described by http://{address}/openapi.json, to be tried on http://{address}/docs/api; "
            "Ctrl-C stops it"
        )

    run_async(serve(settings, listening))
    return 0
