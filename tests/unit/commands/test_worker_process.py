"""A worker of one's own: started with our settings, and missed when it is gone."""

import asyncio
from pathlib import Path

import pytest

from headwater.commands import worker_process
from headwater.commands.worker_process import OwnWorkerError
from headwater.settings import Settings
from tests.support.checkout import STARTER


def test_the_worker_gets_the_settings_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Settings(
        kafka_bootstrap_servers="127.0.0.1:1234",
        topic_prefix="shop.",
        partitions=3,
        catalog_partitions=2,
        graph_min_items=77,
        data_dir=tmp_path,
        bundle=STARTER,
        device="cpu",
        encoder_threads=2,
    )
    for name, value in worker_process._as_environment(given, 4321).items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == given.model_copy(update={"web_port": 4321})


async def test_a_worker_that_cannot_start_ends_with_the_last_line_of_its_log(
    tmp_path: Path, unused_port: int
) -> None:
    settings = Settings(kafka_bootstrap_servers=f"127.0.0.1:{unused_port}", data_dir=tmp_path)
    with pytest.raises(OwnWorkerError, match=rf"the last line of its log is: .*127\.0\.0\.1:{unused_port}"):
        async with worker_process.running(settings) as web:
            await worker_process.ready(web)


async def test_what_could_not_be_published_is_not_waited_for(unused_port: int) -> None:
    published: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    published.set_exception(OSError("no broker"))
    with pytest.raises(OSError, match="no broker"):
        await worker_process.come_to(
            f"http://127.0.0.1:{unused_port}", worker_process.applied, 1, lambda _: None, published
        )


def test_records_are_counted_over_all_partitions() -> None:
    assert worker_process.applied({"partitions": {"0": 9, "1": -1, "2": 0}}) == 11
