"""
Another process of the site, which does what a test tells it: a shell, a task queue's worker, a cron job.

Reads requests from standard input, one line of JSON each: `{"code", "values"}`; writes what the code left in `result`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import django

PRELUDE = """
import asyncio, os, signal, sys, threading, time
from django.db import connection, connections, transaction
from events import apublish, apublish_many, publish, publish_many
from events.models import Channel, Event, Floor, Log, Tick
from events.registry import event_backends
"""


def main() -> None:
    """Do as told until standard input ends."""
    # Whatever the code prints must not get between the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    django.setup()
    process = os.getpid()
    for line in sys.stdin:
        request = json.loads(line)
        scope: dict[str, Any] = {"result": None}
        exec(PRELUDE, scope)
        scope.update(request["values"])
        try:
            exec(request["code"], scope)
            reply = json.dumps({"result": scope["result"]})
        except Exception:
            reply = json.dumps({"error": traceback.format_exc()})
        if os.getpid() != process:
            # A forked child in which the code failed, or that did not end: it would read requests in its parent's
            # place, and the parent wait for its end.
            print(f"a child came back: {reply}", file=sys.stderr, flush=True)
            os._exit(1)
        print(reply, file=replies, flush=True)


if __name__ == "__main__":
    main()
