from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.handlers.asgi import ASGIHandler
from django.db import OperationalError, connections
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events import amake_ticket, apublish, control
from events.asgi import get_asgi_application
from events.channels import ChannelTable, channel_table
from events.exceptions import BackendUnavailable
from events.hub import get_hub
from events.keys import issue
from events.limits import open_streams
from events.models import Channel, PublishKey
from events.registry import event_backends
from events.testing import StreamClient
from events.views import FORBIDDEN

from .waiting import GUARD, until

pytestmark = pytest.mark.django_db(transaction=True)

#: A site that has nothing but the app.
urlpatterns = [path("events/", include("events.urls"))]
STREAM = "/events/stream/"


@pytest.fixture(autouse=True)
def channels(transactional_db) -> None:
    Channel.objects.create(name="news", title="News", description="What is new", access="public")
    Channel.objects.create(name="staff", access="staff")
    Channel.objects.create(name="off", access="public", is_active=False)
    Channel.objects.create(name="room.*", access="public")


def text(response) -> str:
    return str(response.content.decode())


def cookies(user: User) -> dict[str, str]:
    client = Client()
    client.force_login(user)
    return {"cookie": f"sessionid={client.cookies['sessionid'].value}"}


class TestStream:
    async def test_who_is_deactivated_loses_the_stream(self) -> None:
        """The user is loaded anew when rights are asked for again: the request remembers the one who connected."""
        user = await User.objects.acreate(username="worker", is_staff=True)
        headers = await sync_to_async(cookies)(user)
        async with StreamClient(f"{STREAM}?channel=staff", headers=headers) as client:
            await apublish("staff", "for staff")
            assert (await client.next(GUARD)).data == "for staff"
            await User.objects.filter(pk=user.pk).aupdate(is_active=False)
            await sync_to_async(control.recheck)()
            assert (await client.next(GUARD)).event == "stream-closed"

    async def test_a_site_on_which_every_page_asks_for_a_login(self, settings) -> None:
        """`LoginRequiredMiddleware` leaves to the channels what they decide themselves; the pages ask for a login."""
        settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
        async with StreamClient(f"{STREAM}?channel=news") as client:
            assert client.status == 200
        asks = AsyncClient()
        assert (await asks.get("/events/history/news/")).status_code == 200
        assert (await asks.post("/events/publish/news/", "x", content_type="text/plain")).status_code == 401
        assert (await asks.get("/events/channels/news/")).status_code == 302

    async def test_a_ticket_opens_its_channels(self) -> None:
        """Without a session, and all of them where none is named."""
        user = await User.objects.acreate(username="ann", is_staff=True)
        ticket = await amake_ticket(user, ["staff", "news"])
        for asked in ("", "&channel=staff"):
            async with StreamClient(f"{STREAM}?ticket={ticket}{asked}") as client:
                assert client.status == 200
                await apublish("staff", "for staff")
                assert (await client.next(GUARD)).data == "for staff"

    async def test_a_ticket_opens_nothing_else(self, monkeypatch) -> None:
        """Nor does who is signed in besides; what is wrong with it is said."""  # promise 23
        user = await User.objects.acreate(username="ann", is_staff=True)
        headers = await sync_to_async(cookies)(user)
        ticket = await amake_ticket(user, ["news"])
        for query, reason in (
            (f"channel=staff&ticket={ticket}", FORBIDDEN),
            (f"channel=news&channel=staff&ticket={ticket}", FORBIDDEN),
            (f"channel=news&ticket={ticket}x", "This is not a ticket of this site: get a new one."),
            ("channel=news&ticket=garbage", "This is not a ticket of this site: get a new one."),
        ):
            async with StreamClient(f"{STREAM}?{query}", headers=headers) as client:
                assert (client.status, client.body.decode()) == (403, f"{reason}\n")
        later = time.time() + 301
        monkeypatch.setattr("events.tickets.time", SimpleNamespace(time=lambda: later))
        async with StreamClient(f"{STREAM}?ticket={ticket}", headers=headers) as client:
            assert (client.status, client.body) == (403, b"This ticket has expired: get a new one.\n")
        async with StreamClient(f"{STREAM}?channel=news&ticket=", headers=headers) as client:
            assert client.status == 200

    async def test_no_other_token_is_taken_from_a_url(self) -> None:
        """A session's key and a publish key stay out of logs and histories of browsers."""  # promise 23
        user = await User.objects.acreate(username="ann", is_staff=True)
        headers = await sync_to_async(cookies)(user)
        session = headers["cookie"].partition("=")[2]
        key = PublishKey(name="till", channels="*")
        token = issue(key)
        await key.asave()
        for parameter in ("ticket", "sessionid", "session", "token", "access_token", "key", "jwt"):
            for value in (session, token):
                async with StreamClient(f"{STREAM}?channel=staff&{parameter}={value}") as client:
                    assert client.status == 403

    async def test_a_tickets_channel_that_is_switched_off(self) -> None:
        """It is refused as one that there is not."""
        user = await User.objects.acreate(username="ann", is_staff=True)
        ticket = await amake_ticket(user, ["staff"])
        await Channel.objects.filter(name="staff").aupdate(is_active=False)
        async with StreamClient(f"{STREAM}?ticket={ticket}") as client:
            assert (client.status, client.body.decode()) == (403, f"{FORBIDDEN}\n")

    async def test_a_tickets_user_is_counted(self) -> None:
        """And whoever reads what anybody may, where they are signed in."""
        user = await User.objects.acreate(username="ann", is_staff=True)
        headers = await sync_to_async(cookies)(user)
        ticket = await amake_ticket(user, ["staff"])
        with override_settings(EVENTS={"MAX_STREAMS_PER_USER": 1}):
            async with StreamClient(f"{STREAM}?ticket={ticket}") as client:
                await until(lambda: client.body)
                assert dict(open_streams.by_user) == {str(user.pk): 1}
            await until(lambda: not open_streams.total)
            async with StreamClient(f"{STREAM}?channel=news", headers=headers) as client:
                await until(lambda: client.body)
                assert dict(open_streams.by_user) == {str(user.pk): 1}
            await until(lambda: not open_streams.total)
            async with StreamClient(f"{STREAM}?channel=news", headers={"cookie": "sessionid=abcdefgh"}) as client:
                await until(lambda: client.body)
                assert (open_streams.total, dict(open_streams.by_user)) == (1, {})

    @pytest.mark.parametrize("fault", ["refresh", "user_of"])
    async def test_a_database_that_cannot_say_puts_the_client_off(self, fault: str, monkeypatch, caplog) -> None:
        """A stream that ends at once: after an error a browser's EventSource would never come back."""

        def fail(*args) -> None:
            raise OperationalError("gone")

        if fault == "refresh":
            monkeypatch.setattr(ChannelTable, "_look", fail)
            channel_table.invalidate()
        else:
            monkeypatch.setattr("events.access.user_of", fail)
        async with StreamClient(f"{STREAM}?channel=staff") as client:
            assert client.status == 200
            assert client.headers["content-type"] == "text/event-stream"
            with pytest.raises(EOFError):
                await client.next(GUARD)
            assert client.retry is not None
            assert 5000 <= client.retry <= 20000
        assert "a stream is put off: channels=staff" in caplog.text

    async def test_it_streams_what_is_asked_for(self) -> None:
        """Several channels, and one under a prefix."""
        async with StreamClient(f"{STREAM}?channel=news&channel=room.1&channel=news&from=earliest") as client:
            assert client.status == 200
            assert client.headers["content-type"] == "text/event-stream"
            await apublish("news", "1")
            await apublish("room.1", "2", event="alert")
            assert [(await client.next(GUARD)).data for _ in range(2)] == ["1", "2"]

    @pytest.mark.parametrize(
        "query, reason",
        [
            ("", "Name at least one channel: ?channel=news"),
            ("channel=", "'' is not a channel name"),
            ("channel=a%20b", "'a b' is not a channel name"),
            ("channel=a%0Ab", r"'a\nb' is not a channel name"),
            ("channel=room.*", "'room.*' is not a channel name"),
            ("channel=%E9", "is not a channel name"),
            ("&".join(f"channel=c{number}" for number in range(51)), "at most 50 channels, not 51"),
            ("channel=news&envelope=2", "envelope='2' is not possible: use envelope=0 or envelope=1."),
            ("channel=news&replay=yes", "replay='yes' is not possible"),
            ("channel=news&from=yesterday", "use from=now or from=earliest."),
        ],
    )
    async def test_a_400_says_what_is_wrong(self, query: str, reason: str) -> None:
        """What, which value, what to do; as plain text that no browser takes for a page."""  # promise 16
        response = await AsyncClient().get(f"{STREAM}?{query}")
        assert response.status_code == 400
        assert reason in text(response)
        assert response["Content-Type"].startswith("text/plain")
        assert response["X-Content-Type-Options"] == "nosniff"
        assert "no-store" in response["Cache-Control"]

    async def test_a_site_with_atomic_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Django refuses async views under `ATOMIC_REQUESTS`: the app's are exempt from it."""
        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
        assert (await AsyncClient().get("/events/")).status_code == 200
        assert (await AsyncClient().get("/events/channels/news/")).status_code == 200
        async with StreamClient(f"{STREAM}?channel=news") as client:
            assert client.status == 200

    @pytest.mark.parametrize("name", ["unknown", "off", "staff"])
    async def test_all_that_cannot_be_read_answers_alike(self, name: str) -> None:
        """Unknown, switched off and forbidden: the same 403, also beside a channel that can be read."""  # promise 20
        alone = await AsyncClient().get(f"{STREAM}?channel={name}")
        beside = await AsyncClient().get(f"{STREAM}?channel=news&channel={name}")
        assert (alone.status_code, text(alone)) == (403, "There is no such channel, or you may not read it.\n")
        assert (beside.status_code, text(beside)) == (403, text(alone))

    @pytest.mark.parametrize("method", ["post", "put", "patch", "delete", "options"])
    async def test_other_methods_are_405(self, method: str) -> None:
        """With what is allowed."""  # promise 12
        response = await getattr(AsyncClient(), method)(f"{STREAM}?channel=news")
        assert response.status_code == 405
        assert response["Allow"] == "GET, HEAD"

    async def test_head_says_what_get_would(self) -> None:
        """And ends."""  # promise 12
        response = await AsyncClient().head(f"{STREAM}?channel=news")
        assert response.status_code == 200
        assert response["Content-Type"] == "text/event-stream"
        assert (await AsyncClient().head(f"{STREAM}?channel=unknown")).status_code == 403

    def test_under_wsgi_it_is_a_501(self) -> None:
        """Immediate and clear."""  # promise 11
        response = Client().get(f"{STREAM}?channel=news")
        assert response.status_code == 501
        assert b"ASGI server" in response.getvalue()

    async def test_what_is_published_once_the_headers_have_come_reaches_the_stream(self) -> None:
        """A client takes its stream for open when it sees the headers, also the first one of a process."""  # promise 3
        started = asyncio.Event()

        async def publishing(scope, receive, send) -> None:
            async def at_the_headers(message) -> None:
                if message["type"] == "http.response.start":
                    await apublish("news", "at the headers")
                    started.set()
                await send(message)

            await ASGIHandler()(scope, receive, at_the_headers)

        async with StreamClient(f"{STREAM}?channel=news", application=publishing) as client:
            await asyncio.wait_for(started.wait(), GUARD)
            assert (await client.next(GUARD)).data == "at the headers"

    async def test_a_signed_in_user_reads_what_is_theirs(self) -> None:
        """The session decides, and losing the right ends the stream within a second."""
        user = await User.objects.acreate(username="ann", is_staff=True)
        headers = await asyncio.to_thread(in_thread, lambda: cookies(user))
        async with StreamClient(f"{STREAM}?channel=staff", headers=headers) as client:
            assert client.status == 200
            await until(lambda: any(getattr(stream, "_waiter", None) for stream in get_hub().streams))
            await apublish("staff", "hello")
            assert (await client.next(GUARD)).data == "hello"
            await Channel.objects.filter(name="staff").aupdate(is_active=False)
            assert (await client.next(GUARD)).json() == {"reason": "switched-off"}

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        query=st.dictionaries(
            st.sampled_from(["channel", "last_event_id", "envelope", "from", "replay", "ticket", "x"]),
            st.text(max_size=20),
            max_size=4,
        ),
        names_a_channel=st.booleans(),
        header=st.sampled_from(
            ["Last-Event-ID", "Accept", "Accept-Encoding", "Authorization", "Content-Type", "Cookie", "Host", "Origin"]
        ),
        value=st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40),
    )
    def test_no_parameter_and_no_header_makes_a_500(
        self, query: dict[str, str], names_a_channel: bool, header: str, value: str
    ) -> None:
        """A 4xx, or a stream that begins."""  # promise 16

        async def ask() -> int:
            from urllib.parse import urlencode

            asked = {**query, "channel": "news"} if names_a_channel else query
            url = f"{STREAM}?{urlencode(asked, errors='replace')}"
            async with StreamClient(url, headers={header: value}, application=get_asgi_application()) as client:
                return client.status

        with override_settings(EVENTS={"CORS_ORIGINS": ["https://www.example.org"]}):
            assert asyncio.run(ask()) in (200, 400, 403)


