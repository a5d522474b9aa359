from __future__ import annotations

import asyncio
import io
import os
import re
import selectors
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import aclosing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from events import apublish, keys, publish, signals
from events.backends.base import Retention
from events.backends.database import DatabaseBackend
from events.backends.memory import MemoryBackend
from events.exceptions import BackendUnavailable
from events.management.commands import tail_events
from events.models import Event, Floor, Log, PublishKey
from events.registry import event_backends
from events.wire import Cursor

pytestmark = pytest.mark.django_db(transaction=True)

DATABASE = "events.backends.database.DatabaseBackend"
#: Seconds that nothing here may take.
GUARD = 20
ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, **options) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out, **options)
    return out.getvalue()


# publish_event


def test_text_is_published_as_it_is_and_its_id_printed(make_channel):
    """So that a script can resume from it."""
    make_channel("news")
    assert run("publish_event", "news", '{"a": 1} é').strip() == str(event_backends["default"].head())
    event = Event.objects.get(channel="news")
    assert (event.channel, event.type, event.data, event.is_json) == ("news", "message", '{"a": 1} é', False)


def test_json_is_published_as_json_with_its_type(make_channel):
    """Where the caller says that it is."""
    make_channel("news")
    run("publish_event", "news", '{"a": [1, null]}', "--json", "--event", "update")
    event = Event.objects.get(channel="news")
    assert (event.type, event.data, event.is_json) == ("update", '{"a":[1,null]}', True)


def test_a_key_publishes_once_and_prints_the_first_events_id(make_channel):
    """A script that is run again does no harm."""
    make_channel("news")
    assert run("publish_event", "news", "x", "--key", "k") == run("publish_event", "news", "y", "--key", "k")
    assert Event.objects.get(channel="news").data == "x"


def test_another_log_can_be_published_to(make_channel, settings):
    """By its alias."""
    memory = {"BACKEND": "events.backends.memory.MemoryBackend"}
    settings.EVENTS = {"BACKENDS": {"default": memory, "other": memory}}
    make_channel("news")
    assert run("publish_event", "news", "x", "--using", "other").strip() == str(event_backends["other"].head())
    assert event_backends["default"].channels() == []


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("nwes", "x"), "no channel is called 'nwes'"),
        (("a b", "x"), "'a b' is not a channel name: use 1 to 100 characters"),
        (("news", "{", "--json"), "'{' is not JSON: Expecting property name"),
        (("news", "NaN", "--json"), "data cannot be written as JSON"),
        (("news", "[" * 100_000, "--json"), "is not JSON: "),
        (("news", "x", "--event", "a\nb"), "an event's type may not contain CR, LF or NUL"),
        (("news", "x", "--event", ""), "an event's type is not empty"),
        (("news", "x", "--key", ""), "an idempotency key is not empty"),
        (("news", "caf\udce9"), "an event's data is not valid Unicode"),
        (("news", "x", "--using", "defualt"), "Did you mean 'default'?"),
    ],
)
def test_what_cannot_be_published_is_said_in_a_line(make_channel, arguments, text):
    """Not with a traceback, and nothing is published."""
    make_channel("news")
    with pytest.raises(CommandError) as caught:
        run("publish_event", *arguments)
    assert text in str(caught.value)
    assert event_backends["default"].channels() == []


# prune_events


class BrokenBackend(MemoryBackend):
    """A log that cannot be reached."""

    def trim(self, retention):
        raise BackendUnavailable("trimming stopped")


def test_what_is_not_kept_goes_at_once(make_channel):
    """By number and by age, as the admin says now; and how many went is printed."""
    make_channel("few", history_events=2)
    make_channel("young", history_events=None, history_seconds=60)
    make_channel("all", history_events=None)
    before = event_backends["default"].head().position
    for _ in range(5):
        for name in ("few", "young", "all"):
            publish(name, "x")
    Event.objects.filter(channel="young", position__lt=before + 10).update(created_at=time.time() - 61)
    assert run("prune_events") == "default: 6 events removed\n"
    assert [Event.objects.filter(channel=name).count() for name in ("few", "young", "all")] == [2, 2, 5]
    assert set(Floor.objects.values_list("channel", "position")) == {("few", before + 7), ("young", before + 8)}
    assert run("prune_events") == "default: 0 events removed\n"


