"""
The process's copy of what the admin configures, so that no publish and no stream asks the database for it.

A change in this process is seen at once, and so is another process's where this one follows a log, which brings the
news (`events.control`). Where it does not, a copy older than half a second is used only after a look at the
`ChannelRevision` row, one small query, has shown that it is still good.
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, InterfaceError, connections, router

from . import signals, wire
from .backends.base import CONTROL_CHANNEL, Retention
from .backends.connections import limit_connecting, renewed, using_databases
from .conf import settings
from .exceptions import BackendUnavailable, InvalidChannelName
from .models import Channel, ChannelRevision

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.db.backends.base.base import BaseDatabaseWrapper

#: Seconds that the database may take to answer.
TIMEOUT = 5.0
#: Seconds for which a copy is used without a look.
MAX_AGE = 0.5
#: The same where a log tells of changes: for the message that was not sent because its log could not be reached.
MAX_TOLD_AGE = 20.0
#: Seconds after which all is read again even so: rows may have been changed with SQL, behind the counter's back.
MAX_UNREAD = 60.0
#: Names under a prefix whose row is remembered. Any number of names can be asked for; this bounds what they cost.
MAX_REMEMBERED = 10_000
#: Seconds for which the events of a channel that no row configures any more are kept: it may have been deleted by
#: mistake, or be renamed.
ORPHANS_KEPT = 86_400
#: What is kept of the messages between processes. Who has missed one has missed events too, and asks for everything.
CONTROL_KEPT = Retention(events=1000, seconds=3600)


class _Rows:
    """What one reading found. Replaced as a whole, so that no thread sees half of an old one and half of a new."""

    def __init__(self, rows: list[Channel]) -> None:
        self.exact = {row.name: row for row in rows if not row.is_pattern}
        # The longest prefix wins.
        self.prefixes = sorted((row for row in rows if row.is_pattern), key=lambda row: -len(row.name))
        self.remembered: dict[str, Channel] = {}


class ChannelTable:
    """Name to `Channel`. The instances are shared between threads: read them, do not change them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = _Rows([])
        self._revision: int | None = None
        self._looked_at = self._read_at = float("-inf")
        #: How often it was said that something has changed, and of how much of that the copy knows.
        self._changes = self._seen = 0
        #: How many hubs follow a log that brings the news.
        self._told_by = 0

    def find(self, name: str) -> Channel | None:
        """
        The row that configures `name`, as this process knows it; switched off or not. No query.

        For a name under a prefix: a copy of the prefix's row that bears the name asked for.
        """
        # Taken once: what is remembered of rows that another thread replaces meanwhile goes with them.
        rows = self._rows
        if (channel := rows.exact.get(name) or rows.remembered.get(name)) is not None:
            return channel
        for row in rows.prefixes:
            if name.startswith(row.name[:-1]):
                channel = copy.copy(row)
                channel.name = name
                if len(rows.remembered) >= MAX_REMEMBERED:
                    rows.remembered = {}
                rows.remembered[name] = channel
                return channel
        return None

    def get(self, name: str) -> Channel | None:
        """`find` in a copy that is fresh. Looks again before it says that there is no such channel."""
        self.refresh()
        channel = self.find(name)
        if channel is None and self._looked_at < time.monotonic() - 0.05:
            # It may have been made a moment ago, in another process.
            self.invalidate()
            self.refresh()
            channel = self.find(name)
        return channel

    def all(self) -> list[Channel]:
        """All rows as this process knows them, by name. No query."""
        return sorted([*self._rows.exact.values(), *self._rows.prefixes], key=lambda row: row.name)

    def is_fresh(self) -> bool:
        """Whether the copy may be used without a look."""
        max_age = MAX_TOLD_AGE if self._told_by > 0 else MAX_AGE
        return self._seen == self._changes and time.monotonic() - self._looked_at < max_age

    def listen(self) -> None:
        """From now on a hub tells of every change."""
        with self._lock:
            self._told_by += 1
        # What changed before that was not told.
        self.invalidate()

    def unlisten(self) -> None:
        """That hub has ended."""
        with self._lock:
            self._told_by -= 1

    def invalidate(self, **kwargs: Any) -> None:
        """Look before the copy is used again."""
        self._changes += 1

    def refresh(self) -> None:
        """
        Make the copy fresh. One query where nothing changed, none within half a second of the last one.

        Raises `BackendUnavailable` where the database cannot be read.
        """
        if self.is_fresh():
            return
        with self._lock:
            if self.is_fresh():
                return
            # Taken before the look: what changes during it is looked at again.
            now, changes = time.monotonic(), self._changes
            connection = connections[router.db_for_read(Channel)]
            limit_connecting(connection, TIMEOUT)
            try:
                with nullcontext() if connection.in_atomic_block else renewed(connection, TIMEOUT):
                    changed = self._look(connection, now)
            except (DatabaseError, InterfaceError) as error:
                raise BackendUnavailable(
                    f"the channels cannot be read: the database {connection.alias!r} says: {error}"
                ) from error
            self._looked_at, self._seen = now, changes
        if changed:
            signals.channels_refreshed.send(sender=type(self))

    def _look(self, connection: BaseDatabaseWrapper, now: float) -> bool:
        """Read again what may have changed. Returns whether it has."""
        numbers = ChannelRevision.objects.using(connection.alias).filter(pk=1).values_list("number", flat=True)
        revision = numbers.first()
        if revision == self._revision and now - self._read_at <= MAX_UNREAD:
            return False
        changed = self._read(connection.alias)
        # What was read inside a transaction may be rolled back, and its number be given again to another change: it is
        # used, but read again at the next look.
        self._read_at = float("-inf") if connection.in_atomic_block else now
        self._revision = revision
        return changed

    def _read(self, database: str) -> bool:
        before = {row.name: row.__dict__ for row in self.all()}
        groups: dict[int, set[int]] = {}
        for channel_id, group_id in Channel.groups.through.objects.using(database).values_list(
            "channel_id", "group_id"
        ):
            groups.setdefault(channel_id, set()).add(group_id)
        rows = list(Channel.objects.using(database))
        for row in rows:
            row.group_ids = frozenset(groups.get(row.pk, ()))
        self._rows = _Rows(rows)
        after = {row.name: row.__dict__ for row in self.all()}
        return [*map(_plain, before.values())] != [*map(_plain, after.values())]

    async def arefresh(self) -> None:
        """`refresh` without blocking the loop, and without leaving a connection on the request's own thread."""
        if not self.is_fresh():
            await asyncio.to_thread(self.refresh_and_close)

    def refresh_and_close(self) -> None:
        """`refresh` for a thread that will not use the database again."""
        with using_databases():
            try:
                self.refresh()
            finally:
                connections[router.db_for_read(Channel)].close()

    def after_fork(self) -> None:
        """A lock that another thread held at the fork would be held in the child for ever; and no hub lives on."""
        self._lock = threading.Lock()
        self._told_by = 0


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name != "_state"}


channel_table = ChannelTable()
os.register_at_fork(after_in_child=channel_table.after_fork)
signals.channels_changed.connect(channel_table.invalidate, dispatch_uid="events.channels")


def retention_of(name: str) -> Retention:
    """What is kept of a channel's events, as the admin says."""
    if name == CONTROL_CHANNEL:
        return CONTROL_KEPT
    row = channel_table.find(name)
    if row is None:
        return Retention(seconds=ORPHANS_KEPT)
    return Retention(events=row.history_events, seconds=row.history_seconds)


def names_for_a_stream(channels: Iterable[str], takes: str) -> list[str]:
    """
    The names in `channels`, each once, of which one stream can have no more.

    Raises `InvalidChannelName` for a name that cannot be one, for none, and for more than `MAX_CHANNELS_PER_STREAM`.
    `takes` is how the message for the latter begins, such as "a stream follows {} channels": the bounds are put in.
    """
    names = list(dict.fromkeys(wire.validate_channel_name(name) for name in channels))
    most = settings.MAX_CHANNELS_PER_STREAM
    if not 1 <= len(names) <= most:
        raise InvalidChannelName(f"{takes.format(f'1 to {most}')}, not {len(names)}")
    return names
