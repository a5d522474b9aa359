from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import given
from hypothesis import strategies as st

from events import wire
from events.exceptions import InvalidChannelName, InvalidEvent
from events.testing import EventParser, ReceivedEvent
from events.wire import Cursor, ServerSentEvent

#: Whatever UTF-8 can carry, with line ends and separators more often than chance has them.
any_text = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\r\n\0\x0b\x0c\x1c\x85\u2028\u2029\ufeff: \t"),
    )
)
#: What an id or a type may be.
field_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1, max_size=100)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
channel_names = st.from_regex(r"\A[A-Za-z0-9._-]{1,100}\Z")


def normalised(text: str) -> str:
    """What the standard lets through: a line end is a line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(body), *(place % (len(body) + 1) for place in places)})
    return [body[start:end] for start, end in pairwise(edges)]


def parsed(chunks: list[bytes]) -> list[ReceivedEvent]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def decoded_by_httpx_sse(text: str) -> list[tuple[str, str, str]]:
    lines, events = SSELineDecoder(), SSEDecoder()
    found = [events.decode(line) for line in [*lines.decode(text), *lines.flush()]]
    return [(event.event, event.data, event.id) for event in found if event is not None]


# Encoding


def test_the_simplest_event_is_a_data_line_and_a_blank_line():
    """`message` is what a client takes where no type is, so it is not written."""
    assert ServerSentEvent("hello").encode() == b"data: hello\n\n"


def test_every_field_has_its_line_and_data_come_last():
    """A parser that dispatches early has seen everything else by then."""
    event = ServerSentEvent("hello", event="greeting", id="ab-1", retry=2000)
    assert event.encode() == b"id: ab-1\nevent: greeting\nretry: 2000\ndata: hello\n\n"


@pytest.mark.parametrize(
    "data, lines",
    [
        ("", [""]),
        ("a\nb", ["a", "b"]),
        ("a\rb", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("a\n\rb", ["a", "", "b"]),
        ("\n", ["", ""]),
        ("a\n", ["a", ""]),
        ("a\r\n\r\nb", ["a", "", "b"]),
        (" a", [" a"]),
        ("a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i", ["a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i"]),
    ],
)
def test_data_is_cut_at_crlf_cr_and_lf_and_at_nothing_else(data, lines):
    """`str.splitlines` knows seven more line ends, none of which the standard has."""
    assert ServerSentEvent(data).encode() == "".join([*(f"data: {line}\n" for line in lines), "\n"]).encode()


def test_no_data_is_no_data_line():
    """A block without data moves the cursor and dispatches nothing."""
    body = ServerSentEvent(None, id="ab-7").encode()
    assert body == b"id: ab-7\n\n"
    parser = EventParser()
    assert parser.feed(body) == []
    assert parser.last_event_id == "ab-7"


def test_an_empty_id_is_written():
    """ "`id:` with an empty value takes the client's cursor away: that is a thing to say."""
    assert ServerSentEvent("x", id="").encode() == b"id: \ndata: x\n\n"


def test_retry_zero_is_written():
    """At once is a time, too."""
    assert ServerSentEvent("x", retry=0).encode() == b"retry: 0\ndata: x\n\n"


def test_text_is_utf8():
    """The standard knows no other encoding."""
    assert ServerSentEvent("é😀").encode() == "data: é😀\n\n".encode()


def test_an_event_does_not_change():
    """It was checked when it was made."""
    with pytest.raises(AttributeError):
        ServerSentEvent("x").data = "y"  # type: ignore[misc]


# What is refused


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "a\rb", "a\nb", "a\0b", "x\r\ndata: forged"])
@pytest.mark.parametrize("field", ["id", "event"])
def test_a_line_end_in_a_field_is_refused_and_shown_escaped(field, bad):
    """Nobody can write a line of their own into the stream."""  # promise 17
    name = {"id": "id", "event": "type"}[field]
    with pytest.raises(InvalidEvent, match=f"an event's {name} may not contain CR, LF or NUL: ") as caught:
        ServerSentEvent("x", **{field: bad})
    assert repr(bad)[1:-1] in str(caught.value)
    assert not re.search(r"[\r\n\0]", str(caught.value))


