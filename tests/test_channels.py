from __future__ import annotations

import asyncio
import copy
import inspect
import os
import sqlite3
import threading
import time
import tracemalloc
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import given, settings
from hypothesis import strategies as st

from events import channels, signals
from events.channels import ChannelTable, _Rows, retention_of
from events.exceptions import BackendUnavailable
from events.models import Channel, ChannelRevision
from events.registry import event_backends

pytestmark = pytest.mark.django_db(transaction=True)

#: Seconds that nothing here may take.
GUARD = 10


class Clock:
    """Stands in for the clock that cannot be set back."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(channels, "time", clock)
    return clock


@pytest.fixture
def table(clock):
    """A table of its own, connected as the process's is."""
    table = ChannelTable()
    signals.channels_changed.connect(table.invalidate)
    yield table
    signals.channels_changed.disconnect(table.invalidate)


@pytest.fixture
def refreshed():
    """How often the process was told that its copy differs."""
    seen = []

    def note(sender, **kwargs):
        seen.append(sender)

    signals.channels_refreshed.connect(note)
    yield seen
    signals.channels_refreshed.disconnect(note)


def queries():
    return CaptureQueriesContext(connection)


def elsewhere(statement: str, *values) -> None:
    """Change the database as another process does: this one hears nothing of it."""
    other = sqlite3.connect(connection.settings_dict["NAME"], timeout=20)
    try:
        with other:
            other.execute(statement, values)
            other.execute("UPDATE events_channelrevision SET number = number + 1")
    finally:
        other.close()


# Which row


def test_an_exact_name_wins_over_every_prefix(make_channel, table):
    """However long the prefix."""
    for name in ("*", "orders.*", "orders.1*", "orders.1"):
        make_channel(name, title=name)
    assert table.get("orders.1").title == "orders.1"


def test_the_longest_prefix_wins(make_channel, table):
    """Whatever the order in which they were made."""
    for name in ("orders.*", "*", "orders.paid.*"):
        make_channel(name, title=name)
    assert table.get("orders.paid.5").title == "orders.paid.*"
    assert table.get("orders.5").title == "orders.*"
    assert table.get("other").title == "*"
    assert table.get("orders.").title == "orders.*"


def test_a_prefix_is_told_from_the_same_letters_in_another_case(make_channel, table):
    """Names are compared as they are."""
    make_channel("A.*")
    assert table.get("A.x") is not None
    assert table.get("a.x") is None


def test_a_name_under_a_prefix_gets_a_copy_that_bears_it(make_channel, table):
    """With all that the row says, and without changing the row."""
    row = make_channel("orders.*", title="Orders", interval=5)
    group = Group.objects.create(name="readers")
    row.groups.add(group)
    found = table.get("orders.7")
    assert (found.name, found.pk, found.title, found.interval) == ("orders.7", row.pk, "Orders", 5)
    assert found.group_ids == {group.pk}
    assert table.find("orders.7") is found
    assert [known.name for known in table.all()] == ["orders.*"]


def test_a_name_that_nothing_configures_is_none(make_channel, table):
    """Nothing is made up."""
    make_channel("news")
    assert table.get("other") is None
    assert table.get("") is None
    assert table.find("new") is None


def test_a_switched_off_channel_is_found(make_channel, table):
    """Whoever asks decides what that means."""
    make_channel("news", is_active=False)
    assert table.get("news").is_active is False


def test_all_rows_come_by_name(make_channel, table):
    """Names and prefixes together."""
    for name in ("b", "c.*", "a"):
        make_channel(name)
    table.refresh()
    assert [row.name for row in table.all()] == ["a", "b", "c.*"]


names = st.text("ab.", min_size=1, max_size=4)


@settings(deadline=None)
@given(st.sets(names), st.sets(names.map(lambda name: name + "*")), names)
def test_the_row_is_always_the_one_the_rule_names(exact, prefixes, name):
    """Exact, else the longest prefix, else none."""
    table = ChannelTable()
    table._rows = _Rows([Channel(name=each) for each in sorted(exact | prefixes)])
    found = table.find(name)
    covering = [prefix for prefix in prefixes if name.startswith(prefix[:-1])]
    if name in exact:
        assert found is table._rows.exact[name]
    elif covering:
        longest = max(covering, key=len)
        assert found is not None
        assert found.name == name
        assert table._rows.prefixes.index(next(row for row in table._rows.prefixes if row.name == longest)) == min(
            index for index, row in enumerate(table._rows.prefixes) if row.name in covering
        )
    else:
        assert found is None


# Memory


def test_remembered_names_have_a_limit(make_channel, table, monkeypatch):
    """At the limit all are forgotten, and looked up again when asked for."""
    monkeypatch.setattr(channels, "MAX_REMEMBERED", 3)
    make_channel("x*")
    table.refresh()
    for number in range(10):
        assert table.find(f"x{number}").name == f"x{number}"
        assert len(table._rows.remembered) <= 3
    assert table.find("x0").name == "x0"


