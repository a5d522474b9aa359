from __future__ import annotations

import queue
import threading
import time

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.db import OperationalError, connections
from django.test.client import ClientHandler

from events import ticks
from events.channels import MAX_AGE, channel_table
from events.models import Channel, Event, Tick
from events.sources import _registered, source
from events.ticks import Schedule, Ticker, tick

pytestmark = pytest.mark.django_db(transaction=True)

GUARD = 10


@pytest.fixture
def ticker():
    ticker = Ticker()
    yield ticker
    ticker.stop()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[tuple[str, float]]:
    """What the ticker makes, as it is made."""
    made: queue.Queue[tuple[str, float]] = queue.Queue()

    def note(channel: Channel, name: str, due_at: float) -> bool:
        made.put((name, due_at))
        return True

    monkeypatch.setattr(ticks, "tick", note)
    return made


@pytest.fixture
def my_source():
    """Registers sources that are gone after the test."""
    before = dict(_registered)
    yield source
    _registered.clear()
    _registered.update(before)


def make_channel(name: str = "clock", **kwargs) -> Channel:
    return Channel.objects.create(**{"name": name, "source": "clock", "interval": 0.1, "access": "public", **kwargs})


def data() -> list[str]:
    return list(Event.objects.order_by("position").values_list("data", flat=True))


