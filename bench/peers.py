"""Who is measured, and what each needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.process import run_json
from bench.servers import ASGI, DAPHNE, NGINX, UVICORN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OURS = "django-live-events"
EVENTSTREAM = "django-eventstream"
EVENTSTREAM_MODEL = "django-eventstream (model storage)"
STARLETTE = "sse-starlette"
CHANNELS = "channels_redis"
CHANNELS_MEMORY = "channels (in memory)"
NCHAN = "nchan"
BARE = "bare ASGI app"

DIRECT = "direct"
RESPONSE = "response"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """
    One implementation: the ASGI app that shows it, the path of its stream, what it needs.

    ``lanes`` are apps for ways of serving that have names. ``members`` is the path of a stream for signed-in users
    only. ``burst`` says how several events are published together; ``pipelined`` means as many requests at once.
    ``small``: it cannot serve thousands of streams.
    """

    name: str
    stream: str
    needs: str = ""
    app: str = ""
    lanes: Mapping[str, str] = field(default_factory=dict)
    servers: tuple[str, ...] = (UVICORN,)
    settings: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    members: str = ""
    burst: str = ""
    pipelined: bool = False
    small: bool = False
    note: str = ""

    def installed(self) -> bool:
        """Whether what it needs can be imported."""
        return not self.needs or find_spec(self.needs) is not None

    def environment(self, folder: Path, *, synchronous: str = "NORMAL") -> dict[str, str]:
        """The environment variables its processes need."""
        found = {
            **self.env,
            "BENCH_DB": str(folder / "bench.sqlite3"),
            "BENCH_SYNCHRONOUS": synchronous,
        }
        return {**found, "DJANGO_SETTINGS_MODULE": self.settings} if self.settings else found

    def prepare(self, env: Mapping[str, str], *, kept: int = 1000) -> dict[str, Any]:
        """Make its tables, in a process of their own. Returns what that says, e.g. a session's cookie."""
        found: dict[str, Any] = {}
        if self.settings:
            found = run_json("bench.apps.prepare", str(kept), env=env, core="load")
        return found


_DJANGO = "bench.apps.django_asgi:application"

PEERS = (
    Peer(
        name=OURS,
        needs="events",
        app=_DJANGO,
        lanes={DIRECT: "bench.apps.live_asgi:application", RESPONSE: _DJANGO},
        servers=ASGI,
        stream="/events/stream/?channel=bench",
        members="/events/stream/?channel=members",
        settings="bench.apps.ours_settings",
        burst="publish_many",
        note="every event is committed to the log first",
    ),
    Peer(
        name=EVENTSTREAM,
        needs="django_eventstream",
        app=_DJANGO,
        servers=(UVICORN, DAPHNE),
        stream="/events/?channel=bench",
        members="/events/?channel=members",
        settings="bench.apps.eventstream_settings",
        burst="10 × send_event",
        note="memory only",
    ),
    Peer(
        name=EVENTSTREAM_MODEL,
        needs="django_eventstream",
        app=_DJANGO,
        stream="/events/?channel=bench",
        settings="bench.apps.eventstream_settings",
        env={"BENCH_STORAGE": "model"},
        burst="10 × send_event",
        note="every event is committed to its table first",
    ),
    Peer(
        name=STARLETTE,
        needs="sse_starlette",
        app="bench.apps.starlette_app:application",
        stream="/events",
        burst="10 × put_nowait",
        note="memory only",
    ),
    Peer(
        name=CHANNELS_MEMORY,
        needs="channels",
        app="bench.apps.channels_app:application",
        stream="/events",
        env={"BENCH_LAYER": "channels.layers.InMemoryChannelLayer"},
        burst="10 × group_send",
        # Each receive() looks through all channels: with 9,000 an event took more than a minute.
        small=True,
        note="memory only, at most 100 messages to a stream",
    ),
    Peer(
        name=BARE,
        needs="uvicorn",
        app="bench.apps.bare_app:application",
        stream="/events",
        burst="10 × put_nowait",
        note="memory only; no library, the floor",
    ),
    Peer(
        name=NCHAN,
        servers=(NGINX,),
        stream="/events",
        burst="10 pipelined POSTs",
        pipelined=True,
        note="memory only; in C, no application behind it",
    ),
)


def by_name(name: str) -> Peer:
    """The peer of that name."""
    return next(peer for peer in PEERS if peer.name == name)
