"""How requests for streams get through Django's middleware: all of it, in one trip to the request's thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from django.utils.decorators import async_only_middleware, sync_only_middleware

from events import EventStreamResponse, apublish
from events.asgi import get_asgi_application
from events.direct import DirectStream
from events.hub import get_hub
from events.models import Channel

from .connections import ServerConnection, scope_of, served
from .waiting import GUARD, until

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


async def broken_view(request):
    raise ZeroDivisionError


urlpatterns = [
    path("own/", own_view),
    path("sync/", sync_view),
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
