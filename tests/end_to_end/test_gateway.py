"""The gateway as its users run it: `headwater gateway` beside a running system, and the lines of the README."""

import asyncio
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from headwater.messages import Item, Position
from tests.end_to_end.conftest import System
from tests.end_to_end.outside import Outside
from tests.end_to_end.worker_process import command, environment, finished
from tests.support.checkout import ROOT

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

_STOP_S = 60
KEY = "correct-horse-battery"
TOKEN = "another-horse-battery"
_LINES = re.compile(
    r"<!-- these lines are run by tests/end_to_end/test_gateway.py -->\n```sh\n(.*?)```", re.S
)


@contextmanager
def gateway(system: System, home: Path, **settings: object) -> Iterator[str]:
    """host:port of a gateway to the system."""
    home.mkdir(parents=True, exist_ok=True)
    given = {
        "kafka_bootstrap_servers": system.settings.kafka_bootstrap_servers,
        "topic_prefix": system.settings.topic_prefix,
    }
    process = subprocess.Popen(
        command("gateway", "--port", "0"),
        cwd=home,
        env=environment(**given, **settings),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        address = re.match(r"gateway: http://(\S+), described by", said)
        assert address is not None, said + process.stderr.read()
        yield address[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(_STOP_S) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait(_STOP_S)
        if process.stderr is not None:
            process.stderr.close()


async def test_a_click_over_http_is_in_the_next_answer_over_http(
    shared_system: System, outside: Outside, tmp_path: Path
) -> None:
    with gateway(shared_system, tmp_path / "gateway", gateway_keys=KEY, admin_token=TOKEN) as address:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:

            async def call(method: str, path: str, body: object = None, **headers: str) -> Any:
                url = f"http://{address}{path}"
                async with session.request(method, url, json=body, headers=headers) as answer:
                    return answer.status, await answer.json()

            titles = {"near": "Brass sextant", "far": "Sextant of brass and wood"}
            items = [Item(outside.own(name), title=title) for name, title in titles.items()]
            places = []
            for item in items:
                status, stored = await call("POST", "/items", {"item_id": item.item_id, "title": item.title})
                assert status == 201, stored
                places.append(Position(stored["partition"], stored["offset"]))
            await outside.catalog_applied(cast(Any, places))
            user = outside.own("ann")
            status, clicked = await call("POST", "/clicks", {"user_id": user, "item_id": items[0].item_id})
            assert status == 201
            for headers in ({}, {"Headwater-After": clicked["token"]}):
                status, answer = await call("POST", "/recall", {"user_id": user}, **headers)
                assert (status, answer["status"], answer["reflects"]["events"]) == (200, "ok", 1)
                assert answer["reflects"]["last_event_id"] == clicked["event_id"]
            status, answer = await call("GET", f"/items/{items[0].item_id}/similar?limit=1")
            assert [(each["item_id"], each["source"]) for each in answer["items"]] == [
                (items[1].item_id, "item")
            ]
            places = []
            for item in items:  # other tests ask the same system
                status, gone = await call("DELETE", f"/items/{item.item_id}")
                assert status == 200, gone
                places.append(Position(gone["partition"], gone["offset"]))
            await outside.catalog_applied(cast(Any, places))
            assert (await call("GET", "/healthz"))[0] == 200
            bad = await outside.send(outside.topics.clicks, b"{", key=user.encode())
            await outside.dead_letter(outside.topics.clicks, bad)
            letter = {"place": f"{outside.topics.clicks}/{bad.partition}/{bad.offset}"}
            assert (await call("POST", "/live/letters/redrive", letter))[0] == 401  # a key is not enough
            done = await call("POST", "/live/letters/redrive", letter, Authorization=f"Bearer {TOKEN}")
            assert (done[0], done[1]["redriven"]) == (200, 1)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
async def test_the_lines_of_the_readme_run_as_printed(shared_system: System, tmp_path: Path) -> None:
    (lines,) = _LINES.findall((ROOT / "streams" / "README.md").read_text())
    with gateway(shared_system, tmp_path / "gateway") as address:
        run = {line: shutil.which(line.partition(" ")[0]) for line in lines.strip().splitlines()}
        assert {line.partition(" ")[0] for line in run} == {"curl", "node", "php"}
        for line in (line for line, program in run.items() if program is not None):
            done = await asyncio.to_thread(
                subprocess.run,
                ["sh", "-c", line.replace("127.0.0.1:8080", address)],
                capture_output=True,
                text=True,
                timeout=_STOP_S,
            )
            assert json.loads(done.stdout).get("error") is None, line


async def test_an_address_that_others_reach_needs_keys(shared_system: System, tmp_path: Path) -> None:
    servers = shared_system.settings.kafka_bootstrap_servers
    done = await asyncio.to_thread(
        finished, tmp_path, "gateway", "--host", "0.0.0.0", "--port", "0", kafka_bootstrap_servers=servers
    )
    assert done.returncode == 1
    assert "HEADWATER_GATEWAY_HOST is 0.0.0.0: expected HEADWATER_GATEWAY_KEYS" in done.stderr
