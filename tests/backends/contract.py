"""
What every log must do, written once as a function of a factory.

    def make_mine(tmp_path):
        backend = MyBackend(Params("default", {"folder": tmp_path}))
        yield backend
        backend.close()

    TestMyBackend = backend_contract(make_mine)

A factory is written like a fixture: it may ask for other fixtures, yields a backend with an empty log, and cleans up.
"""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import os
import random
import select
import sys
import threading
import time
import traceback
import warnings
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from django.db import connections

from events.backends.base import CONTROL_CHANNEL, BaseEventBackend, Batch, NewEvent, Retention, StoredEvent
from events.wire import MAX_KEY, Cursor
from tests.waiting import GUARD

from .elsewhere import Elsewhere, job

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from contextlib import AbstractContextManager

#: Seconds for what many threads or processes do together.
LONG_GUARD = 45


def new(channel: str = "news", data: str = "x", **kwargs) -> NewEvent:
    return NewEvent(channel=channel, data=data, **kwargs)


def positions(events) -> list[int]:
    return [event.position for event in events]


async def next_batch(batches: AsyncGenerator[Batch, None], timeout: float = GUARD) -> Batch:
    batch = await asyncio.wait_for(anext(batches), timeout)
    # What a hub counts on: in order, and none beyond the head that comes with them.
    assert positions(batch.events) == sorted(set(positions(batch.events)))
    assert not batch.events or batch.events[-1].position <= batch.head.position
    return batch


async def collect(batches: AsyncGenerator[Batch, None], count: int, timeout: float = GUARD) -> list[StoredEvent]:
    """The next `count` events of a tail."""
    found: list[StoredEvent] = []
    while len(found) < count:
        found += (await next_batch(batches, timeout)).events
    return found


class Follower(threading.Thread):
    """Follows the log on a thread and an event loop of its own, from before this is made until `count` events came."""

    def __init__(self, backend: BaseEventBackend, count: int) -> None:
        super().__init__(name="follower", daemon=True)
        self.backend = backend
        self.count = count
        self.head: Cursor | None = None
        self.found: list[StoredEvent] = []
        self.error: BaseException | None = None
        self.stands = threading.Event()
        self.start()
        assert self.stands.wait(LONG_GUARD)

    def run(self) -> None:
        try:
            asyncio.run(self._follow())
        except BaseException as error:
            self.error = error
        finally:
            self.stands.set()
            connections.close_all()

    async def _follow(self) -> None:
        async with aclosing(self.backend.tail()) as batches:
            self.head = (await next_batch(batches)).head
            self.stands.set()
            while len(self.found) < self.count:
                self.found += (await next_batch(batches, LONG_GUARD)).events

    def events(self) -> list[StoredEvent]:
        """What came, once all of it has."""
        self.join(LONG_GUARD)
        assert not self.is_alive(), f"{len(self.found)} of {self.count} came"
        if self.error is not None:
            raise self.error
        return self.found


def in_threads(*functions: Callable[[], object]) -> list[Any]:
    """Run all at once, each on a thread of its own, and return what they return. Raises what one raises."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(index: int, function: Callable[[], object]) -> None:
        try:
            results[index] = function()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_GUARD)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results


async def off_loop(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what blocks on another thread, which leaves no connection of Django's behind."""

    def call() -> Any:
        try:
            return function(*arguments)
        finally:
            connections.close_all()

    return await asyncio.to_thread(call)


def in_forked_child(function: Callable[[], object]) -> None:
    """Run in a child of this process, forked as servers and task queues fork. Raises if it raises there."""
    # What they do before: connections of Django's are not shared between processes.
    connections.close_all()
    ours, its = os.pipe()
    with warnings.catch_warnings():
        # From 3.12 on Python warns where there are threads; that it works all the same is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            # Where it is, if it hangs.
            faulthandler.dump_traceback_later(GUARD * 0.8, file=sys.__stderr__ or sys.stderr)
            function()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    os.close(its)
    try:
        # The other end closes with the child.
        ended, _, _ = select.select([ours], [], [], GUARD)
        if not ended:
            os.kill(child, 9)
    finally:
        os.close(ours)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, "the child hung" if code == -9 else f"the child's exit code is {code}"


