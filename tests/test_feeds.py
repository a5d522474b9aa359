from __future__ import annotations

import asyncio
import logging
import zlib
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
from django.test import override_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from events import feeds, limits, streams, wire
from events.backends.base import Batch, NewEvent
from events.feeds import Audience, Feed, Follower, Form, Frame, joined
from events.hub import Hub
from events.streams import Stream
from events.testing import EventParser

from .hubs import Log, caught_up, hub_started, hub_with, reading, settled, without_tail


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


PLAIN = Form()


class Idle(Follower):
    """A stream that only stands somewhere."""

    deliver = wake = end = drain = give_up = hold = release = lambda self: None

    def __init__(self, channels: tuple[str, ...] = ("news",), form: Form = PLAIN) -> None:
        self.channels, self.form, self.audience = channels, form, None

    def look(self, now: float) -> None:
        """Nothing is ever due."""

    def reset_all(self, reason: str) -> None:
        """Nothing is reset."""

    def refuse(self, reason: str) -> None:
        """Nobody is refused."""


def frames(log: Log, *channels: str) -> list[Frame]:
    """One new event of each channel, as frames."""
    for channel in channels:
        log.publish(channel, f"{channel} {log.head().position + 1}")
    return [Frame(event, "e") for event in list(log._events)[-len(channels) :]]


