"""The files of the live page, as they lie in `page/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from headwater.web_server import refused

FOLDER: Final = Path(__file__).parent / "page"
# What a browser has to be told, whatever the machine's own table says. Nothing else is served.
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}


def add_page(app: web.Application, folder: Path = FOLDER) -> None:
    """Serve ``folder`` as it is now: its `index.html` at `/`, all of it under `/page/`."""
    files = _files(folder.resolve())

    async def index(_: web.Request) -> web.StreamResponse:
        return _served(files, "index.html")

    async def file(request: web.Request) -> web.StreamResponse:
        return _served(files, request.match_info["name"])

    app.router.add_get("/", index)
    app.router.add_get("/page/{name:.+}", file)


def _files(root: Path) -> dict[str, Path]:
    """The files of known types by their names; no path is ever made of what a caller sends."""
    found = (path for path in root.rglob("*") if path.suffix in TYPES and path.is_file())
    return {path.relative_to(root).as_posix(): path for path in found if path.resolve().is_relative_to(root)}


def _served(files: Mapping[str, Path], name: str) -> web.StreamResponse:
    """One file, or a 404. It is asked for again each time, and sent again only where it has changed: by its ETag."""
    if (path := files.get(name)) is None:
        return refused(404, "no_such_file", f"{name[:80]}: expected a file of the page")
    return web.FileResponse(path, headers={"Content-Type": TYPES[path.suffix], "Cache-Control": "no-cache"})
