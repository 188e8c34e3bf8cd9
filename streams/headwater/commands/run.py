"""`headwater demo`, `up` and `worker`: processes that run until they are stopped."""

from contextlib import ExitStack
from typing import Literal

from headwater.commands.terminal import UsageError, quiet_aiokafka, run_async, say


def demo(*, once: bool = False, json: bool = False, events: str = "300000") -> int:
    """Everything on embedded parts and real data, then live clicks and answers until Ctrl-C.

    Example: headwater demo --once --json

    Parameters
    ----------
    once
        Stop after the summary; exit 0 only if every ask was answered and reflected its click.
    json
        Print the summary as one JSON object.
    events
        How many of the last purchases to publish as history, or `all` (1.47 million).
    """
    from headwater.settings import Settings

    if events != "all" and not (events.isdecimal() and int(events) > 0):
        raise UsageError(f"--events is {events}: expected a number of purchases, or all")
    settings = Settings.load()
    from headwater.commands.demo import run

    quiet_aiokafka()
    count = None if events == "all" else int(events)
    return run_async(run(settings, once=once, as_json=json, events=count))


def up() -> int:
    """A broker (embedded unless one is configured), the topics, and one worker of all roles.

    Example: headwater up
    """
    from headwater import run_file
    from headwater.settings import Settings

    settings = Settings.load()  # first: a wrong setting is told before anything heavy is imported
    from headwater.kafka import topics
    from headwater.worker.logging_setup import configure_logging
    from headwater.worker.process import serve
    from headwater.worker.worker import Worker

    configure_logging(settings)
    with ExitStack() as stack:
        is_embedded = not settings.kafka_bootstrap_servers
        if is_embedded:
            from headwater.kafka.embedded_broker import EmbeddedBroker

            run_file.refuse_second(settings)
            broker = stack.enter_context(EmbeddedBroker(settings.data_dir))
            settings = settings.model_copy(update={"kafka_bootstrap_servers": broker.bootstrap_servers})

        async def alongside(worker: Worker) -> None:
            web = f"http://{worker.web_address}"
            with run_file.announced(
                settings, embedded_broker=is_embedded, web=web, bundle_id=worker.status.bundle_id
            ):
                await worker.status.ready.wait()
                say(f"ready: {web}/metrics, bundle {worker.status.bundle_id}; Ctrl-C stops it")
                await worker.failed()

        async def serving() -> int:
            created = await topics.create(settings)
            say(f"broker {settings.bootstrap_servers}, {len(created)} topics created")
            return await serve(settings, "all", alongside)

        return run_async(serving())


def worker(*, role: Literal["all", "interests", "catalog"] = "all") -> int:
    """One worker against a configured broker; SIGTERM drains and stops it.

    Example: headwater worker --role interests

    Parameters
    ----------
    role
        interests: clicks and requests. catalog: encoding and indexing. all: both in one process.
    """
    from headwater.run_file import running_system

    settings = running_system()
    from headwater.worker.logging_setup import configure_logging
    from headwater.worker.process import serve

    configure_logging(settings)
    return run_async(serve(settings, role))
