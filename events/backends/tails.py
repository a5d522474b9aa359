"""
How a process follows the log in a database: a thread that reads what is new, and waits for more.

How it learns that there is more depends on the engine: PostgreSQL says so, SQLite shows a number that changes with each
commit of another connection, everywhere else a look is a query.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from django.db import DatabaseError, InterfaceError

from ..exceptions import InvalidEventBackend
from ..models import Log
from ..wire import Cursor
from .background import Outage
from .base import Batch, StoredEvent, new_epoch
from .connections import bounded, forks, new_connection, own_connection, using_databases

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("events.backends.database")

#: Seconds between two looks for other processes' events. `PRAGMA data_version` costs SQLite microseconds; elsewhere
#: a look is a query.
SQLITE_POLL = 0.02
POLL = 0.25
#: Seconds between two looks for rows that were committed and not numbered, because their publisher died in between.
#: Nothing else can tell of them: a transaction that publishes touches nothing that is shared.
ORPHAN_LOOK = 1.0
#: Seconds in which PostgreSQL must deliver a notification of another connection when the tail starts.
PROBE_WAIT = 2.0
#: The name that PostgreSQL's publishers notify and its tails listen to.
NOTIFICATIONS = "events_log"


class Followed(Protocol):
    """What a tail wants of the log that it follows: `DatabaseBackend`."""

    alias: str
    options: dict[str, Any]

    @property
    def database(self) -> str:
        """The alias of the database."""

    @property
    def label(self) -> str:
        """How log lines name the log."""

    def log_row(self, connection: BaseDatabaseWrapper) -> Cursor:
        """The log's epoch and head."""

    def read_tail(self, connection: BaseDatabaseWrapper, after: int) -> tuple[list[StoredEvent], Cursor, bool]:
        """The next events of all channels, the head, and whether there may be more."""

    def unnumbered(self, connection: BaseDatabaseWrapper) -> set[int]:
        """The primary keys of committed events without a position."""

    def number(self) -> None:
        """Give those the next numbers."""


