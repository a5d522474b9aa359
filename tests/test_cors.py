"""What answers say to pages of other origins: the decorator alone, the app's views, real servers, and Chromium."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import uuid
from contextlib import closing
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import iscoroutinefunction
from corsheaders.middleware import CorsMiddleware
from django.core.handlers.asgi import ASGIRequest
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.utils.cache import patch_vary_headers
from hypothesis import given
from hypothesis import strategies as st

from events import apublish
from events.channels import ChannelTable, channel_table
from events.cors import cors
from events.models import Channel
from events.testing import StreamClient

from .browsers import launched
from .connections import scope_of
from .servers import BOTH_LANES, ROOT, RawStream, Server, Servers, Site, looked_after, opened, stream_path
from .servers import GUARD as SECONDS
from .waiting import GUARD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

STREAM = "/events/stream/"
#: Two origins, of which a site lists the first by name.
FRIEND, STRANGER = "https://www.example.org", "https://elsewhere.example"
PREFLIGHT = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "last-event-id"}
#: What is told to a page of a listed origin, and to one that only "*" lets in.
TO_FRIENDS = {
    "Access-Control-Allow-Origin": FRIEND,
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Expose-Headers": "Retry-After, Events-Cursor, Events-Keepalive, Events-Visitor",
}
TO_ALL = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Retry-After, Events-Cursor, Events-Keepalive, Events-Visitor",
}


def listed(*origins: str) -> Any:
    """The origins that the site lists."""
    return override_settings(EVENTS={"CORS_ORIGINS": list(origins)})


def told(response: Any) -> dict[str, str]:
    """Those headers of an answer that are about origins."""
    return {name: value for name, value in response.headers.items() if name.startswith("Access-Control-")}


def varies(response: Any) -> list[str]:
    """What an answer says that it depends on."""
    return [name.strip() for name in response.headers.get("Vary", "").split(",") if name.strip()]


class OtherCorsMiddleware(CorsMiddleware):
    """As a site makes it its own."""


def other_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """A middleware that is a function."""
    return get_response


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[..., HttpResponse]:
    """Asks a view of either kind, decorated, that answers as it is told."""

    def ask(
        method: str = "GET", origin: str | None = None, response: HttpResponse | None = None, **headers: str
    ) -> HttpResponse:
        response = HttpResponse() if response is None else response
        sent = {**headers, **({} if origin is None else {"Origin": origin})}
        asked = RequestFactory().generic(method, "/", headers=sent)

        @cors("GET", "HEAD")
        def view(request: HttpRequest) -> HttpResponse:
            return response

        @cors("GET", "HEAD")
        async def async_view(request: HttpRequest) -> HttpResponse:
            return response

        return view(asked) if request.param == "sync" else asyncio.run(async_view(asked))

    return ask


class TestTheDecorator:
    @pytest.mark.parametrize("origin", [None, FRIEND])
    @pytest.mark.parametrize("method, headers", [("GET", {}), ("OPTIONS", PREFLIGHT)])
    def test_it_does_nothing_on_a_site_that_lists_no_origin(self, method: str, headers, origin, ask) -> None:
        """The view answers, and nothing says that the answer depends on the origin: it does not."""
        response = ask(method, origin, HttpResponse("the view's"), **headers)
        assert response.content == b"the view's"
        assert set(response.headers) == {"Content-Type"}

    @listed(FRIEND, "*")
    @pytest.mark.parametrize("name", ["corsheaders.middleware.CorsMiddleware", "tests.test_cors.OtherCorsMiddleware"])
    @pytest.mark.parametrize("method, headers", [("GET", {}), ("OPTIONS", PREFLIGHT)])
    def test_it_does_nothing_beside_django_cors_headers(self, method: str, headers, name: str, ask) -> None:
        """That one answers, with the site's own rules: two would give two answers."""
        with override_settings(MIDDLEWARE=["tests.test_cors.other_middleware", name]):
            response = ask(method, FRIEND, HttpResponse("the view's"), **headers)
        assert response.content == b"the view's"
        assert set(response.headers) == {"Content-Type"}
        # And not for longer than that is so.
        with override_settings(MIDDLEWARE=["tests.test_cors.other_middleware"]):
            assert told(ask("GET", FRIEND)) == TO_FRIENDS

    @pytest.mark.parametrize(
        "origins, origin, expected",
        [
            ([FRIEND], FRIEND, TO_FRIENDS),
            (["http://localhost:3000", FRIEND], FRIEND, TO_FRIENDS),
            (["*", FRIEND], FRIEND, TO_FRIENDS),
            (["*", FRIEND], STRANGER, TO_ALL),
            (["*"], STRANGER, TO_ALL),
            # A page from a file, or in a sandbox.
            (["*"], "null", TO_ALL),
            ([FRIEND], STRANGER, {}),
            ([FRIEND], "null", {}),
            # No page of another origin asks.
            (["*", FRIEND], None, {}),
        ],
    )
    def test_an_answer_is_for_whom_the_site_lists(self, origins: list[str], origin, expected, ask) -> None:
        """By name with cookies, by "*" without; and it depends on the origin whatever that is."""  # promise 22
        with listed(*origins):
            response = ask("GET", origin)
        assert told(response) == expected
        assert varies(response) == ["Origin"]

    @listed(FRIEND)
    @pytest.mark.parametrize("status", [201, 204, 304, 400, 401, 403, 404, 405, 413, 429, 500, 501, 503])
    def test_a_page_can_read_what_went_wrong(self, status: int, ask) -> None:
        """Errors are for the page, too."""  # promise 22
        response = ask("GET", FRIEND, HttpResponse("reason", status=status))
        assert (response.status_code, response.content) == (status, b"reason")
        assert told(response) == TO_FRIENDS
        assert varies(response) == ["Origin"]

    @listed(FRIEND)
    def test_what_an_answer_depends_on_besides_stays(self, ask) -> None:
        """`Vary` is added to, once."""
        response = HttpResponse()
        patch_vary_headers(response, ("Accept-Encoding", "origin"))
        assert varies(ask("GET", FRIEND, response)) == ["Accept-Encoding", "origin"]
        response = HttpResponse()
        patch_vary_headers(response, ("Cookie",))
        assert varies(ask("GET", STRANGER, response)) == ["Cookie", "Origin"]

    @pytest.mark.parametrize(
        "origins, origin, expected, headers",
        [
            ([FRIEND], FRIEND, TO_FRIENDS, ", Authorization, X-CSRFTOKEN"),
            (["*", FRIEND], FRIEND, TO_FRIENDS, ", Authorization, X-CSRFTOKEN"),
            # Nothing that says who somebody is.
            (["*", FRIEND], STRANGER, TO_ALL, ""),
        ],
    )
    def test_a_preflight_is_answered_in_the_views_place(self, origins: list[str], origin, expected, headers, ask):
        """Without a body, with all that a page may send."""  # promise 22
        with listed(*origins):
            response = ask("OPTIONS", origin, HttpResponse("the view's", status=500), **PREFLIGHT)
        assert (response.status_code, response.content) == (204, b"")
        assert told(response) == {
            **expected,
            "Access-Control-Allow-Methods": "GET, HEAD",
            "Access-Control-Allow-Headers": (
                "Accept, Cache-Control, Content-Type, Idempotency-Key, Last-Event-ID" + headers
            ),
            "Access-Control-Max-Age": "7200",
        }
        assert varies(response) == ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"]

    @listed(FRIEND)
    @override_settings(CSRF_HEADER_NAME="HTTP_X_XSRF_TOKEN")
    def test_the_header_of_the_csrf_token_is_the_sites(self, ask) -> None:
        """`CSRF_HEADER_NAME` names it."""
        allowed = told(ask("OPTIONS", FRIEND, **PREFLIGHT))["Access-Control-Allow-Headers"]
        assert allowed.endswith(", X-XSRF-TOKEN")

    @listed(FRIEND)
    @pytest.mark.parametrize(
        "method, origin, headers",
        [
            ("OPTIONS", FRIEND, {}),
            ("OPTIONS", STRANGER, PREFLIGHT),
            ("OPTIONS", None, PREFLIGHT),
            ("GET", FRIEND, PREFLIGHT),
        ],
    )
    def test_what_is_no_preflight_of_an_allowed_origin_is_the_views(self, method: str, origin, headers, ask) -> None:
        """The view says what it says to everybody."""
        response = ask(method, origin, HttpResponseNotAllowed(["GET", "HEAD"]), **headers)
        assert response.status_code == 405
        assert told(response) == (TO_FRIENDS if origin == FRIEND else {})
        assert varies(response) == ["Origin"]

    def test_the_view_stays_what_it_was(self) -> None:
        """Its name, its kind, what other decorators left on it, and what it is called with."""

        def view(request: HttpRequest, name: str, *, of: str) -> HttpResponse:
            """What it is for."""
            return HttpResponse(f"{name} of {of}")

        async def async_view(request: HttpRequest, name: str, *, of: str) -> HttpResponse:
            """What it is for."""
            return view(request, name, of=of)

        made: Any
        for made in (view, async_view):
            made.csrf_exempt = True
            decorated = cors("GET")(made)
            assert (decorated.__name__, decorated.__doc__) == (made.__name__, "What it is for.")
            assert decorated.csrf_exempt is True
            assert iscoroutinefunction(decorated) is iscoroutinefunction(made)
        request = RequestFactory().get("/")
        assert cors("GET")(view)(request, "a", of="b").content == b"a of b"
        assert asyncio.run(cors("GET")(async_view)(request, "a", of="b")).content == b"a of b"

    @given(
        values=st.lists(
            st.one_of(
                st.binary(max_size=40),
                st.sampled_from(
                    [
                        *(b"", b"*", b"null", b"x" * 10_000, b"\r\nSet-Cookie: a=b", b"\0", b"https://"),
                        *(FRIEND.encode(), FRIEND.upper().encode(), FRIEND.encode() + b".evil.example"),
                        *(FRIEND.encode() + b"/", FRIEND.encode() + b"\r\nX: y", FRIEND.encode() + b"\0"),
                        *(b" " + FRIEND.encode(), b"http://www.example.org", b"https://example.org", b"https://\xff"),
                    ]
                ),
            ),
            max_size=3,
        ),
        method=st.sampled_from(["GET", "HEAD", "POST", "OPTIONS"]),
        has_star=st.booleans(),
        is_preflight=st.booleans(),
    )
    def test_nothing_that_was_sent_comes_back(
        self, values: list[bytes], method: str, has_star: bool, is_preflight: bool
    ) -> None:
        """Whatever `Origin` is, and however often: the answer names a listed origin, "*" or none."""  # promise 22
        scope = scope_of("/", PREFLIGHT if is_preflight else {}, method)
        scope["headers"] += [(b"origin", value) for value in values]
        with listed(FRIEND, *(["*"] if has_star else [])):
            response = cors("GET")(lambda request: HttpResponse())(ASGIRequest(scope, BytesIO()))
        is_friend = values == [FRIEND.encode()]
        found = told(response)
        # Several values become one with commas, which no browser sends.
        expected = FRIEND if is_friend else "*" if has_star and b",".join(values) else None
        assert found.get("Access-Control-Allow-Origin") == expected
        assert ("Access-Control-Allow-Credentials" in found) is is_friend
        assert ("Access-Control-Max-Age" in found) is (method == "OPTIONS" and is_preflight and expected is not None)
        assert "Origin" in varies(response)


