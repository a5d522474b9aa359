"""What the app answers: the live pages and the stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import sync_to_async
from django.conf import global_settings
from django.conf import settings as django_settings
from django.contrib.auth.decorators import login_not_required
from django.core.handlers.wsgi import WSGIRequest
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseNotAllowed
from django.shortcuts import render, resolve_url
from django.urls import NoReverseMatch, reverse
from django.utils.cache import add_never_cache_headers, patch_vary_headers
from django.views.decorators.csrf import csrf_exempt

from . import access, limits, wire
from .channels import channel_table
from .conf import settings
from .cors import cors
from .entries import MAX_ENTRIES, newest_entries
from .exceptions import BackendUnavailable, InvalidTicket
from .hub import get_hub
from .registry import event_backends
from .responses import EventStreamResponse
from .rights import UNCHECKED, moment
from .streams import FIRST_BYTES_WAIT
from .tickets import read_ticket

if TYPE_CHECKING:
    from .models import Channel

logger = logging.getLogger("events.views")

#: What all that cannot be read is answered with.
FORBIDDEN = "There is no such channel, or you may not read it."
#: By which tabs know that they show their streams to the same user.
VISITOR_HEADER = "Events-Visitor"

View = TypeVar("View", bound=Callable[..., HttpResponseBase | Coroutine[Any, Any, HttpResponseBase]])


def non_atomic(view: View) -> View:
    """
    Keep `ATOMIC_REQUESTS` away from a view: Django refuses async views under it, and a stream would last for hours.
    """
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


@non_atomic
@login_not_required  # whether a channel asks for a user is the channel's own to say, and a ticket has one
@csrf_exempt  # it changes nothing: what is wrong with a POST is that it is one, not that it bears no token
@cors("GET", "HEAD")
async def stream(request: HttpRequest) -> HttpResponseBase:
    """
    `GET stream/?channel=a&channel=b`: the event stream.

    400 for no channel, too many, or a parameter that cannot be; 403 where the visitor may not read all of them, or a
    `ticket` does not open them. Unknown, switched-off and forbidden channels answer alike. Where the database cannot
    say, a stream that ends at once and lets the client come back.

    The header `Events-Cursor` says where the log is now; with `follow=0` the stream ends there. With `visitor=1` the
    header `Events-Visitor` is the same for all streams of a user.
    """
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(["GET", "HEAD"])
    names = list(dict.fromkeys(request.GET.getlist("channel")))
    ticket = request.GET.get("ticket")
    visitor: access.Visitor | None = None
    if ticket:
        try:
            visitor, opened = read_ticket(ticket)
        except InvalidTicket as error:
            return _refusal(403, str(error))
        names = names or opened
        if not set(names) <= set(opened):
            # A ticket decides alone: who is signed in besides makes no difference.
            return _refusal(403, FORBIDDEN)
    if problem := _problem(request, names):
        return _refusal(400, problem)
    is_asgi = not isinstance(request, WSGIRequest)
    if request.method == "GET" and is_asgi:
        # Before anybody's rights are looked at, so that no message that takes them away is missed; and so that the
        # response knows where "now" is before its headers leave.
        hub = get_hub()
        hub.start()
        await hub.wait_started(FIRST_BYTES_WAIT)
    checked = moment()
    try:
        if not ticket:
            visitor = await access.admit(request, names)
        else:
            await channel_table.arefresh()
            # Its maker made sure of the rest, and the stream asks for the user before it writes an event.
            visitor = visitor if access.are_open(access.rows_of(names)) else None
            checked = UNCHECKED
        user = await _user_to_count(request, visitor, is_by_ticket=bool(ticket))
        # A stream that goes on begins where the hub is, and misses nothing. One that ends must not end before the log
        # does: who has published, or has an event from another process, would not find it.
        is_finite = request.GET.get("follow") == "0"
        now = await event_backends["default"].ahead() if is_finite and is_asgi and visitor is not None else None
    except (BackendUnavailable, DatabaseError, InterfaceError) as error:
        logger.warning("a stream is put off: channels=%s error=%s", ",".join(names), error)
        return _later()
    if visitor is None:
        return _refusal(403, FORBIDDEN)
    tells_visitor = request.GET.get("visitor") == "1"
    tag = await _visitor_tag(request, visitor, is_by_ticket=bool(ticket)) if tells_visitor and is_asgi else None
    response = EventStreamResponse(
        request,
        names,
        allowed=visitor,
        checked=checked,
        user=user,
        address=request.META.get("REMOTE_ADDR"),
        now=now,
    )
    if tag is not None:
        response[VISITOR_HEADER] = tag
        # The session adds it where it was looked into; who is nobody may come without one.
        patch_vary_headers(response, ["Cookie"])
    return response


async def _user_to_count(request: HttpRequest, visitor: access.Visitor | None, *, is_by_ticket: bool) -> str | None:
    """The id of the user whose streams are counted, where they are."""
    if visitor is None or settings.MAX_STREAMS_PER_USER is None:
        return None
    user_id, _ = await _whose(request, visitor, is_by_ticket=is_by_ticket)
    return user_id


async def _visitor_tag(request: HttpRequest, visitor: access.Visitor, *, is_by_ticket: bool) -> str | None:
    """What a client knows its user by without knowing who it is; None where nobody can say whose stream it is."""
    try:
        user_id, is_known = await _whose(request, visitor, is_by_ticket=is_by_ticket)
    except Exception as error:  # noqa: BLE001 - whatever it is, who may read does not depend on it
        logger.warning("nobody can say whose stream it is, which is therefore not shared: error=%s", error)
        return None
    return access.visitor_tag(user_id) if is_known else None


async def _whose(request: HttpRequest, visitor: access.Visitor, *, is_by_ticket: bool) -> tuple[str | None, bool]:
    """The id of the user who was let in, None for who is not signed in; and whether that can be told."""
    if is_by_ticket or visitor.user_id is not None:
        return visitor.user_id, True
    # A public channel: nobody has looked yet. Or somebody has: then it costs nothing.
    user = await access.auser_of(request)
    user_id = access.id_of(user) if user.is_authenticated else None
    # A site's own kind of user may have no id.
    return user_id, user_id is not None or not user.is_authenticated


def _problem(request: HttpRequest, names: list[str]) -> str:
    """What is wrong with the stream's parameters, and what to do."""
    limit = settings.MAX_CHANNELS_PER_STREAM
    if not names:
        return "Name at least one channel: ?channel=news"
    if len(names) > limit:
        return f"One stream follows at most {limit} channels, not {len(names)}: open another one."
    for name in names:
        if not wire.is_channel_name(name):
            return (
                f"{wire.shown(name)} is not a channel name: "
                f"use 1 to {wire.MAX_CHANNEL_NAME} characters of A-Z a-z 0-9 . _ -"
            )
    for parameter, allowed in (
        ("envelope", ("", "0", "1")),
        ("follow", ("", "0", "1")),
        ("replay", ("", "0", "1")),
        ("visitor", ("", "0", "1")),
        ("from", ("", "now", "earliest")),
    ):
        value = request.GET.get(parameter, "")
        if value not in allowed:
            choices = " or ".join(f"{parameter}={choice}" for choice in allowed if choice)
            return f"{parameter}={wire.shown(value)} is not possible: use {choices}."
    return ""


