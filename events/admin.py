"""The admin: channels to configure and to publish to, events to read, keys to publish with."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.conf import settings as django_settings
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import models, router
from django.db.models import OuterRef, Subquery
from django.template.defaultfilters import filesizeformat, truncatechars
from django.template.response import TemplateResponse
from django.templatetags.static import static
from django.urls import NoReverseMatch, path
from django.utils.formats import date_format, number_format
from django.utils.html import format_html
from django.utils.timesince import timesince
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from . import access, sources, wire
from .backends.database import DatabaseBackend
from .channels import channel_table
from .control import clear_history
from .exceptions import BackendUnavailable, EventsError, InvalidEvent
from .keys import issue
from .models import MAX_INTERVAL, MIN_INTERVAL, Channel, Event, PublishKey, Tick, validate_event_type
from .publishing import encode_data, publish
from .registry import event_backends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.contrib.admin.views.main import ChangeList
    from django.db.models import QuerySet
    from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
    from django.urls import URLPattern

    ChannelModelForm = forms.ModelForm[Channel]
    ChannelModelAdmin = admin.ModelAdmin[Channel]
    EventModelAdmin = admin.ModelAdmin[Event]
    PublishKeyModelAdmin = admin.ModelAdmin[PublishKey]
else:
    # Django's own classes take no parameter when they run.
    ChannelModelForm, ChannelModelAdmin, EventModelAdmin = forms.ModelForm, admin.ModelAdmin, admin.ModelAdmin
    PublishKeyModelAdmin = admin.ModelAdmin


#: Failed ticks that are looked through for what the list and the forms show.
MAX_FAILURES = 1000


class ChannelForm(ChannelModelForm):
    """A channel's form. Source and policy are checked against what this process has registered and can import."""

    source = forms.ChoiceField(label=_("Source"), required=False)

    class Meta:
        model = Channel
        fields = "__all__"
        widgets: ClassVar[dict[str, forms.Widget]] = {
            "description": forms.Textarea(attrs={"rows": 2, "cols": 80}),
            "template": forms.Textarea(attrs={"rows": 3, "cols": 80}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "source" in self.fields:
            field = self.fields["source"]
            field.help_text = Channel._meta.get_field("source").help_text
            choices = [("", _("none: only what is published")), *((name, name) for name in sources.names())]
            if self.instance.source and self.instance.source not in sources.names():
                # Shown, so that opening the form changes nothing; refused when saved.
                choices.append((self.instance.source, f"{self.instance.source} ({gettext('not registered')})"))
            field.choices = choices  # type: ignore[attr-defined]

    def clean_source(self) -> str:
        """Refuse a source that nothing registers."""
        name: str = self.cleaned_data["source"]
        if name and name not in sources.names():
            raise ValidationError(
                _("No source is called “%(name)s”. There are: %(names)s. Register one with @source(…)."),
                code="unknown",
                params={"name": name, "names": ", ".join(sources.names())},
            )
        return name

    def clean_policy(self) -> str:
        """Refuse a policy that cannot be imported, or is no function."""
        path: str = self.cleaned_data["policy"].strip()
        if path:
            try:
                access.load_policy(path)
            except Exception as error:
                # Importing runs the module, which may raise anything.
                raise ValidationError(
                    _("“%(path)s” is not the dotted path of a function: %(error)s"),
                    code="unknown",
                    params={"path": path, "error": error},
                ) from error
        return path


class PublishForm(forms.Form):
    """What is published by hand."""

    event = forms.CharField(
        label=_("Type"), initial=wire.DEFAULT_TYPE, max_length=wire.MAX_TYPE, validators=[validate_event_type]
    )
    payload = forms.CharField(
        label=_("Data"), widget=forms.Textarea(attrs={"rows": 6, "cols": 80, "class": "vLargeTextField"}), strip=False
    )
    as_json = forms.BooleanField(
        label=_("The data is JSON"), required=False, help_text=_("Sent as JSON; else the text goes as it is.")
    )

    def clean(self) -> dict[str, Any]:
        """Refuse what cannot be published, with its reason at the field."""
        cleaned = super().clean() or {}
        if "payload" in cleaned:
            try:
                if cleaned["as_json"]:
                    # Not a forms.JSONField, for which {} and [] are empty.
                    cleaned["payload"] = json.loads(cleaned["payload"])
                else:
                    # A form's lines end with CR LF, whatever was typed.
                    cleaned["payload"] = cleaned["payload"].replace("\r\n", "\n")
                encode_data(cleaned["payload"])
            except InvalidEvent as error:
                self.add_error("payload", str(error))
            except (ValueError, RecursionError) as error:
                self.add_error("payload", gettext("This is not JSON: %(error)s") % {"error": error})
        return cleaned


class SourceFilter(admin.AllValuesFieldListFilter):
    """By source; channels without one have a name, too."""

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        """Django's, where an empty value would be a link without text, or with nothing but its count before it."""
        for choice in super().choices(changelist):
            display = str(choice["display"])
            named = gettext("published by hand") + display if display[:1] in ("", " ") else display
            yield {**choice, "display": named}


@admin.register(Channel)
class ChannelAdmin(ChannelModelAdmin):
    """Channels: what makes their messages, who may read them, what is kept."""

    form = ChannelForm
    formfield_overrides: ClassVar[Any] = {
        # As narrow as its numbers, so that the list fits.
        models.FloatField: {
            "widget": forms.NumberInput(
                attrs={
                    "class": "vIntegerField",
                    "step": "any",
                    "min": MIN_INTERVAL,
                    "max": MAX_INTERVAL,
                    # In the list a column's head is no label.
                    "aria-label": _("Interval"),
                }
            )
        },
    }
    list_display = ("label", "live", "access", "is_active", "source_state", "interval", "newest", "kept")
    list_display_links = ("label",)
    list_editable = ("interval",)
    list_filter = ("is_active", "access", ("source", SourceFilter))
    search_fields = ("name", "title", "description")
    filter_horizontal = ("groups",)
    readonly_fields = ("last_error",)
    actions = ("publish_test_message", "switch_on", "switch_off", "clear_history")
    change_form_template = "admin/events/channel/change_form.html"
    fieldsets: ClassVar[Any] = (
        (None, {"fields": ("name", "title", "description", "is_active")}),
        (
            _("Interval messages"),
            {"fields": ("source", "template", "interval", "only_when_watched", "event_type", "last_error")},
        ),
        (_("Access"), {"fields": ("access", "groups", "policy")}),
        (_("What is kept"), {"fields": ("history_events", "history_seconds", "replay")}),
        (_("How it is sent"), {"fields": ("compress",)}),
    )

    # The list

    @admin.display(description=_("channel"), ordering="title")
    def label(self, channel: Channel) -> str:
        """Title and name."""
        if not channel.title:
            return channel.name
        return format_html("{} <code>{}</code>", channel.title, channel.name)

    @admin.display(description=_("source"), ordering="source")
    def source_state(self, channel: Channel) -> str:
        """The source, and whether it failed."""
        if not channel.source:
            return self.get_empty_value_display()
        if failures := _facts(channel).failures:
            return format_html(
                '{} <img src="{}" alt=""> <span title="{}">{}</span>',
                channel.source,
                static("admin/img/icon-alert.svg"),
                failures[0].error,
                gettext("failed"),
            )
        return channel.source

    @admin.display(description=_("kept"))
    def kept(self, channel: Channel) -> str:
        """What the channel keeps, in words."""
        limits = []
        if channel.history_events is not None:
            limits.append(
                ngettext("%(count)s event", "%(count)s events", channel.history_events)
                % {"count": number_format(channel.history_events, force_grouping=True)}
            )
        if channel.history_seconds is not None:
            limits.append(_duration(channel.history_seconds))
        return " / ".join(limits) if limits else gettext("everything")

    @admin.display(description=_("newest event"))
    def newest(self, channel: Channel) -> str:
        """How long ago the newest event was published."""
        if channel.is_pattern:
            return self.get_empty_value_display()
        published = _facts(channel).newest
        if isinstance(published, BackendUnavailable):
            return format_html('<span title="{}">{}</span>', str(published), gettext("the log cannot be read"))
        if published is None:
            return gettext("none yet")
        return gettext("%(time)s ago") % {"time": _duration(max(0, time.time() - published))}

    @admin.display(description=_("live page"))
    def live(self, channel: Channel) -> str:
        """A link to the live page."""
        url = _live_url(channel)
        return format_html('<a href="{}">{}</a>', url, gettext("Open")) if url else self.get_empty_value_display()

    @admin.display(description=_("last error of the source"))
    def last_error(self, channel: Channel) -> str:
        """What the source raised when it last failed; nothing once it has succeeded again."""
        lines = []
        for tick in _failures().get(channel.pk, [])[:5]:
            # Naive where the site has USE_TZ = False.
            at = localtime(tick.failed_at) if tick.failed_at and is_aware(tick.failed_at) else tick.failed_at
            lines.append(f"{at:%Y-%m-%d %H:%M:%S} {tick.channel}: {tick.error}")
        return "\n".join(lines)

    def get_fieldsets(self, request: HttpRequest, obj: Channel | None = None) -> Any:
        """The fields, with the last error only where there is one."""
        if obj is not None and _failures().get(obj.pk):
            return self.fieldsets
        return [
            (title, {**options, "fields": [name for name in options["fields"] if name != "last_error"]})
            for title, options in self.fieldsets
        ]

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """The list's page, for all of whose rows the newest events and the failures are read at once."""
        page = super().get_changelist_instance(request)
        rows = list(page.result_list)
        failures, newest = _failures(), _newest(rows)
        for row in rows:
            vars(row)["facts"] = Facts(failures.get(row.pk, []), newest.get(row.pk))
        return page

    # Actions

    @admin.action(description=_("Publish a test message"), permissions=["change"])
    def publish_test_message(self, request: HttpRequest, queryset: QuerySet[Channel]) -> None:
        """Publish a test message to each channel."""
        for channel in queryset:
            text = gettext("Test message from %(user)s") % {"user": request.user.get_username()}
            if channel.is_pattern:
                why = gettext("a name with * stands for many channels: publish to one of them")
                self.message_user(request, f"{channel.name}: {why}", messages.ERROR)
                continue
            try:
                publish(channel.name, text)
            except EventsError as error:
                self.message_user(request, f"{channel.name}: {error}", messages.ERROR)
            else:
                self.message_user(request, gettext("Published to %(name)s.") % {"name": channel.name}, messages.SUCCESS)

    @admin.action(description=_("Switch on"), permissions=["change"])
    def switch_on(self, request: HttpRequest, queryset: QuerySet[Channel]) -> None:
        """Switch the channels on."""
        self._switch(request, queryset, True)

    @admin.action(description=_("Switch off"), permissions=["change"])
    def switch_off(self, request: HttpRequest, queryset: QuerySet[Channel]) -> None:
        """Switch the channels off: their streams end."""
        self._switch(request, queryset, False)

    def _switch(self, request: HttpRequest, queryset: QuerySet[Channel], is_active: bool) -> None:
        for channel in queryset:
            channel.is_active = is_active
            channel.save(update_fields=["is_active"])
            self.log_change(request, channel, gettext("Switched on.") if is_active else gettext("Switched off."))
        text = gettext("Switched on: %(names)s.") if is_active else gettext("Switched off: %(names)s.")
        self.message_user(request, text % {"names": ", ".join(channel.name for channel in queryset)}, messages.SUCCESS)

    @admin.action(description=_("Clear history"), permissions=["delete"])
    def clear_history(self, request: HttpRequest, queryset: QuerySet[Channel]) -> HttpResponse | None:
        """Remove all events of the channels, after asking."""
        if request.POST.get("confirmed") != "yes":
            context = {
                **self.admin_site.each_context(request),
                "title": gettext("Clear history"),
                "opts": self.opts,
                "channels": queryset,
                "count": _count(queryset),
                "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
            }
            return TemplateResponse(request, "admin/events/channel/clear_history.html", context)
        try:
            count = clear_history(_all_names(queryset))
        except BackendUnavailable as error:
            self.message_user(request, str(error), messages.ERROR)
            return None
        for channel in queryset:
            self.log_change(request, channel, gettext("History cleared."))
        text = ngettext("%(count)d event removed.", "%(count)d events removed.", count) % {"count": count}
        self.message_user(request, text, messages.SUCCESS)
        return None

    # Publishing by hand

    def get_urls(self) -> list[URLPattern]:
        """The admin's own, and the page to publish from."""
        own = path(
            "<path:object_id>/publish/", self.admin_site.admin_view(self.publish_view), name="events_channel_publish"
        )
        return [own, *super().get_urls()]

    def publish_view(self, request: HttpRequest, object_id: str) -> HttpResponse | HttpResponseRedirect:
        """A form that publishes one event to the channel."""
        channel = self.get_object(request, object_id)
        if not self.has_change_permission(request, channel):
            raise PermissionDenied
        if channel is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        form = PublishForm(request.POST if request.method == "POST" else None)
        if form.is_valid():
            values = form.cleaned_data
            try:
                published = publish(channel.name, values["payload"], event=values["event"])
            except EventsError as error:
                form.add_error(None, str(error))
            else:
                self.log_change(request, channel, gettext("Published an event."))
                where = published.id or gettext("when this request ends")
                self.message_user(request, gettext("Published: %(id)s.") % {"id": where}, messages.SUCCESS)
                form = PublishForm(initial={"event": values["event"], "as_json": values["as_json"]})
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Publish to %(channel)s") % {"channel": channel},
            "opts": self.opts,
            "original": channel,
            "live_url": _live_url(channel),
            "form": form,
            "fieldset": helpers.Fieldset(form, fields=list(form.fields), model_admin=self),  # type: ignore[arg-type]
        }
        return TemplateResponse(request, "admin/events/channel/publish.html", context)


@admin.register(Event)
class EventAdmin(EventModelAdmin):
    """The log, to read."""

    list_display = ("position", "published", "channel", "type", "shown_data", "size")
    search_fields = ("channel", "data")
    ordering = ("-position",)
    fields = ("position", "channel", "type", "data", "is_json", "published")
    # Counting a large log to show a number nobody needs costs more than the page.
    show_full_result_count = False

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Shown where a log is in the database: a list that is always empty would say that nothing was published."""
        is_shown = any(isinstance(event_backends[alias], DatabaseBackend) for alias in event_backends)
        return is_shown and super().has_module_permission(request)

    def has_add_permission(self, request: HttpRequest, obj: Event | None = None) -> bool:
        """Nobody writes into the log by hand: `publish()` does."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Event | None = None) -> bool:
        """What was published was published."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Event | None = None) -> bool:
        """A hole would be silent: clear a channel's history instead, which says so to who resumes."""
        return False

    @admin.display(description=_("data"))
    def shown_data(self, event: Event) -> str:
        """The beginning of the data."""
        return truncatechars(event.data, 60)

    @admin.display(description=_("size"))
    def size(self, event: Event) -> str:
        """The size of the data."""
        return filesizeformat(len(event.data.encode()))

    @admin.display(description=_("published"), ordering="created_at")
    def published(self, event: Event) -> str:
        """When it was published, to the second."""
        return date_format(_when(event.created_at), "Y-m-d H:i:s")


@admin.register(PublishKey)
class PublishKeyAdmin(PublishKeyModelAdmin):
    """Keys to publish with over HTTP. A token is shown once, by the page that answers the form that made it."""

    list_display = ("name", "beginning", "where", "is_active", "expires_at", "last_used_at")
    search_fields = ("name", "prefix")
    search_help_text = _("By name, or by the first characters of a token.")
    actions = ("switch_off",)
    formfield_overrides: ClassVar[Any] = {
        models.TextField: {"widget": forms.Textarea(attrs={"rows": 4, "cols": 60})},
    }

    @admin.display(description=_("token"), ordering="prefix")
    def beginning(self, key: PublishKey) -> str:
        """The first characters of the token, by which to find the key of a token."""
        return format_html("<code>{}…</code>", key.prefix)

    @admin.display(description=_("channels"))
    def where(self, key: PublishKey) -> str:
        """Where it may publish, in one line."""
        return truncatechars(" ".join(key.channels.split()), 60)

    def get_fieldsets(self, request: HttpRequest, obj: PublishKey | None = None) -> Any:
        """What can be set, and of a key that is there what cannot."""
        fields = ["name", "channels", "is_active", "expires_at", "per_minute"]
        if obj is not None:
            return [(None, {"fields": [*fields, "beginning", "created_at", "last_used_at"]})]
        hint = _("The token is made when you save, and shown only once: have at hand where to keep it.")
        return [(None, {"fields": fields, "description": hint})]

    def get_readonly_fields(self, request: HttpRequest, obj: PublishKey | None = None) -> Any:
        """What the app writes."""
        return ("beginning", "created_at", "last_used_at")

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Django's, with one way to save: what follows is the token."""
        context = {"show_save_and_continue": False, "show_save_and_add_another": False, **(extra_context or {})}
        return super().add_view(request, form_url, context)

    def save_model(self, request: HttpRequest, obj: PublishKey, form: Any, change: bool) -> None:
        """Give a new key its token."""
        if not change:
            obj.token = issue(obj)
        super().save_model(request, obj, form, change)

    def response_add(self, request: HttpRequest, obj: PublishKey, post_url_continue: str | None = None) -> HttpResponse:
        """
        A page that shows the token.

        No message and no redirect, as elsewhere in the admin: a message waits in a cookie or in the session's table.
        """
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("The token of %(key)s") % {"key": obj},
            "opts": self.opts,
            "original": obj,
        }
        return TemplateResponse(request, "admin/events/publishkey/token.html", context)

    @admin.action(description=_("Switch off"), permissions=["change"])
    def switch_off(self, request: HttpRequest, queryset: QuerySet[PublishKey]) -> None:
        """Switch the keys off: nobody can publish with them from now on."""
        for key in queryset:
            key.is_active = False
            key.save(update_fields=["is_active"])
            self.log_change(request, key, gettext("Switched off."))
        text = gettext("Switched off: %(names)s.") % {"names": ", ".join(key.name for key in queryset)}
        self.message_user(request, text, messages.SUCCESS)


