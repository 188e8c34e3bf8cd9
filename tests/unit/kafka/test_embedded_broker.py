"""The embedded broker as a process, and what both brokers have to do for us."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from headwater.kafka import embedded_broker, topics
from headwater.kafka.embedded_broker import BrokerError, EmbeddedBroker, client_id, make_room
from headwater.kafka.topics import Topics
from headwater.settings import Settings

_READS_LIKE_A_WORKER = """
    import asyncio, sys
    from aiokafka import AIOKafkaConsumer
    from headwater.kafka.embedded_broker import client_id

    async def main(servers, topic, group):
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=servers, group_id=group, client_id=client_id(group),
            session_timeout_ms=6000, heartbeat_interval_ms=500, enable_auto_commit=False,
        )
        await consumer.start()
        print(len(consumer.assignment()), flush=True)
        await asyncio.sleep(600)

    asyncio.run(main(*sys.argv[1:]))
"""


def _join_and_be_killed(*arguments: str) -> None:
    program = textwrap.dedent(_READS_LIKE_A_WORKER)
    member = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    try:
        assert member.stdout is not None
        assert member.stdout.readline() == b"4\n"
    finally:
        member.kill()
        member.communicate()


def _eventually(condition: Callable[[], bool], within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_stopping_leaves_no_process_and_no_data(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        pid = broker.pid
        assert pid is not None
        assert broker.is_alive()
        assert not _is_gone(pid)
    assert _is_gone(pid)
    assert not broker.is_alive()
    assert [path.name for path in (tmp_path / "broker").iterdir()] == ["broker.log"]


def test_an_error_in_the_block_stops_the_broker_too(tmp_path: Path) -> None:
    pids = []

    def fail() -> None:
        with EmbeddedBroker(tmp_path) as broker:
            assert broker.pid is not None
            pids.append(broker.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert _is_gone(pids[0])


def test_two_brokers_run_side_by_side_in_one_folder(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as first, EmbeddedBroker(tmp_path) as second:
        assert first.bootstrap_servers != second.bootstrap_servers
        assert first.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_the_broker_dies_with_a_process_that_is_killed_and_its_folder_is_swept(tmp_path: Path) -> None:
    program = f"""
        import pathlib, time
        from headwater.kafka.embedded_broker import EmbeddedBroker
        with EmbeddedBroker(pathlib.Path({str(tmp_path)!r})) as broker:
            print(broker.pid, flush=True)
            time.sleep(600)
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert not _is_gone(pid)
    finally:
        owner.kill()
        owner.communicate()
    assert _eventually(lambda: _is_gone(pid))
    assert len(list((tmp_path / "broker").glob("[0-9]*-*"))) == 1
    with EmbeddedBroker(tmp_path):
        (left,) = (tmp_path / "broker").glob("[0-9]*-*")
        assert left.name.startswith(f"{os.getpid()}-")


def test_a_missing_package_is_named_with_the_remedies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "noida_db", None)
    with pytest.raises(BrokerError) as caught, EmbeddedBroker(tmp_path):
        pass
    message = str(caught.value)
    assert "not installed" in message
    assert "make install" in message
    assert "pip install noida-db==0.2.3" in message
    assert "HEADWATER_KAFKA_BOOTSTRAP_SERVERS" in message
    assert "\n" not in message


def test_another_version_than_the_verified_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _name: "9.9.9")
    with pytest.raises(BrokerError, match=r"noida-db 9\.9\.9: expected 0\.2\.3"), EmbeddedBroker(tmp_path):
        pass


def test_a_broker_that_ends_at_once_says_so_and_where_its_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(embedded_broker, "_binary", lambda: broken)
    with (
        pytest.raises(BrokerError, match=r"status 3: no such luck; see .*broker\.log"),
        EmbeddedBroker(tmp_path),
    ):
        pass
    assert [path.name for path in (tmp_path / "broker").iterdir()] == ["broker.log"]


def test_a_broker_that_is_never_ready_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = tmp_path / "silent"
    silent.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    silent.chmod(0o755)
    monkeypatch.setattr(embedded_broker, "_binary", lambda: silent)
    with (
        pytest.raises(BrokerError, match=r"not ready after 0\.5 s"),
        EmbeddedBroker(tmp_path, ready_timeout_s=0.5),
    ):
        pass
    assert _is_gone(int((tmp_path / "pid").read_text()))


