"""
What a log does for the rest of the app: the contract every backend keeps.

The shape is that of Django's own pluggable backends: settings by alias with `BACKEND` and `OPTIONS`, capability flags,
`check()`, and for each blocking method a twin whose name begins with `a`.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from asgiref.sync import sync_to_async

from ..exceptions import InvalidEventBackend

# Its events have positions like all others and travel through `append` and `tail`; nobody reads or lists them.
from ..wire import CONTROL_CHANNEL as CONTROL_CHANNEL  # noqa: PLC0414 - exported for backends

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence

    from django.core.checks import CheckMessage

    from ..wire import Cursor

#: For how many seconds a repeated key gives back the first event.
KEY_LIFETIME = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """
    An event on its way into the log. All fields are checked by whoever makes one (`events.publishing`).

    `keep` is how many of the channel's newest events are kept, None without a limit: a log that must not grow between
    two trims, such as one in memory, may let the older ones go at once.
    """

    channel: str
    data: str
    type: str = "message"
    is_json: bool = False
    key: str | None = None
    keep: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as it stands in the log. `created_at` is in seconds since 1970."""

    position: int
    channel: str
    type: str
    data: str
    is_json: bool
    created_at: float


@dataclass(slots=True, kw_only=True)
class PublishedEvent:
    """
    What `publish()` gives back.

    `id` is the event's cursor. It is None while a surrounding transaction is open and is filled in when that
    transaction commits. `repeated` says that the key was seen before: this is the first event, nothing new was made.
    """

    channel: str
    event: str
    id: str | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """
    What a read found, all of it at one moment.

    `events` are in position order. `floors` has the channels that were trimmed: the highest position trimmed away.
    `head` is the log's cursor. `more` says that further events follow the last one.
    """

    events: Sequence[StoredEvent]
    floors: Mapping[str, int]
    head: Cursor
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The next part of the live log: events in position order, and the head after them. A new epoch resets all."""

    events: Sequence[StoredEvent]
    head: Cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept of a channel: the newest `events`, none older than `seconds`; None is no limit."""

    events: int | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Params:
    """A backend's entry in `EVENTS["BACKENDS"]`."""

    alias: str
    options: Mapping[str, Any] = field(default_factory=dict)


def new_epoch() -> str:
    """A short random name for a new life of a log."""
    return secrets.token_hex(4)


