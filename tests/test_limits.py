from __future__ import annotations

import logging
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from django.test import override_settings

from events import limits, signals
from events.limits import OpenStreams, address_of, reached, who
from events.testing import EventParser


class TestOpenStreams:
    def test_as_many_as_are_allowed(self) -> None:
        """One more when one has gone; None is any number."""
        streams = OpenStreams()
        assert streams.admit(None, 2, None) is None
        assert streams.admit("1", 2, None) is None
        assert streams.admit(None, 2, None) == "MAX_STREAMS"
        streams.leave("1")
        assert streams.admit(None, 2, None) is None
        assert streams.admit(None, None, None) is None
        assert streams.total == 3

    def test_each_user_has_as_many(self) -> None:
        """Who is not signed in is nobody's second."""
        streams = OpenStreams()
        assert [streams.admit("1", None, 2) for _ in range(3)] == [None, None, "MAX_STREAMS_PER_USER"]
        assert streams.admit("2", None, 2) is None
        assert [streams.admit(None, None, 2) for _ in range(3)] == [None, None, None]
        assert streams.total == 6
        streams.leave("1")
        assert streams.admit("1", None, 2) is None

    def test_each_address_has_as_many(self) -> None:
        """Whoever comes from it; where none is known, it is nobody's second."""
        streams = OpenStreams()
        admitted = [streams.admit(user, None, None, "192.0.2.1", 2) for user in ("1", None, "2")]
        assert admitted == [None, None, "MAX_STREAMS_PER_ADDRESS"]
        assert streams.admit("2", None, None, "192.0.2.2", 2) is None
        assert [streams.admit("2", None, None, None, 2) for _ in range(3)] == [None, None, None]
        assert streams.total == 6
        streams.leave(None, "192.0.2.1")
        assert streams.admit("2", None, None, "192.0.2.1", 2) is None

    def test_the_limit_of_all_comes_first(self) -> None:
        """Where more than one is reached; then that of the user."""
        streams = OpenStreams()
        assert streams.admit("1", 1, 1, "192.0.2.1", 1) is None
        assert streams.admit("1", 1, 1, "192.0.2.1", 1) == "MAX_STREAMS"
        assert streams.admit("1", 2, 1, "192.0.2.1", 1) == "MAX_STREAMS_PER_USER"
        assert streams.admit("2", 2, 1, "192.0.2.1", 1) == "MAX_STREAMS_PER_ADDRESS"

    def test_who_has_gone_is_not_remembered(self) -> None:
        """A process that serves millions of users keeps those that are there."""
        streams = OpenStreams()
        for number in range(100):
            streams.admit(str(number), None, 5, f"192.0.2.{number}", 5)
            streams.admit(str(number), None, 5, f"192.0.2.{number}", 5)
            streams.leave(str(number), f"192.0.2.{number}")
            streams.leave(str(number), f"192.0.2.{number}")
        assert (streams.total, dict(streams.by_user), dict(streams.by_address)) == (0, {}, {})

    def test_who_is_put_off_is_not_remembered(self) -> None:
        """By any of the limits: nothing is counted."""
        streams = OpenStreams()
        streams.admit("1", None, None, "192.0.2.1")
        assert streams.admit("2", 1, None, "192.0.2.2", None) == "MAX_STREAMS"
        assert streams.admit("1", None, 1, "192.0.2.2", None) == "MAX_STREAMS_PER_USER"
        assert streams.admit("2", None, None, "192.0.2.1", 1) == "MAX_STREAMS_PER_ADDRESS"
        assert (streams.total, streams.by_user, streams.by_address) == (1, {"1": 1}, {"192.0.2.1": 1})

    def test_a_stream_of_the_parent_is_no_loss(self) -> None:
        """A child that closes it, since it has its copy, does not count below nothing."""
        streams = OpenStreams()
        streams.admit("1", None, None, "192.0.2.1")
        streams.after_fork()
        streams.leave("1", "192.0.2.1")
        assert (streams.total, dict(streams.by_user), dict(streams.by_address)) == (0, {}, {})

    def test_loops_on_many_threads_share_one_limit(self) -> None:
        """A process may run more than one event loop."""
        streams = OpenStreams()
        barrier = threading.Barrier(8)
        admitted: list[bool] = []

        def come() -> None:
            barrier.wait(10)
            admitted.extend([streams.admit("1", 100, None) is None for _ in range(50)])

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sum(admitted) == streams.total == 100


