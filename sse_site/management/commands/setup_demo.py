from __future__ import annotations

import secrets
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction

from events.models import Channel
from sse_site.models import SetupStep

ADMIN = "admin"

CHANNELS: tuple[dict[str, Any], ...] = (
    {
        "name": "clock",
        "title": "Clock",
        "description": "The time, once a second. Change the interval in the admin and watch.",
        "source": "clock",
        "interval": 1.0,
        "replay": Channel.Replay.NOTHING,
    },
    {
        "name": "machine",
        "title": "Machine",
        "description": "What this machine is doing: load and memory in percent, network traffic in kB/s.",
        "source": "machine",
        "interval": 2.0,
        "replay": Channel.Replay.NOTHING,
    },
    {
        "name": "news",
        "title": "News",
        "description": "Published by hand: in the admin, or with: python manage.py publish_event news TEXT",
        "replay": Channel.Replay.ALL,
    },
)


class Command(BaseCommand):
    """Make the demo channels and the admin user, each once."""

    help = "Makes the demo channels and the user “admin”, each once. What was changed or deleted since stays so."

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what is not done yet, and say what was done."""
        with transaction.atomic():
            made = [fields["name"] for fields in CHANNELS if self.make_channel(fields)]
            password = self.make_admin()
        # Only now: what is said here is in the database.
        if made:
            self.stdout.write(f"Made the demo channels: {', '.join(made)}.")
        if password:
            self.stdout.write(
                f"Made the admin user “{ADMIN}” with the password  {password}\n"
                "It is not shown again. A new one: python manage.py changepassword admin"
            )

    def make_channel(self, fields: dict[str, Any]) -> bool:
        """
        Make one demo channel unless that was done before; say whether it was made.

        Whether it was done is remembered on its own: a person may have deleted the channel, and wants it gone. And
        each channel is remembered on its own, so that one which a later version adds comes to old databases too.
        """
        _, first_time = SetupStep.objects.get_or_create(name=f"channel:{fields['name']}")
        if not first_time or Channel.objects.filter(name=fields["name"]).exists():
            return False
        channel = Channel(access=Channel.Access.PUBLIC, **fields)
        channel.full_clean()
        channel.save()
        return True

    def make_admin(self) -> str | None:
        """
        Make the superuser and return its password; None where nobody needs it.

        Nobody does where another superuser can sign in: a deleted or renamed “admin” does not come back behind their
        back.
        """
        users = get_user_model()._default_manager
        if users.filter(username=ADMIN).exists() or users.filter(is_superuser=True, is_active=True).exists():
            return None
        password = secrets.token_urlsafe(12)
        users.create_superuser(username=ADMIN, password=password)
        return password
