"""`manage.py create_publish_key NAME CHANNEL…`: a key for a program that publishes over HTTP."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ... import wire
from ...keys import issue
from ...models import PublishKey

if TYPE_CHECKING:
    from argparse import ArgumentParser

#: Days after which a key may expire at the latest.
MAX_DAYS = 36_500


class Command(BaseCommand):
    """Makes a key and prints its token: the token alone to stdout, the rest to stderr."""

    help = "Make a key to publish with over HTTP, and print its token, which is shown only once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's own arguments."""
        parser.add_argument("name", help="Who or what publishes with it.")
        parser.add_argument("channel", nargs="+", help="Where it may publish: a channel's name, or a prefix and *.")
        parser.add_argument("--expires", help="When it ceases to work: in so many days, or a date (default: never).")
        parser.add_argument(
            "--per-minute",
            type=int,
            default=PublishKey._meta.get_field("per_minute").default,
            help="How many requests it may make in a minute; 0 for any number (default: %(default)s).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the key, or say in one line why not."""
        if not options["name"].isprintable():
            raise CommandError(f"{wire.shown(options['name'])} is not a name: it has characters that cannot be shown.")
        key = PublishKey(
            name=options["name"],
            channels="\n".join(options["channel"]),
            expires_at=None if options["expires"] is None else _moment(options["expires"]),
            per_minute=options["per_minute"] or None,
        )
        token = issue(key)
        try:
            key.full_clean()
        except ValidationError as error:
            said = (f"{field}: {' '.join(texts)}" for field, texts in error.message_dict.items())
            raise CommandError(" ".join(said)) from error
        key.save()
        until = (
            "never expires" if key.expires_at is None else f"works until {key.expires_at:%Y-%m-%d %H:%M %Z}".rstrip()
        )
        self.stderr.write(f"Made the key “{key.name}”, which {until}. Keep its token: it is not shown again.")
        self.stdout.write(token)


def _moment(text: str) -> datetime:
    """When a key ceases to work: `text` is a number of days from now, or an ISO date, which may have a time."""
    now = timezone.now()
    try:
        moment = now + timedelta(days=int(text)) if text.isdecimal() else parse_datetime(text)
        # A date without an offset is the site's.
        if moment is not None and timezone.is_naive(moment) and settings.USE_TZ:
            moment = timezone.make_aware(moment)
        if moment is not None and timezone.is_aware(moment) and not settings.USE_TZ:
            moment = timezone.make_naive(moment)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or not now < moment <= now + timedelta(days=MAX_DAYS):
        raise CommandError(
            f"A key cannot expire at {wire.shown(text)}: give a number of days from 1 to {MAX_DAYS}, "
            "or a date to come, as 2031-01-31 or 2031-01-31T18:00."
        )
    return moment
