"""Run files: how another terminal finds a running system, from any folder and with no settings.

`up` and `demo` announce themselves with one file each in a folder of the user: `$XDG_STATE_HOME/headwater/running`,
by default `~/.local/state/headwater/running`. That folder belongs to the user alone (mode 0700), and so do the files in it
(mode 0600). A file in the working directory is never read, since somebody else may have put it there.

A file counts while its process lives. The pid is stored with the start time of the process, because pids are reused.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from headwater.settings import PREFIX, Settings, SettingsError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A running system. Its one secret is the token of its own worker: passwords are set in each terminal."""

    pid: int
    pid_started: int  # the kernel's start time of the process, in clock ticks since boot; 0 = not known
    started_in: str  # working directory, absolute
    data_dir: str  # absolute
    bootstrap_servers: str
    embedded_broker: bool
    topic_prefix: str
    partitions: int
    catalog_partitions: int
    web: str | None  # http://host:port of the probes
    admin: str | None = None  # http://host:port of users' data
    admin_token: str | None = None
    bundle: str | None  # a folder
    bundle_id: str | None
    qdrant_url: str | None

    def __repr__(self) -> str:
        return f"process {self.pid} in {self.started_in} (broker {self.bootstrap_servers})"


class SeveralRunning(SettingsError):
    """More than one system runs, and none of them belongs to this folder."""

    def __init__(self, runs: Sequence[Run]) -> None:
        listed = "; ".join(map(str, runs))
        super().__init__(
            f"{len(runs)} systems run, and none of them in this folder: {listed}. Choose one: change to its folder, "
            f"or set {PREFIX}KAFKA_BOOTSTRAP_SERVERS to its broker"
        )


def demo_dir(settings: Settings) -> Path:
    """The data folder of the demo, which runs beside an `up` and leaves nothing in the folder of that."""
    return settings.data_dir / "demo"


def registries() -> list[Path]:
    """The folders that may hold this user's run files: the state folder, and one for users without a writable home."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        state = Path("~/.local/state").expanduser()  # stays relative for a user without a home
    homeless = Path(tempfile.gettempdir()) / f"headwater-{os.geteuid()}"
    return [folder / "running" for folder in (state / "headwater", homeless) if folder.is_absolute()]


@contextmanager
def announced(
    settings: Settings,
    *,
    embedded_broker: bool = False,
    web: str | None = None,
    admin: str | None = None,
    bundle_id: str | None = None,
) -> Iterator[Run]:
    """Announce this process while the block runs. `settings` are those that it runs with.

    Raises:
        SettingsError: another process runs with the same data folder, or the registry cannot be written.
    """
    refuse_second(settings)
    run = this_process(settings, embedded_broker=embedded_broker, web=web, admin=admin, bundle_id=bundle_id)
    path = _write(run)
    try:
        yield run
    finally:
        with suppress(OSError):
            path.unlink()


def this_process(
    settings: Settings,
    *,
    embedded_broker: bool = False,
    web: str | None = None,
    admin: str | None = None,
    bundle_id: str | None = None,
) -> Run:
    """What the run file of this process says."""
    return Run(
        pid=os.getpid(),
        pid_started=_start_time(os.getpid()) or 0,
        started_in=str(Path.cwd()),
        data_dir=str(settings.data_dir.resolve()),
        bootstrap_servers=settings.bootstrap_servers,
        embedded_broker=embedded_broker,
        topic_prefix=settings.topic_prefix,
        partitions=settings.partitions,
        catalog_partitions=settings.catalog_partitions,
        web=web,
        admin=admin,
        admin_token=settings.admin_token.get_secret_value() if admin and settings.admin_token else None,
        bundle=str(settings.bundle.resolve()) if settings.bundle else None,
        bundle_id=bundle_id,
        qdrant_url=settings.qdrant_url,
    )


def refuse_second(settings: Settings) -> None:
    """Raises SettingsError if another process runs with this data folder."""
    other = of_folder(settings.data_dir)
    if other is not None and other.pid != os.getpid():
        raise SettingsError(
            f"another Headwater runs in {settings.data_dir} (process {other.pid}): expected one for each folder; "
            f"stop it, or set {PREFIX}DATA_DIR to another folder"
        )


def running() -> list[Run]:
    """This user's running systems, oldest first. Files that cannot be trusted or read are skipped."""
    folders = [folder for folder in registries() if _is_ours_alone(folder, stat.S_ISDIR)]
    paths = [path for folder in folders for path in folder.glob("*.json")]
    runs = [run for path in paths if (run := _read(path)) is not None and _lives(run)]
    return sorted(runs, key=lambda run: (run.pid_started, run.pid))


