"""
The ticker: one thread per process that makes interval messages when they are due.

A tick is due at every whole multiple of its channel's interval since 1970. All processes agree on that grid without
talking, and it cannot drift. Whoever claims a tick first, by one conditional UPDATE, makes it: exactly one message per
interval in the whole deployment. Machines whose clocks differ by more than `CLOCK_SKEW` would not agree.

A process ticks for the channels that its own streams follow (`feed_opened`, `feed_closed`), and, once it has served a
request, for those that tick unwatched. The thread also keeps the process's copy of the channels fresh while streams are
open, so that a change in the admin reaches them within a second.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import queue
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.db import DatabaseError, close_old_connections, connections, transaction
from django.db.models import F, Q
from django.utils import timezone

from . import signals, sources
from .backends.connections import using_databases
from .channels import MAX_AGE, channel_table
from .exceptions import EventsError
from .models import Channel, Tick
from .publishing import publish

logger = logging.getLogger("events.ticks")

#: Seconds by which a tick may be late and is still made. What is later is skipped: no burst after sleep.
MAX_LATENESS = 1.0
#: Seconds by which two machines' clocks may differ. A claim further in the future is of a clock that was set back.
CLOCK_SKEW = 10.0
#: Seconds by which floating point, at today's number of seconds since 1970, can be wrong, and a thousandfold more.
TOLERANCE = 0.001
#: Seconds until the channels are read again after a fault of the database.
FAULT_WAIT = 2.0
#: Threads that call sources, so that a slow one holds up nobody else.
WORKERS = 4


@dataclass(slots=True)
class Schedule:
    """When a channel is next due: at `step` times its interval since 1970."""

    channel: Channel
    step: int
    #: A worker is making the tick. The next one waits for it: a channel's messages are made one after the other.
    is_busy: bool = False

    @property
    def due_at(self) -> float:
        """Seconds since 1970. Multiplied, not added up, so that it does not drift; and the same in every process."""
        return round(self.step * self.channel.interval, 6)

    def move_after(self, now: float) -> None:
        """Make the first tick after `now` the next one."""
        self.step = math.floor((now + TOLERANCE) / self.channel.interval) + 1


class Ticker:
    """Ticks for this process. There is one, `ticker`."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # A child process has none of its parent's threads or streams.
        self._lock = threading.Lock()
        self._watched: Counter[str] = Counter()
        self._serving = False
        self._thread: threading.Thread | None = None
        self._woken = threading.Event()
        self._stopping = False
        # The thread's own: nothing else touches these two.
        self._schedules: dict[str, Schedule] = {}
        self._heap: list[tuple[float, str]] = []
        # To the workers, and back.
        self._jobs: queue.SimpleQueue[tuple[str, Schedule, float]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Schedule, float]] = queue.SimpleQueue()
        self._workers = 0
        self._open_jobs = 0

    # What the rest of the process says

    def watch(self, channel: str, **kwargs: Any) -> None:
        """A stream of `channel` was opened in this process."""
        with self._lock:
            self._watched[channel] += 1
        self._start()

    def unwatch(self, channel: str, **kwargs: Any) -> None:
        """The last stream of `channel` on one of this process's loops was closed."""
        with self._lock:
            self._watched[channel] -= 1
            if self._watched[channel] <= 0:
                del self._watched[channel]
        self._woken.set()

    def serve(self, sender: Any, **kwargs: Any) -> None:
        """Tick unwatched channels too: the process is a server, not a command or a test's client."""
        if not self._serving and isinstance(sender, type) and issubclass(sender, (ASGIHandler, WSGIHandler)):
            self._serving = True
            self._start()

    def look(self, **kwargs: Any) -> None:
        """The channels may have changed."""
        self._woken.set()

    def stop(self) -> None:
        """End the thread, and wait for it. The next stream starts it again."""
        self._stopping = True
        self._woken.set()
        if (thread := self._thread) is not None:
            thread.join()
        self._serving = False

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(target=self._run, name="events-ticker", daemon=True)
                self._thread.start()
        self._woken.set()

    # The thread

    def _run(self) -> None:
        try:
            while self._has_work():
                self._woken.clear()
                wait = MAX_AGE
                with using_databases():
                    try:
                        channel_table.refresh()
                        now = time.time()
                        self._collect_done(now)
                        self._plan(now)
                        wait = self._submit_due(now)
                        if not self._schedules and not self._watched:
                            # Nothing to do but to notice when there is: hold no connection for that.
                            connections.close_all()
                    except Exception as error:
                        # Whatever it is, no later tick may suffer from it.
                        unknown = None if isinstance(error, (DatabaseError, EventsError)) else error
                        logger.warning("the channels cannot be read, trying again: %s", error, exc_info=unknown)
                        connections.close_all()
                        wait = FAULT_WAIT
                self._woken.wait(wait)
        finally:
            with using_databases():
                connections.close_all()

    def _has_work(self) -> bool:
        """Whether the thread goes on. If not, the next stream starts another one."""
        with self._lock:
            if self._stopping or not (self._watched or self._serving):
                self._thread = None
                self._schedules.clear()
                self._heap.clear()
                return False
            return True

    def _collect_done(self, now: float) -> None:
        """Take back what the workers have made, and set when each is due next."""
        while not self._done.empty():
            name, schedule, due_at = self._done.get()
            self._open_jobs -= 1
            schedule.is_busy = False
            if schedule.due_at == due_at:
                schedule.step += 1
            else:
                # Its interval was changed meanwhile.
                schedule.move_after(now)
            if self._schedules.get(name) is schedule:
                heapq.heappush(self._heap, (schedule.due_at, name))

    def _plan(self, now: float) -> None:
        """Add what ticks now, drop what does not, and move what changed its interval."""
        wanted = self._wanted()
        for name in self._schedules.keys() - wanted.keys():
            del self._schedules[name]
        for name, channel in wanted.items():
            schedule = self._schedules.get(name)
            if schedule is None:
                schedule = self._schedules[name] = Schedule(channel, 0)
                schedule.move_after(now)
            elif schedule.channel.interval != channel.interval:
                schedule.channel = channel
                if schedule.is_busy:
                    continue
                schedule.move_after(now)
            elif schedule.due_at > now + channel.interval + MAX_LATENESS and not schedule.is_busy:
                # The clock was set back.
                schedule.move_after(now)
            else:
                schedule.channel = channel
                continue
            heapq.heappush(self._heap, (schedule.due_at, name))

    def _wanted(self) -> dict[str, Channel]:
        if not any(row.source for row in channel_table.all()):
            # However many channels are watched, there is no need to look each of them up.
            return {}
        with self._lock:
            names = set(self._watched)
        if self._serving:
            names.update(row.name for row in channel_table.all() if not row.only_when_watched and not row.is_pattern)
        found = ((name, channel_table.find(name)) for name in names)
        return {name: row for name, row in found if row is not None and row.is_active and row.source}

    def _submit_due(self, now: float) -> float:
        """Hand what is due to the workers. Returns the seconds until something is due, or to the next look."""
        while self._heap:
            due_at, name = self._heap[0]
            schedule = self._schedules.get(name)
            if schedule is None or schedule.is_busy or schedule.due_at != due_at:
                # Dropped or moved since.
                heapq.heappop(self._heap)
            elif due_at > now:
                return min(due_at - now, MAX_AGE)
            elif due_at < now - MAX_LATENESS:
                schedule.move_after(now)
                heapq.heapreplace(self._heap, (schedule.due_at, name))
            else:
                heapq.heappop(self._heap)
                schedule.is_busy = True
                self._submit(name, schedule)
        return MAX_AGE

    def _submit(self, name: str, schedule: Schedule) -> None:
        self._open_jobs += 1
        if self._open_jobs > self._workers and self._workers < WORKERS:
            self._workers += 1
            # Not a ThreadPoolExecutor: the interpreter would wait for a source that hangs before it ends.
            threading.Thread(target=self._work, args=(self._jobs, self._done), name="events-tick", daemon=True).start()
        self._jobs.put((name, schedule, schedule.due_at))

    def _work(self, jobs: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
        while True:
            name, schedule, due_at = jobs.get()
            try:
                with using_databases():
                    close_old_connections()
                tick(schedule.channel, name, due_at)
            except Exception:
                logger.exception("a tick could not be made, trying again at the next: channel=%s", name)
            finally:
                with using_databases():
                    close_old_connections()
                done.put((name, schedule, due_at))
                self._woken.set()


def tick(channel: Channel, name: str, due_at: float) -> bool:
    """
    Make the message of `name` that is due at `due_at`, unless another process has. Returns whether it was made here.

    Whatever the source raises is logged and kept for the admin.
    """
    with using_databases():
        number = _claim(name, due_at, channel.interval)
    if number is None:
        return False
    failure: Exception | None = None
    data = None
    try:
        data = sources.make(channel, due_at=due_at, number=number)
    except Exception as error:  # noqa: BLE001 - a source may raise anything, also what a database of its own raises
        failure = error
    with using_databases():
        if data is not None:
            try:
                publish(name, data, event=channel.event_type, key=f"tick-{number}")
            except EventsError as error:
                failure = error
        failed = Tick.objects.filter(channel=name)
        if failure is not None:
            logger.error(
                "a source failed, trying again at the next tick: channel=%s source=%s",
                name,
                channel.source,
                exc_info=failure,
            )
            failed.update(error=f"{type(failure).__name__}: {failure}", failed_at=timezone.now())
        elif failed.filter(failed_at__isnull=False).exists():
            # Writes only where there was an error to take away.
            failed.update(error="", failed_at=None)
    return True


def _claim(name: str, due_at: float, interval: float) -> int | None:
    """The number of the tick if this process is the first to ask for it, else None."""
    rows = Tick.objects.filter(channel=name)
    free = rows.filter(Q(due_at__lt=due_at) | Q(due_at__gt=due_at + interval + CLOCK_SKEW))
    # Most processes come too late: they find out by reading.
    if not free.exists() and rows.exists():
        return None
    Tick.objects.get_or_create(channel=name)
    with transaction.atomic():
        if not free.update(due_at=due_at, number=F("number") + 1):
            return None
        return rows.values_list("number", flat=True).get()


ticker = Ticker()
signals.feed_opened.connect(ticker.watch, dispatch_uid="events.ticks.opened")
signals.feed_closed.connect(ticker.unwatch, dispatch_uid="events.ticks.closed")
signals.channels_changed.connect(ticker.look, dispatch_uid="events.ticks.changed")
request_started.connect(ticker.serve, dispatch_uid="events.ticks.serving")
