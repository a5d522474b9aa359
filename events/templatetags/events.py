"""The tags of `{% load events %}`."""

from __future__ import annotations

import logging
from typing import Any

from django import template
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.urls import reverse

from .. import wire
from ..access import user_of
from ..conf import settings
from ..exceptions import BackendUnavailable, InvalidChannelName
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
    template does not know the request.
    """
    if (request := context.get("request")) is None:
        raise ImproperlyConfigured(
            "{% event_ticket %} needs the request: render with it, and add "
            "'django.template.context_processors.request' to the context processors of TEMPLATES."
        )
    try:
        return make_ticket(user_of(request), channels, max_age, session=getattr(request, "session", None))
    except PermissionDenied:
        return ""


@register.inclusion_tag("events/live_channel.html")
def live_channel(*channels: str, limit: int = 100) -> dict[str, Any]:
    """
    A list that shows the events of the channels as they come, at most `limit` of them.

    Raises `InvalidChannelName` for a name that cannot be one, for no channel, and for more than
    `MAX_CHANNELS_PER_STREAM`.
    """
    names = list(dict.fromkeys(wire.validate_channel_name(name) for name in channels))
    most = settings.MAX_CHANNELS_PER_STREAM
    if not 1 <= len(names) <= most:
        raise InvalidChannelName(f'{{% live_channel "name" … %}} takes 1 to {most} channels, not {len(names)}')
    return {
        "channels": names,
        "limit": limit,
        "stream_url": reverse("events:stream"),
        "cursor": event_cursor(),
    }
