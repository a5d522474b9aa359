"""`manage.py tail_events CHANNEL…`: follow channels in the terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import aclosing
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import localtime

from ... import signals, wire
from ...channels import channel_table
from ...exceptions import BackendUnavailable, EventsError
from ...registry import event_backends
from ...wire import Cursor

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from ...backends.base import BaseEventBackend, StoredEvent

READ_LIMIT = 500
#: Before the oldest event that is kept: nothing trimmed is missed.
OLDEST = -1
#: Seconds until a log that could not be read is read again.
RETRY = 1.0


class Command(BaseCommand):
    """Prints the events of channels as they come, one line each, until Ctrl-C."""

    help = "Follow channels: print their events as they come, until Ctrl-C."

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Channel to the floor that is known to who reads the terminal.
        self.said: dict[str, int] = {}

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("channels", nargs="+", metavar="channel", help="The channels' names.")
        parser.add_argument("--since", default="", help='Begin after this cursor, or with the "earliest" event kept.')
        parser.add_argument("--using", default="default", help="The alias of the log (default: %(default)s).")

    def handle(self, *args: Any, **options: Any) -> None:
        """Follow until interrupted."""
        try:
            names = [wire.validate_channel_name(name) for name in options["channels"]]
            backend = event_backends[options["using"]]
        except EventsError as error:
            raise CommandError(str(error)) from error
        since: str = options["since"]
        cursor = None if since in ("", "earliest") else Cursor.parse(since)
        if since not in ("", "earliest") and cursor is None:
            raise CommandError(f'{wire.shown(since)} is not a cursor: give the id of an event, or "earliest".')
        for name in names:
            if channel_table.get(name) is None:
                # Not an error: it may be made later, and its events may outlive it.
                self.note(
                    f"no channel is called {name!r} yet (see Channels in the admin): waiting for it, Ctrl-C ends that"
                )
        try:
            asyncio.run(self.follow(backend, names, cursor, earliest=since == "earliest"))
        except KeyboardInterrupt:
            self.stdout.write("")
        except BrokenPipeError:
            # As in `tail_events news | head`. What Python still writes when it ends goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    async def follow(
        self, backend: BaseEventBackend, names: list[str], cursor: Cursor | None, *, earliest: bool
    ) -> None:
        """Print what follows `cursor` (None: what is kept, or what comes from now on), saying where some is missing."""
        # Somebody is listening: interval messages are made for a terminal too.
        for name in names:
            await signals.feed_opened.asend(sender=type(self), channel=name)
        try:
            async with aclosing(backend.tail()) as batches:
                async for batch in batches:
                    head = batch.head
                    if cursor is None:
                        cursor = Cursor(head.epoch, OLDEST if earliest else head.position)
                    elif cursor.epoch != head.epoch or cursor.position > head.position:
                        self.note("events may be missing: the log is not the one that the cursor is of")
                        cursor = head
                    while cursor.position < head.position:
                        cursor = await self.print_some(backend, names, cursor)
        finally:
            for name in names:
                await signals.feed_closed.asend(sender=type(self), channel=name)

    async def print_some(self, backend: BaseEventBackend, names: list[str], cursor: Cursor) -> Cursor:
        """Print some of what follows `cursor`, and return the cursor after it."""
        try:
            found = await backend.aread(names, cursor.position, READ_LIMIT)
        except BackendUnavailable as error:
            self.note(str(error))
            await asyncio.sleep(RETRY)
            return cursor
        for name, floor in found.floors.items():
            # Said once: what was printed of the channel, or said, is above this floor.
            if OLDEST < cursor.position < floor > self.said.get(name, 0):
                self.note(f"events are missing: {name} was trimmed")
            self.said[name] = floor
        for event in found.events:
            self.print_event(event, found.head.epoch)
        return Cursor(cursor.epoch, found.events[-1].position if found.more else found.head.position)

    def print_event(self, event: StoredEvent, epoch: str) -> None:
        """One line: cursor, time, channel, type, data."""
        time = localtime(datetime.fromtimestamp(event.created_at, tz=timezone.utc)).strftime("%H:%M:%S")
        # One event is one line, and cannot pass for another or move the terminal's cursor.
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in f"{event.type} {event.data}")
        self.stdout.write(f"{epoch}-{event.position} {time} {event.channel} {text}")
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Something that is not an event."""
        self.stderr.write(self.style.WARNING(text))
