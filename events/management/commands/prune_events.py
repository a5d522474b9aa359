"""`manage.py prune_events`: remove at once what the channels do not keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from ...channels import channel_table, retention_of
from ...exceptions import EventsError
from ...registry import event_backends

if TYPE_CHECKING:
    from argparse import ArgumentParser


class Command(BaseCommand):
    """Trims every log, or one."""

    help = (
        "Remove the events that their channels do not keep. Processes that publish do this by themselves now and then."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("--using", help="The alias of the one log to trim (default: every log).")

    def handle(self, *args: Any, **options: Any) -> None:
        """Trim each log, and say how many events went."""
        channel_table.refresh()
        for alias in event_backends if options["using"] is None else [options["using"]]:
            try:
                count = event_backends[alias].trim(retention_of)
            except EventsError as error:
                raise CommandError(str(error)) from error
            self.stdout.write(f"{alias}: {count} {'event' if count == 1 else 'events'} removed")
