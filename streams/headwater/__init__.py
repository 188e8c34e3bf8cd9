"""Headwater: streaming real-time recall. A click is part of the next answer, and the answer proves it.

A program imports from here: ``from headwater import Client``. Everything else is the serving system.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from headwater.client import (
        Client,
        ClientError,
        NoBroker,
        NotPublished,
        RecallTimeout,
        RequestExpired,
        RequestRejected,
    )
    from headwater.messages import BadMessage, Item, Offer, Position, Request, Response, SessionEvent
    from headwater.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "BadMessage",
    "Client",
    "ClientError",
    "Item",
    "NoBroker",
    "NotPublished",
    "Offer",
    "Position",
    "RecallTimeout",
    "Request",
    "RequestExpired",
    "RequestRejected",
    "Response",
    "SessionEvent",
    "Settings",
]

# Imported when asked for: importing one part of the system must not load the Kafka client.
_MODULES: Final = {
    **dict.fromkeys(
        ("BadMessage", "Item", "Offer", "Position", "Request", "Response", "SessionEvent"),
        "headwater.messages",
    ),
    "Settings": "headwater.settings",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "headwater.client")), name)
