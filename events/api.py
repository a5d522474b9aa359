"""
What programs ask for over HTTP, in JSON: to publish an event, and to read what is kept of a channel.

`events/static/events/openapi.json` describes both.
"""

from __future__ import annotations

import json
import logging
import math
import re
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.contrib.auth.decorators import login_not_required
from django.core.handlers.wsgi import WSGIRequest
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict, UnreadablePostError
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.cache import patch_vary_headers
from django.views.decorators.csrf import csrf_exempt

from . import access, bodies, keys, publishing, wire
from .bodies import RefusedError
from .cors import cors
from .exceptions import BackendUnavailable, ChannelNotFound, EventTooLarge, InvalidChannelName, InvalidEvent
from .models import Channel, PublishKey
from .registry import event_backends
from .views import FORBIDDEN, non_atomic
from .wire import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .backends.base import ReadResult, StoredEvent

logger = logging.getLogger("events.api")

#: Seconds after which to try again where a database or the log cannot be reached.
RETRY_AFTER = 5
#: How many events a page of a history has, and the most that it may have.
DEFAULT_LIMIT, MAX_LIMIT = 100, 1000
#: Events that are read from the log at once, and characters of data after which a page ends.
READ_AT_ONCE, MAX_PAGE = 50, 4 * 1024 * 1024

#: "Idempotency-Key is an Item Structured Header [...] Its value MUST be a String": printable ASCII in quotes, in which
#: a backslash stands before a quote and a backslash.
_QUOTED_KEY = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
#: The same as most clients send it. A comma would be two headers.
_BARE_KEY = re.compile(r"[!#-+\--~]+")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="events"'}
_MEMBERS = ("data", "event", "key")


# Publishing


@non_atomic  # the event's id is known when it is committed
@login_not_required  # a key has no session
@csrf_exempt  # `_check_session` asks for the token, where it is a session that says who publishes
@bodies.bounded
@cors("POST")
def publish(request: HttpRequest, name: str) -> HttpResponse:
    """
    `POST publish/<name>/`: publish one event to the channel `name`. 201 with its id.

    Sync, although what it answers is short: that is one trip to the request's thread for the database, the user and
    the log.
    """
    try:
        return _answer({"id": _publish(request, name)}, status=201)
    except RefusedError as refused:
        return _refusal(refused)


def _publish(request: HttpRequest, name: str) -> str | None:
    """The id of the event that was published. Raises `RefusedError`."""
    _check_method(request, ["POST"])
    try:
        publish_key = _check_publisher(request, name)
    except (DatabaseError, InterfaceError) as error:
        raise _unavailable("Nothing was published: the site's database cannot be reached.", error) from error
    # The body is read once all that the headers say is good.
    is_json = bodies.is_json(request.headers)
    text = _read(request)
    sent = _members(text) if is_json else {"data": text}
    event = _checked("event", wire.validate_type, sent.get("event"))
    key = _checked("key", wire.validate_key, _key_of(request, sent.get("key")))
    try:
        published = publishing.publish(name, sent["data"], event=event or wire.DEFAULT_TYPE, key=key)
    except InvalidChannelName as error:
        raise _invalid("channel", error) from error
    except ChannelNotFound as error:
        raise RefusedError(404, str(error)) from error
    except EventTooLarge as error:
        raise RefusedError(413, str(error)) from error
    except InvalidEvent as error:
        raise _invalid("data", error) from error
    except BackendUnavailable as error:
        # What it says first is what became of the event.
        what = str(error).partition(":")[0]
        raise _unavailable(
            f"The log cannot be reached: {what}. With an Idempotency-Key it is safe to try again.", error
        ) from error
    if publish_key is not None:
        keys.used(publish_key)
    return published.id


