"""
Database connections where Django does not look after them: bounded in time, renewed when dead, given back when idle.

A driver waits for its server for as long as TCP does: a quarter of an hour where packets vanish, for ever where the
server is stopped. A publisher wants to be told, and a thread that follows a log to try again.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import queue
import select
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, OperationalError, connections
from django.db.utils import load_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

T = TypeVar("T")

logger = logging.getLogger("events.backends.connections")

#: Seconds that a fork waits at most for what this app's own threads write; and where they may be waiting for the very
#: thread that forks.
FORK_PATIENCE = 5.0
FORK_PATIENCE_OF_A_HOLDER = 0.1
#: Seconds between two looks for deadlines that have passed: a deadline may be late by that.
WATCH_EVERY = 0.2
#: Threads that read for the streams of a process. A thousand streams that come back together share them.
MAX_READERS = 4
#: Seconds after which a reader that has nothing to do gives its connection back.
READER_IDLE = 2.0
#: SQLSTATE of a serialization failure and of a deadlock, and MySQL's numbers for a deadlock and a changed record.
_CONFLICTS = frozenset({"40001", "40P01", 1213, 1020})


class Forks:
    """
    Keeps what this app's own threads do in a database and the forks of the process apart. There is one, `forks`.

    A child has its parent's memory, and in it a transaction that another thread was in the middle of, but not that
    thread. SQLite keeps a process's locks there: to the child its database would be locked for ever, or SQLite itself
    if the thread was inside of it. Nobody who forks knows of threads that this app has started, so the fork waits for
    what they write, and on SQLite for what they read.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows does not fork
            os.register_at_fork(before=self._before, after_in_parent=self._after, after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        #: The threads that are not to be forked from.
        self._busy: set[int] = set()
        #: The threads that are about to fork, or fork.
        self._forking: set[int] = set()

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """A block of a thread of this app's own in which the process does not fork. Waits while it does."""
        if threading.get_ident() in self._busy:
            # Within another one, which lasts longer.
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._busy.add(threading.get_ident())
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(threading.get_ident())
                self._changed.notify_all()

    def give_way(self) -> None:
        """Between two transactions in a long `held_off`: let the process fork if it is about to. Elsewhere nothing."""
        thread = threading.get_ident()
        if not self._forking or thread not in self._busy:
            return
        # A connection that the child inherits is one whose locks it believes to have.
        connections.close_all()
        with self._changed:
            self._busy.discard(thread)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._forking)
            self._busy.add(thread)

    def _before(self) -> None:
        until = time.monotonic() + (FORK_PATIENCE_OF_A_HOLDER if _is_waited_for() else FORK_PATIENCE)
        is_quiet = None
        fault: BaseException | None = None
        # Before anything that a signal may interrupt: `_after` comes in any case.
        self._forking.add(threading.get_ident())
        with self._changed:
            # A source, or a function that says what is kept, may fork itself.
            others = self._busy - {threading.get_ident()}
            while is_quiet is None:
                try:
                    is_quiet = self._changed.wait_for(lambda: not self._busy & others, until - time.monotonic())
                except BaseException as error:  # noqa: BLE001 - Python says what it was, and forks all the same
                    fault = error
        if not is_quiet:
            logger.warning("a fork did not wait any longer for a thread in a database: that may be locked to the child")
        if fault is not None:
            raise fault

    def _after(self) -> None:
        self._forking.discard(threading.get_ident())
        with self._changed:
            self._changed.notify_all()


def _is_waited_for() -> bool:
    """Whether others may wait for this thread: a loop runs on it, or it has a transaction open that locks SQLite."""
    with suppress(RuntimeError):
        return bool(asyncio.get_running_loop())
    return any(each.vendor == "sqlite" and each.in_atomic_block for each in connections.all(initialized_only=True))


forks = Forks()


@functools.cache
def _is_sqlite(engine: str) -> bool:
    """Asked of the engine and not of a connection: a site may have hundreds, and some that are not to be had here."""
    try:
        return bool(load_backend(engine).DatabaseWrapper.vendor == "sqlite")
    except ImproperlyConfigured:
        return False


@contextmanager
def using_databases() -> Iterator[None]:
    """
    A block of a thread of this app's own that uses the site's databases, or closes its connections to them.

    Forks wait for it where one of them is SQLite. What a server does may take long, and is nothing to a child.
    """
    if any(_is_sqlite(database["ENGINE"]) for database in connections.settings.values()):
        with forks.held_off():
            yield
    else:
        yield


