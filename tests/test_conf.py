from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from events.conf import DEFAULT_BACKENDS, KEYS, settings

DEFAULTS = {
    "BACKENDS": DEFAULT_BACKENDS,
    "KEEPALIVE": 15,
    "RETRY": (1000, 5000),
    "MAX_CHANNELS_PER_STREAM": 50,
    "MAX_EVENT_BYTES": 262_144,
    "RING_EVENTS": 1000,
    "RING_BYTES": 8 * 1024 * 1024,
    "SLOW_CLIENT_TIMEOUT": 30,
    "MAX_STREAMS": None,
    "MAX_STREAMS_PER_USER": None,
    "MAX_STREAMS_PER_ADDRESS": None,
    "MAX_STREAM_AGE": None,
    "DRAIN_SPREAD": 5,
    "RECHECK": 30,
    "CORS_ORIGINS": (),
}


def test_every_setting_has_its_default(settings):
    """A site that sets nothing gets these; a setting without a line here is a setting without a test."""
    from events.conf import settings as ours

    settings.EVENTS = {}
    assert {key: getattr(ours, key) for key in KEYS} == DEFAULTS
    del settings.EVENTS
    assert {key: getattr(ours, key) for key in KEYS} == DEFAULTS


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_says_what_it_is(key):
    """The docstring is what a reader of the code finds first."""
    assert getattr(type(settings), key).__doc__


@pytest.mark.parametrize(
    "key, value, found",
    [
        ("KEEPALIVE", 0.05, 0.05),
        ("KEEPALIVE", 30, 30),
        ("RETRY", [5, 5], (5, 5)),
        ("RETRY", (0, 0), (0, 0)),
        ("MAX_CHANNELS_PER_STREAM", 1, 1),
        ("MAX_EVENT_BYTES", 1, 1),
        ("RING_EVENTS", 1, 1),
        ("RING_BYTES", 1, 1),
        ("BACKENDS", {"default": {}}, {"default": {}}),
        ("SLOW_CLIENT_TIMEOUT", 0.05, 0.05),
        ("MAX_STREAMS", 1, 1),
        ("MAX_STREAMS", None, None),
        ("MAX_STREAMS_PER_USER", 1, 1),
        ("MAX_STREAMS_PER_USER", None, None),
        ("MAX_STREAMS_PER_ADDRESS", 1, 1),
        ("MAX_STREAMS_PER_ADDRESS", None, None),
        ("MAX_STREAM_AGE", 0.05, 0.05),
        ("MAX_STREAM_AGE", None, None),
        ("DRAIN_SPREAD", 0, 0),
        ("DRAIN_SPREAD", 2.5, 2.5),
        ("RECHECK", 0.05, 0.05),
        ("CORS_ORIGINS", ["*"], ("*",)),
        ("CORS_ORIGINS", ("https://a.example", "http://localhost:3000", "capacitor://localhost"), ...),
    ],
)
def test_a_value_counts_at_the_next_access(settings, key: str, value: object, found: object):
    """So that `override_settings` works, also around a part of a test."""
    from events.conf import settings as ours

    settings.EVENTS = {key: value}
    assert getattr(ours, key) == (value if found is ... else found)
    settings.EVENTS = {}
    assert getattr(ours, key) == DEFAULTS[key]


BAD_COUNTS: list[object] = [0, -1, 1.5, "5", None, True]
BAD_NUMBERS: list[object] = [0, -1, "15", None, True, float("nan"), []]
NUMBERS = ("KEEPALIVE", "SLOW_CLIENT_TIMEOUT", "RECHECK")
BAD_RETRIES: list[object] = [
    *(1000, (1000,), (1, 2, 3), (5, 1), (-1, 5), (1.0, 2.0), (False, True), "ab", None, {1: 2, 3: 4})
]
BAD_BACKENDS: list[object] = [{}, {"other": {}}, None, []]
BAD_ORIGINS: list[object] = [
    *("*", "https://a.example", None, 5, [5], ["a.example"], ["https://a.example/"], ["https://a.example/page"]),
    *(["HTTPS://a.example"], ["https://A.example"], ["https://"], ["null"], [""], ["https://[a"], ["//a.example"]),
    *(["https://a.example?x"], ["https://a.example#x"], ["https://me@a.example"], {"https://a.example": 1}),
]
OPTIONAL_COUNTS = ("MAX_STREAMS", "MAX_STREAMS_PER_USER", "MAX_STREAMS_PER_ADDRESS")
COUNTS = ("MAX_CHANNELS_PER_STREAM", "MAX_EVENT_BYTES", "RING_EVENTS", "RING_BYTES")


@pytest.mark.parametrize(
    "key, value, wanted",
    [
        *((key, value, "a whole number from 1 on") for key in COUNTS for value in BAD_COUNTS),
        *(
            (key, value, "a whole number from 1 on")
            for key in OPTIONAL_COUNTS
            for value in BAD_COUNTS
            if value is not None
        ),
        *((key, value, "a number from 0.05 on") for key in NUMBERS for value in BAD_NUMBERS),
        *(("MAX_STREAM_AGE", value, "a number from 0.05 on") for value in BAD_NUMBERS if value is not None),
        *(("DRAIN_SPREAD", value, "a number from 0 on") for value in BAD_NUMBERS if value != 0),
        *(("RETRY", value, "two whole numbers of milliseconds, the smaller one first") for value in BAD_RETRIES),
        *(
            ("CORS_ORIGINS", value, 'a list of origins such as "https://www.example.org", or of "*"')
            for value in BAD_ORIGINS
        ),
        *(("BACKENDS", value, 'a dictionary with an entry "default"') for value in BAD_BACKENDS),
    ],
)
def test_a_wrong_value_is_refused_and_shown_with_what_it_must_be(settings, key: str, value: object, wanted: str):
    """Instead of an error far from its cause, or none."""
    from events.conf import settings as ours

    settings.EVENTS = {key: value}
    with pytest.raises(ImproperlyConfigured) as caught:
        getattr(ours, key)
    assert str(caught.value) == f"EVENTS[{key!r}] is {value!r}: it must be {wanted}."


@pytest.mark.parametrize("value", [None, [], "x", 5])
def test_events_must_be_a_dictionary(settings, value):
    """The whole setting is checked, not only what is in it."""
    from events.conf import settings as ours

    settings.EVENTS = value
    with pytest.raises(ImproperlyConfigured, match=r"EVENTS is .*: it must be a dictionary"):
        _ = ours.RETRY
