"""How a process that is told to stop ends its streams first. `tests/test_drain.py` shows it with the real servers."""

from __future__ import annotations

import asyncio
import atexit
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from django.test import override_settings

from events import draining
from events import hub as hub_module
from events.draining import SIGNALS, is_draining, watch
from events.hub import Hub, get_hub
from events.models import Channel
from events.responses import ResponseStream

from .hubs import reading
from .waiting import GUARD, until

pytestmark = pytest.mark.django_db(transaction=True)

MEMORY: dict[str, Any] = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}


@pytest.fixture(autouse=True)
def site(transactional_db):
    Channel.objects.create(name="news", access="public")
    with override_settings(EVENTS=MEMORY):
        yield


class Server:
    """What a server does when it is told to stop: it notes what was open then."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def stop(self, number: int, frame: Any) -> None:
        self.told.append((number, sum(len(hub.streams) for _, hub in hub_module.hubs())))


@pytest.fixture
def server():
    """A server that has set its handlers, as each does before it serves. Afterwards all are as they were."""
    server = Server()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    known = dict(draining._State.before)
    draining._State.before.clear()
    for number in SIGNALS:
        signal.signal(number, server.stop)
    yield server
    for number, handler in before.items():
        signal.signal(number, handler)
    draining._State.before.clear()
    draining._State.before.update(known)


class TestSignals:
    @pytest.mark.parametrize("number", SIGNALS)
    async def test_streams_end_before_the_server_hears_of_it(self, server: Server, number: int) -> None:
        """Each with a retry; the server is told the same signal, when the last one is gone, and once."""  # promise 10
        async with reading(get_hub()) as one, reading(get_hub()) as two:
            rests = [asyncio.ensure_future(reader.rest()) for reader in (one, two)]
            await until(lambda: one.stream._waiter is not None and two.stream._waiter is not None)
            signal.raise_signal(number)
            assert server.told == []
            assert is_draining()
            for text in await asyncio.wait_for(asyncio.gather(*rests), GUARD):
                assert text.count(b"retry: ") == 2
            await until(lambda: server.told)
        assert server.told == [(number, 0)]
        await until(lambda: not draining._State.tasks)

    async def test_a_second_signal_is_the_servers_at_once(self, server: Server) -> None:
        """Who presses Ctrl-C twice does not want to wait."""
        async with reading(get_hub()) as reader:
            # Its client takes nothing: the drain waits for it.
            signal.raise_signal(signal.SIGTERM)
            assert server.told == []
            signal.raise_signal(signal.SIGTERM)
            assert server.told == [(signal.SIGTERM, 1)]
            await reader.rest()
            await until(lambda: len(server.told) == 2)

    async def test_without_streams_the_server_hears_it_at_once(self, server: Server) -> None:
        """And who comes now is sent away."""
        watch()
        signal.raise_signal(signal.SIGTERM)
        assert server.told == [(signal.SIGTERM, 0)]
        assert is_draining()

    def test_without_a_loop_the_server_hears_it_at_once(self, server: Server) -> None:
        """A process that has served, and has nothing to end."""
        watch()
        signal.raise_signal(signal.SIGINT)
        assert server.told == [(signal.SIGINT, 0)]

    async def test_a_client_that_takes_nothing_does_not_hold_up_the_server(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is waited for a moment."""  # promise 10
        monkeypatch.setattr(hub_module, "DRAIN_PATIENCE", 0.05)
        monkeypatch.setattr(draining, "DRAIN_PATIENCE", 0.05)
        stream = ResponseStream(get_hub(), ("news",))

        async def stalls() -> None:
            async for _ in stream.chunks():
                await asyncio.Event().wait()

        task = asyncio.ensure_future(stalls())
        await until(lambda: stream._waits_since is not None)
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: server.told)
        assert server.told == [(signal.SIGTERM, 0)]
        task.cancel()
        await asyncio.wait([task])

    async def test_handlers_that_a_server_sets_anew_are_stood_before_again(self, server: Server) -> None:
        """A reload does so; the newest is the one that counts."""
        watch()
        other = Server()
        signal.signal(signal.SIGTERM, other.stop)
        async with reading(get_hub()) as reader:
            signal.raise_signal(signal.SIGTERM)
            await reader.rest()
            await until(lambda: other.told)
        assert (server.told, other.told) == ([], [(signal.SIGTERM, 0)])

    async def test_each_stream_looks_and_none_stands_before_itself(self, server: Server) -> None:
        """However many there were."""
        async with reading(get_hub()), reading(get_hub()), reading(get_hub()):
            for number in SIGNALS:
                assert signal.getsignal(number) == draining._on_signal
            assert draining._State.before == dict.fromkeys(SIGNALS, server.stop)

    @pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
    async def test_what_is_not_a_function_is_left_alone(self, server: Server, handler: signal.Handlers) -> None:
        """A signal that ends the process at once, or is ignored, stays so."""
        signal.signal(signal.SIGTERM, handler)
        watch()
        assert signal.getsignal(signal.SIGTERM) == handler
        assert signal.SIGTERM not in draining._State.before

    def test_a_process_that_goes_on_takes_streams_again(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """A handler may do something else than to stop: after a while all is as before."""
        now = [100.0]
        monkeypatch.setattr(draining, "time", SimpleNamespace(monotonic=lambda: now[0]))
        watch()
        assert not is_draining()
        signal.raise_signal(signal.SIGTERM)
        assert is_draining()
        now[0] += draining.LASTS - 0.1
        assert is_draining()
        now[0] += 0.1
        assert not is_draining()

    async def test_a_handler_of_the_event_loop_is_called_too(self, server: Server) -> None:
        """`loop.add_signal_handler`, as hypercorn's: it learns of the signal by itself."""
        loop = asyncio.get_running_loop()
        called = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, called.set)
        try:
            async with reading(get_hub()) as reader:
                signal.raise_signal(signal.SIGTERM)
                text = await asyncio.wait_for(reader.rest(), GUARD)
                await asyncio.wait_for(called.wait(), GUARD)
            assert text.count(b"retry: ") == 2
            await until(lambda: not draining._State.tasks)
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    async def test_a_server_that_has_stopped_meanwhile(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """And has taken its handlers away: the signal is not raised again, which would end the process on the spot."""
        raised: list[int] = []
        async with reading(get_hub()) as reader:
            signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # The real one would end the tests.
            monkeypatch.setattr(signal, "raise_signal", raised.append)
            await reader.rest()
            await until(lambda: draining._State.tasks)
            await until(lambda: not draining._State.tasks)
        assert raised == []


class TestDrain:
    async def test_it_waits_until_they_are_gone(self) -> None:
        """And gives the server some turns to write."""
        async with reading(get_hub()) as reader:
            task = asyncio.ensure_future(reader.rest())
            await draining.drain()
            assert get_hub().streams == set()
            assert (await task).count(b"retry: ") == 2

    async def test_without_streams_it_waits_for_nothing(self) -> None:
        """Nor without a hub."""
        await asyncio.wait_for(draining.drain(), 1)
        get_hub()
        await asyncio.wait_for(draining.drain(), 1)
        assert is_draining()

    async def test_streams_of_other_loops_end_but_are_not_waited_for(self) -> None:
        """Their loops see to them."""
        async with elsewhere() as other:
            await draining.drain()
            await asyncio.to_thread(other.ended.wait, GUARD)
            assert other.body.count(b"retry: ") == 2


class Elsewhere:
    """A stream on a loop on another thread, as with Django's development server."""

    def __init__(self) -> None:
        self.body = b""
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self.read()))

    async def read(self) -> None:
        self.loop = asyncio.get_running_loop()
        stopped = self.stopped = asyncio.Event()
        async for chunk in ResponseStream(get_hub(), ("news",)).chunks():
            self.body += chunk
            self.begun.set()
        self.ended.set()
        # The loop runs on, as a server's.
        await stopped.wait()

    async def __aenter__(self) -> Elsewhere:
        self.thread.start()
        await asyncio.to_thread(self.begun.wait, GUARD)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()
        await asyncio.to_thread(self.thread.join, GUARD)

    def close(self) -> None:
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.stopped.set)


