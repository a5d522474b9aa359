"""
The access matrix: who may do what with which channel, a test for each cell.

The tables below are what is promised. Nothing computes them: read them, and change them only with the promise.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.test import Client

from events import apublish, keys, make_ticket, publish
from events.models import Channel, Event, PublishKey
from events.testing import StreamClient
from events.tickets import MAX_AGE

from .waiting import GUARD

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db(transaction=True)

# The rows are channels. Beside the five kinds of access: `policy` is `user.*`, of which everybody reads what ends with
# their own primary key; `unknown` has no row; `off` is for everybody, and switched off.
#
# The columns are who asks. `member` is in the group, and owns the channel of `policy`; `other` is a user with neither.
# `deactivated` was staff, a member and an owner, and brings the session of that time. The tickets are the member's, an
# old one of theirs, and that of a user who was deactivated since; a key is one to publish. None of these four brings a
# session.

#: "reads": 200, what is kept comes, and what is published then. "closed": 200, and told not to come back, before any
#: event. "expired": a 403 that says so. "-": such a ticket cannot be made.
STREAM = """
               anonymous  member  other  staff  superuser  deactivated  ticket  ticket-old  ticket-deactivated  key
public         reads      reads   reads  reads  reads      reads        reads   expired     reads               reads
authenticated  403        reads   reads  reads  reads      403          reads   expired     closed              403
staff          403        403     403    reads  reads      403          -       -           closed              403
groups         403        reads   403    403    reads      403          reads   expired     closed              403
policy         403        reads   403    403    403        403          reads   expired     closed              403
unknown        403        403     403    403    403        403          -       -           -                   403
off            403        403     403    403    403        403          -       -           -                   403
"""
#: Status of the page `channels/<name>/`. A ticket opens streams only.
PAGE = """
               anonymous  member  other  staff  superuser  deactivated  ticket  ticket-old  ticket-deactivated  key
public         200        200     200    200    200        200          200     200         200                 200
authenticated  404        200     200    200    200        404          404     404         404                 404
staff          404        404     404    200    200        404          -       -           404                 404
groups         404        200     404    404    200        404          404     404         404                 404
policy         404        200     404    404    404        404          404     404         404                 404
unknown        404        404     404    404    404        404          -       -           -                   404
off            404        404     404    404    404        404          -       -           -                   404
"""
#: Status of `history/<name>/`.
HISTORY = """
               anonymous  member  other  staff  superuser  deactivated  ticket  ticket-old  ticket-deactivated  key
public         200        200     200    200    200        200          200     200         200                 200
authenticated  403        200     200    200    200        403          403     403         403                 403
staff          403        403     403    200    200        403          -       -           403                 403
groups         403        200     403    403    200        403          403     403         403                 403
policy         403        200     403    403    403        403          403     403         403                 403
unknown        403        403     403    403    403        403          -       -           -                   403
off            403        403     403    403    403        403          -       -           -                   403
"""
#: Status of `publish/<name>/`. `publisher` is a user with the permission; so was `deactivated`. All users send the CSRF
#: token, but `tokenless`, the publisher without it. `key` covers the channel, `key-elsewhere` another one.
PUBLISH = """
               anonymous  member  staff  superuser  publisher  tokenless  deactivated  ticket  key  key-elsewhere
