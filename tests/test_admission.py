"""
How requests for streams get through Django's middleware: all of it, in one trip to the request's thread.

And how much of a body that is sent to publish gets to Django: no more than an event can take.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.contrib.auth.models import User
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from django.utils.decorators import async_only_middleware, sync_only_middleware

from events import EventStreamResponse, admission, apublish, bodies
from events.asgi import get_asgi_application
from events.direct import DirectStream
from events.hub import get_hub
from events.models import Channel
from events.registry import event_backends

from . import servers as real
from .connections import ServerConnection, scope_of, served
from .publishers import MAKE_KEY, Sender, make_key
from .servers import FOUR, RawStream, Server, Servers
from .waiting import GUARD, until

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.django_db(transaction=True)

MEMORY: dict[str, Any] = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}
#: What a browser's EventSource sends.
ACCEPT = {"accept": "text/event-stream"}

#: What happened to requests, in order.
passed: list[Any] = []
made: list[str] = []
holds = threading.Event()


class Noting:
    """As most middleware is: synchronous."""

    name = ""

    def __init__(self, get_response) -> None:
        made.append(self.name)
        self.get_response = get_response

    def __call__(self, request):
        passed.append((f"{self.name} in", threading.current_thread().name))
        response = self.get_response(request)
        passed.append((f"{self.name} out", threading.current_thread().name))
        response[f"X-{self.name}"] = "seen"
        return response

    def process_view(self, request, view, args, kwargs) -> None:
        passed.append((f"{self.name} view {view.__name__}", threading.current_thread().name))


class First(Noting):
    name = "first"


class Second(Noting):
    name = "second"


class Unused:
    def __init__(self, get_response) -> None:
        raise MiddlewareNotUsed


class Refusing(Noting):
    name = "refusing"

    def __call__(self, request):
        return HttpResponse("no", status=418)


class Holding(Noting):
    name = "holding"

    def __call__(self, request):
        passed.append("held")
        holds.wait(GUARD)
        return self.get_response(request)


@sync_only_middleware
def sync_only(get_response):
    return First(get_response)


@async_only_middleware
def async_only(get_response):
    async def middleware(request):
        passed.append(("async in", threading.current_thread().name))
        return await get_response(request)

    return middleware


async def own_view(request):
    passed.append(("view", threading.current_thread().name))
    return EventStreamResponse(request, ["news"])


def sync_view(request):
    return EventStreamResponse(request, ["news"])


def plain_view(request, name):
    return HttpResponse()


async def broken_view(request):
    raise ZeroDivisionError


urlpatterns = [
    path("own/", own_view),
    path("sync/", sync_view),
    path("plain/<str:name>/", plain_view),
    path("broken/", broken_view),
    path("events/", include("events.urls")),
]


@pytest.fixture(autouse=True)
def site(transactional_db):
    Channel.objects.create(name="news", access="public")
    with override_settings(ROOT_URLCONF="tests.test_admission", EVENTS=MEMORY, MIDDLEWARE=[]):
        yield
    passed.clear()
    made.clear()
    holds.clear()


@pytest.fixture
def application_with(settings):
    """Makes the application of a site with this middleware."""

    def make(*names: str) -> Any:
        settings.MIDDLEWARE = [name if "." in name else f"{__name__}.{name}" for name in names]
        return get_asgi_application()

    return make


async def test_the_same_middleware_in_the_same_order(application_with) -> None:
    """Each sees the request, the view and the response, as with every other request."""
    application = application_with("First", "Unused", "Second")
    ways = []
    for headers in ({}, ACCEPT):
        passed.clear()
        async with served(application, "/own/", headers=headers) as one:
            assert one.connection.headers["x-first"] == one.connection.headers["x-second"] == "seen"
            [stream] = get_hub().streams
            assert isinstance(stream, DirectStream)
        ways.append([what for what, _ in passed])
    assert ways[0] == ways[1]
    assert ways[1] == [
        *("first in", "second in", "first view own_view", "second view own_view"),
        *("view", "second out", "first out"),
    ]


async def test_one_trip_to_one_thread(application_with) -> None:
    """What admits a stream is done there; the view, which is async, runs on the loop."""
    application = application_with("First", "Second")
    async with served(application, "/own/", headers=ACCEPT):
        threads = {thread for what, thread in passed if what != "view"}
        assert len(threads) == 1
        assert threading.current_thread().name not in threads
        assert dict(passed)["view"] == threading.current_thread().name


async def test_instances_are_made_when_a_stream_is_asked_for(application_with) -> None:
    """Once; a site without streams has none of its own for them."""
    application = application_with("First")
    assert made == ["first"]
    async with served(application, "/own/"):
        assert made == ["first"]
    for _ in range(3):
        async with served(application, "/own/", headers=ACCEPT):
            assert made == ["first", "first"]


async def test_middleware_that_is_async_only(application_with) -> None:
    """Streams are admitted as everything else."""
    application = application_with("First", "async_only", "Second")
    async with served(application, "/own/", headers=ACCEPT) as one:
        assert ("async in", threading.current_thread().name) in passed
        assert one.connection.headers["x-first"] == one.connection.headers["x-second"] == "seen"
        await apublish("news", "hello")
        await until(lambda: one.connection.data == ["hello"])
    assert made == ["second", "first"]


async def test_middleware_that_is_sync_only(application_with) -> None:
    """It is what this is for."""
    async with served(application_with("sync_only"), "/own/", headers=ACCEPT) as one:
        assert one.connection.headers["x-first"] == "seen"


@pytest.mark.parametrize("accept", ["text/event-stream", "text/html, text/event-stream;q=0.5", "*/*", ""])
async def test_whatever_a_client_accepts_it_gets_its_stream(application_with, accept: str) -> None:
    """A program may not send the header."""
    async with served(application_with("First"), "/own/", headers={"accept": accept}) as one:
        assert one.connection.status == 200
        await apublish("news", "hello")
        await until(lambda: one.connection.data == ["hello"])


async def test_middleware_that_answers_itself(application_with) -> None:
    """Nobody gets past it."""
    async with served(application_with("First", "Refusing"), "/own/", headers=ACCEPT) as one:
        await one.finished()
        assert (one.connection.status, one.connection.body) == (418, b"no")
        assert one.connection.headers["x-first"] == "seen"
    assert not get_hub().streams


@pytest.mark.filterwarnings("ignore")
async def test_a_view_that_fails_is_a_500(application_with, caplog: pytest.LogCaptureFixture) -> None:
    """As everywhere in Django, and logged; an unknown address is a 404."""
    application = application_with("First")
    async with served(application, "/broken/", headers=ACCEPT) as one:
        await one.finished()
        assert one.connection.status == 500
    assert "ZeroDivisionError" in caplog.text
    async with served(application, "/nowhere/", headers=ACCEPT) as one:
        await one.finished()
        assert one.connection.status == 404


async def test_a_view_that_is_not_async(application_with) -> None:
    """It runs on the request's thread; the stream then leaves that."""
    async with served(application_with("First"), "/sync/", headers=ACCEPT) as one:
        await apublish("news", "hello")
        await until(lambda: one.connection.data == ["hello"])


