"""Waiting without sleeping: look whenever the loop has run, under a time guard."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GUARD = 10


@contextmanager
def counted_turns() -> Iterator[list[None]]:
    """How many turns the loop gives to somebody else meanwhile: the length of a list."""
    turns: list[None] = []

    async def take_turns() -> None:
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    task = asyncio.ensure_future(take_turns())
    try:
        yield turns
    finally:
        task.cancel()


async def until(is_so: Callable[[], object], timeout: float = GUARD) -> None:
    """Let the loop run until `is_so()`. Raises `TimeoutError`."""

    async def wait() -> None:
        while not is_so():  # noqa: ASYNC110 - what is waited for lies inside the code under test: it has no event
            await asyncio.sleep(0)

    await asyncio.wait_for(wait(), timeout)
