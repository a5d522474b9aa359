from __future__ import annotations

import asyncio
import contextvars
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from django.test import override_settings

from events import hub as hub_module
from events import signals
from events.feeds import Feed
from events.hub import Hub, get_hub, recheck_streams
from events.registry import event_backends
from events.responses import ResponseStream
from events.rights import Rights

from .hubs import Log, caught_up, hub_started, hub_with, reading, settled
from .waiting import GUARD, until


class TestFaults:
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

    async def test_a_hub_that_is_stopped_before_it_has_begun_begins_again(self, log: Log, hub: Hub) -> None:
        """Its streams end, and the next one finds a hub that follows the log."""
        stream = ResponseStream(hub, ("news",))
        stream.open()
        hub.stop()
        await until(lambda: hub._task is None)
        await stream.advance()
        assert stream.is_over
        stream.close()
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.publish(data="x")
            assert (await reader.pending).data == "x"

    async def test_a_hub_that_begins_again_looks_where_the_log_is(self, log: Log, hub: Hub) -> None:
        """What was published while nobody followed it is nothing to who comes then."""
        await hub_started(hub)
        hub.stop()
        await until(lambda: hub._task is None)
        log.publish(data="meanwhile")
        async with reading(hub) as reader:
            await settled(hub, reader)
            log.publish(data="x")
            assert (await reader.pending).data == "x"

    async def test_the_end_of_a_hub_belongs_to_no_request(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not to the one whose stream let it begin."""
        whose = contextvars.ContextVar("whose", default="nobody's")
        found: list[str] = []
        monkeypatch.setattr(Rights, "close", lambda rights: found.append(whose.get()))
        whose.set("a request's")
        hub.start()
        hub.stop()
        await until(lambda: hub._task is None)
        assert found == ["nobody's"]

    async def test_a_closed_stream_leaves_nothing(self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        """No stream, no round, no timer; after a while no audience, no feed, no task and no tail."""  # promise 14
        monkeypatch.setattr(hub_module, "LINGER", 0)
        closed = []
        signals.feed_closed.connect(lambda channel, **kwargs: closed.append(channel), weak=False, dispatch_uid="t")
        try:
            async with reading(hub, "news", "other") as reader:
                await settled(hub, reader)
                task = hub._task
                assert task is not None
            assert hub.streams == set()
            assert not any(hub._rounds)
            assert hub.audiences == {}
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

    async def test_a_client_that_comes_and_goes_leaves_one_timer(self, hub: Hub, log: Log) -> None:
        """However often: the feed is looked at once, and again after somebody came and went later."""

        def timers() -> int:
            scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
            return sum("_drop_idle" in repr(handle) for handle in scheduled)

        for _ in range(5):
            async with reading(hub) as reader:
                await settled(hub, reader)
        assert timers() == 1
        async with reading(hub) as reader:
            await settled(hub, reader)
            hub._drop_idle(hub.feeds["news"])
        assert timers() == 2

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

    async def test_channels_that_clients_make_up_leave_no_more_than_so_many_behind(
        self, hub: Hub, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A ring waits for who comes back; names under a prefix have no end."""
        monkeypatch.setattr(hub_module, "MAX_LINGERING", 3)
        for number in range(10):
            async with reading(hub, f"room.{number}"):
                pass
        assert sorted(hub.feeds) == ["room.0", "room.1", "room.2"]
        # What waits is not counted twice when somebody comes back.
        for _ in range(5):
            async with reading(hub, "room.1"):
                pass
        assert hub._lingering == 3
        for feed in list(hub.feeds.values()):
            hub._drop_idle(feed)
        assert (hub.feeds, hub._lingering) == ({}, 0)

    async def test_a_recheck_reaches_the_hubs_of_other_loops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From any thread; a loop that was closed is passed over."""
        rechecked = asyncio.Event()
        with override_settings(EVENTS=self.MEMORY):
            hub = get_hub()
            monkeypatch.setattr(Rights, "ask_anew", lambda rights: rechecked.set())
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


class TestRounds:
    """Streams are looked after in groups, so that what is due by the clock is not one burst."""

    @pytest.mark.parametrize(
        "limits",
        [
            {},
            {"KEEPALIVE": 0.05},
            {"KEEPALIVE": 1},
            {"KEEPALIVE": 3600},
            {"SLOW_CLIENT_TIMEOUT": 1},
            {"MAX_STREAM_AGE": 0.5},
            {"KEEPALIVE": 3600, "SLOW_CLIENT_TIMEOUT": 1, "MAX_STREAM_AGE": 60},
            {"KEEPALIVE": 0.05, "SLOW_CLIENT_TIMEOUT": 0.05, "MAX_STREAM_AGE": 0.05},
        ],
    )
    async def test_a_keepalive_comes_in_the_last_fifth_of_the_silence(self, log: Log, limits: dict[str, Any]) -> None:
        """At different times in it; and each limit is looked at several times before it is reached."""
        async with hub_with(log, **limits) as hub:
            whole = hub._pause * len(hub._rounds)
            shortest = min(hub.keepalive, hub.slow_client_timeout, hub.max_stream_age or hub.keepalive)
            assert whole <= shortest / 4
            for silence in hub.silence:
                # A look that comes just before sees nothing; the next one is the last in time.
                assert silence >= hub.keepalive * 0.79
                assert silence + whole <= hub.keepalive * 1.01
            # However short: a loop has other things to do.
            assert hub._pause >= 0.0099

    async def test_streams_are_spread_over_the_rounds(self, hub: Hub) -> None:
        """Those that began together too."""
        streams = [ResponseStream(hub, ("news",)) for _ in range(300)]
        for stream in streams:
            stream.open()
        assert sum(map(len, hub._rounds)) == 300
        assert max(map(len, hub._rounds)) < 40
        assert sum(map(bool, hub._rounds)) > 25
        for stream in streams:
            stream.close()
        assert not any(hub._rounds)

    async def test_one_round_is_looked_after_at_a_time(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each in its turn, and each once before the first comes again."""
        streams = [ResponseStream(hub, ("news",)) for _ in range(100)]
        looked: list[Any] = []
        monkeypatch.setattr(ResponseStream, "look", lambda stream, now: looked.append(stream))
        for stream in streams:
            stream.open()
        for _ in hub._rounds:
            before = len(looked)
            hub._timer.cancel()  # type: ignore[union-attr]
            hub._look()
            assert len({stream.round for stream in looked[before:]}) <= 1
        assert len(looked) == len(set(looked)) == 100
        for stream in streams:
            stream.close()

    async def test_without_streams_nobody_looks(self, hub: Hub) -> None:
        """And with the next one it begins again."""
        async with reading(hub):
            assert hub._timer is not None
        hub._timer.cancel()
        hub._look()
        assert hub._timer is None
        async with reading(hub):
            assert hub._timer is not None

    async def test_who_was_just_written_to_needs_no_keepalive(self, hub: Hub) -> None:
        """It is silence that counts."""
        stream = ResponseStream(hub, ("news",))
        stream.open()
        silence = hub.silence[stream.round]
        stream._written_at = 1000.0
        stream.look(1000.0 + silence - 0.1)
        assert not stream._keepalive_due
        stream.look(1000.0 + silence)
        assert stream._keepalive_due
        stream.close()

    async def test_a_hub_that_does_not_run_need_not_be_stopped(self, hub: Hub) -> None:
        """Nor does it mind."""
        hub.stop()
        assert hub._task is None

    async def test_a_stream_that_goes_while_others_are_written_to(self, hub: Hub, log: Log) -> None:
        """Between two turns of one event: it gets nothing, and the others all of it."""
        with patch.object(hub_module, "STREAMS_PER_TURN", 1):
            async with reading(hub) as one, reading(hub) as two, reading(hub) as three:
                for reader in (one, two, three):
                    await settled(hub, reader)
                log.publish(data="1")
                await until(lambda: sum(reader.pending.done() for reader in (one, two, three)) >= 1)
                [*rest] = [reader for reader in (one, two, three) if not reader.pending.done()]
                if rest:
                    rest[0].stream.close()
                for reader in rest[1:]:
                    assert (await reader.pending).data == "1"
