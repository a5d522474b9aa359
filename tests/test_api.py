"""What programs ask for over HTTP: to publish, and to read what is kept."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import OperationalError, connections
from django.http import HttpRequest, UnreadablePostError
from django.test import AsyncClient, Client, RequestFactory
from django.utils import timezone
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from events import api, keys, publishing, wire
from events.asgi import get_asgi_application
from events.backends.base import Retention
from events.channels import ChannelTable, channel_table
from events.exceptions import BackendUnavailable
from events.models import Channel, Event, PublishKey
from events.registry import event_backends
from events.testing import StreamClient
from events.wire import Cursor

from .connections import scope_of
from .publishers import MAKE_KEY, Sender, make_key, publish
from .servers import Servers
from .waiting import GUARD

if TYPE_CHECKING:
    from django.http import HttpResponse

pytestmark = pytest.mark.django_db(transaction=True)

NEWS = "/events/publish/news/"
HISTORY = "/events/history/news/"
MEMORY: dict[str, Any] = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}


@pytest.fixture(autouse=True)
def _channels(transactional_db) -> None:
    cache.clear()
    Channel.objects.create(name="news", access="public", history_events=None)
    Channel.objects.create(name="off", access="public", is_active=False)
    Channel.objects.create(name="staff", access="staff")
    Channel.objects.create(name="room.*", access="public")


@pytest.fixture
def token(transactional_db) -> str:
    """A key for all channels."""
    return make_key(per_minute=None)


def read(url: str = HISTORY, **parameters: Any) -> Any:
    """A page of a history."""
    response = Client().get(url, parameters)
    assert response.status_code == 200, response.content
    return response.json()


def published() -> list[tuple[str, str, str, bool]]:
    """All events of the log."""
    return list(Event.objects.order_by("position").values_list("channel", "type", "data", "is_json"))


def check_refusal(response: Any, status: int, part: str, field: str | None = None) -> None:
    """The answer is that error, as every error is answered, and nothing was published."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/json"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in response["Cache-Control"]
    said = response.json()
    assert part in said.pop("error")
    assert said == ({} if field is None else {"field": field})
    assert published() == []


class TestPublish:
    def test_text_is_published_as_it_is(self, token) -> None:
        """Every type of text, and a body that says nothing of its type."""
        for kind in ("text/plain", "text/markdown; charset=UTF-8", "", 'TEXT/plain;charset="utf-8"'):
            assert publish(token, "Café\n", Content_Type=kind).status_code == 201
        assert published() == [("news", "message", "Café\n", False)] * 4

    def test_json_says_data_and_perhaps_type_and_key(self, token) -> None:
        """Text in `data` is text, anything else is JSON; null is as good as leaving it out."""
        for body in (
            {"data": "Hello", "event": "greeting"},
            {"data": {"id": 7, "state": "shipped"}, "event": "order", "key": "order-7"},
            {"data": None, "event": None, "key": None},
        ):
            assert publish(token, body).status_code == 201
        assert publish(token, {"data": 1}, Content_Type="application/vnd.shop+json").status_code == 201
        assert published() == [
            ("news", "greeting", "Hello", False),
            ("news", "order", '{"id":7,"state":"shipped"}', True),
            ("news", "message", "null", True),
            ("news", "message", "1", True),
        ]

    def test_the_answer_is_the_events_id(self, token) -> None:
        """A cursor, as a stream has it; and nobody keeps the answer."""
        response = publish(token)
        assert (response.status_code, response["Content-Type"]) == (201, "application/json")
        assert response.json() == {"id": str(event_backends["default"].head())}
        assert "no-store" in response["Cache-Control"]

    async def test_it_reaches_a_stream(self, token) -> None:
        """Through the one way in, under ASGI."""
        async with StreamClient("/events/stream/?channel=news") as stream:
            response = await AsyncClient().post(
                NEWS, {"data": "hello"}, content_type="application/json", headers={"Authorization": f"Bearer {token}"}
            )
            event = await stream.next(GUARD)
            assert (event.data, event.id) == ("hello", response.json()["id"])

    def test_a_site_with_atomic_requests(self, token, monkeypatch) -> None:
        """The event is committed, and has its id, when the answer leaves."""
        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
        assert publish(token).json()["id"] == str(event_backends["default"].head())
        assert read()["cursor"] == str(event_backends["default"].head())

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
    def test_other_methods_are_405(self, method) -> None:
        """With what is allowed, whoever asks."""
        response = Client().generic(method, NEWS)
        assert (response.status_code, response["Allow"]) == (405, "POST")
        assert method == "HEAD" or "POST" in response.json()["error"]

    def test_a_key_notes_its_use(self, token) -> None:
        """Once something was published, and not by what was refused."""
        key = PublishKey.objects.get()
        publish(token, {"event": "x"})
        key.refresh_from_db()
        assert key.last_used_at is None
        publish(token)
        key.refresh_from_db()
        assert key.last_used_at is not None


