"""What a request costs, and which are refused for it."""

from typing import Any

import pytest

from headwater.index import filters
from headwater.messages import Request, SessionEvent
from headwater.paths.request_cost import MAX_COST_US, complaint, cost_us

VALUES = [f"tag {number}" for number in range(filters.MAX_VALUES)]
COSTLY: dict[str, Any] = {"limit": 1_000, "diversity": 1.0, "explain": True}


def refusal(**fields: Any) -> str | None:
    request = Request("r", "ann", **fields)
    where = filters.parse(request.filter) if request.filter else None
    return complaint(request, where, cost_us(request, where))


def wide(conditions: int) -> dict[str, Any]:
    return {"or": [{"tags": {"any": VALUES}}] * conditions}


def test_a_usual_request_costs_little() -> None:
    assert cost_us(Request("r", "ann"), None) == pytest.approx(1_100.0)


@pytest.mark.parametrize(
    "fields",
    [
        COSTLY,
        {"limit": 1_000, "filter": {"category": "tea", "price": {"lt": 5}}},
        {**COSTLY, "exclude": ["c1"] * 1_000, "session": [SessionEvent("c1")] * 100, "filter": {"tags": "a"}},
        {"filter": wide(16)},
        {**COSTLY, "items": ["c1"] * 10},
    ],
)
def test_what_any_single_field_allows_may_be_asked_for(fields: dict[str, Any]) -> None:
    assert refusal(**fields) is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({**COSTLY, "filter": wide(16)}, "filter"),
        (
            {**COSTLY, "session": [SessionEvent("c1")] * 100, "sources": {"new": 1.0, "similar": 1.0}},
            "sources",
        ),
    ],
)
def test_a_request_out_of_proportion_is_refused_with_its_costliest_part_and_what_to_do(
    fields: dict[str, Any], named: str
) -> None:
    said = refusal(**fields)
    assert said is not None
    assert said.startswith(f"{named}: the request costs about ")
    assert f"expected at most {MAX_COST_US // 1000}" in said


@pytest.mark.parametrize(
    "more",
    [
        {"limit": 21},
        {"diversity": 0.1},
        {"explain": True},
        {"exclude": ["c1"]},
        {"session": [SessionEvent("c1")]},
        {"query": "tea"},
        {"sources": {"new": 1.0}},
        {"items": ["c1"]},
        {"filter": {"category": "tea"}},
        {"until_ms": 1_700_000_000_000},
    ],
)
def test_every_field_that_makes_work_costs(more: dict[str, Any]) -> None:
    request = Request("r", "ann", **more)
    where = filters.parse(request.filter) if request.filter else None
    assert cost_us(request, where) > cost_us(Request("r", "ann"), None)
