from __future__ import annotations

import functools
import gc
import logging
import re
import uuid
import weakref
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, Group, User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import AsyncRequestFactory, Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from events import access
from events.access import (
    REVOKED,
    SWITCHED_OFF,
    Answer,
    Question,
    Visitor,
    admit,
    answers,
    id_of,
    load_policy,
    may_read,
    may_read_all,
    readable_channels,
    session_tag,
    visitor_tag,
)
from events.channels import channel_table
from events.models import Channel

pytestmark = pytest.mark.django_db(transaction=True)

asked: list[tuple[Any, str]] = []


@pytest.fixture(autouse=True)
def _nothing_asked():
    asked.clear()


def yes(user, channel):
    asked.append((user, channel))
    return True


def no(user, channel):
    return False


def nothing(user, channel):
    return None


async def async_yes(user, channel):
    asked.append((user, channel))
    return True


async def async_no(user, channel):
    return False


def hidden_async_no(user, channel):
    """As a decorator leaves it that knows nothing of async functions."""
    return async_no(user, channel)


def breaks(user, channel):
    raise KeyError("broken")


class Callable:
    def __init__(self, answer):
        self.answer = answer

    async def __call__(self, user, channel):
        return self.answer


object_yes, object_no = Callable(True), Callable(False)
partial_yes = functools.partial(async_yes)
not_a_function = 5


async def by_name(user, channel):
    """Whether the channel bears the user's name: what policies are for."""
    return user.is_authenticated and channel == f"user.{user.username}"


@pytest.fixture
def users(make_user):
    """One of each kind."""
    users = {
        "anonymous": AnonymousUser(),
        "user": make_user("user"),
        "staff": make_user("staff", is_staff=True),
        "superuser": make_user("superuser", is_superuser=True),
        "member": make_user("member"),
        "inactive": make_user("inactive", is_active=False, is_staff=True, is_superuser=True),
    }
    readers = Group.objects.create(name="readers")
    users["member"].groups.add(readers)
    users["inactive"].groups.add(readers)
    return users


@pytest.fixture
def request_of(users):
    """A request of one of them, as a site's middleware makes it."""

    def make(kind: str):
        request = AsyncRequestFactory().get("/")

        request.user = users[kind]
        return request

    return make