def test_every_log_is_pruned(make_channel, settings):
    """Each with a line of its own."""
    memory = {"BACKEND": "events.backends.memory.MemoryBackend"}
    settings.EVENTS = {"BACKENDS": {"default": memory, "other": memory}}
    make_channel("news", history_events=1)
    for _ in range(2):
        publish("news", "x", using="other")
    assert run("prune_events") == "default: 0 events removed\nother: 1 event removed\n"


def test_one_log_can_be_pruned_alone(make_channel, settings, tmp_path):
    """By its alias, as it is published to."""
    folder = {"BACKEND": "tests.backends.third_party.FolderBackend", "OPTIONS": {"folder": tmp_path}}
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": DATABASE}, "other": folder}}
    make_channel("news", history_events=1)
    for using in ("default", "other"):
        for _ in range(3):
            publish("news", "x", using=using)
    assert run("prune_events", "--using", "other") == "other: 2 events removed\n"
    assert len(event_backends["default"].read(["news"], 0, 10).events) == 3
    with pytest.raises(CommandError, match="Did you mean 'other'"):
        run("prune_events", "--using", "othr")


@pytest.mark.parametrize(
    "path, text", [(f"{__name__}.BrokenBackend", "trimming stopped"), ("nowhere.Backend", "cannot be imported")]
)
def test_a_log_that_cannot_be_pruned_is_said_in_a_line(settings, path, text):
    """And the command fails, so that a cron job is noticed."""
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": path}}}
    with pytest.raises(CommandError, match=text):
        run("prune_events")


# tail_events