class Tail(threading.Thread):
    """
    Follows the log for one event loop, on a daemon thread with one connection. Looks every `poll_interval` seconds.

    It hands over at most two batches that the loop has not taken: a slow loop bounds what is read ahead.
    """

    poll = POLL

    def __init__(self, backend: Followed, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="events-tail", daemon=True)
        self.backend = backend
        self.loop = loop
        self.batches: asyncio.Queue[Batch] = asyncio.Queue()
        self.room = threading.Semaphore(2)
        #: Set by a publisher of this process, and to stop.
        self.woken = threading.Event()
        self.stopping = False
        self.cursor: Cursor | None = None
        #: Rows without a position at the last look. Who wrote them is about to number them, or died.
        self.unnumbered: set[int] = set()
        self.orphans_at = 0.0
        self.poll = backend.options["poll_interval"] or self.poll

    def wake(self) -> None:
        """There is something to read, or the thread is to stop."""
        self.woken.set()

    def stop(self) -> None:
        """Let the thread end. Does not wait for it: it may be in the middle of a query."""
        self.stopping = True
        self.wake()
        self.room.release()

    def connect(self) -> BaseDatabaseWrapper:
        """The connection that the thread keeps."""
        return own_connection(self.backend.database, self.backend.options["timeout"])

    def begin(self, connection: BaseDatabaseWrapper) -> None:
        """Called with each new connection, before anything is read."""

    def wait(self, connection: BaseDatabaseWrapper) -> None:
        """Wait until there may be something to read."""
        self.woken.wait(self.poll)
        self.woken.clear()

    def has_news(self, connection: BaseDatabaseWrapper, seconds: float | None) -> bool:
        """Whether the log has moved on. Reads the log's row and nothing else."""
        with bounded(connection, seconds):
            return self.backend.log_row(connection) != self.cursor

    def run(self) -> None:
        """Follow the log; after a fault, begin again where it stopped."""
        try:
            self._run()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of what the thread holds beside its connection."""

    def _run(self) -> None:
        outage = Outage(logger, self.backend.label)
        seconds = self.backend.options["timeout"]
        while not self.stopping:
            connection = None
            try:
                connection = self.connect()
                if self.cursor is None:
                    # Where "now" is, before anything that takes time: streams wait for that.
                    self._look(connection, seconds)
                self.begin(connection)
                # The first look reads, whatever the engine says.
                while self._look(connection, seconds):
                    pass
                outage.is_over()
                self._follow(connection, seconds)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is said and tried again
                self._rest(outage.goes_on(error, is_expected=isinstance(error, (DatabaseError, InterfaceError))))
            finally:
                if connection is not None:
                    with using_databases():
                        connection.close()

    def _rest(self, seconds: float) -> None:
        # What was to be read before the fault is no reason to hurry; to stop is.
        self.woken.clear()
        self.woken.wait(0 if self.stopping else seconds)

    def _follow(self, connection: BaseDatabaseWrapper, seconds: float | None) -> None:
        while not self.stopping:
            self.wait(connection)
            has_news = self.has_news(connection, seconds)
            if time.monotonic() >= self.orphans_at and self._number_orphans(connection, seconds):
                has_news = True
            while has_news and self._look(connection, seconds):
                pass

    def _look(self, connection: BaseDatabaseWrapper, seconds: float | None) -> bool:
        """Hand over what is new. Returns whether to look again at once."""
        with bounded(connection, seconds):
            events, head, is_full = self._read(connection)
        # Not inside `bounded`: handing over waits for the loop.
        if head != self.cursor:
            self._hand_over(events, head)
        return is_full and not self.stopping

    def _read(self, connection: BaseDatabaseWrapper) -> tuple[list[StoredEvent], Cursor, bool]:
        known = self.cursor
        if known is None:
            # From now on.
            return [], self.backend.log_row(connection), False
        events, head, is_full = self.backend.read_tail(connection, known.position)
        if head.epoch == known.epoch and head.position < known.position:
            # An older copy of the database took this one's place. What is published now gets numbers that other
            # events had: nobody may take the old cursors for new ones.
            Log.objects.using(connection.alias).filter(pk=1, epoch=head.epoch).update(epoch=new_epoch())
            head = self.backend.log_row(connection)
        if head.epoch != known.epoch:
            return [], head, False
        return events, Cursor(head.epoch, events[-1].position) if is_full else head, is_full

    def _number_orphans(self, connection: BaseDatabaseWrapper, seconds: float | None) -> bool:
        """Number what has stood there since the last look: its publisher has died. Returns whether there was any."""
        self.orphans_at = time.monotonic() + ORPHAN_LOOK
        with bounded(connection, seconds):
            unnumbered = self.backend.unnumbered(connection)
        orphans = unnumbered & self.unnumbered
        self.unnumbered = unnumbered - orphans
        if orphans:
            logger.info(
                "numbering events whose publisher did not: database=%s count=%s", connection.alias, len(orphans)
            )
            with forks.held_off():
                self.backend.number()
        return bool(orphans)

    def _hand_over(self, events: Iterable[StoredEvent], cursor: Cursor) -> None:
        self.room.acquire()
        self.cursor = cursor
        try:
            self.loop.call_soon_threadsafe(self.batches.put_nowait, Batch(events=list(events), head=cursor))
        except RuntimeError:
            # The loop is closed: nobody is left to hand over to.
            self.stopping = True


class SQLiteTail(Tail):
    """Looks at `PRAGMA data_version`, which changes with each commit of another connection, and reads no table."""

    poll = SQLITE_POLL
    data_version: int | None = None

    def connect(self) -> BaseDatabaseWrapper:
        """As the base class's, and open: a child that is forked while this thread is inside SQLite has none."""
        with forks.held_off():
            connection = super().connect()
            connection.ensure_connection()
            return connection

    def _read(self, connection: BaseDatabaseWrapper) -> tuple[list[StoredEvent], Cursor, bool]:
        with forks.held_off():
            return super()._read(connection)

    def _number_orphans(self, connection: BaseDatabaseWrapper, seconds: float | None) -> bool:
        with forks.held_off():
            return super()._number_orphans(connection, seconds)

    def has_news(self, connection: BaseDatabaseWrapper, seconds: float | None) -> bool:
        """Whether another connection has committed since the last time."""
        before = self.data_version
        # Fifty times a second: without a cursor of Django's, and without a limit, for a file always answers.
        with forks.held_off(), connection.wrap_database_errors:
            self.data_version = connection.connection.execute("PRAGMA data_version").fetchone()[0]
        return before != self.data_version


