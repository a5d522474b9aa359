from __future__ import annotations

import re
import time
from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils import timezone

from events import channels, keys, publish
from events.admin import ChannelAdmin, EventAdmin
from events.backends.memory import MemoryBackend
from events.channels import channel_table
from events.exceptions import BackendUnavailable
from events.models import Channel, Event, Floor, PublishKey, Tick
from events.registry import event_backends
from events.testing import capture_events

pytestmark = pytest.mark.django_db(transaction=True)

#: Seconds that nothing here may take.
GUARD = 60
LIST = "/admin/events/channel/"
EVENTS = "/admin/events/event/"
KEYS = "/admin/events/publishkey/"


class BrokenBackend(MemoryBackend):
    """A log that cannot be reached."""

    def latest(self, channels):
        raise BackendUnavailable("the log is <gone>")

    def clear(self, channels):
        raise BackendUnavailable("the log is <gone>")


def use_backend(settings, path: str) -> None:
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": path}}}


#: The urls of a site that has only the admin.
urlpatterns = [path("admin/", admin.site.urls)]


@pytest.fixture
def root(client, make_user):
    """A superuser's browser."""
    client.force_login(make_user("root", is_staff=True, is_superuser=True))
    return client


@pytest.fixture
def staff(client, make_user):
    """A browser of a member of staff with these permissions and no others."""

    def sign_in(*permissions):
        client.force_login(make_user("clerk", *permissions, is_staff=True))
        return client

    return sign_in


def change_url(channel: Channel) -> str:
    return f"{LIST}{channel.pk}/change/"


def publish_url(channel: Channel) -> str:
    return f"{LIST}{channel.pk}/publish/"


def text_of(response) -> str:
    """What a person reads, without tags and extra blanks."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", response.content.decode(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("&nbsp;", " ").replace("\xa0", " ").split())


def cells(response, column: str) -> list[str]:
    """The contents of one column of a change list."""
    found = re.findall(
        rf'<t[dh] class="[^"]*field-{column}\b[^"]*">(.*?)</t[dh]>', response.content.decode(), re.DOTALL
    )
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).replace("\xa0", " ").split()) for cell in found]


def messages_of(response) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def form_data(**fields) -> dict:
    """A channel's form as a browser sends it."""
    data = {
        "name": "news",
        "title": "",
        "description": "",
        "is_active": "on",
        "source": "",
        "template": "",
        "interval": "1.0",
        "only_when_watched": "on",
        "event_type": "message",
        "access": "public",
        "policy": "",
        "history_events": "1000",
        "history_seconds": "",
        "replay": "nothing",
        **fields,
    }
    return {name: value for name, value in data.items() if value is not None}


def run_action(client, action: str, *channels: Channel, **more):
    data = {"action": action, "_selected_action": [channel.pk for channel in channels], **more}
    return client.post(LIST, data, follow=True)


# The list


def test_the_list_shows_what_an_operator_looks_for(root, make_channel):
    """Title and name, source, interval, what is kept, the newest event's age and the way to the live page."""
    make_channel("clock", title="Clock <1>", source="clock", history_events=5000, history_seconds=86_400)
    publish("clock", "tick")
    page = root.get(LIST)
    assert cells(page, "label") == ["Clock &lt;1&gt; clock"]
    assert cells(page, "source_state") == ["clock"]
    assert cells(page, "kept") == ["5,000 events / 1 day"]
    assert re.fullmatch(r"\d+ s ago", cells(page, "newest")[0])
    assert '<a href="/events/channels/clock/">Open</a>' in page.content.decode()
    assert '<input type="number" name="form-0-interval" value="1.0"' in page.content.decode()


def test_the_list_of_a_channel_without_anything(root, make_channel):
    """No title, no source, no limit, no event."""
    make_channel("news", history_events=None)
    page = root.get(LIST)
    assert cells(page, "label") == ["news"]
    assert cells(page, "source_state") == ["-"]
    assert cells(page, "kept") == ["everything"]
    assert cells(page, "newest") == ["none yet"]


def test_the_list_of_a_prefix(root, make_channel):
    """It has no events of its own, and no page of its own."""
    make_channel("orders.*")
    make_channel("orders.1")
    publish("orders.2", "x")
    page = root.get(LIST)
    assert cells(page, "newest") == ["-", "none yet"]
    assert '<a href="/events/">Open</a>' in page.content.decode()


@pytest.mark.parametrize(
    "events, seconds, text",
    [
        (1, None, "1 event"),
        (0, None, "0 events"),
        (None, 1, "1 s"),
        (None, 90, "90 s"),
        (None, 120, "2 minutes"),
        (None, 7 * 86_400, "1 week"),
        (10, 3600, "10 events / 1 hour"),
    ],
)
def test_what_is_kept_in_words(root, make_channel, events, seconds, text):
    """Also below a minute, where Django's own words end."""
    make_channel("news", history_events=events, history_seconds=seconds)
    assert cells(root.get(LIST), "kept") == [text]