@listed(FRIEND, "*")
@pytest.mark.parametrize(
    "path, methods",
    [
        ("/events/stream/?channel=whatever", "GET, HEAD"),
        ("/events/history/whatever/", "GET, HEAD"),
        ("/events/publish/whatever/", "POST"),
    ],
)
async def test_a_preflight_looks_at_nothing(path: str, methods: str) -> None:
    """No query, whoever asks and about whatever: a test without a database would fail at one."""  # promise 22
    headers = {"Origin": FRIEND, "Cookie": "sessionid=" + "x" * 32, "Authorization": "Bearer x", **PREFLIGHT}
    response = await AsyncClient().options(path, headers=headers)
    assert response.status_code == 204
    assert response.headers["Access-Control-Allow-Origin"] == FRIEND
    assert response.headers["Access-Control-Allow-Methods"] == methods
    # What is no preflight is a method like any other.
    response = await AsyncClient().options(path, headers={"Origin": FRIEND})
    assert (response.status_code, response.headers["Allow"]) == (405, methods)
    assert told(response) == TO_FRIENDS


@pytest.mark.django_db(transaction=True)
class TestTheStream:
    @pytest.fixture(autouse=True)
    def channels(self, transactional_db) -> None:
        Channel.objects.create(name="news", access="public", compress=True)
        Channel.objects.create(name="staff", access="staff")

    @listed(FRIEND, "*")
    @pytest.mark.parametrize("origin, expected", [(FRIEND, TO_FRIENDS), (STRANGER, TO_ALL), (None, {})])
    async def test_a_page_reads_it(self, origin: str | None, expected: dict[str, str]) -> None:
        """The headers come before the first bytes, and stand beside the stream's own."""
        headers = {} if origin is None else {"Origin": origin}
        async with StreamClient(f"{STREAM}?channel=news", headers=headers) as client:
            assert client.status == 200
            assert client.headers["content-type"] == "text/event-stream"
            assert {name: client.headers.get(name.lower()) for name in TO_FRIENDS} == {
                name: expected.get(name) for name in TO_FRIENDS
            }
            assert {"Accept-Encoding", "Origin"} <= {name.strip() for name in client.headers["vary"].split(",")}
            await apublish("news", "hello")
            assert (await client.next(GUARD)).data == "hello"
        response = await AsyncClient().head(f"{STREAM}?channel=news", headers=headers)
        assert response.status_code == 200
        assert told(response) == expected

    @listed(FRIEND)
    @pytest.mark.parametrize(
        "method, query, status", [("get", "", 400), ("get", "channel=staff", 403), ("post", "channel=news", 405)]
    )
    async def test_a_page_reads_why_it_is_refused(self, method: str, query: str, status: int) -> None:
        """And a stranger's does not."""
        for origin, expected in ((FRIEND, TO_FRIENDS), (STRANGER, {})):
            response = await getattr(AsyncClient(), method)(f"{STREAM}?{query}", headers={"Origin": origin})
            assert response.status_code == status
            assert told(response) == expected
            assert "Origin" in varies(response)

    @listed(FRIEND)
    async def test_a_page_that_is_put_off_comes_back(self, monkeypatch) -> None:
        """An answer that its browser would not show it would end its EventSource for good."""

        def fail(*args) -> None:
            raise OperationalError("gone")

        monkeypatch.setattr(ChannelTable, "_look", fail)
        channel_table.invalidate()
        response = await AsyncClient().get(f"{STREAM}?channel=staff", headers={"Origin": FRIEND})
        assert response.status_code == 200
        assert response.content.startswith(b"retry: ")
        assert told(response) == TO_FRIENDS

    async def test_a_site_that_lists_no_origin_says_nothing(self) -> None:
        """Not even that it depends on the origin."""
        async with StreamClient(f"{STREAM}?channel=news", headers={"Origin": FRIEND}) as client:
            assert client.status == 200
            assert "access-control-allow-origin" not in client.headers
            assert "Origin" not in client.headers["vary"]