async def test_sessions_and_users_are_those_of_the_request(application_with) -> None:
    """Django's own middleware; who is signed in reads, who is not does not."""
    user = await User.objects.acreate(username="ann", is_staff=True)
    await Channel.objects.acreate(name="staff", access="staff")

    def sign_in() -> str:
        client = Client()
        client.force_login(user)
        return str(client.cookies["sessionid"].value)

    cookie = {"cookie": f"sessionid={await sync_to_async(sign_in)()}"}
    application = application_with(
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    )
    url = "/events/stream/?channel=staff"
    async with served(application, url, headers={**ACCEPT, **cookie}) as one:
        assert one.connection.status == 200
        await apublish("staff", "hello")
        await until(lambda: one.connection.data == ["hello"])
    async with served(application, url, headers=ACCEPT) as one:
        await one.finished()
        assert one.connection.status == 403


async def test_a_client_that_goes_while_it_is_admitted(application_with) -> None:
    """Nothing is handed over, and the thread ends with what it was at."""
    connection = ServerConnection()
    application = application_with("Holding")
    task = asyncio.ensure_future(application(scope_of("/own/", ACCEPT), connection.receive, connection.send))
    await until(lambda: passed)
    connection.gone.set()
    await asyncio.sleep(0)
    holds.set()
    await asyncio.wait_for(task, GUARD)
    assert connection.messages == []
    assert not get_hub().streams


@pytest.mark.parametrize("content_type", ["text/plain; charset*=bogus''x", "a/b; c*=latin-1''%E9; d*=x''y"])
async def test_a_content_type_that_django_cannot_read(application_with, caplog, content_type: str) -> None:
    """It is the client's fault, and nobody else's: of whatever request."""  # promise 16
    async with served(application_with(), "/own/", headers={"content-type": content_type}) as one:
        assert one.connection.status == 400
    assert "a request cannot be read" in caplog.text