def backend_contract(
    factory: Callable[..., Iterator[BaseEventBackend] | AbstractContextManager[BaseEventBackend]],
    *,
    crosses_processes: bool = True,
) -> type[BackendContract]:
    """
    The tests that a log must pass, as a class for pytest to collect.

    `factory` is a generator function that yields the backend once, or a function that returns a context manager; its
    arguments are names of fixtures. `crosses_processes` is what the backend says of itself: without it the tests
    that need other processes are left out.
    """
    opened: Callable[..., Any] = contextmanager(factory) if inspect.isgeneratorfunction(factory) else factory
    says = crosses_processes

    class Contract(SharedLogContract if crosses_processes else BackendContract):  # type: ignore[misc]
        crosses_processes = says

        @pytest.fixture
        def backend(self, request: pytest.FixtureRequest) -> Iterator[BaseEventBackend]:
            fixtures = {name: request.getfixturevalue(name) for name in inspect.signature(factory).parameters}
            with opened(**fixtures) as backend:
                yield backend

    return Contract


class BackendContract:
    """What every log does. See `backend_contract`."""

    crosses_processes = True

    def test_it_says_how_far_it_reaches(self, backend: BaseEventBackend) -> None:
        """Whether its events reach other processes is known of a log."""
        assert backend.crosses_processes is self.crosses_processes

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

    def test_newest_are_the_last_of_all_channels_together(self, backend: BaseEventBackend) -> None:
        """Of these channels and no other, as they were written, at most so many, in position order."""
        backend.append([new(channel, str(number)) for number, channel in enumerate("abcabcabc", 1)])
        assert [(event.position, event.channel, event.data) for event in backend.newest(["a", "c", "none"], 3)] == [
            (6, "c", "6"),
            (7, "a", "7"),
            (9, "c", "9"),
        ]
        assert positions(backend.newest(["a"], 100)) == [1, 4, 7]
        # The same one twice is one.
        assert positions(backend.newest(["a", "a"], 2)) == [4, 7]
        assert list(backend.newest(["none"], 3)) == list(backend.newest([], 3)) == []
        assert list(backend.newest(["a"], 0)) == list(backend.newest(["a"], -1)) == []

    def test_the_newest_one_is_the_latest(self, backend: BaseEventBackend) -> None:
        """`newest` and `latest` agree, in every field."""
        assert list(backend.newest(["a"], 1)) == []
        backend.append([new("a", "é", type="alert"), new("b", '{"x":1}', is_json=True), new("c")])
        for name in "abc":
            assert list(backend.newest([name], 1)) == [backend.latest([name])[name]]
        assert list(backend.newest(["b", "a"], 1)) == [backend.latest(["b"])["b"]]

    def test_newest_of_many_channels_however_seldom_they_have_an_event(self, backend: BaseEventBackend) -> None:
        """The same as the end of all that is kept, for channels that are full, empty, and in between."""
        chance = random.Random(7)
        often = ["often"] * 60 + ["now-and-then"] * 5 + [f"seldom.{number}" for number in range(120)]
        backend.append([new("once")])
        backend.append([new(chance.choice(often), str(number)) for number in range(1500)])
        seldom = [name for name in often if name.startswith("seldom")]
        for names in (["once"], ["once", "often"], ["now-and-then"], ["now-and-then", "often"], seldom, often):
            for limit in (1, 2, 7, 50, 400, 2000):
                expected = backend.read(set(names), -1, 2000).events[-limit:]
                assert list(backend.newest(names, limit)) == list(expected), (names[0], limit)

    def test_newest_has_nothing_that_is_not_kept(self, backend: BaseEventBackend) -> None:
        """Neither what was trimmed nor what was cleared; what follows is there."""
        backend.append([new(channel) for channel in "abab"] + [new("c") for _ in range(5)])
        backend.trim(lambda name: Retention(events=1 if name == "a" else 3))
        assert positions(backend.newest("abc", 100)) == [2, 3, 4, 7, 8, 9]
        backend.clear(["c"])
        assert positions(backend.newest("abc", 100)) == [2, 3, 4]
        assert positions(backend.newest("abc", 2)) == [3, 4]
        backend.append([new("c")])
        assert positions(backend.newest("abc", 2)) == [4, 10]

    def test_newest_of_large_events(self, backend: BaseEventBackend) -> None:
        """Never none, and always the last ones; a log may give fewer than asked for where they are large."""
        backend.append([new(data=f"{number}" + "x" * 600_000) for number in range(6)])
        found = positions(backend.newest(["news"], 5))
        assert found
        assert found == [2, 3, 4, 5, 6][-len(found) :]

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
        later = time.time() + 301
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

        in_threads(*(partial(publish, thread) for thread in range(8)))
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

    # What is in the log

    def test_it_lists_its_channels(self, backend: BaseEventBackend) -> None:
        """Those that have events, in order, once each; a channel that was emptied is not among them."""
        assert backend.channels() == []
        backend.append([new("b"), new("a"), new("b")])
        assert backend.channels() == ["a", "b"]
        backend.clear(["a"])
        assert backend.channels() == ["b"]
        backend.trim(lambda name: Retention(events=0))
        assert backend.channels() == []

    def test_names_and_keys_are_told_apart_by_case(self, backend: BaseEventBackend) -> None:
        """`News` is not `news`, whatever an engine thinks of letters; nor are keys alike that nearly are."""
        backend.append([new("news", "1"), new("News", "2")])
        assert [event.data for event in backend.read(["news"], 0, 10).events] == ["1"]
        assert [event.data for event in backend.read(["News"], 0, 10).events] == ["2"]
        assert backend.latest(["news"])["news"].data == "1"
        assert backend.channels() == ["News", "news"]
        published = backend.append([new(key=key) for key in ("k", "K", "k ", "ḱ", "k" * MAX_KEY)])
        assert [event.repeated for event in published] == [False] * 5
        assert backend.clear(["news"]) == 6
        assert backend.channels() == ["News"]

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param("", id="empty"),
            pytest.param(" x ", id="blanks"),
            pytest.param("a\x00b", id="nul"),
            pytest.param("é" * 131_072, id="256-KiB"),
            pytest.param("".join(map(chr, [*range(1, 0x20), 0x7F, 0x85, 0xFEFF, 0xFFFF, 0x10FFFF])), id="odd"),
            pytest.param("\\ ' \" % %s ? $1 :x \\x00 {}", id="of-SQL"),
        ],
    )
    async def test_any_text_comes_back_equal(self, backend: BaseEventBackend, data: str) -> None:
        """By read and by tail alike."""  # promise 17
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new(data=data)])
            assert [event.data for event in await collect(batches, 1)] == [data]
        assert [event.data for event in (await backend.aread(["news"], 0, 1)).events] == [data]
        assert (await backend.alatest(["news"]))["news"].data == data

    def test_what_a_channel_keeps_is_there_between_trims(self, backend: BaseEventBackend) -> None:
        """`keep` lets a log drop older events at once, but never one of those that are kept."""
        for number in range(30):
            backend.append([new("a", str(number), keep=10), new("b", str(number))])
        everything = backend.read(["a", "b"], 0, 100)
        kept = [event for event in everything.events if event.channel == "a"]
        assert [event.data for event in kept[-10:]] == [str(number) for number in range(20, 30)]
        assert len(everything.events) - len(kept) == 30
        assert everything.floors.get("a", 0) < kept[0].position
        assert "b" not in everything.floors
        backend.trim(lambda name: Retention(events=10 if name == "a" else None))
        after = backend.read(["a"], 0, 100)
        assert [event.data for event in after.events] == [str(number) for number in range(20, 30)]
        assert after.floors["a"] == after.events[0].position - 2

    async def test_control_events_travel_and_are_not_listed(self, backend: BaseEventBackend) -> None:
        """They have positions like all others and come through the tail; no list of channels names theirs."""
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new("a"), new(CONTROL_CHANNEL, '{"do":"drain"}', type="drain", is_json=True)])
            await backend.aappend([new("b")])
            events = await collect(batches, 3)
        assert positions(events) == [1, 2, 3]
        control = events[1]
        assert (control.channel, control.type, control.data, control.is_json) == (
            CONTROL_CHANNEL,
            "drain",
            '{"do":"drain"}',
            True,
        )
        assert await off_loop(backend.channels) == ["a", "b"]
        assert (await backend.ahead()).position == 3

    def test_control_events_are_not_kept_for_ever(self, backend: BaseEventBackend) -> None:
        """Nobody lists their channel, but whoever trims is asked about it too, unless the log keeps none of them."""
        backend.append([new(CONTROL_CHANNEL), new("a"), new(CONTROL_CHANNEL)])
        backend.trim(lambda name: Retention(events=0 if name == CONTROL_CHANNEL else None))
        assert positions(backend.read([CONTROL_CHANNEL, "a"], 0, 10).events) == [2]

    # Several at once

    def test_one_key_from_many_threads_is_one_event(self, backend: BaseEventBackend) -> None:
        """8 threads publish with the same key at the same moment: one event, whose cursor all of them get."""
        for turn in range(5):
            together = threading.Barrier(8)

            def publish(number: int, turn: int = turn, together: threading.Barrier = together):
                together.wait(GUARD)
                return backend.append([new(data=str(number), key=f"k{turn}")])[0]

            published = in_threads(*(partial(publish, number) for number in range(8)))
            assert [event.repeated for event in published].count(False) == 1
            assert len({event.id for event in published}) == 1
        assert positions(backend.read(["news"], 0, 100).events) == [1, 2, 3, 4, 5]

    def test_a_tail_that_opens_while_others_publish_misses_nothing(self, backend: BaseEventBackend) -> None:
        """From the head that it says first, it has every event."""  # promise 3
        published = threading.Event()

        def publish() -> None:
            for number in range(200):
                backend.append([new(data=str(number))])
                published.set()

        def follow() -> None:
            assert published.wait(GUARD)
            asyncio.run(open_and_follow())

        async def open_and_follow() -> None:
            for _ in range(3):
                async with aclosing(backend.tail()) as batches:
                    head = (await next_batch(batches)).head.position
                    found = positions(await collect(batches, min(20, 200 - head))) if head < 200 else []
                    assert found == list(range(head + 1, head + 1 + len(found)))

        in_threads(publish, follow)

    def test_tails_on_several_loops_each_get_everything(self, backend: BaseEventBackend) -> None:
        """One process may have several event loops, each on a thread of its own."""
        followers = [Follower(backend, 100) for _ in range(3)]
        in_threads(*(partial(backend.append, [new(data=f"{thread}")] * 25) for thread in range(4)))
        first, *others = [follower.events() for follower in followers]
        assert positions(first) == list(range(1, 101))
        assert [event.data for event in first] == [event.data for event in backend.read(["news"], 0, 100).events]
        assert all(events == first for events in others)

    async def test_a_slow_tail_loses_nothing(self, backend: BaseEventBackend) -> None:
        """Who takes nothing for a while gets all of it later, in order."""
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            for start in range(0, 3000, 100):
                await backend.aappend([new(data=str(start + number)) for number in range(100)])
            # 3,000 events wait, and one more comes while they are taken.
            found = await collect(batches, 1)
            await backend.aappend([new(data="3000")])
            found += await collect(batches, 3001 - len(found))
        assert positions(found) == list(range(1, 3002))
        assert [event.data for event in found] == [str(number) for number in range(3001)]

    def test_closing_a_tail_leaves_nothing_behind(self, backend: BaseEventBackend) -> None:
        """No thread, no task and no open file, whether it was closed while it waited or in between."""  # promise 14

        async def open_and_close() -> None:
            tasks = asyncio.all_tasks()
            tail = backend.tail()
            await next_batch(tail)
            await tail.aclose()
            tail = backend.tail()
            await next_batch(tail)
            await backend.aappend([new()])
            await collect(tail, 1)
            waits = asyncio.ensure_future(next_batch(tail))
            await asyncio.sleep(0)
            # As a hub does.
            waits.cancel()
            with suppress(asyncio.CancelledError):
                await waits
            await tail.aclose()
            if left := asyncio.all_tasks() - tasks:
                # What is ending may end; what is not is waited for in vain.
                _, left = await asyncio.wait(left, timeout=GUARD)
            assert left == set()

        def threads_that_stay(before: set[threading.Thread]) -> set[threading.Thread]:
            new_ones = set(threading.enumerate()) - before
            for thread in new_ones:
                thread.join(GUARD)
            return {thread for thread in new_ones if thread.is_alive()}

        def cycle() -> None:
            asyncio.run(asyncio.wait_for(open_and_close(), LONG_GUARD))
            backend.close()

        # The first one leaves what stays for good: the thread of `sync_to_async`, and what its backend keeps.
        in_threads(cycle)
        threads = set(threading.enumerate())
        counts = []
        for _ in range(4):
            in_threads(cycle)
            assert threads_that_stay(threads) == set()
            counts.append(psutil.Process().num_fds())
        # What stays open would be one more each time. SQLite may put off closing one while another connection is busy.
        assert counts[-1] - counts[0] <= 1, counts

    def test_a_closed_backend_opens_again(self, backend: BaseEventBackend) -> None:
        """`close` lets go of what is open, twice if need be; the next use opens it again and finds what was there."""
        backend.append([new(data="1")])
        backend.close()
        backend.close()
        follower = Follower(backend, 1)
        backend.append([new(data="2")])
        assert [event.data for event in follower.events()] == ["2"]
        assert positions(backend.read(["news"], 0, 10).events) == [1, 2]

    # The clock

    async def test_a_clock_that_is_set_back_changes_no_order(
        self, backend: BaseEventBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Positions go on, readers and tail get all in order, and trimming by age takes nothing that is young."""
        now = time.time()
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            await backend.aappend([new(data="before", key="k")])
            monkeypatch.setattr("time.time", lambda: now - 1000)
            await backend.aappend([new(data="after")])
            again = (await backend.aappend([new(data="again", key="k")]))[0]
            assert [event.data for event in await collect(batches, 2)] == ["before", "after"]
            assert again.repeated
        # Neither while the clock is wrong nor when it is right again.
        for clock in (now - 1000, now):
            monkeypatch.setattr("time.time", lambda clock=clock: clock)
            await off_loop(backend.trim, lambda name: Retention(seconds=500))
            assert 1 in positions((await backend.aread(["news"], 0, 10)).events)
        assert (await backend.ahead()).position == 2


class SharedLogContract(BackendContract):
    """What a log does for several processes."""

    def test_a_forked_child_publishes(self, backend: BaseEventBackend) -> None:
        """A child of a process that has published, and follows the log, does so too, and its parent sees it."""
        # promise 7
        backend.append([new(data="0")])
        follower = Follower(backend, 3)
        in_forked_child(lambda: backend.append([new(data="1")]))
        in_forked_child(lambda: backend.append([new(data="2")]))
        backend.append([new(data="3")])
        assert [event.data for event in follower.events()] == ["1", "2", "3"]
        assert [event.data for event in backend.read(["news"], 0, 10).events] == ["0", "1", "2", "3"]

    def test_all_processes_see_one_order(self, backend: BaseEventBackend) -> None:
        """Several processes publish at once; every reader, here and elsewhere, gets each event once, in one order."""
        # promise 1
        names = ["a", "b", "c"]
        total = 100 * (len(names) + 1)
        followers = [Follower(backend, total) for _ in range(2)]
        jobs = [job("publish", name=name, count=100, channels=["x", "y"]) for name in names]
        with Elsewhere(backend, *jobs, job("follow", count=total)) as processes:
            processes.go()
            for number in range(100):
                backend.append([new("x", f"here {number}")])
            followed = [tuple(event) for event in processes.results()[-1]]
        for follower in followers:
            assert [(event.position, event.channel, event.data) for event in follower.events()] == followed
        assert [position for position, _, _ in followed] == list(range(1, total + 1))
        for name in [*names, "here"]:
            own = [data for _, _, data in followed if data.startswith(name)]
            assert own == [f"{name} {number}" for number in range(100)]
        read = backend.read(["x", "y"], 0, total).events
        assert [(event.position, event.channel, event.data) for event in read] == followed