@pytest.mark.parametrize("seconds, text", [(0, "0 s ago"), (-5, "0 s ago"), (119, "119 s ago"), (7200, "2 hours ago")])
def test_the_newest_events_age_in_words(root, make_channel, monkeypatch, seconds, text):
    """A clock that was set back makes no negative age."""
    make_channel("news")
    publish("news", "x")
    now = Event.objects.get().created_at + seconds
    monkeypatch.setattr(time, "time", lambda: now)
    assert cells(root.get(LIST), "newest") == [text]


def test_the_number_of_queries_does_not_grow_with_the_rows(root, make_channel, monkeypatch):
    """One look for all newest events and one for all failures, however many channels a page has."""
    # The look at the channels' revision comes by the clock: here it does not.
    monkeypatch.setattr(channels, "MAX_AGE", GUARD)

    def count() -> int:
        root.get(LIST)
        with CaptureQueriesContext(connection) as captured:
            page = root.get(LIST)
        assert page.status_code == 200
        return len(captured)

    def add(numbers: range) -> None:
        for number in numbers:
            make_channel(f"c{number}", source="clock")
            publish(f"c{number}", "x")
            Tick.objects.create(channel=f"c{number}", error="x", failed_at=timezone.now())
        make_channel(f"p{numbers[0]}.*", source="clock")
        publish(f"p{numbers[0]}.x", "x")

    add(range(2))
    few = count()
    add(range(10, 40))
    assert count() == few
    assert few <= 15


def test_the_newest_events_come_from_any_log(root, make_channel, settings):
    """A log that is not in the site's database is asked itself."""
    use_backend(settings, "events.backends.memory.MemoryBackend")
    make_channel("news")
    make_channel("other")
    publish("news", "x")
    newest, other = cells(root.get(LIST), "newest")
    assert re.fullmatch(r"\d+ s ago", newest)
    assert other == "none yet"


def test_a_log_that_cannot_be_reached_does_not_close_the_admin(root, make_channel, settings):
    """The list says so where the age would stand, with the reason to read."""
    use_backend(settings, f"{__name__}.BrokenBackend")
    make_channel("news")
    page = root.get(LIST)
    assert cells(page, "newest") == ["the log cannot be read"]
    assert 'title="the log is &lt;gone&gt;"' in page.content.decode()


def test_a_failed_source_is_shown_in_the_list_and_on_the_channel(root, make_channel):
    """In words and by a sign, with the error; and no more once it has succeeded."""
    channel = make_channel("lab", source="clock")
    failed_at = timezone.now()
    Tick.objects.create(channel="lab", error="KeyError: '<sensor>'", failed_at=failed_at)
    page = root.get(LIST)
    assert cells(page, "source_state") == ["clock failed"]
    assert 'title="KeyError: &#x27;&lt;sensor&gt;&#x27;"' in page.content.decode()
    assert "icon-alert.svg" in page.content.decode()
    form = root.get(change_url(channel))
    assert "lab: KeyError: &#x27;&lt;sensor&gt;&#x27;" in text_of(form)
    assert timezone.localtime(failed_at).strftime("%Y-%m-%d %H:%M:%S") in text_of(form)
    Tick.objects.update(error="", failed_at=None)
    assert cells(root.get(LIST), "source_state") == ["clock"]
    assert "last error of the source" not in text_of(root.get(change_url(channel))).lower()


def test_a_prefix_shows_the_failures_of_the_names_it_configures(root, make_channel):
    """The newest five; not those of a name with a row of its own, nor of another case, nor of what is gone."""
    prefix = make_channel("lab.*", source="clock")
    make_channel("lab.own", source="clock")
    for index, name in enumerate(["lab.own", "LAB.x", "gone", *(f"lab.{number}" for number in range(7))]):
        failed_at = timezone.now() + timedelta(seconds=index)
        Tick.objects.create(channel=name, number=index, error=f"ERROR of {name}", failed_at=failed_at)
    shown = text_of(root.get(change_url(prefix)))
    assert re.findall(r"ERROR of (\S+)", shown) == ["lab.6", "lab.5", "lab.4", "lab.3", "lab.2"]
    assert cells(root.get(LIST), "source_state") == ["clock failed", "clock failed"]


def test_failures_without_time_zones(root, make_channel, settings):
    """`USE_TZ = False`: times are naive, and shown as they are."""
    settings.USE_TZ = False
    channel = make_channel("lab", source="clock")
    failed_at = timezone.now()
    Tick.objects.create(channel="lab", error="broken", failed_at=failed_at)
    assert f"{failed_at:%Y-%m-%d %H:%M:%S} lab: broken" in text_of(root.get(change_url(channel)))
    publish("lab", "x")
    assert root.get(EVENTS).status_code == 200


def test_columns_can_be_used_alone(make_channel):
    """As by a site that shows one of them on a page of its own."""
    channel = make_channel("lab", source="clock")
    publish("lab", "x")
    Tick.objects.create(channel="lab", error="broken", failed_at=timezone.now())
    own = ChannelAdmin(Channel, admin.site)
    assert re.fullmatch(r"\d+ s ago", own.newest(channel))
    assert "broken" in own.source_state(channel)