class TestBodies:
    """What is sent to publish."""

    URL = "/events/publish/news/"

    @pytest.fixture
    def headers(self) -> dict[str, str]:
        """Of who may publish."""
        return {"authorization": f"Bearer {make_key()}", "content-type": "text/plain"}

    async def post(self, sender: Sender, headers: dict[str, str], url: str = URL, root_path: str = "") -> Any:
        """The answer's status and its JSON."""
        scope = {**scope_of(url, headers, "POST"), "root_path": root_path}
        await asyncio.wait_for(get_asgi_application()(scope, sender.receive, sender.send), GUARD)
        return (sender.status, json.loads(sender.body)) if sender.messages else None

    @pytest.mark.parametrize("root_path", ["", "/shop"])
    async def test_an_endless_one_ends(self, headers, root_path: str) -> None:
        """One byte after the limit, wherever the site is mounted."""
        sender = Sender(repeat(b"x" * 10_000))
        status, said = await self.post(sender, headers, root_path + self.URL, root_path)
        assert (status, said["error"].partition(",")[0]) == (413, "The body has more than 1576960 bytes")
        assert bodies.max_bytes() < sender.taken <= bodies.max_bytes() + 10_000

    async def test_the_largest_one_comes_through(self, headers) -> None:
        """In pieces, to its last byte; and no byte more."""
        size = bodies.max_bytes() - len('{"data": ""}')
        for spaces, status in ((size, 201), (size + 1, 413)):
            pieces = [b'{"data": "', b'"', b" " * spaces, b"}"]
            sender = Sender(pieces)
            assert (await self.post(sender, {**headers, "content-type": "application/json"}))[0] == status
            assert sender.taken == bodies.max_bytes() + (status == 413)

    @pytest.mark.parametrize(
        "refused, status",
        [
            ({"content-type": "image/png"}, 415),
            ({"content-length": "50000000"}, 413),
            ({"content-encoding": "gzip"}, 415),
        ],
    )
    async def test_what_the_headers_refuse_is_not_read(self, headers, refused: dict[str, str], status: int) -> None:
        """Nor is anything of it taken from the server."""
        sender = Sender(repeat(b"x" * 10_000))
        assert (await self.post(sender, {**headers, **refused}))[0] == status
        assert sender.taken == 0

    async def test_one_trip_to_the_requests_thread(self, headers, monkeypatch) -> None:
        """As many as a view takes that does nothing: one."""
        trips: list[Any] = []
        original = SyncToAsync.__call__

        async def count(self, *args, **kwargs):
            trips.append(self.func)
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(SyncToAsync, "__call__", count)
        took = []
        for url in ("/plain/news/", self.URL):
            trips.clear()
            sender = Sender([b"x"])
            await asyncio.wait_for(
                get_asgi_application()(scope_of(url, headers, "POST"), sender.receive, sender.send), GUARD
            )
            assert sender.status in (200, 201)
            took.append(len(trips))
        assert took[0] == took[1]

    async def test_headers_that_come_twice_are_judged_as_django_reads_them(self, headers) -> None:
        """What is taken for empty here must be refused there: an empty text could be published."""
        sender = Sender([b"x"])
        scope = scope_of(self.URL, headers, "POST")
        scope["headers"] += [(b"content-encoding", b"gzip"), (b"content-encoding", b"identity")]
        await asyncio.wait_for(get_asgi_application()(scope, sender.receive, sender.send), GUARD)
        assert (sender.status, sender.taken) == (415, 0)

    async def test_a_type_that_cannot_be_read_is_refused(self) -> None:
        """Django raises on it."""
        with pytest.raises(bodies.RefusedError, match="cannot be published"):
            bodies.is_json({"content-type": "text/plain; charset*=bogus''x"})

    async def test_a_client_that_goes_publishes_nothing(self, headers) -> None:
        """Half an event is none."""
        head = await sync_to_async(event_backends["default"].head)()
        assert await self.post(Sender([b"half"], "http.disconnect"), headers) is None
        assert await sync_to_async(event_backends["default"].head)() == head

    @pytest.mark.parametrize("url", ["/nowhere/", "/events/publish/news", "/publish/", "/events/publish/a/b/"])
    async def test_all_other_bodies_are_djangos(self, url: str) -> None:
        """Also of an address that looks like ours."""
        sender = Sender([b"x" * 1_000_000] * 2)
        scope = scope_of(url, {"content-type": "image/png"}, "POST")
        await asyncio.wait_for(get_asgi_application()(scope, sender.receive, sender.send), GUARD)
        assert sender.taken == 2_000_000

    @pytest.mark.parametrize("method, url", [("GET", URL), ("POST", "/events/stream/")])
    async def test_other_requests_are_not_looked_at(self, method: str, url: str, monkeypatch) -> None:
        """Beyond their method and path."""
        monkeypatch.setattr(admission, "resolve", None)
        sender = Sender([])
        await asyncio.wait_for(get_asgi_application()(scope_of(url, None, method), sender.receive, sender.send), GUARD)
        assert sender.status == 405


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory):
    """A site with a server of each kind."""
    found = Servers(tmp_path_factory.mktemp("admission"))
    yield found
    found.close()


