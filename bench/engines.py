"""The engines a log can be on: a private server of each, with a fresh log for every case."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import psutil

from bench import machine
from bench.peers import OURS, by_name
from bench.scratch import folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.options import Options

SQLITE = "SQLite"
POSTGRESQL = "PostgreSQL"
MARIADB = "MariaDB"
REDIS = "Redis"
ALL = (SQLITE, POSTGRESQL, MARIADB, REDIS)
#: PostgreSQL that sleeps before each flush of its log, for as long as a disk in a network takes for one.
SLOW = f"{POSTGRESQL}, flush of 2 ms"

#: What must be there to be imported.
DRIVERS = {POSTGRESQL: "psycopg", MARIADB: "MySQLdb", REDIS: "redis"}
#: Of Redis, what makes it keep what was acknowledged, but for the last second before a power cut.
ARGUMENTS = {
    REDIS: ("--appendonly", "yes", "--appendfsync", "everysec"),
    SLOW: ("-c", "commit_delay=2000", "-c", "commit_siblings=0"),
}

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Log:
    """A fresh log: what a process that publishes to it or serves it has in its environment."""

    engine: Engine
    env: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running engine. `server` is what `tests.engines` started; SQLite has none."""

    name: str
    server: Any = None

    @property
    def kind(self) -> str:
        """The engine's name without what is special about this one."""
        return kind(self.name)

    def processes(self) -> list[psutil.Process]:
        """The processes of the server."""
        if self.server is None:
            return []
        main = psutil.Process(self.server.process.pid)
        return [main, *main.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of user and system time that the server has used so far, ended children included."""
        return process_cpu(self.processes())

    @contextlib.contextmanager
    def fresh(self, *, kept: int = 10_000_000, synchronous: str = "NORMAL", **options: object) -> Iterator[Log]:
        """
        A log without events, and a site with the channel `bench`, which keeps `kept` events.

        `options` are the backend's. Nothing is trimmed but by command, unless `trim_interval` says so.
        """
        peer = by_name(OURS)
        with folder() as place:
            env = peer.environment(place, synchronous=synchronous)
            settings = self._fresh_settings(place)
            if settings:
                env["BENCH_DATABASE"] = json.dumps(settings)
            env["BENCH_BACKEND"] = json.dumps(self._backend({"trim_interval": None, **options}))
            if self.server is not None:
                env["BENCH_ENGINE_PID"] = str(self.server.process.pid)
            peer.prepare(env, kept=kept)
            yield Log(engine=self, env=env, settings=settings)

    def _backend(self, options: dict[str, object]) -> dict[str, Any]:
        if self.kind == REDIS:
            return {
                "BACKEND": "events.backends.redis.RedisBackend",
                "OPTIONS": {**options, "url": self.server.url},
            }
        return {"BACKEND": "events.backends.database.DatabaseBackend", "OPTIONS": options}

    def _fresh_settings(self, place: Path) -> dict[str, Any]:
        """An entry of DATABASES for a database that was just made; empty for SQLite's file."""
        if self.kind == REDIS:
            with contextlib.closing(import_module("redis").Redis.from_url(self.server.url)) as client:
                client.flushall()
        if self.kind in (SQLITE, REDIS):
            return {}
        name = f"bench{next(_numbers)}"
        address = self.server.settings
        if self.kind == POSTGRESQL:
            with import_module("psycopg").connect(
                host=address["HOST"],
                port=address["PORT"],
                user=address["USER"],
                dbname=address["NAME"],
                autocommit=True,
            ) as connection:
                connection.execute(f"CREATE DATABASE {name}")
        else:
            with contextlib.closing(
                import_module("MySQLdb").connect(host=address["HOST"], port=address["PORT"], user=address["USER"])
            ) as connection:
                connection.cursor().execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return {**address, "NAME": name}


def kind(name: str) -> str:
    """The engine's name without what is special about it."""
    return name.partition(",")[0]


def process_cpu(processes: Sequence[psutil.Process]) -> float:
    """Seconds of user and system time of these processes and of their children that have ended."""
    total = 0.0
    for process in processes:
        # A child that ends between two looks is counted with its parent's children.
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def missing(name: str) -> str | None:
    """What keeps an engine from being measured here, or None."""
    driver = DRIVERS.get(kind(name))
    if driver is not None and find_spec(driver) is None:
        return f"{driver} is not installed"
    if name != SQLITE:
        found = import_module("tests.programs").find_program
        lacking = [program for program in _server_class(name).programs if found(program) is None]
        if lacking:
            return f"{', '.join(lacking)} is not installed"
    return None


def _server_class(name: str) -> Any:
    return getattr(import_module("tests.engines"), kind(name))


@contextlib.contextmanager
def started(names: Sequence[str], options: Options) -> Iterator[dict[str, Engine]]:
    """Start private servers of the engines that are wanted and can be had here. They run on every core."""
    with contextlib.ExitStack() as stack:
        engines = {}
        for name in names:
            if not options.wants_engine(kind(name)):
                continue
            if (reason := missing(name)) is not None:
                print(f"  {name} is left out: {reason}", flush=True)
                continue
            server = None
            if name != SQLITE:
                with machine.on_every_core():
                    server = stack.enter_context(_server_class(name)(*ARGUMENTS.get(name, ())))
            engines[name] = Engine(name=name, server=server)
        yield engines


def versions() -> str:
    """The engines' own versions, those that are installed."""
    found = []
    for name, program in ((POSTGRESQL, "postgres"), (MARIADB, "mariadbd"), (REDIS, "redis-server")):
        path = import_module("tests.programs").find_program(program)
        if path is None:
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        # redis-server says v=7.0.15, the others 15.20 and 10.11.19-MariaDB.
        number = re.search(r"\d+\.\d+(?:\.\d+)?", said)
        found.append(f"{name} {number[0] if number else '?'}")
    return ", ".join(found)