class Terminal:
    """A `tail_events` that runs on this test's loop, and what it has printed."""

    def __init__(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        self.command = tail_events.Command(stdout=self.out, stderr=self.err, no_color=True)
        self.printed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        for name in ("print_event", "note"):
            setattr(self.command, name, self._seen(getattr(self.command, name)))

    def _seen(self, method):
        def noting(*args):
            method(*args)
            self.printed.set()

        return noting

    def follow(self, *names: str, since: str = "") -> None:
        cursor = None if since in ("", "earliest") else Cursor.parse(since)
        self.task = asyncio.ensure_future(
            self.command.follow(event_backends["default"], list(names), cursor, earliest=since == "earliest")
        )

    async def until(self, lines: int = 0, notes: int = 0) -> None:
        """Wait until so much was printed."""
        await asyncio.wait_for(self._until(lines, notes), GUARD)

    async def _until(self, lines: int, notes: int) -> None:
        while len(self.lines()) < lines or len(self.notes()) < notes:
            self.printed.clear()
            await self.printed.wait()

    def lines(self) -> list[str]:
        return self.out.getvalue().split("\n")[:-1]

    def notes(self) -> list[str]:
        return self.err.getvalue().split("\n")[:-1]

    async def end(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


@pytest.fixture
async def terminal():
    terminal = Terminal()
    yield terminal
    if terminal.task is not None:
        await terminal.end()


@pytest.fixture
def opened():
    """What the ticker hears of who listens."""
    heard = []

    def open_(channel, **kwargs):
        heard.append(("opened", channel))

    def close(channel, **kwargs):
        heard.append(("closed", channel))

    signals.feed_opened.connect(open_)
    signals.feed_closed.connect(close)
    yield heard
    signals.feed_opened.disconnect(open_)
    signals.feed_closed.disconnect(close)


@pytest.fixture
def started(monkeypatch):
    """Set when a tail has said where it stands: what is published from then on is live."""
    event = asyncio.Event()
    tail = DatabaseBackend.tail

    async def noting(self):
        async with aclosing(tail(self)) as batches:
            async for batch in batches:
                yield batch
                event.set()

    monkeypatch.setattr(DatabaseBackend, "tail", noting)
    return event


@pytest.fixture
def news(make_channel):
    return make_channel("news", history_events=None)


async def test_events_are_printed_as_they_come(news, terminal, opened, started):
    """Only those of the channels asked for, one line each, with cursor, time, channel and type; and ticks are made."""
    await sync_to_async(publish)("news", "before")
    terminal.follow("news", "other")
    await asyncio.wait_for(started.wait(), GUARD)
    first = await apublish("news", {"n": 1}, event="update")
    second = await apublish("news", "last")
    await terminal.until(2)
    one, two = terminal.lines()
    assert re.fullmatch(rf"{first.id} \d\d:\d\d:\d\d news update {{\"n\":1}}", one)
    assert re.fullmatch(rf"{second.id} \d\d:\d\d:\d\d news message last", two)
    assert opened == [("opened", "news"), ("opened", "other")]
    await terminal.end()
    terminal.task = None
    assert opened[2:] == [("closed", "news"), ("closed", "other")]


async def test_since_a_cursor_prints_what_followed_it(news, terminal):
    """And goes on live."""
    first, *rest = [await apublish("news", str(number)) for number in range(3)]
    terminal.follow("news", since=first.id)
    await terminal.until(2)
    rest.append(await apublish("news", "live"))
    await terminal.until(3)
    assert [line.split(" ")[0] for line in terminal.lines()] == [event.id for event in rest]
    assert terminal.notes() == []


async def test_since_earliest_prints_all_that_is_kept(news, terminal, monkeypatch):
    """Also where it takes several readings; what was trimmed before is no news."""
    monkeypatch.setattr(tail_events, "READ_LIMIT", 2)
    for number in range(7):
        await apublish("news", str(number))
    await sync_to_async(event_backends["default"].trim)(lambda name: Retention(events=5))
    terminal.follow("news", since="earliest")
    await terminal.until(5)
    assert [line.rpartition(" ")[2] for line in terminal.lines()] == ["2", "3", "4", "5", "6"]
    assert terminal.notes() == []


async def test_what_was_trimmed_is_said_once(news, terminal):
    """Never a silent hole."""  # promise 4
    first, *_ = [await apublish("news", str(number)) for number in range(5)]
    await sync_to_async(event_backends["default"].clear)(["news"])
    await apublish("news", "kept")
    terminal.follow("news", since=first.id)
    await terminal.until(1, 1)
    await apublish("news", "more")
    await terminal.until(2)
    assert terminal.notes() == ["events are missing: news was trimmed"]
    assert [line.rpartition(" ")[2] for line in terminal.lines()] == ["kept", "more"]


async def test_what_was_trimmed_is_not_said_again_at_every_reading(news, make_channel, terminal, monkeypatch):
    """Where another channel's events lie below the floor, several readings pass it."""
    await sync_to_async(make_channel)("other")
    first, *_ = [await apublish("news", str(number)) for number in range(4)]
    await apublish("other", "x")
    await sync_to_async(event_backends["default"].clear)(["other"])
    monkeypatch.setattr(tail_events, "READ_LIMIT", 1)
    terminal.follow("news", "other", since=first.id)
    await terminal.until(3)
    assert terminal.notes() == ["events are missing: other was trimmed"]


@pytest.mark.parametrize("cursor", ["beef-1", None])
async def test_a_cursor_of_another_log_is_said_and_goes_on_live(news, terminal, cursor):
    """Another epoch, or a position that the log has not come to."""
    await apublish("news", "before")
    head = await sync_to_async(event_backends["default"].head)()
    terminal.follow("news", since=cursor or f"{head.epoch}-{head.position + 5}")
    await terminal.until(0, 1)
    await apublish("news", "after")
    await terminal.until(1)
    assert terminal.notes() == ["events may be missing: the log is not the one that the cursor is of"]
    assert [line.rpartition(" ")[2] for line in terminal.lines()] == ["after"]


async def test_a_log_that_begins_a_new_life_is_said(news, terminal):
    """As after a restore."""
    first = await apublish("news", "before")
    second = await apublish("news", "seen")
    terminal.follow("news", since=first.id)
    await terminal.until(1)
    assert second.id in terminal.lines()[0]
    await sync_to_async(Log.objects.update)(epoch="feed")
    await apublish("news", "between")
    await terminal.until(1, 1)
    await apublish("news", "after")
    await terminal.until(2, 1)
    assert terminal.lines()[-1].endswith("after")
    assert terminal.lines()[-1].startswith("feed-")


async def test_a_log_that_cannot_be_read_is_said_and_read_again(news, terminal, monkeypatch):
    """The terminal stays open, and nothing is missed."""
    first, _ = [await apublish("news", text) for text in ("a", "b")]
    backend = event_backends["default"]
    read, faults = backend.aread, ["the log is away"]

    async def aread(*args):
        if faults:
            raise BackendUnavailable(faults.pop())
        return await read(*args)

    monkeypatch.setattr(backend, "aread", aread)
    monkeypatch.setattr(tail_events, "RETRY", 0)
    terminal.follow("news", since=first.id)
    await terminal.until(1, 1)
    assert terminal.notes() == ["the log is away"]
    assert terminal.lines()[0].endswith(" b")


async def test_an_event_is_one_line_whatever_is_in_it(news, terminal):
    """It cannot pass for another event, nor move the cursor of the terminal."""
    first = await apublish("news", "x")
    await apublish("news", "a\nb\r\n\x1b[2J\0\x85\u2028\u202e é 日本 \\ '", event="t\x1b[31m\u2028u")
    terminal.follow("news", since=first.id)
    await terminal.until(1)
    [line] = terminal.lines()
    assert line.endswith(r" news t\x1b[31m\u2028u a\nb\r\n\x1b[2J\x00\x85\u2028\u202e é 日本 \ '")
    assert line.isprintable()


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("news", "--since", "garbage"), "'garbage' is not a cursor: give the id of an event, or \"earliest\"."),
        (("news", "--since", "x" * 10_000), "is not a cursor"),
        (("a b",), "'a b' is not a channel name"),
        (("orders.*",), "'orders.*' is not a channel name"),
        (("news", "--using", "defualt"), "Did you mean 'default'?"),
    ],
)
def test_what_cannot_be_followed_is_said_in_a_line(arguments, text):
    """Before anything is opened."""
    with pytest.raises(CommandError) as caught:
        run("tail_events", *arguments)
    assert text in str(caught.value)


