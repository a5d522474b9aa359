"""The direct lane, in this process. `tests/test_servers.py` and its kind show it under the real servers."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
import zlib
from contextlib import AsyncExitStack
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path
from django.utils.decorators import sync_only_middleware
from hypothesis import given, settings
from hypothesis import strategies as st

from events import EventStreamResponse, apublish, direct, draining, limits, servers, streams
from events import hub as hub_module
from events.asgi import get_asgi_application
from events.backends.base import Batch, NewEvent
from events.channels import channel_table
from events.direct import DirectStream, EventsApplication, Suspended
from events.hub import Hub, get_hub
from events.models import Channel
from events.registry import event_backends
from events.responses import HANDOFF, ResponseStream

from .connections import Connection, IteratedConnection, ServerConnection, Steps, UncutConnection, served
from .hubs import Log, hub_started, without_tail
from .memory import new_instances
from .waiting import GUARD, counted_turns, until

pytestmark = pytest.mark.django_db(transaction=True)

MEMORY: dict[str, Any] = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}
SIDE: dict[str, Any] = {"BACKENDS": {**MEMORY["BACKENDS"], "side": MEMORY["BACKENDS"]["default"]}}

#: What the middleware below has seen.
seen: list[weakref.ref[Any]] = []


async def own_view(request):
    return EventStreamResponse(request, ["news"])


async def side_view(request):
    return EventStreamResponse(request, ["news"], using="side")


async def plain_view(request):
    return HttpResponse("plain")


@sync_only_middleware
def noting_middleware(get_response):
    def middleware(request):
        response = get_response(request)
        seen.extend([weakref.ref(request), weakref.ref(response)])
        return response

    return middleware


urlpatterns = [
    path("own/", own_view),
    path("side/", side_view),
    path("plain/", plain_view),
    path("events/", include("events.urls")),
]

SESSIONS = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)


@pytest.fixture(autouse=True)
def site(transactional_db):
    Channel.objects.create(name="news", access="public")
    with override_settings(ROOT_URLCONF="tests.test_direct", EVENTS=MEMORY, MIDDLEWARE=[]):
        yield
    seen.clear()


@pytest.fixture
def log(site) -> Log:
    """A log of its own, for a hub of its own."""
    return Log()


@pytest.fixture
def application(site) -> EventsApplication:
    return get_asgi_application()


async def at_rest() -> None:
    """No stream has a task: all have asked for their rights, which they do when a process reads the channels anew."""
    await asyncio.to_thread(channel_table.refresh_and_close)
    await until(lambda: not any(stream._driver or stream._todo for stream in streams_now()))


def streams_now(using: str = "default") -> list[Any]:
    return list(get_hub(using).streams)


def only_stream(using: str = "default") -> DirectStream:
    [stream] = streams_now(using)
    assert isinstance(stream, DirectStream)
    return stream


class TestHandingOver:
    async def test_a_stream_leaves_django(self, application: EventsApplication) -> None:
        """Same headers, same bytes, and the hub writes it."""
        async with served(application, "/own/") as one:
            only_stream()
            connection = one.connection
            assert connection.status == 200
            assert connection.headers["content-type"] == "text/event-stream"
            assert connection.headers["content-encoding"] == "identity"
            assert connection.body.startswith(b"retry: ")
            assert connection.body.endswith(b"\n: stream\n")
            await apublish("news", "hello")
            await until(lambda: connection.data == ["hello"])
            assert all(message["more_body"] for message in connection.messages[1:])
        assert one.task.done()
        assert streams_now() == []

    async def test_what_is_no_stream_is_answered_as_ever(self, application: EventsApplication) -> None:
        """Every other page of the site, and HEAD of a stream."""
        async with served(application, "/plain/") as one:
            await one.finished()
            assert (one.connection.status, one.connection.body) == (200, b"plain")
        async with served(application, "/own/", method="HEAD") as one:
            await one.finished()
            assert one.connection.headers["content-type"] == "text/event-stream"
            assert one.connection.body == b""
        assert streams_now() == []

    async def test_it_is_handed_to_the_hub_of_its_own_log(self, site) -> None:
        """The alias that the response was made with."""
        with override_settings(EVENTS=SIDE):
            async with served(get_asgi_application(), "/side/") as one:
                assert streams_now() == []
                only_stream("side")
                await sync_to_async(event_backends["side"].append)([NewEvent(channel="news", data="aside")])
                await until(lambda: one.connection.data == ["aside"])

    async def test_the_apps_own_view_hands_over_too(self, application: EventsApplication) -> None:
        """With all it takes: the cursor, the envelope, gzip."""
        await Channel.objects.filter(name="news").aupdate(compress=True)
        first = await apublish("news", "1")
        await apublish("news", "2")
        url = f"/events/stream/?channel=news&envelope=1&last_event_id={first.id}"
        async with served(application, url, headers={"Accept-Encoding": "gzip"}) as one:
            assert only_stream().form == (True, True)
            assert one.connection.headers["content-encoding"] == "gzip"
            assert one.connection.headers["vary"] == "Accept-Encoding"
            inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            await until(lambda: len(one.connection.chunks) > 1)
            text = inflate.decompress(one.connection.body)
            assert b'"data":"2"' in text
            assert b'"data":"1"' not in text

    async def test_the_same_process_in_djangos_test_client_uses_the_response_lane(self) -> None:
        """It has no application around Django: nothing is to be set up."""
        response: Any = await AsyncClient().get("/own/")
        parts = aiter(response)
        assert (await asyncio.wait_for(anext(parts), GUARD)).startswith(b"retry: ")
        [stream] = streams_now()
        assert isinstance(stream, ResponseStream)
        await apublish("news", "hello")
        assert b"data: hello" in await asyncio.wait_for(anext(parts), GUARD)
        await parts.aclose()

    @pytest.mark.parametrize("name", ["wrapping_middleware", "encoding_middleware"])
    async def test_what_was_changed_on_the_way_stays_with_django(
        self, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The response lane serves it, as the middleware made it, and the log says so once."""
        with override_settings(MIDDLEWARE=[f"tests.middleware.{name}"]):
            application = get_asgi_application()
            async with served(application, "/own/") as one, served(application, "/own/"):
                found = streams_now()
                assert len(found) == 2
                assert all(isinstance(stream, ResponseStream) for stream in found)
                await apublish("news", "hello")
                wanted = b"DATA: HELLO" if name == "wrapping_middleware" else b"data: hello"
                await until(lambda: wanted in one.connection.body)
        assert caplog.text.count("a middleware changes the body of streams") == 1
        assert streams_now() == []

    async def test_a_client_that_goes_while_django_answers(self, application: EventsApplication) -> None:
        """Django ends the request; nothing is handed over."""
        connection = ServerConnection()
        connection.gone.set()
        async with served(application, "/own/", connection) as one:
            await one.finished()
        assert streams_now() == []
        assert limits.open_streams.total == 0

    async def test_a_client_that_goes_while_it_is_handed_over(self) -> None:
        """A server says once that the client has gone, and here it said so to Django."""

        async def django(scope, receive, send) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            scope[HANDOFF].take("default", {"channels": ["news"]})
            assert (await receive())["type"] == "http.disconnect"
            await send({"type": "http.response.body"})

        connection = ServerConnection()
        connection.gone.set()
        receive = connection.receive
        said: list[str] = []

        async def once() -> dict[str, Any]:
            if "http.disconnect" in said:
                await asyncio.Event().wait()
            message = await receive()
            said.append(message["type"])
            return message

        connection.receive = once  # type: ignore[method-assign]
        async with served(EventsApplication(django), "/", connection) as one:
            await one.finished()
            assert len(connection.messages) == 1
        assert streams_now() == []

    async def test_a_request_that_fails_in_django_is_the_servers(self) -> None:
        """As without the application around it."""

        async def django(scope, receive, send) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            async with served(EventsApplication(django), "/"):
                pass

    async def test_other_protocols_pass_through(self) -> None:
        """Whatever the application around which it stands does with them."""
        asked = []

        async def inner(*args) -> None:
            asked.append(args)

        await EventsApplication(inner)({"type": "websocket"}, "receive", "send")  # type: ignore[arg-type]
        assert asked == [({"type": "websocket"}, "receive", "send")]

    async def test_the_scope_that_a_server_made_is_left_as_it_was(self, application: EventsApplication) -> None:
        """Middleware outside of us sees nothing of the handing over."""
        scopes = []

        async def outer(scope, receive, send) -> None:
            scopes.append((scope, set(scope)))
            await application(scope, receive, send)

        async with served(outer, "/own/"):
            [(scope, before)] = scopes
            assert set(scope) == before


