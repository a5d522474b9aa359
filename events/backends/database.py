"""
The log in the site's database: a transactional outbox, numbered after commit.

Inside a transaction `append` inserts a row without a position and locks nothing shared; outside one it inserts and
numbers in one short transaction. Numbers are given under the lock of the `Log` row, only to rows whose transaction has
committed, so a reader that has seen position n has seen, or will see, every event below it.

The statements are written out because publishing is the hot path: the ORM's share of it would be larger than
SQLite's. They are the SQL that SQLite, PostgreSQL and MariaDB have in common, and for PostgreSQL two that do in one
round trip what takes the others three.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from contextlib import contextmanager
from functools import cache
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django.core import checks
from django.db import DatabaseError, InterfaceError, connections, router, transaction
from django.db.models import Q
from django.db.models.constants import OnConflict

from ..exceptions import BackendUnavailable
from ..models import Event, Floor, IdempotencyKey, Log
from ..wire import Cursor
from .background import TrimmingBackend
from .base import (
    CONTROL_CHANNEL,
    KEY_LIFETIME,
    Batch,
    NewEvent,
    Params,
    PublishedEvent,
    ReadResult,
    Retention,
    StoredEvent,
    new_epoch,
)
from .connections import Deadline, Readers, forks, is_conflict, limit_connecting, own_connection, renewed
from .tails import NOTIFICATIONS, ListeningTail, SQLiteTail, Tail
from .text import restored, storable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")

logger = logging.getLogger("events.backends.database")

#: Rows that a trim deletes, or that numbering numbers, in one transaction: a publisher waits for at most that.
CHUNK = 500
#: Events that the tail reads at once.
TAIL_LIMIT = 500
#: Channels that one statement looks for the newest events of: SQLite takes no more than 500 parts of a UNION.
NEWEST_AT_ONCE = 100
#: Characters of the newest events that are read at once, but for the last of them: a page shows the beginning of each.
NEWEST_CHARACTERS = 2**20
#: How often a transaction of this module's own is tried that the server rolls back because of another one's.
TRIES = 20

_event = Event._meta.db_table
_floor = Floor._meta.db_table
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
_LATEST = (
    f"SELECT {_COLUMNS} FROM {_event} WHERE channel = %s AND position IS NOT NULL "  # noqa: S608
    "ORDER BY position DESC LIMIT 1"
)
#: Of one channel: its newest positions, which the index has, and nothing that would have to be fetched.
_NEWEST_OF_ONE = (
    f"SELECT position FROM (SELECT position FROM {_event} "  # noqa: S608
    "WHERE channel = %s AND position IS NOT NULL ORDER BY position DESC LIMIT %s) AS found"
)
#: The same for PostgreSQL, which may think a channel so busy that it walks through the log from its end. A range,
#: though of one name, has an order that only the right index has. MariaDB would sort all of it.
_NEWEST_OF_RANGE = _NEWEST_OF_ONE.replace("channel = %s", "channel BETWEEN %s AND %s").replace(
    "ORDER BY position DESC", "ORDER BY channel DESC, position DESC"
)
_NEXT_CHANNEL = (
    f"SELECT channel FROM {_event} WHERE channel > %s AND position IS NOT NULL "  # noqa: S608
    "ORDER BY channel LIMIT 1"
)
_UNNUMBERED = f"SELECT id FROM {_event} WHERE position IS NULL ORDER BY id LIMIT %s"  # noqa: S608
_SET_POSITION = f"UPDATE {_event} SET position = %s WHERE id = %s"  # noqa: S608
#: The log's row as the last row of a statement that reads events: all of one moment, on every engine.
_AND_HEAD = f"UNION ALL SELECT 2, head, epoch, '', '', FALSE, 0 FROM {_log} WHERE id = 1"  # noqa: S608
_TAIL = (
    f"SELECT 0 AS kind, found.* FROM (SELECT {_COLUMNS} FROM {_event} "  # noqa: S608
    f"WHERE position > %s ORDER BY position LIMIT {TAIL_LIMIT}) AS found {_AND_HEAD}"
)

# PostgreSQL. The log's row would be locked until the commit is on the disk, and publishers would wait for the disk one
# after the other. So one who finds another numbering (an advisory lock says so) writes without a position, together
# with all others who do; then one of them numbers them all. Both are transactions of their own, of one round trip.

#: The number of the advisory lock: the letters of "events".
_LOCK = int.from_bytes(b"events", "big")
_TAKE_TURN = (
    f"WITH head AS (UPDATE {_log} SET head = head + %s "  # noqa: S608
    f"WHERE id = 1 AND pg_try_advisory_xact_lock({_LOCK}) RETURNING epoch, head) "
    f"INSERT INTO {_event} (position, channel, type, data, is_json, created_at) "
)
_RETURNING_ALL = (
    f"RETURNING id, position, (SELECT epoch FROM head), (SELECT pg_notify('{NOTIFICATIONS}', '')::text FROM head)"  # noqa: S608
)
_APPEND_ONE = f"{_TAKE_TURN} VALUES ((SELECT head FROM head), %s, %s, %s, %s, %s) {_RETURNING_ALL}"  # noqa: S608
_APPEND_MANY = (
    f"{_TAKE_TURN} SELECT (SELECT head FROM head) - %s + place, channel, type, data, is_json, %s "  # noqa: S608
    "FROM unnest(%s::text[], %s::text[], %s::text[], %s::boolean[]) "
    f"WITH ORDINALITY AS given (channel, type, data, is_json, place) ORDER BY place {_RETURNING_ALL}"
)
#: Waits for who is numbering, then numbers what is committed, unless that one has numbered what is asked for; then
#: looks. A block, because the look must come after the lock, and because who finds all done must not pay for planning
#: the rest. What is asked for is put into the text: only a query without parameters may be two statements.
_NUMBER_AND_LOOK = f"""
DO $$ BEGIN
PERFORM pg_advisory_xact_lock({_LOCK});
IF EXISTS (SELECT 1 FROM {_event} e WHERE position IS NULL AND {{condition}}) THEN
    WITH waiting AS MATERIALIZED (SELECT id FROM {_event} WHERE position IS NULL ORDER BY id LIMIT {CHUNK}),
    counted AS (SELECT id, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS total FROM waiting),
    head AS (UPDATE {_log} SET head = head + (SELECT count(*) FROM waiting) WHERE id = 1 RETURNING head)
    UPDATE {_event} e SET position = head.head - total + place FROM counted, head WHERE e.id = counted.id;
    IF FOUND THEN PERFORM pg_notify('{NOTIFICATIONS}', ''); END IF;
