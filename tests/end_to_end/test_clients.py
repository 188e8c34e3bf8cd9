"""The examples in clients/: programs in other languages, with plain Kafka clients, against a real worker.

Each is skipped where its toolchain is missing or its packages cannot be fetched.
"""

import asyncio
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from headwater.client import Client
from headwater.kafka.partitioner import partition_of
from headwater.messages import Item
from headwater.settings import Settings
from tests.end_to_end.conftest import System

CLIENTS = Path(__file__).parent / "clients"
# JVM, Node and compilers start within a second on an idle machine.
_TIMEOUT_S = 240


class Example(NamedTuple):
    """A program, and what it takes to run it."""

    tools: tuple[str, ...]
    fetch: tuple[str, ...]  # brings its packages into the folder or a cache
    build: tuple[str, ...]
    run: tuple[str, ...]  # broker and prefix come behind


EXAMPLES = {
    "node": Example(
        ("node", "npm"), ("npm", "install", "--no-audit", "--no-fund", "--silent"), (), ("node", "ask.mjs")
    ),
    "java": Example(
        ("java", "javac", "mvn"),
        ("mvn", "-q", "-B", "dependency:copy-dependencies"),
        (),
        ("java", "-XX:TieredStopAtLevel=1", "-cp", "target/dependency/*", "Ask.java"),
    ),
    "go": Example(("go",), ("go", "mod", "download"), ("go", "build", "-o", "ask", "."), ("./ask",)),
}


@pytest.fixture(scope="session")
def folders() -> dict[str, Path]:
    """Where examples are ready to run, once they are."""
    return {}


@pytest.fixture(params=list(EXAMPLES))
def language(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def folder(language: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages, in a folder of its own."""
    if language not in folders:
        example = EXAMPLES[language]
        if missing := [tool for tool in example.tools if shutil.which(tool) is None]:
            pytest.skip(f"needs {' and '.join(missing)}")
        copy = tmp_path_factory.mktemp(language) / "client"
        shutil.copytree(CLIENTS / language, copy)
        fetched = _run(copy, example.fetch)
        if fetched.returncode:
            pytest.skip(f"its packages cannot be fetched: {(fetched.stdout + fetched.stderr).strip()[-300:]}")
        built = _run(copy, example.build)
        assert built.returncode == 0, built.stderr
        folders[language] = copy
    return folders[language]


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_an_example_in_another_language_reads_an_answer_that_reflects_its_click(
    shared_system: System, folder: Path, language: str
) -> None:
    settings = shared_system.settings
    await _until_searchable(settings)
    user = f"{language}-{uuid.uuid4().hex[:8]}"
    arguments = (*EXAMPLES[language].run, settings.bootstrap_servers, settings.topic_prefix)
    done = await asyncio.to_thread(_run, folder, arguments, {"SHOP_USER": user})
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["status"] == "ok"
    assert answer["user_id"] == user
    assert answer["reflects"]["partition"] == partition_of(user.encode(), settings.partitions)
    assert (answer["reflects"]["events"], answer["reflects"]["pending"]) == (1, 0)
    items = [item["item_id"] for item in answer["items"]]
    assert "c2" in items
    assert "c1" not in items  # just bought


async def _until_searchable(settings: Settings) -> None:
    """The examples publish these items, too, and wait for them as long as an idle machine needs."""
    async with Client(settings) as client:
        await client.put_item(Item("c1", title="Ground filter coffee", category="drinks", price=5.9))
        await client.put_item(Item("c2", title="Espresso coffee beans", category="drinks", price=8.5))
        while True:
            answer = await client.recall(
                "somebody", query="espresso coffee beans", filter={"category": "drinks"}, deadline_ms=20_000
            )
            if {"c1", "c2"} <= {item.item_id for item in answer.items}:
                return
            await asyncio.sleep(0.2)


def _run(
    folder: Path, command: tuple[str, ...], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command or ("true",),
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
