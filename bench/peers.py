"""Who is measured, and how each is started."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench.options import ROOT
from bench.process import run_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OURS = "django-live-events"
EVENTSTREAM = "django-eventstream"
EVENTSTREAM_MODEL = "django-eventstream (model storage)"
STARLETTE = "sse-starlette"
CHANNELS = "channels_redis"
BARE = "bare ASGI app"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One implementation: the ASGI app that shows it, the path of its stream, what it needs."""

    name: str
    needs: str
    app: str
    stream: str
    settings: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def installed(self) -> bool:
        """Whether what it needs can be imported."""
        return find_spec(self.needs) is not None

    def environment(self, folder: Path, *, synchronous: str = "NORMAL") -> dict[str, str]:
        """The environment variables its processes need."""
        found = {
            **self.env,
            "BENCH_DB": str(folder / "bench.sqlite3"),
            "BENCH_SYNCHRONOUS": synchronous,
        }
        return {**found, "DJANGO_SETTINGS_MODULE": self.settings} if self.settings else found

    def prepare(self, env: Mapping[str, str], *, kept: int = 1000) -> None:
        """Make its tables, in a process of their own."""
        if self.settings:
            run_json("bench.apps.prepare", str(kept), env=env, core="load")


PEERS = (
    Peer(
        name=OURS,
        needs="events",
        app="bench.apps.django_asgi:application",
        stream="/events/stream/?channel=bench",
        settings="bench.apps.ours_settings",
        note="every event is committed to the log first",
    ),
    Peer(
        name=EVENTSTREAM,
        needs="django_eventstream",
        app="bench.apps.django_asgi:application",
        stream="/events/?channel=bench",
        settings="bench.apps.eventstream_settings",
        note="memory only",
    ),
    Peer(
        name=EVENTSTREAM_MODEL,
        needs="django_eventstream",
        app="bench.apps.django_asgi:application",
        stream="/events/?channel=bench",
        settings="bench.apps.eventstream_settings",
        env={"BENCH_STORAGE": "model"},
        note="every event is committed to its table first",
    ),
    Peer(
        name=STARLETTE,
        needs="sse_starlette",
        app="bench.apps.starlette_app:application",
        stream="/events",
        note="memory only",
    ),
    Peer(
        name=BARE,
        needs="uvicorn",
        app="bench.apps.bare_app:application",
        stream="/events",
        note="memory only; no library, the floor",
    ),
)


def by_name(name: str) -> Peer:
    """The peer of that name."""
    return next(peer for peer in PEERS if peer.name == name)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A fresh folder on the disk the project is on, for a database that is not in memory."""
    place = ROOT / "var" / "bench"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as made:
        yield Path(made)
