"""The demo: what it replays and how it counts, and the whole of it as a process."""

import json
import os
import re
import signal
import time
from pathlib import Path

import msgspec
import polars as pl
import pytest
from rich.console import Console

from headwater.client import Client, ClientError
from headwater.commands.demo import (
    Basket,
    Shown,
    Summary,
    _baskets,
    _bought,
    _data,
    _Measured,
    _replay,
    _summary,
)
from headwater.commands.worker_process import OwnWorkerError
from headwater.messages import Candidate, Position, Reflects, Response
from headwater.settings import Settings
from tests.support.terminal import Terminal, children_of

# What is replayed


def test_purchases_of_a_household_close_together_are_one_basket() -> None:
    events = pl.DataFrame(
        [
            ("ann", "milk", 1_000),
            ("ben", "tea", 2_000),
            ("ann", "bread", 61_000),
            ("ann", "eggs", 181_000),
            ("ann", "soap", 301_001),
        ],
        schema=["user_id", "item_id", "at_ms"],
        orient="row",
    )
    assert list(_baskets(events)) == [
        Basket("ann", ["milk", "bread", "eggs"]),
        Basket("ben", ["tea"]),
        Basket("ann", ["soap"]),
    ]


def test_the_history_ends_where_the_live_baskets_begin_and_the_last_purchase_is_now() -> None:
    catalog, history, live, shift_ms = _data(5_000)
    assert len(catalog) == 92_331
    assert len(history) == 5_000
    now_ms = time.time_ns() // 1_000_000
    two_days_ms = 2 * 86_400_000
    shifted_end = int(history["at_ms"].max()) + shift_ms  # type: ignore[arg-type]
    assert shifted_end <= now_ms - two_days_ms
    assert shifted_end > now_ms - two_days_ms - 86_400_000
    known = set(catalog["item_id"])
    assert live
    assert all(set(basket.item_ids) <= known for basket in live)


# How it counts


class FakeClient(Client):
    """Takes purchases, and answers with what `reflects` says."""

    def __init__(self, answer: Response | None) -> None:
        super().__init__(Settings())
        self._answer = answer
        self.event_id = ""

    async def click(self, user_id: str, item_id: str = "", *args: object, **options: object) -> Position:  # type: ignore[override]
        self.event_id = str(options["event_id"])
        self._remember(user_id, Position(1, 10))
        return Position(1, 10)

    async def recall(self, user_id: str, **options: object) -> Response:  # type: ignore[override]
        if self._answer is None:
            raise ClientError("no answer")
        reflects = self._answer.reflects
        if reflects is not None and reflects.last_event_id == "mine":
            reflects = msgspec.structs.replace(reflects, last_event_id=self.event_id)
        return msgspec.structs.replace(self._answer, reflects=reflects)


def answer(reflects: Reflects | None) -> Response:
    return Response("r", "ann", "ok", items=[Candidate("tea", 1.0, "interests")], reflects=reflects)


async def counted(reply: Response | None) -> tuple[Shown | None, Summary]:
    measured = _Measured()
    found = await _bought(
        FakeClient(reply), Basket("ann", ["milk"]), {"milk": "Milk", "tea": "Tea"}, measured
    )
    shown = [found] if found else []
    seconds = {"catalog": 1.0, "history": 1.0, "first_answer": 1.0}
    return found, _summary(1, 1, shown, measured, seconds, "bundle")


async def test_an_answer_that_reflects_the_purchase_counts() -> None:
    found, summary = await counted(answer(Reflects(1, 10, last_event_id="mine")))
    assert found is not None
    assert (found.bought, found.after, found.reflected) == (["Milk"], ["Tea"], True)
    assert (summary.asks, summary.answered, summary.after_click, summary.reflected) == (2, 2, 1, 1)
    assert summary.is_complete


@pytest.mark.parametrize(
    "reflects",
    [
        Reflects(1, 9, last_event_id="mine"),
        Reflects(2, 10, last_event_id="mine"),
        Reflects(1, 10, last_event_id="an older one"),
        None,
    ],
    ids=["older offset", "other partition", "other event", "no proof"],
)
async def test_an_answer_that_does_not_reflect_the_purchase_makes_the_demo_fail(
    reflects: Reflects | None,
) -> None:
    _, summary = await counted(answer(reflects))
    assert summary.answered == 2
    assert summary.reflected == 0
    assert not summary.is_complete


async def test_an_ask_without_an_answer_makes_the_demo_fail() -> None:
    _, summary = await counted(None)
    assert (summary.asks, summary.answered) == (2, 0)
    assert not summary.is_complete


async def test_a_demo_whose_worker_is_gone_ends_and_says_so(unused_port: int) -> None:
    live = [Basket("ann", ["milk"])] * 3
    with pytest.raises(OwnWorkerError, match=f"the worker at http://127.0.0.1:{unused_port} does not answer"):
        await _replay(
            FakeClient(None), Console(quiet=True), {"milk": "Milk"}, live, f"http://127.0.0.1:{unused_port}"
        )


# The whole of it


@pytest.mark.slow
def test_once_prints_one_json_object_and_leaves_nothing(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    with terminal.start("demo", "--once", "--json", "--events", "5000") as running:
        stdout, stderr = running.communicate(timeout=280)
    assert running.returncode == 0, stderr
    summary = msgspec.json.decode(stdout, type=Summary)  # one object and nothing else
    assert summary.catalog_items == 92_331
    assert summary.events == 5_000
    assert summary.is_complete
    assert summary.ms_click_to_answer["p50"] > 0
    assert len(summary.households) == 6
    for shown in summary.households:
        assert shown.bought
        assert shown.after
        assert shown.reflected
    assert re.match(r"live page: http://127\.0\.0\.1:\d+/\n", stderr)  # the first thing that is said
    assert "purchases applied" in stderr
    assert not children_of(running.pid)
    assert not list((tmp_path / ".headwater" / "demo" / "broker").glob("[0-9]*"))


@pytest.mark.slow
def test_a_second_terminal_works_beside_the_demo_until_ctrl_c(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    registry = tmp_path / "state" / "headwater" / "running"
    with terminal.start("demo", "--events", "2000") as running:
        assert running.stderr
        for line in running.stderr:
            if "a basket a second" in line:
                break
        started = children_of(running.pid)
        assert len(started) == 2
        (announced,) = registry.iterdir()
        assert announced.name.startswith(f"{running.pid}-")
        place = terminal.succeeds("click", "somebody new", "995242", "--action", "purchase").strip()
        found = json.loads(terminal.succeeds("ask", "somebody new", "--json", "--limit", "3"))
        assert found["reflects"]["events"] == 1
        assert str(found["reflects"]["partition"]) == place.split("-")[0]
        assert len(found["items"]) == 3
        assert "milk" in terminal.succeeds("user", "somebody new").lower()
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
        assert running.returncode == 0
    assert_gone(started)
    assert not announced.exists()


def test_a_demo_that_is_told_to_stop_while_it_fills_leaves_nothing(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    with terminal.start("demo", "--once", "--json") as running:
        log = tmp_path / ".headwater" / "demo" / "worker.log"
        deadline = time.monotonic() + 120
        while not (log.exists() and "worker_ready" in log.read_text()):
            assert running.poll() is None
            assert time.monotonic() < deadline, "the demo's worker was not ready within two minutes"
            time.sleep(0.1)
        started = children_of(running.pid)
        running.send_signal(signal.SIGTERM)
        stdout, _ = running.communicate(timeout=30)
        assert running.returncode == 130
        assert stdout == ""
    assert len(started) == 2
    assert_gone(started)


def assert_gone(pids: list[int]) -> None:
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
