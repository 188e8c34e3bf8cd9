"""The gateway as a process: connect, listen, and serve until a signal."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web

from headwater.client import Client
from headwater.docs.site import add_docs
from headwater.gateway.admission import Admission
from headwater.gateway.live import add_live_page
from headwater.gateway.routes import Gateway
from headwater.settings import Settings, SettingsError
from headwater.web_server import WebServer, is_local

# What a call may wait for, an answer of a worker included, is bounded by the client.
_MOST_AT_ONCE: Final = 1_000


async def serve(settings: Settings, listening: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``listening`` is told the address, host:port.

    Raises:
        SettingsError: without keys the address may be of this machine only.
        NoBroker: no broker lets us in.
        WebError: the address cannot be listened on.
        ClientError: the connection is of no use any more, as where the topics were made again.
    """
    keys = [key.get_secret_value() for key in settings.gateway_keys]
    if not keys and not is_local(settings.gateway_host):
        raise SettingsError(
            f"HEADWATER_GATEWAY_HOST is {settings.gateway_host}: expected HEADWATER_GATEWAY_KEYS with it, or an address "
            "that only this machine reaches, such as 127.0.0.1"
        )
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with Client(settings) as client:
        admission = Admission(settings.gateway_rate, _MOST_AT_ONCE)
        server = WebServer("GATEWAY", application(client, admission, keys, settings))
        await server.start(settings.gateway_host, settings.gateway_port)
        try:
            listening(server.address or "")
            told, broken = asyncio.create_task(stopping.wait()), asyncio.create_task(client.broken())
            await asyncio.wait((told, broken), return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                raise broken.result()
        finally:
            await server.stop()


def application(
    client: Client, admission: Admission, keys: Sequence[str], settings: Settings
) -> web.Application:
    """The gateway's routes, the documentation, which anybody may read, and the live page."""
    app = Gateway(client, admission, keys).application()
    add_docs(app, settings, has_api=True)
    add_live_page(app, settings)
    return app
