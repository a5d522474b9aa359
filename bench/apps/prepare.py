"""Make the tables, the channels and what users show. Run as ``python -m bench.apps.prepare [kept]``; prints JSON."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module

import django
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.test import Client

from bench import payload

#: Users with a ticket each: as many as connect at once.
TICKETS = 20
#: Seconds for which a ticket is good, the most there is: for all runs of a benchmark.
MAX_AGE = 3600


def main(kept: int) -> None:
    """
    Migrate; make the channel ``bench``, which keeps ``kept`` events, ``warm``, which has none, and ``members``.

    Where the site has sessions, sign a user in and print the cookie. Where it has tickets besides, publish an event to
    ``members`` and print tickets for that channel, separated by spaces.
    """
    django.setup()
    call_command("migrate", verbosity=0, interactive=False)
    if apps.is_installed("events"):
        # By name: this module also prepares sites that do not have the app.
        channels = import_module("events.models").Channel.objects
        channels.create(name="bench", access="public", history_events=kept)
        channels.create(name="warm", access="public")
        channels.create(name="members", access="authenticated")
    facts = {}
    if apps.is_installed("django.contrib.sessions"):
        users = import_module("django.contrib.auth.models").User.objects
        client = Client()
        client.force_login(users.create_user("reader"))
        facts["cookie"] = f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"
        if apps.is_installed("events"):
            events = import_module("events")
            # What only a stream gets whose user may read.
            events.publish("members", payload.make(time.time(), 0))
            holders = [users.create_user(f"holder-{number}") for number in range(TICKETS)]
            facts["tickets"] = " ".join(events.make_ticket(user, ["members"], MAX_AGE) for user in holders)
    print(json.dumps(facts))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