@pytest.mark.django_db(transaction=True)
class TestPublishingAndHistories:
    @listed(FRIEND)
    def test_a_page_reads_a_history(self, make_channel) -> None:
        """And why it may not."""
        make_channel("news")
        make_channel("staff", access="staff")
        for name, status in (("news", 200), ("staff", 403), ("a b", 400)):
            for origin, expected in ((FRIEND, TO_FRIENDS), (STRANGER, {})):
                response = Client().get(f"/events/history/{name}/", headers={"Origin": origin})
                assert response.status_code == status
                assert told(response) == expected
                assert "Origin" in varies(response)

    @listed(FRIEND, STRANGER)
    @override_settings(CSRF_TRUSTED_ORIGINS=[FRIEND])
    def test_a_page_publishes_for_who_is_signed_in(self, make_channel, make_user) -> None:
        """Where Django trusts its origin and it has the token, as docs/access.md says; else it reads why not."""
        make_channel("news")
        client = Client(enforce_csrf_checks=True)
        client.force_login(make_user("someone", "publish_to_channel"))
        token = "x" * 32
        client.cookies["csrftoken"] = token

        def publish(origin: str, token: str) -> Any:
            headers = {"Origin": origin, "X-CSRFToken": token}
            return client.post("/events/publish/news/", "hello", content_type="text/plain", headers=headers)

        for origin, sent, status in ((FRIEND, token, 201), (FRIEND, "y" * 32, 403), (STRANGER, token, 403)):
            response = publish(origin, sent)
            assert response.status_code == status, response.content
            assert told(response) == {**TO_FRIENDS, "Access-Control-Allow-Origin": origin}
            assert "Origin" in varies(response)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    settings = json.dumps({"CORS_ORIGINS": [FRIEND, "*"]})
    with closing(Servers(tmp_path_factory.mktemp("cors"), EVENTS_TEST_SETTINGS=settings)) as servers:
        yield servers