class TestLettingGo:
    @pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
    async def test_nothing_of_django_stays_with_an_open_stream(self, accept: str, request_threads) -> None:
        """No request, no response, no thread, no connection and no task, though a session and a user were loaded."""
        # promises 13 and 14
        user = await User.objects.acreate(username="ann", is_staff=True)
        await Channel.objects.acreate(name="staff", access="staff")
        headers = {**await sync_to_async(cookies)(user), "accept": accept}
        made: list[Any] = []

        def note(connection, **kwargs) -> None:
            # The ticker has one, for the whole process.
            if (name := threading.current_thread().name) != "events-ticker":
                made.append((connection, name))

        with override_settings(MIDDLEWARE=["tests.test_direct.noting_middleware", *SESSIONS]):
            application = get_asgi_application()
            # What the first stream of a process brings along stays: the hub, the ticker.
            async with served(application, "/events/stream/?channel=staff", headers=headers):
                only_stream()
            seen.clear()
            await until(lambda: not request_threads())
            await sync_to_async(connections.close_all)()
            # So does the loop's own thread, on which channels are looked at.
            await asyncio.to_thread(int)
            before = threading.active_count()
            tasks = asyncio.all_tasks()
            connection_created.connect(note)
            try:
                async with AsyncExitStack() as stack:
                    of_django = stack.enter_context(new_instances(HttpRequest, HttpResponseBase))
                    open_now = [
                        await stack.enter_async_context(
                            served(application, "/events/stream/?channel=staff", headers=headers)
                        )
                        for _ in range(5)
                    ]
                    await until(lambda: len(streams_now()) == 5)
                    await until(lambda: not request_threads())
                    assert len(seen) == 10
                    await until(lambda: gc.collect() is not None and not any(ref() for ref in seen))
                    assert not of_django()
                    # The user was loaded over one, which is closed.
                    assert made
                    assert [name for connection, name in made if connection.connection is not None] == []
                    # A server has one task for a connection; there is none but these.
                    assert asyncio.all_tasks() - tasks == {one.task for one in open_now}
                    assert threading.active_count() <= before
                    await apublish("staff", "hello")
                    for one in open_now:
                        await until(lambda one=one: one.connection.data == ["hello"])  # type: ignore[misc]
                    assert asyncio.all_tasks() - tasks == {one.task for one in open_now}
            finally:
                connection_created.disconnect(note)

    async def test_asking_for_rights_again_brings_nothing_back(self, request_threads) -> None:
        """A user is loaded on a thread that ends, over a connection that is closed."""  # promise 13
        user = await User.objects.acreate(username="ann", is_staff=True)
        await Channel.objects.acreate(name="staff", access="staff")
        headers = await sync_to_async(cookies)(user)
        with override_settings(MIDDLEWARE=SESSIONS):
            async with served(get_asgi_application(), "/events/stream/?channel=staff", headers=headers) as one:
                stream = only_stream()
                get_hub().rights.ask()
                right = stream._right
                assert right is not None
                await until(lambda: right.is_answered and not stream._todo)
                await until(lambda: not request_threads())
                await User.objects.filter(pk=user.pk).aupdate(is_staff=False)
                get_hub().rights.ask()
                await one.finished()
                assert [event.event for event in one.connection.events] == ["stream-closed"]
                assert one.connection.ended.is_set()

    async def test_hundreds_that_come_and_go(self, application: EventsApplication, request_threads) -> None:
        """No stream, no task and no thread is left of them."""  # promise 14

        async def come_and_go() -> None:
            async with served(application, "/own/"):
                pass

        await come_and_go()
        await until(lambda: not request_threads())
        before, tasks = threading.active_count(), asyncio.all_tasks()
        for _ in range(10):
            await asyncio.gather(*(come_and_go() for _ in range(20)))
        assert streams_now() == []
        assert limits.open_streams.total == 0
        # That of the guard comes on top.
        await until(lambda: len(asyncio.all_tasks()) <= len(tasks) + 1)
        await until(lambda: threading.active_count() <= before)