def _check_publisher(request: HttpRequest, name: str) -> PublishKey | None:
    """
    The key with which the request may publish to `name`; None where it is the session's user who may.

    Raises `RefusedError`, alike for channels that exist and others. Who sends a key is judged by that alone.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        _check_session(request)
        return None
    key = keys.find(token.strip())
    if key is None:
        raise RefusedError(401, "No such publish key, or it has expired or is switched off.", headers=_CHALLENGE)
    if (wait := keys.admit(key)) is not None:
        raise RefusedError(
            429,
            f"This key may make {key.per_minute} requests in a minute: wait.",
            headers={"Retry-After": str(max(1, math.ceil(wait)))},
        )
    if not keys.may_publish(key, name):
        raise RefusedError(403, f"This key does not cover the channel {wire.shown(name)}.")
    return key


def _check_session(request: HttpRequest) -> None:
    user: Any = getattr(request, "user", None)
    if user is None or not (user.is_authenticated and user.is_active):
        raise RefusedError(401, "Sign in, or send a publish key: Authorization: Bearer lek_…", headers=_CHALLENGE)
    # Django would look for the token in the body, too, and read all of a form, which is none of the bodies taken.
    request.POST = QueryDict()
    # No view is named: this one says of itself that it is exempt.
    check = _CsrfCheck(lambda request: HttpResponse())
    if reason := check.process_view(request, None, (), {}):  # type: ignore[arg-type]
        raise RefusedError(403, f"{reason} Send the CSRF token in its header, or a publish key.")
    # A user model of the site's own may know no permissions.
    has_perm = getattr(user, "has_perm", None)
    if has_perm is None or not has_perm(f"{Channel._meta.app_label}.publish_to_channel"):
        raise RefusedError(403, "You may not publish: you lack the permission “Can publish to channels”.")


class _CsrfCheck(CsrfViewMiddleware):
    """Django's own check, which says why it refuses instead of showing a page."""

    def _reject(self, request: HttpRequest, reason: str) -> str:
        return reason


def _read(request: HttpRequest) -> str:
    """The request's body. Raises `RefusedError`."""
    length = request.headers.get("Content-Length", "")
    if not length and isinstance(request, WSGIRequest):
        # Django would take it for empty, and an empty text can be published.
        raise RefusedError(411, "This site runs under WSGI: send the body with its Content-Length, and not in chunks.")
    limit = bodies.max_bytes()
    try:
        # Not `request.body`: DATA_UPLOAD_MAX_MEMORY_SIZE is for forms, and may be less than an event.
        body = request.read(limit + 1)
    except UnreadablePostError as error:
        raise RefusedError(400, "The body ended before it was complete.") from error
    if len(body) > limit:
        raise bodies.too_large()
    if length and len(body) != int(length):
        raise RefusedError(400, f"The body ended after {len(body)} of {length} bytes.")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise RefusedError(400, f"The body is not UTF-8: there is a byte 0x{byte:02x} at {error.start}.") from error


def _members(text: str) -> dict[str, Any]:
    """What a JSON body has: "data" and perhaps "event" and "key". Raises `RefusedError`."""
    try:
        sent = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except RecursionError as error:
        raise RefusedError(400, "The body cannot be read as JSON: it is nested too deeply.") from error
    except ValueError as error:
        raise RefusedError(400, f"The body is no JSON: {error}") from error
    if not isinstance(sent, dict) or "data" not in sent:
        raise RefusedError(422, 'A JSON body is an object that has "data": {"data": "Hello"}', field="data")
    for name in sent:
        if name not in _MEMBERS:
            raise RefusedError(
                422, f"{wire.shown(name)} means nothing here: use {', '.join(_MEMBERS)}.", field=name[: wire.MAX_TYPE]
            )
    return sent


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON's. Of a name that comes twice, another reader may take the other value."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"an object has {wire.shown(name)} twice")
        found[name] = value
    return found


def _key_of(request: HttpRequest, in_body: object) -> object:
    """The idempotency key, from the header or the body. Raises `RefusedError` where they differ."""
    if (header := request.headers.get("Idempotency-Key")) is None:
        return in_body
    if quoted := _QUOTED_KEY.fullmatch(header.strip()):
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif bare := _BARE_KEY.fullmatch(header.strip()):
        key = bare[0]
    else:
        raise RefusedError(
            422, f'Idempotency-Key is text of ASCII in quotes, "like-this", not {wire.shown(header)}.', field="key"
        )
    if in_body not in (None, key):
        raise RefusedError(
            422,
            f"Idempotency-Key says {wire.shown(key)}, and the body {wire.shown(in_body)}: send one of them.",
            field="key",
        )
    return key


def _checked(field: str, validate: Callable[[object], str], value: object) -> str | None:
    """A member of a body that may be left out. Raises `RefusedError` where it is there and cannot be."""
    try:
        return None if value is None else validate(value)
    except InvalidEvent as error:
        raise _invalid(field, error) from error


# Reading


@non_atomic
@login_not_required  # whether a channel asks for a user is the channel's own to say
@cors("GET", "HEAD")
async def history(request: HttpRequest, name: str) -> HttpResponse:
    """
    `GET history/<name>/?after=<cursor>&limit=100`: what is kept of the channel `name`, oldest first, page by page.

    400 for a parameter that cannot be; 403 where the visitor may not read the channel: unknown, switched off or
    forbidden, which answer alike.
    """
    try:
        page = await _history(request, name)
    except RefusedError as refused:
        return _refusal(refused)
    return _never_cached(HttpResponse(page, content_type="application/json"))


