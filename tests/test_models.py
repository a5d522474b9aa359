from __future__ import annotations

import threading

import pytest
from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.db import connection, models, transaction
from django.forms import modelform_factory
from django.template import Engine, Library
from hypothesis import given
from hypothesis import strategies as st

from events import signals
from events.models import (
    Channel,
    ChannelRevision,
    Event,
    Floor,
    IdempotencyKey,
    Log,
    Tick,
    validate_event_type,
    validate_interval,
    validate_name,
    validate_template,
)


def errors_of(**fields) -> dict[str, list[str]]:
    """What `full_clean` says of a channel with these fields."""
    try:
        Channel(**{"name": "news", **fields}).full_clean(validate_unique=False)
    except ValidationError as error:
        return error.message_dict
    return {}


def revision() -> int:
    return ChannelRevision.objects.values_list("number", flat=True).get()


# Validators


@pytest.mark.parametrize("value", [0.1, 0.2, 1, 1.0, 86_400, 86_400.0])
def test_an_interval_from_a_tenth_of_a_second_to_a_day_is_possible(value):
    """Both ends are inside."""
    validate_interval(value)
    assert errors_of(interval=value) == {}


@pytest.mark.parametrize("value", [0, -1, 0.0999, 86_400.1, 1e300, float("nan"), float("inf"), float("-inf"), -0.1])
def test_any_other_interval_is_refused_and_shown(value):
    """Also what is neither below nor above anything."""
    message = f"{float(value)} s is not possible: an interval is between 0.1 and 86400 seconds."
    assert errors_of(interval=value) == {"interval": [message]}


@given(st.floats())
def test_an_interval_is_taken_if_and_only_if_a_channel_can_tick_with_it(value):
    """Whatever float there is."""
    if 0.1 <= value <= 86_400:
        validate_interval(value)
    else:
        with pytest.raises(ValidationError):
            validate_interval(value)


@pytest.mark.parametrize("name", ["a", "news.de-1_x", "orders.*", "*", "x" * 100, "x" * 99 + "*"])
def test_a_name_or_a_prefix_with_a_star_is_a_name(name):
    """What the admin configures."""
    validate_name(name)
    assert errors_of(name=name) == {}


@pytest.mark.parametrize("name", ["a b", "a*b", "**", "*a", "é", "a\n", "a/b", "x" * 101, "x" * 100 + "*"])
def test_any_other_name_is_refused_with_what_it_may_be(name):
    """The value is shown, with what is allowed."""
    with pytest.raises(ValidationError) as caught:
        validate_name(name)
    assert f"{ascii(name)[:20]}" in caught.value.messages[0]
    assert "use 1 to 100 characters of A-Z a-z 0-9 . _ -" in caught.value.messages[0]
    assert "name" in errors_of(name=name)


def test_a_template_must_compile():
    """The error of the template engine says what is wrong."""
    validate_template("{{ now }} {% if n %}x{% endif %}")
    assert errors_of(template="{% if n %}") == {
        "template": [
            "This is not a Django template: Unclosed tag on line 1: 'if'. Looking for one of: elif, else, endif."
        ]
    }
    assert "nosuchfilter" in errors_of(template="{{ n|nosuchfilter }}")["template"][0]


def test_a_tag_that_fails_to_compile_is_an_error_in_the_form(monkeypatch):
    """A tag of the site's own may raise anything."""
    library = Library()

    @library.tag
    def broken(parser, token):
        raise KeyError("no such thing")

    monkeypatch.setattr(Engine.get_default(), "template_builtins", [library])
    assert errors_of(template="{% broken %}") == {"template": ["This is not a Django template: 'no such thing'"]}


def test_a_template_nested_too_deeply_is_an_error_in_the_form():
    """And no 500."""
    with pytest.raises(ValidationError):
        validate_template("{% if n %}" * 2000 + "{% endif %}" * 2000)


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "", "x" * 101])
def test_an_event_type_must_fit_on_its_line(value):
    """What the wire would refuse at every tick is refused when it is typed."""  # promise 17
    with pytest.raises(ValidationError, match="an event's type"):
        validate_event_type(value)
    assert "event_type" in errors_of(event_type=value)


def test_an_event_type_may_be_any_other_text():
    """Also with spaces, and not in English."""
    validate_event_type("größer als 5")
    assert errors_of(event_type="größer als 5") == {}