def _when(seconds: float) -> datetime:
    if django_settings.USE_TZ:
        return localtime(datetime.fromtimestamp(seconds, tz=timezone.utc))
    return datetime.fromtimestamp(seconds)  # noqa: DTZ006 - local time is what such a site shows


def _duration(seconds: float) -> str:
    """A span of time in words. Django's `timesince` counts from one minute on."""
    if seconds < 120:
        return gettext("%(seconds)d s") % {"seconds": seconds}
    now = datetime.now(timezone.utc)
    return timesince(now - timedelta(seconds=seconds), now)


def _live_url(channel: Channel) -> str | None:
    """The live page; None where the site has not included the app's URLs."""
    try:
        return channel.get_absolute_url()
    except NoReverseMatch:
        return None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the list shows of a row that is not in the row: failed ticks, and when the newest event was published."""

    failures: list[Tick]
    newest: float | BackendUnavailable | None


def _facts(channel: Channel) -> Facts:
    known: Facts | None = vars(channel).get("facts")
    return known or Facts(_failures().get(channel.pk, []), _newest([channel]).get(channel.pk))


def _failures() -> dict[int, list[Tick]]:
    """The ticks whose source failed, newest first, by the primary key of the channel that configures their names."""
    channel_table.refresh()
    found: dict[int, list[Tick]] = {}
    for tick in Tick.objects.filter(failed_at__isnull=False).order_by("-failed_at")[:MAX_FAILURES]:
        if (row := channel_table.find(tick.channel)) is not None:
            found.setdefault(row.pk, []).append(tick)
    return found


def _newest(channels: list[Channel]) -> dict[int, float | BackendUnavailable | None]:
    """When the newest event of each channel was published, in seconds since 1970, by primary key."""
    backend = event_backends["default"]
    if isinstance(backend, DatabaseBackend) and backend.database == router.db_for_read(Channel):
        # One statement for the whole page, with one seek in the index for each row.
        newest = Event.objects.filter(channel=OuterRef("name"), position__isnull=False).order_by("-position")
        rows = Channel.objects.filter(pk__in=[channel.pk for channel in channels])
        return dict(rows.annotate(newest=Subquery(newest.values("created_at")[:1])).values_list("pk", "newest"))
    try:
        found = backend.latest([channel.name for channel in channels if not channel.is_pattern])
    except BackendUnavailable as error:
        return {channel.pk: error for channel in channels}
    return {channel.pk: found[channel.name].created_at for channel in channels if channel.name in found}


def _count(channels: QuerySet[Channel]) -> int | None:
    """How many events the channels have; None where the log is not in a table, and would have to be read for it."""
    backend = event_backends["default"]
    if not isinstance(backend, DatabaseBackend):
        return None
    return Event.objects.using(backend.database).filter(channel__in=_all_names(channels)).count()


def _all_names(channels: QuerySet[Channel]) -> list[str]:
    """The channels' names; for a prefix, every name that it configures and that has events."""
    names = [channel.name for channel in channels if not channel.is_pattern]
    if prefixes := {channel.pk for channel in channels if channel.is_pattern}:
        channel_table.refresh()
        # Names that have a row of their own, or under a longer prefix, are not this row's.
        rows = {name: channel_table.find(name) for name in event_backends["default"].channels()}
        names += [name for name, row in rows.items() if row is not None and row.pk in prefixes]
    return names