def test_a_site_without_the_apps_pages_has_its_admin(root, make_channel, settings):
    """It may stream from views of its own: there is no live page to link to."""
    settings.ROOT_URLCONF = __name__
    channel = make_channel("news")
    assert cells(root.get(LIST), "live") == ["-"]
    page = root.get(publish_url(channel))
    assert page.status_code == 200
    assert "Live page" not in page.content.decode()


def test_channels_are_found_and_filtered(root, make_channel):
    """By name, title and description; by what they are."""
    make_channel("a", title="Weather", access="staff")
    make_channel("b", description="rain", is_active=False)
    assert cells(root.get(LIST, {"q": "weather"}), "label") == ["Weather a"]
    assert cells(root.get(LIST, {"q": "rain"}), "label") == ["b"]
    assert cells(root.get(LIST, {"is_active__exact": "0"}), "label") == ["b"]
    assert cells(root.get(LIST, {"access__exact": "staff"}), "label") == ["Weather a"]
    assert cells(root.get(LIST, {"o": "1"}), "label") == ["b", "Weather a"]


def test_channels_without_a_source_have_a_filter_with_a_name(root, make_channel):
    """Also where the filters show how many there are."""
    make_channel("a", source="clock")
    make_channel("b")
    for query, expected in (({}, "published by hand"), ({"_facets": "True"}, "published by hand (1)")):
        links = re.findall(r"<a href=[^>]*source[^>]*>\s*([^<]*?)\s*</a>", root.get(LIST, query).content.decode())
        assert expected in links
        assert all(links)


# Changing the interval in the list


def list_data(*rows: tuple[Channel, object], **more) -> dict:
    data = {"form-TOTAL_FORMS": len(rows), "form-INITIAL_FORMS": len(rows), "_save": "Save", **more}
    for index, (channel, interval) in enumerate(rows):
        data |= {f"form-{index}-id": channel.pk, f"form-{index}-interval": interval}
    return data


def test_the_interval_is_changed_in_the_list(root, make_channel):
    """Of several rows at once, and noticed by every process."""
    one, two = make_channel("a", source="clock"), make_channel("b", source="clock")
    channel_table.refresh()
    page = root.post(LIST, list_data((one, "0.2"), (two, "86400")), follow=True)
    assert messages_of(page) == ["2 channels were changed successfully."]
    channel_table.refresh()
    assert {row.name: row.interval for row in channel_table.all()} == {"a": 0.2, "b": 86_400}


@pytest.mark.parametrize(
    "value, text",
    [
        ("0.05", "0.05 s is not possible: an interval is between 0.1 and 86400 seconds."),
        ("86401", "86401.0 s is not possible: an interval is between 0.1 and 86400 seconds."),
        ("-1", "-1.0 s is not possible: an interval is between 0.1 and 86400 seconds."),
        ("nan", "Enter a number."),
        ("inf", "Enter a number."),
        ("fast", "Enter a number."),
        ("", "This field is required."),
    ],
)
def test_a_bad_interval_in_the_list_is_an_error_at_its_row(root, make_channel, value, text):
    """And nothing is changed."""
    channel = make_channel("a")
    page = root.post(LIST, list_data((channel, value)))
    assert page.status_code == 200
    assert text in text_of(page)
    channel.refresh_from_db()
    assert channel.interval == 1


def test_a_row_that_is_wrong_elsewhere_does_not_stop_the_list(root, make_channel):
    """Rows that code made were never validated: their interval can be changed all the same."""
    channel = make_channel("a", source="template", template="")
    root.post(LIST, list_data((channel, "5")), follow=True)
    channel.refresh_from_db()
    assert channel.interval == 5


# The form


def test_a_channel_is_made_with_the_form(root):
    """With every field, and with what it says of the names of sources."""
    page = root.get(f"{LIST}add/")
    assert '<option value="clock">clock</option>' in page.content.decode()
    assert "Seconds between two messages of the source" in text_of(page)
    assert "Publish…" not in text_of(page)
    data = form_data(name="lab", title="Lab", source="template", template="{{ n }}", interval="0.1", access="staff")
    page = root.post(f"{LIST}add/", data, follow=True)
    assert page.redirect_chain, page.context["errors"]
    row = Channel.objects.get()
    assert (row.name, row.title, row.source, row.template, row.interval) == ("lab", "Lab", "template", "{{ n }}", 0.1)


