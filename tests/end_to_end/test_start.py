"""A worker that cannot work says why, in one sentence with the remedy, and ends with an exit code that is not 0."""

import asyncio
import json
import shutil
import subprocess
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.kafka import topics
from headwater.settings import STARTER_BUNDLE, Settings
from tests.end_to_end.worker_process import WorkerProcess, finished


def starting(settings: Settings, home: Path, **given: object) -> subprocess.CompletedProcess[str]:
    servers, prefix = settings.kafka_bootstrap_servers, settings.topic_prefix
    return finished(home, "worker", **{"kafka_bootstrap_servers": servers, "topic_prefix": prefix, **given})


def check_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Non-zero, nothing on standard output, and a last line without a traceback that holds all of `parts`."""
    assert done.returncode not in (0, None), done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert [part for part in parts if part not in last] == [], last


async def test_missing_topics_are_named_with_the_command_that_makes_them(
    settings: Settings, tmp_path: Path
) -> None:
    done = await asyncio.to_thread(starting, settings, tmp_path)
    check_refused(done, f"{settings.topic_prefix}clicks.v1", "missing", "headwater topics create")


async def test_a_wrong_partition_count_is_refused_with_both_numbers(
    own_topics: Settings, tmp_path: Path
) -> None:
    done = await asyncio.to_thread(starting, own_topics, tmp_path, partitions=8)
    check_refused(done, f"{own_topics.topic_prefix}clicks.v1", "4 partitions", "8", "HEADWATER_PARTITIONS=4")


async def test_what_deviates_with_the_topics_is_told_at_the_start_and_by_the_worker(
    settings: Settings, new_worker: Callable[..., WorkerProcess]
) -> None:
    await topics.create(settings)
    worker = new_worker("interests", clicks_retention_days=30)  # the topics keep clicks for 7 days
    await asyncio.to_thread(worker.start)
    body = worker.health()
    assert body["ok"], body
    [told] = [each for each in body["deviations"] if "clicks.v1" in each]
    for part in ("clicks.v1: retention.ms is 604800000", "expected 2592000000", "kafka-configs.sh"):
        assert part in told
    assert any(
        "topic_deviates" in line and "retention.ms" in line for line in worker.log.read_text().splitlines()
    )


async def test_users_data_is_off_unless_asked_for_and_probes_are_none_of_its_figures(
    own_topics: Settings, new_worker: Callable[..., WorkerProcess]
) -> None:
    worker = new_worker("interests", admin_token="", probe_s=0.5)
    await asyncio.to_thread(worker.start)
    assert json.loads(worker._get("/readyz"))["ready"] is True
    with pytest.raises(urllib.error.HTTPError) as refused:
        worker._get("/users/ann")
    with refused.value as answer:
        assert answer.code == 404
    with pytest.raises(urllib.error.URLError, match="refused"):
        worker._get("/users/ann", worker._admin_port)

    # Another worker of its own would take this test's time again.
    def probed() -> bool:
        return worker.metric("headwater_probe_click_to_answer_seconds_count") >= 2 * own_topics.partitions

    await asyncio.to_thread(worker.wait_until, "each partition is probed twice", probed)
    figures = worker.metrics()
    assert not [name for name in figures if name.startswith("headwater_probe_failures_total")]
    assert not [name for name in figures if name.startswith("headwater_requests_total")]
    for name in ("clicks_total", "duplicates_total", "store_users", "click_to_applied_seconds_count"):
        assert figures[f"headwater_{name}"] == 0, name
    assert figures["headwater_request_seconds_count"] == 0
    assert worker.health()["users"] == 0


async def test_a_group_that_does_not_take_the_worker_ends_it(
    embedded_broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    # The embedded broker takes no session timeout below six seconds, and the client gives up in silence.
    settings = Settings(kafka_bootstrap_servers=embedded_broker, topic_prefix=topic_prefix)
    await topics.create(settings)
    done = await asyncio.to_thread(starting, settings, tmp_path, session_timeout_s=2)
    check_refused(done, "InvalidSessionTimeout", "2 s", "HEADWATER_SESSION_TIMEOUT_S")


async def test_a_broken_bundle_is_refused_by_name(own_topics: Settings, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(STARTER_BUNDLE, bundle)
    graph = bundle / "step.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    done = await asyncio.to_thread(starting, own_topics, tmp_path, bundle=bundle)
    check_refused(done, "step.onnx", "SHA-256", "export the bundle again")


def test_a_broker_that_is_down_is_named_with_its_address(tmp_path: Path, unused_port: int) -> None:
    done = finished(tmp_path, "worker", kafka_bootstrap_servers=f"127.0.0.1:{unused_port}")
    check_refused(done, f"127.0.0.1:{unused_port}", "HEADWATER_KAFKA_BOOTSTRAP_SERVERS")


def test_a_wrong_setting_is_named_with_what_is_expected(tmp_path: Path) -> None:
    done = finished(tmp_path, "worker", partitions=0)
    check_refused(done, "HEADWATER_PARTITIONS", "expected")


async def test_a_worker_that_is_still_starting_can_be_stopped(own_topics: Settings, tmp_path: Path) -> None:
    servers, prefix = own_topics.kafka_bootstrap_servers, own_topics.topic_prefix
    worker = WorkerProcess(tmp_path, kafka_bootstrap_servers=servers, topic_prefix=prefix)
    try:
        worker.launch()
        await asyncio.to_thread(
            worker.wait_until, "it has begun", lambda: "bundle_loaded" in worker.last_words()
        )
        assert await asyncio.to_thread(worker.stop) == 0
    finally:
        worker.kill()