class TestKeys:
    @pytest.mark.parametrize("header", ["Bearer", "bearer ", "Bearer lek_unknown", "Bearer é\x00", "BEARER a b"])
    def test_an_unknown_key_is_a_401(self, header) -> None:
        """Whatever it is; the answer says what is asked for."""
        response = publish(None, Authorization=header)
        check_refusal(response, 401, "No such publish key")
        assert response["WWW-Authenticate"] == 'Bearer realm="events"'

    @pytest.mark.parametrize("fields", [{"is_active": False}, {"expires_at": timezone.now() - timedelta(seconds=1)}])
    def test_one_that_is_over_answers_alike(self, fields) -> None:
        """Switched off or expired."""
        check_refusal(publish(make_key(**fields)), 401, "No such publish key")

    @pytest.mark.parametrize(
        "url", ["/events/publish/off/", "/events/publish/unknown/", "/events/publish/staff/", NEWS]
    )
    def test_one_for_other_channels_learns_nothing(self, url) -> None:
        """The same 403 for channels that are there and others."""
        check_refusal(publish(make_key("room.* till"), url=url), 403, "does not cover the channel")

    def test_one_for_a_prefix(self) -> None:
        """Covers the channels under it."""
        assert publish(make_key("room.*"), channel="room.12").status_code == 201

    @pytest.mark.parametrize("name, why", [("off", "switched off"), ("unknown", "no channel is called 'unknown'")])
    def test_a_channel_that_is_not_there_is_a_404(self, token, name, why) -> None:
        """For who may publish to it: with what to do."""
        check_refusal(publish(token, channel=name), 404, why)

    @pytest.mark.parametrize("name", ["a b", "a%00", "%C3%A9", "room.*", "%0A", "x" * 101, "%FF", "%ED%A0%80"])
    def test_a_name_that_cannot_be_one(self, token, name) -> None:
        """Is said to be none; never a 500."""  # promise 16
        check_refusal(publish(token, channel=name), 422, "is not a channel name", "channel")

    def test_who_sends_too_much_is_told_to_wait(self) -> None:
        """For whole seconds, at least one."""
        token = make_key(per_minute=2)
        assert [publish(token).status_code for _ in range(2)] == [201, 201]
        response = publish(token)
        assert response.status_code == 429
        assert "2 requests in a minute" in response.json()["error"]
        assert 1 <= int(response["Retry-After"]) <= 60

    def test_no_fallback_to_the_session(self, admin_client) -> None:
        """A key that is wrong is wrong, whoever is signed in."""
        response = admin_client.post(NEWS, "x", content_type="text/plain", headers={"Authorization": "Bearer lek_x"})
        check_refusal(response, 401, "No such publish key")

    def test_a_key_needs_no_csrf_token(self, token) -> None:
        """No browser sends it by itself."""
        client = Client(enforce_csrf_checks=True)
        headers = {"Authorization": f"bearer  {token}", "Origin": "https://elsewhere.example"}
        assert client.post(NEWS, "x", content_type="text/plain", headers=headers).status_code == 201


