"""
Messages from process to process, through the logs themselves: they reach every process that follows one.

A message is an event of a channel that nobody can name, written in the transaction of what it tells of, where the log
is in that database. So it comes after what was changed can be seen, and in its place among the events.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from django.db import connections

from . import signals
from .backends.base import CONTROL_CHANNEL, NewEvent
from .exceptions import EventsError
from .hub import CLEARED, DRAIN, OUTDATED, RECHECK
from .publishing import append
from .registry import event_backends

if TYPE_CHECKING:
    from collections.abc import Collection

logger = logging.getLogger("events.control")


def recheck() -> None:
    """Let every stream of every process ask again whether its client may read; those that may not end."""
    _send(RECHECK)


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


def _on_channel_written(using: str, **kwargs: Any) -> None:
    if connections[using].needs_rollback:
        # The transaction is lost already; a query in it would only hide what went wrong.
        return
    _send(OUTDATED, database=using)


signals.channel_written.connect(_on_channel_written, dispatch_uid="events.control")