def in_thread(function):
    from django.db import connections

    try:
        return function()
    finally:
        connections.close_all()


class TestPages:
    async def test_the_page_lists_what_the_visitor_may_read(self) -> None:
        """No prefix, nothing switched off, nothing forbidden; with the cursor of the moment."""
        cursor = (await apublish("news", "x")).id
        response = await AsyncClient().get("/events/")
        assert response.status_code == 200
        assert [channel["name"] for channel in response.context["channels"]] == ["news"]
        assert response.context["cursor"] == cursor
        assert response.context["stream_url"] == STREAM
        assert "no-store" in response["Cache-Control"]
        assert "What is new" in text(response)
        assert "<script>" not in text(response)
        assert "style=" not in text(response)

    async def test_the_page_of_one_channel(self) -> None:
        """Its title, and nothing of the others."""
        response = await AsyncClient().get("/events/channels/news/")
        assert response.status_code == 200
        assert [channel["name"] for channel in response.context["channels"]] == ["news"]
        assert response.context["single"]

    async def test_the_page_of_a_channel_under_a_prefix(self) -> None:
        """A name that a prefix covers has a page."""
        response = await AsyncClient().get("/events/channels/room.7/")
        assert [channel["name"] for channel in response.context["channels"]] == ["room.7"]

    @pytest.mark.parametrize("name", ["unknown", "off", "staff", "a b", "room.*"])
    async def test_a_channel_that_cannot_be_read_does_not_show_that_it_exists(self, name: str) -> None:
        """404, whatever the reason."""  # promise 20
        response = await AsyncClient().get(f"/events/channels/{name}/")
        assert response.status_code == 404

    @pytest.mark.parametrize("url", ["/events/", "/events/channels/news/"])
    async def test_pages_are_for_reading(self, url: str) -> None:
        """POST is 405, HEAD is fine."""
        assert (await AsyncClient().post(url)).status_code == 405
        assert (await AsyncClient().head(url)).status_code == 200

    async def test_who_may_read_nothing_is_told_what_to_do(self) -> None:
        """Sign in, where there is somewhere to; ask, or open a channel, where one is signed in."""
        await Channel.objects.filter(name="news").aupdate(access="staff")
        response = await AsyncClient().get("/events/")
        assert response.context["channels"] == []
        assert response.context["login_url"] == "/admin/login/"
        assert "/admin/login/?next=%2Fevents%2F" in text(response)
        client = AsyncClient()
        await client.aforce_login(await User.objects.acreate(username="bob"))
        response = await client.get("/events/")
        assert (response.context["login_url"], response.context["admin_url"]) == (None, None)
        await Channel.objects.all().adelete()
        await client.aforce_login(await User.objects.acreate(username="eve", is_staff=True))
        response = await client.get("/events/")
        assert response.context["admin_url"] == "/admin/events/channel/"

    async def test_a_site_without_an_admin_and_a_login_page(self) -> None:
        """There is nowhere to send anybody, and that is no error."""
        client = AsyncClient()
        await client.aforce_login(await User.objects.acreate(username="eve", is_staff=True))
        with override_settings(ROOT_URLCONF="tests.test_views", LOGIN_URL="nowhere"):
            response = await AsyncClient().get("/events/")
            assert response.context["login_url"] is None
            response = await client.get("/events/")
            assert response.context["admin_url"] is None

    @pytest.mark.parametrize("login_url, expected", [("/accounts/login/", "/admin/login/"), ("/in/", "/in/")])
    async def test_where_to_sign_in(self, login_url: str, expected: str) -> None:
        """The site's own page, or the admin's where the site has set none."""
        with override_settings(LOGIN_URL=login_url):
            response = await AsyncClient().get("/events/")
        assert response.context["login_url"] == expected

    async def test_a_log_that_cannot_be_read_does_not_take_the_page_down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The page is shown; its stream waits for the log."""

        async def gone():
            raise BackendUnavailable("gone")

        monkeypatch.setattr(event_backends["default"], "ahead", gone)
        response = await AsyncClient().get("/events/")
        assert response.status_code == 200
        assert response.context["cursor"] == ""
