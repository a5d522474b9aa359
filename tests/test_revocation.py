"""
Rights that end under open streams, through real servers with two workers, whatever their log stands on.

The strong promise: where something tells that a right has ended, no event that is published after that reaches the
stream. So each test publishes in the next statement of the very process that took the right away.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import uuid
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest

from .proxy import Proxy
from .servers import (
    GUARD,
    RESPONSE_LANE,
    OnPostgreSQL,
    OnRedis,
    RawStream,
    Server,
    Servers,
    Site,
    check_log,
    free_port,
    looked_after,
    opened,
    stream_path,
    until,
    wait_open,
)
from .test_engines import stays_open
from .test_promises import stand

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from .engines import PostgreSQL, Redis

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured

#: Seconds: too long for the interval to end a stream within a test, and short enough for it to do so.
NEVER, SOON = 600, 1
#: Seconds that a busy machine may take longer than that.
LATENESS = 10
#: Streams that ask all the time, and say twice a second that they are open.
ASKING = json.dumps({"RECHECK": SOON, "KEEPALIVE": 0.5})

Headers = list[tuple[str, str]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers whose streams ask for their rights only when they are told to."""
    settings = json.dumps({"RECHECK": NEVER})
    with closing(Servers(tmp_path_factory.mktemp("told"), EVENTS_TEST_SETTINGS=settings)) as servers:
        yield servers


#: Where streams are open. What tells of a change is shown case by case on the first, and by some cases on the others.
GROUNDS = ["uvicorn-2", f"uvicorn-2{RESPONSE_LANE}", "uvicorn-2 on postgresql", "uvicorn-2 on redis"]