def test_a_name_that_nothing_configures_is_noted_and_followed(news, monkeypatch):
    """It is a typing error, or a channel that somebody is about to make; Ctrl-C ends the line."""

    async def follow(self, backend, names, cursor, *, earliest):
        raise KeyboardInterrupt

    monkeypatch.setattr(tail_events.Command, "follow", follow)
    out, err = io.StringIO(), io.StringIO()
    call_command("tail_events", "news", "nwes", stdout=out, stderr=err, no_color=True)
    assert (
        err.getvalue()
        == "no channel is called 'nwes' yet (see Channels in the admin): waiting for it, Ctrl-C ends that\n"
    )
    assert out.getvalue() == "\n"


# tail_events in a process of its own


class Process:
    """`manage.py tail_events` on a copy of this test's database, in a folder of its own."""

    CODE = (
        "import signal, sys\n"
        # A shell that starts a job in the background lets it ignore Ctrl-C; a terminal does not.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from django.core.management import execute_from_command_line\n"
        "execute_from_command_line(['manage.py', *sys.argv[1:]])\n"
    )

    def __init__(self, folder: Path) -> None:
        self.environment = {
            **os.environ,
            "EVENTS_TEST_DIR": str(folder),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }
        source = sqlite3.connect(connection.settings_dict["NAME"])
        copy = sqlite3.connect(folder / "db.sqlite3")
        try:
            source.backup(copy)
        finally:
            source.close()
            copy.close()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", self.CODE, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=GUARD * 3)
        assert process.returncode == 0, err
        return out


@pytest.fixture
def process(news, tmp_path):
    publish("news", "first")
    return Process(tmp_path)


@pytest.fixture
def tail(process):
    """A running `tail_events`, killed at the end whatever happens."""
    running = process.start("tail_events", "news", "--since", "earliest")
    yield running
    running.kill()
    running.communicate()


def read_line(running: subprocess.Popen[str]) -> str:
    """The next line, under a time guard."""
    assert running.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(running.stdout, selectors.EVENT_READ)
        assert selector.select(GUARD), "nothing was printed"
    return running.stdout.readline()


def test_another_process_is_followed_until_ctrl_c(process, tail):
    """Which ends the command as it should end: with exit code 0, no traceback, and a line of its own."""  # promise 1
    assert read_line(tail).endswith(" news message first\n")
    published = process.run("publish_event", "news", "from elsewhere", "--event", "greeting").strip()
    line = read_line(tail)
    assert line.startswith(f"{published} ")
    assert line.endswith(" news greeting from elsewhere\n")
    tail.send_signal(signal.SIGINT)
    out, err = tail.communicate(timeout=GUARD)
    assert (tail.returncode, out, err) == (0, "\n", "")


def test_a_pipe_that_is_closed_ends_the_command_quietly(measured, process, tail):
    """As in `tail_events news | head -1`."""
    assert read_line(tail).endswith(" first\n")
    assert tail.stdout is not None
    tail.stdout.close()
    process.run("publish_event", "news", "to nobody")
    assert tail.wait(GUARD) == 0
    assert tail.stderr is not None
    assert tail.stderr.read() == ""


# create_publish_key


def make_key(*arguments: str) -> tuple[PublishKey, str]:
    """The key that the command makes, found by what it prints, and what it says besides."""
    err = io.StringIO()
    token = run("create_publish_key", *arguments, stderr=err, no_color=True)
    key = keys.find(token.removesuffix("\n"))
    assert key is not None
    return key, err.getvalue()


