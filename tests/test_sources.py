from __future__ import annotations

import functools
import threading

import pytest
from django.contrib.auth.models import Group
from django.utils.timezone import override

from events import sources
from events.exceptions import EventsError
from events.models import Channel
from events.sources import source

#: 2024-02-29 12:00:00 UTC.
NOON = 1_709_208_000.0


def make(channel: Channel, due_at: float = NOON, number: int = 1):
    return sources.make(channel, due_at=due_at, number=number)


# Registering


def test_a_registered_function_can_be_chosen_and_makes_the_data():
    """With the channel it is called for, and whatever it returns."""

    @source("temperature")
    def temperature(channel):
        return {"channel": channel.name, "celsius": 21.5}

    assert "temperature" in sources.names()
    assert make(Channel(name="lab", source="temperature")) == {"channel": "lab", "celsius": 21.5}
    assert temperature(Channel(name="x"))["channel"] == "x"


def test_none_is_handed_on():
    """It means that nothing is published."""
    source("silent")(lambda channel: None)
    assert make(Channel(name="a", source="silent")) is None


def test_an_async_function_is_waited_for():
    """A source may ask the network."""

    @source("slow")
    async def slow(channel):
        return f"from {channel.name}"

    assert make(Channel(name="a", source="slow")) == "from a"


def test_a_coroutine_is_waited_for_wherever_it_comes_from():
    """A decorator that knows nothing of async functions hides them; a coroutine is no data."""

    async def later(channel):
        return "later"

    class Later:
        async def __call__(self, channel):
            return "object"

    source("partial")(functools.partial(later))
    source("hidden")(lambda channel: later(channel))  # noqa: PLW0108 - that it hides it is what is tested
    source("object")(Later())
    assert [make(Channel(name="a", source=name)) for name in ("partial", "hidden", "object")] == [
        "later",
        "later",
        "object",
    ]


def test_a_sync_function_runs_on_the_thread_that_asks():
    """The ticker has threads for that."""
    source("where")(lambda channel: threading.current_thread())
    assert make(Channel(name="a", source="where")) is threading.current_thread()


def test_what_a_source_raises_is_raised():
    """The ticker logs it, and shows it in the admin."""

    @source("broken")
    def broken(channel):
        raise KeyError("sensor")

    with pytest.raises(KeyError, match="sensor"):
        make(Channel(name="a", source="broken"))


def test_names_come_with_the_built_in_ones_first():
    """As the admin shows them."""
    source("b")(lambda channel: None)
    source("a")(lambda channel: None)
    assert sources.names() == ["clock", "template", "a", "b"]


def test_a_name_is_taken_once():
    """Two functions of one name would make a channel's messages depend on the order of imports."""
    source("mine")(lambda channel: 1)

    def other(channel):
        return 2

    with pytest.raises(ValueError, match="a source called 'mine' is registered already: choose another name"):
        source("mine")(other)
    assert make(Channel(name="a", source="mine")) == 1


@pytest.mark.parametrize("name", ["clock", "template"])
def test_the_built_in_names_are_taken(name):
    """What the admin calls clock is the clock."""
    with pytest.raises(ValueError, match="is registered already"):
        source(name)(lambda channel: None)


def test_a_module_that_is_imported_again_registers_again():
    """As when a test or a shell reloads it: the newest function counts."""

    def module(value):
        @source("again")
        def again(channel):
            return value

    module(1)
    module(2)
    assert make(Channel(name="a", source="again")) == 2


@pytest.mark.parametrize("name", ["", "x" * 101, None, 5])
def test_a_name_is_text_of_1_to_100_characters(name):
    """It is a choice in the admin, and a column of limited width."""
    with pytest.raises(ValueError, match="a source's name is text of 1 to 100 characters, not "):
        source(name)
    source("x" * 100)(lambda channel: None)