@pytest.fixture
async def request_threads():
    """The threads that requests have: those of asgiref that were not there before the test."""
    # The one that the test itself uses stays.
    await sync_to_async(int)()
    before = set(threading.enumerate())

    def found() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor") and t not in before]

    return found


def cookies(user: User) -> dict[str, str]:
    client = Client()
    client.force_login(user)
    return {"cookie": f"sessionid={client.cookies['sessionid'].value}"}


class TestWriting:
    async def test_the_hub_writes_without_a_task(self, application: EventsApplication) -> None:
        """Each `send` is stepped in the hub's own task."""
        async with served(application, "/own/") as one, served(application, "/own/") as two:
            await at_rest()
            await apublish("news", "1")
            await until(lambda: one.connection.data == two.connection.data == ["1"])
            hub = get_hub()
            assert one.connection.senders[-1]() is two.connection.senders[-1]() is hub._task
            assert all(stream._driver is None for stream in streams_now())

    async def test_what_a_stream_has_is_not_given_to_it_again(self, application: EventsApplication) -> None:
        """It came while others were given an event, and took that from the rings at once: its turn is still to come."""
        async with served(application, "/own/") as one:
            await apublish("news", "1")
            await until(lambda: one.connection.data == ["1"])
            only_stream().deliver()
            assert one.connection.data == ["1"]
            await apublish("news", "2")
            await until(lambda: one.connection.data == ["1", "2"])

    async def test_all_get_the_very_same_bytes(self, application: EventsApplication) -> None:
        """Not equal ones: the same object."""
        async with served(application, "/own/") as one, served(application, "/own/") as two:
            await apublish("news", "1")
            await until(lambda: one.connection.data == two.connection.data == ["1"])
            assert one.connection.chunks[-1] is two.connection.chunks[-1]

    async def test_a_client_that_is_behind_gets_a_task_until_it_has_caught_up(
        self, application: EventsApplication
    ) -> None:
        """Others go on meanwhile; what waited leaves in one write; then the hub writes again."""  # promise 2
        async with served(application, "/own/") as slow, served(application, "/own/") as fast:
            [stream] = [s for s in streams_now() if s._send == slow.connection.send]
            slow.connection.room.clear()
            for number in range(1, 6):
                await apublish("news", str(number))
                await until(lambda number=number: fast.connection.data[-1:] == [str(number)])  # type: ignore[misc]
            # The first was taken, and waits.
            assert slow.connection.data == ["1"]
            assert stream._driver is not None
            chunks = len(slow.connection.chunks)
            slow.connection.room.set()
            await until(lambda: stream._driver is None)
            assert slow.connection.data == ["1", "2", "3", "4", "5"]
            assert len(slow.connection.chunks) == chunks + 1
            await apublish("news", "6")
            await until(lambda: slow.connection.data[-1] == "6")
            assert slow.connection.senders[-1]() is get_hub()._task

    async def test_the_first_bytes_may_have_to_wait_too(self, application: EventsApplication) -> None:
        """A client whose connection is full from the beginning."""
        connection = ServerConnection()
        async with served(application, "/own/", connection) as one:
            assert streams_now()
        connection = ServerConnection()
        send = connection.send

        async def full(message):
            # The headers leave.
            if message["type"] == "http.response.start":
                await send(message)
                connection.room.clear()
            else:
                await send(message)

        connection.send = full  # type: ignore[method-assign]
        async with served(application, "/own/", connection) as one:
            await apublish("news", "1")
            connection.room.set()
            await until(lambda: one.connection.data == ["1"])

    async def test_a_keepalive_is_written_without_a_task(self, site) -> None:
        """And counts as written: an event before it puts it off."""
        with override_settings(EVENTS={**MEMORY, "KEEPALIVE": 0.05}):
            async with served(get_asgi_application(), "/own/") as one:
                await until(lambda: one.connection.body.count(b"\n:\n") >= 1)
                await until(lambda: one.connection.chunks[-2:] == [b":\n", b":\n"])
                assert only_stream()._driver is None

    async def test_a_stream_that_always_finds_more_lets_others_run(self, application: EventsApplication) -> None:
        """After some writes a task goes on, which yields now and then."""
        await Channel.objects.filter(name="news").aupdate(replay="all")
        backend = event_backends["default"]
        async with served(application, "/own/"):
            backend.append([NewEvent(channel="news", data="x" * 70_000) for _ in range(3 * streams.WRITES_PER_TURN)])
            await until(lambda: get_hub().head == backend.head())
            with counted_turns() as turns:
                async with served(application, "/events/stream/?channel=news&from=earliest") as one:
                    await until(lambda: len(one.connection.data) == 3 * streams.WRITES_PER_TURN)
            assert len(turns) > 2

    async def test_more_than_a_turns_worth_from_the_rings(self, log: Log, hub: Hub) -> None:
        """The hub writes what it may at once, and leaves the rest to a task."""
        await hub_started(hub)
        connection = ServerConnection()
        stream = DirectStream(hub, connection.send, {"channels": ["news"], "now": hub.now()})
        task = asyncio.ensure_future(run(stream, connection))
        await until(lambda: connection.messages and not stream._todo)
        count = 2 * streams.WRITES_PER_TURN + 3
        log.append([NewEvent(channel="news", data=f"{number} " + "x" * 70_000) for number in range(count)])
        await until(lambda: len(connection.events) == count)
        assert [text.split()[0] for text in connection.data] == [str(number) for number in range(count)]
        await until(lambda: stream._driver is None)
        # Some in the hub's own task, the others not.
        assert sum(sender() is hub._task for sender in connection.senders) == streams.WRITES_PER_TURN
        connection.gone.set()
        await asyncio.wait_for(task, GUARD)

    async def test_woken_while_the_log_is_asked(self, log: Log, hub: Hub) -> None:
        """There is nothing to write yet: it waits on, and what the log says comes once."""
        # Before the rings begin.
        log.publish(data="1")
        await hub_started(hub)
        log.answers.clear()
        connection = ServerConnection()
        options = {"channels": ["news"], "now": hub.now(), "resume": f"{log.head().epoch}-0"}
        stream = DirectStream(hub, connection.send, options)
        task = asyncio.ensure_future(run(stream, connection))
        await until(lambda: log.reads)
        seen = stream._waiter
        stream.wake()
        await until(lambda: stream._waiter is not seen)
        assert connection.data == []
        log.answers.set()
        await until(lambda: connection.data == ["1"])
        await until(lambda: stream._driver is None)
        connection.gone.set()
        await asyncio.wait_for(task, GUARD)

    async def test_it_leaves_the_hub_with_its_last_bytes(self, application: EventsApplication) -> None:
        """Although the server, which stops, never comes to say that the client has gone."""
        connection = ServerConnection()
        connection.says_that_it_ended = False
        async with served(application, "/own/", connection):
            hub = get_hub()
            assert hub.streams
            hub.drain()
            await until(lambda: not hub.streams)
            assert connection.ended.is_set()
            assert not connection.gone.is_set()
            connection.gone.set()

    async def test_gzip_of_the_live_lane_ends_as_gzip_ends(self, application: EventsApplication) -> None:
        """What was given to all is in each client's sum."""
        await Channel.objects.filter(name="news").aupdate(compress=True)
        url = "/events/stream/?channel=news"
        async with served(application, url, headers={"Accept-Encoding": "gzip"}) as one:
            for number in range(3):
                await apublish("news", str(number))
            await until(lambda: only_stream().position == event_backends["default"].head().position)
            get_hub().drain()
            await one.finished()
            inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
            text = inflate.decompress(one.connection.body)
            assert inflate.eof
            assert text.count(b"data: ") == 3


