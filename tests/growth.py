"""
How much memory requests with names that nobody has used before leave behind: `python -m tests.growth`.

Prints a JSON object: the kind of request, to the blocks of memory that each of them leaves in use for good. For a
process of its own, with the tests' database, in which there are the channels `public.*` and `staff.*`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import uuid
from typing import TYPE_CHECKING, NamedTuple

import django
from django.test import override_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Ask(NamedTuple):
    """A short request with a name, and how it is answered."""

    url: str
    status: int
    method: str = "GET"


ASKED = [
    Ask("/events/stream/?channel={name}", 403),
    Ask("/events/stream/?channel=staff.{name}", 403),
    Ask("/events/stream/?channel=%00{name}", 400),
    Ask("/events/stream/?channel=public.{name}&from={name}", 400),
    Ask("/events/stream/?channel=public.{name}&{name}={name}", 200, "HEAD"),
    Ask("/events/stream/?channel=public.{name}&ticket={name}", 403),
    Ask("/events/channels/{name}/", 404),
    Ask("/events/channels/public.{name}/", 200),
    Ask("/events/history/{name}/?after={name}", 403),
    Ask("/events/history/public.{name}/?after={name}", 200),
    Ask("/events/publish/public.{name}/", 401, "POST"),
    Ask("/events/{name}/", 404),
]
#: Requests before the first measurement. They fill what is filled once.
FIRST = 50
#: Requests in one measurement. What is kept of each is at least one block of memory: its name.
REQUESTS = 200
#: What is less than a name for each request.
LITTLE = 0.9
#: Measurements at most. What is kept for ever shows in each of them; what a thread does meanwhile does not, nor does a
#: cache that is full after some hundred requests, as Django and Python have them.
WINDOWS = 5


def no_name() -> str:
    """A name that nobody has used before."""
    return uuid.uuid4().hex


async def growth(request: Callable[[], Awaitable[None]]) -> float:
    """Blocks of memory that a request leaves in use for good: the first measurement that shows little, or the best."""
    for _ in range(FIRST):
        await request()
    found: list[float] = []
    # Whoever is not cleared by one is measured again, and only they.
    while len(found) < WINDOWS and not any(blocks < LITTLE for blocks in found):
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(REQUESTS):
            await request()
        gc.collect()
        found.append((sys.getallocatedblocks() - before) / REQUESTS)
    return min(found)


async def measure() -> dict[str, float]:
    """Each kind of request, and last the streams."""
    from events import channels, hub, limits
    from events.asgi import get_asgi_application

    from .connections import ServerConnection, scope_of, served
    from .waiting import until

    # Bounds that a few requests reach.
    hub.LINGER, channels.MAX_REMEMBERED, limits.MAX_COUNTED = 0.0, 10, 10
    application = get_asgi_application()
    found = {}
    for asked in ASKED:

        async def request(asked: Ask = asked) -> None:
            connection = ServerConnection()
            headers = {
                "last-event-id": no_name(),
                "authorization": f"Bearer {no_name()}",
                "cookie": f"sessionid={no_name()}",
            }
            scope = scope_of(asked.url.format(name=no_name()), headers, asked.method)
            await application(scope, connection.receive, connection.send)
            assert connection.status == asked.status, (asked, connection.status)

        found[f"{asked.method} {asked.url}"] = await growth(request)

    async def follow() -> None:
        """A stream of two channels, which goes, and one that is put off meanwhile."""
        async with served(application, f"/events/stream/?channel=public.{no_name()}&channel=public.{no_name()}"):
            async with served(application, f"/events/stream/?channel=public.{no_name()}") as second:
                await second.finished()
        await until(lambda: not any(one.feeds for _, one in hub.hubs()))

    found["streams"] = await growth(follow)
    assert limits.counts["MAX_STREAMS", limits.OTHERS] >= REQUESTS
    return found


def main() -> None:
    """Measure, and print."""
    django.setup()
    # What is logged is not what is kept.
    logging.disable(logging.CRITICAL)
    memory = {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}
    with override_settings(EVENTS={"BACKENDS": memory, "MAX_STREAMS": 1}, MIDDLEWARE=[]):
        print(json.dumps(asyncio.run(measure())))


if __name__ == "__main__":
    main()
