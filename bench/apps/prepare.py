"""Make the tables, and for this project the channels. Run as ``python -m bench.apps.prepare [kept]``."""

from __future__ import annotations

import json
import sys
from importlib import import_module

import django
from django.apps import apps
from django.core.management import call_command


def main(kept: int) -> None:
    """Migrate; make the channel ``bench``, which keeps ``kept`` events, and ``warm``, which has none."""
    django.setup()
    call_command("migrate", verbosity=0, interactive=False)
    if apps.is_installed("events"):
        # By name: this module also prepares sites that do not have the app.
        channels = import_module("events.models").Channel.objects
        channels.create(name="bench", access="public", history_events=kept)
        channels.create(name="warm", access="public")
    print(json.dumps("ready"))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