@given(any_text, any_text)
def test_no_field_can_be_injected(type_, id_):
    """Either the event is refused, or what comes out is one event with exactly this type and id."""  # promise 17
    try:
        body = ServerSentEvent("data", event=type_, id=id_).encode()
    except InvalidEvent:
        return
    assert parsed([body]) == [ReceivedEvent(type_, "data", id_)]
    assert len(re.split(rb"\r\n|\r|\n", body)) == 5 - (type_ == "message")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"data": b"x"}, "data is text, not bytes: b'x'. Encode it as JSON first."),
        ({"data": {"a": 1}}, "data is text, not dict: {'a': 1}. Encode it as JSON first."),
        ({"event": ""}, "an event's type is not empty: leave it out for 'message'"),
        ({"event": None}, "an event's type is text, not NoneType: None"),
        ({"event": "x" * 101}, "an event's type has at most 100 characters, not 101: "),
        ({"id": 7}, "an event's id is text, not int: 7"),
        ({"id": "x" * 129}, "an event's id has at most 128 characters, not 129: "),
        ({"retry": -1}, "retry is a whole number of milliseconds from 0 on, not -1"),
        ({"retry": 1.5}, "retry is a whole number of milliseconds from 0 on, not 1.5"),
        ({"retry": True}, "retry is a whole number of milliseconds from 0 on, not True"),
        ({"retry": "5"}, "retry is a whole number of milliseconds from 0 on, not '5'"),
        ({"data": "ab\ud800"}, "an event's data is not valid Unicode: a lone surrogate '\\ud800' at 2. Decode it with"),
        ({"event": "\udfff"}, "an event's type is not valid Unicode: a lone surrogate '\\udfff' at 0. Decode it with"),
        ({"id": "\udfff"}, "an event's id is not valid Unicode: a lone surrogate '\\udfff' at 0. Decode it with"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_value_and_the_remedy(arguments, message):
    """An error says what is wrong, shows the value and says what to do."""
    with pytest.raises(InvalidEvent) as caught:
        ServerSentEvent(**{"data": "x", **arguments})
    assert str(caught.value).startswith(message)


def test_the_longest_type_id_and_key_are_taken():
    """The limits themselves are inside."""
    assert ServerSentEvent("x", event="e" * 100, id="i" * 128).encode()
    assert wire.validate_key("k" * 200) == "k" * 200


@pytest.mark.parametrize(
    "key, message",
    [
        ("", "an idempotency key is not empty: leave it out"),
        ("k" * 201, "an event's key has at most 200 characters, not 201"),
        ("a\nb", "an event's key may not contain CR, LF or NUL"),
        (5, "an event's key is text, not int: 5"),
    ],
)
def test_a_bad_key_is_refused(key, message):
    """A key is remembered in a column of limited width."""
    with pytest.raises(InvalidEvent, match=message):
        wire.validate_key(key)


def test_a_long_value_is_shown_cut():
    """An error's text cannot be made as long as what somebody sent."""
    assert wire.shown("x" * 10_000) == "'" + "x" * 79 + "… (10002 characters)"
    assert wire.shown("é\n") == r"'\xe9\n'"


# Names


@pytest.mark.parametrize("name", ["a", "A-Z_0.9", "x" * 100, ".", "-"])
def test_a_channel_name_is_given_back(name):
    """1 to 100 of the letters, digits, dot, underscore and hyphen."""
    assert wire.validate_channel_name(name) == name
    assert wire.is_channel_name(name)


@pytest.mark.parametrize("name", ["", "x" * 101, "a b", "a*", "*", "é", "a\n", "a/b", "a\0", None, 5, b"a", "a,b"])
def test_no_channel_name_is_refused_with_what_a_name_may_be(name):
    """Also a newline at the end, which `$` would let through, and what is no text at all."""
    assert not wire.is_channel_name(name)
    with pytest.raises(
        InvalidChannelName, match=r"is not a channel name: use 1 to 100 characters of A-Z a-z 0-9 \. _ -"
    ):
        wire.validate_channel_name(name)


@pytest.mark.parametrize(
    "name, is_one",
    [
        *((name, True) for name in ("*", "a*", "x" * 99 + "*")),
        *((name, False) for name in ("x" * 100 + "*", "a", "a*b", "**", "a*\n", None)),
    ],
)
def test_a_pattern_is_a_prefix_and_a_star(name, is_one):
    """The star stands at the end, once, and counts as a character."""
    assert wire.is_channel_pattern(name) is is_one


# Cursors


@given(st.from_regex(r"\A[A-Za-z0-9]{1,32}\Z"), st.integers(0, 10**19 - 1))
def test_a_cursor_comes_back_from_its_text(epoch, position):
    """What a client sends back is what it was given, and CORS lets it through."""
    cursor = Cursor(epoch, position)
    assert Cursor.parse(str(cursor)) == cursor
    assert str(cursor).isascii()
    assert len(str(cursor)) <= wire.MAX_CURSOR
    assert ServerSentEvent("x", id=str(cursor)).encode()


@pytest.mark.parametrize(
    "value",
    [
        *[
            "",
            "-",
            "5",
            "ab",
            "ab-",
            "-5",
            "ab-05",
            "ab--5",
            "ab-5 ",
            " ab-5",
            "ab-5\n",
            "ab-x",
            "a b-5",
            "é-5",
            "ab-٣",
        ],
        *["ab_1-5", "a" * 33 + "-1", "ab-" + "9" * 20, "x" * 10_000, "a" * 127 + "-1", "1690000000000-0-1", "%00"],
    ],
)
def test_garbage_is_no_cursor(value):
    """Another server's id, or 10 kB of anything, is a fresh start and not an error."""  # promise 16
    assert Cursor.parse(value) is None


@given(any_text)
def test_no_text_makes_the_parser_of_cursors_fail(value):
    """It says None, or a cursor that spells exactly this text."""  # promise 16
    cursor = Cursor.parse(value)
    assert cursor is None or str(cursor) == value


# Through parsers


@given(st.lists(st.tuples(any_text, field_text, field_text), min_size=1, max_size=5))
def test_any_text_comes_back_equal_through_httpx_sse(events):
    """A parser that somebody else wrote reads what was meant."""  # promise 17
    body = b"".join(ServerSentEvent(data, event=type_, id=id_).encode() for data, type_, id_ in events).decode()
    assert decoded_by_httpx_sse(body) == [(type_, normalised(data), id_) for data, type_, id_ in events]


@given(st.lists(st.tuples(any_text, field_text, field_text), min_size=1, max_size=3), st.lists(st.integers(0, 10_000)))
def test_any_text_comes_back_equal_wherever_it_is_cut(events, places):
    """Also where a chunk ends inside a character or a line end."""  # promise 17
    body = wire.prelude(1000) + b"".join(ServerSentEvent(d, event=t, id=i).encode() for d, t, i in events)
    assert parsed(cut(body, places)) == [ReceivedEvent(t, normalised(d), i) for d, t, i in events]


def test_text_comes_back_equal_cut_at_every_boundary():
    """One place after the other, and byte by byte."""  # promise 17
    text = "é\r\n😀\r\r\n\n\u2028 :x\ufeff"
    body = wire.prelude(1) + ServerSentEvent(text, event="e\u2028", id="i").encode() + wire.KEEPALIVE
    expected = [ReceivedEvent("e\u2028", normalised(text), "i")]
    for place in range(len(body) + 1):
        assert parsed([body[:place], body[place:]]) == expected
    assert parsed([body[index : index + 1] for index in range(len(body))]) == expected


# JSON and envelopes


@given(json_values)
def test_escaped_json_has_one_line_for_everybody(value):
    """Clients that cut with `splitlines` find one line, and read the same value."""
    text = wire.escape_json(json.dumps(value, ensure_ascii=False))
    assert len(text.splitlines()) == 1
    assert json.loads(text) == value


def test_the_three_separators_are_escaped_and_nothing_else():
    """The rest of what JSON leaves alone is left alone."""
    assert wire.escape_json('"\x85\u2028\u2029é"') == '"\\u0085\\u2028\\u2029é"'
    assert wire.escape_json('"plain"') == '"plain"'


@given(any_text, channel_names, field_text)
def test_an_envelope_says_where_text_comes_from(data, channel, type_):
    """One `onmessage` gets the events of every channel and type, and `splitlines` cuts nothing."""
    body = wire.encode_envelope(data, is_json=False, channel=channel, event=type_, id="ab-1")
    [event] = parsed([body])
    assert (event.event, event.id) == ("message", "ab-1")
    assert event.json() == {"channel": channel, "event": type_, "data": data}
    assert len(event.data.splitlines()) == 1


@given(json_values)
def test_an_envelope_holds_json_as_json(value):
    """Not as a text that must be parsed a second time."""
    data = wire.escape_json(json.dumps(value))
    [event] = parsed([wire.encode_envelope(data, is_json=True, channel="a", event="message", id="ab-1")])
    assert event.json() == {"channel": "a", "event": "message", "data": value}


# What is about the stream


def test_a_control_event_has_no_id():
    """The cursor stays where the log's last event put it."""
    body = wire.control("stream-reset", {"channels": ["é"], "reason": "trimmed"})
    assert body == b'event: stream-reset\ndata: {"channels": ["\\u00e9"], "reason": "trimmed"}\n\n'


def test_the_prelude_has_no_blank_line_and_dispatches_nothing():
    """A blank line makes an empty event in httpx-sse: the first block goes on until the first event."""
    prelude = wire.prelude(1234)
    assert prelude == b"retry: 1234\n: stream\n"
    assert decoded_by_httpx_sse(prelude.decode()) == []
    parser = EventParser()
    assert parser.feed(prelude) == []
    assert parser.retry == 1234
    assert parser.feed(ServerSentEvent("first").encode()) == [ReceivedEvent("message", "first", "")]


def test_a_keep_alive_is_two_bytes_and_dispatches_nothing():
    """Also between two events, and after an id was sent."""
    body = (ServerSentEvent("a", id="x-1").encode() + wire.KEEPALIVE * 3 + ServerSentEvent("b").encode()).decode()
    assert wire.KEEPALIVE == b":\n"
    assert decoded_by_httpx_sse(body) == [("message", "a", "x-1"), ("message", "b", "x-1")]


def test_retry_is_drawn_from_between_the_bounds():
    """Both bounds can come out, and nothing beyond them."""
    assert {wire.random_retry((3, 5)) for _ in range(200)} == {3, 4, 5}
    assert wire.random_retry((7, 7)) == 7


def test_the_wire_format_imports_no_django():
    """It serves scripts that know nothing of a site."""
    code = (
        "import sys, events.wire\n"
        "assert events.wire.ServerSentEvent('x').encode()\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('django', 'asgiref')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
