"""
By what right streams go on: each is asked for again at intervals, and at once where something says that it has changed.

Streams of the same visitor and channels share one right, and one answer. Questions are gathered and answered in
batches, on one thread, with a few queries for hundreds of users.

Where something was said to have changed, the streams are held until the answer is there: the message has its place in
the log, and nothing that was published after it reaches who may not read it any more. At intervals nobody is held,
unless there was no answer: a right that cannot be confirmed opens nothing.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import DatabaseError, InterfaceError, connections

from . import wire
from .access import (
    DISCONNECTED,
    REVOKED,
    SWITCHED_OFF,
    Answer,
    Question,
    Visitor,
    answers,
    are_public,
    are_switched_off,
    rows_of,
)
from .backends.connections import using_databases
from .channels import channel_table
from .conf import settings
from .exceptions import EventsError
from .threads import let_go

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable

    from .feeds import Follower

    Allowed = Visitor | Callable[[], Awaitable[bool]] | None
    Key = tuple[Allowed, str | None, tuple[str, ...]]

logger = logging.getLogger("events.rights")

#: Rights that are asked for at once.
BATCH = 200
#: Functions of the site's own (`EventStreamResponse(…, allowed=…)`) that are asked at once.
ASKING = 4
#: The parts of `RECHECK` between two looks at all rights, and over which such a look is spread. What is left is for
#: the answers.
PERIOD, SPREAD = 0.75, 0.15
#: Seconds until it is asked again for what could not be said.
RETRY = 1.0

#: In the place of a moment: nobody has made sure that the client may read.
UNCHECKED = -1

_moment = 0


def moment() -> int:
    """A number that is another one as soon as somebody's rights may have changed: what was checked before is old."""
    return _moment


def pass_moment() -> None:
    """From now on what was checked is old, in this process. Callable from any thread."""
    global _moment  # noqa: PLW0603 - a count of the whole process; that it moves is all that matters
    _moment += 1


class Right:
    """What streams of one visitor and the same channels go on by."""

    __slots__ = (
        "allowed",
        "answered",
        "asked",
        "channels",
        "is_logged_out",
        "session_tag",
        "streams",
        "unwanted",
        "user",
        "user_id",
    )

    def __init__(self, allowed: Allowed, user: str | None, channels: tuple[str, ...]) -> None:
        self.allowed = allowed
        self.user = user
        self.channels = channels
        self.streams: set[Follower] = set()
        #: How often it was asked for, and of which time the latest answer is.
        self.asked = self.answered = 0
        self.session_tag = allowed.session_tag if isinstance(allowed, Visitor) else None
        #: Whose right it is, where that is known.
        self.user_id = allowed.user_id if isinstance(allowed, Visitor) else user
        #: The session has ended: it is nobody who reads.
        self.is_logged_out = False
        #: The streams end if it turns out that they are one of these users'.
        self.unwanted: frozenset[str] = frozenset()

    @property
    def key(self) -> Key:
        """Streams with an equal one share this right."""
        return self.allowed, self.user, self.channels

    @property
    def is_answered(self) -> bool:
        """Whether there is nothing that was asked and not answered."""
        return self.asked == self.answered

    def question(self) -> Question:
        """What has to be asked, where that is no function of the site's own."""
        visitor = self.allowed if isinstance(self.allowed, Visitor) else None
        if self.is_logged_out:
            visitor = Visitor()
        return Question(visitor, self.channels, wants_user=bool(self.unwanted))

    def is_meant(self, users: Collection[str] | None, channels: Collection[str] | None, session: str | None) -> bool:
        """Whether what was said to have changed may concern it. None: it concerns all."""
        if session is not None and self.session_tag != session:
            return False
        if users is not None and isinstance(self.allowed, Visitor) and self.user_id not in users:
            # Whose user nobody has looked for reads what anybody may.
            return False
        return channels is None or any(wire.covers(meant, name) for meant in channels for name in self.channels)


