"""What the logs on servers do beside their contract: trim in the background, and get over the server's absence."""

from __future__ import annotations

import os
import random
import threading
import time
from abc import abstractmethod
from typing import TYPE_CHECKING

from django.db import DatabaseError, InterfaceError, connections

from ..exceptions import BackendUnavailable, InvalidEventBackend
from .base import BaseEventBackend, Params, Retention

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

#: Seconds between two tries while the log cannot be read.
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 2.0


class TrimmingBackend(BaseEventBackend):
    """A log that trims itself every `trim_interval` seconds (an option; None: never), in one process at a time."""

    #: Where warnings go, and how they name the log.
    logger: logging.Logger

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self._check_seconds("trim_interval")
        self._trimming = threading.Lock()
        self._process = os.getpid()
        # Not all processes of a deployment at once.
        self._next_trim = time.monotonic() + random.uniform(0, self.options["trim_interval"] or 0)  # noqa: S311

    def _check_seconds(self, name: str) -> None:
        """Raise `InvalidEventBackend` unless the option is a number of seconds, or None."""
        value = self.options[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            raise InvalidEventBackend(
                f"EVENTS['BACKENDS'][{self.alias!r}]['OPTIONS'][{name!r}] is {value!r}: "
                "it must be a number of seconds above 0, or None."
            )

    @property
    @abstractmethod
    def label(self) -> str:
        """How log lines name the log, as `database=default`."""

    @abstractmethod
    def _claim_trim(self, interval: float) -> bool:
        """Whether no other process has trimmed for half an interval; if so, none does for the next."""

    def maintain(self, retention: Callable[[str], Retention]) -> None:
        """Start a trim on a thread of its own, every `trim_interval` seconds at most, in one process at a time."""
        interval = self.options["trim_interval"]
        if interval is None or time.monotonic() < self._next_trim:
            return
        if self._process != os.getpid():
            # A child process has none of its parent's threads, but a lock that one of them held.
            self._trimming, self._process = threading.Lock(), os.getpid()
        if not self._trimming.acquire(blocking=False):
            return
        self._next_trim = time.monotonic() + interval * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
        threading.Thread(
            target=self._trim_in_background, args=(retention, interval), name="events-trim", daemon=True
        ).start()

    def _trim_in_background(self, retention: Callable[[str], Retention], interval: float) -> None:
        try:
            if self._claim_trim(interval):
                self.trim(retention)
        except (DatabaseError, InterfaceError, BackendUnavailable) as error:
            self.logger.warning("trimming failed, to be tried again: %s error=%s", self.label, error)
        finally:
            # The log's, and what the retentions were looked up with.
            connections.close_all()
            self._trimming.release()


class Outage:
    """The time in which a tail cannot read its log: it is said once when it begins and once when it is over."""

    def __init__(self, logger: logging.Logger, label: str) -> None:
        self._logger = logger
        self._label = label
        self._backoff = 0.0

    def goes_on(self, error: Exception, *, is_expected: bool) -> float:
        """The log could not be read. Returns the seconds until the next try; what is not expected shows where."""
        if not self._backoff:
            self._logger.warning(
                "the log cannot be read, trying again: %s error=%s",
                self._label,
                error,
                exc_info=None if is_expected else error,
            )
        self._backoff = min(LAST_BACKOFF, max(FIRST_BACKOFF, 2 * self._backoff))
        return self._backoff

    def is_over(self) -> None:
        """The log was read."""
        if self._backoff:
            self._logger.warning("the log can be read again: %s", self._label)
            self._backoff = 0.0
