"""
The log in the site's database: a transactional outbox, numbered after commit.

Inside a transaction `append` inserts a row without a position and locks nothing shared; outside one it inserts and
numbers in one short transaction. Numbers are given under the lock of the `Log` row, only to rows whose transaction has
committed, so a reader that has seen position n has seen, or will see, every event below it.

The statements are written out because publishing is the hot path: the ORM's share of it would be larger than
SQLite's. They are the SQL that SQLite, PostgreSQL and MariaDB have in common.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import threading
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django.core import checks
from django.db import DatabaseError, InterfaceError, connections, router, transaction
from django.db.models import Q
from django.db.models.constants import OnConflict

from ..exceptions import BackendUnavailable, InvalidEventBackend
from ..models import Event, Floor, IdempotencyKey, Log
from ..wire import Cursor
from .base import (
    KEY_LIFETIME,
    BaseEventBackend,
    Batch,
    NewEvent,
    Params,
    PublishedEvent,
    ReadResult,
    Retention,
    StoredEvent,
    new_epoch,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")

logger = logging.getLogger("events.backends.database")

#: Rows that a trim deletes, or that numbering numbers, in one transaction: a publisher waits for at most that.
CHUNK = 500
#: Events that the tail reads at once.
TAIL_LIMIT = 500
#: Seconds between two looks for other processes' events. `PRAGMA data_version` costs SQLite microseconds; elsewhere
#: a look is a query.
SQLITE_POLL = 0.015
POLL = 0.25
#: Seconds between two tries while the database cannot be reached.
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 2.0

_event = Event._meta.db_table
_floor = Floor._meta.db_table
_key = IdempotencyKey._meta.db_table
_log = Log._meta.db_table

# Table names are the models' own, from Meta; no value of a user's is in these strings.
_TAKE = f"UPDATE {_log} SET head = head + %s WHERE id = 1"  # noqa: S608
_TAKE_RETURNING = f"{_TAKE} RETURNING epoch, head"
_HEAD = f"SELECT epoch, head FROM {_log} WHERE id = 1"  # noqa: S608
_INSERT = (
    f"INSERT INTO {_event} (position, channel, type, data, is_json, created_at) "  # noqa: S608
    "VALUES (%s, %s, %s, %s, %s, %s)"
)
_COLUMNS = "position, channel, type, data, is_json, created_at"
_TAIL = f"SELECT {_COLUMNS} FROM {_event} WHERE position > %s AND position <= %s ORDER BY position LIMIT %s"  # noqa: S608
_LATEST = (
    f"SELECT {_COLUMNS} FROM {_event} WHERE channel = %s AND position IS NOT NULL "  # noqa: S608
    "ORDER BY position DESC LIMIT 1"
)
_UNNUMBERED = f"SELECT id FROM {_event} WHERE position IS NULL ORDER BY id LIMIT %s"  # noqa: S608
_SET_POSITION = f"UPDATE {_event} SET position = %s WHERE id = %s"  # noqa: S608


def _read_sql(channels: int) -> str:
    """Events, floors and head in one statement, so that all three are of one moment on every engine."""
    names = ", ".join(["%s"] * channels)
    return (
        f"SELECT 0 AS kind, found.* FROM (SELECT {_COLUMNS} FROM {_event} "  # noqa: S608
        f"WHERE channel IN ({names}) AND position > %s ORDER BY position LIMIT %s) AS found "
        f"UNION ALL SELECT 1, position, channel, '', '', FALSE, 0 FROM {_floor} WHERE channel IN ({names}) "
        f"UNION ALL SELECT 2, head, epoch, '', '', FALSE, 0 FROM {_log} WHERE id = 1"
    )


class DatabaseBackend(BaseEventBackend):
    """
    The log in a database of the site's. The default: no broker, and events are part of the site's own transactions.

    Options: `database`, the alias of the database (default: where the routers send the `Event` model);
    `poll_interval`, seconds between two looks for other processes' events (default 0.015 on SQLite, 0.25 elsewhere);
    `trim_interval`, seconds between two background trims (default 30; None: only `prune_events` trims).
    """

    default_options: ClassVar[dict[str, Any]] = {"database": None, "poll_interval": None, "trim_interval": 30.0}
    joins_transactions = True

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        for name in ("poll_interval", "trim_interval"):
            value = self.options[name]
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
                raise InvalidEventBackend(
                    f"EVENTS['BACKENDS'][{params.alias!r}]['OPTIONS'][{name!r}] is {value!r}: "
                    "it must be a number of seconds above 0, or None."
                )
        self._tails: set[_Tail] = set()
        self._trimming = threading.Lock()
        # Not all processes of a deployment at once.
        self._next_trim = time.monotonic() + random.uniform(0, self.options["trim_interval"] or 0)  # noqa: S311

    @property
    def database(self) -> str:
        """The alias of the database that holds the log."""
        alias: str = self.options["database"] or router.db_for_write(Event)
        return alias

    def _connection(self) -> BaseDatabaseWrapper:
        return connections[self.database]

    # Writing

    def append(self, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """Write the events; see the module's docstring for what happens inside a transaction."""
        if not events:
            return []
        connection = self._connection()
        try:
            if connection.in_atomic_block or not connection.get_autocommit():
                return self._append_unnumbered(connection, events)
            published = self._append_numbered(connection, events)
        except (DatabaseError, InterfaceError) as error:
            raise BackendUnavailable(f"nothing was published: the database {self.database!r} says: {error}") from error
        self._wake()
        return published

    def _append_numbered(self, connection: BaseDatabaseWrapper, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        now = time.time()
        if any(event.key is not None for event in events):
            with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
                # With the log's row locked nobody else numbers, or writes a key outside a transaction.
                self._take(connection, cursor, 0)
                return [self._append_one(connection, cursor, event, now) for event in events]
        with _own_transaction(connection) as cursor:
            epoch, head = self._take(connection, cursor, len(events))
            rows = [
                (position, event.channel, event.type, event.data, event.is_json, now)
                for position, event in enumerate(events, head - len(events) + 1)
            ]
            if len(rows) == 1:
                cursor.execute(_sql(cursor, _INSERT), rows[0])
            else:
                cursor.executemany(_sql(cursor, _INSERT), rows)
        return [PublishedEvent(channel=row[1], event=row[2], id=f"{epoch}-{row[0]}") for row in rows]

    def _append_one(self, connection: BaseDatabaseWrapper, cursor: Any, event: NewEvent, now: float) -> PublishedEvent:
        key = None
        if event.key is not None:
            key, is_first = self._claim_key(connection, event, now)
            if not is_first:
                return self._repeat(connection, key)
        epoch, head = self._take(connection, cursor, 1)
        row = self._insert(connection, event, now, position=head)
        if key is not None:
            key.event, key.position = row.pk, head
            key.save(using=connection.alias)
        return PublishedEvent(channel=event.channel, event=event.type, id=f"{epoch}-{head}")

    def _append_unnumbered(self, connection: BaseDatabaseWrapper, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        now = time.time()
        published = []
        # Results whose cursor is known after the commit, by the primary key of the event's row.
        pending: dict[int, list[PublishedEvent]] = {}
        # A savepoint: all or none, also where the caller catches the error and commits the rest.
        with transaction.atomic(using=connection.alias):
            for event in events:
                key = None
                if event.key is not None:
                    key, is_first = self._claim_key(connection, event, now)
                    if not is_first:
                        published.append(self._repeat(connection, key))
                        if published[-1].id is None:
                            pending.setdefault(key.event, []).append(published[-1])
                        continue
                row = self._insert(connection, event, now, position=None)
                if key is not None:
                    key.event = row.pk
                    key.save(using=connection.alias)
                published.append(PublishedEvent(channel=event.channel, event=event.type))
                pending.setdefault(row.pk, []).append(published[-1])
        if connection.in_atomic_block:
            transaction.on_commit(lambda: self._after_commit(connection, pending), using=connection.alias)
        # With autocommit switched off by hand there is no hook: the tail of any process numbers what it finds.
        return published

    def _insert(self, connection: BaseDatabaseWrapper, event: NewEvent, now: float, position: int | None) -> Event:
        row = Event(
            position=position,
            channel=event.channel,
            type=event.type,
            data=event.data,
            is_json=event.is_json,
            created_at=now,
        )
        row.save(using=connection.alias, force_insert=True)
        return row

    def _claim_key(self, connection: BaseDatabaseWrapper, event: NewEvent, now: float) -> tuple[IdempotencyKey, bool]:
        """The row of the event's key, and whether it is new, that is, whether the event is to be written."""
        keys = IdempotencyKey.objects.using(connection.alias)
        keys.filter(channel=event.channel, key=event.key, created_at__lt=now - KEY_LIFETIME).delete()
        # The lock (where the engine has row locks) makes the second look see a row that was committed meanwhile.
        return keys.select_for_update().get_or_create(
            channel=event.channel,
            key=event.key,
            defaults={"type": event.type, "event": 0, "created_at": now},
        )

    def _repeat(self, connection: BaseDatabaseWrapper, key: IdempotencyKey) -> PublishedEvent:
        position = key.position
        if position is None:
            rows = Event.objects.using(connection.alias).filter(pk=key.event)
            position = rows.values_list("position", flat=True).first()
        return PublishedEvent(
            channel=key.channel,
            event=key.type,
            id=None if position is None else str(Cursor(self._log_row(connection)[0], position)),
            repeated=True,
        )

    def _after_commit(self, connection: BaseDatabaseWrapper, pending: dict[int, list[PublishedEvent]]) -> None:
        try:
            self.number()
            epoch, _ = self._log_row(connection)
            numbered = Event.objects.using(connection.alias).filter(pk__in=pending, position__isnull=False)
            for pk, position in numbered.values_list("pk", "position"):
                for result in pending[pk]:
                    result.id = f"{epoch}-{position}"
        except (DatabaseError, InterfaceError) as error:
            # The events are committed. The next publisher, or the tail of any process, numbers them.
            logger.warning("events committed but not yet numbered: database=%s error=%s", connection.alias, error)
        self._wake()

    def number(self) -> int:
        """Give every committed event without a position the next numbers. Returns how many there were."""
        connection = self._connection()
        total = 0
        while True:
            with connection.cursor() as cursor:
                cursor.execute(_UNNUMBERED, [1])
                if cursor.fetchone() is None:
                    return total
            with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
                self._take(connection, cursor, 0)
                cursor.execute(_UNNUMBERED, [CHUNK])
                ids = [row[0] for row in cursor.fetchall()]
                _, head = self._take(connection, cursor, len(ids))
                first = head - len(ids) + 1
                cursor.executemany(_SET_POSITION, [(first + index, pk) for index, pk in enumerate(ids)])
            total += len(ids)

    #: MariaDB has no UPDATE … RETURNING.
    _vendors_with_returning = frozenset({"sqlite", "postgresql"})

    def _take(self, connection: BaseDatabaseWrapper, cursor: Any, count: int) -> tuple[str, int]:
        """Lock the log's row, take the next `count` numbers, and return the epoch and the new head."""
        while True:
            if connection.vendor in self._vendors_with_returning:
                cursor.execute(_sql(cursor, _TAKE_RETURNING), (count,))
            else:
                cursor.execute(_sql(cursor, _TAKE), (count,))
                cursor.execute(_HEAD)
            if (row := cursor.fetchone()) is not None:
                return row[0], row[1]
            _begin_log(connection, cursor)

    def _log_row(self, connection: BaseDatabaseWrapper) -> tuple[str, int]:
        """The epoch and head; where there is no row (a new or a flushed database), the log's life begins."""
        with connection.cursor() as cursor:
            while True:
                cursor.execute(_HEAD)
                if (row := cursor.fetchone()) is not None:
                    return row[0], row[1]
                _begin_log(connection, cursor)

    def _renew_epoch(self, connection: BaseDatabaseWrapper, epoch: str) -> tuple[str, int]:
        """Begin a new life of the log, unless another process has done so. Returns the new epoch and the head."""
        Log.objects.using(connection.alias).filter(pk=1, epoch=epoch).update(epoch=new_epoch())
        return self._log_row(connection)

    def _wake(self) -> None:
        for tail in tuple(self._tails):
            tail.woken.set()

    # Reading

    def head(self) -> Cursor:
        """The cursor of the newest event."""
        try:
            return Cursor(*self._log_row(self._connection()))
        except (DatabaseError, InterfaceError) as error:
            raise self._unreadable(error) from error

    def read(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """Up to `limit` events above `after`, with floors and head, all of one moment."""
        names = sorted(channels)
        connection = self._connection()
        try:
            with connection.cursor() as cursor:
                cursor.execute(_read_sql(len(names)), [*names, after, limit + 1, *names])
                rows = cursor.fetchall()
            heads = [Cursor(row[2], row[1]) for row in rows if row[0] == 2]
            head = heads[0] if heads else Cursor(*self._log_row(connection))
        except (DatabaseError, InterfaceError) as error:
            raise self._unreadable(error) from error
        events = sorted((_stored(row[1:]) for row in rows if row[0] == 0), key=lambda event: event.position)
        return ReadResult(
            events=events[:limit],
            floors={row[2]: row[1] for row in rows if row[0] == 1},
            head=head,
            more=len(events) > limit,
        )

    def latest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """The newest kept event of each channel that has one."""
        found = {}
        try:
            with self._connection().cursor() as cursor:
                for name in channels:
                    # One seek in the index each; a GROUP BY would walk through every event of the channels.
                    cursor.execute(_LATEST, [name])
                    if (row := cursor.fetchone()) is not None:
                        found[name] = _stored(row)
        except (DatabaseError, InterfaceError) as error:
            raise self._unreadable(error) from error
        return found

    # A stream outlives its request: what it reads, it reads on other threads than Django's, and leaves no connection.

    async def aread(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """`read` on another thread, whose connection is closed right after."""
        return await asyncio.to_thread(self._read_and_close, self.read, channels, after, limit)

    async def alatest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """`latest` on another thread, whose connection is closed right after."""
        return await asyncio.to_thread(self._read_and_close, self.latest, channels)

    async def ahead(self) -> Cursor:
        """`head` on another thread, whose connection is closed right after."""
        return await asyncio.to_thread(self._read_and_close, self.head)

    def _read_and_close(self, function: Callable[..., T], *args: Any) -> T:
        try:
            return function(*args)
        finally:
            self._connection().close()

    def _unreadable(self, error: Exception) -> BackendUnavailable:
        return BackendUnavailable(f"the log cannot be read: the database {self.database!r} says: {error}")

    async def tail(self) -> AsyncGenerator[Batch, None]:
        """The log from now on. See `_Tail`."""
        tail = _Tail(self, asyncio.get_running_loop())
        self._tails.add(tail)
        tail.start()
        try:
            while True:
                yield await tail.batches.get()
                tail.room.release()
        finally:
            self._tails.discard(tail)
            tail.stop()

    # Trimming

    def trim(self, retention: Callable[[str], Retention]) -> int:
        """Remove what is not kept, in transactions of at most 500 events each."""
        connection = self._connection()
        events = Event.objects.using(connection.alias).filter(position__isnull=False)
        try:
            total = 0
            for channel in list(events.order_by().values_list("channel", flat=True).distinct()):
                total += self._trim_channel(connection, channel, retention(channel))
            keys = IdempotencyKey.objects.using(connection.alias)
            expired = keys.filter(created_at__lt=time.time() - KEY_LIFETIME)
            while pks := list(expired.values_list("pk", flat=True)[:CHUNK]):
                keys.filter(pk__in=pks).delete()
        except (DatabaseError, InterfaceError) as error:
            raise BackendUnavailable(f"trimming stopped: the database {self.database!r} says: {error}") from error
        return total

    def _trim_channel(self, connection: BaseDatabaseWrapper, channel: str, keep: Retention) -> int:
        """Remove from one channel what `keep` does not keep, oldest first, raising its floor with each chunk."""
        events = Event.objects.using(connection.alias).filter(channel=channel, position__isnull=False)
        bounds: list[int | None] = []
        if keep.events is not None:
            # The newest of those that are too many.
            bounds += events.order_by("-position").values_list("position", flat=True)[keep.events : keep.events + 1]
        if keep.seconds is not None:
            expired = events.filter(created_at__lt=time.time() - keep.seconds)
            bounds += expired.order_by("-position").values_list("position", flat=True)[:1]
        if not bounds:
            return 0
        total = 0
        surplus = events.filter(position__lte=max(filter(None, bounds))).order_by("position")
        while chunk := {pk: position or 0 for pk, position in surplus.values_list("pk", "position")[:CHUNK]}:
            with transaction.atomic(using=connection.alias):
                # Keys outlive their events: keep the cursor that a repeat gives back.
                for key in IdempotencyKey.objects.using(connection.alias).filter(event__in=chunk, position=None):
                    key.position = chunk[key.event]
                    key.save(using=connection.alias)
                Floor.objects.using(connection.alias).update_or_create(
                    channel=channel, defaults={"position": max(chunk.values())}
                )
                total += Event.objects.using(connection.alias).filter(pk__in=chunk).delete()[0]
        return total

    def clear(self, channels: Collection[str]) -> int:
        """Remove all events of the channels."""
        connection = self._connection()
        try:
            return sum(self._trim_channel(connection, name, Retention(events=0)) for name in channels)
        except (DatabaseError, InterfaceError) as error:
            raise BackendUnavailable(f"clearing stopped: the database {self.database!r} says: {error}") from error

    def maintain(self, retention: Callable[[str], Retention]) -> None:
        """Start a trim on a thread of its own, every `trim_interval` seconds at most, in one process at a time."""
        interval = self.options["trim_interval"]
        if interval is None or time.monotonic() < self._next_trim or not self._trimming.acquire(blocking=False):
            return
        self._next_trim = time.monotonic() + interval * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
        threading.Thread(
            target=self._trim_in_background, args=(retention, interval), name="events-trim", daemon=True
        ).start()

    def _trim_in_background(self, retention: Callable[[str], Retention], interval: float) -> None:
        connection = self._connection()
        try:
            now = time.time()
            # A time in the future is a clock that was set back since.
            due = Q(trimmed_at__lt=now - interval / 2) | Q(trimmed_at__gt=now)
            if Log.objects.using(connection.alias).filter(due, pk=1).update(trimmed_at=now):
                self.trim(retention)
        except (DatabaseError, InterfaceError, BackendUnavailable) as error:
            logger.warning("trimming failed, to be tried again: database=%s error=%s", connection.alias, error)
        finally:
            connection.close()
            self._trimming.release()

    def check(self, databases: Collection[str] | None = None) -> list[checks.CheckMessage]:
        """E003: no such database. W001: SQLite does not write in WAL mode (where `databases` lets us look)."""
        alias = self.database
        if alias not in connections:
            return [
                checks.Error(
                    f"EVENTS['BACKENDS'][{self.alias!r}]['OPTIONS']['database'] is {alias!r}, "
                    "which is not in DATABASES.",
                    hint=f"Name one of {', '.join(map(repr, connections))}.",
                    id="events.E003",
                )
            ]
        connection = connections[alias]
        if connection.vendor != "sqlite" or alias not in (databases or ()):
            return []
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA journal_mode")
            mode = cursor.fetchone()[0]
        if mode in ("wal", "memory"):
            return []
        return [
            checks.Warning(
                f"The SQLite database {alias!r} is in journal mode {mode!r}: every publish waits for every reader.",
                hint='Set "OPTIONS": {"transaction_mode": "IMMEDIATE", '
                '"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"} in DATABASES.',
                id="events.W001",
            )
        ]


@contextmanager
def _own_transaction(connection: BaseDatabaseWrapper) -> Iterator[Any]:
    """
    A short transaction of this module's own, for the hot path, and a cursor in it.

    On SQLite it goes to the connection below Django's, whose bookkeeping costs as much as the statements themselves:
    no savepoints, no `on_commit`, no query log. Only where autocommit is on, as `append` makes sure.
    """
    if connection.vendor != "sqlite":
        with transaction.atomic(using=connection.alias, durable=True), connection.cursor() as cursor:
            yield cursor
        return
    raw = connection.connection
    with connection.wrap_database_errors:
        raw.execute("BEGIN IMMEDIATE")
        try:
            yield sqlite3.Connection.cursor(raw)
            raw.execute("COMMIT")
        except BaseException:
            raw.rollback()
            raise


def _begin_log(connection: BaseDatabaseWrapper, cursor: Any) -> None:
    """Write the log's row with a new epoch, unless somebody else just has."""
    insert = connection.ops.insert_statement(on_conflict=OnConflict.IGNORE)
    suffix = connection.ops.on_conflict_suffix_sql([], OnConflict.IGNORE, [], [])
    statement = f"{insert} {_log} (id, epoch, head, trimmed_at) VALUES (1, %s, 0, 0) {suffix}"
    cursor.execute(_sql(cursor, statement), (new_epoch(),))


def _sql(cursor: Any, statement: str) -> str:
    """The statement with the placeholders that this cursor takes: Django's, or SQLite's own."""
    return _with_question_marks(statement) if type(cursor) is sqlite3.Cursor else statement


@cache
def _with_question_marks(statement: str) -> str:
    return statement.replace("%s", "?")


def _stored(row: Sequence[Any]) -> StoredEvent:
    return StoredEvent(
        position=row[0], channel=row[1], type=row[2], data=row[3], is_json=bool(row[4]), created_at=row[5]
    )


class _Tail(threading.Thread):
    """
    Follows the log for one event loop, on a daemon thread with one connection.

    It hands over at most two batches that the loop has not taken: a slow loop bounds what is read ahead.
    """

    def __init__(self, backend: DatabaseBackend, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="events-tail", daemon=True)
        self.backend = backend
        self.loop = loop
        self.batches: asyncio.Queue[Batch] = asyncio.Queue()
        self.room = threading.Semaphore(2)
        #: Set by a publisher of this process, and to stop.
        self.woken = threading.Event()
        self.stopping = False
        self.cursor: Cursor | None = None
        self.data_version: int | None = None
        #: Rows without a position at the last look. Who wrote them is about to number them, or died.
        self.unnumbered: set[int] = set()

    def stop(self) -> None:
        """Let the thread end. Does not wait for it: it may be in the middle of a query."""
        self.stopping = True
        self.woken.set()
        self.room.release()

    def run(self) -> None:
        """Follow the log; after a fault, begin again where it stopped."""
        backoff = 0.0
        while not self.stopping:
            connection = self.backend._connection()
            try:
                # The first look after a fault reads, whatever the data version says.
                self.data_version = None
                self._look(connection)
                if backoff:
                    logger.warning("the log can be read again: database=%s", connection.alias)
                    backoff = 0.0
                self._follow(connection)
            except Exception as error:
                if not backoff:
                    expected = isinstance(error, (DatabaseError, InterfaceError))
                    logger.warning(
                        "the log cannot be read, trying again: database=%s error=%s",
                        connection.alias,
                        error,
                        exc_info=None if expected else error,
                    )
                backoff = min(LAST_BACKOFF, max(FIRST_BACKOFF, 2 * backoff))
                self.woken.wait(backoff)
            finally:
                connection.close()

    def _follow(self, connection: BaseDatabaseWrapper) -> None:
        poll = self.backend.options["poll_interval"] or (SQLITE_POLL if connection.vendor == "sqlite" else POLL)
        while not self.stopping:
            if self._changed(connection) or self.woken.is_set():
                self.woken.clear()
                while self._look(connection):
                    pass
            self.woken.wait(poll)

    def _changed(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether another connection may have written since the last time. Reads no table on SQLite."""
        if connection.vendor != "sqlite":
            return True
        before = self.data_version
        with connection.wrap_database_errors:
            self.data_version = connection.connection.execute("PRAGMA data_version").fetchone()[0]
        return before != self.data_version or bool(self.unnumbered)

    def _look(self, connection: BaseDatabaseWrapper) -> bool:
        """Hand over what is new. Returns whether to look again at once."""
        epoch, head = self.backend._log_row(connection)
        if self.cursor is not None and epoch == self.cursor.epoch and head < self.cursor.position:
            # An older copy of the database took this one's place. What is published now gets numbers that other
            # events had: nobody may take the old cursors for new ones.
            epoch, head = self.backend._renew_epoch(connection, epoch)
        if self.cursor is None or epoch != self.cursor.epoch:
            self._hand_over([], Cursor(epoch, head))
            return not self.stopping
        with connection.cursor() as cursor:
            cursor.execute(_TAIL, [self.cursor.position, head, TAIL_LIMIT])
            events = [_stored(row) for row in cursor.fetchall()]
            cursor.execute(_UNNUMBERED, [CHUNK])
            unnumbered = {row[0] for row in cursor.fetchall()}
        is_full = len(events) == TAIL_LIMIT
        if head > self.cursor.position:
            self._hand_over(events, Cursor(epoch, events[-1].position if is_full else head))
        if orphans := unnumbered & self.unnumbered:
            logger.info(
                "numbering events whose publisher did not: database=%s count=%s", connection.alias, len(orphans)
            )
            self.backend.number()
            is_full = True
            unnumbered = set()
        self.unnumbered = unnumbered
        return is_full and not self.stopping

    def _hand_over(self, events: list[StoredEvent], cursor: Cursor) -> None:
        self.room.acquire()
        self.cursor = cursor
        try:
            self.loop.call_soon_threadsafe(self.batches.put_nowait, Batch(events=events, head=cursor))
        except RuntimeError:
            # The loop is closed: nobody is left to hand over to.
            self.stopping = True
