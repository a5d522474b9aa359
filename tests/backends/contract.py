"""
What every log must do, written once as a function of a factory.

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self): return MyBackend(Params("default", {}))
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest  # noqa: TC002 - pytest reads the annotations of what it calls

from events.backends.base import Batch, NewEvent, Retention, StoredEvent
from events.wire import Cursor
from tests.waiting import GUARD

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from events.backends.base import BaseEventBackend


def new(channel: str = "news", data: str = "x", **kwargs) -> NewEvent:
    return NewEvent(channel=channel, data=data, **kwargs)


def positions(events) -> list[int]:
    return [event.position for event in events]


async def next_batch(batches: AsyncGenerator[Batch, None]) -> Batch:
    return await asyncio.wait_for(anext(batches), GUARD)


async def collect(batches: AsyncGenerator[Batch, None], count: int) -> list[StoredEvent]:
    """The next `count` events of a tail."""
    found: list[StoredEvent] = []
    while len(found) < count:
        found += (await next_batch(batches)).events
    return found


class BackendContract:
    """Sub-class it, give it a `backend` fixture, and every test below runs against that."""

    def test_an_empty_log_stands_at_zero(self, backend: BaseEventBackend) -> None:
        """The head of an empty log is position 0 of some epoch, the same at each look."""
        head = backend.head()
        assert head.position == 0
        assert Cursor.parse(str(head)) == head
        assert backend.head() == head

    def test_positions_count_up_over_all_channels(self, backend: BaseEventBackend) -> None:
        """One sequence numbers the events of all channels, without holes, in the order of publishing."""
        first = backend.append([new("a"), new("b")])
        second = backend.append([new("a")])
        epoch = backend.head().epoch
        assert [event.id for event in [*first, *second]] == [f"{epoch}-{position}" for position in (1, 2, 3)]
        assert backend.head() == Cursor(epoch, 3)

    def test_nothing_is_a_fine_thing_to_append(self, backend: BaseEventBackend) -> None:
        """Appending no events does nothing."""
        assert backend.append([]) == []
        assert backend.head().position == 0

    def test_an_event_is_read_as_it_was_written(self, backend: BaseEventBackend) -> None:
        """Type, data, kind of data and channel come back equal, text beyond ASCII too."""
        text = "é😀\u2028\r\n tab\t"
        backend.append([new("a", text, type="alert"), new("a", '{"x":1}', is_json=True)])
        events = backend.read(["a"], 0, 10).events
        assert [(event.channel, event.type, event.data, event.is_json) for event in events] == [
            ("a", "alert", text, False),
            ("a", "message", '{"x":1}', True),
        ]
        assert events[0].created_at > 1_700_000_000

    def test_read_gives_only_what_was_asked_for(self, backend: BaseEventBackend) -> None:
        """Only these channels, only above the position, in order, up to the limit, and whether there is more."""
        backend.append([new(channel) for channel in "abcabcabc"])
        found = backend.read(["a", "c"], 1, 3)
        assert positions(found.events) == [3, 4, 6]
        assert found.more
        assert found.head.position == 9
        found = backend.read(["a", "c"], 6, 3)
        assert positions(found.events) == [7, 9]
        assert not found.more

    def test_read_below_everything_is_read_from_the_oldest(self, backend: BaseEventBackend) -> None:
        """-1 asks for all that is kept."""
        backend.append([new(), new()])
        assert positions(backend.read(["news"], -1, 10).events) == [1, 2]

    def test_latest_finds_each_channels_newest(self, backend: BaseEventBackend) -> None:
        """The newest event of each channel that has one."""
        backend.append([new("a", "1"), new("b", "2"), new("a", "3")])
        assert {name: event.data for name, event in backend.latest(["a", "b", "c"]).items()} == {"a": "3", "b": "2"}

    def test_a_repeated_key_gives_the_first_event(self, backend: BaseEventBackend) -> None:
        """A key is good for one event of its channel; the repeat is the first event's cursor and says so."""
        first = backend.append([new(key="k", type="alert")])[0]
        again, other = backend.append([new(key="k", data="other"), new("elsewhere", key="k")])
        assert (again.id, again.event, again.repeated) == (first.id, "alert", True)
        assert not first.repeated
        assert not other.repeated
        assert backend.head().position == 2

    def test_a_key_repeats_within_one_append(self, backend: BaseEventBackend) -> None:
        """The same key twice in one call is one event."""
        one, two = backend.append([new(key="k"), new(key="k")])
        assert one.id == two.id
        assert backend.head().position == 1

    def test_a_key_outlives_its_event(self, backend: BaseEventBackend) -> None:
        """Trimming an event does not let its key be used again."""
        first = backend.append([new(key="k")])[0]
        backend.clear(["news"])
        again = backend.append([new(key="k")])[0]
        assert again.repeated
        assert again.id == first.id

    def test_a_key_expires(self, backend: BaseEventBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """After five minutes a key publishes again."""
        first = backend.append([new(key="k"), new(key="other")])[0]
        later = __import__("time").time() + 301
        monkeypatch.setattr("time.time", lambda: later)
        again = backend.append([new(key="k")])[0]
        assert not again.repeated
        assert again.id != first.id

    def test_trimming_by_count_keeps_the_newest(self, backend: BaseEventBackend) -> None:
        """Each channel keeps as many as it says, and its floor says what went."""
        backend.append([new("a") for _ in range(5)] + [new("b") for _ in range(5)])
        assert backend.trim(lambda name: Retention(events=2 if name == "a" else None)) == 3
        found = backend.read(["a", "b"], 0, 100)
        assert positions(found.events) == [4, 5, 6, 7, 8, 9, 10]
        assert found.floors == {"a": 3}
        assert backend.trim(lambda name: Retention(events=2 if name == "a" else None)) == 0

    def test_trimming_by_age_keeps_the_young(self, backend: BaseEventBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is older than a channel keeps goes."""
        time = __import__("time")
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now - 100)
        backend.append([new(), new()])
        monkeypatch.setattr("time.time", lambda: now)
        backend.append([new()])
        assert backend.trim(lambda name: Retention(seconds=50)) == 2
        found = backend.read(["news"], 0, 10)
        assert positions(found.events) == [3]
        assert found.floors == {"news": 2}

    def test_trimming_a_lot_leaves_no_more_than_is_kept(self, backend: BaseEventBackend) -> None:
        """More events than fit in one chunk go too."""
        backend.append([new() for _ in range(1203)])
        assert backend.trim(lambda name: Retention(events=1)) == 1202
        found = backend.read(["news"], 0, 10)
        assert positions(found.events) == [1203]
        assert found.floors == {"news": 1202}

    def test_clear_empties_only_its_channels(self, backend: BaseEventBackend) -> None:
        """Clearing removes all of a channel and raises its floor; positions go on."""
        backend.append([new("a"), new("b"), new("a")])
        assert backend.clear(["a"]) == 2
        found = backend.read(["a", "b"], 0, 10)
        assert [event.channel for event in found.events] == ["b"]
        assert found.floors == {"a": 3}
        assert backend.append([new("a")])[0].id == f"{backend.head().epoch}-4"

    def test_threads_publish_without_losing_or_doubling(self, backend: BaseEventBackend) -> None:
        """8 threads at once: every event once, every position once, each thread's own in order."""

        def publish(thread: int) -> None:
            for number in range(25):
                backend.append([new(data=f"{thread} {number}")])
            if hasattr(backend, "database"):
                from django.db import connections

                connections.close_all()

        threads = [threading.Thread(target=publish, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        events = backend.read(["news"], 0, 1000).events
        assert positions(events) == list(range(1, 201))
        for index in range(8):
            own = [event.data for event in events if event.data.startswith(f"{index} ")]
            assert own == [f"{index} {number}" for number in range(25)]

    async def test_the_tail_begins_at_the_head(self, backend: BaseEventBackend) -> None:
        """The first batch is empty and says where the log stands; what came before is not in the tail."""
        await backend.aappend([new()])
        async with aclosing(backend.tail()) as batches:
            first = await next_batch(batches)
            assert list(first.events) == []
            assert first.head == await backend.ahead()

    async def test_the_tail_brings_what_is_appended(self, backend: BaseEventBackend) -> None:
        """Events of all channels come in position order, and the head with them."""
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new("a"), new("b")])
            await backend.aappend([new("c")])
            assert [event.channel for event in await collect(batches, 3)] == ["a", "b", "c"]

    async def test_the_tail_brings_more_than_one_batch_can_hold(self, backend: BaseEventBackend) -> None:
        """1,203 events at once come through, in order, none twice."""
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new() for _ in range(1203)])
            assert positions(await collect(batches, 1203)) == list(range(1, 1204))

    async def test_two_tails_each_get_everything(self, backend: BaseEventBackend) -> None:
        """Tails do not take events from each other."""
        async with aclosing(backend.tail()) as one, aclosing(backend.tail()) as two:
            await next_batch(one)
            await next_batch(two)
            await backend.aappend([new(), new()])
            assert positions(await collect(one, 2)) == positions(await collect(two, 2)) == [1, 2]

    async def test_async_twins_do_the_same(self, backend: BaseEventBackend) -> None:
        """Each blocking method has a twin that does not block."""
        published = await backend.aappend([new(data="hello")])
        assert published[0].id == str(await backend.ahead())
        assert [event.data for event in (await backend.aread(["news"], 0, 10)).events] == ["hello"]
        assert (await backend.alatest(["news"]))["news"].data == "hello"
