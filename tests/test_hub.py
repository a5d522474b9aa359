from __future__ import annotations

import asyncio
import random
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar

import pytest
from django.test import override_settings

from events import hub as hub_module
from events import signals
from events.backends.base import NewEvent, Params, Retention
from events.backends.memory import MemoryBackend
from events.channels import channel_table
from events.exceptions import BackendUnavailable
from events.hub import Feed, Frame, Hub, Stream, get_hub, recheck_streams
from events.models import Channel
from events.registry import event_backends
from events.testing import EventParser, ReceivedEvent

from .waiting import GUARD, until


class Log(MemoryBackend):
    """A log in memory that counts its reads, can fail, and whose tail can be held back."""

    def __init__(self) -> None:
        super().__init__(Params("default"))
        self.reads: list[tuple[tuple[str, ...], int]] = []
        self.failures = 0

    def publish(self, channel: str = "news", data: str = "x", **kwargs) -> str | None:
        return self.append([NewEvent(channel=channel, data=data, **kwargs)])[0].id

    async def aread(self, channels, after, limit):
        self.reads.append((tuple(channels), after))
        if self.failures:
            self.failures -= 1
            raise BackendUnavailable("gone")
        return self.read(channels, after, limit)

    def new_life(self) -> None:
        """The log was lost: what follows is another one."""
        with self._lock:
            self._epoch, self._position, self._events, self._floors = "newlife", 0, [], {}
        for tail in tuple(self._tails):
            tail.wake()


class Reader:
    """Reads a stream's chunks as a client would."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.chunks = stream.chunks()
        self.parser = EventParser()
        self.waiting: list[ReceivedEvent] = []
        self.body = b""
        self.pending: asyncio.Future[ReceivedEvent] | None = None

    async def chunk(self) -> bytes:
        chunk = await asyncio.wait_for(anext(self.chunks), GUARD)
        self.body += chunk
        self.waiting += self.parser.feed(chunk)
        return chunk

    async def next(self) -> ReceivedEvent:
        while not self.waiting:
            await self.chunk()
        return self.waiting.pop(0)

    async def take(self, count: int) -> list[str]:
        return [(await self.next()).data for _ in range(count)]


@pytest.fixture
def log(transactional_db) -> Log:
    Channel.objects.bulk_create(
        [
            Channel(name="news", access="public"),
            Channel(name="other", access="public"),
            Channel(name="all", access="public", replay="all"),
            Channel(name="latest", access="public", replay="latest"),
        ]
    )
    channel_table.refresh()
    return Log()


@pytest.fixture
async def hub(log: Log):
    hub = Hub(log)
    yield hub
    if hub._task is not None:
        hub._task.cancel()
        await asyncio.wait([hub._task])


@asynccontextmanager
async def reading(hub: Hub, *channels: str, **kwargs):
    reader = Reader(Stream(hub, channels or ("news",), **kwargs))
    async with aclosing(reader.chunks):
        await reader.chunk()
        try:
            yield reader
        finally:
            # A generator that is being read cannot be closed.
            if reader.pending is not None and not reader.pending.done():
                reader.pending.cancel()
                await asyncio.wait([reader.pending])


async def settled(hub: Hub, reader: Reader) -> None:
    """The reader's stream has begun: an event published now is after its start."""
    await asyncio.wait_for(hub.wait_started(), GUARD)
    task = asyncio.ensure_future(reader.next())
    reader.pending = task
    await until(lambda: reader.stream._waiter is not None and reader.stream.position >= hub.head.position)
    assert not task.done()


async def caught_up(hub: Hub, log: Log) -> None:
    """The hub has seen all that the log has."""
    await until(lambda: hub.head == log.head())


