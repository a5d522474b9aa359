"""
An outbox in the site's database, for a log that is elsewhere.

An event is written here first, as part of whatever transaction is open, and relayed to the log after the commit: by
who wrote it, or, where that one died or the log could not be reached, by the tail of any process. Rows are relayed in
the order of their ids, and each has a token by which the log knows it again: whoever relays it, and however often, it
is in the log once. So nobody holds a lock of the database while waiting for the log.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from typing import TYPE_CHECKING

from django.db import DatabaseError, InterfaceError, connections, router, transaction

from .. import models
from ..exceptions import BackendUnavailable
from .base import NewEvent, PublishedEvent
from .text import restored, storable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    #: Writes events to the log, and remembers each by its token: one that it knows it does not write again.
    Send = Callable[[Sequence[NewEvent], Sequence[str]], list[PublishedEvent]]
    #: By token: the event, and the result that waits for its cursor.
    Pending = dict[str, tuple[NewEvent, PublishedEvent]]

logger = logging.getLogger("events.backends.outbox")

#: Rows that are relayed at once.
CHUNK = 500
#: Seconds between two looks for what was not relayed, and for which publishers do not try after a failure.
INTERVAL = 1.0


class Outbox:
    """The rows of one log, `log` being its alias, in the database `alias` (None: where the routers send them)."""

    def __init__(self, log: str, alias: str | None) -> None:
        self.log = log
        self._alias = alias
        self._lock = threading.Lock()
        self._rests_until = 0.0
        self._is_failing = False

    @property
    def database(self) -> str:
        """The alias of the database."""
        alias: str = self._alias or router.db_for_write(models.Outbox)
        return alias

    def append(self, events: Sequence[NewEvent], send: Send) -> list[PublishedEvent]:
        """
        Write the rows, all or none, and relay them once they are committed.

        The results' `id` stays None until then, and where the log cannot be reached. Raises `BackendUnavailable` where
        the database fails.
        """
        now = time.time()
        connection = connections[self.database]
        rows = [
            models.Outbox(
                log=self.log,
                channel=event.channel,
                type=event.type,
                data=storable(connection, event.data),
                is_json=event.is_json,
                key=event.key or "",
                keep=event.keep,
                token=uuid.uuid4().hex,
                created_at=now,
            )
            for event in events
        ]
        try:
            # A savepoint: all or none, also where the caller catches the error and commits the rest.
            with transaction.atomic(using=connection.alias):
                models.Outbox.objects.using(connection.alias).bulk_create(rows)
        except (DatabaseError, InterfaceError) as error:
            raise BackendUnavailable(f"nothing was published: the database {self.database!r} says: {error}") from error
        published = [PublishedEvent(channel=event.channel, event=event.type) for event in events]
        pending = {row.token: pair for row, pair in zip(rows, zip(events, published, strict=True), strict=True)}
        if connection.in_atomic_block:
            transaction.on_commit(lambda: self._after_commit(send, pending), using=connection.alias)
        elif connection.get_autocommit():
            self._after_commit(send, pending)
        # With autocommit switched off by hand there is no hook: the tail of any process relays what it finds.
        return published

    def _after_commit(self, send: Send, pending: Pending) -> None:
        with self._lock:
            # While the log does not answer, not every publisher waits for it.
            if time.monotonic() >= self._rests_until:
                self._try(send, pending)

    def relay(self, send: Send) -> None:
        """Relay what is left over. Where that fails it is logged, and left for the next time."""
        with self._lock:
            self._try(send, {})

    def _try(self, send: Send, pending: Pending) -> None:
        try:
            self._relay(send, pending)
        except (BackendUnavailable, DatabaseError, InterfaceError) as error:
            self._rests_until = time.monotonic() + INTERVAL
            if not self._is_failing:
                logger.warning("events wait in the outbox: backend=%s error=%s", self.log, error)
            self._is_failing = True
        else:
            if self._is_failing:
                logger.warning("the outbox is relayed again: backend=%s", self.log)
            self._is_failing = False
            self._rests_until = 0.0

    def _relay(self, send: Send, pending: Pending) -> None:
        """Relay all rows. Fills in the results of those in `pending`."""
        connection = connections[self.database]
        objects = models.Outbox.objects.using(connection.alias)
        while rows := list(objects.filter(log=self.log).order_by("pk")[:CHUNK]):
            self._send(
                send,
                pending,
                [row.token for row in rows],
                [_event(row, restored(connection, row.data)) for row in rows],
            )
            objects.filter(pk__in=[row.pk for row in rows]).delete()
        if pending:
            # Another process was faster. The log knows them, and says where they are.
            self._send(send, pending, list(pending), [event for event, _ in pending.values()])

    def _send(self, send: Send, pending: Pending, tokens: list[str], events: list[NewEvent]) -> None:
        for token, stored in zip(tokens, send(events, tokens), strict=True):
            if found := pending.pop(token, None):
                result = found[1]
                result.event, result.id, result.repeated = stored.event, stored.id, stored.repeated


def _event(row: models.Outbox, data: str) -> NewEvent:
    return NewEvent(
        channel=row.channel, data=data, type=row.type, is_json=row.is_json, key=row.key or None, keep=row.keep
    )


class Relay(threading.Thread):
    """Relays once a second what publishers could not, until it is stopped."""

    def __init__(self, outbox: Outbox, send: Send) -> None:
        super().__init__(name="events-relay", daemon=True)
        self.outbox = outbox
        self.send = send
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the thread end. Does not wait for it: it may be in the middle of a query."""
        self._stopped.set()

    def run(self) -> None:
        """Relay, at moments of its own: not all processes at once."""
        try:
            while not self._stopped.wait(INTERVAL * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load
                self.outbox.relay(self.send)
                # One that broke is opened again at the next look.
                connections[self.outbox.database].close_if_unusable_or_obsolete()
        finally:
            connections.close_all()