# Fields that go together


@pytest.mark.parametrize("template", ["", "  \n"])
def test_the_source_template_needs_a_template(template):
    """Else every tick would publish nothing but blanks."""
    assert errors_of(source="template", template=template) == {"template": ["The source “template” needs a template."]}
    assert errors_of(source="clock", template=template) == {}
    assert errors_of(source="template", template="{{ n }}") == {}


def test_a_prefix_ticks_only_while_watched():
    """Nobody can say for which of the names it stands for."""
    problem = errors_of(name="a.*", source="clock", only_when_watched=False)
    assert problem == {
        "only_when_watched": ["A name ending in * stands for any number of channels: they can only tick while watched."]
    }
    assert errors_of(name="a.*", source="clock") == {}
    assert errors_of(name="a.*", only_when_watched=False) == {}
    assert errors_of(name="a", source="clock", only_when_watched=False) == {}


def test_access_by_policy_needs_a_policy():
    """Without one nobody could read, and nothing would say why."""
    assert errors_of(access="policy") == {"policy": ["Name the function that decides who may read."]}
    assert errors_of(access="policy", policy="a.b") == {}


def test_unknown_choices_are_refused():
    """Access and replay are what this version knows."""
    assert set(errors_of(access="everybody", replay="some")) == {"access", "replay"}


def test_all_that_is_wrong_is_said_at_once():
    """Nobody mends a form one error at a time."""
    wrong = errors_of(name="a*b", interval=0, source="template", template=" ", access="policy", event_type="\n")
    assert set(wrong) == {"name", "interval", "template", "policy", "event_type"}


def test_a_form_of_some_fields_is_not_stopped_by_the_others(transactional_db, make_channel):
    """A form cannot show an error at a field that it lacks: Django would answer with a 500."""
    row = make_channel(source="template", template="", access="policy")
    form = modelform_factory(Channel, fields=["interval"])({"interval": "0.2"}, instance=row)
    assert form.is_valid(), form.errors
    form = modelform_factory(Channel, fields=["interval"])({"interval": "0"}, instance=row)
    assert list(form.errors) == ["interval"]


def test_a_name_is_there_once(transactional_db, make_channel):
    """Two rows could not both configure a channel."""
    make_channel("news")
    with pytest.raises(ValidationError, match="Channel with this Name already exists"):
        Channel(name="news").full_clean()


def test_the_defaults_open_nothing_and_keep_something():
    """A channel that somebody just made is for staff, keeps a thousand events and ticks once a second when watched."""
    row = Channel(name="news")
    row.full_clean(validate_unique=False)
    assert (row.access, row.is_active, row.source, row.interval, row.only_when_watched) == ("staff", True, "", 1, True)
    assert (row.event_type, row.history_events, row.history_seconds, row.replay) == ("message", 1000, None, "nothing")


# What rows are called


def test_a_channel_is_called_by_its_title_or_its_name():
    """And leads to its live page; a prefix leads to the page of all."""
    assert str(Channel(name="news", title="News")) == "News"
    assert str(Channel(name="news")) == "news"
    assert Channel(name="a.b-c_d").get_absolute_url() == "/events/channels/a.b-c_d/"
    assert Channel(name="a.*").get_absolute_url() == "/events/"


@pytest.mark.parametrize(
    "row, text",
    [
        (ChannelRevision(number=5), "5"),
        (Log(epoch="ab", head=5), "ab-5"),
        (Event(channel="news", position=5), "news 5"),
        (Floor(channel="news", position=5), "news 5"),
        (IdempotencyKey(channel="news", key="k"), "news k"),
        (Tick(channel="news", number=5), "news 5"),
    ],
)
def test_every_row_says_what_it_is(row, text):
    """In a shell and in a log."""
    assert str(row) == text


# The revision


@pytest.fixture
def changes():
    """How often this process was told that channels changed."""
    seen = []

    def note(sender, **kwargs):
        seen.append(connection.in_atomic_block)

    signals.channels_changed.connect(note)
    yield seen
    signals.channels_changed.disconnect(note)


