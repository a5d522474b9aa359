"""Who may read a channel. Deny by default: what no row opens, nobody reads, and a check that fails refuses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.db import SessionStore as DatabaseSessionStore
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import connections, router
from django.db.models import prefetch_related_objects
from django.utils import timezone
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.module_loading import import_string

from . import wire
from .backends.connections import limit_connecting, renewed
from .channels import TIMEOUT, channel_table
from .models import Channel
from .threads import call

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from django.http import HttpRequest

logger = logging.getLogger("events.access")

#: The attribute of a request that has its user, loaded.
_LOADED = "_events_user"

# Why a stream ends whose client shall not come back: the reasons in `stream-closed`.

#: A channel was switched off.
SWITCHED_OFF = "switched-off"
#: Who has the stream open may not read its channels any more.
REVOKED = "revoked"
#: The site has ended the user's streams (`events.disconnect`).
DISCONNECTED = "disconnected"


def load_policy(path: str) -> Callable[[Any, str], Any]:
    """The function `(user, channel_name) -> bool` at a dotted path. Raises `ImportError` or `TypeError`."""
    policy = import_string(path)
    if not callable(policy):
        raise TypeError(f"{path} is not a function")
    return policy  # type: ignore[no-any-return]


def user_of(request: HttpRequest) -> Any:
    """
    The request's user; an anonymous one where the site has no authentication middleware, or the user is inactive.

    It may ask the database. What was found once is kept with the request.
    """
    if _LOADED not in request.__dict__:
        request.__dict__[_LOADED] = _active(getattr(request, "user", None))
    return request.__dict__[_LOADED]


async def auser_of(request: HttpRequest) -> Any:
    """`user_of`, in one trip to the request's thread, and in no second one for who asks again."""
    return request.__dict__.get(_LOADED) or await sync_to_async(user_of)(request)


def id_of(user: Any) -> str | None:
    """By which a user is known here; None for nobody, and for a user whom no database knows."""
    return None if user.pk is None else str(user.pk)


def _active(user: Any) -> Any:
    # The look at it loads a user that is loaded when first wanted.
    return user if user is not None and user.is_active else AnonymousUser()


def may_read(user: Any, channel: Channel) -> bool:
    """Whether `user` may read `channel` now. It may ask the database, and so may a policy."""
    if not channel.is_active:
        return False
    if channel.access == Channel.Access.PUBLIC:
        return True
    if channel.access == Channel.Access.POLICY:
        return _ask_policy(user, channel)
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
        # All of them, and not those of the channel: they may have been loaded, for many users at once.
        return groups is not None and any(group.pk in channel.group_ids for group in groups.all())
    # A value that this version does not know opens nothing.
    return False


def _ask_policy(user: Any, channel: Channel) -> bool:
    try:
        return bool(call(load_policy(channel.policy), user, channel.name))
    except Exception:
        logger.exception(
            "a policy failed and nobody is let in: channel=%s policy=%s", channel.name, wire.shown(channel.policy)
        )
        return False


def rows_of(names: Iterable[str]) -> list[Channel | None]:
    """The channels as this process knows them now; None for one that no row configures."""
    return [channel_table.find(name) for name in names]


def are_public(rows: Iterable[Channel | None]) -> bool:
    """Whether anybody may read all of the channels: nobody has to be asked for."""
    return all(row is not None and row.is_active and row.access == Channel.Access.PUBLIC for row in rows)


def are_open(rows: Iterable[Channel | None]) -> bool:
    """Whether all of the channels are there and switched on."""
    return all(row is not None and row.is_active for row in rows)


def are_switched_off(rows: Iterable[Channel | None]) -> bool:
    """Whether one of the channels is there, and switched off."""
    return any(row is not None and not row.is_active for row in rows)


def may_read_each(user: Any, rows: Iterable[Channel | None]) -> bool:
    """Whether `user` may read every one of the channels."""
    return all(row is not None and may_read(user, row) for row in rows)


async def may_read_all(request: HttpRequest, names: Collection[str]) -> bool:
    """Whether who sent `request` may read every one of the channels. Raises what `admit` raises."""
    return await admit(request, names) is not None


