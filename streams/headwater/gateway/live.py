"""The live page at the gateway, which has Kafka and nothing else: clicks, answers and dead letters, but no worker's own state."""

from typing import Final, get_args

from aiohttp import web

from headwater import __version__
from headwater.messages import ACTIONS, SourceName
from headwater.settings import Settings
from headwater.web_server import is_local
from headwater.worker.live_actions import Asking, LetterDesk
from headwater.worker.web import guard
from headwater.worker.web.guard import Guard
from headwater.worker.web.live import Parts, add_live

_OF_A_WORKER: Final = "a gateway has only Kafka; see the live page of a worker, at its HEADWATER_WEB_PORT"


def add_live_page(app: web.Application, settings: Settings) -> None:
    """Serve the page and what the gateway has for it, to those who bring HEADWATER_ADMIN_TOKEN: keys let nobody in here.

    A key is for a shop's front end. Behind the page are dead letters, with what is in them, and any user's answer.
    """
    asking = Asking(settings)
    token = settings.admin_token.get_secret_value() if settings.admin_token is not None else None
    parts = Parts(
        about=lambda: {
            "role": "gateway",
            "version": __version__,
            "bundle": "",
            "partitions": settings.partitions,
            "actions": list(ACTIONS),
            "sources": dict.fromkeys(get_args(SourceName)),
            "api": "/docs/api",
        },
        asks=asking,
        letters=LetterDesk(settings),
        missing={
            **dict.fromkeys(("viewers", "state", "map", "users"), _OF_A_WORKER),
            "doctor": "a gateway cannot examine; use `headwater doctor`",
        },
    )
    add_live(app, Guard(token, settings.live_open and is_local(settings.gateway_host)), parts)
    app.middlewares.insert(0, guard.hardened)

    async def close(_: web.Application) -> None:
        await asking.close()

    app.on_cleanup.append(close)
