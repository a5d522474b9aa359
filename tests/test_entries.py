"""The newest events as pages show them before a script runs."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from events import entries as entries_module
from events import publish
from events.backends.base import StoredEvent
from events.backends.memory import MemoryBackend
from events.entries import MAX_ENTRIES, MAX_FIELD, MAX_FIELDS, MAX_TEXT, Entry, entry_of, newest_entries
from events.exceptions import BackendUnavailable
from events.registry import event_backends
from events.wire import Cursor

pytestmark = pytest.mark.django_db(transaction=True)


def shown(data: str, *, is_json: bool = True) -> Entry:
    event = StoredEvent(
        position=7, channel="news", type="alert", data=data, is_json=is_json, created_at=1_700_000_000.25
    )
    return entry_of(event, "abc", 0)


def value_of(data: str) -> str | None:
    """What is shown of a value that is neither text nor an object."""
    entry = shown(data)
    assert (entry.is_value, entry.fields, entry.rest) == (True, [], 0)
    return entry.text


class TestEntry:
    def test_it_says_which_event_it_is(self) -> None:
        """Its cursor, its channel, its type, and when it was published."""
        entry = shown("hello", is_json=False)
        assert (entry.id, entry.channel, entry.event) == ("abc-7", "news", "alert")
        assert (entry.text, entry.is_value, entry.fields, entry.rest) == ("hello", False, [], 0)

    def test_its_time_is_that_of_the_visitor(self) -> None:
        """Aware, in the time zone that is in force."""
        with timezone.override("Asia/Kathmandu"):
            at = shown("x").at
        assert at.isoformat() == "2023-11-15T03:58:20.250000+05:45"
        assert at.utcoffset() == timedelta(hours=5, minutes=45)

    def test_text_in_json_is_text(self) -> None:
        """In mono is only what is a value."""
        assert (shown('"hello"').text, shown('"hello"').is_value) == ("hello", False)
        assert shown("1 < 2", is_json=False).text == "1 < 2"

    @pytest.mark.parametrize(
        "data, expected",
        [
            ("null", "null"),
            ("true", "true"),
            ("{}", "{}"),
            ("[]", "[]"),
            ('[1, "é\\u2028", {"a": [ ]}]', '[1,"é\u2028",{"a":[]}]'),
            ('["\\u0001\\u007f\\ud800"]', '["\\u0001\x7f\\ud800"]'),
            # Numbers.
            ("1.0", "1"),
            ("-0.0", "0"),
            ("1E5", "100000"),
            ("123.456", "123.456"),
            ("9007199254740993", "9007199254740992"),
            ("1180591620717411303424", "1.1805916207174113e+21"),
            ("123456789012345678901", "123456789012345680000"),
            ("0.0001", "0.0001"),
            ("1.5e-05", "0.000015"),
            ("-0.000001", "-0.000001"),
            ("1e-7", "1e-7"),
            ("[1e-7,1e400,-1e400]", "[1e-7,null,null]"),
            # Not in strings.
            ('["1e-07",1e-07,"\\"1e-07"]', '["1e-07",1e-7,"\\"1e-07"]'),
            # Keys that are numbers come first, in their order.
            (
                '[{"b":1,"10":2,"9":3,"007":4,"4294967295":5,"4294967294":6}]',
                '[{"9":3,"10":2,"4294967294":6,"b":1,"007":4,"4294967295":5}]',
            ),
        ],
    )
    def test_a_value_reads_as_javascript_writes_it(self, data: str, expected: str) -> None:
        """As the script does when the same event comes through the stream: what was compared here is its own output."""
        assert value_of(data) == expected

    @given(st.recursive(st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(), st.lists, max_leaves=20))
    def test_any_value_without_fractions_is_compact_json(self, value: Any) -> None:
        """However it was written."""
        if not isinstance(value, str):
            assert value_of(json.dumps(value, indent=1)) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def test_an_object_is_shown_by_its_fields(self) -> None:
        """Keys and values as texts: text as it is, the rest as JSON."""
        entry = shown('{"title":"Doors <open>","at":7.0,"tags":["a", "b"],"more":{"x":null},"1":true}')
        assert entry.text is None
        assert entry.fields == [
            ("1", "true"),
            ("title", "Doors <open>"),
            ("at", "7"),
            ("tags", '["a","b"]'),
            ("more", '{"x":null}'),
        ]
        assert entry.rest == 0

    def test_what_is_too_much_is_counted(self) -> None:
        """Fields, characters of a text, of a value, of a key."""
        entry = shown(json.dumps({f"k{number}": number for number in range(MAX_FIELDS + 3)}))
        assert (len(entry.fields), entry.rest) == (MAX_FIELDS, 3)
        assert entry.fields[-1] == (f"k{MAX_FIELDS - 1}", str(MAX_FIELDS - 1))
        for data, is_json in (("x" * (MAX_TEXT + 5), False), (json.dumps("x" * (MAX_TEXT + 5)), True)):
            entry = shown(data, is_json=is_json)
            assert (entry.text, entry.rest) == ("x" * MAX_TEXT, 5)
        entry = shown(json.dumps([7] * MAX_TEXT))
        assert (len(entry.text or ""), entry.rest) == (MAX_TEXT, MAX_TEXT + 1)
        entry = shown(json.dumps({"k" * 300: "v" * MAX_FIELD, "l": "v" * (MAX_FIELD + 1), "m": [1] * 300}))
        assert entry.fields[0] == ("k" * MAX_FIELD, "v" * MAX_FIELD)
        assert entry.fields[1] == ("l", "v" * MAX_FIELD + "…")
        assert entry.fields[2] == ("m", f"[{'1,' * 300}"[:MAX_FIELD] + "…")

    def test_characters_count_as_in_javascript(self) -> None:
        """Those beyond U+FFFF twice, and half of one is none that a page could be encoded with."""
        entry = shown("😀" * 2001, is_json=False)
        assert (entry.text, entry.rest) == ("😀" * 2000, 2)
        entry = shown("x" + "😀" * 2000, is_json=False)
        assert (entry.text, entry.rest) == ("x" + "😀" * 1999 + "\ufffd", 1)
        assert shown('"a\\ud800b"').text == "a\ufffdb"
        assert shown('{"\\ud800": "\\udc00"}').fields == [("\ufffd", "\ufffd")]

    @pytest.mark.parametrize("data", ["{broken", "NaN", "[" * 200_000, '{"a":' * 200_000])
    def test_what_cannot_be_read_is_shown_as_it_is(self, data: str) -> None:
        """A page is shown whatever stands in the log."""
        entry = shown(data)
        assert (entry.text, entry.is_value) == (data[:MAX_TEXT], True)

    def test_an_entry_does_not_change(self) -> None:
        """It may be kept."""
        with pytest.raises(AttributeError):
            shown("x").text = "y"  # type: ignore[misc]
        assert not hasattr(shown("x"), "__dict__")


class AwayBackend(MemoryBackend):
    """A log whose events cannot be read, though its head can."""

    def newest(self, channels, limit):
        raise BackendUnavailable("gone")


class GoneBackend(AwayBackend):
    """A log that cannot be reached."""

    def head(self) -> Cursor:
        raise BackendUnavailable("gone")


class TestNewestEntries:
    def test_the_newest_come_first_and_the_cursor_follows_them(self, make_channel) -> None:
        """A stream that begins at the cursor brings what is published from now on."""  # promise 3
        make_channel("news")
        make_channel("talk")
        make_channel("other")
        for number, channel in enumerate(["news", "talk", "other"]):
            publish(channel, {"n": number})
        last = publish("news", {"n": 3})
        entries, cursor = newest_entries(["news", "talk"], 2)
        assert [(entry.channel, entry.fields) for entry in entries] == [("news", [("n", "3")]), ("talk", [("n", "1")])]
        assert cursor == last.id == entries[0].id
        last = publish("other", "x")
        entries, cursor = newest_entries(["news", "talk"], 100)
        assert len(entries) == 3
        assert cursor == last.id

    def test_no_page_has_more_than_fifty(self, make_channel) -> None:
        """Whatever it asks for; and none where it asks for none."""
        make_channel("news")
        for number in range(MAX_ENTRIES + 1):
            publish("news", number)
        assert len(newest_entries(["news"], 500)[0]) == MAX_ENTRIES == 50
        assert len(newest_entries(["news"], 7)[0]) == 7
        for limit in (0, -1):
            entries, cursor = newest_entries(["news"], limit)
            assert (entries, cursor) == ([], str(event_backends["default"].head()))

    def test_no_channels_have_no_events_but_a_cursor(self, django_assert_num_queries) -> None:
        """The events of nothing are not asked for."""
        head = str(event_backends["default"].head())
        with django_assert_num_queries(1):
            assert newest_entries([], 50) == ([], head)

    def test_what_comes_between_is_the_streams(self, make_channel, monkeypatch: pytest.MonkeyPatch) -> None:
        """Published after the cursor was read and before the events were: neither lost nor shown twice."""
        make_channel("news")
        before = publish("news", "before")
        backend = event_backends["default"]
        newest = backend.newest

        def newest_after_another(channels, limit):
            publish("news", "between")
            return newest(channels, limit)

        monkeypatch.setattr(backend, "newest", newest_after_another)
        entries, text = newest_entries(["news"], 10)
        assert ([entry.text for entry in entries], text) == (["before"], before.id)
        cursor = Cursor.parse(text)
        assert cursor is not None
        assert [event.data for event in backend.read(["news"], cursor.position, 10).events] == ["between"]

    @pytest.mark.parametrize("backend", ["AwayBackend", "GoneBackend"])
    def test_a_log_that_cannot_be_reached(self, backend: str, settings, caplog) -> None:
        """No entries, one line in the site's log, and the cursor where that much is known."""
        settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": f"{__name__}.{backend}"}}}
        with caplog.at_level(logging.WARNING, "events.entries"):
            entries, cursor = newest_entries(["news", "talk"], 10)
        assert entries == []
        assert (cursor == "") is (backend == "GoneBackend")
        assert [record.getMessage() for record in caplog.records] == [
            "a page has no events: channels=news,talk error=gone"
        ]

    def test_large_events_are_fewer(self, make_channel, monkeypatch: pytest.MonkeyPatch) -> None:
        """To read JSON takes long, and a page is for everybody who asks. What it leaves out is older; one is shown."""
        make_channel("news")
        for size in (1, 300, 500, 200):
            publish("news", "x" * size)
        for most, expected in ((1000, [200, 500, 300]), (999, [200, 500]), (199, [200])):
            monkeypatch.setattr(entries_module, "MAX_READ", most)
            entries, cursor = newest_entries(["news"], 50)
            assert [len(entry.text or "") for entry in entries] == expected
            assert cursor == str(event_backends["default"].head())

    def test_each_channel_has_the_colour_that_its_script_gives_it(self, make_channel) -> None:
        """By its place among the page's channels, of eight: also for who has no script."""
        names = [f"c{number}" for number in range(10)]
        for name in ("c1", "c9"):
            make_channel(name)
            publish(name, "x")
        entries, _ = newest_entries(names, 50)
        assert [(entry.channel, entry.hue) for entry in entries] == [("c9", 1), ("c1", 1)]

    def test_it_takes_two_queries(self, make_channel, django_assert_num_queries) -> None:
        """However many channels there are."""
        names = [f"c{number}" for number in range(50)]
        for name in names[:3]:
            make_channel(name)
            publish(name, "x")
        with django_assert_num_queries(2):
            assert len(newest_entries(names, 50)[0]) == 3
