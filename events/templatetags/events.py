"""The tags of `{% load events %}`."""

from __future__ import annotations

import logging
from typing import Any

from django import template
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, SynchronousOnlyOperation
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest
from django.urls import reverse

from ..access import are_open, are_public, may_read_each, rows_of, user_of
from ..channels import channel_table, names_for_a_stream
from ..entries import MAX_ENTRIES, newest_entries
from ..exceptions import BackendUnavailable
from ..registry import event_backends
from ..tickets import MAX_AGE, make_ticket

logger = logging.getLogger("events.templatetags")

register = template.Library()


@register.simple_tag
def event_cursor(using: str = "default") -> str:
    """
    The log's cursor: everything published after this moment follows it.

    Put it before the page's own queries run, and give it to the stream as `last_event_id`: nothing between rendering
    and subscribing is lost. Empty while the log cannot be reached: the page can be shown, and its stream waits.
    """
    try:
        return str(event_backends[using].head())
    except BackendUnavailable as error:
        logger.warning("a page has no cursor: using=%s error=%s", using, error)
        return ""


@register.simple_tag(takes_context=True)
def event_ticket(context: template.Context, *channels: str, max_age: int = MAX_AGE) -> str:
    """
    A ticket with which the page's visitor can open streams of the channels, as `…/stream/?ticket=…`.

    For scripts that reach the stream where cookies do not go. It is good for `max_age` seconds, and a log-out ends its
    streams. Empty for who may not read all of the channels: their stream is refused. Raises as `events.make_ticket`
    does for names that cannot be, and for a `max_age` that is not possible; and `ImproperlyConfigured` where the
    template does not know the request. Django's cache does not keep the page: a ticket is its visitor's own.
    """
    if (request := _request_of(context)) is None:
        raise ImproperlyConfigured(
            "{% event_ticket %} needs the request: render with it, and add "
            "'django.template.context_processors.request' to the context processors of TEMPLATES."
        )
    _keep_out_of_cache(request)
    try:
        return make_ticket(user_of(request), channels, max_age, session=getattr(request, "session", None))
    except PermissionDenied:
        return ""


@register.inclusion_tag("events/live_channel.html", takes_context=True)
def live_channel(context: template.Context, *channels: str, limit: int = 100, share: bool = True) -> dict[str, Any]:
    """
    A list that shows the events of the channels as they come, at most `limit` of them.

    It begins with the newest events that are kept, at most `MAX_ENTRIES`, where the page's visitor may read all of the
    channels; without a request in the context, where everybody may. A page that is cached for everybody must not hold
    what not everybody may read: for channels that are not public the tag looks at the visitor, `Vary: Cookie` follows,
    and Django's cache (`cache_page`, its middleware) does not keep the page. A `{% cache %}` around it knows nothing of
    that: let it vary with the user. `share`: the tabs of one user share a connection.

    Raises `InvalidChannelName` for a name that cannot be one, for no channel, and for more than
    `MAX_CHANNELS_PER_STREAM`. On an event loop, where a template may not ask a database, a log that is in one raises
    Django's `SynchronousOnlyOperation`, and with another the page shows no events: render with `sync_to_async`.
    """
    names = names_for_a_stream(channels, '{{% live_channel "name" … %}} takes {} channels')
    if _may_be_shown(names, _request_of(context)):
        entries, cursor = newest_entries(names, _number_of(limit))
    else:
        entries, cursor = [], event_cursor()
    return {
        "channels": names,
        "limit": limit,
        "share": share,
        "stream_url": reverse("events:stream"),
        "cursor": cursor,
        "entries": entries,
    }


def _request_of(context: template.Context) -> Any:
    """The request that the page answers, and not what else a view calls by that name; None where it is not known."""
    # A RequestContext has it also where an `{% include … only %}` has taken all variables away.
    if (request := getattr(context, "request", None)) is not None:
        return request
    named = context.get("request")
    return named if isinstance(named, HttpRequest) else None


def _keep_out_of_cache(request: Any) -> None:
    """
    Let Django's cache not keep the page that answers this.

    `Vary: Cookie` would come too late for the decorator `cache_page`: the session's middleware writes it after the
    decorator has stored the page, for everybody. The response is not known here, so its `Cache-Control` cannot say it;
    this is what the cache's own middleware looks at.
    """
    request._cache_update_cache = False


def _may_be_shown(names: list[str], request: Any) -> bool:
    """Whether who sent the request, if it is known, may read all of the channels. What cannot be asked is a no."""
    try:
        channel_table.refresh()
        rows = rows_of(names)
        if are_public(rows):
            return True
        if request is None or not are_open(rows):
            return False
        # Who it is matters only here: to ask is to look into the session, and then no cache may keep the page for all.
        _keep_out_of_cache(request)
        return may_read_each(user_of(request), rows)
    except SynchronousOnlyOperation:
        logger.warning(
            "a page shows no events, it is rendered on an event loop: channels=%s. Use sync_to_async(render).",
            ",".join(names),
        )
    except Exception as error:
        # Whatever it is: a session engine or an authentication backend of another kind raises errors of its own.
        logger.warning(
            "a page shows no events, nobody can say who may read them: channels=%s error=%s",
            ",".join(names),
            error,
            exc_info=None if isinstance(error, (BackendUnavailable, DatabaseError, InterfaceError)) else error,
        )
    return False


def _number_of(limit: object) -> int:
    """The limit as a number: a template may have it as text, and the script makes the best of anything."""
    try:
        return int(limit)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        return MAX_ENTRIES