@pytest.mark.parametrize(
    "fields, at, text",
    [
        ({"name": "a b"}, "name", "'a b' is not a channel name: use 1 to 100 characters of A-Z a-z 0-9 . _ -"),
        ({"name": ""}, "name", "This field is required."),
        ({"interval": "0.01"}, "interval", "0.01 s is not possible: an interval is between 0.1 and 86400 seconds."),
        ({"interval": "nan"}, "interval", "Enter a number."),
        ({"source": "nothing"}, "source", "Select a valid choice. nothing is not one of the available choices."),
        (
            {"template": "{% if %}"},
            "template",
            "This is not a Django template: Unexpected end of expression in if tag.",
        ),
        ({"source": "template"}, "template", "The source “template” needs a template."),
        ({"event_type": "a\0b"}, "event_type", "Null characters are not allowed."),
        ({"event_type": ""}, "event_type", "This field is required."),
        ({"access": "policy"}, "policy", "Name the function that decides who may read."),
        (
            {"policy": "nowhere.at_all"},
            "policy",
            "“nowhere.at_all” is not the dotted path of a function: No module nam",
        ),
        ({"policy": "events.wire.nothing"}, "policy", "“events.wire.nothing” is not the dotted path of a function: "),
        ({"policy": "events.wire.MAX_KEY"}, "policy", "events.wire.MAX_KEY is not a function"),
        ({"policy": "word"}, "policy", "“word” is not the dotted path of a function: word doesn't look like a module"),
        ({"policy": ".x"}, "policy", "“.x” is not the dotted path of a function: Empty module name"),
        ({"policy": "tests.broken_module.may"}, "policy", "is not the dotted path of a function: 'while importing'"),
        (
            {"name": "a.*", "source": "clock", "only_when_watched": None},
            "only_when_watched",
            "can only tick while watch",
        ),
        ({"history_events": "-1"}, "history_events", "Ensure this value is greater than or equal to 0."),
        ({"access": "everybody"}, "access", "Select a valid choice."),
    ],
)
def test_an_error_stands_at_its_field_and_says_what_is_wrong(root, monkeypatch, fields, at, text):
    """And no channel is made."""
    import sys

    class Broken:
        """A finder of modules that knows one, which fails."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "tests.broken_module":
                raise KeyError("while importing")

    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    page = root.post(f"{LIST}add/", form_data(**fields))
    assert page.status_code == 200
    errors = page.context["adminform"].form.errors
    assert list(errors) == [at]
    assert text in errors[at][0]
    assert not Channel.objects.exists()


def test_a_policy_is_taken_without_the_blanks_around_it(root):
    """As it is pasted."""
    data = form_data(access="policy", policy=" events.wire.is_channel_name ")
    assert root.post(f"{LIST}add/", data).status_code == 302
    assert Channel.objects.get().policy == "events.wire.is_channel_name"


def test_a_site_may_show_the_source_and_not_let_it_be_changed(rf, make_channel, make_user):
    """As every field of an admin: the form then has none of that name."""

    request = rf.get("/")
    request.user = make_user("root", is_superuser=True)
    fixed = ChannelAdmin(Channel, admin.site)
    fixed.readonly_fields = ("source", "last_error")  # type: ignore[assignment,misc]
    form = fixed.get_form(request, channel := make_channel("news"), change=True)
    assert "source" not in form(instance=channel).fields


def test_a_source_that_is_gone_is_shown_and_refused_when_saved(root, make_channel):
    """Opening the form changes nothing; saving asks for a source that there is."""
    channel = make_channel("news", source="gone")
    page = root.get(change_url(channel))
    assert '<option value="gone" selected>gone (not registered)</option>' in page.content.decode()
    page = root.post(change_url(channel), form_data(source="gone"))
    [error] = page.context["adminform"].form.errors["source"]
    assert error == "No source is called “gone”. There are: clock, template. Register one with @source(…)."
    assert root.post(change_url(channel), form_data(source="clock")).status_code == 302


def test_a_channel_is_deleted_with_the_form(root, make_channel):
    """Its events stay for a day, in case that it was a mistake."""
    channel = make_channel("news")
    publish("news", "x")
    assert root.post(f"{LIST}{channel.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Channel.objects.exists()
    assert Event.objects.count() == 1


# Actions


def test_a_test_message_is_published_to_each_channel(root, make_channel):
    """It names who sent it; where it cannot be published, the reason is shown and the others go on."""
    on, off, prefix = make_channel("a"), make_channel("b", is_active=False), make_channel("c.*")
    with capture_events() as published:
        page = run_action(root, "publish_test_message", on, off, prefix)
    assert [(event.channel, event.data) for event in published] == [("a", "Test message from root")]
    assert messages_of(page) == [
        "Published to a.",
        "b: the channel 'b' is switched off: switch it on in the admin, under Channels.",
        "c.*: a name with * stands for many channels: publish to one of them",
    ]


def test_channels_are_switched_off_and_on(root, make_channel):
    """With an entry in their history, and noticed by every process."""
    one, two = make_channel("a"), make_channel("b")
    assert messages_of(run_action(root, "switch_off", one, two)) == ["Switched off: a, b."]
    channel_table.refresh()
    assert [row.is_active for row in channel_table.all()] == [False, False]
    assert messages_of(run_action(root, "switch_on", two)) == ["Switched on: b."]
    channel_table.refresh()
    assert [row.is_active for row in channel_table.all()] == [False, True]
    assert LogEntry.objects.filter(object_id=str(two.pk)).count() == 2
    told = [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]
    assert told == ["Switched off.", "Switched off.", "Switched on."]


def test_clearing_history_asks_first(root, make_channel):
    """And says what it means; nothing is gone yet."""
    channel = make_channel("a", title="A <b>")
    publish("a", "x")
    page = run_action(root, "clear_history", channel)
    assert "1 event of these channels will be removed." in text_of(page)
    assert "A &lt;b&gt; a" in text_of(page)
    assert f'<input type="hidden" name="_selected_action" value="{channel.pk}">' in page.content.decode()
    assert Event.objects.count() == 1


def test_a_log_that_is_in_no_table(root, make_channel, settings):
    """Its events are not counted before they are cleared, and there is no list of them that is always empty."""
    assert EVENTS in root.get("/admin/").content.decode()
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}
    channel = make_channel("a")
    publish("a", "x")
    assert "All events of these channels will be removed." in text_of(run_action(root, "clear_history", channel))
    assert messages_of(run_action(root, "clear_history", channel, confirmed="yes")) == ["1 event removed."]
    assert EVENTS not in root.get("/admin/").content.decode()


def test_clearing_history_removes_the_events_and_raises_the_floor(root, make_channel):
    """Who resumes from before is told that something is missing."""
    channel = make_channel("a")
    make_channel("b")
    published = [publish(name, "x") for _ in range(3) for name in "ab"]
    page = run_action(root, "clear_history", channel, confirmed="yes")
    assert messages_of(page) == ["3 events removed."]
    assert set(Event.objects.values_list("channel", flat=True)) == {"b"}
    assert str(published[-2].id).endswith(f"-{Floor.objects.get(channel='a').position}")
    assert not Floor.objects.filter(channel="b").exists()
    # And every process is told that its copies are out of date.
    assert Event.rows.latest("position").type == "history-cleared"
    assert LogEntry.objects.get().get_change_message() == "History cleared."


def test_clearing_a_prefix_clears_what_it_configures_and_nothing_else(root, make_channel):
    """Not a name with a row of its own, not one under a longer prefix, not one in another case."""
    prefix = make_channel("lab.*")
    for name in ("lab.own", "lab.deep.*", "LAB.*", "other"):
        make_channel(name)
    for name in ("lab.1", "lab.2", "lab.own", "lab.deep.1", "LAB.1", "other"):
        publish(name, "x")
    assert messages_of(run_action(root, "clear_history", prefix, confirmed="yes")) == ["2 events removed."]
    assert set(Event.objects.values_list("channel", flat=True)) == {"lab.own", "lab.deep.1", "LAB.1", "other"}


def test_clearing_one_event_and_none(root, make_channel):
    """Numbers are told in good English."""
    channel = make_channel("a")
    publish("a", "x")
    assert messages_of(run_action(root, "clear_history", channel, confirmed="yes")) == ["1 event removed."]
    assert messages_of(run_action(root, "clear_history", channel, confirmed="yes")) == ["0 events removed."]


def test_clearing_a_log_that_cannot_be_reached_says_so(root, make_channel, settings):
    """Nothing is claimed to be cleared."""
    use_backend(settings, f"{__name__}.BrokenBackend")
    channel = make_channel("a")
    assert messages_of(run_action(root, "clear_history", channel, confirmed="yes")) == ["the log is <gone>"]
    assert not LogEntry.objects.exists()


# Publishing by hand


def test_text_is_published_by_hand_as_it_is(root, make_channel):
    """With the line ends that were typed, the blanks, and the type; the form is empty for the next one."""
    channel = make_channel("news", title="News")
    page = root.get(change_url(channel))
    assert f'<a href="{publish_url(channel)}">Publish…</a>' in page.content.decode()
    page = root.get(publish_url(channel))
    assert "Publish to News" in text_of(page)
    assert '<a href="/events/channels/news/">View on site</a>' in page.content.decode()
    page = root.post(publish_url(channel), {"event": "alert", "payload": " a\r\nb <i> \r\n"})
    event = Event.objects.get()
    assert (event.channel, event.type, event.data, event.is_json) == ("news", "alert", " a\nb <i> \n", False)
    assert messages_of(page) == [f"Published: {event_backends['default'].head()}."]
    assert 'value="alert"' in page.content.decode()
    assert "<textarea" in page.content.decode()
    assert "a\nb" not in page.content.decode()
    assert LogEntry.objects.get().get_change_message() == "Published an event."


@pytest.mark.parametrize(
    "typed, stored",
    [('{"a": [1, 2.5, null]}', '{"a":[1,2.5,null]}'), ("[]", "[]"), ("{}", "{}"), ("null", "null"), (" 5 ", "5")],
)
def test_json_is_published_by_hand_as_json(root, make_channel, typed, stored):
    """Also what is empty in the eyes of a form."""
    channel = make_channel("news")
    page = root.post(publish_url(channel), {"event": "message", "payload": typed, "as_json": "on"})
    assert messages_of(page), page.context["form"].errors
    event = Event.objects.get()
    assert (event.data, event.is_json) == (stored, True)


@pytest.mark.parametrize(
    "fields, at, text",
    [
        ({"payload": ""}, "payload", "This field is required."),
        ({"payload": "{", "as_json": "on"}, "payload", "This is not JSON: Expecting property name"),
        ({"payload": "NaN", "as_json": "on"}, "payload", "data cannot be written as JSON: Out of range float"),
        ({"payload": '"\\ud800"', "as_json": "on"}, "payload", "a lone surrogate"),
        ({"payload": "[" * 100_000, "as_json": "on"}, "payload", "This is not JSON: "),
        ({"payload": "x" * 101}, "payload", "data has 101 bytes, more than EVENTS['MAX_EVENT_BYTES'] = 100"),
        ({"event": "x" * 101}, "event", "Ensure this value has at most 100 characters (it has 101)."),
        ({"event": "a\nb"}, "event", "an event's type may not contain CR, LF or NUL: 'a\\nb'"),
        ({"event": ""}, "event", "This field is required."),
    ],
)
def test_what_cannot_be_published_is_an_error_at_its_field(root, make_channel, settings, fields, at, text):
    """What was typed is still there, and nothing was published."""  # promises 16 and 17
    settings.EVENTS = {"MAX_EVENT_BYTES": 100}
    channel = make_channel("news")
    page = root.post(publish_url(channel), {"event": "message", "payload": "hello", **fields})
    assert page.status_code == 200
    errors = page.context["form"].errors
    assert list(errors) == [at]
    assert text in " ".join(errors[at])
    assert not Event.objects.exists()


def test_an_empty_post_is_a_form_with_errors(root, make_channel):
    """And not a form that nobody has sent."""
    page = root.post(publish_url(make_channel("news")), {})
    assert set(page.context["form"].errors) == {"event", "payload"}


def test_publishing_to_what_cannot_be_published_to_says_why(root, make_channel):
    """At the top of the form: no field is wrong."""
    off, prefix = make_channel("off", is_active=False), make_channel("p.*")
    assert "Publish…" not in text_of(root.get(change_url(prefix)))
    for channel, text in ((off, "the channel 'off' is switched off"), (prefix, "'p.*' is not a channel name")):
        page = root.post(publish_url(channel), {"event": "message", "payload": "x"})
        [error] = page.context["form"].non_field_errors()
        assert text in error
    assert not Event.objects.exists()


def test_publishing_to_a_channel_that_is_gone_leads_back(root):
    """As Django's own pages do."""
    page = root.get(f"{LIST}99/publish/", follow=True)
    assert page.redirect_chain == [("/admin/", 302)]
    assert messages_of(page) == ["channel with ID “99” doesn’t exist. Perhaps it was deleted?"]