async def admit(request: HttpRequest, names: Collection[str]) -> Visitor | None:
    """
    Who sent `request`, where they may read every one of the channels; otherwise None.

    The user is loaded only where one of them is not public, and in one trip to the request's thread. Raises
    `BackendUnavailable` or Django's `DatabaseError` where the database cannot say.
    """
    await channel_table.arefresh()
    rows = rows_of(names)
    if are_public(rows):
        # Nobody has asked who it is, and nobody has to unless the channels change.
        return Visitor(_session_key(request))
    return await sync_to_async(_admit)(request, rows) if are_open(rows) else None


def _admit(request: HttpRequest, rows: Collection[Channel | None]) -> Visitor | None:
    user = user_of(request)
    if not may_read_each(user, rows):
        return None
    session_key = _session_key(request)
    user_id = id_of(user)
    if session_key is not None and request.session.get(SESSION_KEY) == user_id:
        return Visitor(session_key, user_id)
    # Something else than the session said who it is, such as a token in a header.
    return Visitor(user_id=user_id)


def _session_key(request: HttpRequest) -> str | None:
    session = getattr(request, "session", None)
    return session.session_key if session is not None else None


async def readable_channels(request: HttpRequest) -> list[Channel]:
    """The channels (not the prefixes) that the visitor may read, by title."""
    await channel_table.arefresh()
    return await sync_to_async(_readable)(request)


def _readable(request: HttpRequest) -> list[Channel]:
    user = user_of(request)
    rows = [row for row in channel_table.all() if not row.is_pattern and may_read(user, row)]
    return sorted(rows, key=lambda row: (row.title or row.name).casefold())


# Asking again, for streams that are open


def session_tag(session_key: str) -> str:
    """What a session is called where its key must not be read: in messages between processes, and in tickets."""
    return salted_hmac("events.session", session_key, algorithm="sha256").hexdigest()[:32]


def visitor_tag(user_id: str | None) -> str:
    """What a user is called where their id must not be read: in a header. None: who is not signed in, all alike."""
    whose = "anonymous" if user_id is None else f"user {user_id}"
    return salted_hmac("events.visitor", whose, algorithm="sha256").hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Visitor:
    """
    Who opened a stream: as little as it takes to ask for their rights again. No request: it would stay for hours.

    `session_key` where the session says who it is, else `user_id`, where something else did. Of a ticket there are
    `session`, the tag of the session that it was made in, and `auth`, its user's `auth_tags` at that time.
    """

    session_key: str | None = None
    user_id: str | None = None
    session: str | None = None
    auth: str | None = None

    @property
    def session_tag(self) -> str | None:
        """By which a log-out knows the session."""
        return self.session if self.session_key is None else session_tag(self.session_key)


class Question(NamedTuple):
    """
    Whether a visitor may still read some channels. `wants_user`: and who it is, although that may not matter.

    No visitor: a view of the site's own has let them in, and nothing but a switch can end it.
    """

    visitor: Visitor | None
    channels: Sequence[str]
    wants_user: bool = False


class Answer(NamedTuple):
    """Why the visitor may not go on, or None. `user_id` is the user's, where that is known."""

    refusal: str | None
    user_id: str | None = None


def answers(questions: Sequence[Question]) -> list[Answer]:
    """
    What there is to say to each question, now: two or three queries for all of them.

    For a thread whose connection to the database is closed afterwards. Raises `BackendUnavailable`, Django's
    `DatabaseError`, or what a session engine or an authentication backend of another kind raises: then nothing can be
    said, and nothing may be taken for granted.
    """
    channel_table.refresh()
    # Taken once: another thread may read the channels anew meanwhile, and whom nobody has loaded would be nobody.
    rows = [rows_of(asked.channels) for asked in questions]
    visitors = {
        asked.visitor
        for asked, channels in zip(questions, rows, strict=True)
        if asked.visitor is not None and (asked.wants_user or not are_public(channels))
    }
    with_groups = any(row is not None and row.access == Channel.Access.GROUPS for channels in rows for row in channels)
    users = _load(visitors, with_groups) if visitors else {}
    return [_answer(asked.visitor, channels, users) for asked, channels in zip(questions, rows, strict=True)]


def _answer(visitor: Visitor | None, rows: Collection[Channel | None], users: Mapping[Visitor, Any]) -> Answer:
    if are_switched_off(rows):
        return Answer(SWITCHED_OFF)
    if visitor is None:
        return Answer(None)
    if visitor not in users:
        # Anybody may read them, and nobody has looked who it is.
        return Answer(None, visitor.user_id)
    user = users[visitor]
    return Answer(None if may_read_each(user, rows) else REVOKED, id_of(user))


