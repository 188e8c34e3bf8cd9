"""The table of actions: one row each, and everything that is known of an action follows from its row."""

import ast
import inspect
import subprocess
import sys
import textwrap

import pytest

from headwater import messages
from headwater.messages import ACTIONS, MAX_ACTION_CODE, SESSION_ACTIONS, Action, check_actions
from headwater.profiles.actions import POPULARITY, SEEN, STEPS
from tests.support.checkout import ROOT


def test_the_arrays_say_what_the_rows_say() -> None:
    for action in ACTIONS.values():
        assert STEPS[action.code] == action.steps_encoder
        assert SEEN[action.code] == action.counts_as_seen
        assert POPULARITY[action.code] == action.popularity


def test_only_positive_actions_step_the_encoder_and_are_popular() -> None:
    positive = {"click", "view", "like", "add_to_cart", "purchase"}
    assert {name for name, action in ACTIONS.items() if action.steps_encoder} == positive
    assert {name for name, action in ACTIONS.items() if action.popularity > 0} == positive


def test_a_code_without_a_row_means_nothing() -> None:
    unused = [code for code in range(MAX_ACTION_CODE + 1) if code not in {a.code for a in ACTIONS.values()}]
    assert len(STEPS) == len(SEEN) == len(POPULARITY) == MAX_ACTION_CODE + 1
    assert not STEPS[unused].any()
    assert not SEEN[unused].any()
    assert not POPULARITY[unused].any()


def test_type_checkers_are_told_the_names_of_the_table() -> None:
    told = {
        node.targets[0].id: ast.literal_eval(node.value.slice)
        for block in ast.parse(inspect.getsource(messages)).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Subscript)
    }
    assert told == {"ActionName": tuple(ACTIONS), "SessionActionName": SESSION_ACTIONS}


def test_a_sixteenth_action_is_refused_with_the_reason() -> None:
    full = {f"action {code}": Action(code) for code in range(1, MAX_ACTION_CODE + 1)}
    check_actions(full)
    with pytest.raises(ValueError, match="action share: got code 16, expected 1 to 15, since a user record"):
        check_actions({**full, "share": Action(MAX_ACTION_CODE + 1)})


def test_two_actions_with_one_code_are_refused() -> None:
    with pytest.raises(ValueError, match="action share: got code 3, which is that of like"):
        check_actions({**ACTIONS, "share": Action(3)})


def test_the_code_of_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="action share: got code 0"):
        check_actions({**ACTIONS, "share": Action(0)})


WITH_AN_ELEVENTH_ACTION = """
import asyncio, importlib.util, sys
from pathlib import Path

# headwater.messages as it is, with one more row in its table.
spec = importlib.util.find_spec("headwater.messages")
last = '    "forget": Action(code=10),\\n'
row = '    "share": Action(code=11, steps_encoder=True, counts_as_seen=True, popularity=2.0),\\n'
source = Path(spec.origin).read_text()
assert source.count(last) == 1
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
exec(compile(source.replace(last, last + row), spec.origin, "exec"), module.__dict__)

import numpy as np
from headwater.encoder.features import ACTION_NAMES, item_key
from headwater.messages import SESSION_ACTIONS, schemas
from headwater.profiles.state_records import unpack
from headwater.profiles.columns import Columns
from tests.support.interests_worker import InterestsWorker, now_ms


async def main():
    worker = InterestsWorker({"coffee": "Ground coffee", "tea": "Green tea"})  # with the shipped bundle
    at_ms = now_ms() - 60_000
    await worker.apply(
        worker.click("ann", "coffee", action="share", at_ms=at_ms),
        worker.click("bob", "coffee", action="click", at_ms=at_ms),
    )
    columns = worker.partition().columns
    ann, bob = columns.rows[b"ann"], columns.rows[b"bob"]
    assert [ACTION_NAMES[event.action] for event in worker.log("ann")] == ["share"]
    assert columns.last_event[ann] == b"event 0"
    assert columns.state_at_ms[ann] == at_ms and columns.pending[ann] == 0
    assert (columns.state[ann] == columns.state[bob]).all() and columns.state[ann].any(), "it steps as a click"
    assert dict(worker.clicks.counts[0].top())[item_key("coffee")] == 3.0, "2 for the share, 1 for the click"

    # Among events that need care, too: it counts, and it is the user's newest.
    await worker.apply(
        worker.click("ann", "tea", action="share", at_ms=at_ms - 5, event_id="early"),
        worker.click("ann", "tea", action="share", at_ms=at_ms + 5, event_id="late"),
        worker.click("ann", "tea", action="share", at_ms=at_ms + 5, event_id="late"),
    )
    assert columns.last_event[ann] == b"late"
    assert 2.9 < dict(worker.clicks.counts[0].top())[item_key("tea")] < 3.1, "2, and half of it for the second on the item"
    assert worker.measured("clicks_total") == 4

    # The record of the user is read back with it, and requests and schemas know it.
    records = worker.producer.latest(worker.topics.profiles)
    fresh = Columns(worker.encoder.log_length, worker.encoder.state_size)
    row = np.array([fresh.add(b"ann")])
    unpack(fresh, row, [records[b"ann"].value], worker.profiles.bundle)
    assert fresh.log(row).events(0) == worker.log("ann")
    assert SESSION_ACTIONS[-1] == "share"
    assert "share" in schemas()["Click"]["$defs"]["Click"]["properties"]["action"]["enum"]
    await worker.close()


asyncio.run(main())
"""


def test_an_eleventh_action_is_one_row_of_the_table() -> None:
    """It is logged, stepped and counted, and the shipped bundle, which never heard of it, loads."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITH_AN_ELEVENTH_ACTION)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
