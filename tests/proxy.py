"""A TCP proxy that can lose what passes through it, as a network does that drops packets."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from typing_extensions import Self

T = TypeVar("T")

#: Seconds for the proxy to do what it is told.
PATIENCE = 10


class Link:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(self) -> None:
        #: From now on nothing of it arrives, in either direction.
        self.is_cut = False
        self.writers: list[asyncio.StreamWriter] = []

    def reset(self) -> None:
        """End both connections with a reset, dropping what is under way."""
        for writer in self.writers:
            if (sock := writer.get_extra_info("socket")) is not None:
                with suppress(OSError):
                    # No lingering: what would be an orderly end becomes a reset.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """
    Passes connections to `port` on to `target_port` of 127.0.0.1, on a thread of its own.

    with Proxy(engine.port) as proxy:
        proxy.cut()
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self._links: set[Link] = set()
        self._is_cut = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def cut(self) -> None:
        """
        From now on swallow all bytes, in both directions, of open connections and of new ones.

        Nothing is closed and new connections are accepted: neither end is told anything, not even that the other one
        has closed.
        """
        self._run(self._set_cut(True))

    def heal(self) -> None:
        """Let new connections work. Those that were cut stay dead."""
        self._run(self._set_cut(False))

    def close_all(self) -> None:
        """Reset every connection, so that both ends see it at once."""
        self._run(self._reset_all())

    # On the proxy's own thread

    def _run(self, doing: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(PATIENCE)

    async def _set_cut(self, is_cut: bool) -> None:
        self._is_cut = is_cut
        if is_cut:
            for link in self._links:
                link.is_cut = True

    async def _reset_all(self) -> None:
        for link in tuple(self._links):
            link.reset()
            self._links.discard(link)

    async def _stop(self) -> None:
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        # A connection that was just accepted becomes a link first: the server would lose it.
        await self._go_round()
        self._server.close()
        await self._reset_all()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # What was reset is closed a turn of the loop later.
        await self._go_round()

    async def _go_round(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link()
        link.is_cut = self._is_cut
        link.writers.append(writer)
        self._links.add(link)
        task = self._loop.create_task(self._swallow(reader) if link.is_cut else self._pass_on(link, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            # Nobody listens there: the client is to see what it would see without us.
            link.reset()
            self._links.discard(link)
            return
        link.writers.append(to_writer)
        await asyncio.gather(self._pump(link, reader, to_writer), self._pump(link, to_reader, writer))

    async def _pump(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if not link.is_cut:
                    writer.write(data)
                    await writer.drain()
        if not link.is_cut:
            writer.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while await reader.read(65_536):
                pass