async def run(stream: DirectStream, connection: Connection) -> None:
    """As a server's task does, for a stream that Django has handed over."""
    application = EventsApplication(ASGIHandler())

    async def ask(*args: Any) -> DirectStream:
        return stream

    application._ask = ask  # type: ignore[method-assign, assignment]
    await application({"type": "http"}, connection.receive, connection.send)


class TestSends:
    """The kinds of `send` that there are."""

    async def test_one_that_is_iterated_over(self, application: EventsApplication) -> None:
        """Granian's: no coroutine, and neither `send` nor `throw`."""
        async with served(application, "/own/", IteratedConnection()) as one:
            await at_rest()
            await apublish("news", "1")
            await until(lambda: one.connection.data == ["1"])
            assert one.connection.senders[-1]() is get_hub()._task
            one.connection.room.clear()
            await apublish("news", "2")
            stream = only_stream()
            await until(lambda: stream._driver is None and one.connection.data == ["1", "2"])

    async def test_one_that_is_iterated_over_and_waits_for_a_future(self, application: EventsApplication) -> None:
        """A task waits for it."""
        future = asyncio.get_running_loop().create_future()
        waiting: list[Any] = []

        class Waiting(Steps):
            def __next__(self) -> Any:
                if future.done():
                    raise StopIteration
                waiting.append(1)
                future._asyncio_future_blocking = True
                return future

        connection = IteratedConnection()
        async with served(application, "/own/", connection) as one:
            stream = only_stream()

            def send(message) -> Any:
                connection.take(message)
                return Waiting([])

            stream._send = send
            await apublish("news", "1")
            await until(lambda: waiting)
            assert stream._driver is not None
            future.set_result(None)
            await until(lambda: stream._driver is None)
            assert one.connection.data == ["1"]

    @pytest.mark.parametrize("kind", [ServerConnection, IteratedConnection, UncutConnection, Connection])
    async def test_one_that_fails_ends_its_stream_and_no_other(
        self, application: EventsApplication, kind: type[Connection], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Wherever it fails: at the call, or in the first step. The client has gone: that is nothing to log."""
        async with served(application, "/own/", kind()) as one, served(application, "/own/") as two:
            one.connection.error = ConnectionResetError("gone")
            await apublish("news", "1")
            await one.finished()
            await apublish("news", "2")
            await until(lambda: two.connection.data == ["1", "2"])
            assert len(streams_now()) == 1
        assert "a stream cannot be written" not in caplog.text
        assert "the hub stopped" not in caplog.text

    @pytest.mark.parametrize("kind", [ServerConnection, IteratedConnection, Connection])
    async def test_a_fault_is_logged_once(
        self, application: EventsApplication, kind: type[Connection], caplog: pytest.LogCaptureFixture
    ) -> None:
        """With the channels, and what it was; also where more comes before the stream has gone."""
        async with served(application, "/own/", kind()) as one, served(application, "/own/") as two:
            one.connection.error = ZeroDivisionError("odd")
            for number in range(5):
                event_backends["default"].append([NewEvent(channel="news", data=str(number))])
            await one.finished()
            await until(lambda: len(two.connection.data) == 5)
        assert caplog.text.count("a stream cannot be written: channels=news") == 1
        assert "ZeroDivisionError: odd" in caplog.text

    async def test_one_that_is_cancelled_inside_does_not_cancel_the_hub(self, application: EventsApplication) -> None:
        """A server that cancels what its `send` waits for ends that stream."""
        async with served(application, "/own/") as one, served(application, "/own/") as two:
            one.connection.error = asyncio.CancelledError()
            await apublish("news", "1")
            await one.finished()
            await apublish("news", "2")
            await until(lambda: two.connection.data == ["1", "2"])

    @pytest.mark.parametrize("error", [ConnectionResetError("gone"), asyncio.CancelledError()])
    async def test_one_that_fails_after_it_has_waited(
        self, application: EventsApplication, caplog: pytest.LogCaptureFixture, error: BaseException
    ) -> None:
        """In the task that has taken over."""
        async with served(application, "/own/") as one:
            one.connection.room.clear()
            await apublish("news", "1")
            await until(lambda: one.connection.data == ["1"])
            await apublish("news", "2")
            one.connection.error = error
            one.connection.room.set()
            await one.finished()
            assert one.connection.is_aborted
        assert "a stream cannot be written" not in caplog.text

    async def test_a_fault_of_the_stream_itself_is_logged(
        self, application: EventsApplication, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What it waits for fails; the response ends as responses end."""
        async with served(application, "/own/") as one:
            await at_rest()
            [stream] = streams_now()
            monkeypatch.setattr(DirectStream, "_read", lambda stream, head: 1 / 0)
            stream.position = -5
            stream.wake()
            await one.finished()
            assert one.connection.ended.is_set()
            assert not one.connection.is_aborted
        assert "a stream ended by a fault: channels=news" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert streams_now() == []

    async def test_a_fault_in_the_hubs_own_turn_is_logged_and_ends_one_stream(
        self, application: EventsApplication, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The response ends as responses end; the hub goes on."""
        async with served(application, "/own/") as one, served(application, "/own/") as two:
            # No task writes any more: from here on it is the hub's turn.
            await at_rest()
            [stream] = [stream for stream in streams_now() if stream._send == one.connection.send]
            poll = DirectStream.poll
            monkeypatch.setattr(DirectStream, "poll", lambda self: 1 / 0 if self is stream else poll(self))
            # A keep-alive would be due.
            stream.wake()
            await one.finished()
            assert one.connection.ended.is_set()
            assert not one.connection.is_aborted
            await apublish("news", "1")
            await until(lambda: two.connection.data == ["1"])
        assert caplog.text.count("a stream ended by a fault: channels=news") == 1

    async def test_one_that_is_not_a_servers_is_never_stepped(self, application: EventsApplication) -> None:
        """It may set a limit of time, which cancels the task it runs in: that is the stream's, and never the hub's."""
        connection = Connection()
        limited: list[asyncio.Task[Any]] = []

        async def send(message) -> None:
            # What asyncio.timeout does, which Python 3.10 does not have.
            task = asyncio.current_task()
            assert task is not None
            connection.take(message)
            if b"late" not in message.get("body", b""):
                return
            limited.append(task)
            handle = asyncio.get_running_loop().call_soon(task.cancel)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if hasattr(task, "uncancel"):
                    task.uncancel()
            finally:
                handle.cancel()

        async def around(scope, receive, _) -> None:
            await application(scope, receive, send)

        async with served(around, "/own/", connection) as one, served(application, "/own/") as two:
            hub = get_hub()
            assert not next(s for s in streams_now() if s._send == send)._send_now
            await apublish("news", "early")
            await until(lambda: connection.data == ["early"])
            await apublish("news", "late")
            await until(lambda: limited)
            await apublish("news", "after")
            await until(lambda: connection.data == ["early", "late", "after"])
            await until(lambda: two.connection.data == ["early", "late", "after"])
            # Neither the hub nor the server's task was meant.
            assert limited[0] not in (hub._task, one.task)
            assert hub._task is not None
            assert not one.task.done()

    async def test_one_that_is_not_stepped_leaves_nothing_where_the_client_has_gone(
        self, application: EventsApplication
    ) -> None:
        """No coroutine that nobody has waited for: Python would warn of it."""
        async with served(application, "/own/", Connection()) as one:
            stream = only_stream()
            await until(lambda: stream._driver is None)
            stream._write(b"data: 1\n\n")
            assert stream._driver is not None
            stream.close()
            gc.collect()
            assert one.connection.data == []


class TestSuspended:
    async def test_it_goes_on_where_it_was(self) -> None:
        """In the task that awaits it."""
        event = asyncio.Event()
        steps = []

        async def send() -> None:
            steps.append("before")
            await event.wait()
            await asyncio.sleep(0)
            steps.append("after")

        coroutine = send().__await__()
        suspended = Suspended(coroutine, next(coroutine))
        assert steps == ["before"]

        async def go_on() -> None:
            await suspended

        task = asyncio.ensure_future(go_on())
        await asyncio.sleep(0)
        assert not task.done()
        event.set()
        await asyncio.wait_for(task, GUARD)
        assert steps == ["before", "after"]

    async def test_a_coroutine_that_is_cancelled_puts_things_in_order(self) -> None:
        """It sees the cancellation where it waits, and may wait for more."""
        steps = []

        async def send() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                steps.append("in order")
                raise

        assert await cancelled(send()) is True
        assert steps == ["in order"]

    async def test_a_coroutine_that_does_not_mind_being_cancelled(self) -> None:
        """It ends as it likes."""

        async def send() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

        assert await cancelled(send()) is False

    async def test_what_cannot_be_told_is_left(self) -> None:
        """An iterator without `throw`."""
        steps = Steps([asyncio.get_running_loop().create_future()])
        steps.waits[0]._asyncio_future_blocking = True
        assert await cancelled(steps) is True

    async def test_an_error_comes_out_of_it(self) -> None:
        """Of the step that makes it."""
        steps = Steps([None, None, ConnectionResetError("gone")])
        with pytest.raises(ConnectionResetError):
            await Suspended(steps, next(steps))


async def cancelled(sending: Any) -> bool:
    """Step it, let a task go on, cancel that. Returns whether the task was cancelled."""
    steps = sending.__await__()
    suspended = Suspended(steps, next(steps))

    async def go_on() -> None:
        await suspended

    task = asyncio.ensure_future(go_on())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=GUARD)
    return task.cancelled()


class TestEnds:
    async def test_a_drain_ends_the_response(self, application: EventsApplication) -> None:
        """With a retry of the client's own; the last message says that it is the last."""  # promise 10
        async with served(application, "/own/") as one:
            get_hub().drain()
            await one.finished()
            assert one.connection.body.count(b"retry: ") == 2
            assert one.connection.messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
            assert not one.connection.is_aborted

    @pytest.mark.parametrize("kind", [ServerConnection, UncutConnection])
    async def test_a_client_that_takes_nothing_does_not_hold_up_a_drain(
        self, application: EventsApplication, kind: type[Connection], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a moment it is cut off, or where that cannot be done, left."""  # promise 10
        monkeypatch.setattr(hub_module, "DRAIN_PATIENCE", 0.05)
        async with served(application, "/own/", kind()) as one, served(application, "/own/") as two:
            one.connection.room.clear()
            await apublish("news", "1")
            await until(lambda: one.connection.data == ["1"])
            get_hub().drain()
            await two.finished()
            await one.finished()
            assert one.connection.is_aborted == (kind is ServerConnection)
            assert not one.connection.ended.is_set()
            assert two.connection.ended.is_set()
        assert streams_now() == []

    @pytest.mark.parametrize("kind", [ServerConnection, UncutConnection, Connection])
    async def test_a_client_that_takes_nothing_for_too_long(
        self, site, kind: type[Connection], caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is closed, counted and logged; the others get every event."""  # promise 15
        with override_settings(EVENTS={**MEMORY, "SLOW_CLIENT_TIMEOUT": 0.2}):
            application = get_asgi_application()
            async with served(application, "/own/", kind()) as one, served(application, "/own/") as two:
                one.connection.room.clear()
                for number in range(20):
                    await apublish("news", str(number))
                await one.finished()
                assert one.connection.is_aborted == (kind is ServerConnection)
                await until(lambda: two.connection.data == [str(number) for number in range(20)])
                assert len(streams_now()) == 1
        assert limits.counts == {("SLOW_CLIENT_TIMEOUT", "news"): 1}
        assert "limit=SLOW_CLIENT_TIMEOUT channels=news" in caplog.text

    async def test_one_stream_too_many(self, site) -> None:
        """200, a long retry, and the end at once."""
        with override_settings(EVENTS={**MEMORY, "MAX_STREAMS": 1}):
            application = get_asgi_application()
            async with served(application, "/own/"):
                async with served(application, "/own/") as two:
                    await two.finished()
                    assert two.connection.status == 200
                    assert two.connection.ended.is_set()
                    assert (two.connection.parser.retry or 0) >= 5000
                    assert len(streams_now()) == 1
                assert limits.counts == {("MAX_STREAMS", "news"): 1}
            async with served(application, "/own/") as three:
                assert not three.task.done()

    async def test_one_stream_too_many_of_a_user(self, site) -> None:
        """By session; who is not signed in has no such limit."""
        user = await User.objects.acreate(username="ann")
        headers = await sync_to_async(cookies)(user)
        url = "/events/stream/?channel=news"
        with override_settings(EVENTS={**MEMORY, "MAX_STREAMS_PER_USER": 1}, MIDDLEWARE=SESSIONS):
            application = get_asgi_application()
            async with served(application, url, headers=headers), served(application, url), served(application, url):
                async with served(application, url, headers=headers) as again:
                    await again.finished()
                    assert (again.connection.parser.retry or 0) >= 5000
                assert limits.counts == {("MAX_STREAMS_PER_USER", "news"): 1}

    async def test_a_stream_ends_at_its_age(self, site) -> None:
        """And its client comes back."""
        with override_settings(EVENTS={**MEMORY, "MAX_STREAM_AGE": 0.1}):
            async with served(get_asgi_application(), "/own/") as one:
                await one.finished()
                assert one.connection.ended.is_set()
                assert one.connection.body.count(b"retry: ") == 2
        assert limits.counts == {("MAX_STREAM_AGE", "news"): 1}

    async def test_a_server_that_cancels_its_task_lets_the_client_know_when_to_come_back(
        self, application: EventsApplication
    ) -> None:
        """Hypercorn does, at the end of its grace."""
        async with served(application, "/own/") as one:
            one.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one.finished()
            assert one.connection.body.count(b"retry: ") == 2
            assert one.connection.ended.is_set()
        assert streams_now() == []

    async def test_a_server_that_cancels_its_task_is_not_held_up_for_long(
        self, application: EventsApplication, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a client that takes nothing."""
        monkeypatch.setattr(direct, "DRAIN_PATIENCE", 0.05)
        async with served(application, "/own/") as one:
            one.connection.room.clear()
            await apublish("news", "1")
            await until(lambda: one.connection.data == ["1"])
            one.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one.finished()
            assert not one.connection.ended.is_set()
        assert streams_now() == []

    async def test_a_server_that_cancels_a_stream_that_has_said_goodbye(self, application: EventsApplication) -> None:
        """There is nothing left to write."""
        async with served(application, "/own/") as one:
            one.connection.gone = asyncio.Event()
            stream = only_stream()
            stream.drain()
            one.connection.take = lambda message: None  # type: ignore[method-assign]
            await until(lambda: stream._driver is not None and stream._driver.done())
            one.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one.finished()

    async def test_messages_that_are_no_disconnect_are_passed_over(self, log: Log, hub: Hub) -> None:
        """A server may say more than once that the request is there."""
        connection = ServerConnection()
        stream = DirectStream(hub, connection.send, {"channels": ["news"]})
        task = asyncio.ensure_future(run(stream, connection))
        await until(lambda: connection.messages)
        assert not task.done()
        connection.gone.set()
        await asyncio.wait_for(task, GUARD)
        assert hub.streams == set()

    async def test_a_stream_that_has_failed_is_not_written_to(self, log: Log, hub: Hub) -> None:
        """Nor woken: it is about to go."""
        await hub_started(hub)
        connection = UncutConnection()
        stream = DirectStream(hub, connection.send, {"channels": ["news"], "now": hub.now()})
        task = asyncio.ensure_future(run(stream, connection))
        await until(lambda: connection.messages and not stream._todo)
        stream.give_up()
        for name in ("deliver", "wake"):
            log.publish()
            await hub._hand_out([])
            getattr(stream, name)()
        assert connection.data == []
        await asyncio.wait_for(task, GUARD)
        # Given up once more, by a look that came late.
        stream.give_up()
        stream.deliver()
        assert len(connection.messages) == 1


class TestLifespan:
    async def test_start_and_stop_are_answered(self, application: EventsApplication) -> None:
        """Django itself does not know the protocol. What is open ends before the server goes on."""
        asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        told: list[Any] = []

        async def send(message) -> None:
            told.append((message["type"], len(streams_now())))

        task = asyncio.ensure_future(application({"type": "lifespan"}, asked.get, send))
        asked.put_nowait({"type": "lifespan.startup"})
        await until(lambda: told)
        async with served(application, "/own/") as one:
            asked.put_nowait({"type": "lifespan.shutdown"})
            await asyncio.wait_for(task, GUARD)
            await one.finished()
            assert one.connection.ended.is_set()
        assert told == [("lifespan.startup.complete", 0), ("lifespan.shutdown.complete", 0)]
        assert draining.is_draining()
        # Who comes now comes back later.
        async with served(application, "/own/") as one:
            await one.finished()
            assert one.connection.status == 200
            assert one.connection.parser.retry is not None
            assert one.connection.ended.is_set()

    async def test_a_message_that_is_not_known_is_passed_over(self, application: EventsApplication) -> None:
        """What later versions of the protocol may bring."""
        messages = iter([{"type": "lifespan.unknown"}, {"type": "lifespan.shutdown"}])
        told = []

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message) -> None:
            told.append(message["type"])

        await asyncio.wait_for(application({"type": "lifespan"}, receive, send), GUARD)
        assert told == ["lifespan.shutdown.complete"]


class TestChannels:
    async def test_another_application_around_it(self, application: EventsApplication) -> None:
        """As channels' ProtocolTypeRouter: it chooses by the scope's type."""
        asked = []

        async def sockets(scope, receive, send) -> None:
            asked.append(scope["type"])

        async def router(scope, receive, send) -> None:
            applications: dict[str, Any] = {"http": application, "websocket": sockets}
            await applications[scope["type"]](scope, receive, send)

        await router({"type": "websocket"}, None, None)
        assert asked == ["websocket"]
        async with served(router, "/own/"):
            only_stream()

    async def test_djangos_own_application_knows_no_handing_over(self) -> None:
        """The response lane serves."""
        async with served(ASGIHandler(), "/own/") as one:
            [stream] = streams_now()
            assert isinstance(stream, ResponseStream)
            await apublish("news", "1")
            await until(lambda: one.connection.data == ["1"])


steps = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 5)),
    st.tuples(
        st.just("attach"), st.integers(0, 8), st.sampled_from([ServerConnection, IteratedConnection, Connection])
    ),
    # The client of this stream takes nothing, or again.
    st.tuples(st.just("stall"), st.integers(0, 9)),
    st.tuples(st.just("go on"), st.integers(0, 9)),
    st.tuples(st.just("detach"), st.integers(0, 9)),
    # The loop turns so often.
    st.tuples(st.just("turn"), st.integers(1, 6)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40), st.integers(1, 20))
def test_whatever_clients_do_each_gets_its_events_once_and_in_order(todo: list[Any], ring_events: int) -> None:
    """Handing over from hub to task and back loses nothing, doubles nothing, turns nothing around."""  # promise 2

    async def turn(times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    async def play() -> None:
        log = Log()
        with override_settings(EVENTS={"RING_EVENTS": ring_events, "KEEPALIVE": 3600}):
            hub = Hub(log)
        without_tail(hub)
        await hub._deliver(Batch(events=[], head=log.head()))
        clients: list[tuple[Connection, DirectStream, int, asyncio.Task[None]]] = []
        for name, *values in todo:
            if name == "publish":
                start = log.head().position
                log.append([NewEvent(channel="news", data=str(start + n + 1)) for n in range(values[0])])
                await hub._deliver(Batch(events=list(log._events)[-values[0] :], head=log.head()))
            elif name == "attach":
                since = max(0, log.head().position - values[0])
                connection = values[1]()
                resume = f"{log.head().epoch}-{since}" if values[0] else None
                options = {"channels": ["news"], "now": hub.now(), "resume": resume}
                stream = DirectStream(hub, connection.send, options)
                task = asyncio.ensure_future(run(stream, connection))
                await turn(1)
                clients.append((connection, stream, since, task))
            elif name == "turn":
                await turn(values[0])
            elif clients:
                connection = clients[values[0] % len(clients)][0]
                if name == "detach":
                    connection.gone.set()
                elif name == "stall":
                    connection.room.clear()
                else:
                    connection.room.set()
        for connection, *_ in clients:
            connection.room.set()
        for connection, stream, since, _ in clients:
            due = [str(position) for position in range(since + 1, log.head().position + 1)]
            if connection.gone.is_set():
                assert connection.data == due[: len(connection.data)]
            else:
                await until(lambda: connection.data == due and stream._driver is None)  # noqa: B023
        for connection, _, _, task in clients:
            connection.gone.set()
            await asyncio.wait_for(task, GUARD)
        assert hub.streams == set()
        assert hub._task is not None
        hub._task.cancel()

    asyncio.run(play())


def test_a_servers_send_is_known_by_its_package() -> None:
    """Not by its name, and not where something stands around it."""
    assert servers.may_be_stepped(ServerConnection.__new__(ServerConnection).send)
    assert not servers.may_be_stepped(Connection.__new__(Connection).send)
