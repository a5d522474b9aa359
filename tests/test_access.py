from __future__ import annotations

import functools
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, Group
from django.test import AsyncRequestFactory

from events import access
from events.access import load_policy, may_read, may_read_all, readable_channels
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

        async def auser():
            return users[kind]

        request.auser = auser
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
    assert await may_read(users[kind], channel) is expected


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
    request = AsyncRequestFactory().get("/")

    async def auser():
        pytest.fail("the user was loaded")

    request.auser = auser
    assert await may_read_all(request, ["news"]) is True


async def test_a_site_without_authentication_has_anonymous_visitors(make_channel):
    """Public channels are open, the others are not, and nothing fails."""
    await sync_to_async(make_channel)("open")
    await sync_to_async(make_channel)("closed", access="authenticated")
    request = AsyncRequestFactory().get("/")
    assert not hasattr(request, "auser")
    assert await may_read_all(request, ["open"]) is True
    assert await may_read_all(request, ["closed"]) is False
    assert [row.name for row in await readable_channels(request)] == ["open"]


@pytest.mark.parametrize("who", ["staff", "groups"])
async def test_a_user_model_without_rights_has_no_rights(who):
    """A site's own user model may know neither staff nor groups: closed, and no 500."""  # promise 16
    user = SimpleNamespace(is_authenticated=True, is_active=True)
    assert await may_read(user, Channel(name="news", access=who)) is False
    assert await may_read(user, Channel(name="news", access="authenticated")) is True


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
    assert record.getMessage() == f"a policy failed and nobody is let in: channel=news policy={policy}"
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