# Rights


def test_nobody_from_outside_reaches_the_admin(client, make_channel):
    """Every page leads to the log-in."""
    channel = make_channel("news")
    for url in (LIST, EVENTS, change_url(channel), publish_url(channel)):
        assert client.get(url).url == f"/admin/login/?next={url}"


def test_staff_without_permissions_sees_nothing(staff, make_channel):
    """Being staff opens the admin, not the channels."""
    channel = make_channel("news")
    browser = staff()
    for url in (LIST, EVENTS, f"{LIST}add/", change_url(channel), publish_url(channel), f"{LIST}99/publish/"):
        assert browser.get(url).status_code == 403, url
    assert browser.post(publish_url(channel), {"event": "message", "payload": "x"}).status_code == 403
    assert not Event.objects.exists()


def test_who_may_only_look_looks(staff, make_channel):
    """The list and the form can be read; nothing can be changed, published, switched or cleared."""
    channel = make_channel("news", title="News", source="clock")
    publish("news", "x")
    browser = staff("view_channel", "view_event")
    page = browser.get(LIST)
    assert cells(page, "interval") == ["1.0"]
    assert "form-0-interval" not in page.content.decode()
    assert 'name="action"' not in page.content.decode()
    page = browser.get(change_url(channel))
    assert page.status_code == 200
    assert "clock" in text_of(page)
    assert "Publish…" not in text_of(page)
    assert browser.post(change_url(channel), form_data(interval="5")).status_code == 403
    assert browser.post(LIST, list_data((channel, "5"))).status_code == 403
    assert browser.get(publish_url(channel)).status_code == 403
    for action in ("publish_test_message", "switch_off", "clear_history"):
        run_action(browser, action, channel, confirmed="yes")
    channel.refresh_from_db()
    assert (channel.interval, channel.is_active, Event.objects.count()) == (1, True, 1)


