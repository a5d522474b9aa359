"""The machine: cores, limits, versions."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sqlite3
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = (
    "Django",
    "psycopg",
    "mysqlclient",
    "redis",
    "hiredis",
    "channels",
    "channels-redis",
    "django-eventstream",
    "sse-starlette",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "hypercorn",
    "daphne",
    "twisted",
    "granian",
    "psutil",
)


def cores() -> tuple[int, int] | None:
    """The server's core and the load's. None where there are not two, or no way to choose."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(_AT_START)
    return (usable[0], usable[1]) if len(usable) >= 2 else None


_AT_START: frozenset[int] = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def pin_self_to_load_core() -> None:
    """Keep this process off the server's core."""
    pair = cores()
    if pair:
        os.sched_setaffinity(0, {pair[1]})


def pin_to_server_core(pid: int) -> None:
    """Keep a child on the server's core. Called before it has made threads, which inherit it."""
    pair = cores()
    if pair:
        os.sched_setaffinity(pid, {pair[0]})


@contextlib.contextmanager
def on_every_core() -> Iterator[None]:
    """Let this process, and what it starts meanwhile, run on every core it was given at the start."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _AT_START)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def raise_open_files(wanted: int) -> None:
    """Raise the limit of open files, which children inherit. Raises RuntimeError where the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise RuntimeError(f"{wanted} open files are needed, the limit is {hard}: raise it or use fewer --streams.")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def process_cpu(pid: int) -> float:
    """Seconds of user and system time of a process so far, its threads that have ended included."""
    if sys.platform == "linux":
        # The process's own clock (clock_getcpuclockid(3)), in nanoseconds: what /proc shows has steps of 10 ms.
        with contextlib.suppress(OSError):
            return time.clock_gettime((~pid) << 3 | 2)
    with contextlib.suppress(psutil.NoSuchProcess):
        return float(sum(psutil.Process(pid).cpu_times()[:2]))
    return 0.0


def unsent(port: int, peer: int) -> int | None:
    """Bytes in the kernel's send queue of the connection from ``port`` to ``peer``. None where it does not tell."""
    wanted = (f"0100007F:{port:04X}", f"0100007F:{peer:04X}")
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if (fields[1], fields[2]) == wanted:
                return int(fields[4].partition(":")[0], 16)
    return None


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def describe() -> str:
    """A few lines of Markdown: what it was measured on, with what."""
    pair = cores()
    placed = "web server and load pinned to a core each" if pair else "not pinned to cores"
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES if version(name))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return (
        f"- Machine: {_processor()}, {len(_AT_START) or os.cpu_count()} cores, {platform.system()}; {placed}; "
        f"load average {load:.1f} before the start\n"
        f"- {platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {found}"
    )