class ListeningTail(Tail):
    """
    LISTENs on the connection that it reads with, so that PostgreSQL wakes it when events have been numbered.

    Where notifications do not arrive (a pgbouncer in transaction mode swallows them), it says so once and polls.
    """

    #: Whether it has been said that there are no notifications.
    has_complained = False

    def __init__(self, backend: Followed, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(backend, loop)
        # To be woken while it waits for the server.
        self._inbox, self._outbox = socket.socketpair()
        self._inbox.setblocking(False)
        self._outbox.setblocking(False)
        self._selector: selectors.BaseSelector | None = None
        #: A notification has come: since the last look for one, and at the last.
        self._has_heard = self._knows = False

    def wake(self) -> None:
        """As the base class's; while listening, a publisher's notification has the same effect."""
        super().wake()
        if self.stopping:
            with suppress(OSError):
                self._outbox.send(b"x")

    def close(self) -> None:
        """Let go of the sockets."""
        self._stop_listening()
        self._inbox.close()
        self._outbox.close()

    def connect(self) -> BaseDatabaseWrapper:
        """A connection to `listen_dsn`, where that is set."""
        return own_connection(self.backend.database, self.backend.options["timeout"], **self._settings())

    def _settings(self) -> dict[str, Any]:
        if self.backend.options["listen_dsn"] is None:
            return {}
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - only PostgreSQL's sites have it
        from psycopg.errors import ProgrammingError  # noqa: PLC0415

        try:
            found: dict[str, Any] = conninfo_to_dict(self.backend.options["listen_dsn"])
        except ProgrammingError as error:
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{self.backend.alias!r}]['OPTIONS']['listen_dsn'] is no connection string: {error}"
            ) from error
        names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
        settings: dict[str, Any] = {names[key]: value for key, value in found.items() if key in names}
        settings["OPTIONS"] = {key: value for key, value in found.items() if key not in names}
        return settings

    def begin(self, connection: BaseDatabaseWrapper) -> None:
        """Listen, and find out whether notifications arrive."""
        self._stop_listening()
        if (fault := self._listen(connection)) is None:
            if self.has_complained:
                logger.warning("notifications arrive again: database=%s", connection.alias)
                self.has_complained = False
            return
        self._stop_listening()
        if not self.has_complained:
            self.has_complained = True
            logger.warning(
                "no LISTEN/NOTIFY, polling every %s s instead: database=%s reason=%s",
                self.poll,
                connection.alias,
                fault,
            )

    def _stop_listening(self) -> None:
        if self._selector is not None:
            self._selector.close()
            self._selector = None

    def _listen(self, connection: BaseDatabaseWrapper) -> str | None:
        """Why there are no notifications; None where they arrive."""
        seconds = self.backend.options["timeout"]
        connection.ensure_connection()
        if not hasattr(connection.connection, "pgconn"):
            return "psycopg 3 is not installed"
        try:
            with bounded(connection, seconds), connection.cursor() as cursor:
                cursor.execute(f"LISTEN {NOTIFICATIONS}")
        except DatabaseError as error:
            if connection.connection is None:
                raise
            # A standby, for one.
            return str(error).strip()
        connection.connection.add_notify_handler(self._hear)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inbox, selectors.EVENT_READ)
        self._selector.register(connection.connection.pgconn.socket, selectors.EVENT_READ)
        # From another connection, the site's own: through a pooler this one might hear itself, and nobody else.
        other = new_connection(self.backend.database, seconds)
        try:
            with bounded(other, seconds), other.cursor() as cursor:
                cursor.execute("SELECT pg_notify(%s, '')", [NOTIFICATIONS])
        finally:
            other.close()
        end = time.monotonic() + PROBE_WAIT
        while (left := end - time.monotonic()) > 0 and not self.stopping:
            self._selector.select(left)
            if self._notified(connection):
                return None
        return f"a notification of another connection did not arrive within {PROBE_WAIT} s; is there a pooler between?"

    def _hear(self, notification: object) -> None:
        """Called by psycopg for a notification that came while a query ran."""
        self._has_heard = True

    def _notified(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether there was a notification, taking all there are."""
        pgconn = connection.connection.pgconn
        with connection.wrap_database_errors:
            pgconn.consume_input()
        while pgconn.notifies() is not None:
            self._has_heard = True
        has_heard, self._has_heard = self._has_heard, False
        return has_heard

    def wait(self, connection: BaseDatabaseWrapper) -> None:
        """Wait for a notification, or until it is time to look for orphans."""
        self._knows = False
        if self._selector is None:
            super().wait(connection)
            return
        while not self.stopping and time.monotonic() < self.orphans_at:
            if self._notified(connection):
                self._knows = True
                return
            self._selector.select(self.orphans_at - time.monotonic())
            with suppress(BlockingIOError):
                self._inbox.recv(64)

    def has_news(self, connection: BaseDatabaseWrapper, seconds: float | None) -> bool:
        """Whether there was a notification; without one, as the base class, for it may have been lost."""
        return self._knows or super().has_news(connection, seconds)
