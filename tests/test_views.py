from __future__ import annotations

import asyncio
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.core.handlers.asgi import ASGIHandler
from django.db import OperationalError, connections
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path
from django.utils.translation import override
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events import amake_ticket, apublish, control, publish
from events.access import visitor_tag
from events.asgi import get_asgi_application
from events.backends.base import NewEvent
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
            ("channel=news&follow=no", "follow='no' is not possible: use follow=0 or follow=1."),
            ("channel=news&visitor=me", "visitor='me' is not possible: use visitor=0 or visitor=1."),
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
            st.sampled_from(
                ["channel", "last_event_id", "envelope", "follow", "from", "replay", "ticket", "visitor", "x"]
            ),
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


@pytest.fixture(params=[ASGIHandler, get_asgi_application])
def application(request: pytest.FixtureRequest) -> Any:
    """A site whose streams are in one lane, or in the other."""
    return request.param()


class TestFinite:
    """`follow=0`: what there is, and the end."""

    async def test_it_ends_where_its_header_says(self, application: Any) -> None:
        """Also the first one of a process, which waits for the log before its headers leave."""
        cursors = [str((await apublish("news", str(number))).id) for number in range(3)]
        for query, expected in (
            ("", []),
            ("&from=earliest", ["0", "1", "2"]),
            (f"&last_event_id={cursors[0]}", ["1", "2"]),
        ):
            async with StreamClient(f"{STREAM}?channel=news&follow=0{query}", application=application) as client:
                assert client.headers["events-cursor"] == cursors[-1]
                *events, last = [event async for event in client]
            assert [event.data for event in events] == expected
            assert (last.event, last.json()) == ("stream-end", {"cursor": cursors[-1]})
        await until(lambda: not open_streams.total)

    async def test_what_its_process_has_not_heard_of_is_in_it(self, application: Any) -> None:
        """It ends where the log is, and not where the hub is that follows it: who has published finds that."""
        async with StreamClient(f"{STREAM}?channel=news", application=application):
            hub = get_hub()
            await until(hub.now)
            before = hub.head
            # What follows the log falls asleep.
            monkeyed = hub._deliver
            hub._deliver = never_delivers  # type: ignore[method-assign]
            cursors = [str((await apublish("news", str(number))).id) for number in range(3)]
            url = f"{STREAM}?channel=news&follow=0"
            async with StreamClient(url, headers={"Last-Event-ID": cursors[0]}, application=application) as client:
                assert client.headers["events-cursor"] == cursors[-1]
                assert [event.data async for event in client][:-1] == ["1", "2"]
            assert hub.head == before
            hub._deliver = monkeyed  # type: ignore[method-assign]

    async def test_a_log_that_cannot_be_asked_puts_the_client_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No header promises anything, and nothing says that this was all."""

        async def gone() -> None:
            raise BackendUnavailable("gone")

        monkeypatch.setattr(event_backends["default"], "ahead", gone)
        async with StreamClient(f"{STREAM}?channel=news&follow=0&from=earliest") as client:
            assert client.status == 200
            assert [event async for event in client] == []
            assert "events-cursor" not in client.headers
            assert (client.retry or 0) >= 5000

    async def test_a_stream_that_goes_on_says_where_it_begins(self) -> None:
        """So its client has a cursor before the first event."""
        cursor = (await apublish("news", "x")).id
        async with StreamClient(f"{STREAM}?channel=news") as client:
            assert client.headers["events-cursor"] == cursor

    async def test_nobody_else_hears_where_the_log_is(self) -> None:
        """A refusal has no such header."""
        response = await AsyncClient().get(f"{STREAM}?channel=staff&follow=0&visitor=1")
        assert response.status_code == 403
        assert not {"Events-Cursor", "Events-Visitor"} & set(response.headers)

    async def test_head_says_where_it_would_end(self) -> None:
        """The first request of a process, too."""
        cursor = (await apublish("news", "x")).id
        response = await AsyncClient().head(f"{STREAM}?channel=news&follow=0")
        assert (response.status_code, response["Events-Cursor"]) == (200, cursor)
        assert "Events-Cursor" not in await AsyncClient().head(f"{STREAM}?channel=news")

    async def test_it_is_a_stream_like_any_other_for_limits_and_rights(self, application: Any) -> None:
        """Put off at a limit, and ended where a right has ended, it does not say that this was all."""
        await apublish("news", "x")
        with override_settings(EVENTS={"MAX_STREAMS": 1}):
            async with StreamClient(f"{STREAM}?channel=news", application=application) as client:
                await until(lambda: client.body)
                url = f"{STREAM}?channel=news&follow=0&from=earliest"
                async with StreamClient(url, application=application) as finite:
                    assert [event async for event in finite] == []
                    assert (finite.retry or 0) >= 5000
        user = await User.objects.acreate(username="ann", is_staff=True)
        ticket = await amake_ticket(user, ["staff"])
        await User.objects.aupdate(is_staff=False)
        async with StreamClient(f"{STREAM}?ticket={ticket}&follow=0", application=application) as finite:
            assert [event.event async for event in finite] == ["stream-closed"]

    def test_under_wsgi_nothing_is_promised(self) -> None:
        """A 501, whatever is asked for."""
        response = Client().get(f"{STREAM}?channel=news&follow=0&visitor=1")
        assert response.status_code == 501
        assert not {"Events-Cursor", "Events-Visitor"} & set(response.headers)


async def never_delivers(batch: Any) -> None:
    await asyncio.Event().wait()


async def visitor_of(query: str, application: Any = None, **headers: str) -> str | None:
    """What a stream's answer calls its visitor."""
    async with StreamClient(f"{STREAM}?visitor=1&{query}", headers=headers, application=application) as client:
        assert client.status == 200
        # Who is told depends on the cookie, also where nobody looked into the session.
        assert ("Cookie" in client.headers.get("vary", "")) is ("events-visitor" in client.headers)
        return client.headers.get("events-visitor")