def test_who_may_change_may_publish_and_switch_but_not_clear(staff, make_channel):
    """Clearing a history is deleting."""
    channel = make_channel("news")
    browser = staff("view_channel", "change_channel")
    page = browser.get(LIST)
    assert '<option value="switch_off">' in page.content.decode()
    assert '<option value="clear_history">' not in page.content.decode()
    assert browser.post(publish_url(channel), {"event": "message", "payload": "x"}).status_code == 200
    assert "No action selected." in messages_of(run_action(browser, "clear_history", channel, confirmed="yes"))
    assert Event.objects.count() == 1
    run_action(browser, "switch_off", channel)
    channel.refresh_from_db()
    assert channel.is_active is False


def test_who_may_delete_may_clear(staff, make_channel):
    """And not publish."""
    channel = make_channel("news")
    publish("news", "x")
    browser = staff("view_channel", "delete_channel")
    run_action(browser, "clear_history", channel, confirmed="yes")
    assert not Event.objects.exists()
    assert browser.get(publish_url(channel)).status_code == 403


# Events


def test_events_can_be_read(root, make_channel):
    """Newest first, cut to a line in the list, whole on their page."""
    make_channel("news")
    publish("news", {"n": 1})
    newest = publish("news", "<b>" + "é" * 200, event="alert")
    page = root.get(EVENTS)
    # The channel's making is a message between processes: in the log, and not in the list.
    position = int(str(newest.id).partition("-")[2])
    assert cells(page, "position") == [str(position), str(position - 1)]
    assert cells(page, "type") == ["alert", "message"]
    assert cells(page, "shown_data") == ["&lt;b&gt;" + "é" * 56 + "…", "{&quot;n&quot;:1}"]
    assert cells(page, "size") == ["403 bytes", "7 bytes"]
    assert len(cells(page, "published")) == 2
    event = Event.objects.get(position=position)
    detail = root.get(f"{EVENTS}{event.pk}/change/")
    assert detail.status_code == 200
    assert "&lt;b&gt;" + "é" * 200 in detail.content.decode()
    assert "<b>é" not in detail.content.decode()
    assert 'name="_save"' not in detail.content.decode()
    assert cells(root.get(EVENTS, {"q": "n"}), "position") != []
    assert cells(root.get(EVENTS, {"type": "alert"}), "position") == [str(position)]