@pytest.mark.parametrize("kind", BOTH_LANES)
async def test_each_server_sends_them_in_either_lane(servers: Servers, kind: str, name: str) -> None:
    """With a stream, with what ends at once, and with a preflight; each header once."""
    server = servers[kind]
    for _ in looked_after(server):
        headers = [("Origin", FRIEND)]
        async with opened(server, name, headers=headers) as (stream,):
            assert stream.head.lower().count(b"access-control-allow-origin:") == 1
            assert stream.headers["access-control-allow-origin"] == FRIEND
            assert "Origin" in stream.headers["vary"]
            await server.site.apublish(name, "hello")
            assert (await stream.next()).data == "hello"
        for method, sent, status in (
            ("HEAD", headers, 200),
            ("POST", [*headers, ("Content-Length", "0")], 405),
            ("OPTIONS", [*headers, *PREFLIGHT.items()], 204),
            ("OPTIONS", [("Origin", STRANGER), *PREFLIGHT.items()], 204),
            ("OPTIONS", headers, 405),
            ("OPTIONS", list(PREFLIGHT.items()), 405),
        ):
            answer = await RawStream.open(server.port, stream_path(name), sent, method=method)
            assert answer.status == status, answer.head
            origin = dict(sent).get("Origin")
            assert answer.headers.get("access-control-allow-origin") == ("*" if origin == STRANGER else origin)
            assert ("access-control-allow-credentials" in answer.headers) is (origin == FRIEND)
            await answer.close()


