"""
Messages from process to process, through the logs themselves: they reach every process that follows one.

A message is an event of a channel that nobody can name, written in the transaction of what it tells of, where the log
is in that database. So it comes after what was changed can be seen, and in its place among the events.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_out
from django.db import connections, router
from django.db.models.signals import m2m_changed, post_delete, post_save

from . import signals, wire
from .access import session_tag
from .backends.base import CONTROL_CHANNEL, NewEvent
from .exceptions import EventsError
from .hub import CLEARED, DISCONNECT, DRAIN, OUTDATED, RECHECK
from .publishing import append
from .registry import event_backends

if TYPE_CHECKING:
    from collections.abc import Collection

    from django.http import HttpRequest

logger = logging.getLogger("events.control")

#: The fields of a user that say what they may. A password that is changed ends sessions.
RIGHTS_OF_USER = frozenset({"is_active", "is_staff", "is_superuser", "password"})


def recheck(user: Any = None, channels: Collection[str] | None = None) -> None:
    """
    Let streams of every process ask again, now, whether their clients may read; those that may not end.

    Those of `user`, a user or their primary key, and of `channels`, names or prefixes with a `*`; by default all. For
    what rights hang on and Django does not tell of: a subscription that ends, or what a policy looks up. Raises
    `InvalidChannelName`, or `ValueError` for a user who is anonymous or was not saved.
    """
    meant: dict[str, Any] = {}
    if user is not None:
        meant["users"] = [_id_of(user)]
    if channels is not None:
        names = [channels] if isinstance(channels, str) else list(channels)
        meant["channels"] = [
            name if wire.is_channel_pattern(name) else wire.validate_channel_name(name) for name in names
        ]
    _send(RECHECK, meant)


async def arecheck(user: Any = None, channels: Collection[str] | None = None) -> None:
    """`recheck` from async code."""
    await sync_to_async(recheck)(user, channels)


def disconnect(user: Any) -> None:
    """
    End every stream of `user`, a user or their primary key, in every process; clients are told not to come back.

    Who still may read can open a new one: take away the right first. Raises `ValueError` for a user who is anonymous or
    was not saved.
    """
    _send(DISCONNECT, {"user": _id_of(user)})


async def adisconnect(user: Any) -> None:
    """`disconnect` from async code."""
    await sync_to_async(disconnect)(user)


def _id_of(user: Any) -> str:
    pk = getattr(user, "pk", user)
    if pk is None or pk == "":
        raise ValueError(f"{user!r} has no primary key: streams are known by that of a saved user.")
    return str(pk)


def drain() -> None:
    """
    End every stream of every process. Each client comes back by itself, after a time of its own.

    For what needs it: moving clients to other machines, or to a new version of a page.
    """
    _send(DRAIN)


def clear_history(channels: Collection[str], using: str = "default") -> int:
    """
    Remove all events of the channels from the log, and from what processes remember of it. Returns how many went.

    Raises `BackendUnavailable`.
    """
    count = event_backends[using].clear(channels)
    _send(CLEARED, {"channels": sorted(channels)}, aliases=[using])
    return count


def _send(
    kind: str, payload: dict[str, Any] | None = None, *, aliases: Collection[str] | None = None, database: str = ""
) -> None:
    """Append a message to the logs, in the open transaction of `database` (empty: the default one)."""
    message = NewEvent(channel=CONTROL_CHANNEL, type=kind, data=json.dumps(payload or {}), is_json=True, keep=0)
    for alias in aliases or event_backends:
        try:
            append(event_backends[alias], [message], database=database, is_robust=True)
        except EventsError as error:
            # What it tells of is done, and who follows that log will notice a little later.
            logger.warning("processes were not told at once: log=%s message=%s error=%s", alias, kind, error)


def _tell(kind: str, payload: dict[str, Any] | None = None, *, using: str) -> None:
    """Send a message in the transaction of a change that was made through Django."""
    if connections[using].needs_rollback:
        # The transaction is lost already; a query in it would only hide what went wrong.
        return
    _send(kind, payload, database=using)


def _on_channel_written(using: str, **kwargs: Any) -> None:
    _tell(OUTDATED, using=using)


def _on_logged_out(request: HttpRequest | None, **kwargs: Any) -> None:
    # Django says so before it empties the session: a look at that might still find the user in it.
    session = getattr(request, "session", None)
    if session is not None and session.session_key is not None:
        _tell(RECHECK, {"session": session_tag(session.session_key)}, using=router.db_for_write(get_user_model()))


def _on_user_saved(
    instance: Any, created: bool, raw: bool, using: str, update_fields: Collection[str] | None, **kwargs: Any
) -> None:
    if created or raw or (update_fields is not None and RIGHTS_OF_USER.isdisjoint(update_fields)):
        # Nobody has come yet, or what was saved says nothing of rights: each log-in writes `last_login`.
        return
    _tell(RECHECK, {"users": [str(instance.pk)]}, using=using)


def _on_user_deleted(instance: Any, using: str, **kwargs: Any) -> None:
    _tell(RECHECK, {"users": [str(instance.pk)]}, using=using)


def _on_groups_changed(
    instance: Any, action: str, reverse: bool, pk_set: Collection[Any] | None, using: str, **kwargs: Any
) -> None:
    if not action.startswith("post_"):
        return
    users = pk_set if reverse else [instance.pk]
    # A group that is emptied does not say who was in it.
    _tell(RECHECK, None if users is None else {"users": [str(pk) for pk in users]}, using=using)


def _watch_users() -> None:
    user = get_user_model()
    # A proxy's changes are told under its own name; and to hear of every model's would cost every delete its speed.
    for model in apps.get_models():
        if issubclass(model, user):
            uid = f"events.{model._meta.label}"
            post_save.connect(_on_user_saved, sender=model, dispatch_uid=f"{uid}.saved")
            post_delete.connect(_on_user_deleted, sender=model, dispatch_uid=f"{uid}.deleted")
    if (groups := getattr(user, "groups", None)) is not None:
        m2m_changed.connect(_on_groups_changed, sender=groups.through, dispatch_uid="events.user_groups")


signals.channel_written.connect(_on_channel_written, dispatch_uid="events.control")
user_logged_out.connect(_on_logged_out, dispatch_uid="events.logged_out")
_watch_users()
