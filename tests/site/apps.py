from __future__ import annotations

import asyncio
import logging
import os
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from events.wire import Cursor

logger = logging.getLogger("tests.site")


class SiteConfig(AppConfig):
    """The site that tests serve."""

    name = "tests.site"
    label = "tests_site"

    def ready(self) -> None:
        from events import hub, signals, ticks

        signals.feed_closed.connect(_note_closed, dispatch_uid="tests.closed")
        if name := os.environ.get("EVENTS_TEST_IMPORT"):
            import_module(name)
        # A test that waits until everything is gone should not wait for long.
        hub.LINGER = 1.5
        # A machine that is busy with other tests is late, and is not to skip what those count.
        ticks.MAX_LATENESS = float(os.environ.get("EVENTS_TEST_MAX_LATENESS", ticks.MAX_LATENESS))
        if delay := float(os.environ.get("EVENTS_TEST_SLOW_HEAD", "0")):
            _slow_down(delay)


def _note_closed(channel: str, **kwargs: Any) -> None:
    """Say that the last stream of a channel has left it: what it has to do at its end was done."""
    logger.info("feed closed: process=%s channel=%s", os.getpid(), channel)


def _slow_down(delay: float) -> None:
    """Let the log take its time to say where its head is, as on a machine that is busy with much else."""
    from events.backends.database import DatabaseBackend
    from events.registry import event_backends

    backend = type(event_backends["default"])
    if backend is DatabaseBackend:
        log_row = DatabaseBackend.log_row

        def slow(self: DatabaseBackend, connection: BaseDatabaseWrapper) -> Cursor:
            time.sleep(delay)
            return log_row(self, connection)

        DatabaseBackend.log_row = slow  # type: ignore[method-assign]
    else:
        connect = backend._aconnect  # type: ignore[attr-defined]

        async def aslow(self: object) -> Any:
            await asyncio.sleep(delay)
            return await connect(self)

        backend._aconnect = aslow  # type: ignore[attr-defined]
