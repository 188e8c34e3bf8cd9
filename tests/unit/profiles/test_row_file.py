"""Rows in a file without a name: they grow in place, and a full disk is an error that says so, not the end of the process."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from headwater.errors import StopWorker
from headwater.profiles.columns import Columns
from headwater.profiles.row_file import DiskFull, RowFile
from tests.support.interests_worker import InterestsWorker, now_ms

TEXTS = {"tea": "Green tea bags", "soap": "Hand soap, lavender"}
ROW = np.dtype([("state", np.float16, (8,)), ("action", np.uint8, (3,))], align=True)


@contextmanager
def small_files_only() -> Iterator[None]:
    """As a full disk: no file of this process may exceed 256 KiB, also not the one that pytest may report to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_written_is_there_after_growth_and_new_rows_are_zero(tmp_path: Path) -> None:
    file = RowFile(tmp_path, ROW)
    before = file.grown(10)
    before["state"][9] = 1.5
    after = file.grown(1000)
    assert (after["state"][9] == 1.5).all()
    assert not after["state"][10:].any()
    assert not after["action"].any()
    before["action"][0] = 7  # it stays valid, and is the same file
    assert after["action"][0].tolist() == [7, 7, 7]


def test_nothing_has_a_name_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "states"
    file = RowFile(folder, ROW)
    assert not folder.exists()
    file.grown(10)
    assert list(folder.iterdir()) == []


def test_the_disk_has_its_room_back_when_the_users_are_dropped(tmp_path: Path) -> None:
    def held() -> int:
        names = (str(link.resolve()) for link in Path("/proc/self/fd").iterdir())
        return sum(name.startswith(str(tmp_path)) for name in names)

    columns = Columns(4, 8, folder=tmp_path)
    for number in range(5_000):
        columns.add(b"%d" % number)
    log = columns.log(np.array([0]))
    assert held() > 0
    del columns
    assert held() == 0
    assert log.events(0) == []


def test_the_place_of_all_rows_is_taken_on_the_disk(tmp_path: Path) -> None:
    file = RowFile(tmp_path, ROW)
    file.grown(100_000)
    assert os.fstat(file._file.fileno()).st_blocks * 512 >= 100_000 * ROW.itemsize


def test_rows_that_are_wanted_are_read_as_they_were(tmp_path: Path) -> None:
    file = RowFile(tmp_path, ROW)
    rows = file.grown(10_000)
    rows["action"][:] = 5
    file.prefetch([0, 9_999, 3])
    assert (rows["action"][[0, 9_999, 3]] == 5).all()


def test_no_room_is_said_with_place_size_and_remedy(tmp_path: Path) -> None:
    file = RowFile(tmp_path, ROW)
    kept = file.grown(100)
    with (
        small_files_only(),
        pytest.raises(
            DiskFull, match=r"no room for 2\.0 MB, the states of 100,000 users .*STATE_ON_DISK=false"
        ),
    ):
        file.grown(100_000)
    kept["action"][99] = 1
    assert (file.grown(200)["action"][99] == 1).all()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskFull, match=r"file/states: no room .*\(Not a directory\)"):
        RowFile(tmp_path / "file" / "states", ROW).grown(1)


async def test_users_on_disk_are_written_to_the_changelog_as_those_in_memory_are(tmp_path: Path) -> None:
    written, sent_ms = [], now_ms() - 60_000
    for on_disk in (False, True):
        worker = InterestsWorker(TEXTS, owned=(0,), state_on_disk=on_disk, data_dir=tmp_path)
        users = [f"user {number}" for number in range(40)] * 3
        for start in range(0, len(users), 50):
            lot = [
                worker.click(
                    user, ("tea", "soap", "unknown")[at % 3], at_ms=sent_ms + at, event_id=f"event {at}"
                )
                for at, user in enumerate(users[start : start + 50], start)
            ]
            await worker.apply(*lot)
        await worker.apply(
            worker.click("user 3", action="forget", at_ms=sent_ms + 1_000, event_id="event 1000")
        )
        written.append(
            {key: each.value for key, each in worker.producer.latest(worker.topics.profiles).items()}
        )
        await worker.close()
    in_memory, on_disk_too = written
    assert len(in_memory) == 40
    assert on_disk_too == in_memory


async def test_a_batch_whose_users_find_no_room_is_not_finished(tmp_path: Path) -> None:
    with small_files_only():
        worker = InterestsWorker(TEXTS, state_on_disk=True, data_dir=tmp_path)
        with pytest.raises(
            StopWorker, match=r"states: no room for .* the states of 1,024 users of one partition"
        ):
            await worker.apply(worker.click("ann", "tea"))
        assert worker.consumer.finished == []
        assert worker.producer.records(worker.topics.profiles) == []
        assert worker.partition().watermark == -1
        await worker.close()


async def test_a_worker_that_can_keep_nothing_in_its_folder_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    worker = InterestsWorker({}, state_on_disk=True, data_dir=tmp_path / "data")
    with pytest.raises(StopWorker, match="data/states: no room"):
        await worker.profiles.start()
    await worker.close()