def test_events_are_shown_in_the_sites_time(root, make_channel, settings):
    """Whether the site has time zones or not."""
    settings.TIME_ZONE = "Asia/Kolkata"
    make_channel("news")
    publish("news", "x")
    Event.objects.update(created_at=1_709_208_000.0)
    assert cells(root.get(EVENTS), "published") == ["2024-02-29 17:30:00"]
    settings.USE_TZ = False
    assert cells(root.get(EVENTS), "published") == ["2024-02-29 17:30:00"]


def test_nobody_writes_into_the_log_by_hand(root, make_channel):
    """Not even a superuser: a hole or a change would be silent."""
    make_channel("news")
    publish("news", "x")
    event = Event.objects.get()
    assert root.get(f"{EVENTS}add/").status_code == 403
    assert root.post(f"{EVENTS}add/", {"channel": "news", "data": "y"}).status_code == 403
    assert root.post(f"{EVENTS}{event.pk}/change/", {"data": "y"}).status_code == 403
    assert root.get(f"{EVENTS}{event.pk}/delete/").status_code == 403
    assert root.post(f"{EVENTS}{event.pk}/delete/", {"post": "yes"}).status_code == 403
    root.post(EVENTS, {"action": "delete_selected", "_selected_action": [event.pk], "post": "yes"})
    assert list(Event.objects.values_list("data", flat=True)) == ["x"]
    assert "delete_selected" not in EventAdmin(Event, admin.site).get_actions(root.get(EVENTS).wsgi_request)


def test_the_internal_tables_are_not_in_the_admin():
    """What only the app writes is not for people to edit."""
    shown = {model.__name__ for model in admin.site._registry if model._meta.app_label == "events"}
    assert shown == {"Channel", "Event", "PublishKey"}
    assert reverse("admin:events_channel_publish", args=[1]) == f"{LIST}1/publish/"