def grid(cases: Iterable[str], everywhere: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs of a ground and a case."""
    return [(ground, case) for ground in GROUNDS for case in cases if ground == GROUNDS[0] or case in everywhere]


@pytest.fixture(params=GROUNDS)
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """A server whose log is shown where the test fails, and holds no fault where it does not."""
    stand(request.param.partition(" on ")[2], servers, request)
    yield from looked_after(servers[request.param])


class OnBoth(OnPostgreSQL):
    """The log in Redis, the site's database on PostgreSQL."""

    def __init__(self, engine: PostgreSQL, redis: Redis) -> None:
        super().__init__(engine)
        self.log = OnRedis(redis)

    def environment(self, site: Site, port: int | None = None) -> dict[str, str]:
        return {**super().environment(site, port), **self.log.environment(site)}


@pytest.fixture(scope="module")
def asking_on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose streams ask for their rights all the time."""
    with closing(Site(tmp_path_factory.mktemp("asking"), EVENTS_TEST_SETTINGS=ASKING)) as site:
        yield site.start("uvicorn-2")


@pytest.fixture(scope="module")
def asking_on_both(
    postgresql_server: PostgreSQL, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Proxy]]:
    """A server whose streams ask all the time. It reaches its database, but not its log, through the proxy."""
    ground = OnBoth(postgresql_server, redis_server)
    with (
        Proxy(postgresql_server.port) as proxy,
        closing(Site(tmp_path_factory.mktemp("both"), ground, EVENTS_TEST_SETTINGS=ASKING)) as site,
    ):
        yield site.start("uvicorn-2", None, **ground.environment(site, proxy.port)), proxy


@pytest.fixture(params=["sqlite", "both"])
def asking_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """As `server`, one whose streams ask all the time; the log of the second may hold the faults of another test."""
    if request.param == "sqlite":
        yield from looked_after(request.getfixturevalue("asking_on_sqlite"))
    else:
        yield request.getfixturevalue("asking_on_both")[0]


#: Makes users who are signed in; their sessions.
SIGN_IN = """
from django.contrib.auth.models import User
from django.test import Client

result = []
for name in names:
    client = Client()
    client.force_login(User.objects.create_user(name, is_staff=is_staff))
    result.append(client.cookies["sessionid"].value)
"""
#: Two users, each of whom may read the channel `name` by a group of their own.
SET_UP = """
from django.contrib.auth.models import Group, User
from django.test import Client
from events import make_ticket

def sign_in(user):
    client = Client()
    client.force_login(user)
    return client.cookies["sessionid"].value

channel = Channel.objects.create(name=name, access="groups")
result = {}
for who in ("goes", "stays"):
    # Staff, so that they can log out where the admin does.
    user = User.objects.create_user(f"{who} {name}", password="secret", is_staff=True)
    user.groups.add(Group.objects.create(name=f"{who} {name}"))
    channel.groups.add(*user.groups.all())
    result[who] = [sign_in(user), sign_in(user)]
    result.setdefault("ticket", make_ticket(user, [name]))
"""
#: What the code of each test finds: the user who goes, and their group.
KNOWN = """
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.utils import timezone
from events import disconnect, recheck

user = User.objects.get(username=f"goes {name}")
group = Group.objects.get(name=f"goes {name}")
channel = Channel.objects.get(name=name)
"""
#: What is published in the next statement.
PUBLISH = """
publish(name, "after")
publish(public, "after")
"""


def cookie(session: str) -> Headers:
    """What a browser in that session sends."""
    return [("Cookie", f"sessionid={session}")]


async def ask(server: Server, method: str, path: str, session: str) -> str:
    """What a page answers a session."""

    def do() -> str:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=GUARD)) as connection:
            token = "a" * 32
            headers = {"Cookie": f"sessionid={session}; csrftoken={token}", "X-CSRFToken": token}
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            body = response.read().decode()
            assert response.status == 200, body
            return body

    return await asyncio.to_thread(do)


class Readers:
    """
    Streams of the channel `name`, which two users may read, and of `public`, which anybody may: on each worker one of
    each kind.

    `goes` is in the first session of the user who loses something, `second` in the second one, `both` in the first,
    with both channels; `ticket` has a ticket of that user's, and `bound` one from a page of the first session; `public`
    is in that session, too; `stays` is another user, `anyone` nobody.
    """

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = f"group.{uuid.uuid4().hex}"
        self.public = name
        self.streams: dict[str, list[RawStream]] = {}
        #: The user's.
        self.sessions: list[str] = []

    @classmethod
    @asynccontextmanager
    async def of(cls, server: Server, name: str) -> AsyncIterator[Readers]:
        """All of them, open."""
        readers = cls(server, name)
        found = await server.site.arun(SET_UP, name=readers.name)
        readers.sessions = found["goes"]
        first, second = map(cookie, found["goes"])
        other = cookie(found["stays"][0])
        await wait_open(server, readers.name, first)
        bound = await ask(server, "GET", f"/ticket/?channel={readers.name}", readers.sessions[0])
        async with AsyncExitStack() as exits:

            async def follow(who: str, *channels: str, **options: Any) -> None:
                readers.streams[who] = await exits.enter_async_context(opened(server, *channels, **options))

            await follow("goes", readers.name, headers=first)
            await follow("second", readers.name, headers=second)
            await follow("both", readers.name, readers.public, headers=first)
            await follow("ticket", readers.name, ticket=found["ticket"])
            await follow("bound", readers.name, ticket=bound)
            await follow("stays", readers.name, headers=other)
            await follow("public", readers.public, headers=first)
            await follow("anyone", readers.public)
            await readers.publish("before")
            yield readers

    async def run(self, code: str, **values: Any) -> Any:
        """Run code in another process, which knows who goes (`KNOWN`)."""
        return await self.server.site.arun(KNOWN + code, name=self.name, public=self.public, **values)

    async def publish(self, data: str) -> None:
        """Publish it in both channels."""
        for channel in (self.name, self.public):
            await self.server.site.apublish(channel, data)

    async def ended(self, reason: str, ends: Iterable[str], guard: float = GUARD) -> None:
        """These streams end: each is told why, as the last thing, and gets nothing that was published after it."""
        for who in ends:
            for stream in self.streams[who]:
                closed = await stream.next(guard)
                # While it is found out whose they are, streams of what anybody may read go on.
                while closed.data == "before" or (who == "public" and closed.data == "after"):
                    closed = await stream.next(guard)
                assert (closed.event, closed.data) == ("stream-closed", json.dumps({"reason": reason})), who
                await stream.rest(guard)
                assert stream.events[-1] is closed, who

    async def go_on(self, ends: Iterable[str], *texts: str) -> None:
        """All other streams got these texts and what is published now, each once."""
        await self.publish("end")
        for who, streams in self.streams.items():
            if who in ends:
                continue
            expected = ["before", *texts, "end"]
            if who == "both":
                expected = [text for text in expected for _ in range(2)]
            for stream in streams:
                while len(stream.events) < len(expected):
                    await stream.next()
                assert [event.data for event in stream.events] == expected, who


# Where something tells that a right has ended: at once

#: The streams of who goes that need their right to read the channel.
BY_RIGHT = ("goes", "second", "both", "ticket", "bound")
#: What is done, why streams end then, and which.
TOLD = {
    "deactivated": ("user.is_active = False; user.save()", "revoked", BY_RIGHT),
    "deleted": ("user.delete()", "revoked", BY_RIGHT),
    "another password": ("user.set_password('new'); user.save()", "revoked", BY_RIGHT),
    "out of the group": ("user.groups.remove(group)", "revoked", BY_RIGHT),
    "the group without the user": ("group.user_set.remove(user)", "revoked", BY_RIGHT),
    "the group without anybody": ("group.user_set.clear()", "revoked", BY_RIGHT),
    "no group any more": ("group.delete()", "revoked", BY_RIGHT),
    "the channel without the group": ("channel.groups.remove(group)", "revoked", BY_RIGHT),
    "told of a user": (
        "User.objects.filter(pk=user.pk).update(is_active=False); recheck(user=user)",
        "revoked",
        BY_RIGHT,
    ),
    "told of a channel": (
        "User.objects.filter(pk=user.pk).update(is_active=False); recheck(channels=[name])",
        "revoked",
        BY_RIGHT,
    ),
    # Also what anybody may read.
    "disconnected": ("disconnect(user)", "disconnected", (*BY_RIGHT, "public")),
    "with the event in one transaction": (
        """
with transaction.atomic():
    user.is_active = False
    user.save()
    publish(name, "after")
    publish(public, "after")
""",
        "revoked",
        BY_RIGHT,
    ),
}


#: How the message travels differs with the log: in the change's transaction, after it, from a command.
TOLD_EVERYWHERE = ("deactivated", "out of the group", "disconnected", "with the event in one transaction")


@pytest.mark.parametrize("server, what", grid(TOLD, TOLD_EVERYWHERE), indirect=["server"])
async def test_a_right_that_is_taken_away_ends_streams_at_once(server: Server, name: str, what: str) -> None:
    """In both workers, each with one word why; what is published next reaches the others, and not these."""
    # promise 21
    code, reason, ends = TOLD[what]
    async with Readers.of(server, name) as readers:
        await readers.run(code if "publish" in code else code + PUBLISH)
        await readers.ended(reason, ends)
        await readers.go_on(ends, "after")


async def test_a_log_out_ends_the_streams_of_its_session(server: Server, name: str) -> None:
    """And those of a ticket that was made in it. The user's other session goes on, and so does a ticket of none."""
    # promise 21
    async with Readers.of(server, name) as readers:
        await ask(server, "POST", "/admin/logout/", readers.sessions[0])
        await readers.run(PUBLISH)
        ends = ("goes", "both", "bound")
        await readers.ended("revoked", ends)
        await readers.go_on(ends, "after")


#: What is done to the channel `name`, which anybody could read; why streams end then; whether staff's do, too.
CHANGES = {
    "switched off": ("channel.is_active = False; channel.save()", "switched-off", True),
    "deleted": ("channel.delete()", "revoked", True),
    "for staff": ("channel.access = 'staff'; channel.save()", "revoked", False),
    "for staff, by a query": ("Channel.objects.filter(pk=channel.pk).update(access='staff')", "revoked", False),
    "for staff, in the transaction of the event": (
        """
with transaction.atomic():
    channel.access = "staff"
    channel.save()
    publish(name, "after")
""",
        "revoked",
        False,
    ),
}


CHANGES_EVERYWHERE = ("switched off", "for staff, in the transaction of the event")


@pytest.mark.parametrize("server, what", grid(CHANGES, CHANGES_EVERYWHERE), indirect=["server"])
async def test_a_channel_that_is_closed_ends_streams_at_once(server: Server, name: str, what: str) -> None:
    """Also those of other channels besides: what is published there next does not reach them."""
    # promise 21
    code, reason, also_staff = CHANGES[what]
    site = server.site
    channel = f"closing.{uuid.uuid4().hex}"
    await site.arun('Channel.objects.create(name=name, access="public")', name=channel)
    (staff,) = await site.arun(SIGN_IN, names=[channel], is_staff=True)
    await wait_open(server, channel)
    async with (
        opened(server, channel) as alone,
        opened(server, channel, name) as beside,
        opened(server, channel, headers=cookie(staff)) as of_staff,
        opened(server, name) as others,
    ):
        await site.apublish(channel, "before")
        for stream in (*alone, *beside, *of_staff):
            assert (await stream.next()).data == "before"
        # An event of a channel that is closed cannot be published.
        after = "" if also_staff or "publish" in code else 'publish(name, "after")\n'
        await site.arun(
            f'channel = Channel.objects.get(name=name)\n{code}\n{after}publish(other, "after")',
            name=channel,
            other=name,
        )
        for stream in (*alone, *beside, *(of_staff if also_staff else ())):
            closed = await stream.next()
            assert (closed.event, closed.data) == ("stream-closed", json.dumps({"reason": reason}))
            await stream.rest()
            assert stream.events[-1] is closed
        for stream in (*others, *(() if also_staff else of_staff)):
            assert (await stream.next()).data == "after"


# Where nothing tells: the interval finds it

#: What is done behind Django's back, and which streams end.
UNTOLD = {
    "session deleted": ("Session.objects.filter(pk=session).delete()", ("goes", "both")),
    "session expired": ("Session.objects.filter(pk=session).update(expire_date=timezone.now())", ("goes", "both")),
    "deactivated by a query": ("User.objects.filter(pk=user.pk).update(is_active=False)", BY_RIGHT),
    "out of the group by a query": ("User.groups.through.objects.filter(user=user).delete()", BY_RIGHT),
}


@pytest.mark.parametrize("what", UNTOLD)
async def test_the_interval_finds_what_nothing_tells_of(asking_server: Server, name: str, what: str) -> None:
    """Within one, in both workers; whose right goes on, reads on."""
    # promise 21
    code, ends = UNTOLD[what]
    async with Readers.of(asking_server, name) as readers:
        await readers.run(code, session=readers.sessions[0])
        await readers.ended("revoked", ends, SOON + LATENESS)
        await readers.go_on(ends)


# What it costs

#: Behind Django's back.
GO = """
from django.contrib.auth.models import User

User.objects.filter(username=who).update(is_active=False)
"""


async def test_a_thousand_streams_ask_with_a_few_queries(tmp_path: Path) -> None:
    """Of ten users, of two channels: per interval one query for all sessions, and one for all users."""
    # promise 21
    settings = json.dumps({"RECHECK": 2})
    streams: list[RawStream] = []
    with closing(Site(tmp_path, EVENTS_TEST_SETTINGS=settings)) as site:
        server = site.start("uvicorn")
        sessions = await site.arun(SIGN_IN, names=[f"user {number}" for number in range(10)], is_staff=False)

        async def asked() -> Counter[str] | None:
            """What the process asked its database in three intervals, by tables."""
            found = Counter((await server.ajson("/debug/"))["queries"]) - before
            return found if found["auth_user"] >= 3 else None

        try:
            for _ in range(50):
                paths = [(stream_path(f"signed-in.{channel}"), session) for channel in "ab" for session in sessions]
                streams += await asyncio.gather(
                    *(RawStream.open(server.port, path, cookie(session)) for path, session in paths)
                )
            debug = await server.ajson("/debug/")
            assert debug["streams"] == 1000
            before = Counter(debug["queries"])
            found = await until(asked, "rights were asked for three times")
            assert found.total() <= 3 * 10, found
            # The next time may have begun.
            assert found["django_session"] <= found["auth_user"] + 1, found
            # And that is enough to find the one who must go.
            await site.arun(GO, who="user 0")
            for stream in streams[::10]:
                assert (await stream.next(2 + LATENESS)).event == "stream-closed"
            await site.apublish("signed-in.a", "to nine")
            await site.apublish("signed-in.b", "to nine")
            for number, stream in enumerate(streams):
                if number % 10:
                    assert (await stream.next()).data == "to nine"
            check_log(server, 0)
        finally:
            for stream in streams:
                stream.abort()


# Where nobody can say

#: To the log itself: `publish()` would ask the database whether there is such a channel.
APPEND = """
from events.backends.base import NewEvent

event_backends["default"].append([NewEvent(channel=name, data="meanwhile") for name in names])
"""


@pytest.mark.parametrize("fault", ["refuses", "says nothing"])
async def test_streams_are_held_while_the_database_cannot_say(
    asking_on_both: tuple[Server, Proxy], name: str, fault: str
) -> None:
    """
    The log goes on. Who needs a right is sent keep-alives and no event, and gets all of them once the right is
    confirmed; who has lost it in the meantime gets none.
    """
    # promise 18, promise 21
    server, proxy = asking_on_both
    site = server.site
    private = f"signed-in.{uuid.uuid4().hex}"
    stays, goes = await site.arun(SIGN_IN, names=[f"stays {name}", f"goes {name}"], is_staff=False)
    async with (
        opened(server, private, headers=cookie(stays)) as staying,
        opened(server, private, headers=cookie(goes)) as going,
        opened(server, name) as anyone,
    ):
        await site.apublish(private, "before")
        await site.apublish(name, "before")
        for stream in (*staying, *going, *anyone):
            assert (await stream.next()).data == "before"
        mark = server.mark()

        async def are_held() -> bool:
            return server.log(mark).count("rights cannot be checked") == server.workers

        target = proxy.target_port
        try:
            if fault == "refuses":
                proxy.target_port = free_port()
                proxy.close_all()
            else:
                proxy.cut()
            await until(are_held, "each worker has noticed")
            await site.arun(APPEND, names=[private, name])
            for stream in anyone:
                assert (await stream.next()).data == "meanwhile"
            # All of them at once: each is read for as long.
            await asyncio.gather(*(stays_open(stream) for stream in (*staying, *going)))
            await site.arun(GO, who=f"goes {name}")
        finally:
            proxy.target_port = target
            proxy.heal()
        for stream in going:
            assert (await stream.next()).json() == {"reason": "revoked"}
            await stream.rest()
            assert len(stream.events) == 2
        for stream in staying:
            assert (await stream.next()).data == "meanwhile"
        await site.apublish(private, "after")
        await site.apublish(name, "after")
        for stream in (*staying, *anyone):
            assert (await stream.next()).data == "after"
            assert len(stream.events) == 3
