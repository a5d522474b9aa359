"""Messages from process to process: through the log, in the transaction of what they tell of."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import aclosing

import pytest
from django.db import connection, transaction

from events import control, publish, signals
from events.backends.base import CONTROL_CHANNEL, NewEvent
from events.channels import CONTROL_KEPT, MAX_AGE, MAX_TOLD_AGE, channel_table, retention_of
from events.hub import get_hub
from events.models import Channel, Event
from events.registry import event_backends
from events.responses import ResponseStream
from events.testing import EventParser

from .waiting import GUARD, until

pytestmark = pytest.mark.django_db(transaction=True)

MEMORY = {"BACKEND": "events.backends.memory.MemoryBackend"}
DATABASE = {"BACKEND": "events.backends.database.DatabaseBackend"}


def messages() -> list[str]:
    """The kinds of the messages in the site's log, oldest first."""
    rows = Event.rows.filter(channel=CONTROL_CHANNEL).order_by("position")
    return list(rows.values_list("type", flat=True))


def elsewhere(code: str) -> None:
    """Run Python in another process on this test's database."""
    subprocess.run(
        [sys.executable, "-c", f"import django; django.setup()\n{code}"], check=True, capture_output=True, timeout=60
    )


async def off_loop(function, *args):
    """Call on a thread, as a view or a command would."""

    def call():
        try:
            return function(*args)
        finally:
            connection.close()

    return await asyncio.to_thread(call)


class Client:
    """A stream and what has come out of it."""

    def __init__(self, *channels: str, **kwargs) -> None:
        self.stream = ResponseStream(get_hub(), channels, **kwargs)
        self.parser = EventParser()
        self.body = b""
        self.events: list[str] = []
        self.task = asyncio.create_task(self.read())

    async def read(self) -> None:
        async with aclosing(self.stream.chunks()) as chunks:
            async for chunk in chunks:
                self.body += chunk
                self.events += [event.event for event in self.parser.feed(chunk)]

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def open_stream():
    """Opens streams, and closes them in the end."""
    clients: list[Client] = []

    async def open_stream(*channels: str, **kwargs) -> Client:
        clients.append(Client(*channels, **kwargs))
        await until(lambda: clients[-1].body)
        await get_hub().wait_started()
        return clients[-1]

    yield open_stream
    for client in clients:
        await client.close()


def title() -> str:
    """The title of the channel, as this process knows it."""
    channel = channel_table.find("news")
    return "" if channel is None else channel.title


class TestSending:
    def test_a_change_of_a_channel_is_told_with_it(self, make_channel) -> None:
        """In its transaction: a change that is rolled back is not told."""
        make_channel("news")
        assert messages() == ["channels-changed"]
        with transaction.atomic():
            Channel.objects.update(title="News")
            assert len(messages()) == 2
            transaction.set_rollback(True)
        assert messages() == ["channels-changed"]

    def test_every_log_is_told(self, make_channel, settings) -> None:
        """A stream reads one log: that of its alias. One outside the database is told after the commit."""
        settings.EVENTS = {"BACKENDS": {"default": DATABASE, "memory": MEMORY}}
        memory = event_backends["memory"]
        with transaction.atomic():
            make_channel("news")
            assert memory.head().position == 0
        assert memory.head().position == 1
        assert messages() == ["channels-changed"]

    def test_a_log_that_cannot_be_told_fails_nobody(self, make_channel, settings, monkeypatch, caplog) -> None:
        """The channel is saved, and the next look of the other processes finds the change."""
        settings.EVENTS = {"BACKENDS": {"default": DATABASE, "wrong": {"BACKEND": "nowhere.Backend"}}}
        make_channel("news")
        assert messages() == ["channels-changed"]
        assert "processes were not told at once: log=wrong message=channels-changed" in caplog.text

    def test_a_log_that_fails_after_the_commit_fails_nobody(self, make_channel, settings, monkeypatch, caplog) -> None:
        """What else waits for the commit goes on."""
        settings.EVENTS = {"BACKENDS": {"default": MEMORY}}
        monkeypatch.setattr(event_backends["default"], "append", lambda events: 1 / 0)
        happened = []
        with transaction.atomic():
            make_channel("news")
            transaction.on_commit(lambda: happened.append("commit"))
        assert happened == ["commit"]
        assert "ZeroDivisionError" in caplog.text

    def test_a_transaction_that_is_lost_is_left_alone(self, make_channel) -> None:
        """A signal that comes after an error of the database makes no query that would hide it."""
        channel = make_channel("news")
        with transaction.atomic():
            transaction.set_rollback(True)
            signals.channel_written.send(sender=Channel, using="default")
        assert messages() == ["channels-changed"]
        assert channel.pk

    def test_nobody_can_name_the_channel(self, make_channel) -> None:
        """Neither a publisher nor a page; and it is no channel of the log's."""
        make_channel("*")
        with pytest.raises(ValueError, match="not a channel name"):
            publish(CONTROL_CHANNEL, "x")
        assert event_backends["default"].channels() == []
        assert not Event.objects.exists()

    def test_they_are_not_kept_for_long(self) -> None:
        """A process that was away for an hour asks for everything anyhow."""
        assert retention_of(CONTROL_CHANNEL) == CONTROL_KEPT


