from __future__ import annotations

import asyncio
import json
import threading
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from django.db import connections, transaction
from django.test import override_settings
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy, override

from events import (
    ChannelNotFound,
    EventTooLarge,
    InvalidChannelName,
    InvalidEvent,
    InvalidEventBackend,
    apublish,
    apublish_many,
    publish,
    publish_many,
)
from events.models import Channel, Event
from events.publishing import encode_data
from events.registry import event_backends

MEMORY = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}


class Colour(str, Enum):
    RED = "red"


@pytest.fixture
def news(transactional_db) -> Channel:
    return Channel.objects.create(name="news", access="public")


def stored() -> list[tuple[str, str, str]]:
    return list(Event.objects.order_by("position").values_list("channel", "type", "data"))


def test_text_goes_as_it_is(news: Channel) -> None:
    """Text is not quoted, not escaped and not stripped."""
    text = ' "hello" <b>\n{"a": 1} é '
    published = publish("news", text)
    assert published.id == str(event_backends["default"].head())
    assert (published.channel, published.event, published.repeated) == ("news", "message", False)
    assert stored() == [("news", "message", text)]


@pytest.mark.parametrize(
    "data, text",
    [
        ({"a": 1, "é": [None, True]}, '{"a":1,"é":[null,true]}'),
        ([], "[]"),
        (None, "null"),
        (1.5, "1.5"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), '"2026-01-02T03:04:05Z"'),
        (Decimal("1.10"), '"1.10"'),
        ({"line": "a\u2028b\u2029c\x85d\n"}, '{"line":"a\\u2028b\\u2029c\\u0085d\\n"}'),
    ],
)
def test_anything_else_goes_as_json(data: object, text: str) -> None:
    """As Django's encoder writes it, compact, without a character that cuts a line."""
    assert encode_data(data) == (text, True)
    assert text.splitlines() == [text]
    json.loads(text)


@pytest.mark.parametrize("data, text", [(mark_safe("<b>"), "<b>"), (Colour.RED, "red")])
def test_what_is_text_by_descent_is_text(data: str, text: str) -> None:
    """A safe string or a string enumeration is the plain text it holds."""
    encoded, is_json = encode_data(data)
    assert (encoded, is_json) == (text, False)
    assert type(encoded) is str


def test_a_lazy_translation_is_translated_now() -> None:
    """A stream has no language: the publisher's counts."""
    lazy = gettext_lazy("Yes")
    with override("de"):
        assert encode_data(lazy) == ("Ja", False)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"bytes", r"not bytes: decode it first"),
        (bytearray(b"x"), r"not bytearray"),
        (memoryview(b"x"), r"not memoryview"),
        ({1, 2}, r"cannot be written as JSON: Object of type set"),
        (float("nan"), r"cannot be written as JSON: Out of range"),
        ("a\ud800b", r"not valid Unicode: a lone surrogate '\\ud800' at 1"),
        ({"a": "\udfff"}, r"not valid Unicode"),
        (object(), r"It is '?<object object"),
    ],
)
def test_what_cannot_be_written_is_refused(data: object, message: str) -> None:
    """The error says what is wrong and what to do."""  # promise 17
    with pytest.raises(InvalidEvent, match=message):
        encode_data(data)


def test_a_circle_is_refused() -> None:
    """Data that contains itself is an `InvalidEvent`, not a crash."""
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(InvalidEvent, match="Circular"):
        encode_data(circle)


@override_settings(EVENTS={"MAX_EVENT_BYTES": 8})
@pytest.mark.parametrize("data, fits", [("x" * 8, True), ("x" * 9, False), ("é" * 4, True), ("é" * 5, False)])
def test_the_limit_counts_bytes(data: str, fits: bool) -> None:
    """`MAX_EVENT_BYTES` is of UTF-8, and an event of just that size goes."""
    if fits:
        assert encode_data(data) == (data, False)
    else:
        with pytest.raises(EventTooLarge, match=r"more than EVENTS\['MAX_EVENT_BYTES'\] = 8"):
            encode_data(data)


@pytest.mark.parametrize("name", ["", "a b", "a*", "é", "a" * 101, "a\n", None, 3])
def test_a_name_that_cannot_be_is_refused(name: object) -> None:
    """Before anything is asked of the database."""
    with pytest.raises(InvalidChannelName, match="A-Z a-z 0-9"):
        publish(name, "x")  # type: ignore[arg-type]


