from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from django.apps import AppConfig

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from events.wire import Cursor


class SiteConfig(AppConfig):
    """The site that tests serve."""

    name = "tests.site"
    label = "tests_site"

    def ready(self) -> None:
        from events import hub
        from events.backends.database import DatabaseBackend

        # A test that waits until everything is gone should not wait for long.
        hub.LINGER = 1.0
        if delay := float(os.environ.get("EVENTS_TEST_SLOW_HEAD", "0")):
            log_row = DatabaseBackend.log_row

            def slow(self: DatabaseBackend, connection: BaseDatabaseWrapper) -> Cursor:
                # As on a machine that is busy with much else.
                time.sleep(delay)
                return log_row(self, connection)

            DatabaseBackend.log_row = slow  # type: ignore[method-assign]
