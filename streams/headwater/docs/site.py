"""The documentation over HTTP: pages to try, and the READMEs as plain text. The same on a worker and on the gateway.

| route | is |
|---|---|
| /llms.txt | what there is to read, for programs that read |
| /docs/NAME | a README, or a file that one links to, under its path in the repository |
| /docs/topics | the topics, from /asyncapi.json |
| /docs/api | the routes of the gateway, from /openapi.json; only there |

The pages send requests to the server that they come from and to no other. They keep nothing.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from aiohttp import web

from headwater.docs import asyncapi, readmes
from headwater.settings import Settings
from headwater.web_server import as_json

_VIEWER: Final = Path(__file__).parent / "viewer"
_TEXT: Final = "text/plain; charset=utf-8"
# Of the viewer. All that pages link to is shown as text, but for plots.
_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
# Nothing inline, nothing evaluated, nothing from elsewhere, in no frame of others.
_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# A plot has its styles in itself, and no script.
_PLOT: Final[Mapping[str, str]] = {
    **_HEADERS,
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "Content-Type": "image/svg+xml",
}
_MODULES: Final = ("viewer.css", "viewer.js", "api.js", "topics.js", "schema.js")


def add_docs(app: web.Application, settings: Settings, *, has_api: bool = False) -> None:
    """Serve the documentation. With ``has_api`` the app has the gateway's routes, and the page to try them is there.

    Args:
        settings: the topics are described as these name them, without the addresses of brokers.
    """
    topics, files = asyncapi.document(settings, tells_address=False, has_gateway=has_api), readmes.files()
    llms = _llms(files, has_api=has_api)

    async def show_topics(_: web.Request) -> web.StreamResponse:
        return as_json(topics, 200)

    async def show_llms(_: web.Request) -> web.StreamResponse:
        return web.Response(body=llms.encode(), headers={"Content-Type": _TEXT, **_HEADERS})

    async def index(_: web.Request) -> web.StreamResponse:
        return _redirect("README.md")

    async def page(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if (path := files.get(name)) is not None:
            headers = _PLOT if path.suffix == ".svg" else {"Content-Type": _TEXT, **_HEADERS}
            return web.FileResponse(path, headers=headers)
        if f"{name.rstrip('/')}/README.md" in files:
            return _redirect(f"{name.rstrip('/')}/README.md")
        return web.Response(
            status=404, text=f"{name[:80]}: no such page, expected one of /llms.txt\n", headers=_HEADERS
        )

    app.router.add_get("/asyncapi.json", show_topics)
    app.router.add_get("/llms.txt", show_llms)
    for path in ("/docs", "/docs/"):
        app.router.add_get(path, index)
    for name in ("topics", "api") if has_api else ("topics",):
        app.router.add_get(f"/docs/{name}", _serving(_VIEWER / "viewer.html"))
    for name in _MODULES:
        app.router.add_get(f"/docs/{name}", _serving(_VIEWER / name))
    app.router.add_get("/docs/{name:.+}", page)


def _redirect(name: str) -> web.Response:
    return web.Response(status=302, headers={"Location": f"/docs/{name}", **_HEADERS})


def _serving(path: Path) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(path, headers={"Content-Type": _TYPES[path.suffix], **_HEADERS})

    return handler


def _llms(files: Mapping[str, Path], *, has_api: bool) -> str:
    """What there is to read, as https://llmstxt.org has it: a title, a summary, and links with a sentence each."""
    lines = ["# Headwater", ""]
    told = {
        name: readmes.summary_of(files[name].read_text(encoding="utf-8"))
        for name in readmes.PAGES
        if name in files
    }
    lines += [f"> {told['README.md'][1]}", ""] if "README.md" in told else []
    lines += ["## Pages", ""]
    lines += [f"- [{title}](/docs/{name}): {sentence}" for name, (title, sentence) in told.items()]
    lines += ["", "## Interfaces", ""]
    lines.append("- [Topics](/asyncapi.json): AsyncAPI 3 of the Kafka topics and their messages.")
    lines.append(
        "- [Live page](/): what a worker does, a shopper, an answer and its reasons, dead letters; for people."
    )
    if has_api:
        lines.append("- [HTTP](/openapi.json): OpenAPI 3.1 of the gateway.")
    return "\n".join([*lines, ""])
