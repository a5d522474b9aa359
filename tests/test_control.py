"""Messages from process to process: through the log, in the transaction of what they tell of."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import aclosing

import pytest
from asgiref.sync import sync_to_async
from django.apps import apps
from django.contrib.auth.models import AnonymousUser, Group, User
from django.contrib.auth.signals import user_logged_out
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models.signals import post_delete, post_save
from django.test import Client as Browser
from django.test import RequestFactory

from events import (
    InvalidChannelName,
    adisconnect,
    arecheck,
    control,
    disconnect,
    publish,
    recheck,
    signals,
)
from events.access import session_tag
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
            assert channel_table._told_by == 1
            hub._stop_if_idle()
            await until(lambda: hub._task is None)
            assert channel_table._told_by == 0

    async def test_a_log_of_one_process_tells_nobody_of_others(self, make_channel, open_stream, settings) -> None:
        """With the log in memory the copy is looked at as if there were none."""
        settings.EVENTS = {"BACKENDS": {"default": MEMORY}}
        await off_loop(make_channel, "news")
        await open_stream("news")
        assert channel_table._told_by == 0

    async def test_drain_ends_every_stream(self, make_channel, open_stream, measured) -> None:
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


def told(kind: str = "recheck") -> list[dict]:
    """What the messages of that kind say, oldest first; they are forgotten then."""
    rows = Event.rows.filter(channel=CONTROL_CHANNEL, type=kind).order_by("position")
    found = [json.loads(row.data) for row in rows]
    rows.delete()
    return found


class TestUsers:
    """What Django does to a user is told with it, where it may take rights away."""

    def test_a_user_who_is_saved(self, make_user) -> None:
        """Unless nothing was saved that says what they may."""
        user = make_user("ann")
        assert told() == []
        user.is_active = False
        user.save()
        assert told() == [{"users": [str(user.pk)]}]
        user.save(update_fields=["last_login"])
        assert told() == []
        user.save(update_fields=["is_staff", "email"])
        assert told() == [{"users": [str(user.pk)]}]
        user.set_password("another")
        user.save(update_fields=["password"])
        assert told() == [{"users": [str(user.pk)]}]

    def test_a_fixture_is_no_change(self, make_user, tmp_path) -> None:
        """`loaddata` writes rows as they are."""
        make_user("ann")
        fixture = tmp_path / "users.json"
        call_command("dumpdata", "auth.user", output=str(fixture))
        call_command("loaddata", str(fixture), verbosity=0)
        assert told() == []

    def test_a_proxy_of_the_user_model_counts(self, make_user, monkeypatch) -> None:
        """Django tells of its changes under its own name."""
        user = make_user("ann")

        class Proxy(User):
            class Meta:
                proxy = True
                app_label = "tests"

        try:
            monkeypatch.setattr(apps, "get_models", lambda *args, **kwargs: [User, Channel, Proxy])
            control._watch_users()
            Proxy.objects.get(pk=user.pk).save()
            assert told() == [{"users": [str(user.pk)]}]
        finally:
            monkeypatch.undo()
            apps.all_models["tests"].clear()
            apps.clear_cache()

    def test_a_user_model_without_groups(self, monkeypatch) -> None:
        """A site's own may have none."""
        monkeypatch.setattr(control, "get_user_model", lambda: Session)
        try:
            control._watch_users()
        finally:
            assert post_save.disconnect(sender=Session, dispatch_uid="events.sessions.Session.saved")
            assert post_delete.disconnect(sender=Session, dispatch_uid="events.sessions.Session.deleted")

    def test_a_user_who_is_deleted(self, make_user) -> None:
        """Also with many others."""
        users = [make_user(name) for name in ("ann", "bob")]
        User.objects.all().delete()
        assert sorted(message["users"][0] for message in told()) == sorted(str(user.pk) for user in users)

    def test_groups_that_change(self, make_user) -> None:
        """From either side. A group that is emptied does not say who was in it: all are asked for."""
        ann, bob = make_user("ann"), make_user("bob")
        group = Group.objects.create(name="readers")
        ann.groups.add(group)
        assert told() == [{"users": [str(ann.pk)]}]
        ann.groups.remove(group)
        assert told() == [{"users": [str(ann.pk)]}]
        ann.groups.clear()
        assert told() == [{"users": [str(ann.pk)]}]
        group.user_set.add(ann, bob)
        assert [sorted(message["users"]) for message in told()] == [sorted([str(ann.pk), str(bob.pk)])]
        group.user_set.remove(bob)
        assert told() == [{"users": [str(bob.pk)]}]
        group.user_set.clear()
        assert told() == [{}]

    def test_a_log_out(self, make_user) -> None:
        """The session is named by its tag. Who has no session leaves none."""
        browser = Browser()
        browser.force_login(make_user("ann"))
        key = str(browser.session.session_key)
        browser.logout()
        assert told() == [{"session": session_tag(key)}]
        user_logged_out.send(sender=User, request=None, user=None)
        request = RequestFactory().get("/")
        user_logged_out.send(sender=User, request=request, user=None)
        request.session = SessionStore()
        user_logged_out.send(sender=User, request=request, user=None)
        assert told() == []

    def test_what_is_rolled_back_is_not_told(self, make_user) -> None:
        """And a transaction that is lost already is left alone."""
        user = make_user("ann", is_active=False)
        with transaction.atomic():
            user.save()
            transaction.set_rollback(True)
            post_delete.send(sender=User, instance=user, using="default")
        assert told() == []


class TestSaying:
    """`events.recheck` and `events.disconnect`."""

    def test_who_and_what_is_meant(self, make_user) -> None:
        """A user or a key; names or prefixes, one of which needs no list."""
        user = make_user("ann")
        recheck()
        recheck(user=user)
        recheck(user=user.pk, channels=["news", "room.*"])
        recheck(channels="news")
        assert told() == [
            {},
            {"users": [str(user.pk)]},
            {"users": [str(user.pk)], "channels": ["news", "room.*"]},
            {"channels": ["news"]},
        ]
        disconnect(user=user)
        disconnect(7)
        assert told("disconnect") == [{"user": str(user.pk)}, {"user": "7"}]

    async def test_from_async_code(self) -> None:
        """Without blocking the loop."""
        await arecheck(user=5, channels=["news"])
        await adisconnect(user=5)
        assert await sync_to_async(told)() == [{"users": ["5"], "channels": ["news"]}]
        assert await sync_to_async(told)("disconnect") == [{"user": "5"}]

    def test_what_cannot_be_is_refused(self) -> None:
        """And nobody is told anything."""
        for user in (AnonymousUser(), User(username="new"), ""):
            with pytest.raises(ValueError, match="has no primary key: streams are known by that of a saved user"):
                disconnect(user=user)
            with pytest.raises(ValueError, match="has no primary key"):
                recheck(user=user)
        for channels in (["a*b"], ["a\nb"], [""], "x y"):
            with pytest.raises(InvalidChannelName):
                recheck(channels=channels)
        assert told() == told("disconnect") == []

    async def test_a_disconnected_users_streams_end(self, make_channel, open_stream) -> None:
        """With a reason that says that it was the site."""
        await off_loop(make_channel, "news")

        async def allowed() -> bool:
            return True

        stays = await open_stream("news", allowed=allowed, user="6")
        goes = await open_stream("news", allowed=allowed, user="5")
        await off_loop(elsewhere, "from events import disconnect; disconnect(user=5)")
        await asyncio.wait_for(goes.task, GUARD)
        assert goes.events == ["stream-closed"]
        assert b'{"reason": "disconnected"}' in goes.body.replace(b'":"', b'": "')
        assert stays.events == []
