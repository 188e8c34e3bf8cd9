"""The parts of the live page that a worker has."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headwater.metrics import Metrics
from headwater.paths.observer import ClickApplied, Observer
from headwater.settings import Settings
from headwater.worker.live_page import LivePage, live_page
from headwater.worker.roles import Role
from headwater.worker.status import Status
from headwater.worker.web.live import LiveError

SETTINGS = Settings(kafka_bootstrap_servers="127.0.0.1:1")


def page(role: Role, observer: Observer | None = None, examine: Any = None) -> LivePage:
    status = Status(SETTINGS, role, asyncio.get_running_loop().create_future())
    encoder = cast(Any, SimpleNamespace(id="bundle"))
    return live_page(SETTINGS, status, Metrics(), observer or Observer(), encoder, examine)


async def test_a_catalog_worker_says_what_it_does_not_have_and_who_has() -> None:
    parts = page("catalog").parts
    assert (parts.map, parts.users) == (None, None)
    assert "interests" in parts.missing["map"]
    assert parts.asks is not None, "through Kafka it reaches every user"
    assert "headwater doctor" in parts.missing["doctor"]


async def test_a_worker_that_starts_says_so() -> None:
    parts = page("all").parts
    assert parts.users is not None
    assert parts.map is not None
    for call in (parts.users.named("", 5), parts.users.described("ann"), parts.map.packed()):
        with pytest.raises(LiveError, match="still starting"):
            await call


async def test_paths_are_watched_only_while_somebody_looks() -> None:
    observer = Observer()
    viewers = page("all", observer).parts.viewers
    assert viewers is not None
    assert not observer.is_watched
    with viewers._watch() as second:
        assert observer.is_watched
        observer.tell([ClickApplied("ann", "t1", "click", "e1", 1, 0, 7, 2.5, 10.0)])
        figures, events = second()
        assert [each["user_id"] for each in events["clicks"]] == ["ann"]
        assert "ann" not in str(figures), "figures are for everybody"
    assert not observer.is_watched


async def test_the_doctors_findings_are_kept_for_a_while() -> None:
    looks = 0

    async def examine() -> list[tuple[str, bool, str]]:
        nonlocal looks
        looks += 1
        return [("broker", True, "there")]

    doctor = page("all", examine=examine).parts.doctor
    assert doctor is not None
    one, other = await asyncio.gather(doctor(), doctor())
    assert one["findings"] == [{"what": "broker", "ok": True, "seen": "there"}]
    assert (one, looks) == (other, 1)
