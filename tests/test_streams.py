from __future__ import annotations

import asyncio
import gzip
import logging
import random
import re
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from events import draining, feeds, limits, signals, streams
from events.backends.base import NewEvent, Retention
from events.channels import channel_table
from events.models import Channel
from events.responses import ResponseStream
from events.rights import ASKING, UNCHECKED
from events.streams import Stream
from events.testing import EventParser, ReceivedEvent
from events.wire import Cursor

from .hubs import GzipReader, Log, Reader, caught_up, hold_back, hub_started, hub_with, never_answers, reading, settled
from .waiting import GUARD, counted_turns, until

if TYPE_CHECKING:
    from events.hub import Hub


class TestLive:
    async def test_the_first_bytes_leave_before_a_log_has_answered_that_is_gone(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A `retry:` line and a comment, and no blank line: a client's `onopen` fires."""  # promise 8
        monkeypatch.setattr(streams, "FIRST_BYTES_WAIT", 0.01)
        hub.backend.tail = never_answers  # type: ignore[method-assign]
        reader = Reader(ResponseStream(hub, ("news",)))
        async with aclosing(reader.chunks):
            first = await reader.chunk()
            assert not hub._started.is_set()
        assert first.startswith(b"retry: ")
        assert first.endswith(b"\n: stream\n")
        assert b"\n\n" not in first

    async def test_what_is_published_once_the_stream_is_open_reaches_it(self, hub: Hub, log: Log) -> None:
        """When the first bytes have come, the stream's place in the log is fixed, however slow the log was."""

        async def some_turns() -> None:
            for _ in range(100):
                await asyncio.sleep(0)

        hold_back(log, some_turns)
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
            frame = hub.feeds["news"].ring[0]
            assert frame.encoded(True) is frame.encoded(True)

    async def test_silence_is_broken_by_a_comment(self, log: Log) -> None:
        """A keep-alive is two bytes, no blank line; and comes again."""
        async with hub_with(log, KEEPALIVE=0.05) as hub:
            async with reading(hub) as reader:
                assert await reader.chunk() == b":\n"
                assert await reader.chunk() == b":\n"
                log.publish(data="x")
                assert (await reader.next()).data == "x"

    async def test_a_keepalive_comes_also_while_the_log_does_not_answer(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The connection lives, whatever the log does."""
        log.tail = never_answers  # type: ignore[method-assign]
        monkeypatch.setattr(streams, "FIRST_BYTES_WAIT", 0.01)
        async with hub_with(log, KEEPALIVE=0.05) as hub:
            async with reading(hub) as reader:
                assert await reader.chunk() == b":\n"
                assert await reader.chunk() == b":\n"

    async def test_a_log_that_answers_after_the_first_bytes(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The stream that was not kept waiting begins where the log then is."""
        monkeypatch.setattr(streams, "FIRST_BYTES_WAIT", 0.01)
        answers = asyncio.Event()
        hold_back(log, answers.wait)
        log.publish(data="old")
        async with reading(hub) as reader:
            answers.set()
            await settled(hub, reader)
            log.publish(data="new")
            assert (await reader.pending).data == "new"

    async def test_a_stream_that_always_finds_more_lets_others_run(self, hub: Hub, log: Log) -> None:
        """A client that takes everything at once does not starve the loop."""
        async with reading(hub, "all") as reader:
            # Each is a write of its own.
            log.append([NewEvent(channel="all", data="x" * feeds.MAX_CHUNK) for _ in range(40)])
            await caught_up(hub, log)
            with counted_turns() as turns:
                await reader.take(40)
            assert len(turns) >= 40 // streams.WRITES_PER_TURN


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
        monkeypatch.setattr(streams, "READ_LIMIT", 7)
        monkeypatch.setattr(streams, "MAX_CHUNK", 100)
        monkeypatch.setattr(feeds, "MAX_CHUNK", 100)
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
        monkeypatch.setattr(streams, "UNAVAILABLE_RETRY", 0)
        caplog.set_level(logging.DEBUG, "events.streams")
        epoch = log.head().epoch
        log.publish(data="1")
        log.failures = 2
        assert [event.data for event in await self.resumed(hub, f"{epoch}-0", 1)] == ["1"]
        assert caplog.text.count("a stream waits for the log") == 2


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
        monkeypatch.setattr(streams, "READ_LIMIT", 5)
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


async def ended(hub: Hub, *channels: str, reader: type[Reader] = Reader, **kwargs) -> Any:
    """A finite stream, read to its end: where it ends is the hub's "now" unless told otherwise."""
    await hub_started(hub)
    opened = reader(ResponseStream(hub, channels or ("news",), follow=False, **{"now": hub.now(), **kwargs}))
    async with aclosing(opened.chunks):
        await asyncio.wait_for(opened.rest(), GUARD)
    assert hub.streams == set()
    return opened


def told(reader: Reader) -> list[str]:
    """The data of the events that came, without the `stream-end` that must be the last."""
    *events, last = reader.waiting
    assert (last.event, reader.body.count(b"stream-end")) == ("stream-end", 1)
    return [event.data for event in events]


def end_of(reader: Reader) -> str:
    """Where the stream says that it ends."""
    assert told(reader) is not None
    return str(reader.waiting[-1].json()["cursor"])


class TestFinite:
    """What there is, and the end."""

    async def test_it_ends_where_the_log_is(self, hub: Hub, log: Log) -> None:
        """All that followed the cursor, and where that ends, as a control event; no second `retry:`."""
        first = log.publish(data="1")
        for number in (2, 3):
            log.publish(data=str(number))
        log.publish("other", "no")
        reader = await ended(hub, resume=first)
        assert told(reader) == ["2", "3"]
        assert reader.body.endswith(b'\n\nevent: stream-end\ndata: {"cursor": "%s"}\n\n' % str(log.head()).encode())
        # Not that of the last event: it has no id.
        assert b"\nid" not in reader.body[reader.body.index(b"event: stream-end") :]
        assert reader.body.count(b"retry: ") == 1
        assert limits.open_streams.total == 0

    async def test_nothing_new_is_the_end_at_once(self, hub: Hub, log: Log) -> None:
        """With no cursor, and with that of the newest event; of a log that has none, too."""
        assert told(await ended(hub)) == []
        newest = log.publish()
        await caught_up(hub, log)
        for resume in (None, newest):
            reader = await ended(hub, resume=resume)
            assert (told(reader), end_of(reader)) == ([], newest)
        assert log.reads == []

    async def test_what_the_channels_replay_comes_first(self, hub: Hub, log: Log) -> None:
        """All, the latest, or nothing, as to any new stream; and all of it where the oldest is asked for."""
        for number in range(3):
            for name in ("all", "latest", "news"):
                log.publish(name, f"{name} {number}")
        everything = [f"{name} {number}" for number in range(3) for name in ("all", "latest", "news")]
        names = ("news", "latest", "all")
        assert told(await ended(hub, *names)) == ["all 0", "all 1", "all 2", "latest 2"]
        assert told(await ended(hub, *names, earliest=True)) == everything
        # A page that was rendered after the sixth event.
        resume = f"{log.head().epoch}-6"
        found = told(await ended(hub, *names, resume=resume, replay=True))
        assert found == ["all 0", "all 1", "all 2", "latest 2", "news 2"]

    async def test_from_the_rings_where_they_reach(self, hub: Hub, log: Log) -> None:
        """What the hub still has is not read from the log, and without a task of the stream's own."""
        async with reading(hub) as first:
            await settled(hub, first)
            cursor = log.publish(data="1")
            for number in (2, 3):
                log.publish(data=str(number))
            await first.pending
            await first.take(2)
            finite = Reader(ResponseStream(hub, ("news",), follow=False, now=hub.now(), resume=cursor))
            await asyncio.wait_for(finite.rest(), GUARD)
            assert told(finite) == ["2", "3"]
        assert log.reads == []

    @pytest.mark.parametrize("is_in_rings", [True, False])
    async def test_it_ends_although_events_come_without_rest(
        self, hub: Hub, log: Log, is_in_rings: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All up to where it began, what comes later at most in part, and nowhere a hole."""
        monkeypatch.setattr(streams, "MAX_CHUNK", 300)
        if not is_in_rings:
            hub._max_events = 3
        async with reading(hub) as follower:
            await settled(hub, follower)
            cursor = log.publish(data="0")
            for number in range(1, 101):
                log.publish(data=str(number))
            await caught_up(hub, log)
            head = log.head()
            finite = Reader(ResponseStream(hub, ("news",), follow=False, now=head, resume=cursor))
            published = 100
            while True:
                try:
                    await finite.chunk()
                except StopAsyncIteration:
                    break
                # Each time more than one write takes.
                for _ in range(50):
                    published += 1
                    log.publish(data=str(published))
                await caught_up(hub, log)
            assert published > 200
        found = told(finite)
        assert found == [str(number) for number in range(1, len(found) + 1)]
        assert 100 <= len(found) < 200
        # What it says is what it wrote.
        assert Cursor.parse(end_of(finite)) == Cursor(head.epoch, len(found) + 1)
        assert bool(log.reads) is not is_in_rings

    async def test_in_an_envelope_and_compressed(self, hub: Hub, log: Log) -> None:
        """The end is the end of the gzip member as well."""
        log.publish(data="1")
        reader = await ended(hub, earliest=True, envelope=True, gzip=True, reader=GzipReader)
        assert [event.json() for event in reader.waiting] == [
            {"channel": "news", "event": "message", "data": "1"},
            {"cursor": str(log.head())},
        ]
        assert gzip.decompress(reader.body).endswith(b"\n\n")
        assert reader.inflate.eof

    async def test_what_is_not_kept_any_more_is_said(self, hub: Hub, log: Log) -> None:
        """With the reset that any stream would get, before the rest of the events."""
        epoch = log.head().epoch
        for number in range(5):
            log.publish("news", f"news {number}")
            log.publish("other", f"other {number}")
        log.trim(lambda name: Retention(events=1 if name == "news" else None))
        reader = await ended(hub, "news", "other", resume=f"{epoch}-6")
        _, *others = told(reader)
        assert reader.waiting[0].json() == {"channels": ["news"], "reason": "trimmed", "cursor": f"{epoch}-10"}
        assert others == ["other 3", "other 4"]
        reader = await ended(hub, resume="garbage")
        assert [event.event for event in reader.waiting] == ["stream-reset", "stream-end"]

    async def test_it_ends_where_the_response_said_although_the_hub_has_not_heard_of_that(
        self, hub: Hub, log: Log
    ) -> None:
        """A view that is not async has asked the log, and the hub follows behind."""
        await hub_started(hub)
        log._tails.clear()
        for number in range(60):
            log.publish(data=str(number))
        reader = await ended(hub, now=log.head(), resume=f"{log.head().epoch}-10")
        assert told(reader) == [str(number) for number in range(10, 60)]
        assert hub.head.position == 0

    async def test_it_never_ends_before_what_its_client_has_seen(self, hub: Hub, log: Log) -> None:
        """Who got an event from a process that is ahead of this one is not sent back, nor told of it again."""
        await hub_started(hub)
        log._tails.clear()
        log.publish("all", "1")
        log.publish("news", "2")
        last = log.publish("all", "3")
        for replay, expected in ((False, []), (True, ["1", "3"])):
            reader = await ended(hub, "news", "all", resume=last, replay=replay)
            assert (told(reader), end_of(reader)) == (expected, last)

    async def test_who_may_not_be_asked_about_yet_waits(self, hub: Hub, log: Log) -> None:
        """A right without an answer holds it, at its end, too; then it goes on."""
        may_read = asyncio.Event()
        log.publish(data="1")
        await hub_started(hub)

        async def allowed() -> bool:
            await may_read.wait()
            return True

        stream = ResponseStream(
            hub, ("news",), follow=False, now=hub.now(), earliest=True, allowed=allowed, checked=UNCHECKED
        )
        reader = Reader(stream)
        async with aclosing(reader.chunks):
            await reader.chunk()
            task = asyncio.ensure_future(reader.rest())
            await until(lambda: stream._waiter is not None)
            assert stream._todo & streams.HOLD
            may_read.set()
            await asyncio.wait_for(task, GUARD)
        assert told(reader) == ["1"]

    async def test_who_may_not_read_is_told_so_and_no_more(self, hub: Hub, log: Log) -> None:
        """It ends as any stream does, and does not say that this was all."""
        log.publish(data="1")

        async def allowed() -> bool:
            return False

        reader = await ended(hub, earliest=True, allowed=allowed, checked=UNCHECKED)
        assert [event.event for event in reader.waiting] == ["stream-closed"]

    async def test_a_log_that_does_not_say_where_it_is_ends_it_at_once(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With nothing to say: its client asks again."""
        monkeypatch.setattr(streams, "FIRST_BYTES_WAIT", 0.01)
        log.tail = never_answers  # type: ignore[method-assign]
        async with hub_with(log) as hub:
            text = await asyncio.wait_for(body(ResponseStream(hub, ("news",), follow=False)), GUARD)
            assert hub.streams == set()
        assert re.fullmatch(rb"retry: \d+\n: stream\n", text)

    async def test_a_log_that_answers_late_is_waited_for(self, hub: Hub, log: Log) -> None:
        """As for any stream's first bytes: then it ends where the log is by then."""

        async def some_turns() -> None:
            for _ in range(100):
                await asyncio.sleep(0)

        hold_back(log, some_turns)
        log.publish(data="1")
        reader = Reader(ResponseStream(hub, ("news",), follow=False, earliest=True))
        await asyncio.wait_for(reader.rest(), GUARD)
        assert (told(reader), end_of(reader)) == (["1"], str(log.head()))

    async def test_another_log_than_the_response_told_of_is_not_taken_for_it(self, hub: Hub, log: Log) -> None:
        """It has begun anew since: nothing is said to be all."""
        log.publish(data="1")
        reader = await ended(hub, now=Cursor("otherlife", 5), earliest=True)
        assert reader.waiting == []

    async def test_a_log_that_begins_anew_meanwhile(self, hub: Hub, log: Log) -> None:
        """The rest of the old one is lost, and where it ended means nothing."""
        log.publish(data="1")
        await hub_started(hub)
        log.answers.clear()
        reader = Reader(ResponseStream(hub, ("news",), follow=False, now=hub.now(), earliest=True))
        task = asyncio.ensure_future(reader.rest())
        await until(lambda: log.reads)
        log.new_life()
        await asyncio.wait_for(task, GUARD)
        assert reader.waiting == []

    async def test_who_is_put_off_or_sent_away_is_not_told_that_this_was_all(self, log: Log) -> None:
        """At a limit, and where the process stops while the log is being read."""
        log.publish(data="1")
        async with hub_with(log, MAX_STREAMS=1) as hub:
            async with reading(hub):
                assert ((await put_off(hub, follow=False, now=log.head(), earliest=True)).retry or 0) >= 5000
            log.answers.clear()
            reader = Reader(ResponseStream(hub, ("news",), follow=False, now=log.head(), earliest=True))
            task = asyncio.ensure_future(reader.rest())
            await until(lambda: log.reads)
            hub.drain()
            await asyncio.wait_for(task, GUARD)
        assert reader.waiting == []
        assert reader.body.count(b"retry: ") == 2


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
            await hub.wait_started()
            stream = reader.stream
            task = asyncio.ensure_future(anext(reader.chunks))
            await until(lambda: stream._waiter is not None)
            waiter = stream._waiter
            task.cancel()
            assert waiter.cancelled()
            stream.wake()
            await asyncio.wait([task])

    async def test_other_channels_events_move_the_cursor_when_it_looks(self, log: Log) -> None:
        """A keep-alive after events of other channels is only a keep-alive."""
        async with hub_with(log, KEEPALIVE=0.05) as hub:
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
            hub.rights.ask()
            closed = await reader.pending
            assert (closed.event, closed.json(), closed.id) == ("stream-closed", {"reason": "switched-off"}, "")
            with pytest.raises(StopAsyncIteration):
                await reader.next()

    async def test_rights_are_asked_for_again(self, hub: Hub, log: Log) -> None:
        """A stream whose client may still read goes on; one whose client may not ends."""
        may_read = True

        async def allowed() -> bool:
            return may_read

        async with reading(hub, allowed=allowed) as reader:
            await settled(hub, reader)
            hub.rights.ask()
            log.publish(data="still")
            assert (await reader.pending).data == "still"
            may_read = False
            hub.rights.ask()
            assert (await reader.next()).json() == {"reason": "revoked"}

    async def test_few_ask_at_a_time(self, hub: Hub, log: Log) -> None:
        """Each has a thread and a database connection for as long as it asks: many would exhaust the database."""
        asking, most, all_have_asked = 0, 0, asyncio.Event()
        asked = 0

        async def ask(number: int) -> bool:
            nonlocal asking, most, asked
            asking += 1
            most = max(most, asking)
            # All who may ask meanwhile do.
            for _ in range(50):
                await asyncio.sleep(0)
            asking -= 1
            asked += 1
            if asked == 10:
                all_have_asked.set()
            return True

        async with AsyncExitStack() as stack:
            for number in range(10):
                reader = await stack.enter_async_context(reading(hub, allowed=partial(ask, number)))
                await settled(hub, reader)
            hub.rights.ask()
            await asyncio.wait_for(all_have_asked.wait(), GUARD)
        assert most == ASKING

    async def test_without_a_check_nothing_is_asked(self, hub: Hub, log: Log) -> None:
        """A view of one's own that gave no `allowed` decides alone."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            hub.rights.ask()
            log.publish(data="x")
            assert (await reader.pending).data == "x"


def in_thread(function):
    from django.db import connections

    try:
        function()
        channel_table.refresh()
    finally:
        connections.close_all()


class TestWhatTakesTime:
    """A read, or finding where to begin, goes on while keep-alives are written."""

    async def test_a_log_that_has_begun_anew_since_the_response_was_made(self, hub: Hub, log: Log) -> None:
        """Its "now" means nothing any more: the stream begins where the log is."""
        log.publish(data="old")
        async with reading(hub, now=Cursor("otherlife", 0)) as reader:
            await settled(hub, reader)
            log.publish(data="new")
            assert (await reader.pending).data == "new"
        async with reading(hub, now=Cursor("otherlife", 0), resume="garbage") as reader:
            assert (await reader.next()).json()["cursor"] == str(log.head())

    async def test_a_stream_that_ends_before_it_has_begun_asks_the_log_for_nothing(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A hub that stops while the log has not answered."""
        monkeypatch.setattr(log, "tail", never_answers)
        async with hub_with(log) as hub:
            stream = ResponseStream(hub, ("news",), resume="garbage", now=Cursor("e", 0))
            task = asyncio.ensure_future(stream._begin())
            await asyncio.sleep(0)
            stream._todo |= streams.END
            hub._started.set()
            assert await asyncio.wait_for(task, GUARD) == b""

    async def test_what_was_read_while_a_keepalive_was_sent_comes_before_what_is_newer(self, log: Log) -> None:
        """The client was slow to take the keep-alive; the log answered meanwhile."""  # promise 4
        async with hub_with(log, KEEPALIVE=0.05) as hub:
            first = log.publish(data="1")
            log.publish(data="2")
            await hub_started(hub)
            log.answers.clear()
            async with reading(hub, resume=str(first)) as reader:
                # The stream stands in the log, which does not answer.
                assert await reader.chunk() == b":\n"
                # The client has the keep-alive in hand. What was read now waits for it.
                log.answers.set()
                work = reader.stream._work
                assert work is not None
                await asyncio.wait([work], timeout=GUARD)
                log.publish(data="3")
                await caught_up(hub, log)
                assert await reader.take(2) == ["2", "3"]

    async def test_a_reset_found_while_a_keepalive_was_sent_is_said(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At once, and before what is newer."""  # promise 4
        answers = asyncio.Event()
        ahead = log.ahead

        async def slow():
            await answers.wait()
            return await ahead()

        monkeypatch.setattr(log, "ahead", slow)
        async with hub_with(log, KEEPALIVE=0.05) as hub:
            await hub_started(hub)
            async with reading(hub, resume=f"{log.head().epoch}-99") as reader:
                assert await reader.chunk() == b":\n"
                answers.set()
                work = reader.stream._work
                assert work is not None
                await asyncio.wait([work], timeout=GUARD)
                log.publish(data="live")
                await caught_up(hub, log)
                assert (await reader.next()).event == "stream-reset"
                assert await reader.take(1) == ["live"]

    async def test_a_stream_begins_once(self, log: Log) -> None:
        """Where the log answers while a keep-alive is sent, nothing that came since the first bytes is passed over."""
        answers = asyncio.Event()
        hold_back(log, answers.wait)
        async with hub_with(log, KEEPALIVE=0.05) as hub:
            # As a response made on a thread, which has asked the log itself.
            async with reading(hub, now=log.head()) as reader:
                assert await reader.chunk() == b":\n"
                log.publish(data="1")
                answers.set()
                await caught_up(hub, log)
                assert await reader.take(1) == ["1"]
                log.publish(data="2")
                assert await reader.take(1) == ["2"]


class TestGzip:
    """Compressed once for all streams, and readable by anybody's gzip."""

    async def test_an_event_comes_as_soon_as_it_is_there(self, hub: Hub, log: Log) -> None:
        """Each chunk is whole for a reader: it holds nothing back for the next."""
        async with reading(hub, gzip=True, reader=GzipReader) as reader:
            await settled(hub, reader)
            log.publish(data="1")
            assert (await reader.pending).data == "1"
            log.publish(data="2" * 5000)
            assert (await reader.next()).data == "2" * 5000
        assert reader.body.startswith(b"\x1f\x8b\x08")

    async def test_the_first_bytes_are_there_at_once(self, hub: Hub) -> None:
        """A browser's `onopen` fires."""
        async with reading(hub, gzip=True, reader=GzipReader) as reader:
            assert (reader.parser.retry or 0) >= 1000
            assert reader.parser.comments == 1

    async def test_it_ends_as_gzip_ends(self, hub: Hub, log: Log) -> None:
        """A reader that checks sums and lengths is satisfied: after replay, live, keep-alive and the farewell."""
        log.publish(data="1")
        async with reading(hub, resume=f"{log.head().epoch}-0", gzip=True, envelope=True, reader=GzipReader) as reader:
            await reader.take(1)
            log.publish(data="2")
            await reader.take(1)
            hub.drain()
            await reader.rest()
        text = gzip.decompress(reader.body)
        assert text.count(b'"data":"1"') == text.count(b'"data":"2"') == 1
        assert text.count(b"retry: ") == 2
        assert reader.inflate.eof

    async def test_it_ends_as_gzip_ends_also_where_nothing_was_to_be_sent(self, hub: Hub) -> None:
        """A hub that stops, before the first bytes and after them, says nothing more."""
        stream = ResponseStream(hub, ("news",), gzip=True)
        stream.end()
        assert gzip.decompress(b"".join([chunk async for chunk in stream.chunks()])) == b""
        async with reading(hub, gzip=True, reader=GzipReader) as reader:
            reader.stream.end()
            await reader.rest()
        assert gzip.decompress(reader.body).startswith(b"retry: ")

    async def test_a_control_event_and_a_keepalive_are_compressed_too(self, log: Log) -> None:
        """All that a stream writes for itself alone."""
        async with hub_with(log, KEEPALIVE=0.05) as hub:
            async with reading(hub, gzip=True, resume="garbage", reader=GzipReader) as reader:
                assert (await reader.next()).event == "stream-reset"
                comments = reader.parser.comments
                await reader.chunk()
                assert reader.parser.comments == comments + 1
                hub.drain()
                await reader.rest()
            assert gzip.decompress(reader.body).count(b"\n:\n") >= 1


async def put_off(hub: Hub, **kwargs) -> EventParser:
    """What a client reads whose stream is sent away at once."""
    stream = ResponseStream(hub, ("news", "other"), **kwargs)
    body = b"".join([chunk async for chunk in stream.chunks()])
    assert stream.audience is None
    parser = EventParser()
    assert parser.feed(gzip.decompress(body) if kwargs.get("gzip") else body) == []
    return parser


class TestLimits:
    @pytest.mark.parametrize("compressed", [False, True])
    async def test_one_stream_too_many_is_put_off(
        self, log: Log, compressed: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A long retry and the end at once, counted and logged with its channels; there is room again later."""
        async with hub_with(log, MAX_STREAMS=2) as hub:
            async with reading(hub), reading(hub):
                parser = await put_off(hub, gzip=compressed)
                assert 5000 <= (parser.retry or 0) <= 20000
                assert len(hub.streams) == limits.open_streams.total == 2
            assert limits.counts == {("MAX_STREAMS", "news"): 1, ("MAX_STREAMS", "other"): 1}
            assert "limit reached: limit=MAX_STREAMS channels=news,other" in caplog.text
            assert limits.open_streams.total == 0
            async with reading(hub), reading(hub):
                assert len(hub.streams) == 2

    async def test_one_stream_too_many_of_a_user(self, log: Log, caplog: pytest.LogCaptureFixture) -> None:
        """Others, and who is not signed in, are not meant."""
        async with hub_with(log, MAX_STREAMS_PER_USER=1) as hub:
            async with reading(hub, user="1"), reading(hub, user="2"), reading(hub), reading(hub):
                assert ((await put_off(hub, user="1")).retry or 0) >= 5000
                assert limits.counts["MAX_STREAMS_PER_USER", "news"] == 1
                assert "limit=MAX_STREAMS_PER_USER channels=news,other" in caplog.text
            async with reading(hub, user="1"):
                assert limits.open_streams.by_user == {"1": 1}
            assert limits.open_streams.by_user == {}

    async def test_who_is_put_off_leaves_the_count_of_others_alone(self, log: Log) -> None:
        """However many come."""
        async with hub_with(log, MAX_STREAMS=1) as hub:
            async with reading(hub):
                for _ in range(5):
                    await put_off(hub)
                assert limits.open_streams.total == 1

    async def test_a_stream_ends_at_its_age(self, log: Log) -> None:
        """It is told when to come back, and counted; who comes together does not go together."""
        async with hub_with(log, MAX_STREAM_AGE=0.2, RETRY=(7, 7)) as hub:
            loop = asyncio.get_running_loop()
            async with reading(hub, "news") as reader:
                began = loop.time()
                await asyncio.wait_for(reader.rest(), GUARD)
                # A look comes 32 times in a fifth of it; the clock is that of the last turn.
                assert loop.time() - began >= 0.1
        assert reader.body.count(b"retry: 7\n") == 2
        assert limits.counts == {("MAX_STREAM_AGE", "news"): 1}

    async def test_ages_are_spread(self, log: Log) -> None:
        """Over a fifth of the age."""
        async with hub_with(log, MAX_STREAM_AGE=1000) as hub:
            opened = [ResponseStream(hub, ("news",)) for _ in range(200)]
            for stream in opened:
                stream.open()
            ages = [(stream._ends_at or 0) - hub.clock for stream in opened]
            assert 799 <= min(ages) < 820
            assert 980 < max(ages) <= 1000
            for stream in opened:
                stream.close()

    async def test_without_an_age_a_stream_does_not_end(self, hub: Hub) -> None:
        """None is for ever."""
        async with reading(hub) as reader:
            assert reader.stream._ends_at is None
            reader.stream.look(hub.clock + 1)
            assert not reader.stream._todo & streams.END

    async def test_a_client_that_takes_nothing_is_closed(self, log: Log, caplog: pytest.LogCaptureFixture) -> None:
        """Whoever writes for it is cancelled, as if the client had gone; counted, and logged with the channel."""
        async with hub_with(log, SLOW_CLIENT_TIMEOUT=0.1) as hub:
            stalls = asyncio.Event()
            stream = ResponseStream(hub, ("news",))

            async def server() -> None:
                async with aclosing(stream.chunks()) as chunks:
                    async for _ in chunks:
                        # As a server's send does while the client takes nothing.
                        stalls.set()
                        await asyncio.Event().wait()

            task = asyncio.ensure_future(server())
            await asyncio.wait_for(stalls.wait(), GUARD)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, GUARD)
            assert hub.streams == set()
            assert limits.open_streams.total == 0
            assert limits.counts == {("SLOW_CLIENT_TIMEOUT", "news"): 1}
            assert "limit=SLOW_CLIENT_TIMEOUT channels=news" in caplog.text

    async def test_a_client_that_takes_what_it_is_sent_is_not(self, log: Log) -> None:
        """However long nothing is published, and however often a look comes."""
        async with hub_with(log, SLOW_CLIENT_TIMEOUT=10) as hub:
            async with reading(hub) as reader:
                await settled(hub, reader)
                reader.stream.look(hub.clock + 100)
                log.publish(data="x")
                assert (await reader.pending).data == "x"
        assert limits.counts == {}

    async def test_a_stream_that_waits_for_nobody_has_nothing_to_give_up(self, hub: Hub, log: Log) -> None:
        """Its client has taken all: only its end is waited for."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            reader.stream.give_up()
            log.publish(data="x")
            assert reader.pending is not None
            assert (await reader.pending).data == "x"

    async def test_every_kind_of_stream_says_how_it_gives_up(self, hub: Hub) -> None:
        """There is no way that serves all lanes."""
        with pytest.raises(NotImplementedError):
            Stream(hub, ("news",)).give_up()

    async def test_a_receiver_that_fails_keeps_no_slow_client(self, log: Log, caplog: pytest.LogCaptureFixture) -> None:
        """What a site does when it is told of a limit is its own affair."""

        def fails(**kwargs) -> None:
            raise ZeroDivisionError

        signals.limit_reached.connect(fails)
        try:
            async with hub_with(log, MAX_STREAMS=1) as hub:
                async with reading(hub):
                    assert ((await put_off(hub)).retry or 0) >= 5000
        finally:
            signals.limit_reached.disconnect(fails)
        assert "a receiver of limit_reached failed" in caplog.text


class TestEnds:
    async def test_each_drained_stream_has_a_retry_of_its_own(self, log: Log) -> None:
        """From the least retry on, over `DRAIN_SPREAD`."""  # promise 10
        async with hub_with(log, RETRY=(1000, 1000), DRAIN_SPREAD=5) as hub:
            opened = [ResponseStream(hub, ("news",)) for _ in range(300)]
            bodies = [asyncio.ensure_future(body(stream)) for stream in opened]
            await until(lambda: len(hub.streams) == 300)
            await hub.wait_started()
            hub.drain()
            await hub.wait_empty(GUARD)
            retries = sorted(int(found) for text in await asyncio.gather(*bodies) for found in last_retry(text))
        assert len(retries) == 300
        assert retries[0] >= 1000
        assert retries[-1] <= 6000
        # Each fifth of the time has its share.
        for fifth in range(5):
            share = sum(1000 + 1000 * fifth <= retry < 2000 + 1000 * fifth for retry in retries)
            assert 25 <= share <= 105

    async def test_a_stream_that_comes_while_the_process_stops_is_sent_away(self, hub: Hub) -> None:
        """It is told when to come back, and does not join."""
        draining._begin()
        parser = await put_off(hub)
        assert 1000 <= (parser.retry or 0) <= 6000
        assert limits.open_streams.total == 0
        assert limits.counts == {}

    async def test_a_drain_before_the_first_bytes(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """The farewell is all that is written."""
        monkeypatch.setattr(log, "tail", never_answers)
        async with hub_with(log) as hub:
            stream = ResponseStream(hub, ("news",))
            stream.drain()
            text = await asyncio.wait_for(body(stream), GUARD)
            assert text.count(b"retry: ") == 1

    async def test_a_drain_while_the_log_does_not_answer(self, log: Log) -> None:
        """What a stream waits for is not waited for any more."""
        async with hub_with(log) as hub:
            first = log.publish(data="1")
            log.publish(data="2")
            await hub_started(hub)
            log.answers.clear()
            async with reading(hub, resume=str(first)) as reader:
                task = asyncio.ensure_future(reader.rest())
                await until(lambda: log.reads)
                hub.drain()
                await asyncio.wait_for(task, GUARD)
                work = reader.stream._work
            assert work is None
            assert reader.body.count(b"retry: ") == 2

    async def test_a_stream_may_be_closed_more_than_once(self, hub: Hub) -> None:
        """It is counted out once."""
        async with reading(hub) as one, reading(hub):
            one.stream.close()
            one.stream.close()
            assert limits.open_streams.total == 1

    async def test_a_stream_that_cannot_begin_is_out_again(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fault in the middle of joining leaves nothing in the hub."""  # promise 14

        def fails(**kwargs) -> None:
            raise ZeroDivisionError

        signals.feed_opened.connect(fails)
        try:
            with pytest.raises(ZeroDivisionError):
                await body(ResponseStream(hub, ("news",)))
        finally:
            signals.feed_opened.disconnect(fails)
        assert hub.streams == set()
        assert limits.open_streams.total == 0


async def body(stream: ResponseStream) -> bytes:
    """All that a stream writes until it ends by itself."""
    async with aclosing(stream.chunks()) as chunks:
        return b"".join([chunk async for chunk in chunks])


def last_retry(text: bytes) -> list[bytes]:
    return re.findall(rb"retry: (\d+)\n", text)[-1:]