def everybody(user: Any, channel: str) -> bool:
    return True


class TokenUser:
    """A user that no database knows, as some kinds of tokens make them."""

    pk = None
    is_active = is_authenticated = is_staff = True


class TestVisitor:
    """`visitor=1`: whether two streams are one user's, told to who may know it anyway."""

    async def test_all_sessions_of_a_user_are_one_visitor(self, application: Any) -> None:
        """Whatever the channels, and by ticket; another user is another one, and who is not signed in is nobody."""
        users = [await User.objects.acreate(username=name, is_staff=True) for name in ("ann", "bob")]
        found = []
        for user in users:
            sessions = [await sync_to_async(cookies)(user) for _ in range(2)]
            assert sessions[0] != sessions[1]
            ticket = await amake_ticket(user, ["staff", "news"])
            told = [
                await visitor_of(f"channel={name}", application, **sent)
                for sent in sessions
                for name in ("staff", "news")
            ]
            told += [await visitor_of(f"ticket={ticket}", application)]
            # A ticket decides alone.
            told += [await visitor_of(f"ticket={ticket}", application, **await sync_to_async(cookies)(users[0]))]
            assert len(set(told)) == 1
            found += told[:1]
        nobody = await amake_ticket(AnonymousUser(), ["news"])
        anonymous = [
            await visitor_of("channel=news", application),
            await visitor_of("channel=news", application, cookie="sessionid=abcdefgh"),
            await visitor_of(f"ticket={nobody}", application, **await sync_to_async(cookies)(users[0])),
        ]
        assert len(set(anonymous)) == 1
        found += anonymous[:1]
        assert len(set(found)) == 3
        assert all(re.fullmatch("[0-9a-f]{32}", tag or "") for tag in found)

    async def test_a_policy_that_lets_in_who_is_nobody(self) -> None:
        """They are nobody there, too."""
        await Channel.objects.filter(name="staff").aupdate(access="policy", policy=f"{__name__}.everybody")
        assert await visitor_of("channel=staff") == await visitor_of("channel=news") == visitor_tag(None)

    async def test_it_is_told_to_who_asks_for_it(self) -> None:
        """And to nobody else; a HEAD may ask."""
        for query in ("", "&visitor=0", "&visitor="):
            async with StreamClient(f"{STREAM}?channel=news{query}") as client:
                assert "events-visitor" not in client.headers
        assert (await AsyncClient().head(f"{STREAM}?channel=news&visitor=1"))["Events-Visitor"] == visitor_tag(None)

    async def test_who_is_known_by_something_else_than_a_session(self, monkeypatch) -> None:
        """A token in a header: the user is looked for where nobody had to, without any session."""
        user = await User.objects.acreate(username="ann")
        monkeypatch.setattr("events.access.user_of", lambda request: user)
        assert await visitor_of("channel=news") == visitor_tag(str(user.pk))
        with override_settings(EVENTS={"MAX_STREAMS_PER_USER": 1}):
            async with StreamClient(f"{STREAM}?channel=news") as client:
                await until(lambda: client.body)
                assert dict(open_streams.by_user) == {str(user.pk): 1}

    @pytest.mark.parametrize("channel", ["news", "staff"])
    async def test_a_user_without_an_id_is_not_told_from_others(self, channel: str, monkeypatch) -> None:
        """They are not nobody, either: no header, so that nothing is shared."""
        monkeypatch.setattr("events.access.user_of", lambda request: TokenUser())
        assert await visitor_of(f"channel={channel}") is None
        with override_settings(EVENTS={"MAX_STREAMS_PER_USER": 1}):
            async with StreamClient(f"{STREAM}?channel={channel}") as client:
                await until(lambda: client.body)
                assert (open_streams.total, dict(open_streams.by_user)) == (1, {})

    async def test_where_nobody_can_say_who_it_is(self, monkeypatch, caplog) -> None:
        """A public channel is streamed all the same, without the header."""

        def fail(request) -> None:
            raise OperationalError("gone")

        monkeypatch.setattr("events.access.user_of", fail)
        assert await visitor_of("channel=news") is None
        assert "nobody can say whose stream it is, which is therefore not shared: error=gone" in caplog.text


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

    @pytest.mark.parametrize(
        "interval, language, said",
        [
            (0.5, "en", "every 0.5 s"),
            (0.5, "de", "every 0,5 s"),
            (1.0, "en", "every 1 s"),
            (2.25, "en", "every 2.25 s"),
            (30.0, "en", "every 30 s"),
            (1000.0, "en", "every 1000 s"),
            (60.0, "en", "every minute"),
            (3600.0, "en", "every hour"),
            (86400.0, "en", "every day"),
        ],
    )
    async def test_the_page_says_how_often_there_is_a_message(self, interval: float, language: str, said: str) -> None:
        """Without noughts that say nothing, and as the language writes numbers."""
        await Channel.objects.filter(name="news").aupdate(source="clock", interval=interval)
        with override(language):
            found = text(await AsyncClient().get("/events/channels/news/"))
        assert f"clock, {said} </p>" in " ".join(found.split())

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

        def gone():
            raise BackendUnavailable("gone")

        monkeypatch.setattr(event_backends["default"], "head", gone)
        response = await AsyncClient().get("/events/")
        assert response.status_code == 200
        assert (response.context["cursor"], response.context["entries"]) == ("", [])

    async def test_the_newest_events_are_there_before_a_script_runs(self) -> None:
        """Of what the page follows when it opens, newest first, and the cursor that the stream goes on from."""
        # promise 3
        await Channel.objects.acreate(name="also", title="Also", access="public")
        for channel in ("news", "also", "staff", "room.7"):
            await apublish(channel, f"of {channel}")
        cursor = (await apublish("news", "newer")).id
        for url, expected in (
            ("/events/", ["newer", "of also", "of news"]),
            ("/events/channels/news/", ["newer", "of news"]),
            ("/events/channels/room.7/", ["of room.7"]),
        ):
            response = await AsyncClient().get(url)
            assert [entry.text for entry in response.context["entries"]] == expected
            assert response.context["cursor"] == cursor
            assert all(f">{entry}<" in text(response) for entry in expected)
            assert "of staff" not in text(response)

    async def test_events_of_channels_that_the_page_does_not_follow_are_not_there(self) -> None:
        """It opens with as many channels as one stream may follow, in the order in which it lists them."""
        await Channel.objects.acreate(name="also", title="Also", access="public")
        await apublish("also", "of also")
        await apublish("news", "of news")
        with override_settings(EVENTS={"MAX_CHANNELS_PER_STREAM": 1}):
            response = await AsyncClient().get("/events/")
        assert [channel["name"] for channel in response.context["channels"]] == ["also", "news"]
        assert [entry.text for entry in response.context["entries"]] == ["of also"]

    async def test_a_page_has_at_most_fifty_events(self) -> None:
        """The rest is in the history."""
        await sync_to_async(event_backends["default"].append)(
            [NewEvent(channel="news", data=str(number)) for number in range(60)]
        )
        response = await AsyncClient().get("/events/channels/news/")
        assert [entry.text for entry in response.context["entries"]] == [str(number) for number in range(59, 9, -1)]

    @pytest.mark.parametrize("url, for_anybody, for_users", [("/events/", 2, 4), ("/events/channels/news/", 2, 4)])
    def test_what_a_page_asks_of_the_database(
        self,
        url: str,
        for_anybody: int,
        for_users: int,
        django_assert_num_queries,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Head and events, and who it is; the channels are known while a hub runs, or with one query more."""
        monkeypatch.setattr("events.channels.MAX_AGE", GUARD)
        publish("news", "x")
        client = Client()
        channel_table.refresh()
        with django_assert_num_queries(for_anybody):
            assert client.get(url).status_code == 200
        client.force_login(User.objects.create_user("ann", is_staff=True))
        channel_table.refresh()
        with django_assert_num_queries(for_users):
            assert client.get(url).status_code == 200
