from __future__ import annotations

import subprocess
import sys

import pytest

import events

PUBLIC = {
    "BackendUnavailable",
    "ChannelNotFound",
    "EventStreamResponse",
    "EventTooLarge",
    "EventsError",
    "InvalidChannelName",
    "InvalidEvent",
    "InvalidEventBackend",
    "InvalidTicket",
    "PublishedEvent",
    "ServerSentEvent",
    "TicketExpired",
    "adisconnect",
    "amake_ticket",
    "apublish",
    "apublish_many",
    "arecheck",
    "disconnect",
    "make_ticket",
    "publish",
    "publish_many",
    "recheck",
    "source",
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_these_and_no_other_names_are_exported():
    """What users may import is a list that changes on purpose only."""
    assert set(events.__all__) == PUBLIC
    assert events.__all__ == sorted(events.__all__, key=lambda name: (name[0].islower(), name))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_exported_name_is_there_and_is_the_one_of_its_module(name):
    """Each name leads to the object that its own module has."""
    found = getattr(events, name)
    assert found.__name__ == name
    assert getattr(sys.modules[found.__module__], name) is found
    assert found.__doc__


def test_names_show_before_they_are_used(measured):
    """`dir()` and thereby completion in a shell know the names that were not imported yet."""
    assert run("import events; print(set(events.__all__) <= set(dir(events)), 'publish' in vars(events))") == (
        "True False"
    )


def test_importing_the_package_imports_no_django():
    """Django imports the package before it can import models; nothing else may come with it."""
    code = "import events, sys; print([name for name in sys.modules if name.partition('.')[0] == 'django'])"
    assert run(code) == "[]"


def test_a_name_is_looked_up_once():
    """The second use of a name costs no more than that of any module's attribute."""
    code = "import events; before = events.ServerSentEvent; print(vars(events)['ServerSentEvent'] is before)"
    assert run(code) == "True"


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    """A typing error is told as Python tells it."""
    with pytest.raises(AttributeError, match="module 'events' has no attribute 'pubish'"):
        _ = events.pubish


def test_every_error_is_an_events_error():
    """One `except` catches all that the app raises on purpose."""
    for name in PUBLIC - {"EventsError"}:
        found = getattr(events, name)
        if isinstance(found, type) and issubclass(found, Exception):
            assert issubclass(found, events.EventsError), name
    assert issubclass(events.EventTooLarge, events.InvalidEvent)
    assert issubclass(events.InvalidEvent, ValueError)
    assert issubclass(events.InvalidChannelName, ValueError)
    assert issubclass(events.ChannelNotFound, LookupError)


def test_the_package_says_that_it_is_typed_and_which_version_it_is():
    """Type checkers look for `py.typed`; people look for the version."""
    from importlib.resources import files

    assert files("events").joinpath("py.typed").is_file()
    assert events.__version__.count(".") == 2