public         401        403     403    201        201        403        401          401     201  403
authenticated  401        403     403    201        201        403        401          401     201  403
staff          401        403     403    201        201        403        401          -       201  403
groups         401        403     403    201        201        403        401          401     201  403
policy         401        403     403    201        201        403        401          401     201  403
unknown        401        403     403    404        404        403        401          -       404  403
off            401        403     403    404        404        403        401          -       404  403
"""

CSRF = "a" * 32


def cells(table: str) -> Any:
    """A parameter set for each cell: channel, who, and what is expected."""
    header, *lines = (line.split() for line in table.strip().splitlines())
    found = [(line[0], who, expected) for line in lines for who, expected in zip(header, line[1:], strict=True)]
    ids = [f"{who}-{channel}-{expected}" for channel, who, expected in found]
    return pytest.mark.parametrize("channel, who, expected", found, ids=ids)


class Visitor:
    """Who asks, and what they send with every request: headers, and parameters of the URL."""

    def __init__(self, channel: str, headers: dict[str, str] | None = None, **parameters: str) -> None:
        self.channel = channel
        self.headers = headers or {}
        self.parameters = parameters

    def url(self, path: str, **parameters: str) -> str:
        return f"/events/{path}?{urlencode({**parameters, **self.parameters})}"

    def stream(self) -> StreamClient:
        return StreamClient(self.url("stream/", channel=self.channel), headers=self.headers)

    def get(self, path: str, **parameters: str) -> Any:
        return Client().get(self.url(path, **parameters), headers=self.headers)

    def page(self) -> Any:
        return self.get(f"channels/{self.channel}/")

    def history(self) -> Any:
        return self.get(f"history/{self.channel}/")

    def publish(self) -> Any:
        url = self.url(f"publish/{self.channel}/")
        client = Client(enforce_csrf_checks=True)
        return client.post(url, "published", content_type="text/plain", headers=self.headers)


@pytest.fixture
def visitor(transactional_db, make_user, monkeypatch) -> Callable[[str, str], Visitor]:
    """
    Makes who asks for a channel, and the channel. Raises `PermissionDenied` for a ticket that cannot be made.

    The channel has one event, "kept", which each new stream gets.
    """
    # What keys have used.
    cache.clear()
    group = Group.objects.create(name="readers")

    def person(who: str) -> User:
        """The user who asks, or whose ticket it is."""
        who = {"tokenless": "publisher", "ticket": "member", "ticket-old": "member"}.get(who, who)
        if who == "superuser":
            return User.objects.create_superuser(who)
        was_more = who.endswith("deactivated")
        user: User = make_user(who, is_staff=was_more or who == "staff")
        if was_more or who == "member":
            user.groups.add(group)
        if was_more or who == "publisher":
            user.user_permissions.add(Permission.objects.get(codename="publish_to_channel"))
        return user

    def configure(kind: str, owner: User | None) -> str:
        """The name of a new channel of that kind."""
        name = kind if kind != "policy" else f"user.{owner.pk if owner else 0}"
        if kind == "unknown":
            return name
        row = Channel.objects.create(
            name="user.*" if kind == "policy" else kind,
            access="public" if kind == "off" else kind,
            policy="events.policies.own_user" if kind == "policy" else "",
            replay="all",
        )
        row.groups.add(group)
        publish(name, "kept")
        if kind == "off":
            row.is_active = False
            row.save()
        return name

    def make(kind: str, who: str) -> Visitor:
        if who in ("anonymous", "key", "key-elsewhere"):
            channel = configure(kind, None)
            if who == "anonymous":
                return Visitor(channel)
            key = PublishKey(name="till", channels="elsewhere" if who == "key-elsewhere" else channel)
            token = keys.issue(key)
            key.save()
            return Visitor(channel, {"authorization": f"Bearer {token}"})
        user = person(who)
        is_owner = who.startswith(("member", "ticket", "deactivated"))
        channel = configure(kind, user if is_owner else make_user("owner"))
        if who.startswith("ticket"):
            with monkeypatch.context() as patch:
                if who == "ticket-old":
                    patch.setattr("events.tickets.time", SimpleNamespace(time=lambda: time.time() - MAX_AGE - 1))
                found = Visitor(channel, ticket=make_ticket(user, [channel]))
        else:
            browser = Client()
            browser.force_login(user)
            cookie = f"sessionid={browser.cookies['sessionid'].value}; csrftoken={CSRF}"
            found = Visitor(channel, {"cookie": cookie, **({} if who == "tokenless" else {"x-csrftoken": CSRF})})
        if who.endswith("deactivated"):
            user.is_active = False
            user.save()
        return found

    return make


@pytest.fixture
def asking(visitor: Callable[[str, str], Visitor], channel: str, who: str, expected: str) -> Visitor | None:
    """Who asks in this cell; None where it is about a ticket that cannot be made."""
    if expected != "-":
        return visitor(channel, who)
    with pytest.raises(PermissionDenied):
        visitor(channel, who)
    return None


@cells(STREAM)
async def test_stream(asking: Visitor | None, expected: str) -> None:
    """Who may read gets what is kept and what comes; nobody else gets an event."""  # promise 20, promise 23
    if asking is None:
        return
    async with asking.stream() as client:
        if expected == "reads":
            assert client.status == 200
            assert (await client.next(GUARD)).data == "kept"
            await apublish(asking.channel, "comes")
            assert (await client.next(GUARD)).data == "comes"
        elif expected == "closed":
            # The ticket is good and nobody was asked yet: nothing that is kept may come before somebody was.
            assert client.status == 200
            closed = await client.next(GUARD)
            assert (closed.event, closed.json()) == ("stream-closed", {"reason": "revoked"})
            with pytest.raises(EOFError):
                await client.next(GUARD)
            assert b"kept" not in client.body
        else:
            assert client.status == 403
            assert (b"expired" in client.body) is (expected == "expired")


@cells(PAGE)
def test_page(asking: Visitor | None, expected: str) -> None:
    """Who may read sees the live page, and nobody else that there is one."""  # promise 20
    if asking is not None:
        assert asking.page().status_code == int(expected)


@cells(HISTORY)
def test_history(asking: Visitor | None, expected: str) -> None:
    """Who may read gets what is kept."""  # promise 20
    if asking is not None:
        response = asking.history()
        assert response.status_code == int(expected)
        assert (b"kept" in response.content) is (expected == "200")


@cells(PUBLISH)
def test_publish(asking: Visitor | None, expected: str) -> None:
    """Who has the permission publishes, whoever may read; an event is in the log where the answer says so."""
    if asking is not None:
        assert asking.publish().status_code == int(expected)
        assert Event.objects.filter(data="published").exists() is (expected == "201")


# Promise 20: whoever may not read a channel cannot tell it from one that is not there.


def said(response: Any) -> tuple[int, dict[str, str], bytes]:
    """All of an answer, but the moment that it was made at."""
    headers = {name: value for name, value in response.items() if name != "Expires"}
    return response.status_code, headers, response.content


@pytest.mark.parametrize("way", ["stream", "page", "history", "publish"])
@pytest.mark.parametrize("who", ["anonymous", "member", "other", "deactivated", "key-elsewhere"])
def test_what_is_refused_is_refused_alike(visitor, who: str, way: str) -> None:
    """A channel that is another's, one that is switched off, one that is not there: the same headers and bytes."""
    asking = visitor("staff", who)
    Channel.objects.create(name="off", access="public", is_active=False)
    answers = []
    for asking.channel in ("staff", "off", "unknown"):
        response = asking.get("stream/", channel=asking.channel) if way == "stream" else getattr(asking, way)()
        status, headers, content = said(response)
        assert 400 < status < 405
        assert content
        # A key's refusal says which name was asked for.
        headers.pop("Content-Length")
        answers.append((status, headers, content.replace(asking.channel.encode(), b"")))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("kind", ["public", "authenticated", "staff", "groups", "policy", "unknown", "off"])
