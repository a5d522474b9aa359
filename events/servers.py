"""
What ASGI servers do beyond ASGI, or do not do at all: the one place that knows them by name.

Each function looks before it touches anything, and does without where a server is not as expected: a stream then works
as ASGI says, and no more. The tests run every one against the servers that are installed.
"""

from __future__ import annotations

import asyncio
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Message = Mapping[str, Any]
    Send = Callable[[Message], Awaitable[None]]

#: Packages whose `send` asks nothing of the task it is called in: it may be stepped from anywhere.
_SERVERS = frozenset({"uvicorn", "hypercorn", "daphne", "granian"})


def may_be_stepped(send: Send) -> bool:
    """
    Whether a `send` is a server's own, and not something around it.

    A stepped coroutine has no task of its own. Where it waits under a time limit (`asyncio.timeout`, a cancel scope of
    anyio), that would cancel whoever stepped it. Servers do not do that; what a site puts around them may.
    """
    if isinstance(send, PacedSend):
        return True
    owner = getattr(send, "__self__", None)
    module = type(owner).__module__ if owner is not None else getattr(send, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in _SERVERS


def paced(send: Send) -> Send:
    """
    A `send` that waits while the client does not take what it was sent.

    Daphne's never does: one stalled reader took a process from 76 MB to 2 GB in 5 s. But Twisted tells a request's
    producer when to pause. Every other `send` is returned as it is.
    """
    if not isinstance(send, partial) or not send.args:
        return send
    request = send.args[0]
    if type(request).__module__.partition(".")[0] != "daphne" or not hasattr(request, "registerProducer"):
        return send
    return PacedSend(send, request)


def abort(send: Send) -> bool:
    """
    Close the connection of a client that takes nothing. Returns whether that could be done.

    To end the response is not enough: a server then waits until all is written that its buffer holds, here for ever.
    ASGI has no message for it.
    """
    protocol = _at(send, "__self__.send.__self__")
    ways = [
        # uvicorn: the request's cycle.
        _at(send, "__self__.transport.abort"),
        # daphne: the request's channel.
        _at(send, "request.channel.transport.abortConnection"),
        # hypercorn: the connection of the request's protocol. Over HTTP/2 that carries other requests, too.
        _at(protocol, "send.__self__.writer.transport.abort") if type(protocol).__name__ == "H11Protocol" else None,
    ]
    for cut in ways:
        if callable(cut):
            cut()
            return True
    return False


def _at(thing: object, path: str) -> Any:
    """What is at `path` from there; None where there is no such thing."""
    try:
        return attrgetter(path)(thing)
    except AttributeError:
        return None


class PacedSend:
    """Daphne's `send`, which waits while Twisted's transport asks its producer to pause."""

    def __init__(self, send: Send, request: Any) -> None:
        self.request = request
        self._send = send
        self._is_producer = False
        self._resumed: asyncio.Future[None] | None = None

    async def __call__(self, message: Message) -> None:
        """Send, and wait where there is too much on its way."""
        if message["type"] == "http.response.body":
            if not message.get("more_body", False):
                self._unregister()
            elif not self._is_producer and not self.request.producer and self._is_connected:
                self._is_producer = True
                self.request.registerProducer(self, True)
        await self._send(message)
        while (resumed := self._resumed) is not None:
            await asyncio.shield(resumed)

    def _unregister(self) -> None:
        self.resumeProducing()
        # A request that has ended has let go of its producer by itself; where the connection is lost, nobody can.
        if self._is_producer and self.request.producer is self and self._is_connected:
            self.request.unregisterProducer()

    @property
    def _is_connected(self) -> bool:
        return getattr(self.request, "channel", None) is not None

    # Twisted's IPushProducer

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        """The transport's buffer is full."""
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        """The client has taken it."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        """The connection is lost: there is nothing to wait for."""
        self.resumeProducing()