def _later() -> HttpResponse:
    """
    An answer to come back after a while.

    A stream that ends at once, and no 503: a browser's EventSource that gets any other status never comes back.
    """
    response = HttpResponse(limits.put_off(), content_type=wire.CONTENT_TYPE)
    add_never_cache_headers(response)
    return response


def _refusal(status: int, reason: str) -> HttpResponse:
    response = HttpResponse(reason + "\n", status=status, content_type="text/plain; charset=utf-8")
    response["X-Content-Type-Options"] = "nosniff"
    add_never_cache_headers(response)
    # The session adds it where somebody has looked who asks, which for a channel that does not exist nobody does.
    patch_vary_headers(response, ["Cookie"])
    return response


@non_atomic
async def index(request: HttpRequest) -> HttpResponseBase:
    """The live updates page: every channel that the visitor may read."""
    return await _live_page(request, await access.readable_channels(request), single=False)


@non_atomic
async def channel(request: HttpRequest, name: str) -> HttpResponseBase:
    """The live page of one channel. A channel that the visitor may not read does not show that it exists: 404."""
    if not wire.is_channel_name(name) or not await access.may_read_all(request, [name]):
        # As for a channel that asks for a user: the session adds a header where somebody has looked into it.
        await access.auser_of(request)
        raise Http404(FORBIDDEN)
    row = channel_table.find(name)
    return await _live_page(request, [] if row is None else [row], single=True)


async def _live_page(request: HttpRequest, channels: list[Channel], *, single: bool) -> HttpResponseBase:
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(["GET", "HEAD"])
    user: Any = await access.auser_of(request)
    shown = [
        {
            "name": row.name,
            "title": row.title,
            "description": row.description,
            "source": row.source,
            # A template shows 0.5, 1, 2.25 and 30, each as its language does.
            "interval": Decimal(f"{Decimal(str(row.interval)).normalize():f}"),
            "url": reverse("events:channel", args=[row.name]),
        }
        for row in channels
    ]
    # Those that the page follows when it opens.
    followed = [row.name for row in channels[: settings.MAX_CHANNELS_PER_STREAM]]
    context = {
        "channels": shown,
        "single": single,
        "stream_url": reverse("events:stream"),
        "index_url": reverse("events:index"),
        "max_channels": settings.MAX_CHANNELS_PER_STREAM,
        "is_signed_in": user.is_authenticated,
        "login_url": None if user.is_authenticated else _login_url(),
        "admin_url": _admin_url() if user.is_authenticated and user.is_staff else None,
    }
    response = await sync_to_async(_render_with_entries)(request, followed, context)
    # A page from a cache would name channels that its reader may not read, and a cursor of long ago.
    add_never_cache_headers(response)
    return response


def _render_with_entries(request: HttpRequest, names: list[str], context: dict[str, Any]) -> HttpResponse:
    """The live page. Asks the log, and a site's own context processors and templates may ask the database."""
    entries, cursor = newest_entries(names, MAX_ENTRIES)
    return render(request, "events/live.html", {**context, "entries": entries, "cursor": cursor})


def _login_url() -> str | None:
    """Where a visitor signs in: the site's `LOGIN_URL`, else the admin's page."""
    try:
        if django_settings.LOGIN_URL == global_settings.LOGIN_URL:
            # Django's default names a page that most sites do not have.
            return reverse("admin:login")
        return resolve_url(django_settings.LOGIN_URL)
    except NoReverseMatch:
        return None


def _admin_url() -> str | None:
    try:
        return reverse("admin:events_channel_changelist")
    except NoReverseMatch:
        return None