def test_any_number_of_random_names_grows_no_memory(make_channel, table, monkeypatch):
    """Names come from outside: what they cost has a bound, under a prefix and under none."""
    monkeypatch.setattr(channels, "MAX_REMEMBERED", 100)
    make_channel("x*")
    table.refresh()

    def ask(numbers: range) -> None:
        for number in numbers:
            table.find(f"x{number}")
            table.find(f"y{number}")

    ask(range(1000))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ask(range(1000, 11_000))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(table._rows.remembered) <= 100
    assert grown < 200_000


# Freshness


def test_a_fresh_copy_asks_the_database_nothing(make_channel, table, clock):
    """Publishing thousands of events a second must not read a table for each."""
    make_channel("news")
    table.refresh()
    clock.now += channels.MAX_AGE - 0.01
    with queries() as captured:
        for _ in range(100):
            assert table.get("news").name == "news"
            assert table.find("news").name == "news"
    assert len(captured) == 0


def test_an_old_copy_takes_one_small_look_where_nothing_changed(make_channel, table, clock, refreshed):
    """One row of one table."""
    make_channel("news")
    table.refresh()
    refreshed.clear()
    clock.now += channels.MAX_AGE
    with queries() as captured:
        table.refresh()
        table.refresh()
    assert len(captured) == 1
    assert "events_channelrevision" in captured[0]["sql"]
    assert refreshed == []


def test_a_change_elsewhere_is_seen_after_half_a_second_without_a_restart(make_channel, table, clock, refreshed):
    """And not before: that is what makes it cheap."""
    make_channel("news", interval=1)
    table.refresh()
    refreshed.clear()
    elsewhere("UPDATE events_channel SET interval = 0.2")
    assert table.get("news").interval == 1
    clock.now += channels.MAX_AGE
    assert table.get("news").interval == 0.2
    assert refreshed == [ChannelTable]


def test_a_change_in_another_thread_is_seen_at_once(make_channel, table):
    """The threads of a process share the copy."""
    row = make_channel("news", interval=1)
    table.refresh()

    def change() -> None:
        row.interval = 0.2
        row.save()
        connection.close()

    thread = threading.Thread(target=change)
    thread.start()
    thread.join(GUARD)
    assert table.get("news").interval == 0.2


def test_a_change_that_no_counter_saw_is_seen_within_a_minute(make_channel, table, clock):
    """Somebody may write SQL by hand."""
    make_channel("news", interval=1)
    table.refresh()
    number = ChannelRevision.objects.get().number
    elsewhere("UPDATE events_channel SET interval = 5")
    elsewhere("UPDATE events_channelrevision SET number = ? - 1", number)
    clock.now += channels.MAX_AGE
    assert table.get("news").interval == 1
    clock.now += channels.MAX_UNREAD
    assert table.get("news").interval == 5


def test_a_name_is_looked_for_again_before_it_is_said_to_be_unknown(make_channel, table, clock):
    """It may have been made a moment ago in another process; but not every unknown name costs a look."""
    make_channel("news")
    table.refresh()
    elsewhere("UPDATE events_channel SET name = 'fresh'")
    clock.now += 0.04
    with queries() as captured:
        assert table.get("fresh") is None
    assert len(captured) == 0
    clock.now += 0.02
    assert table.get("fresh").name == "fresh"
    with queries() as captured:
        for number in range(100):
            assert table.get(f"unknown{number}") is None
    assert len(captured) == 0


def test_the_refreshed_signal_comes_only_when_something_differs(make_channel, table, refreshed):
    """It makes every stream of the process ask again for its rights."""
    row = make_channel("news", title="News")
    table.refresh()
    assert len(refreshed) == 1
    row.save()
    table.refresh()
    assert len(refreshed) == 1
    row.groups.add(Group.objects.create(name="readers"))
    table.refresh()
    assert len(refreshed) == 2
    row.delete()
    table.refresh()
    assert len(refreshed) == 3
    assert table.all() == []


def test_a_commit_is_seen_at_once_and_a_rollback_leaves_nothing(make_channel, table):
    """Inside the transaction the change is seen too: it can be published to a channel that was just made."""
    make_channel("news")
    table.refresh()
    with transaction.atomic():
        make_channel("committed")
        assert table.get("committed") is not None
    assert table.get("committed") is not None
    with transaction.atomic():
        make_channel("gone")
        assert table.get("gone") is not None
        transaction.set_rollback(True)
    table.invalidate()
    assert table.get("gone") is None


def test_what_was_rolled_back_is_not_kept_when_its_number_is_given_again(make_channel, table):
    """The next change has the number of the one that was rolled back, and is not taken for it."""
    make_channel("news")
    with transaction.atomic():
        make_channel("gone")
        table.refresh()
        assert table.find("gone") is not None
        transaction.set_rollback(True)
    make_channel("real")
    assert table.get("gone") is None
    assert table.get("real") is not None


def test_an_emptied_database_is_noticed(make_channel, table):
    """As between two tests."""
    make_channel("one")
    table.refresh()
    elsewhere("DELETE FROM events_channel")
    elsewhere("DELETE FROM events_channelrevision")
    make_channel("two")
    table.refresh()
    assert [row.name for row in table.all()] == ["two"]


