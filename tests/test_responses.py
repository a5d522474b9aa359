from __future__ import annotations

import asyncio
import gc
import gzip
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIHandler
from django.core.signals import request_finished
from django.db import connection, connections, transaction
from django.middleware.gzip import GZipMiddleware
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.urls import path

from events import EventStreamResponse, InvalidChannelName, apublish, streams, threads
from events import hub as hub_module
from events.asgi import get_asgi_application as get_direct_application
from events.backends.base import NewEvent
from events.exceptions import BackendUnavailable
from events.hub import get_hub
from events.models import Channel
from events.registry import event_backends
from events.responses import ResponseStream
from events.streams import Stream
from events.testing import ReceivedEvent, StreamClient

from .hubs import never_answers
from .memory import new_instances
from .waiting import GUARD, until

pytestmark = pytest.mark.django_db(transaction=True)

MEMORY = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}


async def own_view(request):
    return EventStreamResponse(request, ["news"], last_event_id=request.GET.get("mine"))


def sync_view(request):
    return EventStreamResponse(request, ["news"])


async def user_view(request):
    await request.session.aset("seen", True)

    async def allowed() -> bool:
        return await sync_to_async(Channel.objects.exists)()

    return EventStreamResponse(request, ["news"], allowed=allowed)


urlpatterns = [
    path("own/", own_view),
    path("sync/", sync_view),
    path("user/", user_view),
]


@pytest.fixture(autouse=True)
def site(transactional_db):
    Channel.objects.create(name="news", access="public")
    with override_settings(ROOT_URLCONF="tests.test_responses", EVENTS=MEMORY):
        yield


async def begun(client: StreamClient) -> None:
    """The stream's place in the log is fixed: what is published now comes after it."""
    await until(lambda: any(stream._waiter for stream in streams_now()))


def streams_now() -> list[Any]:
    return list(get_hub().streams)


async def ended(client: StreamClient) -> None:
    with pytest.raises(EOFError):
        await client.next(GUARD)


class TestHeaders:
    def response(self, method: str = "get", **kwargs) -> EventStreamResponse:
        return EventStreamResponse(getattr(AsyncRequestFactory(), method)("/", **kwargs), ["news"])

    def test_they_are_those_of_the_design(self) -> None:
        """Nobody on the way may store, buffer, guess at or compress a stream."""
        response = self.response()
        assert response.status_code == 200
        assert dict(response.items()) == {
            "Events-Cursor": str(event_backends["default"].head()),
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
            "Content-Encoding": "identity",
            "Events-Keepalive": "15",
        }
        assert response.streaming
        assert response.is_async

    @pytest.mark.parametrize("keepalive, said", [(0.05, "0.05"), (30, "30"), (86400, "86400"), (2.5, "2.5")])
    def test_a_client_learns_for_how_long_a_stream_may_be_silent(self, keepalive: float, said: str) -> None:
        """So nobody has to tell the pages of a site what its settings say."""
        with override_settings(EVENTS={**MEMORY, "KEEPALIVE": keepalive}):
            assert self.response()["Events-Keepalive"] == said

    async def test_gzip_leaves_it_alone(self) -> None:
        """GZipMiddleware passes the very same stream on."""  # promise 8
        request = AsyncRequestFactory().get("/", headers={"Accept-Encoding": "gzip"})
        response = EventStreamResponse(request, ["news"])

        async def get_response(request):
            return response

        passed_on: Any = GZipMiddleware(get_response)(request)
        assert await passed_on is response
        assert response["Content-Encoding"] == "identity"
        assert aiter(response) is response._stream

    async def test_head_has_no_body(self) -> None:
        """The same headers, and the end."""  # promise 12
        response = self.response("head")
        assert response["Content-Type"] == "text/event-stream"
        assert b"".join([part async for part in response]) == b""

    def test_under_wsgi_it_is_a_501_that_says_what_to_do(self) -> None:
        """At once, and never a pinned worker."""  # promise 11
        response = EventStreamResponse(RequestFactory().get("/"), ["news"])
        assert response.status_code == 501
        text = response.getvalue().decode()
        assert "ASGI server" in text
        assert "daphne" in text

    async def test_the_501_can_be_read_by_an_async_server_too(self) -> None:
        """Whatever hands a WSGI request to an ASGI server gets the text."""
        response = EventStreamResponse(RequestFactory().get("/"), ["news"])
        with pytest.warns(Warning, match="synchronous iterators"):
            assert b"ASGI server" in b"".join([part async for part in response])

    @pytest.mark.parametrize(
        "channels, message",
        [
            ([], r"^a stream follows 1 to 50 channels \(EVENTS\['MAX_CHANNELS_PER_STREAM'\]\), not 0$"),
            ([f"c{n}" for n in range(51)], "not 51"),
            (["a b"], "not a channel name"),
        ],
    )
    def test_channels_that_cannot_be(self, channels: list[str], message: str) -> None:
        """A view that asks for the impossible hears so at once."""
        with pytest.raises(InvalidChannelName, match=message):
            EventStreamResponse(AsyncRequestFactory().get("/"), channels)


