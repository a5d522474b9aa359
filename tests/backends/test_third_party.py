"""A backend of somebody else's, made of public names alone: it passes the contract, and docs/backends.md shows it."""

from __future__ import annotations

import ast
import asyncio
import logging
import resource
import signal
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import pytest
from asgiref.sync import ThreadSensitiveContext

from events.backends.base import Params, Retention
from events.exceptions import BackendUnavailable, InvalidEventBackend
from tests.test_docs import RUNNER, Project, blocks
from tests.waiting import GUARD

from . import third_party
from .contract import backend_contract, collect, new, next_batch, positions
from .third_party import FolderBackend

ROOT = Path(__file__).resolve().parent.parent.parent
#: Modules of the app that docs/backends.md lets a backend use.
PUBLIC = {"events.backends.base", "events.exceptions", "events.wire"}


def open_folder(folder: Path, **options) -> FolderBackend:
    return FolderBackend(Params("default", {"folder": folder, "poll_interval": 0.01, **options}))


def make_folder(tmp_path):
    yield open_folder(tmp_path / "log")


TestContract = backend_contract(make_folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_it_uses_public_names_alone():
    """Otherwise it would show nothing."""
    tree = ast.parse(Path(third_party.__file__).read_text())
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert {name for name in imports if name.partition(".")[0] in ("events", "tests", "django")} == PUBLIC


def test_a_folder_must_be_named():
    """With the alias whose options lack it."""
    with pytest.raises(InvalidEventBackend, match=r"\['other'\]\['OPTIONS'\] must name a 'folder'"):
        FolderBackend(Params("other"))


def test_an_option_that_is_nearly_right_is_named(folder):
    """The base class does that for every backend."""
    with pytest.raises(InvalidEventBackend) as caught:
        open_folder(folder, pol_interval=1, POLL_INTERVALL=1, zzz=1)
    assert str(caught.value) == (
        "EVENTS['BACKENDS']['default']['OPTIONS'] has 'pol_interval', 'POLL_INTERVALL', 'zzz': "
        "FolderBackend knows folder, poll_interval. Did you mean 'poll_interval', 'poll_interval'?"
    )


def test_a_half_written_append_is_none(folder):
    """Neither for who has the log open nor for who opens it, and what follows is not glued to it."""
    backend = open_folder(folder)
    backend.append([new(data="1")])
    with (folder / "log").open("ab") as log:
        log.write(b'{"events": [{"position": 2, "cha')
    for reader in (backend, open_folder(folder)):
        assert positions(reader.read(["news"], 0, 10).events) == [1]
    backend.append([new(data="2")])
    for reader in (backend, open_folder(folder)):
        assert [event.data for event in reader.read(["news"], 0, 10).events] == ["1", "2"]


def test_a_full_disk_leaves_nothing_half_written(folder):
    """The publisher hears of it, and the log goes on once there is room."""
    backend = open_folder(folder)
    backend.append([new(data="1")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Beyond this size the system refuses to write, as on a full disk, and sends a signal that Python ignores.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "log").stat().st_size + 20, before[1]))
    try:
        with pytest.raises(BackendUnavailable, match="the disk is full"):
            backend.append([new(data="lost"), new(data="lost")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert backend.append([new(data="2")])[0].id == f"{backend.head().epoch}-2"
    assert [event.data for event in open_folder(folder).read(["news"], 0, 10).events] == ["1", "2"]


async def test_a_log_that_lost_its_newest_events_begins_a_new_life(folder):
    """An older copy was put back: the positions that it gives again mean other events."""
    backend = open_folder(folder)
    backend.append([new(data="1")])
    copy = (folder / "log").read_bytes()
    backend.append([new(data="2")])
    async with aclosing(backend.tail()) as batches:
        first = await next_batch(batches)
        (folder / "log").write_bytes(copy)
        batch = await next_batch(batches)
        assert batch.head.epoch != first.head.epoch
        assert (batch.head.position, list(batch.events)) == (1, [])
        other = open_folder(folder)
        await other.aappend([new(data="another 2")])
        assert [event.data for event in await collect(batches, 1)] == ["another 2"]
    assert await other.ahead() == await backend.ahead()


async def test_a_folder_that_is_gone_for_a_while_is_said_once(folder, caplog, monkeypatch):
    """However often it is looked for; and what is published when it is back arrives."""
    backend = open_folder(folder)
    looks, follow = asyncio.Semaphore(0), backend.follow
    loop = asyncio.get_running_loop()

    def counted(head):
        loop.call_soon_threadsafe(looks.release)
        return follow(head)

    monkeypatch.setattr(backend, "follow", counted)
    backend.append([new(data="1")])
    async with aclosing(backend.tail()) as batches:
        first = await next_batch(batches)
        folder.rename(folder.with_name("moved"))
        folder.write_text("not a folder")
        with caplog.at_level(logging.WARNING), pytest.raises(BackendUnavailable):
            await backend.aread(["news"], 0, 10)
        waits = asyncio.ensure_future(next_batch(batches))
        for _ in range(5):
            await asyncio.wait_for(looks.acquire(), GUARD)
        folder.unlink()
        folder.with_name("moved").rename(folder)
        await backend.aappend([new(data="2")])
        batch = await waits
        assert [event.data for event in batch.events] == ["2"]
        assert batch.head.epoch == first.head.epoch
    assert caplog.text.count("the log cannot be read") == 1


def test_what_one_process_trims_the_others_see(folder):
    """Their copy of the log is of another file than the one that is there now."""
    one, other = open_folder(folder), open_folder(folder)
    one.append([new(data=str(number), key=str(number)) for number in range(5)])
    assert len(other.read(["news"], 0, 10).events) == 5
    assert one.trim(lambda name: Retention(events=1)) == 4
    # The new file is longer than the old one was by the time that the other looks.
    one.append([new("elsewhere", "x" * 10_000)])
    assert other.append([new(key="0")])[0].repeated
    assert other.append([new(data="5")])[0].id == f"{one.head().epoch}-7"
    for backend in (one, other):
        found = backend.read(["news"], 0, 10)
        assert (positions(found.events), found.floors) == ([5, 7], {"news": 4})


async def test_a_stream_that_reads_keeps_no_thread(folder):
    """What the base class makes of `read` does not hold the thread that Django gives to a request."""  # promise 13
    backend = open_folder(folder)
    begun, may_end = asyncio.Semaphore(0), asyncio.Event()

    async def stream() -> None:
        async with ThreadSensitiveContext():
            await backend.aread(["news"], 0, 10)
            await backend.alatest(["news"])
            await backend.ahead()
            begun.release()
            await may_end.wait()

    before = threading.active_count()
    streams = [asyncio.ensure_future(stream()) for _ in range(100)]
    for _ in streams:
        await asyncio.wait_for(begun.acquire(), GUARD)
    # The loop's own pool has at most 32, however many streams there are.
    assert threading.active_count() - before <= 32
    may_end.set()
    await asyncio.gather(*streams)


class TestNewest:
    """What the base class makes of `latest` and `read`."""

    @pytest.fixture
    def backend(self, folder: Path) -> FolderBackend:
        backend = open_folder(folder)
        backend.append([new("seldom" if number % 97 == 0 else "often") for number in range(2000)])
        return backend

    def test_it_takes_few_reads(self, backend: FolderBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """One where the channel is as full as the log, and otherwise some for each halving; never of much at once."""
        limits: list[int] = []
        read = backend.read

        def counted(channels, after, limit):
            limits.append(limit)
            return read(channels, after, limit)

        monkeypatch.setattr(backend, "read", counted)
        # Of a channel that has all but every 97th position, and of all together.
        assert len(backend.newest(["often"], 10)) == 10
        assert len(limits) <= 4
        limits.clear()
        assert positions(backend.newest(["often", "seldom"], 10)) == list(range(1991, 2001))
        assert limits == [10]
        limits.clear()
        assert positions(backend.newest(["seldom"], 3)) == [1747, 1844, 1941]
        # To double 3 until it is 2000, and to halve that.
        assert len(limits) <= 2 * 10 + 1
        assert max(limits) == 3

    def test_what_is_published_meanwhile_is_not_among_them(
        self, backend: FolderBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are the newest of the moment of the first look, all of them, however much comes."""
        read = backend.read

        def read_while_others_publish(channels, after, limit):
            backend.append([new("seldom") for _ in range(5)])
            return read(channels, after, limit)

        monkeypatch.setattr(backend, "read", read_while_others_publish)
        assert positions(backend.newest(["seldom"], 3)) == [1747, 1844, 1941]

    def test_a_read_that_stops_early_is_gone_on_with(
        self, backend: FolderBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A log may give fewer than the limit where events are large, and says that there is more."""
        read = backend.read

        def read_two(channels, after, limit):
            return read(channels, after, min(2, limit))

        monkeypatch.setattr(backend, "read", read_two)
        assert positions(backend.newest(["seldom"], 5)) == [1553, 1650, 1747, 1844, 1941]
        assert positions(backend.newest(["seldom"], 100)) == list(range(1, 2000, 97))


# docs/backends.md


def test_the_page_shows_it_whole():
    """What stands there is what is tested here."""
    (shown,) = [block.text for block in blocks("docs/backends.md") if block.text.startswith("# shop/folder.py\n")]
    assert shown.partition("\n")[2] == Path(third_party.__file__).read_text()


@pytest.mark.slow
def test_the_page_can_be_followed(tmp_path):
    """In a new project, from top to bottom; the test that it shows is one."""
    project = Project(tmp_path)
    project.start()
    settings = project.folder / "shop" / "settings.py"
    settings.write_text(settings.read_text() + '\nINSTALLED_APPS += ["events"]\n')
    project.run("manage.py", "migrate")
    project.follow("docs/backends.md")
    read = "from events.registry import event_backends; print(event_backends['folder'].read(['kitchen'], 0, 10).events)"
    found = project.run("-c", RUNNER, "doc", stdin=read)
    assert "Two teas, one coffee" in found
    assert "Table five would like to pay" in found
    for name in ("backends/contract.py", "backends/elsewhere.py", "waiting.py"):
        copied = project.folder / "tests" / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text((ROOT / "tests" / name).read_text())
    for package in ("", "backends"):
        (project.folder / "tests" / package / "__init__.py").touch()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."),
            *("-o", "asyncio_mode=auto", "tests/backends/test_folder.py", "-k", "process or empty or tail_begins"),
        ],
        check=False,
        cwd=project.folder,
        env={**project.environment, "PYTHONPATH": f"{project.folder}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