#: Whose pages are on which host.
HOSTS = {"friend": "127.0.0.1", "stranger": "localhost"}
#: What the site is where django-cors-headers answers, beside a setting that would say something else.
WITH_DJANGO_CORS_HEADERS = """
from tests.site.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "corsheaders"]
MIDDLEWARE = ["corsheaders.middleware.CorsMiddleware", *MIDDLEWARE]
CORS_ALLOWED_ORIGINS = EVENTS["CORS_ORIGINS"]
CORS_ALLOW_CREDENTIALS = True
EVENTS = {**EVENTS, "CORS_ORIGINS": ["*"]}
"""
#: The data of a stream's first event, or "closed" where Chromium gives the stream up.
LISTEN = """
([url, withCredentials]) => new Promise((resolve, reject) => {
  setTimeout(() => reject(new Error("nothing came")), 30000);
  const source = new EventSource(url, { withCredentials });
  const end = (answer) => { source.close(); resolve(answer); };
  source.onmessage = (event) => end(event.data);
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) end("closed"); };
})
"""
#: The data of a stream's first event, read by a program, or "refused" where Chromium does not show the answer.
FETCH = """
async ([url, headers, credentials]) => {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), 30000);
  let response;
  try {
    response = await fetch(url, { headers, credentials, signal: stop.signal });
  } catch (error) {
    return error.name === "TypeError" ? "refused" : error.name;
  }
  const decoder = new TextDecoder();
  let text = "";
  for await (const part of response.body) {
    text += decoder.decode(part, { stream: true });
    if (/^data: .*\\n\\n/m.test(text)) break;
  }
  clearTimeout(timer);
  return text.match(/^data: (.*)$/m)[1];
}
"""


