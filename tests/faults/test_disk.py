"""The disk of the data folder is full: the worker ends and says so, and nothing is lost."""

import asyncio
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.conftest import System
from tests.end_to_end.oracle import applied, check_answers, publish
from tests.end_to_end.outside import PATIENCE_S
from tests.end_to_end.worker_process import WorkerProcess
from tests.faults.asking import begin
from tests.faults.ledger import check_every_user, check_no_commit_is_ahead
from tests.faults.scale import SCALE, TIMEOUT_S

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


def on_a_disk_of(mib: int, folder: Path) -> tuple[str, ...]:
    """A command that becomes another one, which alone sees `folder` as an empty disk of that size. Skips where a user may
    not make one."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no `unshare` to give a worker a disk of its own")
    folder.mkdir(parents=True, exist_ok=True)
    script = f'mount -t tmpfs -o size={mib}m none "$0" && exec "$@"'
    within = (unshare, "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder))
    tried = subprocess.run([*within, "true"], capture_output=True, text=True, timeout=10)
    if tried.returncode != 0:
        pytest.skip(f"no disk of a worker's own for this user: {tried.stderr.strip()}")
    return within


def fill_disk_of(worker: WorkerProcess) -> None:
    """As another program of its machine would."""
    folder = Path(f"/proc/{worker.pid}/root", *(worker.home / "data").parts[1:])
    no_space = pytest.raises(OSError, match="No space left on device")
    with (folder / "else.bin").open("wb", buffering=0) as file, no_space:
        fill(file)


def fill(file: io.FileIO) -> None:
    while True:
        file.write(bytes(1 << 16))


def check_said(worker: WorkerProcess) -> None:
    said = worker.last_words()
    assert f"HEADWATER_DATA_DIR is {worker.home / 'data'}: " in said
    assert "MB are free on its disk, expected at least 64 MB for the index: make room" in said
    assert "Traceback" not in said


async def test_full_under_load_it_ends_and_another_one_goes_on_from_there(
    new_system: Callable[..., System],
) -> None:
    system = new_system(max_poll_records=50, state_on_disk=True)
    worker = system.worker
    worker.within = on_a_disk_of(160, worker.home / "data")
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.02)
        part = SCALE.clicks // 4
        publishing = asyncio.create_task(publish(outside, story.tell(part)))
        await asyncio.to_thread(worker.wait_until_applied, part // 4)
        await asyncio.to_thread(fill_disk_of, worker)
        await outside.put(outside.own("new"), title="Ground coffee")
        assert await asyncio.to_thread(worker.exit_code, PATIENCE_S) == 1
        check_said(worker)
        await publishing
        assert await check_no_commit_is_ahead(outside) > 0
        worker.within = ()
        await asyncio.to_thread(worker.start)
        await publish(outside, story.tell(part))
        await applied(outside)
        await check_answers(outside, story)
        await check_every_user(outside, story)


async def test_users_without_a_place_on_the_disk_end_it_before_their_clicks_are_committed(
    new_system: Callable[..., System],
) -> None:
    system = new_system(state_on_disk=True)
    worker = system.worker
    worker.within = on_a_disk_of(160, worker.home / "data")
    async with system.stocked() as outside:
        story = begin(outside, repeated=0.02)
        await asyncio.to_thread(fill_disk_of, worker)
        await publish(outside, story.tell(500))
        assert await asyncio.to_thread(worker.exit_code, PATIENCE_S) == 1
        said = worker.last_words()
        assert f"{worker.home / 'data' / 'states'}: no room for " in said
        assert "Traceback" not in said
        assert await check_no_commit_is_ahead(outside) == 0
        worker.within = ()
        await asyncio.to_thread(worker.start)
        await applied(outside)
        await check_every_user(outside, story)
        await asyncio.to_thread(worker.kill)
        assert list((worker.home / "data" / "states").iterdir()) == []


async def test_full_from_the_beginning_it_does_not_start(new_system: Callable[..., System]) -> None:
    worker = new_system().worker
    worker.within = on_a_disk_of(32, worker.home / "data")
    worker.launch()
    assert await asyncio.to_thread(worker.exit_code, PATIENCE_S) == 1
    check_said(worker)
