"""`manage.py publish_event CHANNEL DATA`: publish from a terminal or a shell script."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from ... import wire
from ...exceptions import EventsError
from ...publishing import publish

if TYPE_CHECKING:
    from argparse import ArgumentParser


class Command(BaseCommand):
    """Publishes one event and prints its id."""

    help = "Publish one event to a channel, and print its id."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("channel", help="The channel's name.")
        parser.add_argument("data", help="The data: text, sent as it is.")
        parser.add_argument("--event", default=wire.DEFAULT_TYPE, help="The event's type (default: %(default)s).")
        parser.add_argument("--json", action="store_true", help="The data is JSON, and is sent as JSON.")
        parser.add_argument("--key", help="Publish once: a repeat within 5 minutes prints the first event's id.")
        parser.add_argument("--using", default="default", help="The alias of the log (default: %(default)s).")

    def handle(self, *args: Any, **options: Any) -> None:
        """Publish, or say in one line why not."""
        data: object = options["data"]
        if options["json"]:
            try:
                data = json.loads(options["data"])
            except (ValueError, RecursionError) as error:
                raise CommandError(f"{wire.shown(options['data'])} is not JSON: {error}") from error
        try:
            published = publish(
                options["channel"], data, event=options["event"], key=options["key"], using=options["using"]
            )
        except EventsError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(str(published.id))
