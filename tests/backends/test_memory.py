from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from events.backends.base import Params, Retention
from events.backends.memory import MemoryBackend
from events.exceptions import InvalidEventBackend

from .contract import backend_contract, new, next_batch


def make_memory():
    yield MemoryBackend(Params("default"))


TestContract = backend_contract(make_memory, crosses_processes=False)


class TestMemoryBackend:
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend(Params("default"))

    def test_it_knows_no_options(self) -> None:
        """An option is refused, not ignored."""
        with pytest.raises(InvalidEventBackend, match=r"'size'.*MemoryBackend knows none"):
            MemoryBackend(Params("default", {"size": 3}))

    def test_it_trims_itself_while_it_is_used(self, backend: MemoryBackend) -> None:
        """After 1,000 events what is not kept goes: memory does not grow with the process's life."""

        def keep(name: str) -> Retention:
            return Retention(events=10)

        backend.append([new() for _ in range(999)])
        backend.maintain(keep)
        assert len(backend.read(["news"], 0, 2000).events) == 999
        backend.append([new()])
        backend.maintain(keep)
        assert len(backend.read(["news"], 0, 2000).events) == 10

    def test_publishing_goes_on_when_a_loop_died_with_its_tail_open(self, backend: MemoryBackend) -> None:
        """A tail whose loop was closed under it is passed over."""

        async def leave_open() -> None:
            self.batches = backend.tail()
            await next_batch(self.batches)

        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave_open())
        loop.close()
        assert backend.append([new()])[0].id is not None

    async def test_a_closed_tail_is_forgotten(self, backend: MemoryBackend) -> None:
        """Closing the generator takes its wake-up away."""
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            assert len(backend._tails) == 1
        assert len(backend._tails) == 0

    def test_it_is_in_no_database(self, backend: MemoryBackend) -> None:
        """So publishing waits for the commit of a transaction, and is no part of it."""
        assert not backend.joins_transactions
        assert backend.database is None
