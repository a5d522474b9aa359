"""Child processes: started with a clean environment of settings, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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
def command(*words: str, env: Mapping[str, str], core: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a session of its own and end the whole of it on the way out.

    ``core`` is "server", "load" or "any". What it prints can be read from ``stdout``.
    """
    # Where util-linux is installed, it also ends when this process is killed and cannot end it.
    bound = ("setpriv", "--pdeathsig", "TERM", "--") if shutil.which("setpriv") else ()
    with machine.on_every_core() if core == "any" else contextlib.nullcontext():
        process = subprocess.Popen(
            [*bound, *words],
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


def running(
    module: str, *arguments: str, env: Mapping[str, str], core: str
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run ``python -m module`` as ``command`` does."""
    return command(sys.executable, "-m", module, *arguments, env=env, core=core)


def _end(process: subprocess.Popen[str]) -> None:
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        print(f"  {process.args!r} did not end within 5 s of SIGTERM and is killed", file=sys.stderr, flush=True)
    finally:
        # Whatever came between, and a worker that outlived its parent: it is in the same session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
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


def wait_until_it_accepts(process: subprocess.Popen[str], port: int, what: str, *, patience: float = 20.0) -> None:
    """Wait for a server. Raises BenchError where it ends, or takes too long."""
    until = time.monotonic() + patience
    while True:
        if process.poll() is not None:
            raise BenchError(f"{what} ended with {process.returncode} before it served; its errors are above")
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise BenchError(f"{what} did not accept connections within {patience:.0f} s") from error
            time.sleep(0.05)
