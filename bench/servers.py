"""The servers: one process of each on the server's core, with the fast parts that are installed."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bench import machine, nchan
from bench.process import free_port, running, wait_until_it_accepts

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

UVICORN = "uvicorn"
HYPERCORN = "hypercorn"
DAPHNE = "daphne"
GRANIAN = "granian"
NGINX = "nginx"
#: Those that serve an ASGI app.
ASGI = (UVICORN, HYPERCORN, DAPHNE, GRANIAN)


def fast_parts() -> dict[str, str]:
    """The event loop and HTTP parser: the fast ones where they are installed, and the same for every peer."""
    return {
        "loop": "uvloop" if machine.version("uvloop") else "asyncio",
        "http": "httptools" if machine.version("httptools") else "h11",
    }


def _uvicorn(app: str, port: int) -> list[str]:
    parts = fast_parts()
    return [
        app,
        "--host=127.0.0.1",
        f"--port={port}",
        f"--loop={parts['loop']}",
        f"--http={parts['http']}",
        "--ws=none",
        "--no-access-log",
        "--log-level=warning",
        "--timeout-graceful-shutdown=1",
        # The load keeps one connection for publishing, idle while streams are opened.
        "--timeout-keep-alive=600",
    ]


def _hypercorn(app: str, port: int) -> list[str]:
    # Its default, asyncio's own loop.
    return [
        app,
        f"--bind=127.0.0.1:{port}",
        "--workers=1",
        "--backlog=2048",
        "--keep-alive=600",
        "--graceful-timeout=1",
        "--log-level=error",
    ]


def _daphne(app: str, port: int) -> list[str]:
    return ["--bind=127.0.0.1", f"--port={port}", "--verbosity=0", app]


def _granian(app: str, port: int) -> list[str]:
    return [
        app,
        "--interface=asgi",
        "--host=127.0.0.1",
        f"--port={port}",
        "--workers=1",
        f"--loop={fast_parts()['loop']}",
        "--no-ws",
        "--no-access-log",
        "--log-level=warning",
        # By default it answers 1,024 requests at a time, and an open stream is one.
        "--backlog=16384",
        "--backpressure=16384",
        "--workers-kill-timeout=1",
    ]


_ARGUMENTS: dict[str, Callable[[str, int], list[str]]] = {
    UVICORN: _uvicorn,
    HYPERCORN: _hypercorn,
    DAPHNE: _daphne,
    GRANIAN: _granian,
}


def installed(server: str) -> bool:
    """Whether a server can be started here."""
    return nchan.installed() if server == NGINX else find_spec(server) is not None


@contextlib.contextmanager
def serving(server: str, app: str, *, env: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve an ASGI app with one process of a server (nginx needs none), and wait until it accepts connections."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        if server == NGINX:
            process = stack.enter_context(nchan.running(port))
        else:
            process = stack.enter_context(running(server, *_ARGUMENTS[server](app, port), env=env, core="server"))
        wait_until_it_accepts(process, port, f"{app or 'nchan'} on {server}")
        yield process, port


def uvicorn(
    app: str, *, env: Mapping[str, str]
) -> contextlib.AbstractContextManager[tuple[subprocess.Popen[str], int]]:
    """Serve an ASGI app with uvicorn."""
    return serving(UVICORN, app, env=env)
