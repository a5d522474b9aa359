"""What a hub keeps of each channel: its newest events as bytes, encoded once for all streams of the process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from . import wire
from .compression import deflate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .backends.base import StoredEvent

#: Bytes that leave in one write. A larger write only waits in the server's buffer.
MAX_CHUNK = 65_536


class Form(NamedTuple):
    """How a client wants its events: wrapped in an envelope, compressed."""

    envelope: bool = False
    gzip: bool = False


class Chunk(NamedTuple):
    """Bytes for a client, and what it reads in them: the same where they are not compressed."""

    sent: bytes
    text: bytes


NOTHING = Chunk(b"", b"")


class Frame:
    """One event as bytes, encoded when first wanted, for all streams of the process."""

    __slots__ = ("_deflated", "_envelope", "_plain", "epoch", "event", "position")

    def __init__(self, event: StoredEvent, epoch: str) -> None:
        self.event = event
        self.epoch = epoch
        self.position = event.position
        self._plain: bytes | None = None
        self._envelope: bytes | None = None
        self._deflated: dict[bool, bytes] | None = None

    def encoded(self, envelope: bool) -> bytes:
        """The bytes of the event, plain or with its channel and type inside its data."""
        event = self.event
        if envelope:
            if self._envelope is None:
                self._envelope = wire.encode_envelope(
                    event.data,
                    is_json=event.is_json,
                    channel=event.channel,
                    event=event.type,
                    id=f"{self.epoch}-{event.position}",
                )
            return self._envelope
        if self._plain is None:
            self._plain = wire.encode(event.data, event=event.type, id=f"{self.epoch}-{event.position}")
        return self._plain

    def deflated(self, envelope: bool) -> bytes:
        """The same, compressed on its own."""
        if self._deflated is None:
            self._deflated = {}
        if (found := self._deflated.get(envelope)) is None:
            found = self._deflated[envelope] = deflate(self.encoded(envelope))
        return found


def joined(frames: Iterable[Frame], form: Form) -> Chunk:
    """Frames as one piece."""
    texts = [frame.encoded(form.envelope) for frame in frames]
    text = texts[0] if len(texts) == 1 else b"".join(texts)
    if not form.gzip:
        return Chunk(text, text)
    return Chunk(b"".join([frame.deflated(form.envelope) for frame in frames]), text)


class Follower(ABC):
    """A stream as the hub sees it."""

    __slots__ = ("audience", "channels", "form", "round")

    channels: tuple[str, ...]
    form: Form
    #: Whom it belongs to while the hub feeds it.
    audience: Audience | None
    #: In which round the hub looks after it.
    round: int

    @abstractmethod
    def deliver(self) -> None:
        """Write what the audience was given."""

    @abstractmethod
    def wake(self) -> None:
        """Look again whether there is something to write."""

    @abstractmethod
    def look(self, now: float) -> None:
        """Do what is due by the clock: a keep-alive, an end."""

    @abstractmethod
    def reset_all(self, reason: str) -> None:
        """Tell the client that events may be missing, and go on from the head."""

    @abstractmethod
    def hold(self) -> None:
        """Write no event until it is known whether the client may read."""

    @abstractmethod
    def release(self) -> None:
        """The client may read: go on."""

    @abstractmethod
    def refuse(self, reason: str) -> None:
        """The client may not read: tell it not to come back, and end."""

    @abstractmethod
    def end(self) -> None:
        """End; the client comes back."""

    @abstractmethod
    def drain(self) -> None:
        """End, and tell the client when to come back."""

    @abstractmethod
    def give_up(self) -> None:
        """End without waiting for the client any more."""


class Audience:
    """
    The streams that want the same bytes: those of the same channels, in the same form.

    What came last is joined for all of them: a thousand streams cost a thousand writes and one encoding. `chunk` is for
    those that stand at `after` or above, and below `first`, its first event; None where it is too large to leave at
    once. `newest` is its last event, and that of all that the audience was given.
    """

    __slots__ = ("after", "channels", "chunk", "feeds", "first", "form", "names", "newest", "streams")

    def __init__(self, feeds: tuple[Feed, ...], form: Form, newest: int) -> None:
        self.feeds = feeds
        self.form = form
        self.channels = tuple(feed.name for feed in feeds)
        self.names = frozenset(self.channels)
        self.streams: set[Follower] = set()
        self.restart(newest)

    def restart(self, newest: int) -> None:
        """Forget the chunk: streams at `newest` have all that there is."""
        self.after = self.first = self.newest = newest
        self.chunk: Chunk | None = None

    def give(self, frames: list[Frame]) -> None:
        """Take what came: frames of the audience's channels, in order."""
        chunk = joined(frames, self.form)
        self.chunk = chunk if len(chunk.text) <= MAX_CHUNK else None
        self.after, self.first, self.newest = self.newest, frames[0].position, frames[-1].position

    def since(self) -> int:
        """The position above which the rings have everything."""
        feeds = self.feeds
        return feeds[0].since if len(feeds) == 1 else max(feed.since for feed in feeds)

    def newer(self, position: int) -> list[Frame]:
        """The frames above `position`, newest first."""
        frames = [frame for feed in self.feeds for frame in feed.newer(position)]
        if len(self.feeds) > 1:
            frames.sort(key=lambda frame: -frame.position)
        return frames


class Feed:
    """A channel's part of the hub: the ring of its newest frames, complete above `since`, and who follows it."""

    __slots__ = ("audiences", "is_full", "lingers", "name", "ring", "since", "size")

    def __init__(self, name: str, since: int) -> None:
        self.name = name
        self.since = since
        self.ring: deque[Frame] = deque()
        self.size = 0
        #: Something has left the ring for want of room.
        self.is_full = False
        #: The hub will look whether anybody came back. Once: clients that come and go are no row of timers.
        self.lingers = False
        self.audiences: set[Audience] = set()

    def push(self, frame: Frame, max_events: int, max_bytes: int) -> None:
        """Add the newest frame; the oldest ones leave where the ring is full."""
        self.ring.append(frame)
        self.size += len(frame.event.data)
        while len(self.ring) > max_events or (self.size > max_bytes and len(self.ring) > 1):
            oldest = self.ring.popleft()
            self.size -= len(oldest.event.data)
            self.since = oldest.position
            self.is_full = True

    def restart(self, since: int) -> None:
        """Forget the ring: it is complete only above `since`."""
        self.ring.clear()
        self.size = 0
        self.since = since

    def newer(self, position: int) -> list[Frame]:
        """The frames above `position`, newest first."""
        found = []
        for frame in reversed(self.ring):
            if frame.position <= position:
                break
            found.append(frame)
        return found