class TestSessions:
    @pytest.fixture
    def publisher(self, make_user):
        """A user with the permission."""
        return make_user("ann", "publish_to_channel")

    @staticmethod
    def client(user: User | None, **kwargs: Any) -> Client:
        client = Client(**kwargs)
        if user is not None:
            client.force_login(user)
        return client

    def send(self, client: Client, **headers: str) -> HttpResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.post(NEWS, "x", content_type="text/plain", headers=sent)  # type: ignore[return-value]

    def test_the_permission_lets_in(self, publisher) -> None:
        """Also beside the password that a proxy asks for."""
        assert self.send(self.client(publisher)).status_code == 201
        assert self.send(self.client(publisher), Authorization="Basic YTpi").status_code == 201

    def test_nobody_is_a_401(self, settings) -> None:
        """Nor is there anybody on a site without users."""
        response = self.send(self.client(None))
        check_refusal(response, 401, "Sign in, or send a publish key")
        assert response["WWW-Authenticate"] == 'Bearer realm="events"'
        settings.MIDDLEWARE = []
        check_refusal(self.send(self.client(None)), 401, "Sign in")

    def test_a_user_who_is_deactivated_is_a_401(self, publisher, settings) -> None:
        """Also where the site's own backend lets them in."""
        settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.AllowAllUsersModelBackend"]
        client = self.client(publisher)
        User.objects.update(is_active=False, is_superuser=True)
        check_refusal(self.send(client), 401, "Sign in")

    def test_who_lacks_the_permission_is_a_403(self, make_user) -> None:
        """Staff with other rights, too."""
        client = self.client(make_user("bob", "change_channel", is_staff=True))
        check_refusal(self.send(client), 403, "Can publish to channels")

    def test_a_user_model_without_permissions(self) -> None:
        """Lets nobody in."""

        class Plain:
            is_authenticated = is_active = True

        request = RequestFactory().post(NEWS, "x", content_type="text/plain")
        request.user = Plain()  # type: ignore[assignment]
        request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
        check_refusal(_with_json(api.publish(request, "news")), 403, "Can publish to channels")

    @pytest.mark.parametrize("has_middleware", [True, False])
    def test_the_csrf_token_is_asked_for(self, publisher, settings, has_middleware) -> None:
        """Also where the site has no middleware for it. The answer says what is missing."""
        if not has_middleware:
            settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
        client = self.client(publisher, enforce_csrf_checks=True)
        check_refusal(self.send(client), 403, "CSRF cookie not set.")
        token = "a" * 32
        client.cookies[settings.CSRF_COOKIE_NAME] = token
        check_refusal(self.send(client), 403, "CSRF token missing.")
        check_refusal(self.send(client, X_CSRFToken="b" * 32), 403, "incorrect")
        check_refusal(
            self.send(client, X_CSRFToken=token, Origin="https://evil.example"), 403, "Origin checking failed"
        )
        assert self.send(client, X_CSRFToken=token, Origin="http://testserver").status_code == 201

    def test_the_token_is_not_looked_for_in_a_body(self, publisher, settings) -> None:
        """A form is no body that can be published: it is not read."""
        settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
        client = self.client(publisher, enforce_csrf_checks=True)
        client.cookies[settings.CSRF_COOKIE_NAME] = "a" * 32
        response = client.post(NEWS, {"csrfmiddlewaretoken": "a" * 32, "data": "x" * 100})
        check_refusal(response, 403, "CSRF token missing.")
        response = client.post(NEWS, {"data": "x" * 100}, headers={"X-CSRFToken": "a" * 32})
        check_refusal(response, 415, "cannot be published")


def _with_json(response: HttpResponse) -> Any:
    response.json = lambda: json.loads(response.content)  # type: ignore[attr-defined]
    return response