class _Watchdog:
    """Breaks the connections whose deadline has passed: what waits in the driver gets an error."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.lock = threading.Lock()
        #: By the deadline itself: when it is, and the socket's file descriptor.
        self.watched: dict[Deadline, tuple[float, int]] = {}
        self._busy = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, deadline: Deadline, at: float, descriptor: int) -> None:
        self.watched[deadline] = (at, descriptor)
        if not self._busy.is_set():
            self._busy.set()
            with self.lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="events-watchdog", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while True:
            self._busy.wait()
            # First, so that whoever comes from now on wakes it again.
            self._busy.clear()
            while self.watched:
                time.sleep(WATCH_EVERY)
                self._break_overdue(time.monotonic())

    def _break_overdue(self, now: float) -> None:
        for deadline, (at, descriptor) in list(self.watched.items()):
            # Under the lock, which `Deadline.__exit__` takes: the descriptor cannot have become another socket's.
            with self.lock:
                if at > now or self.watched.pop(deadline, None) is None:
                    continue
                deadline.has_passed = True
                with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as duplicate:
                    duplicate.shutdown(socket.SHUT_RDWR)


_watchdog = _Watchdog()


class Deadline:
    """
    A block in which the server must answer: after `seconds` the connection is broken, and the driver raises.

    None is no limit. Where the driver shows no socket (SQLite has none), there is none either.
    """

    __slots__ = ("_connection", "_seconds", "has_passed")

    def __init__(self, connection: BaseDatabaseWrapper, seconds: float | None) -> None:
        self._connection = connection
        self._seconds = seconds
        self.has_passed = False

    def __enter__(self) -> Deadline:
        if self._seconds is not None and (descriptor := _descriptor(self._connection)) is not None:
            _watchdog.watch(self, time.monotonic() + self._seconds, descriptor)
        return self

    def __exit__(self, *args: object) -> None:
        with _watchdog.lock:
            _watchdog.watched.pop(self, None)


def _descriptor(connection: BaseDatabaseWrapper) -> int | None:
    if connection.vendor == "sqlite":
        return None
    fileno = getattr(connection.connection, "fileno", None)
    try:
        return None if fileno is None else int(fileno())
    except Exception:  # noqa: BLE001 - each driver has an error of its own for a connection that is closed
        return None


@contextmanager
def bounded(connection: BaseDatabaseWrapper, seconds: float | None) -> Iterator[Deadline]:
    """A block outside a transaction that talks to the server for at most so many seconds. Closes what breaks."""
    connection.ensure_connection()
    with Deadline(connection, seconds) as deadline:
        try:
            yield deadline
        except (DatabaseError, InterfaceError):
            # Without a connection there is nothing to ask: opening it again, as Django does after a commit, failed.
            if not connection.in_atomic_block and connection.connection is not None and not connection.is_usable():
                connection.close()
            raise


@contextmanager
def renewed(connection: BaseDatabaseWrapper, seconds: float | None) -> Iterator[Deadline]:
    """
    `bounded`, on a live connection: one that the server has closed while it lay idle is opened anew first.

    Outside a request nobody else does that.
    """
    if (descriptor := _descriptor(connection)) is not None and _has_input(descriptor):
        # An idle connection has nothing to say, unless it is at its end (or has a notice, which keeps it usable).
        with Deadline(connection, seconds):
            is_usable = connection.is_usable()
        if not is_usable:
            connection.close()
    with bounded(connection, seconds) as deadline:
        yield deadline


def _has_input(descriptor: int) -> bool:
    if not hasattr(select, "poll"):
        # Windows, where select() has no limit of 1024.
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def is_conflict(error: Exception) -> bool:
    """Whether the server rolled back because of what another transaction did: trying again is right."""
    cause = error.__cause__
    if not isinstance(error, OperationalError) or cause is None:
        return False
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or (cause.args or (None,))[0]
    return code in _CONFLICTS


def limit_connecting(connection: BaseDatabaseWrapper, seconds: float | None) -> None:
    """Let this thread's connection give up connecting after `seconds`, unless the site has a limit of its own."""
    options = connection.settings_dict["OPTIONS"]
    if seconds is not None and connection.vendor in ("postgresql", "mysql") and "connect_timeout" not in options:
        # A copy: the dict is that of DATABASES, which all threads share.
        options = {**options, "connect_timeout": max(1, round(seconds))}
        connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}


def new_connection(alias: str, seconds: float | None, **settings: Any) -> BaseDatabaseWrapper:
    """
    A connection to the database beside the thread's own, which gives up connecting after `seconds`.

    `settings` take the place of those in DATABASES; OPTIONS are added to them. It is never one of a pool's: those who
    hold a connection for long would take it from the pool's others.
    """
    connection = connections.create_connection(alias)
    options = {**connection.settings_dict["OPTIONS"], **settings.get("OPTIONS", {})}
    options.pop("pool", None)
    connection.settings_dict = {**connection.settings_dict, **settings, "OPTIONS": options}
    limit_connecting(connection, seconds)
    return connection


def own_connection(alias: str, seconds: float | None, **settings: Any) -> BaseDatabaseWrapper:
    """`new_connection` as what `connections[alias]` gives this thread, which is one of this app's own."""
    connections[alias] = connection = new_connection(alias, seconds, **settings)
    return connection


class Readers:
    """
    Some threads with a connection each, for the streams of a process, which have none.

    Started when there is something to read, ended when there is nothing for a while.
    """

    def __init__(self, alias: Callable[[], str], seconds: float | None) -> None:
        self._alias = alias
        self._seconds = seconds
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        self._threads = self._open_jobs = 0

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Call `function` on one of the threads."""
        if self._process != os.getpid():
            # A child process has none of its parent's threads.
            self._reset()
        future: Future[T] = Future()
        with self._lock:
            self._jobs.put((future, function, args))
            self._open_jobs += 1
            if self._threads < min(self._open_jobs, MAX_READERS):
                self._threads += 1
                threading.Thread(target=self._run, name="events-reader", daemon=True).start()
        return future

    def _run(self) -> None:
        alias = self._alias()
        connection = own_connection(alias, self._seconds)
        guard = forks.held_off if connection.vendor == "sqlite" else nullcontext
        try:
            while (job := self._next()) is not None:
                future, function, args = job
                if future.set_running_or_notify_cancel():
                    try:
                        with guard():
                            result = function(*args)
                    except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                        future.set_exception(error)
                    else:
                        future.set_result(result)
                with self._lock:
                    self._open_jobs -= 1
        finally:
            with guard():
                connection.close()

    def _next(self) -> tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None:
        with suppress(queue.Empty):
            return self._jobs.get(timeout=READER_IDLE)
        with self._lock:
            # A job that came between the two would have found a thread that is about to end.
            with suppress(queue.Empty):
                return self._jobs.get_nowait()
            self._threads -= 1
            return None