def test_a_bare_decorator_is_told_what_is_missing():
    """`@source` for `@source("name")` is an easy mistake."""
    with pytest.raises(ValueError, match=r'write @source\("name"\)'):

        @source  # type: ignore[arg-type]
        def temperature(channel): ...


@pytest.mark.parametrize("name", ["gone", ""])
def test_an_unknown_source_is_an_error_that_names_those_there_are(name):
    """An app that registered it may have been taken away."""
    source("mine")(lambda channel: None)
    with pytest.raises(EventsError) as caught:
        make(Channel(name="a", source=name))
    assert str(caught.value) == f"no source is called {name!r}: there are clock, template, mine"


# The clock


@pytest.mark.parametrize(
    "due_at, text",
    [
        (NOON, "2024-02-29T12:00:00+00:00"),
        (NOON + 0.1, "2024-02-29T12:00:00.100+00:00"),
        (NOON + 0.25, "2024-02-29T12:00:00.250+00:00"),
        (0.0, "1970-01-01T00:00:00+00:00"),
    ],
)
def test_the_clock_says_when_its_message_was_due(settings, due_at, text):
    """The classic demonstration: "Message at <ISO time>", with parts of a second only where there are any."""
    settings.TIME_ZONE = "UTC"
    assert make(Channel(name="a", source="clock"), due_at) == f"Message at {text}"


def test_the_clock_speaks_in_the_sites_time_zone():
    """With the offset, so that it names one moment."""
    with override("Asia/Kolkata"):
        assert make(Channel(name="a", source="clock")) == "Message at 2024-02-29T17:30:00+05:30"


def test_the_clock_without_time_zones(settings):
    """`USE_TZ = False`: local time, still with its offset."""
    settings.TIME_ZONE = "Asia/Kolkata"
    settings.USE_TZ = False
    assert make(Channel(name="a", source="clock")) == "Message at 2024-02-29T17:30:00+05:30"


# Templates


def test_a_template_knows_now_n_and_channel():
    """What the admin's help text promises."""
    channel = Channel(name="a", title="Lab", source="template")
    channel.template = '{{ n }}: {{ channel.title }} {{ now|date:"Y-m-d H:i" }}'
    with override("UTC"):
        assert make(channel, number=7) == "7: Lab 2024-02-29 12:00"
    with override("Asia/Kolkata"):
        assert make(channel, number=8) == "8: Lab 2024-02-29 17:30"


def test_a_template_is_plain_text():
    """A page shows it with `textContent`: escaping would be seen."""  # promise 27
    channel = Channel(name="a", title="<b>Tom & Jerry's</b>", source="template", template="{{ channel.title }} {{ x }}")
    assert make(channel) == "<b>Tom & Jerry's</b> "


@pytest.mark.django_db
def test_a_template_reaches_no_user(make_channel, make_user):
    """Who may change channels may not publish what stands in other tables."""
    channel = make_channel("a", source="template", access="groups")
    channel.template = "[{% for g in channel.groups.all %}{% for u in g.user_set.all %}{{ u.password }}{% endfor %}"
    channel.template += "{% endfor %}{{ channel.pk }}{{ channel.policy }}]"
    group = Group.objects.create(name="readers")
    channel.groups.add(group)
    make_user("ann").groups.add(group)
    assert make(channel) == "[]"


def test_a_template_without_time_zones(settings):
    """`USE_TZ = False`: now is local time."""
    settings.TIME_ZONE = "Asia/Kolkata"
    settings.USE_TZ = False
    assert make(Channel(name="a", source="template", template='{{ now|date:"H:i" }}')) == "17:30"
    settings.USE_TZ = True
    with override("UTC"):
        assert make(Channel(name="a", source="template", template='{{ now|date:"H:i" }}')) == "12:00"


def test_a_changed_template_counts_at_the_next_message():
    """What is compiled is remembered by its text, not by its channel."""
    channel = Channel(name="a", source="template", template="one")
    assert make(channel) == "one"
    channel.template = "two"
    assert make(channel) == "two"