class TestBodies:
    @pytest.mark.parametrize(
        "kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "image/png", "text", "?;?"]
    )
    def test_any_other_type_is_a_415(self, token, kind) -> None:
        """Also what curl says by itself; the answer has what to write instead."""
        response = publish(token, "data=hello", Content_Type=kind)
        check_refusal(response, 415, "-H 'Content-Type: text/plain'")
        assert response["Accept"] == "application/json, text/plain"

    @pytest.mark.parametrize("kind", ["text/plain; charset=latin-1", "application/json; charset=utf-16"])
    def test_another_charset_is_a_415(self, token, kind) -> None:
        """What is published is UTF-8."""
        check_refusal(publish(token, "x", Content_Type=kind), 415, "send UTF-8")

    def test_a_compressed_body_is_a_415(self, token) -> None:
        """It would be published as it is."""
        response = publish(token, "x", Content_Encoding="gzip")
        check_refusal(response, 415, "Content-Encoding 'gzip' is not possible")
        assert response["Accept-Encoding"] == "identity"
        assert publish(token, "x", Content_Encoding="identity").status_code == 201

    def test_what_is_not_utf8_is_a_400(self, token) -> None:
        """With the place."""
        check_refusal(publish(token, b"caf\xe9"), 400, "not UTF-8: there is a byte 0xe9 at 3")

    @pytest.mark.parametrize("char", ["\x01", "é", "😀", "a"])
    def test_the_largest_event_has_room_however_it_is_escaped(self, token, settings, char) -> None:
        """A limit of the site's own for forms, and a small one, does not count."""
        settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
        settings.EVENTS = {"MAX_EVENT_BYTES": 4000}
        data = char * (4000 // len(char.encode()))
        worst = "".join(f"\\u{unit:04x}" for unit in memoryview(data.encode("utf-16-le")).cast("H"))
        kind = "".join(f"\\u{ord(letter):04x}" for letter in "t" * wire.MAX_TYPE)
        key = "\\ud83d\\ude00" * wire.MAX_KEY
        body = f'{{"data": "{worst}", "event": "{kind}", "key": "{key}"}}'
        assert publish(token, body, Content_Type="application/json").status_code == 201
        assert publish(token, data).status_code == 201
        assert {event[2] for event in published()} == {data}

    def test_one_byte_more_is_a_413(self, token, settings) -> None:
        """Of data; of a body beyond what an event can take; by what Content-Length says, without a look at the body."""
        settings.EVENTS = {"MAX_EVENT_BYTES": 10}
        check_refusal(publish(token, "x" * 11), 413, "data has 11 bytes, more than EVENTS['MAX_EVENT_BYTES'] = 10")
        check_refusal(publish(token, "x" * 4157), 413, "The body has more than 4156 bytes")
        for length in ("4157", "9" * 5000):
            check_refusal(self.sent_with_length(token, length), 413, "The body has more than 4156 bytes")

    @pytest.mark.parametrize("length", ["-1", "1,1", "x", "٣"])
    def test_a_length_that_is_none_is_a_400(self, token, length) -> None:
        """Servers let none through."""
        check_refusal(self.sent_with_length(token, length), 400, "Content-Length is a number of bytes")

    def test_a_body_that_ends_early_is_a_400(self, token) -> None:
        """Half an event is none."""
        headers = {"Authorization": f"Bearer {token}"}
        request = RequestFactory().post(NEWS, "hello", content_type="text/plain", headers=headers)
        request.META["CONTENT_LENGTH"] = "6"
        check_refusal(_with_json(api.publish(request, "news")), 400, "ended after 5 of 6 bytes")

    def test_a_client_that_goes_is_a_400(self, token, monkeypatch) -> None:
        """For the site's log."""

        def fail(*args) -> None:
            raise UnreadablePostError

        monkeypatch.setattr(HttpRequest, "read", fail)
        check_refusal(publish(token), 400, "ended before it was complete")

    def test_under_wsgi_a_length_is_needed(self, token) -> None:
        """Django would read nothing of a body in chunks, and an empty event would be published."""
        check_refusal(self.sent_with_length(token, ""), 411, "Content-Length")

    async def test_under_asgi_none_is_needed(self, token) -> None:
        """Servers say where a body ends."""
        headers = {"Authorization": f"Bearer {token}"}
        assert (await AsyncClient().post(NEWS, content_type="", headers=headers)).status_code == 201

    @staticmethod
    def sent_with_length(token: str, length: str) -> Any:
        """A body of five bytes that is said to have another length."""
        headers = {"Authorization": f"Bearer {token}"}
        return Client().generic("POST", NEWS, "hello", content_type="", headers=headers, CONTENT_LENGTH=length)


class TestJson:
    @pytest.mark.parametrize(
        "body, part",
        [
            (" ", "line 1 column 2"),
            ('{"data": ', "line 1 column 10"),
            ("{'data': 1}", "line 1 column 2"),
            ('\ufeff{"data": 1}', "BOM"),
            ('{"data": NaN}', "NaN is no number"),
            ('{"data": -Infinity}', "-Infinity is no number"),
            ('{"data": 1, "data": 2}', "an object has 'data' twice"),
            ('{"data": {"\\ud800": 1, "\\ud800": 2}}', r"an object has '\ud800' twice"),
            ('{"data": ' + "9" * 5000 + "}", "Exceeds the limit"),
            ('{"data": ' + "[" * 200_000, "nested too deeply"),
        ],
    )
    def test_what_is_no_json_is_a_400(self, token, body, part) -> None:
        """With what is wrong, and where."""
        check_refusal(publish(token, body, Content_Type="application/json"), 400, part)

    @pytest.mark.parametrize(
        "body, field, part",
        [
            ([1], "data", 'an object that has "data"'),
            ({}, "data", 'an object that has "data"'),
            ({"data": 1, "dat": 2}, "dat", "'dat' means nothing here: use data, event, key."),
            ({"data": 1, "": 2}, "", "'' means nothing here"),
            ({"data": 1, "x" * 500: 2}, "x" * 100, "(502 characters)"),
            ({"data": 1, "event": 1}, "event", "text, not int"),
            ({"data": 1, "event": ""}, "event", "not empty"),
            ({"data": 1, "event": "a\nb"}, "event", "CR, LF or NUL"),
            ({"data": 1, "event": "x" * 101}, "event", "at most 100 characters"),
            ({"data": 1, "event": "\ud800"}, "event", "lone surrogate"),
            ({"data": 1, "key": ["k"]}, "key", "text, not list"),
            ({"data": 1, "key": ""}, "key", "not empty"),
            ({"data": 1, "key": "x" * 201}, "key", "at most 200 characters"),
            ({"data": "\udc00"}, "data", "lone surrogate"),
            ({"data": {"\ud800": 1}}, "data", "lone surrogate"),
        ],
    )
    def test_a_member_that_cannot_be_is_a_422(self, token, body, field, part) -> None:
        """And is named."""
        check_refusal(publish(token, body), 422, part, field)

    def test_a_number_that_no_float_can_hold_is_a_422(self, token) -> None:
        """Python makes infinity of it."""
        response = publish(token, '{"data": 1e999}', Content_Type="application/json")
        check_refusal(response, 422, "cannot be written as JSON", "data")


class TestIdempotencyKey:
    def test_a_repeat_gets_the_first_id(self, token) -> None:
        """In quotes, as the draft has it, or without; in the header or in the body."""
        first = publish(token, "one", Idempotency_Key='"k-1"').json()["id"]
        for repeat in (
            publish(token, "two", Idempotency_Key="k-1"),
            publish(token, {"data": "three", "key": "k-1"}),
            publish(token, {"data": "four", "key": "k-1"}, Idempotency_Key="k-1"),
        ):
            assert (repeat.status_code, repeat.json()["id"]) == (201, first)
        assert publish(token, "five", Idempotency_Key="k-2").json()["id"] != first
        assert [data for _, _, data, _ in published()] == ["one", "five"]

    def test_a_backslash_protects_a_quote(self, token) -> None:
        r"""`"a\"\\b"` is `a"\b`."""
        first = publish(token, "one", Idempotency_Key=r'"a\"\\b"').json()["id"]
        assert publish(token, {"data": "two", "key": 'a"\\b'}).json()["id"] == first

    @pytest.mark.parametrize(
        "header", ["", '"', '"a', 'a"b', "a,b", "a b", "é", '"é"', '"a\\b"', "a\tb", '""', '"a";b']
    )
    def test_one_that_cannot_be_is_a_422(self, token, header) -> None:
        """Also an empty one."""
        response = publish(token, "x", Idempotency_Key=header)
        check_refusal(response, 422, "", "key")

    def test_two_that_differ_are_a_422(self, token) -> None:
        """Which one would count?"""
        response = publish(token, {"data": 1, "key": "a"}, Idempotency_Key="b")
        check_refusal(response, 422, "Idempotency-Key says 'b', and the body 'a'", "key")
        check_refusal(publish(token, {"data": 1, "key": 7}, Idempotency_Key="7"), 422, "the body 7", "key")


class TestUnavailable:
    @staticmethod
    def check(response: Any, part: str, caplog: pytest.LogCaptureFixture) -> None:
        assert response.status_code == 503
        assert response["Retry-After"] == str(api.RETRY_AFTER)
        error = response.json()["error"]
        assert part in error
        # What a driver says has names and addresses: it is in the log alone.
        assert "10.0.0.1" not in error
        assert "10.0.0.1" in caplog.text

    @pytest.mark.parametrize("what", ["nothing was published", "it is not known whether the events are published"])
    def test_a_log_that_cannot_be_reached_is_a_503(self, token, what, monkeypatch, caplog) -> None:
        """The answer says whether nothing was published, or nobody knows."""

        def fail(*args) -> None:
            raise BackendUnavailable(f"{what}: no server at 10.0.0.1")

        monkeypatch.setattr(type(event_backends["default"]), "append", fail)
        self.check(publish(token), what, caplog)
        assert PublishKey.objects.get().last_used_at is None

    def test_a_database_without_keys_is_a_503(self, token, monkeypatch, caplog) -> None:
        """Nobody knows who asks."""

        def fail(*args) -> None:
            raise OperationalError("no server at 10.0.0.1")

        monkeypatch.setattr(keys, "find", fail)
        self.check(publish(token), "Nothing was published", caplog)

    def test_a_database_without_users_is_a_503(self, monkeypatch, caplog) -> None:
        """Nor who is signed in."""

        def fail(*args) -> None:
            raise OperationalError("no server at 10.0.0.1")

        monkeypatch.setattr("django.contrib.auth.middleware.get_user", fail)
        self.check(publish(None), "Nothing was published", caplog)

    @pytest.mark.parametrize("fault", ["channels", "log"])
    def test_a_history_that_cannot_be_read_is_a_503(self, fault, monkeypatch, caplog) -> None:
        """Neither the channels nor the log."""

        def fail(*args) -> None:
            raise (BackendUnavailable if fault == "log" else OperationalError)("no server at 10.0.0.1")

        if fault == "log":
            monkeypatch.setattr(type(event_backends["default"]), "read", fail)
        else:
            monkeypatch.setattr(ChannelTable, "_look", fail)
            channel_table.invalidate()
        self.check(Client().get(HISTORY), "cannot be read", caplog)


class TestHistory:
    def test_what_is_kept_in_order(self) -> None:
        """Of this channel alone, each as in a stream's envelope, with its id."""
        ids = [
            publishing.publish("news", "Café\u2028", event="größe").id,
            publishing.publish("staff", "secret").id,
            publishing.publish("news", {"id": 7}).id,
        ]
        assert read() == {
            "events": [
                {"id": ids[0], "event": "größe", "channel": "news", "data": "Café\u2028"},
                {"id": ids[2], "event": "message", "channel": "news", "data": {"id": 7}},
            ],
            "cursor": ids[2],
            "reset": None,
        }

    def test_headers(self) -> None:
        """One visitor's answer, for now."""
        response = Client().get(HISTORY)
        assert (response["Content-Type"], response["Cache-Control"]) == ("application/json", "private, no-store")
        assert response["X-Content-Type-Options"] == "nosniff"

    def test_an_empty_history(self) -> None:
        """Has a cursor to go on from."""
        assert read() == {"events": [], "cursor": str(event_backends["default"].head()), "reset": None}

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
    def test_pages_lose_and_repeat_nothing(self, limit, monkeypatch) -> None:
        """However many events a page has, and however many are read at once."""
        monkeypatch.setattr(api, "READ_AT_ONCE", 3)
        for number in range(10):
            publishing.publish("news", number)
            publishing.publish("staff", number)
        found, cursor = [], ""
        while (page := read(after=cursor, limit=limit))["events"]:
            assert len(page["events"]) <= limit
            found += [event["data"] for event in page["events"]]
            cursor = page["cursor"]
            assert page["reset"] is None
        assert found == list(range(10))
        # What is new comes next.
        publishing.publish("news", 10)
        assert [event["data"] for event in read(after=page["cursor"])["events"]] == [10]

    def test_without_a_limit_a_page_has_a_hundred(self) -> None:
        """As documented."""
        publishing.publish_many([("news", number) for number in range(101)])
        assert len(read()["events"]) == len(read(limit="")["events"]) == api.DEFAULT_LIMIT == 100
        assert len(read(limit=api.MAX_LIMIT)["events"]) == 101

    def test_a_page_ends_where_it_gets_large(self, monkeypatch) -> None:
        """With fewer events than asked for, and a cursor to go on from."""
        monkeypatch.setattr(api, "MAX_PAGE", 200)
        for _ in range(4):
            publishing.publish("news", "x" * 100)
        page = read()
        assert len(page["events"]) == 2
        assert page["cursor"] == page["events"][-1]["id"]
        assert len(read(after=page["cursor"])["events"]) == 2

    async def test_a_stream_goes_on_from_its_cursor(self) -> None:
        """Exactly there."""
        await sync_to_async(publishing.publish)("news", "before")
        cursor = (await AsyncClient().get(HISTORY)).json()["cursor"]
        await sync_to_async(publishing.publish)("news", "after")
        async with StreamClient(f"/events/stream/?channel=news&last_event_id={cursor}") as stream:
            assert (await stream.next(GUARD)).data == "after"

    def test_a_cursor_that_means_nothing_begins_with_the_oldest(self) -> None:
        """And the answer says why, in the words of a stream."""
        first = publishing.publish("news", 1).id
        publishing.publish("news", 2)
        assert first is not None
        epoch = first.partition("-")[0]
        for after, reset in (("x", "unknown"), ("é\0", "unknown"), (f"{epoch}-99", "unknown"), ("other-1", "epoch")):
            page = read(after=after)
            assert (page["reset"], [event["data"] for event in page["events"]]) == (reset, [1, 2])

    def test_what_was_trimmed_after_the_cursor_is_said(self) -> None:
        """A page begins with the oldest event kept. Without a cursor nothing is missing."""
        ids = [publishing.publish("news", number).id for number in range(4)]
        event_backends["default"].trim(lambda name: Retention(events=2))
        page = read(after=ids[0])
        assert (page["reset"], [event["data"] for event in page["events"]]) == ("trimmed", [2, 3])
        assert read(after=ids[1])["reset"] is None
        assert read()["reset"] is None

    def test_what_is_trimmed_while_a_page_is_read(self, monkeypatch) -> None:
        """Is told by the next page: none has a hole in it."""
        monkeypatch.setattr(api, "READ_AT_ONCE", 2)
        for number in range(6):
            publishing.publish("news", number)
        log = event_backends["default"]
        original = log.read

        def read_and_trim(*args: Any) -> Any:
            found = original(*args)
            log.trim(lambda name: Retention(events=2))
            return found

        monkeypatch.setattr(log, "read", read_and_trim)
        page = read()
        assert [event["data"] for event in page["events"]] == [0, 1]
        page = read(after=page["cursor"])
        assert (page["reset"], [event["data"] for event in page["events"]]) == ("trimmed", [4, 5])

    @pytest.mark.parametrize("name", ["unknown", "off", "staff"])
    def test_all_that_cannot_be_read_answers_alike(self, name) -> None:
        """Unknown, switched off and forbidden."""  # promise 20
        response = Client().get(f"/events/history/{name}/")
        check_refusal(response, 403, "There is no such channel, or you may not read it.")
        assert response["Vary"] == "Cookie"

    def test_who_may_read_reads(self, admin_client, token) -> None:
        """Under the rules of the stream: a key to publish opens nothing."""
        publishing.publish("staff", "for staff")
        assert [event["data"] for event in admin_client.get("/events/history/staff/").json()["events"]] == ["for staff"]
        headers = {"Authorization": f"Bearer {token}"}
        assert Client().get("/events/history/staff/", headers=headers).status_code == 403

    @pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "1.0", "٣", " 1", "1_0", "99999", "\0"])
    def test_a_limit_that_cannot_be_is_a_400(self, limit) -> None:
        """With what can."""
        check_refusal(Client().get(HISTORY, {"limit": limit}), 400, "use a whole number from 1 to 1000")

    @pytest.mark.parametrize("name", ["room.*", "a b", "%00", "%C3%A9"])
    def test_a_name_that_cannot_be_one_is_a_400(self, name) -> None:
        """As in a stream."""
        check_refusal(Client().get(f"/events/history/{name}/"), 400, "is not a channel name")

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    def test_other_methods_are_405(self, method) -> None:
        """With what is allowed."""
        response = Client().generic(method, HISTORY)
        check_refusal(response, 405, "Only GET or HEAD")
        assert response["Allow"] == "GET, HEAD"

    async def test_under_asgi(self) -> None:
        """As under WSGI; and HEAD."""
        await sync_to_async(publishing.publish)("news", "hello")
        response = await AsyncClient().get(HISTORY)
        assert [event["data"] for event in response.json()["events"]] == ["hello"]
        assert (await AsyncClient().head(HISTORY)).status_code == 200
        assert (await AsyncClient().head("/events/history/unknown/")).status_code == 403

    def test_a_site_with_atomic_requests(self, monkeypatch) -> None:
        """Django refuses async views under it: this one is exempt."""
        monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
        assert read()["events"] == []