async def _history(request: HttpRequest, name: str) -> str:
    """The page that was asked for. Raises `RefusedError`."""
    _check_method(request, ["GET", "HEAD"])
    limit = _limit_of(request)
    if not wire.is_channel_name(name):
        raise RefusedError(
            400,
            f"{wire.shown(name)} is not a channel name: "
            f"use 1 to {wire.MAX_CHANNEL_NAME} characters of A-Z a-z 0-9 . _ -",
        )
    try:
        if not await access.may_read_all(request, [name]):
            raise RefusedError(403, FORBIDDEN)
        # On the request's thread, where the user was loaded: a loop of WSGI's lives for one request, and what a log
        # keeps for a loop would stay behind.
        return await sync_to_async(_page)(name, request.GET.get("after", ""), limit)
    except (BackendUnavailable, DatabaseError, InterfaceError) as error:
        raise _unavailable("The history cannot be read at the moment: try again later.", error) from error


def _limit_of(request: HttpRequest) -> int:
    text = request.GET.get("limit") or str(DEFAULT_LIMIT)
    # Digits of ASCII: `int` knows more, and spaces and underscores.
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise RefusedError(400, f"limit={wire.shown(text)} is not possible: use a whole number from 1 to {MAX_LIMIT}.")
    return int(text)


def _page(name: str, after: str, limit: int) -> str:
    """One page of a history, as JSON. It ends early where it gets large, or where the log is trimmed meanwhile."""
    log = event_backends["default"]
    cursor = Cursor.parse(after)
    position = cursor.position if cursor else 0
    found = log.read([name], position, min(limit, READ_AT_ONCE))
    reset = _reset(cursor, found, found.floors.get(name, 0)) if after else None
    if reset is not None:
        position = 0
        found = log.read([name], position, min(limit, READ_AT_ONCE))
    epoch = found.head.epoch
    events: list[str] = []
    size = 0
    while True:
        for event in found.events:
            events.append(_as_json(event, epoch))
            position = event.position
            size += len(events[-1])
            if size >= MAX_PAGE:
                break
        if size >= MAX_PAGE:
            break
        if not found.more:
            position = found.head.position
            break
        if len(events) == limit:
            break
        found = log.read([name], position, min(limit - len(events), READ_AT_ONCE))
        if found.head.epoch != epoch or found.floors.get(name, 0) > position:
            # The next page begins with the reset that says so.
            break
    return f'{{"events":[{",".join(events)}],"cursor":"{Cursor(epoch, position)}","reset":{json.dumps(reset)}}}'


def _reset(cursor: Cursor | None, found: ReadResult, floor: int) -> str | None:
    """Why a history cannot go on from `cursor`, in the words of `stream-reset`; None where it can."""
    if cursor is None:
        return "unknown"
    if cursor.epoch != found.head.epoch:
        return "epoch"
    if cursor.position > found.head.position:
        return "unknown"
    return "trimmed" if floor > cursor.position else None


def _as_json(event: StoredEvent, epoch: str) -> str:
    """An event with its id, and else as in a stream's envelope (`wire.encode_envelope`)."""
    kind = json.dumps(event.type, ensure_ascii=False)
    data = event.data if event.is_json else json.dumps(event.data, ensure_ascii=False)
    return f'{{"id":"{Cursor(epoch, event.position)}","event":{kind},"channel":"{event.channel}","data":{data}}}'


# Answers


def _check_method(request: HttpRequest, allowed: list[str]) -> None:
    if request.method not in allowed:
        names = " or ".join(allowed)
        raise RefusedError(405, f"Only {names} is possible here.", headers={"Allow": ", ".join(allowed)})


def _invalid(field: str, error: Exception) -> RefusedError:
    return RefusedError(422, str(error), field=field)


def _unavailable(reason: str, error: Exception) -> RefusedError:
    # What a database says, with names and addresses, is for the site's own log.
    logger.warning("a request is put off: reason=%r error=%s", reason, error)
    return RefusedError(503, reason, headers={"Retry-After": str(RETRY_AFTER)})


def _refusal(refused: RefusedError) -> HttpResponse:
    said = {"error": refused.reason}
    if refused.field is not None:
        said["field"] = refused.field
    response = _answer(said, status=refused.status, headers=refused.headers)
    # Sessions add it where somebody looked who asks, which for a channel that does not exist nobody does.
    patch_vary_headers(response, ["Cookie"])
    return response


def _answer(said: dict[str, Any], *, status: int, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return _never_cached(JsonResponse(said, status=status, headers=dict(headers or {})))


def _never_cached(response: HttpResponse) -> HttpResponse:
    response["Cache-Control"] = "private, no-store"
    response["X-Content-Type-Options"] = "nosniff"
    return response