class TestLive:
    async def test_the_first_bytes_leave_before_a_log_has_answered_that_is_gone(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A `retry:` line and a comment, and no blank line: a client's `onopen` fires."""  # promise 8
        monkeypatch.setattr(hub_module, "FIRST_BYTES_WAIT", 0.01)
        hub.backend.tail = never_answers  # type: ignore[method-assign]
        reader = Reader(Stream(hub, ("news",)))
        async with aclosing(reader.chunks):
            first = await reader.chunk()
            assert not hub._started.is_set()
        assert first.startswith(b"retry: ")
        assert first.endswith(b"\n: stream\n")
        assert b"\n\n" not in first

    async def test_what_is_published_once_the_stream_is_open_reaches_it(self, hub: Hub, log: Log) -> None:
        """When the first bytes have come, the stream's place in the log is fixed, however slow the log was."""
        tail = log.tail

        async def slow():
            for _ in range(100):
                await asyncio.sleep(0)
            async with aclosing(tail()) as batches:
                async for batch in batches:
                    yield batch

        log.tail = slow  # type: ignore[method-assign]
        async with reading(hub) as reader:
            log.publish(data="x")
            assert await reader.take(1) == ["x"]

    async def test_events_arrive_in_order_with_their_cursors(self, hub: Hub, log: Log) -> None:
        """Each with the id to resume from, and its type where that is not `message`."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.publish(data="1")
            log.publish(data="2", type="alert")
            assert await reader.pending == ReceivedEvent("message", "1", f"{log.head().epoch}-1")
            assert await reader.next() == ReceivedEvent("alert", "2", f"{log.head().epoch}-2")

    async def test_other_channels_events_do_not(self, hub: Hub, log: Log) -> None:
        """A stream gets its channels and no others."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.publish("other", "no")
            log.publish("news", "yes")
            assert (await reader.pending).data == "yes"

    async def test_several_channels_come_in_one_order(self, hub: Hub, log: Log) -> None:
        """The order of the log, whatever the channels."""
        async with reading(hub, "other", "news") as reader:
            await settled(hub, reader)
            for number in range(20):
                log.publish("news" if number % 3 else "other", str(number))
            assert [(await reader.pending).data, *await reader.take(19)] == [str(number) for number in range(20)]

    async def test_waiting_events_leave_in_one_write(self, hub: Hub, log: Log) -> None:
        """A burst costs one write per stream, not one per event."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.append([NewEvent(channel="news", data=str(number)) for number in range(50)])
            await reader.pending
            assert [event.data for event in reader.waiting] == [str(number) for number in range(1, 50)]

    async def test_an_event_is_encoded_once_for_all_streams(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Streams that stand at the same place write the very same bytes."""
        async with reading(hub) as one, reading(hub) as two, reading(hub, envelope=True) as three:
            for reader in (one, two, three):
                await settled(hub, reader)
            log.append([NewEvent(channel="news", data="a"), NewEvent(channel="news", data="b")])
            for reader in (one, two, three):
                await reader.pending
            assert set(hub._chunks) == {(one.stream.feeds, False), (one.stream.feeds, True)}
            assert one.body.endswith(hub._chunks[one.stream.feeds, False])
            assert two.body.endswith(hub._chunks[one.stream.feeds, False])

    async def test_the_envelope_says_where_an_event_comes_from(self, hub: Hub, log: Log) -> None:
        """Channel, type and data, as one JSON message, whatever the type."""
        async with reading(hub, "news", "other", envelope=True) as reader:
            await settled(hub, reader)
            log.publish("news", 'te"xt\u2028', type="alert")
            log.publish("other", '{"a":1}', is_json=True)
            first = await reader.pending
            assert first.event == "message"
            assert first.json() == {"channel": "news", "event": "alert", "data": 'te"xt\u2028'}
            assert (await reader.next()).json() == {"channel": "other", "event": "message", "data": {"a": 1}}
            # Twice the same frame is encoded once.
            frame = reader.stream.feeds[0].ring[0]
            assert frame.encoded(True) is frame.encoded(True)

    async def test_silence_is_broken_by_a_comment(self, hub: Hub, log: Log) -> None:
        """A keep-alive is two bytes, no blank line; and comes again."""
        with override_settings(EVENTS={"KEEPALIVE": 0.05}):
            async with reading(hub) as reader:
                assert await reader.chunk() == b":\n"
                assert await reader.chunk() == b":\n"
                log.publish(data="x")
                assert (await reader.next()).data == "x"

    async def test_a_keepalive_comes_also_while_the_log_does_not_answer(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The connection lives, whatever the log does."""
        log.tail = never_answers  # type: ignore[method-assign]
        monkeypatch.setattr(hub_module, "FIRST_BYTES_WAIT", 0.01)
        with override_settings(EVENTS={"KEEPALIVE": 0.05}):
            async with reading(hub) as reader:
                assert await reader.chunk() == b":\n"
                assert await reader.chunk() == b":\n"

    async def test_who_was_just_written_to_needs_no_keepalive(self, hub: Hub) -> None:
        """The timer that fires then waits for what is left of the silence."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            stream = reader.stream
            stream._timer.cancel()
            stream._written_at = asyncio.get_running_loop().time() - 5
            stream._on_timer()
            assert not stream._keepalive_due
            left = stream._timer.when() - asyncio.get_running_loop().time()
            assert left == pytest.approx(stream._keepalive - 5, abs=1)

    async def test_a_log_that_answers_after_the_first_bytes(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The stream that was not kept waiting begins where the log then is."""
        monkeypatch.setattr(hub_module, "FIRST_BYTES_WAIT", 0.01)
        answers = asyncio.Event()
        tail = log.tail

        async def late():
            await answers.wait()
            async with aclosing(tail()) as batches:
                async for batch in batches:
                    yield batch

        log.tail = late  # type: ignore[method-assign]
        log.publish(data="old")
        async with reading(hub) as reader:
            answers.set()
            await settled(hub, reader)
            log.publish(data="new")
            assert (await reader.pending).data == "new"

    async def test_keepalives_are_staggered(self, hub: Hub) -> None:
        """Streams that got the same event do not all write at the same time 15 s later."""
        periods = {Stream(hub, ("news",))._keepalive for _ in range(50)}
        assert len(periods) > 40
        assert all(12 <= period <= 15 for period in periods)

    async def test_a_stream_that_always_finds_more_lets_others_run(self, hub: Hub, log: Log) -> None:
        """A client that takes everything at once does not starve the loop."""
        async with reading(hub, "all") as reader:
            # Each is a write of its own.
            log.append([NewEvent(channel="all", data="x" * hub_module.MAX_CHUNK) for _ in range(40)])
            await caught_up(hub, log)
            others = 0

            async def other() -> None:
                nonlocal others
                while True:
                    others += 1
                    await asyncio.sleep(0)

            task = asyncio.ensure_future(other())
            await reader.take(40)
            task.cancel()
            assert others >= 40 // hub_module.WRITES_PER_TURN


async def never_answers():
    await asyncio.Event().wait()
    yield


class TestResume:
    async def resumed(self, hub: Hub, cursor: str, count: int, *channels: str, **kwargs) -> list[ReceivedEvent]:
        async with reading(hub, *channels, resume=cursor, **kwargs) as reader:
            return [await reader.next() for _ in range(count)]

    @pytest.mark.parametrize("position", range(11))
    async def test_every_cursor_gives_exactly_what_followed_it(self, hub: Hub, log: Log, position: int) -> None:
        """From the log, in order, and then live."""  # promise 4
        for number in range(1, 11):
            log.publish(data=str(number))
        async with reading(hub, resume=f"{log.head().epoch}-{position}") as reader:
            assert await reader.take(10 - position) == [str(number) for number in range(position + 1, 11)]
            log.publish(data="live")
            assert await reader.take(1) == ["live"]

    async def test_from_the_rings_where_they_reach(self, hub: Hub, log: Log) -> None:
        """What the hub still has is not read from the log again."""
        async with reading(hub) as first:
            await settled(hub, first)
            for number in range(1, 11):
                log.publish(data=str(number))
            await first.pending
            await first.take(9)
            assert [event.data for event in await self.resumed(hub, f"{log.head().epoch}-3", 7)] == list(
                map(str, range(4, 11))
            )
        assert log.reads == []

    async def test_from_the_log_where_the_rings_do_not_reach(self, hub: Hub, log: Log) -> None:
        """A ring that is full lets its oldest go; the log has them."""  # promise 4
        hub._max_events = 3
        async with reading(hub) as first:
            await settled(hub, first)
            for number in range(1, 11):
                log.publish(data=str(number))
            await first.pending
            found = await self.resumed(hub, f"{log.head().epoch}-2", 8)
        assert [event.data for event in found] == list(map(str, range(3, 11)))
        assert log.reads != []

    @pytest.mark.parametrize(
        "cursor, reason",
        [
            ("garbage", "unknown"),
            ("1234", "unknown"),
            ("é" * 10_000, "unknown"),
            ("otherlog-3", "epoch"),
            ("{epoch}-11", "unknown"),
            ("{epoch}-999999999999999999", "unknown"),
        ],
    )
    async def test_a_cursor_that_means_nothing_here_is_said_once(
        self, hub: Hub, log: Log, cursor: str, reason: str
    ) -> None:
        """One reset that names the channels and the reason, without an id; then live."""  # promise 4
        for _ in range(10):
            log.publish()
        head = log.head()
        async with reading(hub, "news", "other", resume=cursor.format(epoch=head.epoch)) as reader:
            reset = await reader.next()
            assert (reset.event, reset.id) == ("stream-reset", "")
            assert reset.json() == {"channels": ["news", "other"], "reason": reason, "cursor": str(head)}
            log.publish(data="live")
            assert await reader.take(1) == ["live"]
        assert reader.body.count(b"stream-reset") == 1

    async def test_after_a_reset_from_the_oldest_where_asked(self, hub: Hub, log: Log) -> None:
        """`from=earliest` with a cursor that means nothing begins with what is kept."""
        log.publish(data="1")
        log.publish(data="2")
        found = await self.resumed(hub, "garbage", 3, earliest=True)
        assert [event.event for event in found] == ["stream-reset", "message", "message"]
        assert [event.data for event in found[1:]] == ["1", "2"]

    async def test_what_was_trimmed_is_said_for_the_channels_that_miss_something(self, hub: Hub, log: Log) -> None:
        """Only these are named; the others lose nothing."""  # promise 4
        epoch = log.head().epoch
        for number in range(10):
            log.publish("news", f"news {number}")
            log.publish("other", f"other {number}")
        log.trim(lambda name: Retention(events=3 if name == "news" else None))
        async with reading(hub, "news", "other", resume=f"{epoch}-4") as reader:
            reset = await reader.next()
            assert reset.json() == {"channels": ["news"], "reason": "trimmed", "cursor": f"{epoch}-20"}
            assert await reader.take(8) == [f"other {number}" for number in range(2, 10)]
            log.publish("news", "live")
            assert await reader.take(1) == ["live"]
        assert reader.body.count(b"stream-reset") == 1

    async def test_what_was_trimmed_and_the_oldest_that_is_kept(self, hub: Hub, log: Log) -> None:
        """With `from=earliest` the kept ones follow the reset, across pages, said once."""
        epoch = log.head().epoch
        log.append([NewEvent(channel="news", data=str(number)) for number in range(1, 501)])
        log.trim(lambda name: Retention(events=450))
        async with reading(hub, resume=f"{epoch}-4", earliest=True) as reader:
            assert (await reader.next()).json()["reason"] == "trimmed"
            assert await reader.take(450) == list(map(str, range(51, 501)))
        assert reader.body.count(b"stream-reset") == 1

    async def test_a_cursor_at_the_floor_misses_nothing(self, hub: Hub, log: Log) -> None:
        """What was trimmed had been received."""
        epoch = log.head().epoch
        for number in range(1, 6):
            log.publish(data=str(number))
        log.trim(lambda name: Retention(events=2))
        assert [event.data for event in await self.resumed(hub, f"{epoch}-3", 2)] == ["4", "5"]

    async def test_a_cursor_of_an_empty_log_counts(self, hub: Hub, log: Log) -> None:
        """Position 0 is a cursor: what was trimmed since is missed."""
        epoch = log.head().epoch
        for _ in range(3):
            log.publish()
        log.trim(lambda name: Retention(events=1))
        (reset,) = await self.resumed(hub, f"{epoch}-0", 1)
        assert reset.json()["reason"] == "trimmed"

    async def test_a_cursor_ahead_of_this_process_is_not_ahead_of_the_log(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process was quicker to deliver: nothing is reset, nothing comes twice."""  # promise 4
        await hub_started(hub)
        tail = next(iter(log._tails))
        log._tails.clear()
        log.publish(data="1")
        second = log.publish(data="2")
        async with reading(hub, resume=second) as reader:
            task = asyncio.ensure_future(reader.next())
            await until(lambda: reader.stream.position == 2)
            log._tails.add(tail)
            log.publish(data="3")
            assert (await asyncio.wait_for(task, GUARD)).data == "3"

    async def test_a_page_of_the_log_may_end_anywhere(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Events of many sizes, pages of few events: each once, in order."""  # promise 4
        monkeypatch.setattr(hub_module, "READ_LIMIT", 7)
        monkeypatch.setattr(hub_module, "MAX_CHUNK", 100)
        rng = random.Random(1)
        epoch = log.head().epoch
        expected = []
        for number in range(200):
            channel = rng.choice(["news", "other"])
            data = f"{number} " + "x" * rng.choice([0, 10, 50, 99, 150])
            log.publish(channel, data)
            if channel == "news":
                expected.append(data)
        async with reading(hub, resume=f"{epoch}-0") as reader:
            assert await reader.take(len(expected)) == expected
            log.publish("news", "live")
            assert await reader.take(1) == ["live"]

    async def test_a_log_that_cannot_be_read_is_waited_for(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The stream stays open, and goes on where it was."""
        monkeypatch.setattr(hub_module, "UNAVAILABLE_RETRY", 0)
        epoch = log.head().epoch
        log.publish(data="1")
        log.failures = 2
        assert [event.data for event in await self.resumed(hub, f"{epoch}-0", 1)] == ["1"]
        assert caplog.text.count("a stream waits for the log") == 2


async def hub_started(hub: Hub) -> None:
    async with reading(hub) as reader:
        await settled(hub, reader)


class TestNewStream:
    async def test_nothing_is_replayed_unasked(self, hub: Hub, log: Log) -> None:
        """A new stream gets what comes from now on."""
        log.publish(data="old")
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.publish(data="new")
            assert (await reader.pending).data == "new"

    async def test_the_channel_says_what_is_replayed(self, hub: Hub, log: Log) -> None:
        """All, the latest, or nothing, each channel for itself, in the order of the log, once; then live."""
        for number in range(3):
            for name in ("all", "latest", "news"):
                log.publish(name, f"{name} {number}")
        async with reading(hub, "news", "latest", "all") as reader:
            assert await reader.take(4) == ["all 0", "all 1", "all 2", "latest 2"]
            for name in ("news", "all", "latest"):
                log.publish(name, f"{name} live")
            assert await reader.take(3) == ["news live", "all live", "latest live"]
        # The channel that replays nothing was not read.
        assert all("news" not in names for names, _ in log.reads)

    async def test_a_page_gets_the_replay_and_what_came_since_it_was_rendered(self, hub: Hub, log: Log) -> None:
        """A page's cursor with `replay`: what the channels replay, then all that followed the cursor, each once."""
        # promise 3
        for number in range(3):
            for name in ("all", "latest", "news"):
                log.publish(name, f"{name} {number}")
        rendered = str(log.head())
        for name in ("all", "latest", "news"):
            log.publish(name, f"{name} since")
        async with reading(hub, "news", "latest", "all", resume=rendered, replay=True) as reader:
            assert await reader.take(6) == ["all 0", "all 1", "all 2", "all since", "latest since", "news since"]
            log.publish("news", "live")
            assert await reader.take(1) == ["live"]

    async def test_a_page_is_told_what_was_trimmed_since_it_was_rendered(self, hub: Hub, log: Log) -> None:
        """Beside a channel that replays all it keeps, and misses nothing."""
        log.publish("all", "1")
        rendered = str(log.head())
        for _ in range(3):
            log.publish("news")
            log.publish("all", "2")
        log.trim(lambda name: Retention(events=1))
        async with reading(hub, "news", "all", resume=rendered, replay=True) as reader:
            reset = await reader.next()
            assert (reset.json()["channels"], reset.json()["reason"]) == (["news"], "trimmed")
            assert await reader.take(1) == ["2"]

    async def test_the_latest_of_nothing_is_nothing(self, hub: Hub, log: Log) -> None:
        """A channel without events replays none."""
        async with reading(hub, "latest") as reader:
            await settled(hub, reader)
            log.publish("latest", "first")
            assert (await reader.pending).data == "first"

    async def test_earliest_begins_with_what_is_kept(self, hub: Hub, log: Log) -> None:
        """All that is kept, whatever the channel's replay; what was trimmed before is not missed."""
        for number in range(1, 11):
            log.publish(data=str(number))
        log.trim(lambda name: Retention(events=4))
        async with reading(hub, "news", "other", earliest=True) as reader:
            assert await reader.take(4) == ["7", "8", "9", "10"]
        assert b"stream-reset" not in reader.body

    async def test_all_over_several_pages_with_floors_between_is_not_a_reset(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A channel whose floor lies above the first page has lost nothing that the client wanted."""
        monkeypatch.setattr(hub_module, "READ_LIMIT", 5)
        for number in range(10):
            log.publish("all", str(number))
        for number in range(10, 30):
            log.publish("news", str(number))
        log.trim(lambda name: Retention(events=3 if name == "news" else None))
        async with reading(hub, "all", "news", earliest=True) as reader:
            assert await reader.take(13) == [str(number) for number in [*range(10), 27, 28, 29]]
        assert b"stream-reset" not in reader.body

    async def test_a_channel_that_no_row_configures_replays_nothing(self, hub: Hub, log: Log) -> None:
        """A view of one's own may name it."""
        log.publish("unknown", "old")
        async with reading(hub, "unknown") as reader:
            await settled(hub, reader)
            log.publish("unknown", "new")
            assert (await reader.pending).data == "new"

    async def test_nothing_falls_between_replay_and_live(self, hub: Hub, log: Log) -> None:
        """50 streams that connect while events keep coming each get every event once."""  # promise 3
        stop = asyncio.Event()
        published = 0

        async def publisher() -> None:
            nonlocal published
            while not stop.is_set():
                published += 1
                log.publish("all", str(published))
                await asyncio.sleep(0)

        async def client(delay: int) -> None:
            for _ in range(delay):
                await asyncio.sleep(0)
            async with reading(hub, "all") as reader:
                assert await reader.take(300) == list(map(str, range(1, 301)))

        task = asyncio.ensure_future(publisher())
        try:
            await asyncio.wait_for(asyncio.gather(*(client(7 * number) for number in range(50))), 60)
        finally:
            stop.set()
            await task


class TestFaults:
    async def test_a_log_that_begins_a_new_life_is_said_to_all(self, hub: Hub, log: Log) -> None:
        """Open streams get one reset and go on with the new log."""
        log.publish(data="1")
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.new_life()
            reset = await reader.pending
            assert reset.json() == {"channels": ["news"], "reason": "epoch", "cursor": "newlife-0"}
            log.publish(data="new")
            assert await reader.next() == ReceivedEvent("message", "new", "newlife-1")

    async def test_a_new_life_that_a_read_sees_before_the_tail(self, hub: Hub, log: Log) -> None:
        """Nothing of the new log is taken for the old one's; the reset comes with the tail."""
        old = log.head().epoch
        for number in range(5):
            log.publish(data=str(number))
        await hub_started(hub)
        tails, log._tails = log._tails, set()
        log.new_life()
        async with reading(hub, resume=f"{old}-2") as reader:
            task = asyncio.ensure_future(reader.next())
            await until(lambda: log.reads)
            log._tails = tails
            log.publish(data="new")
            reset = await asyncio.wait_for(task, GUARD)
            assert reset.json()["reason"] == "epoch"

    async def test_a_hole_in_the_tail_sends_streams_to_the_log(self, hub: Hub, log: Log) -> None:
        """Events trimmed before the tail read them are said to be missing, never skipped in silence."""
        async with reading(hub, "news", "other") as reader:
            await settled(hub, reader)
            tails, log._tails = log._tails, set()
            for number in range(5):
                log.publish("news", str(number))
            log.trim(lambda name: Retention(events=2))
            log._tails = tails
            log.publish("other", "last")
            reset = await reader.pending
            assert reset.json()["channels"] == ["news"]
            assert reset.json()["reason"] == "trimmed"
            assert await reader.take(1) == ["last"]

    async def test_a_hub_that_fails_ends_its_streams(
        self, log: Log, hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fault is logged; clients come back to a new hub."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            monkeypatch.setattr(Feed, "push", lambda *args: 1 / 0)
            log.publish()
            with pytest.raises(StopAsyncIteration):
                await reader.pending
        assert "the hub stopped" in caplog.text

    async def test_a_hub_that_fails_before_it_starts_ends_its_streams(
        self, log: Log, hub: Hub, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nobody waits for ever."""

        async def fails():
            raise ZeroDivisionError
            yield

        log.tail = fails  # type: ignore[method-assign]
        async with reading(hub) as reader:
            with pytest.raises(StopAsyncIteration):
                await reader.chunk()

    async def test_a_closed_stream_leaves_nothing(self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """No stream, no timer; after a while no feed, no task and no tail."""  # promise 14
        monkeypatch.setattr(hub_module, "LINGER", 0)
        closed = []
        signals.feed_closed.connect(lambda channel, **kwargs: closed.append(channel), weak=False, dispatch_uid="t")
        try:
            async with reading(hub, "news", "other") as reader:
                await settled(hub, reader)
                task = hub._task
                assert task is not None
            assert hub.streams == set()
            assert reader.stream._timer.cancelled()
            assert sorted(closed) == ["news", "other"]
            await asyncio.wait_for(asyncio.wait([task]), GUARD)
            assert hub.feeds == {}
            assert not log._tails
        finally:
            signals.feed_closed.disconnect(dispatch_uid="t")

    async def test_a_page_that_is_reloaded_finds_its_ring(self, hub: Hub, log: Log) -> None:
        """For a while after its last stream a feed goes on collecting."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.publish(data="1")
            cursor = (await reader.pending).id
        log.publish(data="2")
        await caught_up(hub, log)
        async with reading(hub, resume=cursor) as reader:
            assert await reader.take(1) == ["2"]
        assert log.reads == []

    async def test_a_feed_that_somebody_came_back_to_stays(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The end of the linger looks before it forgets."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            hub._drop_idle(hub.feeds["news"])
            assert "news" in hub.feeds
            log.publish(data="x")
            assert (await reader.pending).data == "x"


class TestRings:
    def frame(self, position: int, size: int = 1) -> Frame:
        log = Log()
        log._position = position - 1
        log.publish(data="x" * size)
        return Frame(log._events[0], "e")

    def test_a_ring_is_bounded_by_events(self) -> None:
        """The oldest leave, and the feed knows from where on it is complete."""
        feed = Feed("news", 0)
        for position in range(1, 6):
            feed.push(self.frame(position), 3, 1000)
        assert [frame.position for frame in feed.ring] == [3, 4, 5]
        assert feed.since == 2

    def test_a_ring_is_bounded_by_bytes(self) -> None:
        """Large events push more of the others out; the newest stays whatever its size."""
        feed = Feed("news", 0)
        for position in range(1, 6):
            feed.push(self.frame(position, 40), 1000, 100)
        assert [frame.position for frame in feed.ring] == [4, 5]
        feed.push(self.frame(6, 5000), 1000, 100)
        assert [frame.position for frame in feed.ring] == [6]
        assert (feed.size, feed.since) == (5000, 5)

    async def test_what_a_new_stream_does_not_want_is_left_in_the_ring(self, hub: Hub, log: Log) -> None:
        """The latest of one channel, and of the other, which the ring has too, only what comes."""
        async with reading(hub, "news", "latest") as first:
            await settled(hub, first)
            for number in range(4):
                log.publish("latest" if number == 1 else "news", str(number))
            await first.pending
            await caught_up(hub, log)
            async with reading(hub, "news", "latest") as second:
                assert await second.take(1) == ["1"]
                log.publish(data="live")
                assert await second.take(1) == ["live"]
        assert log.reads == []


class TestWaking:
    async def test_a_stream_that_is_being_written_to_is_not_woken(self, hub: Hub, log: Log) -> None:
        """It finds what came when its client has taken what was sent."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.publish(data="1")
            await reader.pending
            log.publish(data="2")
            await caught_up(hub, log)
            assert await reader.take(1) == ["2"]

    async def test_a_stream_whose_client_is_just_leaving_is_not_woken(self, hub: Hub) -> None:
        """Its wait was cancelled; waking it then is no error."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            reader.pending.cancel()
            reader.stream.wake()

    async def test_other_channels_events_move_the_cursor_when_it_looks(self, hub: Hub, log: Log) -> None:
        """A keep-alive after events of other channels is only a keep-alive."""
        with override_settings(EVENTS={"KEEPALIVE": 0.05}):
            async with reading(hub) as reader:
                await hub.wait_started()
                log.publish("other")
                await caught_up(hub, log)
                while reader.stream.position != 1:
                    assert await reader.chunk() == b":\n"
                log.publish(data="x")
                assert (await reader.next()).data == "x"


class TestRights:
    async def test_a_channel_that_is_switched_off_ends_its_streams(self, hub: Hub, log: Log) -> None:
        """The client is told why, and not to come back."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            await asyncio.to_thread(in_thread, lambda: Channel.objects.filter(name="news").update(is_active=False))
            hub.recheck()
            closed = await reader.pending
            assert (closed.event, closed.json(), closed.id) == ("stream-closed", {"reason": "switched-off"}, "")
            with pytest.raises(StopAsyncIteration):
                await reader.next()

    async def test_rights_are_asked_for_again(self, hub: Hub, log: Log) -> None:
        """A stream whose client may still read goes on; one whose client may not ends."""
        answers = iter([True, False])

        async def allowed() -> bool:
            return next(answers)

        async with reading(hub, allowed=allowed) as reader:
            await settled(hub, reader)
            hub.recheck()
            log.publish(data="still")
            assert (await reader.pending).data == "still"
            hub.recheck()
            assert (await reader.next()).json() == {"reason": "revoked"}

    async def test_without_a_check_nothing_is_asked(self, hub: Hub, log: Log) -> None:
        """A view of one's own that gave no `allowed` decides alone."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            hub.recheck()
            log.publish(data="x")
            assert (await reader.pending).data == "x"


def in_thread(function):
    from django.db import connections

    try:
        function()
        channel_table.refresh()
    finally:
        connections.close_all()


class TestGetHub:
    MEMORY: ClassVar[dict[str, Any]] = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}

    async def test_one_hub_per_loop_and_log(self) -> None:
        """The same hub for the same log; a new one where the log was configured anew."""
        with override_settings(EVENTS=self.MEMORY):
            hub = get_hub()
            assert get_hub() is hub
            event_backends.reset()
            assert get_hub() is not hub

    async def test_one_hub_that_stops_does_not_take_the_others_along(self) -> None:
        """Each log has its own."""
        backends = {**self.MEMORY["BACKENDS"], "side": self.MEMORY["BACKENDS"]["default"]}
        with override_settings(EVENTS={"BACKENDS": backends}):
            one, two = get_hub(), get_hub("side")
            hub_module._forget(one)
            assert get_hub("side") is two
            assert get_hub() is not one

    def test_a_hub_does_not_outlive_its_loop(self) -> None:
        """Hubs of closed loops are forgotten when a new loop asks for one."""

        async def ask() -> Hub:
            return get_hub()

        with override_settings(EVENTS=self.MEMORY):
            asyncio.run(ask())
            asyncio.run(ask())
            assert sum(loop.is_closed() for loop in hub_module._hubs) == 1

    async def test_a_recheck_reaches_the_hubs_of_other_loops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From any thread; a loop that was closed is passed over."""
        rechecked = asyncio.Event()
        with override_settings(EVENTS=self.MEMORY):
            hub = get_hub()
            monkeypatch.setattr(hub, "recheck", rechecked.set)
            closed = asyncio.new_event_loop()
            closed.close()
            hub_module._hubs[closed] = {"default": hub}
            try:
                await asyncio.to_thread(recheck_streams)
                await asyncio.wait_for(rechecked.wait(), GUARD)
            finally:
                del hub_module._hubs[closed]

    async def test_a_hub_with_streams_keeps_the_log_trimmed(self, hub: Hub, log: Log) -> None:
        """Also where nobody publishes in this process."""
        asked: list[Any] = []
        log.maintain = asked.append  # type: ignore[method-assign, assignment]
        hub._maintain_at = 0
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.publish()
            await reader.pending
        assert len(asked) == 1