END IF;
END $$;
SELECT e.id, position, epoch FROM {_event} e LEFT JOIN {_log} l ON l.id = 1 WHERE {{condition}} {{limit}}
"""  # noqa: S608


def _read_sql(channels: int) -> str:
    names = ", ".join(["%s"] * channels)
    return (
        f"SELECT 0 AS kind, found.* FROM (SELECT {_COLUMNS} FROM {_event} "  # noqa: S608
        f"WHERE channel IN ({names}) AND position > %s ORDER BY position LIMIT %s) AS found "
        f"UNION ALL SELECT 1, position, channel, '', '', FALSE, 0 FROM {_floor} WHERE channel IN ({names}) {_AND_HEAD}"
    )


def _newest_sql(vendor: str, channels: int) -> str:
    """The newest rows of so many channels, without data that are longer than is said, but with their length."""
    of_one = _NEWEST_OF_RANGE if vendor == "postgresql" else _NEWEST_OF_ONE
    candidates = " UNION ALL ".join([of_one] * channels)
    length = "CHAR_LENGTH(data)" if vendor == "mysql" else "LENGTH(data)"
    return (
        f"SELECT position, channel, type, CASE WHEN {length} <= %s THEN data END, is_json, created_at, {length} "  # noqa: S608
        f"FROM (SELECT position FROM ({candidates}) AS candidates "
        f"ORDER BY position DESC LIMIT %s) AS newest JOIN {_event} USING (position)"
    )


def _at_positions_sql(count: int) -> str:
    return f"SELECT {_COLUMNS} FROM {_event} WHERE position IN ({', '.join(['%s'] * count)})"  # noqa: S608


class DatabaseBackend(TrimmingBackend):
    """
    The log in a database of the site's. The default: no broker, and events are part of the site's own transactions.

    Options: `database`, the alias of the database (default: where the routers send the `Event` model);
    `poll_interval`, seconds between two looks for other processes' events where the database does not tell of them
    (default 0.02 on SQLite, 0.25 elsewhere); `trim_interval`, seconds between two background trims (default 30; None:
    only `prune_events` trims); `timeout`, seconds that the server may take to answer before it counts as unreachable
    (default 5; None: as long as TCP does); `listen_dsn`, a connection string with which to LISTEN on PostgreSQL, where
    the database's own leads through a pooler that swallows notifications.
    """

    default_options: ClassVar[dict[str, Any]] = {
        "database": None,
        "listen_dsn": None,
        "poll_interval": None,
        "timeout": 5.0,
        "trim_interval": 30.0,
    }
    joins_transactions = True
    logger = logger

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        for name in ("poll_interval", "timeout"):
            self._check_seconds(name)
        self._timeout: float | None = self.options["timeout"]
        self._tails: set[Tail] = set()
        self._readers = Readers(lambda: self.database, self._timeout)

    @property
    def database(self) -> str:
        """The alias of the database that holds the log."""
        alias: str = self.options["database"] or router.db_for_write(Event)
        return alias

    @property
    def label(self) -> str:
        """How log lines name the log."""
        return f"database={self.database}"

    def log_identity(self) -> str:
        """The database: its tables hold one log."""
        return f"the database {self.database!r}"

    def _connection(self) -> BaseDatabaseWrapper:
        connection = connections[self.database]
        # Here, not where it is used: Django opens it by itself where it is asked for its state.
        limit_connecting(connection, self._timeout)
        return connection

    # Writing

    def append(self, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """Write the events; see the module's docstring for what happens inside a transaction."""
        if not events:
            return []
        connection = self._connection()
        deadline: Deadline | None = None
        try:
            if connection.in_atomic_block or not connection.get_autocommit():
                return self._append_unnumbered(connection, events)
            with renewed(connection, self._timeout) as deadline:
                published = self._append_alone(connection, events)
        except (DatabaseError, InterfaceError) as error:
            if deadline is not None and connection.vendor != "sqlite" and connection.connection is None:
                says = f"did not answer within {self._timeout} s" if deadline.has_passed else f"says: {error}"
                raise BackendUnavailable(
                    f"it is not known whether the events are published: the connection broke, and the database "
                    f"{self.database!r} {says}. With a key it is safe to publish again."
                ) from error
            raise BackendUnavailable(f"nothing was published: the database {self.database!r} says: {error}") from error
        self._wake()
        return published

    def _append_alone(self, connection: BaseDatabaseWrapper, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """Write the events outside of any transaction of the site's."""
        if any(event.key is not None for event in events):
            # Claiming a key may wait for another publisher: not while the log's row is locked.
            return _again(lambda: self._append_with_keys(connection, events))
        if connection.vendor == "postgresql":
            return self._append_at_once(connection, events)
        return _again(lambda: self._append_numbered(connection, events))

    def _append_numbered(self, connection: BaseDatabaseWrapper, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """In one short transaction that holds the log's row."""
        now = time.time()
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

    def _append_with_keys(self, connection: BaseDatabaseWrapper, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        with transaction.atomic(using=connection.alias):
            return self._append_unnumbered(connection, events)

    def _append_at_once(self, connection: BaseDatabaseWrapper, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """As PostgreSQL can: in one statement, and without waiting for another publisher's disk."""
        count = len(events)
        if count == 1:
            event = events[0]
            sql = _APPEND_ONE
            values: list[Any] = [
                1,
                event.channel,
                event.type,
                storable(connection, event.data),
                event.is_json,
                time.time(),
            ]
        else:
            sql = _APPEND_MANY
            columns = zip(*((e.channel, e.type, storable(connection, e.data), e.is_json) for e in events), strict=True)
            values = [count, count, time.time(), *map(list, columns)]
        rows = _again(lambda: _rows(connection, sql, values))
        if (epoch := rows[0][2]) is None:
            # Somebody else was numbering.
            cursors = self._number_together(connection, [row[0] for row in rows])
        else:
            cursors = {row[0]: f"{epoch}-{row[1]}" for row in rows}
        return [
            # None only for what was cleared before we looked.
            PublishedEvent(channel=event.channel, event=event.type, id=cursors.get(row[0]))
            for event, row in zip(events, rows, strict=True)
        ]

    def _append_unnumbered(self, connection: BaseDatabaseWrapper, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """Write the events as a part of the open transaction. They are numbered when it has committed."""
        now = time.time()
        published = []
        #: New rows in the order of their events, each with its key, if it has one, and the results that wait for it.
        rows: list[tuple[Event, IdempotencyKey | None, list[PublishedEvent]]] = []
        claimed: dict[tuple[str, str], list[PublishedEvent]] = {}
        repeated: dict[int, list[PublishedEvent]] = {}
        # A savepoint: all or none, also where the caller catches the error and commits the rest.
        with transaction.atomic(using=connection.alias):
            for event in events:
                result = PublishedEvent(channel=event.channel, event=event.type)
                key = None
                if event.key is not None:
                    if (first := claimed.get((event.channel, event.key))) is not None:
                        # Twice in one call.
                        result.event, result.repeated = first[0].event, True
                        first.append(result)
                        published.append(result)
                        continue
                    key, is_first = self._claim_key(connection, event, now)
                    if not is_first:
                        published.append(self._repeat(connection, key))
                        if published[-1].id is None:
                            repeated.setdefault(key.event, []).append(published[-1])
                        continue
                row = Event(
                    channel=event.channel,
                    type=event.type,
                    data=storable(connection, event.data),
                    is_json=event.is_json,
                    created_at=now,
                )
                rows.append((row, key, [result]))
                if event.key is not None:
                    claimed[event.channel, event.key] = rows[-1][2]
                published.append(result)
            self._insert(connection, [row for row, _, _ in rows])
            for row, key, _ in rows:
                if key is not None:
                    key.event = row.pk
                    key.save(using=connection.alias)
        pending = {**repeated, **{row.pk: results for row, _, results in rows}}
        if connection.in_atomic_block:
            transaction.on_commit(lambda: self._after_commit(connection, pending), using=connection.alias)
        # With autocommit switched off by hand there is no hook: the tail of any process numbers what it finds.
        return published

    def _insert(self, connection: BaseDatabaseWrapper, rows: list[Event]) -> None:
        """Write rows without a position, in order, and set their primary keys."""
        if connection.features.can_return_rows_from_bulk_insert:
            Event.rows.using(connection.alias).bulk_create(rows)
            return
        for row in rows:
            row.save(using=connection.alias, force_insert=True)

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
            rows = Event.rows.using(connection.alias).filter(pk=key.event)
            position = rows.values_list("position", flat=True).first()
        return PublishedEvent(
            channel=key.channel,
            event=key.type,
            id=None if position is None else str(Cursor(self.log_row(connection).epoch, position)),
            repeated=True,
        )

    def _after_commit(self, connection: BaseDatabaseWrapper, pending: dict[int, list[PublishedEvent]]) -> None:
        try:
            with renewed(connection, self._timeout):
                if connection.vendor == "postgresql":
                    cursors = self._number_together(connection, pending)
                else:
                    self.number()
                    epoch = self.log_row(connection).epoch
                    numbered = Event.rows.using(connection.alias).filter(pk__in=pending, position__isnull=False)
                    cursors = {pk: f"{epoch}-{position}" for pk, position in numbered.values_list("pk", "position")}
            for pk, cursor in cursors.items():
                for result in pending[pk]:
                    result.id = cursor
        except (DatabaseError, InterfaceError) as error:
            # The events are committed. The next publisher, or the tail of any process, numbers them.
            logger.warning("events committed but not yet numbered: database=%s error=%s", connection.alias, error)
        self._wake()

    def number(self) -> None:
        """Give every committed event without a position the next numbers."""
        connection = self._connection()
        if connection.vendor == "postgresql":
            self._number_together(connection, [])
            return
        while _rows(connection, _UNNUMBERED, [1]):
            _again(lambda: self._number_chunk(connection))

    def _number_chunk(self, connection: BaseDatabaseWrapper) -> None:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            self._take(connection, cursor, 0)
            cursor.execute(_UNNUMBERED, [CHUNK])
            ids = [row[0] for row in cursor.fetchall()]
            _, head = self._take(connection, cursor, len(ids))
            first = head - len(ids) + 1
            cursor.executemany(_SET_POSITION, [(first + index, pk) for index, pk in enumerate(ids)])

    def _number_together(self, connection: BaseDatabaseWrapper, ids: Collection[int]) -> dict[int, str]:
        """
        Number what is committed, or wait for who does, until those rows (or, without any, all) have a position.

        Returns the rows' cursors, without those that are gone.
        """
        condition = f"e.id IN ({','.join(map(str, ids))})" if ids else "position IS NULL"
        sql = _NUMBER_AND_LOOK.format(condition=condition, limit="" if ids else "LIMIT 1")
        while True:
            rows = _again(lambda: _second_rows(connection, sql))
            if all(row[1] is not None for row in rows):
                return {row[0]: f"{row[2]}-{row[1]}" for row in rows}
            if rows[0][2] is None:
                with connection.cursor() as cursor:
                    _begin_log(connection, cursor)

    def unnumbered(self, connection: BaseDatabaseWrapper) -> set[int]:
        """The primary keys of committed events without a position, of the oldest ones if there are many."""
        return {row[0] for row in _rows(connection, _UNNUMBERED, [CHUNK])}

    #: MariaDB has no UPDATE … RETURNING.
    _vendors_with_returning = frozenset({"sqlite", "postgresql"})

    def _take(self, connection: BaseDatabaseWrapper, cursor: Any, count: int) -> tuple[str, int]:
        """Lock the log's row, take the next `count` numbers, and return the epoch and the new head."""
        while True:
            if connection.vendor in self._vendors_with_returning:
                cursor.execute(_sql(cursor, _TAKE_RETURNING), (count,))
                row = cursor.fetchone()
            else:
                cursor.execute(_sql(cursor, _TAKE), (count,))
                row = None
                # Without a row there was none to lock: what somebody else has written since is not ours to take from.
                if cursor.rowcount:
                    cursor.execute(_HEAD)
                    row = cursor.fetchone()
            if row is not None:
                return row[0], row[1]
            _begin_log(connection, cursor)

    def log_row(self, connection: BaseDatabaseWrapper) -> Cursor:
        """The epoch and head; where there is no row (a new or a flushed database), the log's life begins."""
        with connection.cursor() as cursor:
            while True:
                cursor.execute(_HEAD)
                if (row := cursor.fetchone()) is not None:
                    return Cursor(*row)
                _begin_log(connection, cursor)

    def _wake(self) -> None:
        for tail in tuple(self._tails):
            tail.wake()

    # Reading

    def head(self) -> Cursor:
        """The cursor of the newest event."""
        with self._reading() as connection:
            return self.log_row(connection)

    @contextmanager
    def _reading(self) -> Iterator[BaseDatabaseWrapper]:
        connection = self._connection()
        try:
            if connection.in_atomic_block:
                yield connection
                return
            with renewed(connection, self._timeout):
                yield connection
        except (DatabaseError, InterfaceError) as error:
            raise BackendUnavailable(f"the log cannot be read: the database {self.database!r} says: {error}") from error

    def read(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """Up to `limit` events above `after`, with floors and head, all of one moment."""
        names = sorted(channels)
        with self._reading() as connection:
            rows = _rows(connection, _read_sql(len(names)), [*names, after, limit + 1, *names])
            heads = [Cursor(row[2], row[1]) for row in rows if row[0] == 2]
            head = heads[0] if heads else self.log_row(connection)
        events = _stored(connection, (row[1:] for row in rows if row[0] == 0))
        return ReadResult(
            events=events[:limit],
            floors={row[2]: row[1] for row in rows if row[0] == 1},
            head=head,
            more=len(events) > limit,
        )

    def read_tail(self, connection: BaseDatabaseWrapper, after: int) -> tuple[list[StoredEvent], Cursor, bool]:
        """For the tail: the next events of all channels, the log's head, and whether there may be more."""
        rows = _rows(connection, _TAIL, [after])
        heads = [Cursor(row[2], row[1]) for row in rows if row[0] == 2]
        events = _stored(connection, (row[1:] for row in rows if row[0] == 0))
        return events, heads[0] if heads else self.log_row(connection), len(events) == TAIL_LIMIT

    def latest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """The newest kept event of each channel that has one."""
        with self._reading() as connection:
            # One seek in the index each; a GROUP BY would walk through every event of the channels.
            rows = [row for name in channels for row in _rows(connection, _LATEST, [name])]
        return {event.channel: event for event in _stored(connection, rows)}

    def newest(self, channels: Collection[str], limit: int) -> list[StoredEvent]:
        """
        The newest kept events of the channels, fewer where they are large: one statement for a hundred channels.

        Data that may be too much come with a statement of their own, when it is known whose they are.
        """
        if limit < 1:
            return []
        names = sorted(set(channels))
        at_once = NEWEST_CHARACTERS // limit
        rows: list[Any] = []
        with self._reading() as connection:
            # A range has two ends.
            ends = 2 if connection.vendor == "postgresql" else 1
            for start in range(0, len(names), NEWEST_AT_ONCE):
                part = names[start : start + NEWEST_AT_ONCE]
                values = [value for name in part for value in (*[name] * ends, limit)]
                rows += _rows(connection, _newest_sql(connection.vendor, len(part)), [at_once, *values, limit])
            rows = sorted(rows, reverse=True)[:limit]
            totals = accumulate(row[6] for row in rows)
            # Up to the one with which they are enough.
            rows = [row for row, total in zip(rows, totals, strict=True) if total - row[6] < NEWEST_CHARACTERS]
            whole = [row for row in rows if row[6] <= at_once]
            if large := [row[0] for row in rows if row[6] > at_once]:
                whole += _rows(connection, _at_positions_sql(len(large)), large)
        return _stored(connection, whole)

    def channels(self) -> list[str]:
        """The names of the channels that have events."""
        with self._reading() as connection:
            return [name for name in self._all_channels(connection) if name != CONTROL_CHANNEL]

    def _all_channels(self, connection: BaseDatabaseWrapper) -> list[str]:
        """One seek in the index for each; a DISTINCT would walk through every event."""
        names = [""]
        while rows := _rows(connection, _NEXT_CHANNEL, [names[-1]]):
            names.append(rows[0][0])
        return names[1:]

    # A stream outlives its request: what it reads, it reads on other threads than Django's.

    async def aread(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """`read` on a thread of the backend's own."""
        return await asyncio.wrap_future(self._readers.submit(self.read, channels, after, limit))

    async def alatest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """`latest` on a thread of the backend's own."""
        return await asyncio.wrap_future(self._readers.submit(self.latest, channels))

    async def ahead(self) -> Cursor:
        """`head` on a thread of the backend's own."""
        return await asyncio.wrap_future(self._readers.submit(self.head))

    async def tail(self) -> AsyncGenerator[Batch, None]:
        """The log from now on. See `Tail`."""
        kinds = {"sqlite": SQLiteTail, "postgresql": ListeningTail}
        tail = kinds.get(self._connection().vendor, Tail)(self, asyncio.get_running_loop())
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
        with self._trimming_errors() as connection:
            total = sum(
                self._trim_channel(connection, channel, retention(channel))
                for channel in self._all_channels(connection)
            )
            keys = IdempotencyKey.objects.using(connection.alias)
            expired = keys.filter(created_at__lt=time.time() - KEY_LIFETIME)
            while pks := list(expired.values_list("pk", flat=True)[:CHUNK]):
                keys.filter(pk__in=pks).delete()
                forks.give_way()
        return total

    def _trim_in_background(self, retention: Callable[[str], Retention], interval: float) -> None:
        # Who publishes does not know of this thread, and may fork at any time.
        with forks.held_off():
            super()._trim_in_background(retention, interval)

    @contextmanager
    def _trimming_errors(self) -> Iterator[BaseDatabaseWrapper]:
        connection = self._connection()
        try:
            yield connection
        except (DatabaseError, InterfaceError) as error:
            raise BackendUnavailable(f"trimming stopped: the database {self.database!r} says: {error}") from error

    def _trim_channel(self, connection: BaseDatabaseWrapper, channel: str, keep: Retention) -> int:
        """Remove from one channel what `keep` does not keep, oldest first, raising its floor with each chunk."""
        forks.give_way()
        oldest = None if keep.seconds is None else time.time() - keep.seconds
        with renewed(connection, self._timeout):
            events = Event.rows.using(connection.alias).filter(channel=channel, position__isnull=False)
            positions = events.order_by("-position").values_list("position", flat=True)
            # First of all: what is published from now on is not ours to remove.
            newest = positions.first() or 0
            # The newest of those that are too many.
            surplus = [] if keep.events is None else positions[keep.events : keep.events + 1]
            bound = next(iter(surplus), None) or 0
        total = after = 0
        begun = time.monotonic()
        while chunk := self._trim_chunk(connection, channel, after, bound, newest if oldest else bound, oldest or 0):
            forks.give_way()
            if connection.vendor == "sqlite":
                # Who waits for its one write lock asks now and then: taking it again at once shuts all others out.
                time.sleep(time.monotonic() - begun)
                begun = time.monotonic()
            total += len(chunk)
            # Where the last one ended: what is deleted stays in the index for a while, and to pass over it takes time.
            after = chunk[-1]
        return total

    def _trim_chunk(
        self, connection: BaseDatabaseWrapper, channel: str, after: int, bound: int, limit: int, oldest: float
    ) -> list[int]:
        """
        Remove some events: after one position, and up to `bound`, or up to `limit` those from before `oldest`.

        Stops at the first that is young enough: an old date behind it is of a clock that was set back. Returns the
        positions of what went.
        """
        rows = Event.rows.using(connection.alias).filter(channel=channel, position__gt=after, position__lte=limit)
        rows = rows.order_by("position")
        if connection.features.has_select_for_update_skip_locked:
            # Two that trim at once take different rows.
            rows = rows.select_for_update(skip_locked=True)
        with renewed(connection, self._timeout), transaction.atomic(using=connection.alias):
            found = rows.values_list("pk", "position", "created_at")[:CHUNK]
            goes = takewhile(lambda row: (row[1] or 0) <= bound or row[2] < oldest, found)
            chunk = {pk: position or 0 for pk, position, _ in goes}
            if not chunk:
                return []
            # Keys outlive their events: keep the cursor that a repeat gives back.
            for key in IdempotencyKey.objects.using(connection.alias).filter(event__in=chunk, position=None):
                key.position = chunk[key.event]
                key.save(using=connection.alias)
            floor = max(chunk.values())
            floors = Floor.objects.using(connection.alias)
            # Never down, where two trim at once.
            if not floors.filter(channel=channel, position__lt=floor).update(position=floor):
                floors.get_or_create(channel=channel, defaults={"position": floor})
            Event.rows.using(connection.alias).filter(pk__in=chunk).delete()
        return list(chunk.values())

    def clear(self, channels: Collection[str]) -> int:
        """Remove all events of the channels."""
        with self._trimming_errors() as connection:
            return sum(self._trim_channel(connection, name, Retention(events=0)) for name in channels)

    def _claim_trim(self, interval: float) -> bool:
        connection = own_connection(self.database, self._timeout)
        now = time.time()
        # A time in the future is a clock that was set back since.
        due = Q(trimmed_at__lt=now - interval / 2) | Q(trimmed_at__gt=now)
        return bool(Log.objects.using(connection.alias).filter(due, pk=1).update(trimmed_at=now))

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


def _rows(connection: BaseDatabaseWrapper, sql: str, values: Sequence[Any]) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall())


def _second_rows(connection: BaseDatabaseWrapper, sql: str) -> list[Any]:
    """What the second of two statements finds."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        cursor.nextset()
        return list(cursor.fetchall())


def _again(attempt: Callable[[], T]) -> T:
    """What `attempt`, a transaction of its own, returns, tried again where the server rolled it back for another's."""
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except DatabaseError as error:
            if not is_conflict(error):
                raise
    return attempt()


def _stored(connection: BaseDatabaseWrapper, rows: Iterable[Sequence[Any]]) -> list[StoredEvent]:
    """The events of such rows, in the order of their positions: no engine promises that of a UNION."""
    events = [
        StoredEvent(
            position=row[0],
            channel=row[1],
            type=row[2],
            data=restored(connection, row[3]),
            is_json=bool(row[4]),
            created_at=row[5],
        )
        for row in rows
    ]
    events.sort(key=lambda event: event.position)
    return events
