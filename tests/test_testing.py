from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.test import AsyncClient

from events import InvalidEvent, apublish, publish, publish_many, publishing
from events.testing import CapturedEvent, EventParser, ReceivedEvent, StreamClient, capture_events

#: Seconds that nothing here may take.
GUARD = 10


# capture_events


@pytest.mark.django_db(transaction=True)
class TestCapture:
    def test_what_is_published_is_captured_as_it_was_published(self, make_channel):
        """Channel, type, data and key; text as text, anything else as what it was."""
        make_channel("news")
        publish("news", "before")
        with capture_events() as published:
            publish("news", "text")
            publish_many([("news", {"n": [1, None]}, "update", "key"), ("news", 5)])
        publish("news", "after")
        assert published == [
            CapturedEvent(channel="news", event="message", data="text", key=None),
            CapturedEvent(channel="news", event="update", data={"n": [1, None]}, key="key"),
            CapturedEvent(channel="news", event="message", data=5, key=None),
        ]

    def test_every_thread_is_captured(self, make_channel):
        """Background work publishes too."""
        make_channel("news")

        def work():
            try:
                publish("news", "from a thread")
            finally:
                connection.close()

        with capture_events() as published:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(GUARD)
        assert [event.data for event in published] == ["from a thread"]

    def test_what_is_rolled_back_was_published_all_the_same(self, make_channel):
        """As Django counts mails."""
        make_channel("news")
        with capture_events() as published:
            with transaction.atomic():
                publish("news", "x")
                transaction.set_rollback(True)
        assert len(published) == 1

    def test_what_was_refused_was_not_published(self, make_channel):
        """Nor is it captured; and nobody looks on any more after an error in the block."""
        make_channel("news")
        captured: list[CapturedEvent] = []
        with pytest.raises(InvalidEvent):
            with capture_events() as captured:
                publish("news", "x", event="a\nb")
        assert captured == []
        assert publishing.observers == []

    def test_blocks_can_be_nested(self, make_channel):
        """Each sees what is published while it is open."""
        make_channel("news")
        with capture_events() as outer:
            with capture_events() as inner:
                publish("news", 1)
            publish("news", 2)
        assert [event.data for event in outer] == [1, 2]
        assert [event.data for event in inner] == [1]


# EventParser

BOM = b"\xef\xbb\xbf"
CASES = [
    # The examples of the standard.
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")]),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
        [("message", "first event", "1"), ("message", "second event", "")],
    ),
    (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
    (b"data:test\n\ndata: test\n\n", [("message", "test", ""), ("message", "test", "")]),
    # Line ends.
    (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", [("message", "a", ""), ("message", "b", ""), ("message", "c", "")]),
    (b"data: a\r\ndata: b\r\r\n", [("message", "a\nb", "")]),
    (b"data: a\r\n\rdata: b\n\n", [("message", "a", ""), ("message", "b", "")]),
    ("data: a\x0b\x0c\x1c\x85\u2028\u2029b\n\n".encode(), [("message", "a\x0b\x0c\x1c\x85\u2028\u2029b", "")]),
    # Fields.
    (b"event: e\nid: i\ndata: d\n\n", [("e", "d", "i")]),
    (b"event: e\n\ndata: d\n\n", [("message", "d", "")]),
    (b"event: a\nevent: b\ndata: d\n\n", [("b", "d", "")]),
    (b"event:\ndata: d\n\n", [("message", "d", "")]),
    (b"Data: d\ndata : d\n data: d\nunknown: d\nword\n\n", []),
    (b"data: a:b: c\n\n", [("message", "a:b: c", "")]),
    (b":data: a\n:\n: x\ndata: b\n\n", [("message", "b", "")]),
    # Ids.
    (b"id: 1\n\ndata: a\n\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "1")]),
    (b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "1")]),
    (b"data: a\n\nid: 1\ndata: b", [("message", "a", "")]),
    # Bytes.
    (BOM + b"data: a\n\n", [("message", "a", "")]),
    (BOM + BOM + b"data: a\n\ndata: b\n\n", [("message", "b", "")]),
    (b"\n" + BOM + b"data: a\n\n", []),
    (b":\n" + BOM + b"data: a\n\n", []),
    (b"data: \xff\xc3\n\n", [("message", "\ufffd\ufffd", "")]),
    (b"data: \xc3\xa9\xf0\x9f\x98\x80\n\n", [("message", "é😀", "")]),
    (b"\xef\xbb", []),
    (b"", []),
]


