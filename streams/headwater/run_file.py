"""The run file: how a second terminal finds the system that `up` or `demo` started, with no settings at all.

It is `run.json` under the data folder, present only while its writer lives.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from headwater.settings import Settings, SettingsError


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A running system. No secrets: whoever needs a password sets it in each terminal."""

    pid: int
    pid_started: int  # the kernel's start time of the process, since pids are used again; 0 = not known
    bootstrap_servers: str
    topic_prefix: str
    partitions: int
    catalog_partitions: int
    web: str | None  # http://host:port
    bundle: str | None  # a folder
    bundle_id: str | None
    qdrant_url: str | None


def path(settings: Settings) -> Path:
    return settings.data_dir / "run.json"


@contextmanager
def written(settings: Settings, *, web: str | None = None, bundle_id: str | None = None) -> Iterator[Run]:
    """Announces this process for as long as the block runs; `settings` are the ones it really runs with.

    Raises SettingsError where another live process has announced itself in the same data folder.
    """
    other = read(settings)
    if other is not None and other.pid != os.getpid():
        raise SettingsError(
            f"another Headwater runs in {settings.data_dir} (process {other.pid}): expected one for each folder; "
            "stop it, or set HEADWATER_DATA_DIR to another folder"
        )
    run = Run(
        pid=os.getpid(),
        pid_started=_start_time(os.getpid()) or 0,
        bootstrap_servers=settings.bootstrap_servers,
        topic_prefix=settings.topic_prefix,
        partitions=settings.partitions,
        catalog_partitions=settings.catalog_partitions,
        web=web,
        bundle=str(settings.bundle.resolve()) if settings.bundle else None,
        bundle_id=bundle_id,
        qdrant_url=settings.qdrant_url,
    )
    target = path(settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(run)) + b"\n")
    draft.replace(target)
    try:
        yield run
    finally:
        with suppress(FileNotFoundError):
            target.unlink()


def read(settings: Settings) -> Run | None:
    """The running system of this data folder; none where the file is missing, unreadable or its writer is gone."""
    try:
        run = msgspec.json.decode(path(settings).read_bytes(), type=Run)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    started = _start_time(run.pid)
    if started is None or (run.pid_started and started and started != run.pid_started):
        return None
    return run


def resolve(settings: Settings) -> Settings:
    """`settings`, with what the user left unset taken from the running system.

    A user who names another broker means another system: then nothing is taken.
    """
    run = read(settings)
    if run is None:
        return settings
    if settings.kafka_bootstrap_servers not in ("", run.bootstrap_servers):
        return settings
    known: dict[str, object] = {
        "kafka_bootstrap_servers": run.bootstrap_servers,
        "topic_prefix": run.topic_prefix,
        "partitions": run.partitions,
        "catalog_partitions": run.catalog_partitions,
        "bundle": Path(run.bundle) if run.bundle else None,
        "qdrant_url": run.qdrant_url,
    }
    unset = {name: value for name, value in known.items() if name not in settings.model_fields_set}
    return settings.model_copy(update=unset)


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a live process; 0 where the platform does not say, None if gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    return None if fields[0] in "ZX" else int(fields[19])
