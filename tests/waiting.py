"""Waiting without sleeping: look whenever the loop has run, under a time guard."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

GUARD = 10


async def until(is_so: Callable[[], object], timeout: float = GUARD) -> None:
    """Let the loop run until `is_so()`. Raises `TimeoutError`."""

    async def wait() -> None:
        while not is_so():  # noqa: ASYNC110 - what is waited for lies inside the code under test: it has no event
            await asyncio.sleep(0)

    await asyncio.wait_for(wait(), timeout)