def test_a_child_process_starts_with_none() -> None:
    """Also where a thread of the parent was just counting: the child does not wait for it."""
    code = """
import os, threading
import django; django.setup()
from events import limits
streams = limits.open_streams
assert streams.admit("1", None, None) is None
streams.lock.acquire()
child = os.fork()
if not child:
    limits.reached("X", ["news"])
    os._exit(0 if (streams.total, dict(streams.by_user)) == (0, {}) and streams.admit("1", 1, 1) is None else 1)
streams.lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert streams.total == 1
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


class TestAddressOf:
    @pytest.mark.parametrize("remote_addr", [None, ""])
    def test_none_counts_for_nobody(self, remote_addr: str | None) -> None:
        """A Unix socket has no address, nor has a test's client."""
        assert address_of(remote_addr) is None

    @pytest.mark.parametrize("remote_addr", ["192.0.2.7", "::ffff:192.0.2.7", "::FFFF:C000:207"])
    def test_an_ipv4_address_is_itself(self, remote_addr: str) -> None:
        """However the socket shows it: a client does not become another by the socket it comes to."""
        assert address_of(remote_addr) == "192.0.2.7"

    @pytest.mark.parametrize(
        "remote_addr", ["2001:db8:0:7::1", "2001:DB8:0:7:ffff:ffff:ffff:ffff", "2001:0db8:0000:0007:0:0:1.2.3.4"]
    )
    def test_an_ipv6_address_is_its_network(self, remote_addr: str) -> None:
        """One customer has all of its addresses, and takes another for each stream."""
        assert address_of(remote_addr) == "2001:db8:0:7::/64"

    def test_the_network_next_door_is_another(self) -> None:
        """Also where only the last of the 64 bits differs."""
        assert address_of("2001:db8:0:6:ffff::1") != address_of("2001:db8:0:7::1")

    def test_an_address_of_one_link_is_without_its_interface(self) -> None:
        """All of a link are one network."""
        assert address_of("fe80::1%eth0") == address_of("fe80::2%eth1") == "fe80::/64"

    @pytest.mark.parametrize("remote_addr", ["unknown", "192.0.2.7:443", "192.0.2.07", "1\n2\x00", "\ud800", "x" * 64])
    def test_what_is_no_address_is_itself(self, remote_addr: str) -> None:
        """A server may have taken anything from a header."""
        assert address_of(remote_addr) == remote_addr

    def test_what_is_no_address_is_cut(self) -> None:
        """As many characters are kept for each stream as somebody else likes to send, otherwise."""
        assert address_of("x" * 10_000) == "x" * 64


def test_a_log_line_says_who() -> None:
    """Quoted and cut: a user's key, or an address from a header, may be any text."""
    assert who(None, None) == ""
    assert who("7", None) == "user='7'"
    assert who("7", "192.0.2.1") == "user='7' address='192.0.2.1'"
    assert who("a\r\nWARNING: forged\x1b[2J\u2028", None) == r"user='a\r\nWARNING: forged\x1b[2J\u2028'"
    assert len(who("x" * 10_000, None)) < 120


