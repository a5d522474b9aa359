"""The thread that Django keeps for what is not async in a request."""

from __future__ import annotations

from asgiref.sync import SyncToAsync
from django.db import connections


def let_go() -> None:
    """
    End the thread that Django keeps for the request, and with it the database connections that were opened on it.

    Admitting the request is over; a stream that kept both for hours would cost each client a thread and a connection.
    What the response does later on such a thread (closing, asking for rights again) gets a new one.

    `SyncToAsync` has no method for this. These two attributes are what `ThreadSensitiveContext` itself does it with;
    where they are not, or the request has no thread of its own (a test's client), nothing happens.
    """
    try:
        executor = SyncToAsync.context_to_thread_executor.pop(SyncToAsync.thread_sensitive_context.get())
    except (AttributeError, LookupError):
        return
    executor.submit(_close_connections)
    # The thread ends when it has done that; nobody waits for it.
    executor.shutdown(wait=False)


def _close_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