class TestNow:
    """Where a stream without a cursor begins: before its headers leave."""

    async def at_the_headers(self, url: str, data: str) -> str:
        """The first event of a stream at whose headers `data` was published."""

        async def publishing(scope, receive, send) -> None:
            async def note(message) -> None:
                if message["type"] == "http.response.start":
                    event_backends["default"].append([NewEvent(channel="news", data=data)])
                await send(message)

            await ASGIHandler()(scope, receive, note)

        async with StreamClient(url, application=publishing) as client:
            return (await client.next(GUARD)).data

    async def test_an_async_view_of_a_process_that_streams(self) -> None:
        """The hub knows."""
        async with StreamClient("/own/") as first:
            await begun(first)
            assert await self.at_the_headers("/own/", "x") == "x"

    async def test_a_view_that_is_not_async(self) -> None:
        """The log is asked, on the view's thread."""
        assert await self.at_the_headers("/sync/", "x") == "x"

    async def test_a_log_that_cannot_be_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then the first bytes wait for the hub."""

        def gone() -> None:
            raise BackendUnavailable("gone")

        monkeypatch.setattr(event_backends["default"], "head", gone)
        response = await asyncio.to_thread(EventStreamResponse, AsyncRequestFactory().get("/"), ["news"])
        assert response._options["now"] is None

    async def test_a_hub_that_no_stream_came_to_stops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A response that is thrown away leaves no tail behind."""
        monkeypatch.setattr(hub_module, "LINGER", 0)
        EventStreamResponse(AsyncRequestFactory().get("/"), ["news"])
        hub = get_hub()
        assert hub._task is not None
        await until(lambda: hub._task is None)
        assert get_hub() is not hub


class TestOwnView:
    async def test_it_streams(self) -> None:
        """One line in a view of one's own."""
        async with StreamClient("/own/") as client:
            assert client.status == 200
            await begun(client)
            await apublish("news", "hello")
            assert (await client.next(GUARD)).data == "hello"
            assert client.retry is not None

    @pytest.mark.parametrize(
        "query, header, expected",
        [
            ("last_event_id={1}", "", ["2", "3"]),
            ("last_event_id={1}", "{2}", ["3"]),
            ("last_event_id={1}&mine={2}", "{1}", ["3"]),
        ],
    )
    async def test_where_to_go_on(self, query: str, header: str, expected: list[str]) -> None:
        """What the view says wins over the header, the header over the parameter."""
        ids = {str(number): str((await apublish("news", str(number))).id) for number in (1, 2, 3)}
        for number, cursor in ids.items():
            query, header = query.replace(f"{{{number}}}", cursor), header.replace(f"{{{number}}}", cursor)
        headers = {"Last-Event-ID": header} if header else {}
        async with StreamClient(f"/own/?{query}", headers=headers) as client:
            assert [(await client.next(GUARD)).data for _ in expected] == expected

    async def test_a_replay_is_for_who_has_seen_nothing(self) -> None:
        """`replay=1` counts with the page's cursor, and no more once the browser comes back with its own."""
        await Channel.objects.filter(name="news").aupdate(replay="all")
        first = str((await apublish("news", "1")).id)
        await apublish("news", "2")
        async with StreamClient(f"/own/?replay=1&last_event_id={first}") as client:
            assert [(await client.next(GUARD)).data for _ in range(2)] == ["1", "2"]
        headers = {"Last-Event-ID": first}
        async with StreamClient(f"/own/?replay=1&last_event_id={first}", headers=headers) as client:
            assert (await client.next(GUARD)).data == "2"

    async def test_the_settings_bound_the_retry(self) -> None:
        """Each stream draws its own within them."""
        with override_settings(EVENTS={**MEMORY, "RETRY": (7, 7)}):
            async with StreamClient("/own/") as client:
                await begun(client)
                await apublish("news", "x")
                await client.next(GUARD)
                assert client.retry == 7