@pytest.fixture(scope="class")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with closing(Site(tmp_path_factory.mktemp("origins"))) as site:
        yield site


@pytest.fixture(scope="class")
def origins(site: Site) -> dict[str, Server]:
    """
    Servers of one site, each an origin, by whom they let in.

    Nobody: that one serves the pages. Its page by one of its names. That one by its name, and "*". As before, with
    short streams. And whom django-cors-headers lets in, which is the same.
    """
    pages = site.start("uvicorn")
    ours = f"http://127.0.0.1:{pages.port}"
    module = site.folder / "with_cors_headers.py"
    module.write_text(WITH_DJANGO_CORS_HEADERS)
    foreign = {"DJANGO_SETTINGS_MODULE": module.stem, "PYTHONPATH": f"{site.folder}{os.pathsep}{ROOT}"}
    # A stream that soon ends, and a client that is back at once.
    short = {"MAX_STREAM_AGE": 1, "RETRY": [10, 10]}
    return {
        "nobody": pages,
        "listed": site.start("uvicorn", EVENTS_TEST_SETTINGS=json.dumps({"CORS_ORIGINS": [ours]})),
        "all": site.start("uvicorn", EVENTS_TEST_SETTINGS=json.dumps({"CORS_ORIGINS": [ours, "*"]})),
        "short": site.start("uvicorn", EVENTS_TEST_SETTINGS=json.dumps({"CORS_ORIGINS": [ours], **short})),
        "foreign": site.start("uvicorn", None, EVENTS_TEST_SETTINGS=json.dumps({"CORS_ORIGINS": [ours]}), **foreign),
    }


@pytest.fixture(scope="class")
def browser(chromium: str) -> Iterator[Browser]:
    # Of this class alone, for others of the module run loops.
    with launched(chromium) as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, origins: dict[str, Server]) -> Iterator[Callable[[str], Page]]:
    """Opens a page of the listed origin, or of another: the same server by another name."""
    context = browser.new_context()

    def open_page(whose: str) -> Page:
        page = context.new_page()
        page.goto(f"http://{HOSTS[whose]}:{origins['nobody'].port}/blank/")
        return page

    yield open_page
    context.close()


def url_of(server: Server, *channels: str, **options: str) -> str:
    """A stream, for a page of another origin."""
    return f"http://127.0.0.1:{server.port}{stream_path(*channels, **options)}"


