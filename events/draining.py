"""
The orderly end of all streams when a process stops.

ASGI servers wait for open responses when they are told to stop, some for ever, and the lifespan's shutdown comes only
after that. So the first stream puts a handler before the server's own for the signals that stop it: every stream writes
its own `retry:` and ends, then the server's handler runs. A second signal is the server's at once.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from .hub import DRAIN_PATIENCE, Hub, hubs, on_every_hub

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    Handler = Callable[[int, FrameType | None], Any]

#: What stops a server. SIGQUIT: gunicorn's workers, when it is interrupted in a terminal.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGBREAK") if hasattr(signal, name))
#: Seconds for which streams that come are sent away again: then the process has not stopped, whatever it was told.
LASTS = 30.0
#: Turns of the loop that the server gets to write out the last bytes.
TURNS = 5


class _State:
    #: The handlers that ours stand before, by signal.
    before: ClassVar[dict[int, Handler]] = {}
    #: Until when the process is taken for one that stops.
    until = float("-inf")
    is_at_exit = False
    tasks: ClassVar[set[asyncio.Task[None]]] = set()


def is_draining() -> bool:
    """Whether the process is about to stop."""
    return time.monotonic() < _State.until


def watch() -> None:
    """
    See to it that streams end before the process does. Cheap: each stream calls it.

    A server may set its handlers anew (a reload does), so what stands there is looked at each time.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            # What is not Python's, or ends the process at once, or ignores the signal, is left alone.
            if callable(handler) and handler is not _on_signal:
                _State.before[number] = handler
                signal.signal(number, _on_signal)
    elif not _State.is_at_exit:
        # The development server: its streams are on another thread, and the process ends without a signal of its own.
        _State.is_at_exit = True
        atexit.register(_on_exit)


def _on_signal(number: int, frame: FrameType | None) -> None:
    is_first = not is_draining()
    _begin()
    before = _State.before[number]
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if is_first and loop is not None and any(hub.streams for _, hub in hubs()):
        loop.call_soon_threadsafe(_start, number)
    else:
        before(number, frame)


def _start(number: int) -> None:
    task = asyncio.ensure_future(_drain_first(number))
    _State.tasks.add(task)
    task.add_done_callback(_State.tasks.discard)


async def _drain_first(number: int) -> None:
    await drain()
    # Not a call of the server's handler: that of an event loop (`add_signal_handler`) needs the signal itself. Where
    # ours does not stand there any more, the server has gone on by itself, and a signal would kill it.
    if signal.getsignal(number) is _on_signal:
        signal.raise_signal(number)


async def drain() -> None:
    """End the streams of this process, and wait for those of this loop: for a second at most, and some turns."""
    _begin()
    on_every_hub(Hub.drain)
    await _emptied()
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def _emptied() -> None:
    # The hubs are told in the next turn.
    await asyncio.sleep(0)
    here = asyncio.get_running_loop()
    for loop, hub in hubs():
        if loop is here:
            await hub.wait_empty(DRAIN_PATIENCE + 0.5)


def _begin() -> None:
    _State.until = time.monotonic() + LASTS


def _on_exit() -> None:
    """Drain the streams of other threads' loops, which run on until the interpreter ends."""
    for loop in {loop for loop, hub in hubs() if hub.streams and loop.is_running()}:
        done = asyncio.run_coroutine_threadsafe(drain(), loop)
        with suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            done.result(2 * DRAIN_PATIENCE)


def _after_fork() -> None:
    """A child has streams of its own, or none; what its parent was told does not stop it."""
    _State.until = float("-inf")


os.register_at_fork(after_in_child=_after_fork)