@pytest.fixture(params=["response", "direct"])
def application(request: pytest.FixtureRequest) -> Any:
    """A site whose streams are in one lane, or in the other."""
    return get_asgi_application() if request.param == "response" else get_direct_application()


async def whole(url: str, application: Any, **headers: str) -> tuple[dict[str, str], list[ReceivedEvent]]:
    """The headers of a finite stream, and all its events, of which the last one is its end."""
    async with StreamClient(url, application=application, headers=headers) as client:
        assert client.status == 200
        return client.headers, [event async for event in client]


class TestFinite:
    """`follow=0`, in a view of a site's own."""

    @pytest.mark.parametrize("view", ["own", "sync"])
    async def test_it_says_before_where_it_ends(self, application: Any, view: str) -> None:
        """In a header; it gives all up to there, says so, and leaves nothing."""
        cursors = [str((await apublish("news", str(number))).id) for number in range(3)]
        async with StreamClient("/own/", application=application) as first:
            # The hub of a process that streams knows where the log is.
            await until(lambda: get_hub().now())
            headers, events = await whole(f"/{view}/?follow=0&last_event_id={cursors[0]}", application)
            assert headers["events-cursor"] == cursors[-1]
            assert [event.data for event in events[:-1]] == ["1", "2"]
            assert (events[-1].event, events[-1].json()) == ("stream-end", {"cursor": cursors[-1]})
            headers, events = await whole(f"/{view}/?follow=0", application, **{"Last-Event-ID": cursors[1]})
            assert [event.data for event in events[:-1]] == ["2"]
            await until(lambda: len(streams_now()) == 1)
            assert "events-cursor" not in first.headers

    async def test_the_first_one_of_a_process_says_it_at_its_end(self, application: Any) -> None:
        """Nobody knows yet where the log is when the headers of an async view leave: no header is wrong."""
        cursor = str((await apublish("news", "1")).id)
        headers, events = await whole("/own/?follow=0&from=earliest&envelope=1", application)
        assert "events-cursor" not in headers
        assert [event.json() for event in events] == [
            {"channel": "news", "event": "message", "data": "1"},
            {"cursor": cursor},
        ]
        await until(lambda: not streams_now())

    @pytest.mark.parametrize("follow", ["", "1", "2"])
    async def test_any_other_value_is_a_stream_without_end(self, application: Any, follow: str) -> None:
        """As for the other parameters: it is the app's own stream that refuses what it does not know."""
        async with StreamClient(f"/own/?follow={follow}", application=application) as client:
            await until(lambda: client.body)
            await apublish("news", "x")
            assert (await client.next(GUARD)).data == "x"
            assert "events-cursor" not in client.headers

    async def test_compressed(self, application: Any) -> None:
        """One gzip member, which is whole."""
        await Channel.objects.filter(name="news").aupdate(compress=True)
        for number in range(3):
            await apublish("news", str(number))
        url = "/own/?follow=0&from=earliest"
        async with StreamClient(url, application=application, headers={"Accept-Encoding": "gzip"}) as client:
            assert client.headers["content-encoding"] == "gzip"
            await ended(client)
        text = gzip.decompress(client.body)
        assert [f"data: {number}\n".encode() in text for number in range(3)] == [True] * 3
        assert text.split(b"\n\n")[-2].startswith(b"event: stream-end\ndata: ")

    async def test_head_says_where_it_would_end(self) -> None:
        """In the header, where it is known, and nowhere else."""
        cursor = str((await apublish("news", "1")).id)
        request = AsyncRequestFactory().head("/?follow=0")
        response = await asyncio.to_thread(EventStreamResponse, request, ["news"])
        assert response["Events-Cursor"] == cursor
        assert b"".join([part async for part in response]) == b""
        assert "Events-Cursor" not in EventStreamResponse(AsyncRequestFactory().head("/"), ["news"])

    async def test_a_log_that_cannot_be_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No header promises anything, and the stream ends at once: its client asks again."""
        monkeypatch.setattr(streams, "FIRST_BYTES_WAIT", 0.01)
        monkeypatch.setattr(event_backends["default"], "tail", never_answers)
        async with StreamClient("/own/?follow=0&from=earliest") as client:
            await ended(client)
        assert "events-cursor" not in client.headers
        assert client.body.endswith(b"\n: stream\n")


class TestEnds:
    async def test_a_client_that_goes_leaves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its stream is out of the hub as soon as its request ends, and `request_finished` was sent."""  # promise 14
        finished = []
        request_finished.connect(lambda **kwargs: finished.append(1), weak=False, dispatch_uid="t")
        try:
            async with StreamClient("/own/") as client:
                await begun(client)
                hub = get_hub()
                assert len(hub.streams) == 1
            assert hub.streams == set()
            assert finished == [1]
        finally:
            request_finished.disconnect(dispatch_uid="t")

    async def test_a_wrapped_stream_is_closed_too(self) -> None:
        """A middleware that wraps the body does not leave the stream to the garbage collector."""  # promise 14
        gc.disable()
        try:
            with override_settings(MIDDLEWARE=["tests.middleware.wrapping_middleware"]):
                async with StreamClient("/own/", application=get_asgi_application()) as client:
                    await begun(client)
                    hub = get_hub()
                    await apublish("news", "x")
                    await until(lambda: b"DATA: X" in client.body)
                assert hub.streams == set()
        finally:
            gc.enable()

    async def test_a_fault_in_the_middle_is_logged_and_ends_the_stream(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`request_finished` is sent all the same."""  # promise 14
        finished = []
        request_finished.connect(lambda **kwargs: finished.append(1), weak=False, dispatch_uid="t")
        try:
            async with StreamClient("/own/") as client:
                await begun(client)
                hub = get_hub()
                monkeypatch.setattr(ResponseStream, "poll", lambda stream: 1 / 0)
                hub.rights.ask()
                await ended(client)
            assert hub.streams == set()
            assert finished == [1]
        finally:
            request_finished.disconnect(dispatch_uid="t")
        assert "a stream ended by a fault: channels=news" in caplog.text
        assert "ZeroDivisionError" in caplog.text

    async def test_hundreds_that_come_and_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No stream, no task and no thread is left of them."""  # promise 14
        application = get_asgi_application()
        monkeypatch.setattr(hub_module, "LINGER", 0)

        async def come_and_go() -> None:
            async with StreamClient("/own/", application=application):
                pass

        await come_and_go()
        threads = threading.active_count()
        for _ in range(10):
            await asyncio.gather(*(come_and_go() for _ in range(20)))
        hub = get_hub()
        assert hub.streams == set()
        # The test's own, and that of the guard.
        await until(lambda: len(asyncio.all_tasks()) <= 2)
        await until(lambda: threading.active_count() <= threads)


class TestLettingGo:
    MIDDLEWARE = ("django.contrib.sessions.middleware.SessionMiddleware",)

    def request_threads(self) -> int:
        return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())

    async def test_an_open_stream_holds_no_thread_and_no_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What admitting the request needed is let go of, before and after rights are asked for again."""  # promise 13
        closed = []
        close = threads._close_connections

        def note() -> None:
            used = [connection for connection in connections.all(initialized_only=True) if connection.connection]
            closed.append(len(used))
            close()

        monkeypatch.setattr(threads, "_close_connections", note)
        with override_settings(MIDDLEWARE=self.MIDDLEWARE):
            before = self.request_threads()
            async with StreamClient("/user/", application=get_asgi_application()) as client:
                await begun(client)
                await until(lambda: self.request_threads() <= before)
                # The session was written: there was a connection.
                assert closed[0] == 1
                asked = len(closed)
                get_hub().rights.ask()
                await until(lambda: len(closed) > asked)
                await until(lambda: self.request_threads() <= before)
                await apublish("news", "x")
                assert (await client.next(GUARD)).data == "x"

    async def test_without_asgirefs_own_attributes_nothing_happens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The stream then holds its thread, as any streaming response of Django's does, and works."""
        monkeypatch.setattr(threads, "SyncToAsync", object())
        async with StreamClient("/own/") as client:
            await begun(client)
            await apublish("news", "x")
            assert (await client.next(GUARD)).data == "x"

    def test_a_transaction_is_left_alone(self) -> None:
        """A connection inside a transaction is somebody's: it stays open."""
        with transaction.atomic():
            threads._close_connections()
            assert connection.connection is not None
        threads._close_connections()
        assert connection.connection is None


def test_a_stream_that_was_never_read_is_no_leak() -> None:
    """A middleware that throws the response away leaves no stream: it begins with the first read."""
    with new_instances(Stream) as streams_in_memory:
        response = EventStreamResponse(AsyncRequestFactory().get("/"), ["news"])
        del response
        assert not streams_in_memory()