def _load(visitors: Collection[Visitor], with_groups: bool) -> dict[Visitor, Any]:
    """The visitors' users as of now. Anonymous is who has logged out, was deactivated or is gone."""
    connection = connections[router.db_for_read(get_user_model())]
    limit_connecting(connection, TIMEOUT)
    with renewed(connection, TIMEOUT):
        sessions = _load_sessions({visitor.session_key for visitor in visitors if visitor.session_key is not None})
        claims: dict[Visitor, tuple[str, str]] = {}
        for visitor in visitors:
            if visitor.session_key is not None:
                session = sessions.get(visitor.session_key, {})
                if SESSION_KEY in session and BACKEND_SESSION_KEY in session:
                    claims[visitor] = (session[BACKEND_SESSION_KEY], str(session[SESSION_KEY]))
            elif visitor.user_id is not None:
                claims[visitor] = ("", visitor.user_id)
        users = _load_users(set(claims.values()), with_groups)
    found: dict[Visitor, Any] = {}
    for visitor in visitors:
        user = users.get(claims[visitor]) if visitor in claims else None
        if user is not None and not _is_of(user, visitor, sessions):
            user = None
        found[visitor] = _active(user)
    return found


def _load_sessions(keys: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """What the sessions hold. Nothing in them is changed: no response of a stream's could tell a browser of that."""
    store = import_module(settings.SESSION_ENGINE).SessionStore
    if store.load is not DatabaseSessionStore.load:
        return {key: store(key).load() for key in keys}
    # What its `load` does, for all of them in one query.
    rows = store.get_model_class().objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    decode = store().decode
    return {row.session_key: decode(row.session_data) for row in rows}


def _load_users(claims: Collection[tuple[str, str]], with_groups: bool) -> dict[tuple[str, str], Any]:
    """
    The user of each claim, which is the path of an authentication backend and the user's id.

    An empty path is that of who was let in without a session: then it is the model that says who there is.
    """
    model = get_user_model()
    in_bulk: dict[tuple[str, str], tuple[ModelBackend, Any]] = {}
    found: dict[tuple[str, str], Any] = {}
    for path, user_id in claims:
        if path and path not in settings.AUTHENTICATION_BACKENDS:
            continue
        backend = load_backend(path) if path else ModelBackend()
        try:
            user_pk = model._meta.pk.to_python(user_id)
        except ValidationError:
            # Of a time when users had ids of another kind.
            continue
        if isinstance(backend, ModelBackend) and type(backend).get_user is ModelBackend.get_user:
            in_bulk[path, user_id] = backend, user_pk
        else:
            found[path, user_id] = backend.get_user(user_pk)
    # What its `get_user` does, for all of them in one query.
    users = {user.pk: user for user in model._default_manager.filter(pk__in={pk for _, pk in in_bulk.values()})}
    if with_groups and _has_groups(model):
        prefetch_related_objects(list(users.values()), "groups")
    for claim, (backend, user_pk) in in_bulk.items():
        if (user := users.get(user_pk)) is not None and backend.user_can_authenticate(user):
            found[claim] = user
    return found


def _has_groups(model: Any) -> bool:
    try:
        model._meta.get_field("groups")
    except FieldDoesNotExist:
        return False
    return True


def _is_of(user: Any, visitor: Visitor, sessions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether what the visitor came with still is the user's: as Django has it, a changed password ends it."""
    if visitor.session_key is None:
        return visitor.auth is None or any(constant_time_compare(visitor.auth, tag) for tag in auth_tags(user))
    kept = sessions[visitor.session_key].get(HASH_SESSION_KEY) or ""
    hashes = _auth_hashes(user)
    return not hashes or any(constant_time_compare(kept, known) for known in hashes)


def auth_tags(user: Any) -> list[str]:
    """What a ticket knows its user's password by, with the site's key and those before it; first, the one of now."""
    return [known[:16] for known in _auth_hashes(user)]


def _auth_hashes(user: Any) -> list[str]:
    if not hasattr(user, "get_session_auth_hash"):
        return []
    return [user.get_session_auth_hash(), *getattr(user, "get_session_auth_fallback_hash", tuple)()]