class TestTick:
    def test_a_tick_is_made_once(self) -> None:
        """Whoever comes second, in whatever process, makes nothing."""
        channel = make_channel()
        assert tick(channel, "clock", 100.0)
        assert not tick(channel, "clock", 100.0)
        assert not tick(channel, "clock", 99.9)
        assert tick(channel, "clock", 100.1)
        assert len(data()) == 2
        assert Tick.objects.get().number == 2

    def test_two_that_claim_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both have seen that the tick is free; one gets it."""
        channel = make_channel()
        assert tick(channel, "clock", 100.0)
        both_have_looked = threading.Barrier(2, timeout=GUARD)
        get_or_create = Tick.objects.get_or_create

        def wait_for_the_other(**kwargs):
            both_have_looked.wait()
            return get_or_create(**kwargs)

        monkeypatch.setattr(Tick.objects, "get_or_create", wait_for_the_other)
        made = []

        def run() -> None:
            made.append(tick(channel, "clock", 100.1))
            connections.close_all()

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GUARD)
        assert sorted(made) == [False, True]
        assert len(data()) == 2

    def test_a_clock_that_was_set_back_does_not_stop_the_ticks(self) -> None:
        """A claim far in the future is of a clock that was wrong."""
        channel = make_channel()
        assert tick(channel, "clock", 1000.0)
        assert not tick(channel, "clock", 995.0)
        assert tick(channel, "clock", 500.0)
        assert len(data()) == 2

    def test_the_type_is_the_channels(self) -> None:
        """Interval messages have the event type that the admin says."""
        tick(make_channel(event_type="time"), "clock", 100.0)
        assert Event.objects.get().type == "time"

    def test_none_publishes_nothing(self, my_source) -> None:
        """A source that has nothing to say says nothing, and is asked again."""
        my_source("silent")(lambda channel: None)
        channel = make_channel(source="silent")
        assert tick(channel, "clock", 100.0)
        assert tick(channel, "clock", 100.1)
        assert data() == []

    def test_a_source_that_raises(self, my_source, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged and kept for the admin, the next tick tries again, and a success takes the error away."""
        answers = iter([ZeroDivisionError("no"), "fine"])

        @my_source("shaky")
        def shaky(channel: Channel) -> object:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        channel = make_channel(source="shaky")
        assert tick(channel, "clock", 100.0)
        failed = Tick.objects.get()
        assert failed.error == "ZeroDivisionError: no"
        assert failed.failed_at is not None
        assert "a source failed" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert tick(channel, "clock", 100.1)
        assert data() == ["fine"]
        healed = Tick.objects.get()
        assert (healed.error, healed.failed_at) == ("", None)

    def test_a_source_whose_own_query_fails(self, my_source) -> None:
        """An error of a database, raised by the source, is the source's too: the admin shows it."""

        @my_source("query")
        def query(channel: Channel) -> str:
            raise OperationalError("no such table: readings")

        assert tick(make_channel(source="query"), "clock", 100.0)
        assert Tick.objects.get().error == "OperationalError: no such table: readings"

    def test_a_source_that_makes_what_cannot_be_sent(self, my_source) -> None:
        """What `publish` refuses is the source's error too."""
        my_source("bytes")(lambda channel: b"x")
        tick(make_channel(source="bytes"), "clock", 100.0)
        assert Tick.objects.get().error.startswith("InvalidEvent: data is text")

    def test_a_database_that_fails_is_not_the_sources_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is raised, for the ticker to log."""
        channel = make_channel()
        monkeypatch.setattr(ticks, "publish", lambda *args, **kwargs: (_ for _ in ()).throw(OperationalError("gone")))
        with pytest.raises(OperationalError):
            tick(channel, "clock", 100.0)


class TestSchedule:
    @pytest.mark.parametrize(
        "interval, now, due_at",
        [(1, 100.0, 101.0), (1, 100.5, 101.0), (0.1, 100.0, 100.1), (0.1, 100.04, 100.1), (0.3, 100.0, 100.2)],
    )
    def test_it_is_on_the_grid(self, interval: float, now: float, due_at: float) -> None:
        """The first multiple of the interval after now."""
        schedule = Schedule(Channel(interval=interval), 0)
        schedule.move_after(now)
        assert schedule.due_at == due_at

    def test_it_does_not_drift(self) -> None:
        """A million steps on, a tick of 0.1 s is still at a tenth of a second, to the microsecond."""
        schedule = Schedule(Channel(interval=0.1), 0)
        schedule.move_after(1_800_000_000.0)
        schedule.step += 1_000_000
        assert schedule.due_at == 1_800_100_000.1

    def test_a_tick_just_made_is_not_due_again(self) -> None:
        """From its own due time the next one is the next step, whatever floating point says."""
        for interval in (0.1, 0.2, 0.3, 0.7, 1, 2.5):
            schedule = Schedule(Channel(interval=interval), 0)
            schedule.move_after(1_800_000_000.0)
            for _ in range(1000):
                step = schedule.step
                schedule.move_after(schedule.due_at)
                assert schedule.step == step + 1


class TestTicker:
    def next(self, made: queue.Queue[tuple[str, float]]) -> tuple[str, float]:
        return made.get(timeout=GUARD)

    def test_it_ticks_what_is_watched(self, ticker: Ticker, made) -> None:
        """A watched channel ticks on its grid, without a gap; one that nobody watches does not."""
        make_channel()
        make_channel("other")
        ticker.watch("clock")
        due = [self.next(made) for _ in range(5)]
        assert {name for name, _ in due} == {"clock"}
        steps = [round(due_at * 10) for _, due_at in due]
        assert steps == list(range(steps[0], steps[0] + 5))

    def test_it_stops_when_nobody_watches(self, ticker: Ticker, made) -> None:
        """After the last stream is gone the channel rests; the thread keeps no connection."""
        make_channel()
        make_channel("other")
        ticker.watch("clock")
        self.next(made)
        ticker.watch("other")
        ticker.unwatch("clock")
        # Two ticks of the other after both have been planned: by then the first would have ticked again.
        names = [self.next(made)[0] for _ in range(6)]
        assert names[-3:] == ["other"] * 3

    def test_a_feed_on_two_loops_is_watched_until_both_are_gone(self, ticker: Ticker, made) -> None:
        """Loops are counted."""
        make_channel()
        ticker.watch("clock")
        ticker.watch("clock")
        ticker.unwatch("clock")
        self.next(made)
        self.next(made)

    def test_a_change_of_the_interval_takes_effect(self, ticker: Ticker, made) -> None:
        """An hour becomes a tenth of a second while the ticker waits."""
        channel = make_channel(interval=3600)
        ticker.watch("clock")
        end = time.monotonic() + GUARD
        while "clock" not in ticker._schedules:
            assert time.monotonic() < end
            time.sleep(0.001)
        channel.interval = 0.1
        channel.save()
        ticker.look()
        self.next(made)
        self.next(made)

    def test_a_channel_that_is_switched_off_rests(self, ticker: Ticker, made) -> None:
        """Switched off, without a source, or gone: no ticks."""
        channel = make_channel()
        make_channel("other")
        ticker.watch("clock")
        ticker.watch("other")
        while self.next(made)[0] != "clock":
            pass
        channel.is_active = False
        channel.save()
        ticker.look()
        names = [self.next(made)[0] for _ in range(6)]
        assert names[-3:] == ["other"] * 3

    def test_names_under_a_prefix_tick_each(self, ticker: Ticker, made) -> None:
        """A source on `room.*` makes messages for each room that somebody watches."""
        make_channel("room.*")
        ticker.watch("room.1")
        ticker.watch("room.2")
        seen: set[str] = set()
        while seen != {"room.1", "room.2"}:
            seen.add(self.next(made)[0])

    def test_unwatched_channels_tick_in_servers_only(self, ticker: Ticker, made) -> None:
        """A request of a real server starts them; a test's client does not."""
        make_channel(only_when_watched=False)
        ticker.serve(sender=ClientHandler)
        assert ticker._thread is None
        ticker.serve(sender=ASGIHandler)
        self.next(made)
        ticker.serve(sender=ASGIHandler)

    def test_it_can_be_stopped_and_started(self, ticker: Ticker, made) -> None:
        """The next stream starts it again."""
        make_channel()
        ticker.watch("clock")
        self.next(made)
        ticker.stop()
        while not made.empty():
            made.get()
        ticker.watch("clock")
        self.next(made)

    def test_a_slow_source_holds_up_only_itself(self, ticker: Ticker, monkeypatch: pytest.MonkeyPatch) -> None:
        """While one source hangs, others go on, and its own channel waits for it."""
        hangs = threading.Event()
        made: queue.Queue[str] = queue.Queue()

        def note(channel: Channel, name: str, due_at: float) -> bool:
            made.put(name)
            if name == "slow":
                hangs.wait(GUARD)
            return True

        monkeypatch.setattr(ticks, "tick", note)
        make_channel("slow")
        make_channel("quick")
        ticker.watch("slow")
        ticker.watch("quick")
        names = [made.get(timeout=GUARD) for _ in range(10)]
        hangs.set()
        assert names.count("slow") == 1
        assert names.count("quick") == 9

    def test_a_tick_that_raises_does_not_stop_the_ticker(
        self, ticker: Ticker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is logged, and the next tick is made."""
        made: queue.Queue[str] = queue.Queue()
        faults = iter([OperationalError("gone")])

        def shaky(channel: Channel, name: str, due_at: float) -> bool:
            for fault in faults:
                raise fault
            made.put(name)
            return True

        monkeypatch.setattr(ticks, "tick", shaky)
        make_channel()
        ticker.watch("clock")
        made.get(timeout=GUARD)
        assert "a tick could not be made" in caplog.text

    def test_channels_that_cannot_be_read_are_read_again(
        self, ticker: Ticker, made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A fault of the database is logged; the thread lives on."""
        make_channel()
        faults = iter([OperationalError("gone")])
        refresh = channel_table.refresh

        def shaky() -> None:
            for fault in faults:
                raise fault
            refresh()

        monkeypatch.setattr(ticks, "FAULT_WAIT", 0.01)
        monkeypatch.setattr(channel_table, "refresh", shaky)
        ticker.watch("clock")
        self.next(made)
        assert "the channels cannot be read, trying again: gone" in caplog.text


class TestLateness:
    """The ticker's plan, driven by hand: no thread, and a clock of the test's."""

    @pytest.fixture
    def ticker(self, monkeypatch: pytest.MonkeyPatch) -> Ticker:
        ticker = Ticker()
        self.submitted: list[tuple[str, float]] = []

        def submit(name: str, schedule: Schedule) -> None:
            self.submitted.append((name, schedule.due_at))
            ticker._done.put((name, schedule, schedule.due_at))
            ticker._open_jobs += 1

        monkeypatch.setattr(ticker, "_submit", submit)
        ticker._watched["clock"] = 1
        return ticker

    def at(self, ticker: Ticker, now: float) -> list[float]:
        """What is submitted when the thread runs at `now`, until it would wait."""
        self.submitted.clear()
        channel_table.refresh()
        while True:
            ticker._collect_done(now)
            ticker._plan(now)
            before = len(self.submitted)
            self.wait = ticker._submit_due(now)
            if len(self.submitted) == before:
                return [due_at for _, due_at in self.submitted]

    def test_a_short_delay_loses_nothing(self, ticker: Ticker) -> None:
        """What is late by less than a second is made, each tick with its own number."""
        make_channel()
        assert self.at(ticker, 100.0) == []
        assert self.at(ticker, 100.45) == [100.1, 100.2, 100.3, 100.4]
        assert self.wait == pytest.approx(0.05)

    def test_there_is_no_burst_after_sleep(self, ticker: Ticker) -> None:
        """What is late by more than a second is skipped."""
        make_channel()
        self.at(ticker, 100.0)
        assert self.at(ticker, 500.05) == []
        assert self.at(ticker, 500.1) == [500.1]

    def test_a_clock_set_back_is_followed(self, ticker: Ticker) -> None:
        """The next tick is the next one of the new time."""
        make_channel()
        self.at(ticker, 100.0)
        assert self.at(ticker, 50.0) == []
        assert self.at(ticker, 50.1) == [50.1]

    def test_an_interval_changed_while_its_tick_is_made(self, ticker: Ticker) -> None:
        """The next tick is on the new grid."""
        channel = make_channel()
        self.at(ticker, 100.0)
        channel_table.refresh()
        ticker._submit_due(100.1)
        (schedule,) = ticker._schedules.values()
        assert schedule.is_busy
        channel.interval = 1
        channel.save()
        channel_table.refresh()
        ticker._plan(100.15)
        ticker._collect_done(100.15)
        assert schedule.due_at == 101.0
        assert self.at(ticker, 101.0) == [101.0]

    def test_a_channel_dropped_while_its_tick_is_made(self, ticker: Ticker) -> None:
        """It is not planned again."""
        make_channel()
        self.at(ticker, 100.0)
        ticker._submit_due(100.1)
        ticker._watched.clear()
        ticker._plan(100.15)
        ticker._collect_done(100.15)
        assert self.at(ticker, 102.0) == []

    def test_a_long_wait_is_cut(self, ticker: Ticker) -> None:
        """The channels are looked at again within a second, however far the next tick is."""
        make_channel(interval=3600)
        self.at(ticker, 100.0)
        assert self.wait == MAX_AGE < 1


def test_the_parents_streams_are_not_the_childs() -> None:
    """A forked child starts with nothing watched, and with locks that nobody holds."""
    ticker = Ticker()
    ticker._watched["clock"] = 1
    ticker._reset()
    assert not ticker._watched
    assert ticker._thread is None