class TestPublishKeys:
    @staticmethod
    def make(name: str = "till", **fields) -> tuple[PublishKey, str]:
        """A key in the database, and its token."""
        key = PublishKey(name=name, **{"channels": "orders.*", **fields})
        token = keys.issue(key)
        key.save()
        return key, token

    @staticmethod
    def form(**fields) -> dict:
        """A key's form as a browser sends it."""
        data = {"name": "till", "channels": "orders.*\r\nnews", "is_active": "on", "per_minute": "600"}
        return {**data, "expires_at_0": "", "expires_at_1": "", **fields}

    def test_the_token_is_shown_once_after_adding_and_stored_nowhere(self, root):
        """By the answer to the form itself, which nobody may keep: no message waits for a next page."""
        page = root.get(f"{KEYS}add/")
        assert "The token is made when you save, and shown only once" in text_of(page)
        page = root.post(f"{KEYS}add/", self.form(name="Till <1>"))
        assert page.status_code == 200
        [token] = re.findall(r"\blek_[A-Za-z0-9_-]{43}", page.content.decode())
        assert "Till &lt;1&gt;" in page.content.decode()
        assert "This token is shown only once." in text_of(page)
        assert "no-store" in page.headers["Cache-Control"]
        key = keys.find(token)
        assert key is not None
        assert (key.name, key.channels, key.per_minute, key.expires_at) == ("Till <1>", "orders.*\r\nnews", 600, None)
        assert token not in str(page.cookies)
        assert token not in str(dict(root.session))
        for url in (KEYS, f"{KEYS}{key.pk}/change/", f"{KEYS}{key.pk}/history/", "/admin/"):
            seen = root.get(url).content.decode()
            assert token not in seen
            assert key.digest not in seen
        assert token not in str(LogEntry.objects.values_list())

    def test_no_way_to_save_leads_past_the_token(self, root):
        """Neither a button of the form, nor a name that a browser could send all the same."""
        page = root.get(f"{KEYS}add/")
        assert '<input type="submit" value="Save" class="default" name="_save">' in page.content.decode()
        assert "_addanother" not in page.content.decode()
        assert "_continue" not in page.content.decode()
        for name in ("_addanother", "_continue", "_popup"):
            assert "lek_" in root.post(f"{KEYS}add/", self.form(**{name: "1"})).content.decode()

    def test_a_form_with_errors_makes_no_token(self, root):
        """And says at its field what is wrong."""
        page = root.post(f"{KEYS}add/", self.form(channels="a b*c", per_minute="0"))
        errors = page.context["adminform"].form.errors
        assert set(errors) == {"channels", "per_minute"}
        assert "'b*c' is not a channel name" in errors["channels"][0]
        assert "lek_" not in page.content.decode()
        assert not PublishKey.objects.exists()

    def test_the_list_shows_which_keys_there_are(self, root):
        """The beginning of the token, by which it is found; not the rest."""
        key, token = self.make(channels="orders.*\nnews", expires_at=timezone.now())
        self.make("other", channels="x" * 100)
        page = root.get(KEYS)
        assert cells(page, "name") == ["other", "till"]
        assert cells(page, "beginning")[1] == f"{token[:12]}…"
        assert cells(page, "where") == ["x" * 59 + "…", "orders.* news"]
        assert cells(page, "last_used_at") == ["-", "-"]
        keys.used(key)
        assert cells(root.get(KEYS), "last_used_at")[1] != "-"
        assert cells(root.get(KEYS, {"q": token[:12]}), "name") == ["till"]
        assert cells(root.get(KEYS, {"q": "oth"}), "name") == ["other"]

    def test_a_change_keeps_the_token(self, root):
        """What the app writes is shown and cannot be sent."""
        key, token = self.make()
        url = f"{KEYS}{key.pk}/change/"
        page = root.get(url)
        assert f"{token[:12]}…" in text_of(page)
        assert "The token is made when you save" not in text_of(page)
        sent = self.form(name="new", per_minute="", digest="0" * 64, prefix="lek_", beginning="x")
        page = root.post(url, sent, follow=True)
        assert messages_of(page) != []
        found = keys.find(token)
        assert found is not None
        assert (found.pk, found.name, found.per_minute) == (key.pk, "new", None)
        assert (found.digest, found.prefix) == (key.digest, key.prefix)

    def test_keys_are_switched_off(self, root):
        """From the next request on, with an entry in their history; one that was off stays off."""
        (one, token), (two, other) = self.make("a"), self.make("b")
        self.make("c", is_active=False)
        data = {"action": "switch_off", "_selected_action": [one.pk, two.pk]}
        assert messages_of(root.post(KEYS, data, follow=True)) == ["Switched off: a, b."]
        assert keys.find(token) is keys.find(other) is None
        assert [entry.get_change_message() for entry in LogEntry.objects.all()] == ["Switched off."] * 2

    def test_who_may_only_look_looks(self, staff):
        """No token is made, nothing is switched off; and without a permission there is nothing to see."""
        key, token = self.make()
        browser = staff("view_publishkey", "add_channel", "change_channel")
        assert cells(browser.get(KEYS), "name") == ["till"]
        assert browser.get(f"{KEYS}{key.pk}/change/").status_code == 200
        assert browser.get(f"{KEYS}add/").status_code == 403
        assert browser.post(f"{KEYS}add/", self.form()).status_code == 403
        assert browser.post(f"{KEYS}{key.pk}/change/", self.form()).status_code == 403
        browser.post(KEYS, {"action": "switch_off", "_selected_action": [key.pk]})
        assert keys.find(token) == key

    def test_staff_without_permissions_sees_no_key(self, staff):
        """To configure channels is not to hand out keys."""
        key, _token = self.make()
        browser = staff("view_channel", "add_channel", "change_channel", "delete_channel", "publish_to_channel")
        for url in (KEYS, f"{KEYS}add/", f"{KEYS}{key.pk}/change/"):
            assert browser.get(url).status_code == 403, url
