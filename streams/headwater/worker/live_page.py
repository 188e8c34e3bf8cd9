"""The live page of a worker, put together from the worker's parts. Nothing here runs without a viewer."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from headwater import __version__
from headwater.encoder.runtime import Encoder
from headwater.index import IndexUnavailable
from headwater.kafka.partitioner import probe_user
from headwater.messages import ACTIONS, SessionEvent
from headwater.metrics import Metrics
from headwater.paths.observer import Observer
from headwater.recall.sources.registry import REGISTRY
from headwater.settings import Settings
from headwater.worker.catalog_map import CatalogMap
from headwater.worker.live_actions import Asking, LetterDesk
from headwater.worker.live_figures import Figures, shown
from headwater.worker.roles import InterestsRole
from headwater.worker.status import NoSuchUser, Status
from headwater.worker.web.live import LiveError, Parts
from headwater.worker.web.viewers import Second, Viewers

# Looks at the system around the worker whose web address is given. Each finding: what was looked at, whether it is well, and
# what was seen, as `headwater doctor` prints it.
Finding = tuple[str, bool, str]
Examine = Callable[[str | None], Awaitable[Sequence[Finding]]]

_EXAMINED_S: Final = 10.0
_NOT_HERE: Final = "a worker of role catalog does not have it; ask one of role interests or all"
_STARTING: Final = "this worker is still starting"


class LivePage(NamedTuple):
    """The parts, and what has to be closed."""

    parts: Parts
    close: Callable[[], Awaitable[None]]


def live_page(
    settings: Settings,
    status: Status,
    metrics: Metrics,
    observer: Observer,
    encoder: Encoder,
    examine: Callable[[], Awaitable[Sequence[Finding]]] | None,
) -> LivePage:
    """The parts of the page for one worker, also before it has opened its roles.

    Args:
        examine: looks at the whole system; None: nobody said how.
    """
    asking = Asking(settings)

    @contextlib.contextmanager
    def watch() -> Iterator[Callable[[], Second]]:
        figures = Figures(metrics)
        with observer.listen() as listener:

            def second() -> Second:
                events = listener.take()
                return Second({**figures.second(events), **status.figures()}, shown(events))

            yield second

    is_catalog = status.role == "catalog"
    here = _Here(settings, status, encoder)
    parts = Parts(
        about=lambda: {
            "role": status.role,
            "version": __version__,
            "bundle": status.bundle_id,
            "partitions": settings.partitions,
            "actions": list(ACTIONS),
            "sources": {source.name: source.default_weight for source in REGISTRY},
        },
        viewers=Viewers(watch),
        state=lambda: _state(status, encoder),
        map=None if is_catalog else here,
        users=None if is_catalog else here,
        asks=asking,
        letters=LetterDesk(settings),
        doctor=None if examine is None else _Examined(examine),
        missing={
            **({"map": _NOT_HERE, "users": _NOT_HERE} if is_catalog else {}),
            **(
                {}
                if examine is not None
                else {"doctor": "this worker cannot examine; use `headwater doctor`"}
            ),
        },
    )
    return LivePage(parts, asking.close)


def _state(status: Status, encoder: Encoder) -> dict[str, Any]:
    manifest = encoder.manifest
    catalog = status.interests.catalog if status.interests is not None else {}
    return {
        "health": status.health(),
        "ready": status.readiness(),
        "catalog": {str(partition): offset for partition, offset in sorted(catalog.items())},
        "bundle": {
            "id": encoder.id,
            "providers": ", ".join(encoder.providers),
            **{
                name: getattr(manifest, name)
                for name in ("name", "summary", "kind", "item_inputs", "dim", "log_length", "interests")
            },
            "origin": msgspec.to_builtins(manifest.origin),
        },
    }


class _Here:
    """Catalog and users as the interests role of this worker holds them."""

    def __init__(self, settings: Settings, status: Status, encoder: Encoder) -> None:
        self._settings, self._status, self._encoder = settings, status, encoder
        self._map: CatalogMap | None = None

    async def packed(self) -> tuple[bytes, bytes, str]:
        """See `headwater.worker.web.live.Map`."""
        with _refusing():
            return await self._catalog_map().packed()

    async def items(self, item_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """See `headwater.worker.web.live.Map`."""
        with _refusing():
            return await self._catalog_map().items(item_ids)

    async def search(self, text: str, limit: int) -> list[dict[str, Any]]:
        """See `headwater.worker.web.live.Map`."""
        with _refusing():
            return await self._catalog_map().search(text, limit)

    async def named(self, start: str, limit: int) -> list[dict[str, Any]]:
        """See `headwater.worker.web.live.Users`. Last active: by the last event that counts for their interests."""
        begins = start.encode(errors="replace")
        found: list[tuple[int, bytes, int]] = []
        for partition in list(self._role().profiles.partitions.values()):
            columns = partition.columns
            if begins:
                users = list(columns.users)
                rows = np.array(await asyncio.to_thread(_beginning, users, begins), dtype=np.int64)
            else:
                rows = np.flatnonzero(columns.n)
            probe = columns.rows.get(probe_user(partition.number, self._settings.partitions), -1)
            rows = rows[(columns.n[rows] > 0) & (rows != probe)]
            at_ms = columns.state_at_ms[rows]
            newest = np.argsort(-at_ms, kind="stable")[:limit]
            found += [
                (int(at_ms[place]), columns.users[rows[place]], int(columns.n[rows[place]]))
                for place in newest
            ]
        found.sort(key=lambda each: -each[0])
        return [
            {"user_id": user.decode(errors="replace"), "events": events, "last_at_ms": at_ms}
            for at_ms, user, events in found[:limit]
        ]

    async def described(self, user_id: str) -> dict[str, Any]:
        """See `headwater.worker.web.live.Users`."""
        self._role()
        with _refusing():
            described = await self._status.describe_user(user_id)
            known = [event["item_id"] for event in described["events"] if event["item_id"] is not None]
            items = await self._catalog_map().items([*dict.fromkeys(known)])
            for event in described["events"]:
                item = items.get(event["item_id"], {})
                event["x"], event["y"] = item.get("x"), item.get("y")
        return described

    async def interests(
        self, user_id: str, until_ms: int | None, session: Sequence[SessionEvent]
    ) -> list[dict[str, Any]]:
        """See `headwater.worker.web.live.Users`."""
        role, now_ms = self._role(), time.time_ns() // 1_000_000 if until_ms is None else until_ms
        with _refusing():
            user = user_id.encode()
            partition = self._status.partition_of_user(user)
            found = await role.interests(partition, user, now_ms, until_ms, session)
            if not len(found.interests):
                return []
            places = await self._catalog_map().places(found.interests)
        return [
            {"x": x, "y": y, "weight": round(weight, 4)}
            for (x, y), weight in zip(
                (place or (None, None) for place in places), found.weights.tolist(), strict=True
            )
        ]

    def _role(self) -> InterestsRole:
        role = self._status.interests
        if role is None:
            raise LiveError(503, "starting", _STARTING)
        return role

    def _catalog_map(self) -> CatalogMap:
        if self._map is None:
            role = self._role()
            self._map = CatalogMap(role.index, role.vectors, self._encoder)
        return self._map


def _beginning(users: Sequence[bytes], begins: bytes) -> list[int]:
    """Places of the users whose id begins so."""
    return [place for place, user in enumerate(users) if user.startswith(begins)]


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except NoSuchUser as error:
        raise LiveError(404, error.code, str(error)) from error
    except (IndexUnavailable, TimeoutError) as error:
        raise LiveError(503, "index_away", f"the index does not answer ({error})") from error


class _Examined:
    """The doctor's findings, kept for a few seconds: an examination takes some itself."""

    def __init__(self, examine: Callable[[], Awaitable[Sequence[Finding]]]) -> None:
        self._examine = examine
        self._lock = asyncio.Lock()
        self._said: dict[str, Any] = {}
        self._said_s = -_EXAMINED_S

    async def __call__(self) -> dict[str, Any]:
        async with self._lock:
            if time.monotonic() - self._said_s > _EXAMINED_S:
                findings = [
                    {"what": what, "ok": ok, "seen": seen} for what, ok, seen in await self._examine()
                ]
                self._said = {"findings": findings, "at_ms": time.time_ns() // 1_000_000}
                self._said_s = time.monotonic()
            return self._said