def test_a_channel_that_nobody_made_is_refused(news: Channel) -> None:
    """The error says where to make it."""
    with pytest.raises(ChannelNotFound, match=r"no channel is called 'nws'.*make one in the admin"):
        publish("nws", "x")


def test_a_channel_that_is_switched_off_is_refused(news: Channel) -> None:
    """Publishing to it would be silence."""
    news.is_active = False
    news.save()
    with pytest.raises(ChannelNotFound, match="switched off"):
        publish("news", "x")


@pytest.mark.parametrize("field, value", [("event", "a\nb"), ("event", ""), ("key", ""), ("key", "x" * 201)])
def test_a_type_or_key_that_cannot_be_is_refused(news: Channel, field: str, value: str) -> None:
    """And nothing is written."""  # promise 17
    with pytest.raises(InvalidEvent):
        publish("news", "x", **{field: value})
    assert stored() == []


def test_many_are_all_or_none_and_in_order(news: Channel) -> None:
    """Tuples of two to four, or mappings; one bad one and nothing is written."""
    events: list[Any] = [
        ("news", "1"),
        ("news", "2", "alert"),
        ("news", "3", "alert", "k"),
        {"channel": "news", "data": "4", "key": "k"},
        {"channel": "news", "data": {"n": 5}},
    ]
    published = publish_many(iter(events))
    assert [event.repeated for event in published] == [False, False, False, True, False]
    assert stored() == [
        ("news", "message", "1"),
        ("news", "alert", "2"),
        ("news", "alert", "3"),
        ("news", "message", '{"n":5}'),
    ]
    with pytest.raises(InvalidEvent):
        publish_many([("news", "6"), ("news", b"7")])
    assert len(stored()) == 4
    assert publish_many([]) == []


async def test_async_twins(news: Channel) -> None:
    """`apublish` and `apublish_many` do the same without blocking the loop."""  # promise 7
    one = await apublish("news", "1", event="alert", key="k")
    again, two = await apublish_many([("news", "x", "alert", "k"), ("news", "2")])
    assert again.id == one.id
    assert two.id != one.id


async def test_apublish_does_not_block_the_loop(news: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on while the log takes its time."""  # promise 7
    may_go_on = threading.Event()
    backend = event_backends["default"]
    append = backend.append

    def slow(events):
        assert may_go_on.wait(10)
        return append(events)

    monkeypatch.setattr(backend, "append", slow)
    task = asyncio.ensure_future(apublish("news", "x"))
    await asyncio.sleep(0)
    may_go_on.set()
    assert (await asyncio.wait_for(task, 10)).id is not None


def test_from_a_thread(news: Channel) -> None:
    """Any thread publishes, with nothing to set up."""  # promise 7
    results = []

    def run() -> None:
        results.append(publish("news", "x").id)
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert results == [str(event_backends["default"].head())]


def test_another_log(news: Channel) -> None:
    """`using` names the log; one that is not there is an error with the nearest name."""
    backends = {
        "default": {"BACKEND": "events.backends.database.DatabaseBackend"},
        "side": {"BACKEND": "events.backends.memory.MemoryBackend"},
    }
    with override_settings(EVENTS={"BACKENDS": backends}):
        publish("news", "x", using="side")
        assert stored() == []
        assert event_backends["side"].head().position == 1
        with pytest.raises(InvalidEventBackend, match="Did you mean 'side'"):
            publish("news", "x", using="sid")


def test_a_log_outside_the_database_waits_for_the_commit(news: Channel) -> None:
    """A rolled-back transaction publishes nothing to it either."""  # promise 5
    with override_settings(EVENTS=MEMORY):
        backend = event_backends["default"]
        with transaction.atomic():
            published = publish("news", "x")
            assert published.id is None
            assert backend.head().position == 0
        assert published.id == str(backend.head())
        with transaction.atomic():
            publish("news", "y")
            transaction.set_rollback(True)
        assert backend.head().position == 1


def test_publishing_leaves_the_trim_to_the_log(news: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each publish the log may start to trim, knowing what each channel keeps."""
    news.history_events, news.history_seconds = 7, 60
    news.save()
    asked: list[Any] = []
    monkeypatch.setattr(event_backends["default"], "maintain", asked.append)
    publish("news", "x")
    (retention_of,) = asked
    assert (retention_of("news").events, retention_of("news").seconds) == (7, 60)
    assert (retention_of("gone").events, retention_of("gone").seconds) == (None, 86_400)