class TestReceiving:
    async def test_a_change_elsewhere_reaches_a_process_that_follows_a_log(self, make_channel, open_stream) -> None:
        """At once: no copy is looked at before it is 20 seconds old."""
        await off_loop(make_channel, "news")
        await open_stream("news")
        assert channel_table._told_by == 1
        await off_loop(channel_table.refresh_and_close)
        assert title() == ""
        await off_loop(elsewhere, "from events.models import Channel; Channel.objects.update(title='New')")
        # The message makes the copy outdated, and whoever is asked next (here: the ticker) reads it again.
        await until(lambda: title() == "New")

    async def test_a_process_that_is_told_asks_seldom(self, make_channel, open_stream, monkeypatch) -> None:
        """Only for the message that could not be sent. Once nobody tells it, it looks as often as before."""
        now = 1000.0
        monkeypatch.setattr("events.channels.time.monotonic", lambda: now)
        await off_loop(make_channel, "news")
        client = await open_stream("news")
        await off_loop(channel_table.refresh_and_close)
        now += MAX_AGE + 1
        assert channel_table.is_fresh()
        now += MAX_TOLD_AGE
        assert not channel_table.is_fresh()
        await off_loop(channel_table.refresh_and_close)
        await client.close()
        monkeypatch.setattr("events.hub.LINGER", 0)
        get_hub()._stop_if_idle()
        for feed in list(get_hub().feeds.values()):
            get_hub()._drop_idle(feed)
        await until(lambda: channel_table._told_by == 0)
        assert channel_table.is_fresh()
        now += MAX_AGE
        assert not channel_table.is_fresh()

    async def test_a_hub_that_begins_again_is_counted_once(self, make_channel, open_stream, monkeypatch) -> None:
        """One that a stream was about to join when it stopped follows the log again, and its end counts once more."""
        await off_loop(make_channel, "news")
        hub = get_hub()
        for _ in range(2):
            hub.start()
            await hub.wait_started()
            await until(lambda: hub._task is not None)
            hub._stop_if_idle()
            await until(lambda: hub._task is None)
            assert channel_table._told_by == 0

    async def test_a_log_of_one_process_tells_nobody_of_others(self, make_channel, open_stream, settings) -> None:
        """With the log in memory the copy is looked at as if there were none."""
        settings.EVENTS = {"BACKENDS": {"default": MEMORY}}
        await off_loop(make_channel, "news")
        await open_stream("news")
        assert channel_table._told_by == 0

    async def test_drain_ends_every_stream(self, make_channel, open_stream) -> None:
        """Each with a time of its own to come back, and without a blank line, which some clients take for an event."""
        await off_loop(make_channel, "news")
        clients = [await open_stream("news") for _ in range(3)]
        before = [len(client.body) for client in clients]
        await off_loop(elsewhere, "from events import control; control.drain()")
        await asyncio.wait_for(asyncio.gather(*(client.task for client in clients)), GUARD)
        for client, length in zip(clients, before, strict=True):
            assert client.body[length:].startswith(b"retry: ")
            assert b"\n\n" not in client.body
            assert client.events == []

    async def test_recheck_asks_every_stream_again(self, make_channel, open_stream) -> None:
        """The one whose rights are gone is told not to come back."""
        await off_loop(make_channel, "news")
        may_read = True

        async def allowed() -> bool:
            return may_read

        stays = await open_stream("news")
        goes = await open_stream("news", allowed=allowed)
        may_read = False
        await off_loop(elsewhere, "from events import control; control.recheck()")
        await asyncio.wait_for(goes.task, GUARD)
        assert goes.events == ["stream-closed"]
        assert stays.events == []

    async def test_cleared_histories_leave_the_rings_too(self, make_channel, open_stream) -> None:
        """A client whose cursor a ring still covers is told that something is missing, and does not get it."""
        await off_loop(make_channel, "news")
        await off_loop(make_channel, "other")
        reader = await open_stream("news", "other")
        first = await off_loop(publish, "news", "1")
        await off_loop(publish, "news", "2")
        await off_loop(publish, "other", "3")
        await until(lambda: len(reader.events) == 3)
        assert await off_loop(control.clear_history, ["news", "nobody-follows-it"]) == 2
        await until(lambda: not get_hub().feeds["news"].ring)
        assert get_hub().feeds["other"].ring
        late = await open_stream("news", resume=first.id)
        await until(lambda: late.events)
        await off_loop(publish, "news", "4")
        await until(lambda: len(late.events) == 2)
        assert late.events == ["stream-reset", "message"]

    async def test_a_message_of_a_newer_version_is_passed_over(self, make_channel, open_stream) -> None:
        """During a deployment two versions of the app follow one log."""
        await off_loop(make_channel, "news")
        reader = await open_stream("news")
        message = NewEvent(channel=CONTROL_CHANNEL, type="from-the-future", data=json.dumps({"x": 1}), is_json=True)
        await event_backends["default"].aappend([message])
        await off_loop(publish, "news", "after")
        await until(lambda: reader.events == ["message"])