def test_a_ticket_opens_no_other_channel(visitor, kind: str) -> None:
    """Whoever brings it: not even what anybody may read, or what its user may read. The answer is that of all."""
    # promise 23
    asking = visitor(kind, "member")
    Channel.objects.create(name="elsewhere", access="public")
    asking.parameters["ticket"] = make_ticket(User.objects.get(username="member"), ["elsewhere"])
    refusal = said(Client().get("/events/stream/?channel=nowhere"))
    assert refusal[0] == 403
    assert said(asking.get("stream/", channel=asking.channel)) == refusal
    # Nor both at once.
    asking.parameters["channel"] = "elsewhere"
    assert said(Client().get(asking.url("stream/") + f"&channel={asking.channel}")) == refusal


@pytest.mark.parametrize("change", ["switched off", "deleted"])
def test_a_ticket_for_what_is_no_longer_there(visitor, change: str) -> None:
    """The channel was switched off, or deleted, after the ticket was made: refused as any."""  # promise 20
    asking = visitor("groups", "ticket")
    row = Channel.objects.get(name="groups")
    if change == "deleted":
        row.delete()
    else:
        row.is_active = False
        row.save()
    refusal = said(Client().get("/events/stream/?channel=nowhere"))
    assert refusal[0] == 403
    assert said(asking.get("stream/", channel="groups")) == refusal
    # A ticket says which channels it is for, where nobody else does.
    assert said(asking.get("stream/")) == refusal
