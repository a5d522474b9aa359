"""Threads and event loops: calling what may be either, and the thread that Django keeps for a request."""

from __future__ import annotations

from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from asgiref.sync import SyncToAsync, async_to_sync, iscoroutinefunction
from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the site's, sync or async, from a thread, and return what it returns in the end."""
    if iscoroutinefunction(function):
        return async_to_sync(function)(*args)
    found = function(*args)
    # An async function behind a decorator that is not, or an object with an async __call__: a coroutine is no answer.
    return async_to_sync(_wait_for)(found) if isawaitable(found) else found


async def _wait_for(found: Awaitable[Any]) -> Any:
    return await found


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
