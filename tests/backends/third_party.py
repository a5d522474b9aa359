"""An event backend: the log in a folder, for the processes of one machine. docs/backends.md shows and explains it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from events.backends.base import (
    CONTROL_CHANNEL,
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
from events.exceptions import BackendUnavailable, InvalidEventBackend
from events.wire import Cursor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
    from io import FileIO

logger = logging.getLogger(__name__)


@dataclass
class Known:
    """
    What a process has read of the file `log`, which has a JSON object in each line.

    The first line says where the file begins: epoch, position, floors. Each that follows is one append.
    """

    epoch: str = ""
    position: int = 0
    events: list[StoredEvent] = field(default_factory=list)
    floors: dict[str, int] = field(default_factory=dict)
    #: Channel and key: when it was used, and the cursor and type of the event it made.
    keys: dict[tuple[str, str], tuple[float, str, str]] = field(default_factory=dict)
    first_line: bytes = b""
    size: int = 0

    def take(self, line: bytes) -> None:
        record = json.loads(line)
        if "epoch" in record:
            self.epoch, self.position, self.floors = record["epoch"], record["position"], record["floors"]
        for event in record.get("events", ()):
            self.events.append(StoredEvent(**event))
            self.position = max(self.position, event["position"])
        self.keys.update((tuple(name), tuple(first)) for name, first in record.get("keys", ()))
        self.first_line = self.first_line or line
        self.size += len(line)


class FolderBackend(BaseEventBackend):
    """The log in a folder. Options: `folder`, its path; `poll_interval`, seconds between two looks for new events."""

    default_options: ClassVar[Mapping[str, Any]] = {"folder": None, "poll_interval": 0.05}

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        if not self.options["folder"]:
            raise InvalidEventBackend(f"EVENTS['BACKENDS'][{params.alias!r}]['OPTIONS'] must name a 'folder'.")
        self.folder = Path(self.options["folder"]).resolve()
        self.known = Known()

    def log_identity(self) -> str:
        return f"the folder {str(self.folder)!r}"

    def append(self, events: Sequence[NewEvent]) -> list[PublishedEvent]:
        now, published = time.time(), []
        stored: list[dict[str, Any]] = []
        keys: dict[tuple[str, str], tuple[float, str, str]] = {}
        with self.locked() as (log, known):
            for event in events:
                name = (event.channel, event.key or "")
                used, cursor, kind = keys.get(name) or known.keys.get(name) or (0.0, "", "")
                repeated = used >= now - KEY_LIFETIME
                if not repeated:
                    position = known.position + len(stored) + 1
                    cursor, kind = str(Cursor(known.epoch, position)), event.type
                    fields = {name: getattr(event, name) for name in ("channel", "type", "data", "is_json")}
                    stored.append({"position": position, "created_at": now, **fields})
                    if event.key:
                        keys[name] = (now, cursor, kind)
                published.append(PublishedEvent(channel=event.channel, event=kind, id=cursor, repeated=repeated))
            if stored:
                # What a process left half-written when it died has no line end, and is no line.
                log.truncate(known.size)
                write(log, {"events": stored, "keys": list(keys.items())})
        return published

    def read(self, channels: Collection[str], after: int, limit: int) -> ReadResult:
        with self.locked() as (_, known):
            found = [event for event in known.events if event.channel in channels and event.position > after]
            floors = {name: floor for name, floor in known.floors.items() if name in channels}
            head = Cursor(known.epoch, known.position)
        return ReadResult(events=found[:limit], floors=floors, head=head, more=len(found) > limit)

    def latest(self, channels: Collection[str]) -> dict[str, StoredEvent]:
        with self.locked() as (_, known):
            return {event.channel: event for event in known.events if event.channel in channels}

    def head(self) -> Cursor:
        with self.locked() as (_, known):
            return Cursor(known.epoch, known.position)

    def channels(self) -> list[str]:
        with self.locked() as (_, known):
            return sorted({event.channel for event in known.events} - {CONTROL_CHANNEL})

    async def tail(self) -> AsyncGenerator[Batch, None]:
        head: Cursor | None = None
        is_away = False
        while True:
            try:
                batch = await asyncio.to_thread(self.follow, head)
                is_away = False
                if batch.head != head:
                    head = batch.head
                    yield batch
            except BackendUnavailable as error:
                if not is_away:
                    logger.warning("the log cannot be read, trying again: %s", error)
                is_away = True
            await asyncio.sleep(self.options["poll_interval"])

    def follow(self, head: Cursor | None) -> Batch:
        """What follows `head`. Where a tail begins, or the log has begun anew: only where it stands."""
        with self.locked() as (_, known):
            now = Cursor(known.epoch, known.position)
            after = head.position if head is not None and head.epoch == now.epoch else now.position
            return Batch(events=[event for event in known.events if event.position > after], head=now)

    def trim(self, retention: Callable[[str], Retention]) -> int:
        now, kept = time.time(), []
        counts: dict[str, int] = {}
        with self.locked() as (_, known):
            floors = dict(known.floors)
            for event in reversed(known.events):
                keep = retention(event.channel)
                count = counts[event.channel] = counts.get(event.channel, 0) + 1
                is_young = keep.seconds is None or event.created_at >= now - keep.seconds
                if is_young and (keep.events is None or count <= keep.events):
                    kept.append(event)
                else:
                    floors[event.channel] = max(floors.get(event.channel, 0), event.position)
            if gone := len(known.events) - len(kept):
                keys = [(name, first) for name, first in known.keys.items() if first[0] >= now - KEY_LIFETIME]
                made = self.folder / "log.new"
                with made.open("wb", buffering=0) as new:
                    write(new, {"epoch": known.epoch, "position": known.position, "floors": floors})
                    write(new, {"events": [asdict(event) for event in reversed(kept)], "keys": keys})
                made.replace(self.folder / "log")
        return gone

    def clear(self, channels: Collection[str]) -> int:
        return self.trim(lambda name: Retention(events=0) if name in channels else Retention())

    @contextmanager
    def locked(self) -> Iterator[tuple[FileIO, Known]]:
        """The log, and all that is in it, while other threads and processes wait."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    with (self.folder / "log").open("a+b", buffering=0) as log:
                        self.read_on(log)
                        yield log, self.known
                finally:
                    # Not by closing it: a process that is forked at this moment has the file open, too.
                    fcntl.flock(lock, fcntl.LOCK_UN)
        except (OSError, ValueError) as error:
            raise BackendUnavailable(f"the log in {str(self.folder)!r}: {error}") from error

    def read_on(self, log: FileIO) -> None:
        """Read what was added since the last time."""
        known = before = self.known
        start = os.pread(log.fileno(), len(known.first_line), 0)
        if start != known.first_line or os.fstat(log.fileno()).st_size < known.size:
            # Another file: somebody trimmed the log, lost it, or restored an older one.
            self.known = known = Known()
        log.seek(known.size)
        for line in log.read().splitlines(keepends=True):
            if line.endswith(b"\n"):
                known.take(line)
        if not known.size or (known.epoch == before.epoch and known.position < before.position):
            # It is new, or has lost events whose positions it would give to others: another life begins.
            log.truncate(known.size)
            known.take(write(log, {"epoch": new_epoch(), "position": known.position, "floors": known.floors}))


def write(file: FileIO, record: Mapping[str, Any]) -> bytes:
    """Add a line. The file has no buffer: that would be written later, after an error was reported."""
    line = json.dumps(record).encode() + b"\n"
    if file.write(line) < len(line):
        raise OSError("the disk is full")
    return line