def of_folder(data_dir: Path) -> Run | None:
    """The running system with exactly this data folder."""
    wanted = str(data_dir.resolve())
    return next((run for run in running() if run.data_dir == wanted), None)


def read(settings: Settings) -> Run | None:
    """The running system that a command means: the one of this folder, else the only one.

    In one folder an `up` goes before a `demo`. If `settings` name a broker, only systems on that broker count.

    Raises SeveralRunning.
    """
    runs = running()
    if servers := settings.kafka_bootstrap_servers:
        runs = [run for run in runs if run.bootstrap_servers == servers]
    of_this_folder: list[Callable[[Run], bool]] = [
        lambda run: run.data_dir == str(settings.data_dir.resolve()),
        lambda run: run.data_dir == str(demo_dir(settings).resolve()),
        lambda run: run.started_in == str(Path.cwd()),
    ]
    for belongs in of_this_folder:
        if near := [run for run in runs if belongs(run)]:
            runs = near
            break
    if len(runs) > 1:
        raise SeveralRunning(runs)
    return runs[0] if runs else None


def running_system(settings: Settings | None = None) -> Settings:
    """Settings to reach the running system: what the user left unset is taken from its run file.

    Without a running system they come back unchanged.

    Raises:
        SettingsError: a setting is wrong.
        SeveralRunning: more than one system runs, none of them in this folder.
    """
    given = settings or Settings.load()
    run = read(given)
    if run is None:
        return given
    known: dict[str, object] = {
        "kafka_bootstrap_servers": run.bootstrap_servers,
        "topic_prefix": run.topic_prefix,
        "partitions": run.partitions,
        "catalog_partitions": run.catalog_partitions,
        "data_dir": Path(run.data_dir),
        "bundle": Path(run.bundle) if run.bundle else None,
        "qdrant_url": run.qdrant_url,
    }
    unset = {name: value for name, value in known.items() if name not in given.model_fields_set}
    return given.model_copy(update=unset)


def _write(run: Run) -> Path:
    errors = []
    for folder in registries():
        path = folder / f"{run.pid}-{run.pid_started}.json"
        draft = path.with_suffix(".tmp")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours_alone(folder, stat.S_ISDIR):
                raise PermissionError(f"{folder} belongs to another user, or others may write to it")
            _forget_the_dead(folder)
            draft.unlink(missing_ok=True)
            draft.touch(mode=0o600, exist_ok=False)
            draft.write_bytes(msgspec.json.format(msgspec.json.encode(run)) + b"\n")
            draft.replace(path)
        except OSError as error:
            errors.append(str(error))
        else:
            return path
    raise SettingsError(
        f"this system cannot be announced to other terminals: expected a folder that only you can write to; set "
        f"XDG_STATE_HOME to one ({'; '.join(errors)})"
    )


def _forget_the_dead(folder: Path) -> None:
    for path in folder.glob("*.json"):
        if (run := _read(path)) is not None and not _lives(run):
            path.unlink(missing_ok=True)


def _read(path: Path) -> Run | None:
    if not _is_ours_alone(path, stat.S_ISREG, _OTHERS):
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _is_ours_alone(path: Path, is_kind: Callable[[int], bool], forbidden: int = _OTHERS_WRITE) -> bool:
    """Whether `path` is of that kind and no link, belongs to this user, and gives others no ``forbidden`` right."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return is_kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & forbidden


def _lives(run: Run) -> bool:
    started = _start_time(run.pid)
    return started is not None and (0 in (started, run.pid_started) or started == run.pid_started)


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a live process; 0 where the platform does not say, None if it is gone."""
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