def elsewhere() -> Elsewhere:
    return Elsewhere()


class TestExit:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch):
        """What is to be called at exit."""
        found: list[Any] = []
        monkeypatch.setattr(draining, "atexit", SimpleNamespace(register=found.append))
        monkeypatch.setattr(draining._State, "is_at_exit", False)
        return found

    async def test_streams_of_another_thread_end_when_the_process_does(self, registered: list[Any]) -> None:
        """Signals are not seen there: the interpreter's end is."""
        async with elsewhere() as one, elsewhere() as two:
            assert registered == [draining._on_exit]
            await asyncio.to_thread(draining._on_exit)
            for other in (one, two):
                assert other.ended.is_set()
                assert other.body.count(b"retry: ") == 2

    async def test_the_main_threads_need_nothing_at_exit(self, registered: list[Any], server: Server) -> None:
        """They have the signal."""
        async with reading(get_hub()):
            assert registered == []

    async def test_a_loop_that_does_nothing_more_is_not_waited_for_without_end(
        self, registered: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The interpreter ends all the same."""
        monkeypatch.setattr(draining, "DRAIN_PATIENCE", 0.05)
        release = threading.Event()
        async with elsewhere() as other:
            assert other.loop is not None
            other.loop.call_soon_threadsafe(release.wait)
            await asyncio.wait_for(asyncio.to_thread(draining._on_exit), GUARD)
            assert not other.ended.is_set()
            release.set()
            await asyncio.to_thread(other.ended.wait, GUARD)

    def test_it_is_what_the_interpreter_calls(self) -> None:
        """The real one, in a process of its own: a thread's stream has its farewell before the process is gone."""
        code = """
import asyncio, sys, threading
import django; django.setup()
from django.conf import settings
settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}
from events.channels import channel_table
channel_table.find = lambda name: None
from events.hub import get_hub
from events.responses import ResponseStream
begun = threading.Event()

async def read():
    async for chunk in ResponseStream(get_hub(), ("news",)).chunks():
        sys.stdout.write(chunk.decode())
        sys.stdout.flush()
        begun.set()

threading.Thread(target=lambda: asyncio.run(read()), daemon=True).start()
begun.wait(10)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("retry: ") == 2


def test_atexit_is_the_interpreters() -> None:
    """The tests above put another in its place."""
    assert vars(draining)["atexit"] is atexit


def test_a_child_process_is_not_told_to_stop() -> None:
    """What its parent was told is the parent's; its own signal counts."""
    code = """
import os, signal
import django; django.setup()
from events import draining
told = []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
draining.watch()
signal.raise_signal(signal.SIGTERM)
assert draining.is_draining() and told == [signal.SIGTERM]
child = os.fork()
if not child:
    fine = not draining.is_draining()
    signal.raise_signal(signal.SIGTERM)
    os._exit(0 if fine and draining.is_draining() and len(told) == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert draining.is_draining()
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


async def test_a_hub_says_when_it_is_empty() -> None:
    """Or that it waited long enough."""
    hub = get_hub()
    await asyncio.wait_for(hub.wait_empty(0), 1)
    async with reading(hub):
        await hub.wait_empty(0.01)
        assert len(hub.streams) == 1
        waiting = asyncio.ensure_future(hub.wait_empty(GUARD))
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, GUARD)
    assert isinstance(hub, Hub)
