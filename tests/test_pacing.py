"""
What is known of servers by name. `tests/test_servers.py` and its kind run it against those that are installed.

Daphne's request is a stand-in here: a real one pauses its producer only when the kernel's buffers are full.
"""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from events import servers
from events.servers import PacedSend

from .connections import Connection, IteratedConnection, ServerConnection, UncutConnection
from .waiting import GUARD

BODY = {"type": "http.response.body", "body": b"x", "more_body": True}
LAST = {"type": "http.response.body", "body": b"", "more_body": False}


class Request:
    """As daphne's `WebRequest`, which is Twisted's: one producer at a time."""

    def __init__(self) -> None:
        self.producer: Any = None
        self.is_streaming: bool | None = None
        self.aborted = 0
        self.channel: Any = SimpleNamespace(transport=SimpleNamespace(abortConnection=self.abort))
        self.sent: list[Any] = []

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802 - Twisted's name
        assert self.producer is None
        self.producer, self.is_streaming = producer, streaming

    def unregisterProducer(self) -> None:  # noqa: N802 - Twisted's name
        assert self.channel is not None, "Twisted asks the channel, and a lost connection has none"
        self.producer = None

    def abort(self) -> None:
        self.aborted += 1


class OldRequest:
    """Of a daphne that is not as expected."""


for _kind in (Request, OldRequest):
    _kind.__module__ = "daphne.http_protocol"


async def handle_reply(request: Any, message: Any) -> None:
    request.sent.append(message)


@pytest.fixture
def request_() -> Request:
    return Request()


@pytest.fixture
def send(request_: Request) -> PacedSend:
    found = servers.paced(partial(handle_reply, request_))
    assert isinstance(found, PacedSend)
    return found


class TestPaced:
    @pytest.mark.parametrize(
        "other",
        [
            handle_reply,
            partial(handle_reply),
            partial(handle_reply, SimpleNamespace(registerProducer=None)),
            partial(handle_reply, OldRequest()),
            Connection.__new__(Connection).send,
        ],
    )
    def test_every_other_send_is_left_as_it_is(self, other: Any) -> None:
        """It waits by itself, or is nothing that we know."""
        assert servers.paced(other) is other

    async def test_it_sends_and_waits_for_nothing_while_there_is_room(self, request_: Request, send: PacedSend) -> None:
        """What is sent is what daphne gets."""
        for message in ({"type": "http.response.start"}, BODY, BODY, LAST):
            await asyncio.wait_for(send(message), GUARD)
        assert request_.sent == [{"type": "http.response.start"}, BODY, BODY, LAST]

    async def test_it_becomes_the_producer_of_a_stream(self, request_: Request, send: PacedSend) -> None:
        """From the first part of a body until its last; a push producer, once."""
        await send({"type": "http.response.start"})
        assert request_.producer is None
        await send(BODY)
        found: Any = (request_.producer, request_.is_streaming)
        assert found == (send, True)
        await send(BODY)
        await send(LAST)
        assert request_.producer is None

    async def test_an_answer_in_one_piece_needs_none(self, request_: Request, send: PacedSend) -> None:
        """Nearly all answers of a site."""
        request_.producer = "untouched"
        await send(LAST)
        await send({"type": "http.response.body"})
        assert request_.producer == "untouched"

    async def test_another_producer_is_left_alone(self, request_: Request, send: PacedSend) -> None:
        """It was there first."""
        request_.producer = other = object()
        await send(BODY)
        await send(LAST)
        assert request_.producer is other

    async def test_a_connection_that_is_lost_before_the_last_part(self, request_: Request, send: PacedSend) -> None:
        """Its request keeps its producer and has no channel any more, of which it could take leave."""
        await send({"type": "http.response.start"})
        await send(BODY)
        request_.channel = None
        await send(LAST)
        assert request_.sent[-1] == LAST

    async def test_a_request_that_has_let_go_by_itself(self, request_: Request, send: PacedSend) -> None:
        """As at its end."""
        await send(BODY)
        request_.producer = None
        await send(LAST)
        assert request_.producer is None

    @pytest.mark.parametrize("go_on", ["resumeProducing", "stopProducing"])
    async def test_it_waits_while_the_client_takes_nothing(
        self, request_: Request, send: PacedSend, go_on: str
    ) -> None:
        """Until the client has taken it, or has gone."""
        await send(BODY)
        send.pauseProducing()
        send.pauseProducing()
        task = asyncio.ensure_future(send(BODY))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # It was sent: it is what comes next that waits.
        assert len(request_.sent) == 2
        assert not task.done()
        getattr(send, go_on)()
        getattr(send, go_on)()
        await asyncio.wait_for(task, GUARD)

    async def test_it_waits_again_where_the_client_stalls_again(self, send: PacedSend) -> None:
        """Between being woken and going on."""
        await send(BODY)
        send.pauseProducing()
        task = asyncio.ensure_future(send(BODY))
        await asyncio.sleep(0)
        send.resumeProducing()
        send.pauseProducing()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        send.resumeProducing()
        await asyncio.wait_for(task, GUARD)

    async def test_one_that_is_cancelled_leaves_the_others_waiting(self, send: PacedSend) -> None:
        """A stream's task is cancelled; what the transport says of room is for whoever waits then."""
        await send(BODY)
        send.pauseProducing()
        one, two = asyncio.ensure_future(send(BODY)), asyncio.ensure_future(send(BODY))
        await asyncio.sleep(0)
        one.cancel()
        await asyncio.wait([one])
        assert one.cancelled()
        assert not two.done()
        send.resumeProducing()
        await asyncio.wait_for(two, GUARD)

    async def test_the_last_bytes_do_not_wait(self, send: PacedSend) -> None:
        """A response can be ended whatever the client does."""
        await send(BODY)
        send.pauseProducing()
        await asyncio.wait_for(send(LAST), GUARD)