@pytest.mark.django_db(transaction=True)
class TestRevision:
    @pytest.mark.parametrize(
        "change",
        [
            lambda row: row.save(),
            lambda row: row.save(update_fields=["interval"]),
            lambda row: row.delete(),
            lambda row: Channel.objects.create(name="other"),
            lambda row: Channel.objects.update(interval=5),
            lambda row: Channel.objects.filter(name="nothing").update(interval=5),
            lambda row: Channel.objects.all().delete(),
            lambda row: Channel.objects.bulk_create([Channel(name="a"), Channel(name="b")]),
            lambda row: Channel.objects.bulk_update([row], ["interval"]),
            lambda row: Channel.objects.update_or_create(name="news", defaults={"interval": 2}),
            lambda row: row.groups.add(Group.objects.create(name="new")),
            lambda row: row.groups.set([]),
            lambda row: row.groups.clear(),
            lambda row: Group.objects.all().delete(),
        ],
        ids=[
            *["save", "save some fields", "delete", "create", "update", "update nothing", "delete some", "bulk_create"],
            *["bulk_update", "update_or_create", "add a group", "set groups", "clear groups", "delete a group"],
        ],
    )
    def test_every_change_counts(self, make_channel, changes, change):
        """However a channel is changed, every process sees with one look that it was."""
        row = make_channel()
        row.groups.add(Group.objects.create(name="readers"))
        before = revision()
        changes.clear()
        change(row)
        assert revision() > before
        assert changes

    def test_reading_does_not_count(self, make_channel, changes):
        """Nothing changed, nothing is read anew."""
        row = make_channel()
        before = revision()
        changes.clear()
        row.refresh_from_db()
        assert list(Channel.objects.all()) == [row]
        assert list(row.groups.all()) == []
        assert revision() == before
        assert changes == []

    def test_a_rollback_does_not_count(self, make_channel, changes):
        """What was not changed in the end was not changed."""
        row = make_channel()
        before = revision()
        with transaction.atomic():
            row.save()
            transaction.set_rollback(True)
        assert revision() == before
        assert changes[-1] is True

    def test_a_change_is_told_at_once_and_once_more_after_the_commit(self, make_channel, changes):
        """Who looked in between has read what was before."""
        row = make_channel()
        changes.clear()
        with transaction.atomic():
            row.save()
            assert changes == [True]
        assert changes == [True, False]

    def test_an_emptied_database_does_not_count_from_the_same_number(self, make_channel):
        """A process that remembers the old number would take what it knew for what is there."""
        make_channel()
        before = revision()
        ChannelRevision.objects.all().delete()
        make_channel("other")
        assert revision() not in (before, before + 1, 1)

    def test_two_processes_that_make_the_first_change_are_both_counted(self, make_channel, monkeypatch):
        """The row that one of them makes is counted up by the other."""
        other = 1_000
        made = models.QuerySet.get_or_create

        def get_or_create(self, *args, **kwargs):
            if self.model is ChannelRevision:
                ChannelRevision(pk=1, number=other).save(force_insert=True)
            return made(self, *args, **kwargs)

        monkeypatch.setattr(models.QuerySet, "get_or_create", get_or_create)
        make_channel()
        assert revision() == other + 1

    def test_changes_in_many_threads_are_all_counted(self, make_channel):
        """The number's row is locked, not read and written."""
        row = make_channel()
        before = revision()

        def change():
            try:
                for _ in range(5):
                    Channel.objects.filter(pk=row.pk).update(interval=2)
            finally:
                connection.close()

        threads = [threading.Thread(target=change) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert revision() == before + 20

    @pytest.mark.parametrize(
        "change", [lambda: Channel.objects.update(interval=2), lambda: Channel.objects.bulk_create([Channel(name="x")])]
    )
    def test_bulk_changes_are_counted_where_they_are_written(self, settings, make_channel, change):
        """A site may read from a replica that it cannot write to."""
        make_channel()
        before = revision()
        settings.DATABASE_ROUTERS = [f"{__name__}.ReplicaRouter"]
        change()
        settings.DATABASE_ROUTERS = []
        assert revision() == before + 1


class ReplicaRouter:
    """Reads from a database that is not there: whoever reads fails."""

    def db_for_read(self, model, **hints):
        return "replica"

    def db_for_write(self, model, **hints):
        return "default"


def test_models_and_migrations_agree(transactional_db):
    """`makemigrations` has nothing to do, so an installed wheel has the tables it needs."""
    from django.core.management import call_command

    call_command("makemigrations", "events", check=True, dry_run=True, verbosity=0)