@pytest.mark.parametrize("body, expected", CASES)
def test_the_parser_reads_as_the_standard_says_wherever_the_bytes_are_cut(body, expected):
    """In one piece, in two at every place, and byte by byte."""
    found = [ReceivedEvent(*event) for event in expected]
    for place in range(len(body) + 1):
        parser = EventParser()
        assert [*parser.feed(body[:place]), *parser.feed(body[place:])] == found, place
    parser = EventParser()
    assert [event for index in range(len(body)) for event in parser.feed(body[index : index + 1])] == found


def test_an_event_is_there_with_the_byte_that_ends_it():
    """Also where that is a CR, which might be half a line end."""
    parser = EventParser()
    assert parser.feed(b"data: a\r") == []
    assert parser.feed(b"\r") == [ReceivedEvent("message", "a", "")]
    assert parser.feed(b"\ndata: b\r\n") == []
    assert parser.feed(b"\r") == [ReceivedEvent("message", "b", "")]


@pytest.mark.parametrize(
    "line, retry", [("5", 5), (" 007", 7), ("", None), ("-1", None), ("1.5", None), ("1e3", None), ("٣", None)]
)
def test_retry_is_ascii_digits_or_nothing(line, retry):
    """And what is nothing leaves what was said before."""
    parser = EventParser()
    parser.feed(f"retry:{line}\n".encode())
    assert parser.retry == retry
    parser.feed(b"retry: 9\nretry: x\n")
    assert parser.retry == 9


def test_comments_are_counted_and_the_last_id_is_known():
    """What a test of keep-alives and of resuming asks for."""
    parser = EventParser()
    parser.feed(b":\n: hello\nid: 7\n")
    assert (parser.comments, parser.last_event_id) == (2, "")
    parser.feed(b"\n")
    assert parser.last_event_id == "7"


def test_a_received_event_reads_its_json():
    """Which most events carry."""
    assert ReceivedEvent("message", '{"a": [1]}', "").json() == {"a": [1]}


# StreamClient

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"Content-Type", b"text/event-stream"), (b"x-two", b"\xe9")],
}


def body(data: bytes, more: bool = True) -> dict:
    return {"type": "http.response.body", "body": data, "more_body": more}


def application(*messages, wait: bool = True):
    """An ASGI application that sends the messages and waits until the client goes."""

    async def run(scope, receive, send):
        run.scope = scope  # type: ignore[attr-defined]
        assert (await receive())["type"] == "http.request"
        for message in messages:
            await send(message)
        if wait:
            assert (await receive())["type"] == "http.disconnect"
            run.ended = True  # type: ignore[attr-defined]

    return run


async def test_a_client_asks_as_a_browser_does():
    """Path, query and headers arrive, and what is answered is there when the block begins."""
    served = application(START, body(b"retry: 5\n: hello\n"))
    async with StreamClient("/a/b/?channel=x&n=1", headers={"Last-Event-ID": "é"}, application=served) as stream:
        assert stream.status == 200
        assert stream.headers == {"content-type": "text/event-stream", "x-two": "é"}
    assert served.scope["path"] == "/a/b/"
    assert served.scope["query_string"] == b"channel=x&n=1"
    assert (b"last-event-id", b"\xe9") in served.scope["headers"]
    assert served.ended
    assert stream.retry == 5
    assert stream.body == b"retry: 5\n: hello\n"


async def test_next_gives_the_events_one_after_the_other():
    """However they were cut into messages."""
    served = application(START, body(b"id: x-1\ndata: a\n\nda"), body(b"ta: b\n\n"))
    async with StreamClient("/", application=served) as stream:
        assert await stream.next() == ReceivedEvent("message", "a", "x-1")
        assert (await stream.next()).data == "b"
        assert stream.last_event_id == "x-1"


