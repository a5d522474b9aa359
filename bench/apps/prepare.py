"""Make the tables, the channels and a session. Run as ``python -m bench.apps.prepare [kept]``; prints JSON."""

from __future__ import annotations

import json
import sys
from importlib import import_module

import django
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.test import Client


def main(kept: int) -> None:
    """
    Migrate; make the channel ``bench``, which keeps ``kept`` events, ``warm``, which has none, and ``members``.

    Where the site has sessions, sign a user in and print the cookie.
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
        client = Client()
        client.force_login(import_module("django.contrib.auth.models").User.objects.create_user("reader"))
        facts["cookie"] = f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"
    print(json.dumps(facts))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
