"""Who publishes over HTTP in tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.test import Client

from events import keys
from events.models import PublishKey

from .connections import ServerConnection

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A key for all channels, made in a site's other process (`Site.run`).
MAKE_KEY = """
from events import keys
from events.models import PublishKey
key = PublishKey(name="till", channels="*", per_minute=None)
result = keys.issue(key)
key.save()
"""


def make_key(channels: str = "*", **fields: Any) -> str:
    """The token of a new key."""
    key = PublishKey(name="till", channels=channels, **fields)
    token = keys.issue(key)
    key.save()
    return token


def publish(token: str | None, body: Any = "hello", channel: str = "news", **headers: str) -> Any:
    """The answer to a body: text as it is, bytes of no type, anything else as JSON; `channel` as it is in a URL."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    kind = "text/plain" if isinstance(body, str) else "" if isinstance(body, bytes) else "application/json"
    kind = sent.pop("Content-Type", kind)
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return Client().generic("POST", f"/events/publish/{channel}/", data, content_type=kind, headers=sent)


class Sender(ServerConnection):
    """A client that sends a body in pieces, `ending` with its end or because it goes."""

    def __init__(self, pieces: Iterable[bytes], ending: str = "http.request") -> None:
        super().__init__()
        self.pieces = iter(pieces)
        self.ending = ending
        #: How many bytes were taken.
        self.taken = 0
        self.has_sent_all = False

    async def receive(self) -> dict[str, Any]:
        if (piece := next(self.pieces, None)) is not None:
            self.taken += len(piece)
            return {"type": "http.request", "body": piece, "more_body": True}
        if not self.has_sent_all:
            self.has_sent_all = True
            return {"type": self.ending, "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}