class TestReached:
    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """What the time is, in seconds."""
        now = [0.0]
        monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now[0]))
        return now

    def test_it_is_counted_for_every_channel_and_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """The line names the limit and the channels."""
        reached("MAX_STREAMS", iter(["news", "other"]))
        assert limits.counts == {("MAX_STREAMS", "news"): 1, ("MAX_STREAMS", "other"): 1}
        [record] = caplog.records
        assert (record.name, record.levelno) == ("events.limits", logging.WARNING)
        assert record.getMessage() == "limit reached: limit=MAX_STREAMS channels=news,other"

    def test_a_thousand_times_at_once_are_one_line(self, caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
        """All are counted. Another limit has a line of its own, and so has a later time, which says what had none."""
        for number in range(1000):
            reached("MAX_STREAMS_PER_ADDRESS", ["news"], detail=who(None, f"192.0.2.{number}"))
        assert limits.counts["MAX_STREAMS_PER_ADDRESS", "news"] == 1000
        reached("MAX_STREAMS_PER_USER", ["news"])
        clock[0] = limits.QUIET - 0.1
        reached("MAX_STREAMS_PER_ADDRESS", ["other"])
        assert len(caplog.records) == 2
        clock[0] = limits.QUIET
        reached("MAX_STREAMS_PER_ADDRESS", ["news"], detail=who(None, "192.0.2.7"))
        clock[0] = 2 * limits.QUIET
        reached("MAX_STREAMS_PER_ADDRESS", ["news"])
        assert [
            record.getMessage().removeprefix("limit reached: limit=MAX_STREAMS_PER_") for record in caplog.records
        ] == [
            "ADDRESS channels=news address='192.0.2.0'",
            "USER channels=news",
            "ADDRESS channels=news address='192.0.2.7' unsaid=1000",
            "ADDRESS channels=news",
        ]

    def test_the_level_and_a_detail(self, caplog: pytest.LogCaptureFixture) -> None:
        """What is usual is not a warning."""
        with caplog.at_level(logging.DEBUG, "events.limits"):
            reached("RING", ["news"], level=logging.DEBUG, detail="bytes=8388608")
        [record] = caplog.records
        assert record.levelno == logging.DEBUG
        assert record.getMessage() == "limit reached: limit=RING channels=news bytes=8388608"

    def test_channels_without_end_are_one_line_and_little_memory(self, caplog: pytest.LogCaptureFixture) -> None:
        """Clients choose names under a prefix: those that came first have numbers of their own."""
        reached("MAX_STREAMS", ["news"])
        for number in range(3000):
            reached("MAX_STREAMS", [f"room.{number}", "news"])
            reached("SLOW_CLIENT_TIMEOUT", [f"room.{number}"])
        assert len(caplog.records) == 2
        assert len(limits._said_at) == 2
        assert len(limits.counts) == limits.MAX_COUNTED + 2
        assert limits.counts["MAX_STREAMS", "news"] == 3001
        assert limits.counts["SLOW_CLIENT_TIMEOUT", "room.0"] == 1
        assert limits.counts.total() == 9001
        for limit in ("MAX_STREAMS", "SLOW_CLIENT_TIMEOUT"):
            assert limits.counts[limit, limits.OTHERS] > 2000

    def test_the_site_is_told_each_time(self) -> None:
        """For its metrics."""
        told: list[Any] = []

        def receive(**kwargs) -> None:
            told.append((kwargs["limit"], kwargs["channels"]))

        signals.limit_reached.connect(receive)
        try:
            for _ in range(3):
                reached("MAX_STREAMS", ["news", "other"])
        finally:
            signals.limit_reached.disconnect(receive)
        assert told == [("MAX_STREAMS", ("news", "other"))] * 3

    def test_a_receiver_that_fails_is_logged_and_stops_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        """Neither the stream nor the other receivers."""
        told = []

        def fails(**kwargs) -> None:
            raise ZeroDivisionError

        def receive(**kwargs) -> None:
            told.append(1)

        for receiver in (fails, receive):
            signals.limit_reached.connect(receiver)
        try:
            reached("MAX_STREAMS", ["news"])
        finally:
            for receiver in (fails, receive):
                signals.limit_reached.disconnect(receiver)
        assert told == [1]
        assert "a receiver of limit_reached failed" in caplog.text
        assert "ZeroDivisionError" in caplog.text


def test_who_is_put_off_comes_back_much_later_than_others() -> None:
    """From the longest usual time to four times that, each at another."""
    with override_settings(EVENTS={"RETRY": (10, 1000)}):
        retries = set()
        for _ in range(200):
            parser = EventParser()
            assert parser.feed(limits.put_off()) == []
            assert parser.retry is not None
            retries.add(parser.retry)
    assert min(retries) >= 1000
    assert max(retries) <= 4000
    assert len(retries) > 100