def test_the_token_alone_is_printed():
    """So that it can be piped to where it is kept; the rest is for who looks on."""
    key, said = make_key("till", "orders.*", "news")
    assert (key.name, key.channels.split(), key.expires_at, key.per_minute) == ("till", ["orders.*", "news"], None, 600)
    assert said == "Made the key “till”, which never expires. Keep its token: it is not shown again.\n"


@pytest.mark.parametrize("given, number", [("1", 1), ("60", 60), ("0", None)])
def test_a_key_may_have_another_limit_or_none(given, number):
    """0 is no limit: a key that may do nothing is one that is switched off."""
    assert make_key("till", "*", "--per-minute", given)[0].per_minute == number


def test_a_key_expires_in_so_many_days():
    """To the second, and it is said when."""
    before = timezone.now()
    key, said = make_key("till", "*", "--expires", "30")
    assert key.expires_at is not None
    assert before <= key.expires_at - timedelta(days=30) <= timezone.now()
    assert f"which works until {key.expires_at:%Y-%m-%d %H:%M} UTC." in said


@pytest.mark.parametrize(
    "given, moment, said",
    [
        ("2091-01-31", "2091-01-30T18:30:00+00:00", "2091-01-31 00:00 IST"),
        ("2091-01-31T18:00", "2091-01-31T12:30:00+00:00", "2091-01-31 18:00 IST"),
        ("2091-01-31 18:00+00:00", "2091-01-31T18:00:00+00:00", "2091-01-31 18:00 UTC"),
    ],
)
def test_a_key_expires_at_a_date_of_the_sites_time(settings, given, moment, said):
    """Unless it names an offset."""
    settings.TIME_ZONE = "Asia/Kolkata"
    key, text = make_key("till", "*", "--expires", given)
    assert key.expires_at == datetime.fromisoformat(moment)
    assert f"works until {said}." in text


@pytest.mark.parametrize("given", ["2091-01-31 18:00", "2091-01-31 12:30+00:00"])
def test_a_key_expires_on_a_site_without_time_zones(settings, given):
    """Where every time is the site's."""
    settings.TIME_ZONE = "Asia/Kolkata"
    settings.USE_TZ = False
    key, said = make_key("till", "*", "--expires", given)
    assert key.expires_at == datetime(2091, 1, 31, 18)  # noqa: DTZ001 - it has none
    assert "works until 2091-01-31 18:00." in said
    assert make_key("till", "*", "--expires", "1")[0].expires_at is not None


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("", "*"), "name: This field cannot be blank."),
        (("x" * 201, "*"), "name: Ensure this value has at most 200 characters (it has 201)."),
        (("a\nb", "*"), "'a\\nb' is not a name: it has characters that cannot be shown."),
        (("caf\udce9", "*"), "is not a name"),
        (("till", "a b*c"), "channels: 'b*c' is not a channel name: use 1 to 100 characters"),
        (("till", ""), "channels: This field cannot be blank."),
        (("till", "*", "--per-minute", "-1"), "per_minute: Ensure this value is greater than or equal to "),
        (("till", "*", "--per-minute", str(10**30)), "per_minute: Ensure this value is less than or equal to "),
        (("till", "*", "--expires", "0"), "A key cannot expire at '0': give a number of days from 1 to 36500, or a da"),
        (("till", "*", "--expires", "36501"), "cannot expire at '36501'"),
        (("till", "*", "--expires", "9" * 20), "cannot expire at '999"),
        (("till", "*", "--expires", "9" * 5000), "cannot expire at '999"),
        (("till", "*", "--expires", ""), "cannot expire at ''"),
        (("till", "*", "--expires", "soon"), "cannot expire at 'soon'"),
        (("till", "*", "--expires", "2020-01-31"), "cannot expire at '2020-01-31'"),
        (("till", "*", "--expires", "2091-02-31"), "cannot expire at '2091-02-31'"),
        (("till", "*", "--expires", "9999-12-31T23:59-12:00"), "cannot expire at '9999-12-31T23:59-12:00'"),
        (("till", "*", "--expires", "0001-01-01T00:00+12:00"), "cannot expire at '0001-01-01T00:00+12:00'"),
    ],
)
@pytest.mark.parametrize("use_tz", [True, False])
def test_a_key_that_cannot_be_is_said_in_a_line(settings, arguments, text, use_tz):
    """And none is made."""
    settings.USE_TZ = use_tz
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("create_publish_key", *arguments, stdout=out)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out.getvalue() == ""
    assert not PublishKey.objects.exists()