async def test_the_embedded_broker_writes_no_log_to_disk(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
        await topics.create(settings)
        async with AIOKafkaProducer(**settings.kafka_options()) as producer:
            for _ in range(20):  # its first draft would be written within a second
                await producer.send_and_wait(Topics.named(settings.topic_prefix).clicks, b"x" * 100_000)
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 10_000


async def test_a_record_batch_arrives_with_keys_headers_and_tombstones(settings: Settings) -> None:
    await topics.create(settings)
    profiles = Topics.named(settings.topic_prefix).profiles
    sent = [(b"u%d" % n, None if n % 10 == 3 else b"%d" % n * 100) for n in range(500)]
    async with AIOKafkaProducer(
        **settings.kafka_options(), compression_type="lz4", max_batch_size=262_144
    ) as producer:
        batch = producer.create_batch()
        for key, value in sent:
            packed = batch.append(
                key=key, value=value, timestamp=None, headers=[("writer", b"w"), ("none", b"")]
            )
            assert packed is not None
        batch.close()
        first = await (await producer.send_batch(batch, profiles, partition=2))
        assert first.offset == 0
    partition = TopicPartition(profiles, 2)
    async with AIOKafkaConsumer(**settings.kafka_options(), auto_offset_reset="earliest") as consumer:
        consumer.assign([partition])
        assert await consumer.end_offsets([partition]) == {partition: 500}
        read = [await consumer.getone() for _ in sent]
    assert [(record.key, record.value) for record in read] == sent
    assert [record.offset for record in read] == list(range(500))
    assert read[0].headers == (("writer", b"w"), ("none", b""))


async def test_the_time_of_what_comes_from_outside_is_the_brokers_and_that_of_a_state_the_senders(
    settings: Settings,
) -> None:
    """A sender whose clock is ten years ahead dates no click, item or request into the future."""
    await topics.create(settings)
    names = Topics.named(settings.topic_prefix)
    async with AIOKafkaProducer(**settings.kafka_options()) as producer:
        now_ms = int(time.time() * 1000)
        ahead_ms = now_ms + 10 * 365 * 86_400_000
        written = {
            name: await producer.send_and_wait(name, b"{}", b"key", partition=0, timestamp_ms=ahead_ms)
            for name in (names.requests, names.clicks, names.catalog, names.trends)
        }
        written[names.vectors] = await producer.send_and_wait(
            names.vectors, b"{}", b"key", partition=0, timestamp_ms=now_ms - 9_000_000
        )
    async with AIOKafkaConsumer(**settings.kafka_options(), auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(name, 0) for name in written])
        read = [await consumer.getone() for _ in written]
    at_ms = {record.topic: record.timestamp for record in read}
    assert at_ms.pop(names.vectors) == now_ms - 9_000_000
    for name, timestamp in at_ms.items():
        assert timestamp == written[name].timestamp
        assert now_ms - 1_000_000 <= timestamp < now_ms + 1_000_000


async def test_two_members_share_the_partitions_and_one_takes_them_over(settings: Settings) -> None:
    await topics.create(settings)
    clicks = Topics.named(settings.topic_prefix).clicks

    def member() -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            clicks,
            **settings.kafka_options(),
            group_id=settings.interests_group,
            session_timeout_ms=6000,
            heartbeat_interval_ms=200,
            enable_auto_commit=False,
        )

    async def reaches(consumer: AIOKafkaConsumer, count: int) -> None:
        while len(consumer.assignment()) != count:
            await consumer.getmany(timeout_ms=50)

    async with member() as first:
        await reaches(first, 4)
        async with member() as second:
            await reaches(first, 2)
            await reaches(second, 2)
            own = next(iter(second.assignment()))
            await second.commit({own: 0})
        await reaches(first, 4)
        assert await first.committed(own) == 0


