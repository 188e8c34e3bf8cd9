"""The files of the live page, as they lie in `page/`."""

from pathlib import Path
from typing import Final

from aiohttp import web

from headwater.worker.web import guard

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
    """Serve ``folder``: its `index.html` at `/`, all of it under `/page/`."""
    root = folder.resolve()

    async def index(_: web.Request) -> web.StreamResponse:
        return served(root, "index.html")

    async def file(request: web.Request) -> web.StreamResponse:
        return served(root, request.match_info["name"])

    app.router.add_get("/", index)
    app.router.add_get("/page/{name:.+}", file)


def served(root: Path, name: str) -> web.StreamResponse:
    """One file of a folder, or a 404 for what is not in it or of no known type.

    It is asked for again each time, and sent again only where it has changed: `FileResponse` has its ETag.
    """
    path = (root / name).resolve() if "\0" not in name else root
    kind = TYPES.get(path.suffix)
    if kind is None or not path.is_relative_to(root) or not path.is_file():
        return guard.error(404, "no_such_file", f"{name[:80]}: expected a file of the page")
    return web.FileResponse(path, headers={"Content-Type": kind, "Cache-Control": "no-cache"})