@pytest.fixture
def server(servers: Servers, request: pytest.FixtureRequest):
    """The server of the kind that the test names."""
    yield from real.looked_after(servers[request.param])


def post(server: Server, headers: dict[str, str], pieces: Iterable[bytes]) -> tuple[bytes, int]:
    """Send a body until something is answered, as curl does. The answer's first part, and how much was sent."""
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), real.GUARD) as client:
        lines = [f"POST {TestBodies.URL} HTTP/1.1", "Host: 127.0.0.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        # A server may close when it has answered.
        with suppress(ConnectionError):
            for piece in pieces:
                while not (ready := select.select([client], [client], [], real.GUARD))[1]:
                    assert ready[0], "the server neither reads nor answers"
                    return client.recv(65_536), sent
                if ready[0]:
                    break
                client.sendall(piece)
                sent += len(piece)
        return client.recv(65_536), sent


def written(server: Server) -> int:
    """How many bytes the server's processes have written, to disks and connections."""
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    return sum(each.io_counters().write_chars for each in (process, *process.children(recursive=True)))


LARGE = 50_000_000
PIECE = b"x" * 50_000


@pytest.mark.slow
@pytest.mark.parametrize("server", FOUR, indirect=True)
def test_a_large_body_is_answered_and_not_kept(server: Server) -> None:
    """By what Content-Length says: neither in memory nor in a file. Daphne itself takes it all first."""
    headers = {"Authorization": f"Bearer {server.site.run(MAKE_KEY)}", "Content-Type": "text/plain"}
    before, most = written(server), server.json("/debug/")["memory"]["most"]
    answer, _ = post(server, {**headers, "Content-Length": str(LARGE)}, repeat(PIECE, LARGE // len(PIECE)))
    assert answer.startswith(b"HTTP/1.1 413 ")
    if server.kind != "daphne":
        assert written(server) - before < 1_000_000
        assert server.json("/debug/")["memory"]["most"] - most < LARGE / 4


@pytest.mark.slow
@pytest.mark.parametrize("server", [kind for kind in FOUR if kind != "daphne"], indirect=True)
def test_a_body_without_an_end_is_answered_and_not_kept(server: Server) -> None:
    """In chunks, for as long as there is no answer. Daphne would read it for ever."""
    headers = {"Authorization": f"Bearer {server.site.run(MAKE_KEY)}", "Content-Type": "text/plain"}
    before, most = written(server), server.json("/debug/")["memory"]["most"]
    chunk = b"%x\r\n%s\r\n" % (len(PIECE), PIECE)
    answer, _ = post(server, {**headers, "Transfer-Encoding": "chunked"}, repeat(chunk))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert written(server) - before < 1_000_000
    assert server.json("/debug/")["memory"]["most"] - most < LARGE / 4


@pytest.mark.slow
@pytest.mark.parametrize("server", FOUR, indirect=True)
async def test_who_sends_slowly_holds_no_thread(server: Server) -> None:
    """Byte by byte: Django is at it when all of it has come."""
    token = await server.site.arun(MAKE_KEY)
    headers = [("Authorization", f"Bearer {token}"), ("Content-Type", "text/plain"), ("Content-Length", "5")]
    path = f"/events/publish/public.slow-{server.kind}/"
    threads = (await server.ajson("/debug/"))["threads"]
    clients = [await RawStream.request(server.port, path, headers, method="POST") for _ in range(20)]
    try:
        for byte in b"slow":
            for client in clients:
                client.writer.write(bytes([byte]))
                await client.writer.drain()
            # As long as it likes.
            assert (await server.ajson("/debug/"))["threads"] <= threads + 2
        for client in clients:
            client.writer.write(b"!")
            await client.read_head()
            assert client.status == 201
    finally:
        for client in clients:
            client.abort()
