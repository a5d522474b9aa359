"""
Other processes on the log of a test: those who publish, and those who read.

    with Elsewhere(backend, job("publish", name="a", count=100), job("follow", count=100)) as processes:
        processes.go()
        _, followed = processes.results()

A job is a function of this module, run in a process of its own with the same backend. It prepares, says that it is
ready, waits for `go`, and what it returns is its result.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from events.backends.base import BaseEventBackend, NewEvent

ROOT = Path(__file__).resolve().parent.parent.parent
#: Seconds after which a process that does not come to its end is ended. Long: a machine may be busy with much else.
GUARD = 120.0

Job = tuple[str, dict[str, Any]]


def job(function: str, **arguments: Any) -> Job:
    """A function of this module to be run elsewhere. Arguments are what JSON can hold."""
    return function, arguments


class Elsewhere:
    """One process for each job. Ready when this is made; `go`, then `results`."""

    def __init__(self, backend: BaseEventBackend, *jobs: Job) -> None:
        from django.db import connections

        self.folder = Path(tempfile.mkdtemp(prefix="events-elsewhere-"))
        self.jobs = jobs
        kind = type(backend)
        order = {
            "module": kind.__module__,
            "class": kind.__qualname__,
            "alias": backend.alias,
            "options": backend.options,
            # The default one is where the tests' settings find it themselves.
            "databases": {alias: connections.settings[alias] for alias in connections if alias != "default"},
            "folder": self.folder,
            "jobs": jobs,
        }
        (self.folder / "order.json").write_text(json.dumps(order, default=str))
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self.folder / "order.json")],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def go(self) -> None:
        """Let all begin."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def results(self, timeout: float = GUARD) -> list[Any]:
        """What each job returned. Raises `RuntimeError` with what was said where one failed."""
        codes = self.exit_codes(timeout)
        if any(codes):
            raise RuntimeError(f"exit codes {codes}:\n{self.log}")
        return [json.loads((self.folder / f"{index}.json").read_text()) for index in range(len(self.jobs))]

    def exit_codes(self, timeout: float = GUARD) -> list[int]:
        """How each job's process ended: minus the signal's number where one ended it."""
        self.go()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still running after {timeout} s: {self.jobs}\n{self.log}") from None
        path = self.folder / "exit_codes"
        if not path.exists():
            raise RuntimeError(f"{self.jobs}\n{self.log}")
        return list(json.loads(path.read_text()))

    @property
    def log(self) -> str:
        """What the processes have said on standard error."""
        return (self.folder / "log").read_text(errors="replace")[-8000:]

    def close(self) -> None:
        """End all, and remove what they left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(GUARD)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait_ready(self) -> None:
        assert self.process.stdout is not None
        end = time.monotonic() + GUARD
        said = b""
        while said.count(b"\n") < len(self.jobs):
            readable, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            more = os.read(self.process.stdout.fileno(), 4096) if readable else b""
            # One that fails before it is ready leaves the others waiting, and the pipe open.
            if not more or b"failed" in more:
                raise RuntimeError(f"not ready: {self.jobs}\n{self.log}")
            said += more


# What is run elsewhere


def publish(
    backend: BaseEventBackend,
    ready: Callable[[], None],
    *,
    name: str,
    count: int,
    channels: Sequence[str] = ("news",),
    singles: int | None = None,
    batch: int = 50,
) -> int:
    """Publish "`name` 0", "`name` 1" and so on, round the channels: `singles` one by one (None: all), then batches."""
    backend.append([])
    ready()
    singles = count if singles is None else singles
    number = 0
    while number < count:
        size = 1 if number < singles else min(batch, count - number)
        backend.append([_event(channels[at % len(channels)], f"{name} {at}") for at in range(number, number + size)])
        number += size
    return number


def publish_in_transaction(backend: BaseEventBackend, ready: Callable[[], None], *, name: str, count: int) -> int:
    """Publish "`name` 0", "`name` 1" and so on, each in a transaction of the site's."""
    from django.db import transaction

    from events.backends.database import DatabaseBackend

    assert isinstance(backend, DatabaseBackend)
    ready()
    for number in range(count):
        with transaction.atomic(using=backend.database):
            backend.append([_event("news", f"{name} {number}")])
    return count