class BaseEventBackend(ABC):
    """
    A log: an ordered, durable list of events.

    A subclass names its options with their defaults in `default_options`; an option it does not know is refused with
    `InvalidEventBackend`. Methods without an `a` may block; they are called from any thread, also from several at once.
    Where the log cannot be reached they raise `BackendUnavailable`.
    """

    #: Options with their defaults.
    default_options: ClassVar[Mapping[str, Any]] = {}
    #: Whether events published in one process reach the streams of another.
    crosses_processes: ClassVar[bool] = True
    #: Whether what was published survives the process.
    is_durable: ClassVar[bool] = True
    #: Whether an append inside a database transaction is part of it. If not, publishing waits for the commit.
    joins_transactions: bool = False

    def __init__(self, params: Params) -> None:
        if unknown := [name for name in params.options if name not in self.default_options]:
            known = ", ".join(sorted(self.default_options)) or "none"
            near = [each for name in unknown for each in get_close_matches(str(name).lower(), self.default_options, 1)]
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{params.alias!r}]['OPTIONS'] has {', '.join(map(repr, unknown))}: "
                f"{type(self).__name__} knows {known}.{hint}"
            )
        self.alias = params.alias
        self.options: dict[str, Any] = {**self.default_options, **params.options}

    @property
    def database(self) -> str | None:
        """The alias of the database whose transactions an append is part of, where `joins_transactions` is true."""
        return None

    @abstractmethod
    def append(self, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """
        Write the events, all or none, in order, and return one result for each.

        An event whose key was used on its channel in the last five minutes is not written again: its result is the
        first one's, with `repeated` set.
        """

    @abstractmethod
    def read(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """Up to `limit` events of `channels` with a position above `after`."""

    @abstractmethod
    def latest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """The newest kept event of each of `channels` that has one."""

    def newest(self, channels: Collection[str], limit: int) -> Sequence[StoredEvent]:
        """
        The newest kept events of all of `channels` together, at most `limit`, in position order.

        Made of `latest` and `read` for a log that has no better way: it looks for where they begin, by halves, with
        reads of at most `limit` events each. In a channel as full as the log that is one read.
        """
        latest = self.latest(channels) if limit > 0 else {}
        if not latest:
            return []
        last = max(event.position for event in latest.values())
        # Above `low` there are `limit` of them or more, above `high` fewer.
        high, span = last, limit
        while len(found := self._read_between(channels, low := max(-1, last - span), last, limit)) < limit:
            if low == -1:
                # So few are kept.
                return found
            high, span = low, 2 * span
        while found[-1].position < last and high - low > 1:
            middle = (low + high) // 2
            if len(part := self._read_between(channels, middle, last, limit)) < limit:
                high = middle
            else:
                low, found = middle, part
        return found

    def _read_between(self, channels: Collection[str], after: int, last: int, limit: int) -> list[StoredEvent]:
        """The first `limit` events above `after` and up to `last`, also where a read stops before its limit."""
        found: list[StoredEvent] = []
        while len(found) < limit:
            result = self.read(channels, after, limit - len(found))
            part = [event for event in result.events if event.position <= last]
            found += part
            if not result.more or not part or len(part) < len(result.events):
                break
            after = part[-1].position
        return found

    @abstractmethod
    def head(self) -> Cursor:
        """The cursor of the newest event; position 0 in an empty log."""

    @abstractmethod
    def tail(self) -> AsyncGenerator[Batch, None]:
        """
        The log from now on, live, skipping nothing.

        The first batch comes at once and is empty: its head says where "now" is. The generator goes on through faults
        of the log, which it logs, until it is closed.
        """

    @abstractmethod
    def channels(self) -> list[str]:
        """The names of the channels that have events in the log, without `CONTROL_CHANNEL`, in order."""

    @abstractmethod
    def trim(self, retention: Callable[[str], Retention]) -> int:
        """Remove what `retention` (asked for each channel's name) does not keep. Returns how many events went."""

    @abstractmethod
    def clear(self, channels: Collection[str]) -> int:
        """Remove all events of `channels`, raising their floors. Returns how many went."""

    async def aappend(self, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        """`append` without blocking the loop."""
        return await sync_to_async(self.append)(events)

    # Not on the thread of the request, as `sync_to_async` would have it: a stream would keep that for all its life.

    async def aread(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        """`read` without blocking the loop."""
        return await asyncio.to_thread(self.read, channels, after, limit)

    async def alatest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        """`latest` without blocking the loop."""
        return await asyncio.to_thread(self.latest, channels)

    async def ahead(self) -> Cursor:
        """`head` without blocking the loop."""
        return await asyncio.to_thread(self.head)

    def maintain(self, retention: Callable[[str], Retention]) -> None:  # noqa: B027 - a log may have nothing to do
        """
        Called after each publish, on the publisher's thread: start trimming in the background if it is time to.

        Must return at once.
        """

    def check(self, databases: Collection[str] | None = None) -> list[CheckMessage]:
        """System check messages about this backend's configuration; `databases` are those that may be connected to."""
        return []

    def log_identity(self) -> str | None:
        """
        What the log is, in words that follow "they are one log:", such as "the database 'default'". No passwords.

        Two aliases that say the same are an error of `manage.py check`. None: each alias has a log of its own.
        """
        return None

    def close(self) -> None:  # noqa: B027 - a log may hold nothing
        """Let go of threads and connections. The backend opens them again when it is used again."""