def test_who_waits_for_a_look_does_not_look_again(make_channel, table, clock, monkeypatch):
    """A hundred threads that find the copy old make one query."""
    make_channel("news")

    class Lock:
        def __enter__(self) -> None:
            table._looked_at, table._seen = clock.monotonic(), table._changes

        def __exit__(self, *exc_info: object) -> None: ...

    monkeypatch.setattr(table, "_lock", Lock())
    with queries() as captured:
        table.refresh()
    assert len(captured) == 0


def test_what_changes_during_a_look_is_looked_at_again(make_channel, table, monkeypatch):
    """Also where a log tells of changes: the copy would be good for twenty seconds."""
    make_channel("one")
    table.listen()
    look = table._look

    def slowly(*args: Any) -> bool:
        found = bool(look(*args))
        # Another thread makes a channel, and says so.
        monkeypatch.undo()
        make_channel("two")
        return found

    monkeypatch.setattr(table, "_look", slowly)
    signals.channels_changed.connect(table.invalidate)
    try:
        table.refresh()
    finally:
        signals.channels_changed.disconnect(table.invalidate)
    assert not table.is_fresh()
    table.refresh()
    assert [row.name for row in table.all()] == ["one", "two"]
    assert table.is_fresh()


def test_a_name_that_is_remembered_during_a_reading_is_not_kept_beyond_it(make_channel, table, monkeypatch):
    """Else a stream could go on with what the channel was before."""
    row = make_channel("x*", access="public")
    table.refresh()
    copied = copy.copy

    def copy_slowly(original):
        made = copied(original)
        monkeypatch.undo()
        row.access = "staff"
        row.save()
        table.refresh()
        return made

    monkeypatch.setattr(copy, "copy", copy_slowly)
    assert table.find("x1").access == "public"
    assert table.find("x1").access == "staff"


# Asynchronous


async def test_arefresh_reads_on_another_thread_and_leaves_no_connection(make_channel):
    """A loop that waits for a database serves nobody; a connection that stays is one too many."""  # promise 13
    await sync_to_async(make_channel)("news")
    table = ChannelTable()
    threads = []
    closed = table.refresh_and_close

    def note() -> None:
        closed()
        threads.append((threading.current_thread(), connection.connection))

    table.refresh_and_close = note  # type: ignore[method-assign]
    await asyncio.wait_for(table.arefresh(), GUARD)
    assert table.find("news") is not None
    await asyncio.wait_for(table.arefresh(), GUARD)
    [(thread, left)] = threads
    assert thread is not threading.current_thread()
    assert left is None


def test_the_connection_is_closed_when_reading_fails_too(table, monkeypatch):
    """A fault must not cost a connection each time."""

    def fail(database: str) -> None:
        raise KeyError

    monkeypatch.setattr(table, "_read", fail)
    left = []

    def look() -> None:
        with pytest.raises(KeyError):
            table.refresh_and_close()
        left.append(connection.connection)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(GUARD)
    assert left == [None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_a_lock_of_its_own(make_channel, table):
    """One that another thread held at the fork would be held for ever."""
    make_channel("news")
    table._lock.acquire()
    table.after_fork()
    table.refresh()
    assert table.find("news") is not None


@pytest.mark.parametrize("shared", [channels.channel_table, event_backends], ids=["channels", "backends"])
def test_a_forked_child_really_gets_a_lock_of_its_own(shared):
    """The process's own table and registry are told of a fork, so that a child can publish."""  # promise 7
    with shared._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if shared._lock.acquire(blocking=False) else 1)
    assert os.waitpid(child, 0)[1] == 0


# Retention


def test_retention_is_what_the_row_says(make_channel):
    """By number, by age, both or neither; of a channel without a row, one day."""
    make_channel("both", history_events=5, history_seconds=60)
    make_channel("none.*", history_events=None)
    channels.channel_table.refresh()
    assert (retention_of("both").events, retention_of("both").seconds) == (5, 60)
    assert (retention_of("none.x").events, retention_of("none.x").seconds) == (None, None)
    assert (retention_of("gone").events, retention_of("gone").seconds) == (None, 86_400)


def test_the_clock_that_ages_the_copy_cannot_be_set_back():
    """Somebody who sets the machine's clock back an hour does not freeze the channels for an hour."""
    assert vars(channels)["time"] is time
    assert "time.time" not in inspect.getsource(channels)


def test_a_database_that_cannot_be_read_is_said(make_channel, table, monkeypatch):
    """As every log says it, whatever the driver raises; and the copy is as good as before."""
    make_channel("news")
    table.refresh()
    table.invalidate()
    with monkeypatch.context() as patch:
        patch.setattr(ChannelTable, "_look", lambda *args: (_ for _ in ()).throw(OperationalError("gone")))
        with pytest.raises(BackendUnavailable, match="the channels cannot be read: the database 'default' says: gone"):
            table.refresh()
    assert table.find("news") is not None
    table.refresh()
    assert table.is_fresh()
