"""
Live updates for Django by Server-Sent Events.

    from events import publish

    publish("news", {"title": "It works"})

The names below are the public ones. They are imported when first used: Django imports this package to find the app
before models can be imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends.base import PublishedEvent
    from .control import adisconnect, arecheck, disconnect, recheck
    from .exceptions import (
        BackendUnavailable,
        ChannelNotFound,
        EventsError,
        EventTooLarge,
        InvalidChannelName,
        InvalidEvent,
        InvalidEventBackend,
        InvalidTicket,
        TicketExpired,
    )
    from .publishing import apublish, apublish_many, publish, publish_many
    from .responses import EventStreamResponse
    from .sources import source
    from .tickets import amake_ticket, make_ticket
    from .wire import ServerSentEvent

__version__ = "0.1.0"

_MODULES = {
    "BackendUnavailable": "exceptions",
    "ChannelNotFound": "exceptions",
    "EventStreamResponse": "responses",
    "EventTooLarge": "exceptions",
    "EventsError": "exceptions",
    "InvalidChannelName": "exceptions",
    "InvalidEvent": "exceptions",
    "InvalidEventBackend": "exceptions",
    "InvalidTicket": "exceptions",
    "PublishedEvent": "backends.base",
    "ServerSentEvent": "wire",
    "TicketExpired": "exceptions",
    "adisconnect": "control",
    "amake_ticket": "tickets",
    "apublish": "publishing",
    "apublish_many": "publishing",
    "arecheck": "control",
    "disconnect": "control",
    "make_ticket": "tickets",
    "publish": "publishing",
    "publish_many": "publishing",
    "recheck": "control",
    "source": "sources",
}

__all__ = [
    "BackendUnavailable",
    "ChannelNotFound",
    "EventStreamResponse",
    "EventTooLarge",
    "EventsError",
    "InvalidChannelName",
    "InvalidEvent",
    "InvalidEventBackend",
    "InvalidTicket",
    "PublishedEvent",
    "ServerSentEvent",
    "TicketExpired",
    "adisconnect",
    "amake_ticket",
    "apublish",
    "apublish_many",
    "arecheck",
    "disconnect",
    "make_ticket",
    "publish",
    "publish_many",
    "recheck",
    "source",
]


def __getattr__(name: str) -> Any:
    if (module := _MODULES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