# Whatever is sent

#: What a server lets through in a header.
header_values = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=40)
#: Channel names, and whatever else a path can have in that place.
names = st.sampled_from(["news", "off", "staff", "room.7", "unknown"]) | st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=120
)
any_text = st.text(st.characters(), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
members = st.fixed_dictionaries(
    {}, optional={"data": json_values, "event": json_values, "key": any_text, "x": any_text}
)
# Django itself fails on some charsets.
content_types = st.sampled_from(
    ["", "text/plain", "text/plain; charset=utf-8", "application/json", "a/b+json", "application/x-www-form-urlencoded"]
) | header_values.filter(lambda value: "*" not in value and "charset" not in value)
property_settings = hypothesis_settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


class TestWhateverIsSent:
    @pytest.fixture(autouse=True)
    def _memory(self, settings) -> None:
        settings.EVENTS = {**MEMORY, "MAX_EVENT_BYTES": 100}

    @property_settings
    @given(
        name=names,
        headers=st.fixed_dictionaries(
            {},
            optional={
                "content-type": content_types,
                "content-encoding": header_values,
                "idempotency-key": header_values | st.from_regex(r'"[ -~]*"', fullmatch=True),
                "origin": header_values,
                "cookie": header_values,
                "x-csrftoken": header_values,
            },
        ),
        authorization=st.none() | header_values,
        body=st.lists(st.binary(max_size=3000), max_size=4) | members.map(lambda value: [json.dumps(value).encode()]),
        says_length=st.booleans(),
    )
    def test_publishing_answers_json_and_never_a_500(
        self, token, name, headers, authorization, body, says_length
    ) -> None:
        """Under ASGI, body and headers in any form: 201 with an id, or an error that says why."""  # promise 16
        headers = {"authorization": f"Bearer {token}" if authorization is None else authorization, **headers}
        if says_length:
            headers["content-length"] = str(sum(map(len, body)))
        connection = Sender(body)
        scope = {**scope_of("/", headers, "POST"), "path": f"/events/publish/{name}/"}
        asyncio.run(get_asgi_application()(scope, connection.receive, connection.send))
        said = json.loads(connection.body)
        if connection.status == 201:
            assert Cursor.parse(said["id"])
        else:
            assert connection.status in (400, 401, 403, 404, 413, 415, 422)
            assert said.pop("error")
            assert list(said) == (["field"] if connection.status == 422 else [])

    @property_settings
    @given(
        name=names,
        query=st.dictionaries(
            st.sampled_from(["after", "limit", "x"]), st.text(max_size=40) | st.from_regex(r"[a-z0-9]{1,9}-[0-9]{1,20}")
        ),
        headers=st.dictionaries(st.sampled_from(["cookie", "authorization", "last-event-id"]), header_values),
    )
    def test_a_history_answers_json_and_never_a_500(self, name, query, headers) -> None:
        """A page, or an error that says why."""  # promise 16
        url = f"/events/history/{quote(name, errors='surrogatepass')}/?{urlencode(query, errors='surrogatepass')}"
        response = Client().get(url, headers=headers)
        assert response.status_code in (200, 400, 403)
        assert list(response.json()) == (["events", "cursor", "reset"] if response.status_code == 200 else ["error"])

    @property_settings
    @given(data=json_values, event=st.none() | any_text, as_text=st.booleans())
    @example(data="\u2028\x85\r\n\0", event="größe", as_text=True)
    def test_what_was_accepted_comes_back_equal(self, token, data, event, as_text) -> None:
        """Through the history, text as text and JSON as JSON; what was refused is not in it."""
        before = str(event_backends["default"].head())
        if as_text and isinstance(data, str):
            response = publish(token, data.encode(errors="surrogatepass"), Content_Type="text/plain")
            event = None
        else:
            response = publish(token, {"data": data, "event": event})
        page = read(after=before)
        if response.status_code == 201:
            kind = "message" if event is None else event
            assert page["events"] == [{"id": response.json()["id"], "event": kind, "channel": "news", "data": data}]
        else:
            assert response.status_code in (400, 411, 413, 422)
            assert (page["events"], page["cursor"]) == ([], before)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory):
    """A site with a server of each kind."""
    found = Servers(tmp_path_factory.mktemp("api"))
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uvicorn", "wsgi", "wsgi_gunicorn", "wsgi_granian", "wsgi_hypercorn"])
def test_both_work_on_a_server(servers: Servers, kind: str, name: str) -> None:
    """Also of WSGI, where a body in chunks is refused and no empty event is published."""
    server = servers[kind]
    headers = {"Authorization": f"Bearer {server.site.run(MAKE_KEY)}", "Content-Type": "text/plain"}
    # A connection for each request: a server may close one on which it has not read a body.
    limits = httpx.Limits(max_keepalive_connections=0)
    url = f"http://127.0.0.1:{server.port}/events/"
    with httpx.Client(base_url=url, limits=limits, trust_env=False, timeout=GUARD) as client:
        first = client.post(f"publish/{name}/", content="whole", headers=headers)
        assert first.status_code == 201, first.text
        second = client.post(f"publish/{name}/", content=iter([b"in ", b"chunks"]), headers=headers)
        assert second.status_code == (411 if kind.startswith("wsgi") else 201), second.text
        page = client.get(f"history/{name}/").json()
    assert [event["data"] for event in page["events"]] == ["whole", "in chunks"][: 1 + (kind == "uvicorn")]