async def test_a_killed_member_does_not_keep_its_successor_out(settings: Settings) -> None:
    await topics.create(settings)
    clicks, group = Topics.named(settings.topic_prefix).clicks, settings.interests_group
    await asyncio.to_thread(_join_and_be_killed, settings.bootstrap_servers, clicks, group)
    await make_room(settings, group)
    successor = AIOKafkaConsumer(
        clicks,
        **settings.kafka_options(),
        group_id=group,
        client_id=client_id(group),
        session_timeout_ms=6000,
        heartbeat_interval_ms=500,
        enable_auto_commit=False,
    )
    async with successor:
        assert len(successor.assignment()) == 4


async def test_the_embedded_broker_refuses_a_second_worker(embedded_broker: str, topic_prefix: str) -> None:
    settings = Settings(kafka_bootstrap_servers=embedded_broker, topic_prefix=topic_prefix)
    await topics.create(settings)
    async with _worker_of(settings) as first:
        with pytest.raises(BrokerError) as caught:
            await make_room(settings, settings.interests_group)
        assert len(first.assignment()) == 4  # the living stay
    assert f"has a member already ({client_id(settings.interests_group)})" in str(caught.value)
    assert "set HEADWATER_KAFKA_BOOTSTRAP_SERVERS" in str(caught.value)


async def test_apache_kafka_takes_many_workers(kafka: str, topic_prefix: str) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka, topic_prefix=topic_prefix)
    await topics.create(settings)
    async with _worker_of(settings):
        assert await make_room(settings, settings.interests_group) == []


def _worker_of(settings: Settings) -> AIOKafkaConsumer:
    group = settings.interests_group
    clicks = Topics.named(settings.topic_prefix).clicks
    return AIOKafkaConsumer(clicks, **settings.kafka_options(), group_id=group, client_id=client_id(group))


def test_a_taken_port_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=rf"cannot listen on port {port} .*choose another port"):
            EmbeddedBroker(tmp_path, port=port).__enter__()


def test_the_usual_port_is_taken_where_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    monkeypatch.setattr(embedded_broker, "USUAL_PORT", port)
    with EmbeddedBroker(tmp_path, port=None) as first, EmbeddedBroker(tmp_path, port=None) as second:
        assert first.bootstrap_servers == f"127.0.0.1:{port}"
        assert second.bootstrap_servers != first.bootstrap_servers


def test_a_folder_that_cannot_be_written_to_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BrokerError, match=r"cannot write to .*HEADWATER_DATA_DIR"):
        EmbeddedBroker(tmp_path / "file").__enter__()


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
async def test_a_kept_log_is_there_at_the_next_start(tmp_path: Path, is_killed: bool) -> None:
    clicks, group = Topics.named("headwater.").clicks, "headwater-interests"
    place = TopicPartition(clicks, 0)
    with EmbeddedBroker(tmp_path, keep=True) as broker:
        settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
        await topics.create(settings)
        async with AIOKafkaProducer(**settings.kafka_options()) as producer:
            await producer.send_and_wait(clicks, b"\x00\xff", key=b"ann", partition=0, headers=[("h", b"v")])
        async with AIOKafkaConsumer(**settings.kafka_options(), group_id=group) as consumer:
            consumer.assign([place])
            await consumer.commit({place: 1})
        if is_killed:
            saved = tmp_path / "broker" / "kept" / "kafka.json"
            assert _eventually(lambda: saved.exists() and b"headwater-interests" in saved.read_bytes(), 30)
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
    with EmbeddedBroker(tmp_path, keep=True) as broker:
        settings = Settings(kafka_bootstrap_servers=broker.bootstrap_servers)
        assert await topics.create(settings) == []
        async with AIOKafkaConsumer(**settings.kafka_options(), group_id=group) as consumer:
            consumer.assign([place])
            assert await consumer.committed(place) == 1
            consumer.seek(place, 0)
            record = await consumer.getone()
    assert (record.key, record.value, record.headers) == (b"ann", b"\x00\xff", (("h", b"v"),))


def test_one_broker_at_a_time_keeps_its_log_in_a_folder(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path, keep=True):
        with pytest.raises(BrokerError, match="another embedded broker keeps its log in"):
            EmbeddedBroker(tmp_path, keep=True).__enter__()
        with EmbeddedBroker(tmp_path):
            pass
    with EmbeddedBroker(tmp_path, keep=True):
        pass