class TestFrames:
    @pytest.mark.parametrize("envelope", [False, True])
    def test_each_form_is_made_once(self, envelope: bool) -> None:
        """The very same bytes for everybody, plain or compressed; and they say the same."""
        [frame] = frames(Log(), "news")
        assert frame.encoded(envelope) is frame.encoded(envelope)
        assert frame.deflated(envelope) is frame.deflated(envelope)
        assert zlib.decompress(frame.deflated(envelope) + b"\x03\x00", -zlib.MAX_WBITS) == frame.encoded(envelope)
        assert frame.encoded(envelope) != frame.encoded(not envelope)
        assert frame.deflated(envelope) != frame.deflated(not envelope)

    def test_a_form_that_nobody_wants_is_not_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The envelope and gzip cost nothing where they are not asked for."""
        monkeypatch.setattr(feeds, "deflate", lambda data: pytest.fail("compressed"))
        monkeypatch.setattr(wire, "encode_envelope", lambda *args, **kwargs: pytest.fail("wrapped"))
        [frame] = frames(Log(), "news")
        assert joined([frame], Form()) == (frame.encoded(False), frame.encoded(False))

    @pytest.mark.parametrize("form", [Form(*values) for values in product([False, True], repeat=2)])
    def test_several_are_one_piece(self, form: Form) -> None:
        """In their order; what is sent and what it says."""
        found = frames(Log(), "news", "news", "other")
        chunk = joined(found, form)
        assert chunk.text == b"".join([frame.encoded(form.envelope) for frame in found])
        if form.gzip:
            assert zlib.decompress(chunk.sent + b"\x03\x00", -zlib.MAX_WBITS) == chunk.text
        else:
            assert chunk.sent is chunk.text


class TestAudiences:
    def test_what_came_is_joined_once(self) -> None:
        """For those that have all that came before, and nothing of this."""
        log = Log()
        audience = Audience((Feed("news", 0),), Form(), 0)
        assert (audience.after, audience.first, audience.newest, audience.chunk) == (0, 0, 0, None)
        audience.give(frames(log, "news", "news"))
        assert audience.chunk is not None
        assert audience.chunk.text.count(b"data: ") == 2
        assert (audience.after, audience.first, audience.newest) == (0, 1, 2)
        log.publish("other")
        audience.give(frames(log, "news"))
        # Who stands at 2 or, after the other's event, at 3, has all.
        assert (audience.after, audience.first, audience.newest) == (2, 4, 4)
        assert audience.chunk.text.count(b"data: ") == 1

    def test_what_is_too_large_to_leave_at_once_is_not_kept_joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each stream takes it from the rings in pieces."""
        monkeypatch.setattr(feeds, "MAX_CHUNK", 60)
        log = Log()
        audience = Audience((Feed("news", 0),), Form(), 0)
        audience.give(frames(log, "news", "news", "news"))
        assert audience.chunk is None
        assert (audience.after, audience.first, audience.newest) == (0, 1, 3)
        audience.give(frames(log, "news"))
        assert audience.chunk is not None
        assert (audience.after, audience.first) == (3, 4)

    def test_after_a_restart_there_is_nothing_to_give(self) -> None:
        """What was joined belongs to another life of the log, or stands above a hole."""
        audience = Audience((Feed("news", 0),), Form(), 0)
        audience.give(frames(Log(), "news"))
        audience.restart(17)
        assert (audience.after, audience.first, audience.newest, audience.chunk) == (17, 17, 17, None)

    def test_the_rings_of_several_channels_are_one_order(self) -> None:
        """Newest first, so that a stream takes the oldest from the end."""
        log = Log()
        one, two = Feed("news", 0), Feed("other", 0)
        for frame in frames(log, "news", "other", "other", "news", "other"):
            (one if frame.event.channel == "news" else two).push(frame, 100, 10_000)
        audience = Audience((one, two), Form(), 0)
        assert [frame.position for frame in audience.newer(1)] == [5, 4, 3, 2]
        assert [frame.position for frame in Audience((two,), Form(), 0).newer(2)] == [5, 3]
        assert Audience((two,), Form(), 0).newer(5) == []

    def test_the_least_complete_ring_says_from_where_on_they_can_be_used(self) -> None:
        """Below that, something of one channel may be missing."""
        one, two = Feed("news", 3), Feed("other", 7)
        assert Audience((one,), Form(), 0).since() == 3
        assert Audience((one, two), Form(), 0).since() == 7

    async def test_streams_of_the_same_channels_and_form_are_one(self, hub: Hub) -> None:
        """Others have one of their own; it goes with its last stream."""
        without_tail(hub)
        streams = [Idle(), Idle(), Idle(form=Form(envelope=True)), Idle(form=Form(gzip=True)), Idle(("news", "other"))]
        for stream in streams:
            hub.attach(stream)
        assert streams[0].audience is streams[1].audience
        assert len(hub.audiences) == 4
        assert len(hub.feeds["news"].audiences) == 4
        assert len(hub.feeds["other"].audiences) == 1
        hub.detach(streams[0])
        hub.detach(streams[0])
        assert len(hub.audiences) == 4
        for stream in streams[1:]:
            hub.detach(stream)
        assert hub.audiences == {}
        assert not hub.feeds["news"].audiences
        assert hub._task is not None
        hub._task.cancel()

    async def test_all_streams_of_an_audience_write_the_very_same_bytes(self, hub: Hub, log: Log) -> None:
        """One object, however many streams and channels, plain or compressed."""
        for form in (Form(), Form(True), Form(gzip=True), Form(True, True)):
            readers = [pulled(hub, ("news", "other"), form) for _ in range(3)]
            for reader in readers:
                await reader.greeted()
            log.append([NewEvent(channel="news", data="a"), NewEvent(channel="other", data="b")])
            await caught_up(hub, log)
            chunks = [reader.poll() for reader in readers]
            audience = readers[0].audience
            assert audience is not None
            assert audience.chunk is not None
            assert all(chunk is audience.chunk.sent for chunk in chunks)
            for reader in readers:
                reader.close()

    async def test_a_stream_in_the_middle_of_what_came_is_not_given_it(self, hub: Hub, log: Log) -> None:
        """It has the first half; it gets the second, and only that."""
        await hub_started(hub)
        ahead = pulled(hub, ("news",), Form())
        await ahead.greeted()
        log.append([NewEvent(channel="news", data=str(number)) for number in range(1, 5)])
        await caught_up(hub, log)
        for position in range(5):
            late = pulled(hub, ("news",), Form(), resume=f"{log.head().epoch}-{position}")
            chunk = await late.greeted()
            assert late.data == list(range(position + 1, 5))
            assert (chunk is ahead.audience.chunk.sent) == (position == 0)  # type: ignore[union-attr]
            assert late.poll() == b""
            late.close()
        ahead.close()

    async def test_a_full_ring_is_counted_once(self, log: Log, caplog: pytest.LogCaptureFixture) -> None:
        """It stays full: that is no news. Nor is it a warning."""
        async with hub_with(log, RING_EVENTS=2) as hub:
            with caplog.at_level(logging.DEBUG, "events.limits"):
                async with reading(hub) as reader:
                    await settled(hub, reader)
                    for number in range(6):
                        log.publish(data=str(number))
                    assert reader.pending is not None
                    await reader.pending
                    await caught_up(hub, log)
            assert limits.counts == {("RING", "news"): 1}
            [record] = [record for record in caplog.records if record.name == "events.limits"]
            assert record.levelno == logging.DEBUG