def headers_of(server: Server, method: str, name: str, headers: dict[str, str]) -> Any:
    """All headers of an answer, as often as they were sent."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
        connection.request(method, stream_path(name), headers=headers)
        return connection.getresponse().headers


@pytest.mark.browser
class TestInChromium:
    """Pages of two origins, one of which the site lists, and four servers of the site on origins of their own."""

    @pytest.mark.parametrize(
        "server, whose, is_shown",
        [
            # Without cookies, and with them.
            ("listed", "friend", [True, True]),
            ("listed", "stranger", [False, False]),
            ("all", "friend", [True, True]),
            ("all", "stranger", [True, False]),
            ("foreign", "friend", [True, True]),
            ("foreign", "stranger", [False, False]),
            ("nobody", "stranger", [False, False]),
        ],
    )
    def test_an_event_source_is_shown_what_is_for_its_page(
        self, server: str, whose: str, is_shown: list[bool], origins, visit, name: str
    ) -> None:
        """A listed origin's with cookies or without, everybody's without where "*" lets them in, else none."""
        # promise 22
        origins[server].site.publish(name, "for whom it is")
        url = url_of(origins[server], name, from_="earliest")
        page = visit(whose)
        shown = [page.evaluate(LISTEN, [url, with_cookies]) for with_cookies in (False, True)]
        assert shown == ["for whom it is" if so else "closed" for so in is_shown]

    @pytest.mark.parametrize("server", ["listed", "all", "foreign"])
    def test_a_visitor_is_known_by_their_cookie(self, server: str, origins, visit) -> None:
        """A channel that is not public, for the page that may send cookies and does."""
        name = f"staff.{uuid.uuid4().hex}"
        session = origins[server].site.run(
            """
            from django.contrib.auth.models import User
            from django.test import Client

            publish(channel, "for staff")
            client = Client()
            client.force_login(User.objects.create_user(channel, is_staff=True))
            result = client.cookies["sessionid"].value
            """,
            channel=name,
        )
        # Browsers keep cookies by host: the port is not looked at, so this is one site with two origins.
        friend, stranger = visit("friend"), visit("stranger")
        friend.context.add_cookies([{"name": "sessionid", "value": session, "url": "http://127.0.0.1"}])
        url = url_of(origins[server], name, from_="earliest")
        assert friend.evaluate(LISTEN, [url, True]) == "for staff"
        assert friend.evaluate(LISTEN, [url, False]) == "closed"
        assert stranger.evaluate(LISTEN, [url, True]) == "closed"

    def test_an_event_source_resumes_where_it_was(self, origins, visit, name: str) -> None:
        """Chromium sends the cursor without asking whether it may, and every event comes once."""  # promise 4
        server, page = origins["short"], visit("friend")
        server.site.publish(name, "0")
        page.evaluate(
            """(url) => {
              window.got = [];
              window.opened = 0;
              window.source = new EventSource(url);
              source.onopen = () => { opened += 1; };
              source.onmessage = (event) => got.push(event.data);
            }""",
            url_of(server, name, from_="earliest"),
        )
        for number in range(1, 3):
            page.wait_for_function("count => got.length === count", arg=number)
            opened = page.evaluate("opened")
            page.wait_for_function("count => opened > count", arg=opened)
            server.site.publish(name, str(number))
        page.wait_for_function("() => got.length >= 3")
        assert page.evaluate("got") == ["0", "1", "2"]
        page.evaluate("source.close()")

    @pytest.mark.parametrize(
        "server, whose, header, is_shown",
        [
            ("listed", "friend", "Last-Event-ID", True),
            ("listed", "friend", "Authorization", True),
            ("listed", "friend", "X-Unknown", False),
            ("listed", "stranger", "Last-Event-ID", False),
            ("all", "stranger", "Last-Event-ID", True),
            ("all", "stranger", "Cache-Control", True),
            # What says who somebody is takes an origin that is listed by name.
            ("all", "stranger", "Authorization", False),
            ("all", "stranger", "X-CSRFToken", False),
            ("all", "friend", "X-CSRFToken", True),
        ],
    )
    def test_a_program_on_a_page_sends_what_it_may(
        self, server: str, whose: str, header: str, is_shown: bool, origins, visit, name: str
    ) -> None:
        """Chromium asks first, and `fetch` goes on after the cursor."""  # promise 22
        site = origins[server].site
        cursor = site.publish(name, "seen")
        site.publish(name, "next")
        value = {"Last-Event-ID": cursor, "Cache-Control": "no-cache"}.get(header, "x")
        url = url_of(origins[server], name, last_event_id=cursor)
        assert visit(whose).evaluate(FETCH, [url, {header: value}, "omit"]) == ("next" if is_shown else "refused")

    def test_beside_django_cors_headers_there_is_one_answer(self, origins, name: str) -> None:
        """Each header once, and by its rules: the origin that it lists, though ours would let in all."""  # promise 22
        server = origins["foreign"]
        friend = f"http://127.0.0.1:{origins['nobody'].port}"
        for method, headers in (("GET", {}), ("HEAD", {}), ("OPTIONS", PREFLIGHT)):
            for origin in (friend, STRANGER):
                found = headers_of(server, method, name, {"Origin": origin, **headers})
                expected = [friend] if origin == friend else []
                assert found.get_all("Access-Control-Allow-Origin", []) == expected
                assert found.get_all("Access-Control-Allow-Credentials", []) == (["true"] if expected else [])
