"""Who is measured on which server, and in which lane."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from bench import servers
from bench.load import run_on_loop
from bench.peers import PEERS, Peer
from bench.process import BenchError
from bench.scratch import folder

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from bench.options import Options

T = TypeVar("T")

FAILURES = (BenchError, OSError, TimeoutError, EOFError, psutil.Error)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server: its process, its port, its folder, and what its site's preparation said."""

    pid: int
    port: int
    folder: Path
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Contender:
    """A peer on a server, in one of its lanes where it has some."""

    peer: Peer
    server: str
    lane: str = ""

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def label(self) -> str:
        """The name without the server."""
        return f"{self.peer.name}, {self.lane} lane" if self.lane else self.peer.name

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.label}, {self.server}"

    @contextlib.contextmanager
    def serving(self, env: Mapping[str, str] | None = None) -> Iterator[Served]:
        """Start a fresh server on a fresh database."""
        with folder() as place:
            facts = _prepare(self.peer, env or {}, place)
            full = {**self.peer.environment(place), **(env or {})}
            app = self.peer.lanes[self.lane] if self.lane else self.peer.app
            with servers.serving(self.server, app, env=full) as (process, port):
                yield Served(pid=process.pid, port=port, folder=place, facts=facts)


#: What was prepared, and what that said: once for each site, as it takes seconds. Gone when this process ends.
_prepared: dict[tuple[object, ...], tuple[tempfile.TemporaryDirectory[str], dict[str, str]]] = {}


def _prepare(peer: Peer, env: Mapping[str, str], place: Path) -> dict[str, str]:
    """Put a copy of the site's fresh database into ``place``."""
    key = (peer.name, *sorted(env.items()))
    if key not in _prepared:
        made = tempfile.TemporaryDirectory(dir=place.parent)
        _prepared[key] = made, peer.prepare({**peer.environment(Path(made.name)), **env})
    source, facts = _prepared[key]
    shutil.copytree(source.name, place, dirs_exist_ok=True)
    return facts


def find(
    options: Options, *, names: Sequence[str] = (), on: Sequence[str] = (), lanes: Sequence[str] = ()
) -> list[Contender]:
    """
    Those that are installed and asked for on the command line.

    ``names``, ``on`` (servers) and ``lanes`` are the benchmark's own choice; what is asked for by name replaces it.
    """
    found = []
    for peer in PEERS:
        if not peer.installed() or not options.wants(peer.name, names):
            continue
        for server in peer.servers:
            if not options.wants_server(server, on) or not servers.installed(server):
                continue
            found += [
                Contender(peer, server, lane)
                for lane in peer.lanes or ("",)
                if not lane or options.wants_lane(lane, lanes)
            ]
    return found


def missing() -> list[str]:
    """What the benchmark would measure, were it installed."""
    found = [peer.name for peer in PEERS if not peer.installed()]
    return found + [name for name in (*servers.ASGI, servers.NGINX) if not servers.installed(name)]


def nothing_around(served: Served) -> AbstractContextManager[None]:
    """What is held while a server is measured, where nothing is."""
    return contextlib.nullcontext()


def rounds(
    contenders: Sequence[Contender],
    options: Options,
    measure: Callable[[Contender, Served, Options], Coroutine[Any, Any, T]],
    told: Callable[[T], str],
    *,
    env: Mapping[str, str] | None = None,
    around: Callable[[Served], AbstractContextManager[None]] = nothing_around,
) -> tuple[dict[Contender, list[T]], str]:
    """
    Measure everybody, run by run, so that a busy minute falls on all of them alike; each run in a fresh server.

    Returns the runs, and a sentence about those that failed: one server that gave up shall not lose the others'
    figures.
    """
    found: dict[Contender, list[T]] = {contender: [] for contender in contenders}
    failed: list[str] = []
    for turn in range(options.runs):
        for contender in contenders:
            try:
                with contender.serving(env) as served, around(served):
                    result = run_on_loop(functools.partial(measure, contender, served, options))
            except FAILURES as error:
                print(f"  run {turn + 1}: {contender.name} FAILED: {str(error) or type(error).__name__}", flush=True)
                failed.append(contender.name)
                continue
            found[contender].append(result)
            print(f"  run {turn + 1}: {contender.name}: {told(result)}", flush=True)
    said = f" Runs that failed and are left out: {'; '.join(failed)}." if failed else ""
    return found, said
