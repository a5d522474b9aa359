"""Who may read a channel. Deny by default: what no row opens, nobody reads, and a check that fails refuses."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth import SESSION_KEY, aget_user, get_user_model
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.utils.module_loading import import_string

from .channels import channel_table
from .models import Channel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

logger = logging.getLogger("events.access")

#: The attribute of a request that has its user, loaded.
_LOADED = "_events_user"


def load_policy(path: str) -> Callable[[Any, str], Any]:
    """The function `(user, channel_name) -> bool` at a dotted path. Raises `ImportError` or `TypeError`."""
    policy = import_string(path)
    if not callable(policy):
        raise TypeError(f"{path} is not a function")
    return policy  # type: ignore[no-any-return]


async def get_user(request: HttpRequest) -> Any:
    """
    The request's user; an anonymous one where the site has no authentication middleware, or the user is inactive.

    `request.user` and not `auser()`: session and user are loaded in one trip to the request's thread, and in no second
    one for who asks again.
    """
    if _LOADED not in request.__dict__:
        lazy = getattr(request, "user", None)
        request.__dict__[_LOADED] = AnonymousUser() if lazy is None else await sync_to_async(_active_user)(lazy)
    return request.__dict__[_LOADED]


def _active_user(user: Any) -> Any:
    # The look at it loads a user that is loaded when first wanted.
    return user if user.is_active else AnonymousUser()


async def may_read(user: Any, channel: Channel) -> bool:
    """Whether `user` may read `channel` now."""
    if not channel.is_active:
        return False
    if channel.access == Channel.Access.PUBLIC:
        return True
    if channel.access == Channel.Access.POLICY:
        return await _ask_policy(user, channel)
    if not (user.is_authenticated and user.is_active):
        return False
    if channel.access == Channel.Access.AUTHENTICATED:
        return True
    if channel.access == Channel.Access.STAFF:
        # A user model of the site's own may know neither staff, nor superusers, nor groups.
        return bool(getattr(user, "is_staff", False))
    if channel.access == Channel.Access.GROUPS:
        if getattr(user, "is_superuser", False):
            return True
        groups = getattr(user, "groups", None)
        return groups is not None and await groups.filter(pk__in=channel.group_ids).aexists()
    # A value that this version does not know opens nothing.
    return False


async def _ask_policy(user: Any, channel: Channel) -> bool:
    try:
        policy = load_policy(channel.policy)
        if iscoroutinefunction(policy) or iscoroutinefunction(getattr(policy, "__call__", None)):  # noqa: B004
            answer = policy(user, channel.name)
        else:
            answer = await sync_to_async(policy)(user, channel.name)
        if inspect.isawaitable(answer):
            # Also of an async function behind a decorator that is not: the coroutine itself would pass for a yes.
            answer = await answer
        return bool(answer)
    except Exception:
        logger.exception("a policy failed and nobody is let in: channel=%s policy=%s", channel.name, channel.policy)
        return False


async def may_read_all(request: HttpRequest, names: Iterable[str]) -> bool:
    """Whether the visitor may read every one of the channels. The user is loaded only where one is not public."""
    return await _may_read_all(names, lambda: get_user(request))


async def _may_read_all(names: Iterable[str], load_user: Callable[[], Awaitable[Any]]) -> bool:
    await channel_table.arefresh()
    user = None
    for name in names:
        channel = channel_table.find(name)
        if channel is None:
            return False
        if user is None and channel.access != Channel.Access.PUBLIC:
            user = await load_user()
        if not await may_read(user, channel):
            return False
    return True


@dataclass(frozen=True, slots=True)
class Visitor:
    """
    Who opened a stream: as little as it takes to ask for their rights again. No request: it would stay for hours.

    `session_key` where the session says who it is. `user_id` where something else did, such as a token in a header.
    """

    session_key: str | None = None
    user_id: Any = None


async def visitor_of(request: HttpRequest, names: Iterable[str]) -> Visitor:
    """Who sent `request`, after `may_read_all` has let them in to these channels."""
    session = getattr(request, "session", None)
    session_key = session.session_key if session is not None else None
    if all((row := channel_table.find(name)) and row.access == Channel.Access.PUBLIC for name in names):
        # Nobody has asked who it is, and nobody has to unless the channels change.
        return Visitor(session_key)
    user = await get_user(request)
    if session is None or str(await session.aget(SESSION_KEY)) != str(user.pk):
        return Visitor(user_id=user.pk)
    return Visitor(session_key)


class _ReadOnlySession:
    """
    A session as Django's `aget_user` needs it, which changes nothing.

    Django gives a session a new key, or ends it, where its hash is an old one. No response of a stream's could tell the
    browser of that.
    """

    def __init__(self, key: str) -> None:
        self._store = import_module(settings.SESSION_ENGINE).SessionStore(key)

    async def aget(self, key: str, default: Any = None) -> Any:
        """What the session holds."""
        return await self._store.aget(key, default)

    async def aset(self, key: str, value: Any) -> None:
        """Not kept."""

    async def acycle_key(self) -> None:
        """Not done."""

    async def aflush(self) -> None:
        """Not done."""


async def _load_user(visitor: Visitor) -> Any:
    """The user as of now: who has logged out, was deactivated or is gone is an anonymous one."""
    user: Any = None
    if visitor.session_key is not None:
        # As Django's middleware does it, with all that it checks.
        request = HttpRequest()
        request.session = _ReadOnlySession(visitor.session_key)  # type: ignore[assignment]
        user = await aget_user(request)
    elif visitor.user_id is not None:
        user = await get_user_model()._default_manager.filter(pk=visitor.user_id).afirst()
    return user if user is not None and user.is_active else AnonymousUser()


async def may_still_read_all(visitor: Visitor, names: Iterable[str]) -> bool:
    """`may_read_all` for a stream that is open: the user is loaded anew."""
    return await _may_read_all(names, lambda: _load_user(visitor))


async def readable_channels(request: HttpRequest) -> list[Channel]:
    """The channels (not the prefixes) that the visitor may read, by title."""
    await channel_table.arefresh()
    user = await get_user(request)
    rows = [row for row in channel_table.all() if not row.is_pattern and await may_read(user, row)]
    return sorted(rows, key=lambda row: (row.title or row.name).casefold())
