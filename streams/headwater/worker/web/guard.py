"""Who may see what of the live page, and what its answers allow a browser to do."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from headwater.web_server import came_locally, is_bearer, is_of_other_site, refused

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Nothing inline, nothing evaluated, nothing from elsewhere, in no frame of others.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """Lets callers in.

    Args:
        token: what lets a caller in from anywhere; None: nothing does.
        is_open: callers without a token are let in by a local name. Only for a server that listens on this machine alone.
    """

    def __init__(self, token: str | None, is_open: bool) -> None:
        self._token, self.is_open = token, is_open

    def lets_in(self, request: web.Request) -> bool:
        """Whether the caller may see users and items, and publish."""
        if self._token is not None and is_bearer(request, self._token):
            return True
        return self.is_open and came_locally(request)

    def refusal(self) -> web.Response:
        """The answer to a caller that is not let in."""
        expected = (
            "expected the header Authorization: Bearer HEADWATER_ADMIN_TOKEN"
            if self._token is not None
            else "expected HEADWATER_ADMIN_TOKEN to be set for the worker, or HEADWATER_LIVE_OPEN on an address of this machine"
        )
        if self.is_open:
            expected += ", or localhost as the host"
        return refused(401, "unauthorized", expected, {"WWW-Authenticate": "Bearer"})


def complaint_about(request: web.Request) -> web.Response | None:
    """The refusal of what a page of another site has sent; None: it may be handled."""
    if not is_of_other_site(request):
        return None
    origin = request.headers.get("Origin", "none")
    return refused(403, "other_origin", f"Origin: got {origin[:80]!r}, expected this server's own page")


@web.middleware
async def hardened(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer carries the policy, unless it has one of its own; a stream sends its headers itself."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    if not response.prepared:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
    return response