def insist(
    backend: BaseEventBackend, ready: Callable[[], None], *, name: str, count: int, pause: float
) -> dict[str, Any]:
    """Publish one by one, each again, with its key, until the log takes it. Says how often it was refused."""
    from events.exceptions import BackendUnavailable

    ready()
    refused = 0
    for number in range(count):
        while True:
            try:
                backend.append([_event("news", f"{name} {number}", key=f"{name} {number}")])
                break
            except BackendUnavailable:
                refused += 1
                time.sleep(0.05)
        time.sleep(pause)
    return {"refused": refused}


def follow(backend: BaseEventBackend, ready: Callable[[], None], *, count: int) -> list[tuple[int, str, str]]:
    """The next `count` events of the log: position, channel and data."""

    async def main() -> list[tuple[int, str, str]]:
        found: list[tuple[int, str, str]] = []
        async with aclosing(backend.tail()) as batches:
            await anext(batches)
            await asyncio.to_thread(ready)
            async for batch in batches:
                found += [(event.position, event.channel, event.data) for event in batch.events]
                if len(found) >= count:
                    break
        return found

    return asyncio.run(asyncio.wait_for(main(), GUARD))


def die_before_numbering(backend: BaseEventBackend, ready: Callable[[], None], *, data: str) -> None:
    """Publish in a transaction, and be killed when it has committed and its event has no number yet."""
    from django.db import transaction

    from events.backends.database import DatabaseBackend

    assert isinstance(backend, DatabaseBackend)

    def die(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(DatabaseBackend, "_after_commit", die)  # noqa: B010 - mypy would ask what it returns
    ready()
    with transaction.atomic(using=backend.database):
        backend.append([_event("news", data, key=data)])


def fill_the_disk(backend: BaseEventBackend, ready: Callable[[], None]) -> dict[str, Any]:
    """Publish to SQLite while its files may not grow much, until it refuses, and then once more when they may."""
    import resource

    from django.db import connections

    from events.backends.database import DatabaseBackend
    from events.exceptions import BackendUnavailable

    assert isinstance(backend, DatabaseBackend)
    ready()
    database = Path(connections[backend.database].settings_dict["NAME"])
    sizes = [path.stat().st_size for path in database.parent.glob(f"{database.name}*")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) + 500_000, hard))
    published: list[str] = []
    full = None
    while full is None and len(published) < 10_000:
        names = [str(len(published) + at) for at in range(10)]
        try:
            backend.append([_event("news", f"{name} {'x' * 10_000}") for name in names])
            published += names
        except BackendUnavailable as error:
            full = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    backend.append([_event("news", "after")])
    return {"published": published, "full": full}


def _event(channel: str, data: str, key: str | None = None) -> NewEvent:
    from events.backends.base import NewEvent

    return NewEvent(channel=channel, data=data, key=key)


def _main(path: str) -> None:
    from importlib import import_module

    import django
    from django.conf import settings

    order = json.loads(Path(path).read_text())
    settings.DATABASES.update(order["databases"])
    django.setup()
    from events.backends.base import Params

    kind = getattr(import_module(order["module"]), order["class"])
    folder = Path(order["folder"])

    def ready() -> None:
        os.write(1, b"ready\n")
        # Ends for all at once, when the test lets go of the other end.
        os.read(0, 1)

    def run(index: int, function: str, arguments: dict[str, Any]) -> None:
        backend = kind(Params(order["alias"], order["options"]))
        result = globals()[function](backend, ready, **arguments)
        (folder / f"{index}.json").write_text(json.dumps(result))
        backend.close()

    # One start of Python for all: the processes have nothing open yet that they would share.
    pids = []
    for index, (function, arguments) in enumerate(order["jobs"]):
        pid = os.fork()
        if pid == 0:
            try:
                run(index, function, arguments)
            except BaseException:
                traceback.print_exc()
                os.write(1, b"failed\n")
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    (folder / "exit_codes").write_text(json.dumps(codes))


if __name__ == "__main__":
    _main(sys.argv[1])