class Rights:
    """
    Those of one hub's streams. On the hub's loop, like all of it.

    Tasks and timers run in `context`, and not in that of the request that happens to begin them.
    """

    def __init__(self, context: contextvars.Context) -> None:
        self._context = context
        self._recheck = settings.RECHECK
        self._rights: dict[Key, Right] = {}
        #: What is to be asked, in order; first, what anybody may read: that is said without a query.
        self._due_first: dict[Right, None] = {}
        self._due: dict[Right, None] = {}
        #: What answers it.
        self._task: asyncio.Task[None] | None = None
        #: What asks functions of the site's own.
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = asyncio.Semaphore(ASKING)
        self._timer: asyncio.TimerHandle | None = None

    def join(self, stream: Follower, allowed: Allowed, user: str | None, checked: int) -> Right:
        """
        The right by which `stream` goes on. The stream is held where that has to be asked for first.

        `allowed` says whether it may: a visitor, or an async function of the site's own for its `user`; None: always.
        `checked` is the `moment` before somebody made sure that the client may read, or `UNCHECKED`.
        """
        key = (allowed, user, stream.channels)
        right = self._rights.get(key)
        is_known = right is not None and right.is_answered
        is_sure = checked == moment() or (checked == UNCHECKED and is_known)
        if right is None:
            right = self._rights[key] = Right(*key)
        right.streams.add(stream)
        if not is_sure:
            self._ask([right], hold=True)
        if self._timer is None:
            self._timer = self._call_later(PERIOD * self._recheck, self._ask_for_all)
        return right

    def leave(self, stream: Follower, right: Right) -> None:
        """`stream` goes."""
        right.streams.discard(stream)
        if not right.streams:
            self._rights.pop(right.key, None)
            self._due_first.pop(right, None)
            self._due.pop(right, None)

    def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        # Now: a task that has not begun would never say that it has ended.
        self._task = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Asking

    def ask(
        self,
        users: Collection[str] | None = None,
        channels: Collection[str] | None = None,
        session: str | None = None,
    ) -> None:
        """
        Ask for all rights, or for those that are meant; their streams are held until there is an answer.

        `users` are ids; `channels` are names, or prefixes with a `*`; `session` is the tag of a session that has ended.
        """
        pass_moment()
        meant = [right for right in self._rights.values() if right.is_meant(users, channels, session)]
        if session is not None:
            for right in meant:
                right.is_logged_out = True
        self._ask(meant, hold=True)

    def ask_anew(self) -> None:
        """Ask for all rights, because the channels were read anew; what is about to be asked will be, by then."""
        self._ask(
            [right for right in self._rights.values() if right not in self._due and right not in self._due_first],
            hold=True,
        )

    def disconnect(self, user_id: str) -> None:
        """End the streams of a user."""
        unknown = []
        for right in tuple(self._rights.values()):
            if right.user_id == user_id:
                _end(right, DISCONNECTED)
            elif right.user_id is None and right.session_tag is not None:
                # They read what anybody may, and nobody has looked who they are.
                right.unwanted |= {user_id}
                unknown.append(right)
        self._ask(unknown, hold=False)

    def _ask_for_all(self) -> None:
        """Ask for all rights, a batch after the other, and an interval later again."""
        self._timer = None
        if not self._rights:
            return
        rights = list(self._rights.values())
        starts = range(0, len(rights), BATCH)
        for number, start in enumerate(starts):
            delay = SPREAD * self._recheck * number / len(starts)
            self._call_later(delay, self._ask_in_turn, rights[start : start + BATCH])
        self._timer = self._call_later(PERIOD * self._recheck, self._ask_for_all)

    def _call_later(self, delay: float, function: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        # A copy: what runs in a context cannot start a task in the very same.
        return asyncio.get_running_loop().call_later(delay, function, *args, context=self._context.copy())

    def _ask_in_turn(self, rights: Iterable[Right]) -> None:
        for right in rights:
            # What anybody may read is asked for when the channels change.
            if right.streams and not _is_for_all(right):
                # What was asked an interval ago and not answered since cannot be confirmed.
                self._ask([right], hold=not right.is_answered)

    def _ask(self, rights: Iterable[Right], *, hold: bool) -> None:
        for right in rights:
            right.asked += 1
            if hold:
                _hold(right)
            if right.allowed is not None and not isinstance(right.allowed, Visitor):
                self._start(self._ask_site(right, right.allowed))
            elif right in self._due or not _is_for_all(right):
                self._due[right] = None
            else:
                self._due_first[right] = None
        if (self._due or self._due_first) and self._task is None:
            self._task = self._start(self._answer_due())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._context.run(asyncio.get_running_loop().create_task, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Answering

    async def _answer_due(self) -> None:
        size = BATCH
        has_failed = False
        try:
            while line := self._due_first or self._due:
                batch = list(islice(line, size))
                for right in batch:
                    del line[right]
                if error := await self._answer(batch):
                    if not has_failed:
                        _warn(error)
                    has_failed = True
                    # It may be one of them that cannot be asked for: that one alone shall wait, behind all others.
                    size = max(1, len(batch) // 2)
                    self._due.update((right, None) for right in batch if right.streams)
                    await asyncio.sleep(RETRY)
                else:
                    size = min(2 * size, BATCH)
            if has_failed:
                logger.info("rights can be checked again")
        finally:
            # After `close` it may be another one.
            self._task = None if self._task is asyncio.current_task() else self._task

    async def _answer(self, batch: list[Right]) -> Exception | None:
        """Ask, and do what the answers say. Returns why there are none, if so."""
        asked = [right.asked for right in batch]
        try:
            found = await _in_thread([right.question() for right in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be taken for granted
            for right in batch:
                _hold(right)
            return error
        for right, number, answer in zip(batch, asked, found, strict=True):
            # Otherwise it was asked for again meanwhile, and this is an answer of before that.
            if right.asked == number:
                _answered(right, answer)
        return None

    async def _ask_site(self, right: Right, allowed: Callable[[], Awaitable[bool]]) -> None:
        """Ask a function of the site's own, until it answers or somebody asks anew."""
        number = right.asked
        has_failed = False
        while right.streams and right.asked == number:
            try:
                async with self._asking, ThreadSensitiveContext():
                    try:
                        await channel_table.arefresh()
                        is_allowed = await allowed()
                    finally:
                        let_go()
            except (DatabaseError, InterfaceError, EventsError, OSError) as error:
                # What it asks is away.
                if not has_failed:
                    _warn(error)
                has_failed = True
                _hold(right)
                await asyncio.sleep(RETRY)
                continue
            except Exception:
                # It has a fault. The clients come back, and it is the view's to let them in.
                logger.exception("a stream ended by a fault: channels=%s", ",".join(right.channels))
                for stream in tuple(right.streams):
                    stream.end()
                return
            if right.asked == number:
                refusal = SWITCHED_OFF if are_switched_off(rows_of(right.channels)) else None if is_allowed else REVOKED
                _answered(right, Answer(refusal))
            return


async def _in_thread(questions: list[Question]) -> list[Answer]:
    """The answers, found on a thread of their own, which takes its connections to the database with it."""
    async with ThreadSensitiveContext():
        try:
            return await sync_to_async(_ask)(questions)
        finally:
            let_go()


def _ask(questions: list[Question]) -> list[Answer]:
    with using_databases():
        try:
            return answers(questions)
        finally:
            connections.close_all()


def _warn(error: Exception) -> None:
    logger.warning("rights cannot be checked, and streams are held until they can be", exc_info=error)


def _is_for_all(right: Right) -> bool:
    return right.allowed is None or (isinstance(right.allowed, Visitor) and are_public(rows_of(right.channels)))


def _hold(right: Right) -> None:
    for stream in tuple(right.streams):
        stream.hold()


def _answered(right: Right, answer: Answer) -> None:
    right.answered = right.asked
    if isinstance(right.allowed, Visitor):
        right.user_id = answer.user_id
    refusal = answer.refusal
    if refusal is None and answer.user_id in right.unwanted:
        refusal = DISCONNECTED
    right.unwanted = frozenset()
    if refusal is not None:
        _end(right, refusal)
        return
    for stream in tuple(right.streams):
        stream.release()


def _end(right: Right, reason: str) -> None:
    logger.info(
        "streams end: reason=%s channels=%s user=%s streams=%s",
        reason,
        ",".join(right.channels),
        wire.shown(right.user_id),
        len(right.streams),
    )
    for stream in tuple(right.streams):
        stream.refuse(reason)