class TestStepping:
    def test_servers_own_may_be_stepped(self, send: PacedSend) -> None:
        """Bound methods of their classes, and our own for daphne."""
        assert servers.may_be_stepped(send)
        for kind in (ServerConnection, UncutConnection, IteratedConnection):
            assert servers.may_be_stepped(kind.__new__(kind).send)

    def test_functions_of_their_modules_too(self) -> None:
        """A server may use a closure."""

        async def closure(message: Any) -> None: ...

        assert not servers.may_be_stepped(closure)
        closure.__module__ = "hypercorn.app_wrappers"
        assert servers.may_be_stepped(closure)

    @pytest.mark.parametrize(
        "other", [handle_reply, partial(handle_reply, None), Connection.__new__(Connection).send, len, object()]
    )
    def test_what_stands_around_them_may_not(self, other: Any) -> None:
        """Nor what only looks like one."""
        assert not servers.may_be_stepped(other)

    def test_a_package_whose_name_begins_alike_may_not(self) -> None:
        """It is another one."""
        kind: Any = type("Other", (Connection,), {"__module__": "uvicorn_extras.cycle"})
        assert not servers.may_be_stepped(kind().send)


class TestAborting:
    async def test_uvicorns_is_cut(self) -> None:
        """By the transport of the request's cycle."""
        connection = ServerConnection()
        assert servers.abort(connection.send) is True
        assert connection.is_aborted

    def test_daphnes_is_cut(self, request_: Request, send: PacedSend) -> None:
        """By Twisted's transport."""
        assert servers.abort(send) is True
        assert request_.aborted == 1

    @pytest.mark.parametrize("channel", [None, SimpleNamespace(), SimpleNamespace(transport=None)])
    def test_a_daphne_that_is_not_as_expected(self, request_: Request, send: PacedSend, channel: Any) -> None:
        """The request has ended, or is of another version."""
        request_.channel = channel
        assert servers.abort(send) is False
        assert request_.aborted == 0

    @pytest.mark.parametrize("other", [handle_reply, partial(handle_reply, None)])
    def test_others_cannot_be_cut(self, other: Any) -> None:
        """And nothing is done."""
        assert servers.abort(other) is False

    async def test_a_server_without_such_a_transport_cannot(self) -> None:
        """As hypercorn and granian."""
        assert servers.abort(UncutConnection().send) is False
