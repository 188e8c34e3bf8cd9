"""The settings choose the engine, in one place; what cannot be opened says which setting to look at."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from headwater.index.open import IN_PROCESS, IndexNotOpened, engine_of, look_at, open_index
from headwater.settings import Settings
from tests.contract import qdrant_stand_in
from tests.support.checkout import ROOT


def settings(**given: object) -> Settings:
    return Settings(kafka_bootstrap_servers="127.0.0.1:1", **given)  # type: ignore[arg-type]


def test_an_address_of_a_server_chooses_the_server_and_none_the_engine_in_the_process() -> None:
    assert engine_of(settings()).name == "edge"
    assert engine_of(settings(qdrant_url="http://127.0.0.1:1")).name == "server"


def test_a_system_of_its_own_leaves_a_shared_index_alone() -> None:
    shared = settings(qdrant_url="http://127.0.0.1:1")
    assert engine_of(shared.model_copy(update=IN_PROCESS)).name == "edge"


async def test_an_index_is_filled_by_whom_its_engine_says(tmp_path: Path) -> None:
    given = settings(data_dir=tmp_path)
    index = await open_index(given, "a-bundle", 2, 0.0)
    assert index.filled_by == engine_of(given).filled_by == "each worker"
    assert index.health().graph == 0
    await index.close()


async def test_a_folder_that_cannot_be_written_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file where a folder is expected")
    with pytest.raises(IndexNotOpened, match="HEADWATER_DATA_DIR is "):
        await open_index(settings(data_dir=tmp_path), "a-bundle", 2, 0.0)


async def test_a_server_is_opened_with_its_key_and_the_collection_of_the_bundle() -> None:
    async with qdrant_stand_in.serving() as stand_in:
        stand_in.api_key = "the-key"
        given = settings(
            qdrant_url=stand_in.url, qdrant_grpc_port=stand_in.port, qdrant_api_key=SecretStr("the-key")
        )
        index = await open_index(given, "a-bundle", 2, 0.0)
        assert index.filled_by == engine_of(given).filled_by == "the catalog worker"
        assert index.health().graph is None
        assert await index.count() == 0
        await index.close()
        wrong = given.model_copy(update={"qdrant_api_key": None})
        with pytest.raises(IndexNotOpened, match=r"HEADWATER_QDRANT_URL is .*UNAUTHENTICATED"):
            await open_index(wrong, "a-bundle", 2, 0.0)


async def test_a_look_says_whether_the_server_answers(unused_port: int) -> None:
    assert look_at(settings()) is None
    look = await asyncio.to_thread(look_at, settings(qdrant_url=f"http://127.0.0.1:{unused_port}"))
    assert look is not None
    assert not look.ok
    assert f"127.0.0.1:{unused_port}" in look.seen
    assert "HEADWATER_QDRANT_URL" in look.seen


async def test_a_look_at_a_server_that_is_ready_is_well() -> None:
    async def ready(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(ready, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        look = await asyncio.to_thread(look_at, settings(qdrant_url=f"http://127.0.0.1:{port}"))
    assert look == (True, f"http://127.0.0.1:{port} answered 200")


def test_an_engine_is_loaded_when_it_is_opened_and_not_before() -> None:
    program = "import sys, headwater.index.open; print({'qdrant_edge', 'qdrant_client'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "streams", capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "set()", done.stderr
