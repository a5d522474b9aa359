"""Who may read a channel. Deny by default: what no row opens, nobody reads, and a check that fails refuses."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.contrib.auth.models import AnonymousUser
from django.utils.module_loading import import_string

from .channels import channel_table
from .models import Channel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django.http import HttpRequest

logger = logging.getLogger("events.access")


def load_policy(path: str) -> Callable[[Any, str], Any]:
    """The function `(user, channel_name) -> bool` at a dotted path. Raises `ImportError` or `TypeError`."""
    policy = import_string(path)
    if not callable(policy):
        raise TypeError(f"{path} is not a function")
    return policy  # type: ignore[no-any-return]


async def get_user(request: HttpRequest) -> Any:
    """The request's user; an anonymous one where the site has no authentication middleware, or the user is inactive."""
    if not hasattr(request, "auser"):
        return AnonymousUser()
    user = await request.auser()
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
    await channel_table.arefresh()
    user = None
    for name in names:
        channel = channel_table.find(name)
        if channel is None:
            return False
        if user is None and channel.access != Channel.Access.PUBLIC:
            user = await get_user(request)
        if not await may_read(user, channel):
            return False
    return True


async def may_still_read_all(request: HttpRequest, names: Iterable[str]) -> bool:
    """`may_read_all` for a stream that is open: the user is loaded anew, who was deactivated or left a group since."""
    for attribute in ("_acached_user", "_cached_user"):
        # Where Django's middleware remembers the user for as long as the request lasts, which is here for hours.
        request.__dict__.pop(attribute, None)
    return await may_read_all(request, names)


async def readable_channels(request: HttpRequest) -> list[Channel]:
    """The channels (not the prefixes) that the visitor may read, by title."""
    await channel_table.arefresh()
    user = await get_user(request)
    rows = [row for row in channel_table.all() if not row.is_pattern and await may_read(user, row)]
    return sorted(rows, key=lambda row: (row.title or row.name).casefold())
