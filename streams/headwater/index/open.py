"""Which engine holds the index, by the settings: the one place that knows. A new engine is a file and a line here.

Engines are imported when they are opened, so that a worker loads the one that it uses.
"""

from collections.abc import Awaitable, Callable
from http.client import HTTPConnection, HTTPException
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from headwater.errors import HeadwaterError
from headwater.index import FilledBy, Index, IndexUnavailable, NoRoom
from headwater.settings import Settings

_LOOK_S: Final = 10.0
# Settings of a system of its own that must not touch a shared index.
IN_PROCESS: Final[dict[str, object]] = {"qdrant_url": None}


class IndexNotOpened(HeadwaterError):
    """The index cannot be opened: one sentence that names the setting."""


class Look(NamedTuple):
    """Whether an engine answers, and what was seen (with the remedy where it does not)."""

    ok: bool
    seen: str


class Engine(NamedTuple):
    """One way to keep the index. ``open`` takes settings, bundle id, dimension and radius (see `index.lifted`)."""

    name: str
    filled_by: FilledBy
    open: Callable[[Settings, str, int, float], Awaitable[Index]]
    look: Callable[[Settings], Look] | None  # None: it is in each worker, so there is nothing to look at


def engine_of(settings: Settings) -> Engine:
    """The engine that the settings ask for."""
    return _EDGE if settings.qdrant_url is None else _SERVER


async def open_index(settings: Settings, bundle_id: str, dim: int, radius: float) -> Index:
    """The index of one bundle's vectors, (dim,) each. Close it.

    Raises:
        IndexNotOpened: the folder cannot be written, the server does not answer, or what is there does not fit.
    """
    return await engine_of(settings).open(settings, bundle_id, dim, radius)


def look_at(settings: Settings) -> Look | None:
    """Whether the engine answers, without opening it; None where it is in each worker. Blocks for up to 10 s."""
    look = engine_of(settings).look
    return look(settings) if look is not None else None


async def _open_edge(settings: Settings, bundle_id: str, dim: int, radius: float) -> Index:
    from headwater.index.edge import EdgeIndex
    from headwater.index.edge_graph import GraphPolicy

    graph = GraphPolicy(min_items=settings.graph_min_items)
    try:
        return await EdgeIndex.open(settings.data_dir / "index", dim, radius=radius, graph=graph)
    except (NoRoom, OSError) as error:
        raise IndexNotOpened(f"HEADWATER_DATA_DIR is {settings.data_dir}: {error}") from error


async def _open_server(settings: Settings, bundle_id: str, dim: int, radius: float) -> Index:
    from headwater.index.server import ServerAddress, ServerIndex
    from headwater.index.server_collection import Collection

    assert settings.qdrant_url is not None
    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    try:
        return await ServerIndex.connect(
            ServerAddress(settings.qdrant_url, key, settings.qdrant_grpc_port),
            Collection(f"items-{bundle_id}", dim, radius),
        )
    except (IndexUnavailable, ValueError) as error:
        raise IndexNotOpened(f"HEADWATER_QDRANT_URL is {settings.qdrant_url}: {error}") from error


def _look_at_server(settings: Settings) -> Look:
    url = settings.qdrant_url or ""
    parts = urlsplit(url)
    remedy = "is the server running, and is HEADWATER_QDRANT_URL its HTTP address?"
    connection = HTTPConnection(parts.hostname or "", parts.port or 6333, timeout=_LOOK_S)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return Look(False, f"no answer from {url} ({error}); {remedy}")
    finally:
        connection.close()
    return Look(status == 200, f"{url} answered {status}" + ("" if status == 200 else f"; {remedy}"))


_EDGE: Final = Engine("edge", "each worker", _open_edge, None)
_SERVER: Final = Engine("server", "the catalog worker", _open_server, _look_at_server)