class Pulled(Stream):
    """A stream whose client takes something only when the test says so, and that waits for nothing by itself."""

    data: list[int]
    inflate: Any
    parser: EventParser
    #: The position above which it wants its events.
    since: int

    async def greeted(self) -> bytes:
        """Let it begin. Returns what it wrote last."""
        await self.hub.wait_started()
        chunk: bytes | None = None
        while self._todo:
            chunk = self.poll()
            if chunk is None:
                chunk = await self.advance()
            elif not chunk:
                # It is held until somebody has said that the client may read.
                await asyncio.sleep(0)
            self.take(chunk)
        return chunk or b""

    def take(self, chunk: bytes) -> None:
        text = self.inflate.decompress(chunk) if self.form.gzip else chunk
        for event in self.parser.feed(text):
            assert event.event != "stream-reset", event
            self.data.append(int(event.json()["data"] if self.form.envelope else event.data))

    async def pull(self, most: int = 1000) -> None:
        """Take so many chunks, or all that there is."""
        for _ in range(most):
            chunk = self.poll()
            if chunk is None:
                chunk = await self.advance()
            elif not chunk:
                return
            self.take(chunk)


def pulled(hub: Hub, channels: tuple[str, ...], form: Form, **kwargs) -> Pulled:
    stream = Pulled(hub, channels, envelope=form.envelope, gzip=form.gzip, now=hub.now(), **kwargs)
    stream.inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    stream.parser = EventParser()
    stream.data = []
    stream.open()
    return stream


NAMES = ("a", "b", "c")
operations = st.one_of(
    # A batch of the log, of events of these channels.
    st.tuples(st.just("publish"), st.lists(st.sampled_from(NAMES), min_size=1, max_size=6)),
    # A stream of these channels, in this form, from so many positions back.
    st.tuples(
        st.just("attach"),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
        st.builds(Form, st.booleans(), st.booleans()),
        st.integers(0, 12),
    ),
    # This stream takes so many chunks.
    st.tuples(st.just("pull"), st.integers(0, 20), st.integers(1, 3)),
    # This one goes.
    st.tuples(st.just("detach"), st.integers(0, 20)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(operations, max_size=40), st.sampled_from([60, 200, feeds.MAX_CHUNK]), st.integers(1, 6))
def test_every_stream_gets_exactly_its_events_once_and_in_order(
    steps: list[Any], max_chunk: int, ring_events: int
) -> None:
    """Wherever it joins, however far it falls behind, whatever others do, from rings, chunks and log alike."""
    # promises 2, 3 and 4

    async def run() -> None:
        log = Log()
        with override_settings(EVENTS={"RING_EVENTS": ring_events, "KEEPALIVE": 3600}):
            hub = Hub(log)
        # The test hands the hub its batches itself.
        without_tail(hub)
        await hub._deliver(Batch(events=[], head=log.head()))
        open_streams: list[Pulled] = []
        gone: list[Pulled] = []
        for name, *values in steps:
            if name == "publish":
                start = log.head().position
                new = [NewEvent(channel=channel, data=str(start + n)) for n, channel in enumerate(values[0], 1)]
                log.append(new)
                await hub._deliver(Batch(events=list(log._events)[-len(new) :], head=log.head()))
            elif name == "attach":
                since = max(0, log.head().position - values[2])
                resume = f"{log.head().epoch}-{since}" if values[2] else None
                stream = pulled(hub, tuple(values[0]), values[1], resume=resume)
                stream.since = since
                await stream.greeted()
                open_streams.append(stream)
            elif open_streams and name == "pull":
                await open_streams[values[0] % len(open_streams)].pull(values[1])
            elif open_streams:
                stream = open_streams.pop(values[0] % len(open_streams))
                stream.close()
                gone.append(stream)
        for stream in open_streams:
            await stream.pull()
        for stream in (*open_streams, *gone):
            due = [e.position for e in log._events if e.channel in stream.channels and e.position > stream.since]
            if stream in gone:
                due = due[: len(stream.data)]
            assert stream.data == due
            stream.close()
        assert hub.audiences == {}
        assert hub._task is not None
        hub._task.cancel()

    with (
        patch.object(feeds, "MAX_CHUNK", max_chunk),
        patch.object(streams, "MAX_CHUNK", max_chunk),
        patch.object(streams, "READ_LIMIT", 4),
    ):
        asyncio.run(run())