async def test_next_never_hangs_where_nothing_comes():
    """It says how long it waited; the stream goes on, and can be read afterwards."""
    go = asyncio.Event()

    async def served(scope, receive, send):
        await send(START)
        await send(body(b":\n"))
        await go.wait()
        await send(body(b"data: late\n\n"))
        await receive()
        await receive()

    async with StreamClient("/", application=served) as stream:
        with pytest.raises(TimeoutError, match=r"no event came in 0\.01 s"):
            await asyncio.wait_for(stream.next(timeout=0.01), GUARD)
        go.set()
        assert (await stream.next()).data == "late"


@pytest.mark.parametrize("last", [[body(b"data: a\n\n", more=False)], [body(b"data: a\n\n"), body(b"", more=False)]])
async def test_next_never_hangs_where_the_stream_has_ended(last):
    """What came before is given first; then it says so as often as it is asked."""
    async with StreamClient("/", application=application(START, *last, wait=False)) as stream:
        assert (await stream.next()).data == "a"
        for _ in range(3):
            with pytest.raises(EOFError, match="the stream has ended"):
                await asyncio.wait_for(stream.next(), GUARD)


async def test_a_loop_over_a_stream_ends_with_it():
    """And gives every event."""
    served = application(START, body(b"data: a\n\ndata: b\n\n", more=False), wait=False)
    async with StreamClient("/", application=served) as stream:
        assert [event.data async for event in stream] == ["a", "b"]


async def test_an_application_that_fails_fails_the_test():
    """Not silently: its own error comes out at the end of the block, before which the stream ends."""

    async def served(scope, receive, send):
        raise KeyError("in the application")

    stream = await StreamClient("/", application=served).__aenter__()
    assert stream.status == 0
    with pytest.raises(EOFError):
        await stream.next()
    with pytest.raises(KeyError, match="in the application"):
        await stream.__aexit__()


async def test_an_application_that_never_answers_is_not_waited_for_and_not_left_behind(monkeypatch):
    """The block does not begin, and nothing of it goes on."""
    ended = asyncio.Event()

    async def served(scope, receive, send):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waited = asyncio.wait_for

    async def wait_for(awaitable, timeout):
        return await waited(awaitable, min(timeout, 0.01))

    monkeypatch.setattr("events.testing.asyncio.wait_for", wait_for)
    with pytest.raises(asyncio.TimeoutError):
        async with StreamClient("/", application=served):
            pytest.fail("the block has begun")
    await waited(ended.wait(), GUARD)


async def test_a_client_that_was_never_opened_can_be_left():
    """As `async with` does when entering was cancelled."""
    await StreamClient("/", application=application()).__aexit__()


@pytest.mark.django_db(transaction=True)
async def test_a_stream_of_this_site_is_opened_and_logging_stays_as_it_was(make_channel, caplog):
    """Without an application it is Django's own; what a test captures of the log, it goes on capturing."""
    await sync_to_async(make_channel)("news")
    with caplog.at_level(logging.WARNING):
        async with StreamClient("/events/stream/?channel=news&from=earliest") as stream:
            assert stream.status == 200
            published = await apublish("news", {"n": 1}, event="update")
            event = await stream.next()
            assert (event.event, event.json(), event.id) == ("update", {"n": 1}, published.id)
        logging.getLogger("somewhere").warning("seen")
    assert "seen" in caplog.messages


@pytest.mark.django_db(transaction=True)
async def test_a_session_is_sent_as_a_cookie(make_channel, make_user):
    """A test logs in with Django's client and hands the cookie on."""
    await sync_to_async(make_channel)("news", access="authenticated")
    client = AsyncClient()
    await client.aforce_login(await sync_to_async(make_user)("someone"))
    cookie = client.cookies.output(header="", attrs=[]).strip()
    async with StreamClient("/events/stream/?channel=news", headers={"Cookie": cookie}) as stream:
        assert stream.status == 200
    async with StreamClient("/events/stream/?channel=news") as stream:
        assert stream.status == 403
        with pytest.raises(EOFError):
            await stream.next()