READERS = {
    "public": {"anonymous", "user", "staff", "superuser", "member", "inactive"},
    "authenticated": {"user", "staff", "superuser", "member"},
    "staff": {"staff"},
    "groups": {"superuser", "member"},
    "nobody knows": set(),
}
KINDS = sorted(READERS["public"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("who", READERS)
async def test_who_may_read_what(make_channel, request_of, users, who, kind):
    """Each kind of access for each kind of visitor; a value that this version does not know opens nothing."""
    channel = await sync_to_async(make_channel)("news", access=who)
    group = await Group.objects.aget(name="readers")
    await channel.groups.aadd(group)
    expected = kind in READERS[who]
    assert await may_read_all(request_of(kind), ["news"]) is expected
    assert [row.name for row in await readable_channels(request_of(kind))] == (["news"] if expected else [])
    channel.group_ids = frozenset({group.pk})
    assert await sync_to_async(may_read)(users[kind], channel) is expected


@pytest.mark.parametrize("who", READERS)
async def test_nobody_reads_a_channel_that_is_switched_off(make_channel, request_of, who):
    """Not even a superuser."""
    await sync_to_async(make_channel)("news", access=who, is_active=False)
    assert await may_read_all(request_of("superuser"), ["news"]) is False
    assert await readable_channels(request_of("superuser")) == []


async def test_an_unknown_channel_is_refused_like_a_forbidden_one(make_channel, request_of):
    """Nothing is readable that the admin did not open."""  # promise 20
    await sync_to_async(make_channel)("news")
    assert await may_read_all(request_of("superuser"), ["other"]) is False
    assert await may_read_all(request_of("superuser"), ["news", "other"]) is False


async def test_all_or_none(make_channel, request_of):
    """One channel that may not be read closes the stream of them all."""
    await sync_to_async(make_channel)("open")
    await sync_to_async(make_channel)("closed", access="staff")
    assert await may_read_all(request_of("staff"), ["open", "closed"]) is True
    assert await may_read_all(request_of("user"), ["open", "closed"]) is False
    assert await may_read_all(request_of("user"), ["open"]) is True


async def test_a_name_under_a_prefix_has_the_rights_of_its_prefix(make_channel, request_of):
    """And the prefix itself is not a channel that anybody is shown."""
    await sync_to_async(make_channel)("orders.*", access="staff")
    assert await may_read_all(request_of("staff"), ["orders.1"]) is True
    assert await may_read_all(request_of("user"), ["orders.1"]) is False
    assert await readable_channels(request_of("staff")) == []


async def test_a_group_of_another_channel_opens_nothing(make_channel, request_of):
    """Membership counts for the channels that name the group."""
    await sync_to_async(make_channel)("news", access="groups")
    assert await may_read_all(request_of("member"), ["news"]) is False
    assert await may_read_all(request_of("superuser"), ["news"]) is True


async def test_channels_are_shown_by_title(make_channel, request_of):
    """Or by name where there is none; capitals do not come first."""
    for name, title in (("a", "zebra"), ("b", ""), ("c", "Apple")):
        await sync_to_async(make_channel)(name, title=title)
    assert [row.name for row in await readable_channels(request_of("anonymous"))] == ["c", "b", "a"]


async def test_public_channels_ask_for_no_user(make_channel):
    """A session costs a query, which a public stream does not need."""
    await sync_to_async(make_channel)("news")
    request: Any = AsyncRequestFactory().get("/")

    request.user = SimpleLazyObject(lambda: pytest.fail("the user was loaded"))
    assert await may_read_all(request, ["news"]) is True


async def test_a_site_without_authentication_has_anonymous_visitors(make_channel):
    """Public channels are open, the others are not, and nothing fails."""
    await sync_to_async(make_channel)("open")
    await sync_to_async(make_channel)("closed", access="authenticated")
    request = AsyncRequestFactory().get("/")
    assert not hasattr(request, "user")
    assert await may_read_all(request, ["open"]) is True
    assert await may_read_all(request, ["closed"]) is False
    assert [row.name for row in await readable_channels(request)] == ["open"]


@pytest.mark.parametrize("who", ["staff", "groups"])
def test_a_user_model_without_rights_has_no_rights(who):
    """A site's own user model may know neither staff nor groups: closed, and no 500."""  # promise 16
    user = SimpleNamespace(is_authenticated=True, is_active=True)
    assert may_read(user, Channel(name="news", access=who)) is False
    assert may_read(user, Channel(name="news", access="authenticated")) is True


# Policies


@pytest.mark.parametrize(
    "policy, expected",
    [
        ("yes", True),
        ("no", False),
        ("nothing", False),
        ("async_yes", True),
        ("async_no", False),
        ("hidden_async_no", False),
        ("object_yes", True),
        ("object_no", False),
        ("partial_yes", True),
    ],
)
async def test_a_policy_decides_sync_or_async(make_channel, request_of, policy, expected):
    """And however it is written: a coroutine that nobody waited for is not a yes."""
    await sync_to_async(make_channel)("news", access="policy", policy=f"{__name__}.{policy}")
    assert await may_read_all(request_of("anonymous"), ["news"]) is expected


@pytest.mark.parametrize(
    "policy", [f"{__name__}.breaks", f"{__name__}.missing", f"{__name__}.not_a_function", "nowhere.policy", "", "x"]
)
async def test_a_policy_that_fails_lets_nobody_in_and_is_logged(make_channel, request_of, caplog, policy):
    """The check fails closed, and the log says which channel and which policy."""
    await sync_to_async(make_channel)("news", access="policy", policy=policy)
    with caplog.at_level(logging.ERROR, "events.access"):
        assert await may_read_all(request_of("superuser"), ["news"]) is False
    [record] = caplog.records
    assert record.getMessage() == f"a policy failed and nobody is let in: channel=news policy={policy!r}"
    assert record.exc_info


@pytest.mark.parametrize("policy", ["yes", "async_yes"])
async def test_a_policy_gets_the_user_and_the_name_asked_for(make_channel, request_of, users, policy):
    """Under a prefix, the name and not the prefix; for an inactive user, nobody."""
    await sync_to_async(make_channel)("user.*", access="policy", policy=f"{__name__}.{policy}")
    assert await may_read_all(request_of("user"), ["user.5"]) is True
    assert await may_read_all(request_of("inactive"), ["user.6"]) is True
    (user, first), (nobody, second) = asked
    assert (user, first, second) == (users["user"], "user.5", "user.6")
    assert nobody.is_anonymous


async def test_a_policy_opens_to_each_user_what_is_theirs(make_channel, request_of):
    """What prefixes and policies are for."""
    await sync_to_async(make_channel)("user.*", access="policy", policy=f"{__name__}.by_name")
    assert await may_read_all(request_of("user"), ["user.user"]) is True
    assert await may_read_all(request_of("user"), ["user.member"]) is False
    assert await may_read_all(request_of("anonymous"), ["user.user"]) is False


async def test_a_sync_policy_does_not_hold_up_the_loop(make_channel, request_of, monkeypatch):
    """It may ask the database: it runs on a thread."""
    import threading

    seen = []
    monkeypatch.setattr(access, "load_policy", lambda path: lambda user, name: seen.append(threading.current_thread()))
    await sync_to_async(make_channel)("news", access="policy", policy="x.y")
    assert await may_read_all(request_of("anonymous"), ["news"]) is False
    assert seen != [threading.current_thread()]


def test_a_policy_is_loaded_by_its_dotted_path():
    """What is there but cannot be called is told from what is not there."""
    assert load_policy(f"{__name__}.yes") is yes
    with pytest.raises(TypeError, match="not_a_function is not a function"):
        load_policy(f"{__name__}.not_a_function")
    with pytest.raises(ImportError):
        load_policy(f"{__name__}.missing")


# Who opened a stream


def still(visitor: Visitor, *names: str) -> bool:
    """Whether who has a stream of the channels open may go on."""
    [answer] = answers([Question(visitor, names or ("news",))])
    return answer.refusal is None


def request_with(user: Any, client: Client) -> Any:
    """A request as it leaves Django's middleware."""
    request: Any = AsyncRequestFactory().get("/")
    # A client's `session` would make one where there is none.
    request.session = client.session if client.cookies else SessionStore()

    request.user = user
    return request


def admitted(request: Any, *names: str) -> Visitor | None:
    return async_to_sync(admit)(request, names or ("news",))


class Visit:
    """Someone who is signed in, and has opened a stream of a channel that only staff may read."""

    def __init__(self, user: User, client: Client) -> None:
        self.user, self.client = user, client
        visitor = admitted(request_with(user, client))
        assert visitor is not None
        self.visitor = visitor

    @property
    def may_read(self) -> bool:
        return still(self.visitor)


@pytest.fixture
def visit(make_channel) -> Visit:
    make_channel("news", access="staff")
    user = User.objects.create_user("ann", password="secret", is_staff=True)
    client = Client()
    client.force_login(user)
    visit = Visit(user, client)
    assert visit.visitor == Visitor(client.session.session_key, str(user.pk))
    return visit


#: Engines of sessions that keep them elsewhere, and therefore are asked for one after the other.
ENGINES = ("cache", "cached_db", "file", "signed_cookies")


class TestVisitors:
    """What is kept of them for as long as their stream: enough to ask for their rights, and no more."""

    def test_who_may_read_may_go_on(self, visit: Visit) -> None:
        """However often is asked; and nothing of the session is changed by it."""
        [before] = Session.objects.values()
        assert visit.may_read
        assert visit.may_read
        assert list(Session.objects.values()) == [before]

    def test_who_logs_out_may_not(self, visit: Visit) -> None:
        """On whatever page."""  # promise 21
        visit.client.logout()
        assert not visit.may_read

    def test_whose_session_is_deleted_may_not(self, visit: Visit) -> None:
        """By an administrator, or because it has expired."""  # promise 21
        Session.objects.all().delete()
        assert not visit.may_read

    def test_whose_session_has_expired_may_not(self, visit: Visit) -> None:
        """Also where nobody has removed it yet."""  # promise 21
        Session.objects.update(expire_date=timezone.now())
        assert not visit.may_read

    def test_whose_session_was_damaged_may_not(self, visit: Visit) -> None:
        """Django takes it for an empty one."""
        Session.objects.update(session_data="garbage")
        assert not visit.may_read

    def test_who_is_deactivated_may_not(self, visit: Visit) -> None:
        """And may again when activated."""  # promise 21
        User.objects.update(is_active=False)
        assert not visit.may_read
        User.objects.update(is_active=True)
        assert visit.may_read

    def test_who_is_deleted_may_not(self, visit: Visit) -> None:
        """The session may still be there."""
        visit.user.delete()
        assert Session.objects.exists()
        assert not visit.may_read

    def test_whose_password_was_changed_may_not(self, visit: Visit) -> None:
        """A change ends the other sessions: Django's own check. The session itself is left to Django."""
        visit.user.set_password("another")
        visit.user.save()
        assert not visit.may_read
        assert Session.objects.exists()

    def test_who_loses_the_right_may_not(self, visit: Visit) -> None:
        """The user is loaded anew."""
        User.objects.update(is_staff=False)
        assert not visit.may_read

    def test_who_leaves_the_group_may_not(self, visit: Visit, make_channel) -> None:
        """Or whose group is deleted."""  # promise 21
        group = Group.objects.create(name="readers")
        make_channel("group", access="groups").groups.add(group)
        assert not still(visit.visitor, "group")
        visit.user.groups.add(group)
        assert still(visit.visitor, "group")
        visit.user.groups.remove(group)
        assert not still(visit.visitor, "group")
        visit.user.groups.add(group)
        group.delete()
        assert not still(visit.visitor, "group")

    def test_who_is_signed_in_by_a_way_that_is_gone_may_not(self, visit: Visit, settings) -> None:
        """An authentication backend that the site has given up, as Django has it."""
        settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.AllowAllUsersModelBackend"]
        assert not visit.may_read

    def test_whose_backend_does_not_let_them_in_may_not(self, visit: Visit, settings) -> None:
        """It is asked, as Django asks it; and a way of its own to find users is its own."""
        settings.AUTHENTICATION_BACKENDS = [f"{__name__}.{kind.__name__}" for kind in (Strict, Own)]
        for kind, is_let_in in ((Strict, False), (Own, True)):
            session = visit.client.session
            session[BACKEND_SESSION_KEY] = f"{__name__}.{kind.__name__}"
            session.save()
            assert visit.may_read is is_let_in

    def test_whose_session_now_is_somebody_elses_may_not(self, visit: Visit) -> None:
        """The session says who it is."""
        other = User.objects.create_user("bob", password="secret")
        session = visit.client.session
        session[SESSION_KEY] = str(other.pk)
        session.save()
        assert not visit.may_read

    def test_a_session_that_names_nobody(self, visit: Visit) -> None:
        """An id of a time when users had others, or none at all."""
        session = visit.client.session
        session[SESSION_KEY] = "5b2c"
        session.save()
        assert not visit.may_read
        del session[BACKEND_SESSION_KEY]
        session.save()
        assert not visit.may_read

    def test_a_key_that_was_changed_on_the_server_logs_nobody_out(self, visit: Visit, settings) -> None:
        """With `SECRET_KEY_FALLBACKS` Django would give the session a new key, which no response of ours could tell."""
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        settings.SECRET_KEY = "another one"
        [before] = Session.objects.values()
        assert visit.may_read
        assert list(Session.objects.values()) == [before]
        # And without: Django would end the session, at the next request.
        settings.SECRET_KEY_FALLBACKS = []
        assert not visit.may_read
        assert list(Session.objects.values()) == [before]

    @pytest.mark.parametrize("engine", ENGINES)
    def test_sessions_that_are_kept_elsewhere(self, make_channel, settings, tmp_path, engine: str) -> None:
        """Whatever engine keeps them says what they hold."""
        settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
        settings.SESSION_FILE_PATH = tmp_path
        make_channel("news", access="staff")
        user = User.objects.create_user("ann", password="secret", is_staff=True)
        client = Client()
        client.force_login(user)
        request = AsyncRequestFactory().get("/")
        request.session = import_module(settings.SESSION_ENGINE).SessionStore(client.cookies["sessionid"].value)
        request.user = user
        visitor = admitted(request)
        assert visitor is not None
        assert still(visitor)
        user.is_active = False
        user.save()
        assert not still(visitor)
        User.objects.update(is_active=True)
        request.session.flush()
        # What a signed cookie says is so for as long as it says: a log-out is told by a message.
        assert still(visitor) is (engine == "signed_cookies")

    def test_who_is_known_by_something_else_than_a_session(self, visit: Visit) -> None:
        """A token in a header: the user is what is kept, with or without a session of an anonymous visitor."""
        with_session = request_with(visit.user, Client())
        without = request_with(visit.user, Client())
        del without.session
        visitor = Visitor(user_id=str(visit.user.pk))
        for request in (with_session, without):
            assert admitted(request) == visitor
            assert still(visitor)
        User.objects.update(is_active=False)
        assert not still(visitor)
        User.objects.all().delete()
        assert not still(visitor)

    def test_a_token_of_another_than_the_session(self, visit: Visit) -> None:
        """Who the request was let in as is who is asked for again."""
        other = User.objects.create_user("bob", password="secret", is_staff=True)
        assert admitted(request_with(other, visit.client)) == Visitor(user_id=str(other.pk))

    def test_who_is_nobody(self, make_channel) -> None:
        """With a session and without; a public channel stays open, one that becomes another is closed."""
        make_channel("news", access="public")
        for request in (request_with(AnonymousUser(), Client()), AsyncRequestFactory().get("/")):
            assert admitted(request) == Visitor()
        assert still(Visitor())
        Channel.objects.update(access="authenticated")
        assert not still(Visitor())

    def test_a_policy_that_lets_in_who_is_nobody(self, make_channel) -> None:
        """An anonymous visitor with a session, and one without."""
        make_channel("news", access="policy", policy=f"{__name__}.yes")
        for request in (request_with(AnonymousUser(), Client()), AsyncRequestFactory().get("/")):
            assert admitted(request) == Visitor()
        assert still(Visitor())

    def test_a_public_channel_asks_for_nobody(self, visit: Visit) -> None:
        """The session's key is enough, should it become another: no query for the user."""
        Channel.objects.update(access="public")
        request = request_with(None, visit.client)

        request.user = SimpleLazyObject(lambda: pytest.fail("the user was loaded"))
        visitor = admitted(request)
        assert visitor == Visitor(visit.visitor.session_key)
        Channel.objects.update(access="staff")
        assert still(visitor)

    def test_a_policy_is_asked_about_nobody_where_the_user_is_inactive(self, visit: Visit) -> None:
        """As when they came."""
        Channel.objects.update(access="policy", policy=f"{__name__}.yes")
        User.objects.update(is_active=False)
        for visitor in (visit.visitor, Visitor(user_id=str(visit.user.pk))):
            assert still(visitor)
        assert [user.is_anonymous for user, _ in asked] == [True, True]

    def test_it_keeps_no_request(self, visit: Visit) -> None:
        """Which holds the session's data, the user, the headers, and stays for hours with a stream."""
        request = request_with(visit.user, visit.client)
        kept = weakref.ref(request)
        visitor = admitted(request)
        del request
        gc.collect()
        assert kept() is None
        assert visitor == visit.visitor

    def test_a_session_is_told_by_a_tag(self) -> None:
        """Which is not its key, nor of any use without the site's own."""
        assert Visitor("a-session-key").session_tag == session_tag("a-session-key")
        assert "a-session-key" not in session_tag("a-session-key")
        assert Visitor(user_id="5", session="tag").session_tag == "tag"
        assert Visitor(user_id="5").session_tag is None


def test_a_user_is_told_by_a_tag() -> None:
    """Which is the same for the same one only, and nobody without the site's key makes it from an id."""
    assert visitor_tag("5") == visitor_tag("5")
    others = [visitor_tag(None), visitor_tag("5"), visitor_tag("6"), visitor_tag("None"), visitor_tag("")]
    assert len({*others, session_tag("5")}) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", tag) for tag in others)
    with override_settings(SECRET_KEY="another one"):
        assert visitor_tag("5") != others[1]


def test_a_user_is_known_by_a_text() -> None:
    """Whatever kind the key is of; one that no database knows has none."""
    key = uuid.uuid4()
    found = [id_of(SimpleNamespace(pk=pk)) for pk in (5, 0, "ann", key, None)]
    assert found == ["5", "0", "ann", str(key), None]
    assert id_of(AnonymousUser()) is None


class Strict(ModelBackend):
    def user_can_authenticate(self, user):
        return False


class Own(ModelBackend):
    def get_user(self, user_id):
        return User.objects.get(pk=user_id)


class TestAnswers:
    """Many questions are a few queries."""

    def test_why_a_stream_ends(self, visit: Visit) -> None:
        """Whose it is goes with it, where somebody had to look."""
        visitor, user_id = visit.visitor, str(visit.user.pk)
        assert answers([Question(visitor, ("news",))]) == [Answer(None, user_id)]
        User.objects.update(is_staff=False)
        assert answers([Question(visitor, ("news",))]) == [Answer(REVOKED, user_id)]
        assert answers([Question(visitor, ("news", "other"))]) == [Answer(REVOKED, user_id)]
        assert answers([Question(None, ("news",))]) == [Answer(None)]
        Channel.objects.update(is_active=False)
        assert answers([Question(visitor, ("news",)), Question(None, ("news",))]) == [Answer(SWITCHED_OFF)] * 2

    def test_who_reads_what_anybody_may(self, visit: Visit) -> None:
        """Nobody looks whose session it is, unless somebody wants to know."""
        Channel.objects.update(access="public")
        visitor = Visitor(visit.visitor.session_key)
        channel_table.refresh()
        with CaptureQueriesContext(connection) as made:
            assert answers([Question(visitor, ("news",))]) == [Answer(None)]
        assert len(made) == 0
        assert answers([Question(visitor, ("news",), wants_user=True)]) == [Answer(None, str(visit.user.pk))]

    def test_channels_that_change_meanwhile(self, visit: Visit, monkeypatch) -> None:
        """Another thread reads them anew, when it was said already that nobody has to be loaded."""
        Channel.objects.update(access="public")
        channel_table.refresh()
        are_public = access.are_public

        def slowly(rows: Any) -> bool:
            found = are_public(rows)
            Channel.objects.update(access="staff")
            channel_table.refresh()
            return found

        monkeypatch.setattr(access, "are_public", slowly)
        assert answers([Question(visit.visitor, ("news",))]) == [Answer(None, visit.visitor.user_id)]

    @pytest.mark.parametrize("access, queries", [("authenticated", 2), ("groups", 3)])
    def test_hundreds_of_users_are_a_few_queries(self, make_channel, access: str, queries: int) -> None:
        """One for their sessions, one for the users, one for their groups."""
        group = Group.objects.create(name="readers")
        make_channel("news", access=access).groups.add(group)
        visitors = []
        for number in range(30):
            user = User.objects.create_user(f"user{number}")
            user.groups.add(group)
            for _ in range(2):
                client = Client()
                client.force_login(user)
                visitors.append(Visitor(client.session.session_key, str(user.pk)))
        channel_table.refresh()
        with CaptureQueriesContext(connection) as made:
            found = answers([Question(visitor, ("news",)) for visitor in visitors])
        assert found == [Answer(None, visitor.user_id) for visitor in visitors]
        assert len(made) == queries, [query["sql"] for query in made]

    def test_a_user_model_without_groups(self, visit: Visit, make_channel, monkeypatch) -> None:
        """There is nothing to load, and nobody is in one."""
        has_groups = access._has_groups
        make_channel("group", access="groups")
        monkeypatch.setattr(access, "_has_groups", lambda model: False)
        assert not still(visit.visitor, "group")
        assert has_groups(Session) is False
        assert access._is_of(SimpleNamespace(), Visitor("session"), {"session": {}})
