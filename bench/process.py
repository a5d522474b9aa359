"""Child processes: started with a clean environment of settings, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.options import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class BenchError(RuntimeError):
    """Something that had to work for a figure to mean anything did not."""


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with the project importable and ``extra`` set."""
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", **extra}


@contextlib.contextmanager
def running(module: str, *arguments: str, env: Mapping[str, str], core: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``python -m module`` in a session of its own and end the whole of it on the way out.

    ``core`` is "server", "load" or "any". What it prints can be read from ``stdout``.
    """
    with machine.on_every_core() if core == "any" else contextlib.nullcontext():
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment(env),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        if core == "server":
            machine.pin_to_server_core(process.pid)
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for signum, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        break
    # A worker that outlived its parent is in the same session.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout:
        process.stdout.close()


def run_json(module: str, *arguments: str, env: Mapping[str, str], core: str, timeout: float = 600.0) -> Any:
    """Run ``python -m module`` to its end and read the JSON on its last line. Raises BenchError where it fails."""
    with running(module, *arguments, env=env, core=core) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{module} {' '.join(arguments)} was not done after {timeout:.0f} s") from error
        if process.returncode:
            raise BenchError(f"{module} {' '.join(arguments)} ended with {process.returncode}; its errors are above")
    return json.loads(output.strip().splitlines()[-1])


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_core() -> dict[str, str]:
    """The event loop and HTTP parser: the fast ones where they are installed, and the same for every peer."""
    return {
        "loop": "uvloop" if machine.version("uvloop") else "asyncio",
        "http": "httptools" if machine.version("httptools") else "h11",
    }


@contextlib.contextmanager
def uvicorn(app: str, *, env: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve an ASGI app with one uvicorn process, and wait until it accepts connections."""
    port = free_port()
    core = server_core()
    arguments = [
        app,
        "--host=127.0.0.1",
        f"--port={port}",
        f"--loop={core['loop']}",
        f"--http={core['http']}",
        "--ws=none",
        "--lifespan=off",
        "--no-access-log",
        "--log-level=warning",
        "--timeout-graceful-shutdown=1",
        # The load keeps one connection for publishing, idle while streams are opened.
        "--timeout-keep-alive=600",
    ]
    with running("uvicorn", *arguments, env=env, core="server") as process:
        until = time.monotonic() + 20.0
        while True:
            if process.poll() is not None:
                raise BenchError(f"{app} ended with {process.returncode} before it served; its errors are above")
            try:
                socket.create_connection(("127.0.0.1", port), 0.5).close()
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise BenchError(f"{app} did not accept connections within 20 s") from error
                time.sleep(0.05)
        yield process, port
