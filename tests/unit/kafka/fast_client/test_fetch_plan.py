"""What is asked of which broker next: as aiokafka plans it, and urgent topics apart."""

from typing import Any

import pytest

from headwater.kafka.fast_client.fetch_plan import UrgentNode, install_fast_planner, plan
from tests.support.fetching import TPS, URGENT, URGENT_NODES, Buffered, planning, said


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"state": {"paused": True}},
        {"state": {"paused": True}, "_in_flight": {0}},
        {"_in_flight": {0}},
        {"_in_flight": {0, 1}},
        {"_records": {TPS[0]: Buffered(0.0)}, "_fetch_max_wait_ms": 10},
        {"_records": {TPS[0]: Buffered(0.001), TPS[4]: Buffered(0.002)}, "_fetch_max_wait_ms": 10},
        {"_records": {TPS[0]: Buffered(0.001)}, "_in_flight": {1}, "_fetch_max_wait_ms": 10},
    ],
)
def test_a_fetch_is_planned_as_aiokafka_plans_it(way: dict[str, object]) -> None:
    fetcher, assignment = planning(**way)
    theirs = said(fetcher._get_actions_per_node(assignment))
    assert said(plan(fetcher, assignment, (), 500, fetcher._in_flight)) == theirs
    if not way:
        assert theirs[0][1] == {"clicks": [(1, 7, 100)], "requests": [(1, 7, 100)]}


def test_urgent_topics_are_asked_for_apart_whatever_becomes_of_the_others() -> None:
    requests = {
        apart: {"requests": [(n, 7, 100) for n in (0, 1, 2) if n % 2 == apart.node]} for apart in URGENT_NODES
    }
    clicks = {node: {"clicks": [(n, 7, 100) for n in (0, 1, 2) if n % 2 == node]} for node in (0, 1)}
    assert told() == clicks | requests
    assert told(_in_flight={0, 1}) == requests
    assert told(_in_flight=set(URGENT_NODES)) == clicks
    assert told(_records={TPS[0]: Buffered(0.001), TPS[1]: Buffered(0.001)}) == requests

    fetcher, assignment = planning(_records={TPS[0]: Buffered(0.0)})
    waits = {node: each._max_wait_ms for node, each in plan(fetcher, assignment, URGENT, 500, ())[0]}
    assert waits == {0: 10, 1: 10} | dict.fromkeys(URGENT_NODES, 500)


def told(**ways: object) -> Any:
    fetcher, assignment = planning(**ways)
    return said(plan(fetcher, assignment, URGENT, 500, fetcher._in_flight))[0]


@pytest.mark.parametrize(
    "way",
    [
        {"_preferred_read_replica": {TPS[0]: (1, 0.0)}},
        {"leader": None},
        {"leader": -1},
        {"state": {"has_valid_position": False}},
    ],
)
def test_with_anything_in_the_way_aiokafka_plans_itself_and_one_fetch_a_broker(
    way: dict[str, object],
) -> None:
    fetcher, assignment = planning(**way)
    assert plan(fetcher, assignment, URGENT, 500, ()) is None
    install_fast_planner(fetcher, URGENT)
    fetcher._in_flight = {UrgentNode(1)}
    fetches = said(fetcher._get_actions_per_node(assignment))[0]
    assert 1 not in fetches
    assert fetcher._in_flight == {UrgentNode(1)}
