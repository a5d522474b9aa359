"""
The tables: what the admin configures (`Channel`, `PublishKey`), and the database backend's log.

Only these two are for users to write. The other tables belong to `events.backends.database` and `events.ticks`, which
write them with SQL of their own.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models, transaction
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.template import Engine
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from . import signals, wire
from .exceptions import InvalidEvent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from django.db.backends.base.base import BaseDatabaseWrapper

    _CharField = models.CharField[str, str]
else:
    # Django's own class takes no parameter when it runs.
    _CharField = models.CharField

MIN_INTERVAL = 0.1
MAX_INTERVAL = 86_400.0
#: Names and prefixes that one publish key may have.
MAX_KEY_CHANNELS = 100


def validate_name(value: str) -> None:
    """Raise `ValidationError` unless `value` is a channel's name, or a prefix followed by `*`."""
    if not (wire.is_channel_name(value) or wire.is_channel_pattern(value)):
        raise ValidationError(
            _(
                "%(shown)s is not a channel name: use 1 to %(limit)s characters of A-Z a-z 0-9 . _ - "
                "A last * stands for every channel that begins with what stands before it."
            ),
            code="invalid",
            params={"shown": wire.shown(value), "limit": wire.MAX_CHANNEL_NAME},
        )


def validate_key_channels(value: str) -> None:
    """Raise `ValidationError` unless `value` is 1 to 100 names, or prefixes followed by `*`, parted by white space."""
    names = value.split()
    if not 1 <= len(names) <= MAX_KEY_CHANNELS:
        raise ValidationError(
            _("A key is for 1 to %(limit)s channels or prefixes with a last *, not for %(count)s."),
            code="count",
            params={"limit": MAX_KEY_CHANNELS, "count": len(names)},
        )
    for name in names:
        validate_name(name)


def validate_interval(value: float) -> None:
    """Raise `ValidationError` unless `value` is a number of seconds between 0.1 and 86400."""
    # NaN is neither below nor above anything, so ask for what is right.
    if not (math.isfinite(value) and MIN_INTERVAL <= value <= MAX_INTERVAL):
        raise ValidationError(
            _("%(value)s s is not possible: an interval is between 0.1 and 86400 seconds."),
            # Not "invalid": a number's field has a message of its own for that, and would put it in the place of ours.
            code="interval",
            params={"value": value},
        )


def validate_template(value: str) -> None:
    """Raise `ValidationError` unless `value` is a template that Django can compile."""
    try:
        Engine.get_default().from_string(value)
    except Exception as error:
        # Not only TemplateSyntaxError: a tag of the site's own may raise anything, deep nesting a RecursionError.
        raise ValidationError(
            _("This is not a Django template: %(error)s"), code="invalid", params={"error": error}
        ) from error


def validate_event_type(value: str) -> None:
    """Raise `ValidationError` unless `value` may stand in an `event:` line."""
    try:
        wire.validate_type(value)
    except InvalidEvent as error:
        raise ValidationError(str(error), code="invalid") from error


class ExactCharField(_CharField):
    """
    A `CharField` that tells `News` from `news`, on MySQL and MariaDB too.

    Their usual collations do not, nor `news` from `news `: a page of one channel would show the events of another.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Add the engine's own binary collation, where it needs one."""
        parameters = super().db_parameters(connection)
        if connection.vendor == "mysql":
            is_mariadb = getattr(connection, "mysql_is_mariadb", False)
            parameters["collation"] = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
        return parameters


class ChannelQuerySet(models.QuerySet["Channel"]):
    """A query set whose bulk changes are noticed by every process, like those of a single row."""

    def update(self, **kwargs: Any) -> int:
        """As Django's, and counted as a change."""
        # As Django's own methods that write: `db` is then where the routers send writes.
        self._for_write = True
        with transaction.atomic(using=self.db):
            count = super().update(**kwargs)
            ChannelRevision.bump(self.db)
        return count

    def bulk_create(self, objs: Iterable[Channel], *args: Any, **kwargs: Any) -> list[Channel]:
        """As Django's, and counted as a change."""
        self._for_write = True
        with transaction.atomic(using=self.db):
            created = super().bulk_create(objs, *args, **kwargs)
            ChannelRevision.bump(self.db)
        return created


class Channel(models.Model):
    """
    What the admin says about a channel, or about all channels with a prefix (a name ending in `*`).

    An exact name wins over a prefix, and a longer prefix over a shorter one.
    """

    class Access(models.TextChoices):
        """Who may read a channel."""

        PUBLIC = "public", _("Everybody")
        AUTHENTICATED = "authenticated", _("Signed-in users")
        STAFF = "staff", _("Staff")
        GROUPS = "groups", _("Groups")
        POLICY = "policy", _("Policy")

    class Replay(models.TextChoices):
        """What a new stream gets before what is new."""

        NOTHING = "nothing", _("Nothing: only what comes from now on")
        LATEST = "latest", _("The latest event")
        ALL = "all", _("All that is kept")

    name = ExactCharField(
        _("name"),
        max_length=wire.MAX_CHANNEL_NAME,
        unique=True,
        validators=[validate_name],
        help_text=_(
            "What publishers and pages call it: A-Z a-z 0-9 . _ - and, as the last character, * "
            "to configure every channel that begins so."
        ),
    )
    title = models.CharField(_("title"), max_length=200, blank=True, help_text=_("What visitors see."))
    description = models.TextField(_("description"), blank=True)
    is_active = models.BooleanField(
        _("switched on"), default=True, help_text=_("Off: open streams end, and nobody can publish or follow.")
    )

    source = models.CharField(
        _("source"),
        max_length=100,
        blank=True,
        help_text=_("What makes a message at every interval. None: the channel has only what is published to it."),
    )
    interval = models.FloatField(
        _("interval"),
        default=1.0,
        validators=[validate_interval],
        help_text=_("Seconds between two messages of the source, 0.1 to 86400."),
    )
    only_when_watched = models.BooleanField(
        _("only when watched"),
        default=True,
        help_text=_("On: the source rests while nobody follows the channel. Off: it goes on for the history's sake."),
    )
    template = models.TextField(
        _("template"),
        blank=True,
        validators=[validate_template],
        help_text=_("For the source “template”: a Django template, with now, n (1, 2, 3, …) and channel."),
    )
    event_type = models.CharField(
        _("event type"),
        max_length=wire.MAX_TYPE,
        default=wire.DEFAULT_TYPE,
        validators=[validate_event_type],
        help_text=_("The type of the source's messages. Browsers hand “message” to onmessage."),
    )

    access = models.CharField(
        _("who may read"),
        max_length=20,
        choices=Access,
        default=Access.STAFF,
    )
    groups = models.ManyToManyField(
        "auth.Group",
        verbose_name=_("groups"),
        blank=True,
        related_name="+",
        help_text=_("For “Groups”: whose members may read. Superusers may too."),
    )
    policy = models.CharField(
        _("policy"),
        max_length=200,
        blank=True,
        help_text=_(
            "For “Policy”: the dotted path of a function (user, channel_name) -> bool. "
            "“events.policies.own_user” opens user.5 to the user with the primary key 5."
        ),
    )

    history_events = models.PositiveIntegerField(
        _("events kept"),
        default=1000,
        null=True,
        blank=True,
        help_text=_("How many of the newest events are kept for those who reconnect. Empty: no limit by number."),
    )
    history_seconds = models.PositiveIntegerField(
        _("seconds kept"),
        default=None,
        null=True,
        blank=True,
        help_text=_("For how long an event is kept. Empty: no limit by age."),
    )
    replay = models.CharField(_("a new stream gets"), max_length=20, choices=Replay, default=Replay.NOTHING)
    compress = models.BooleanField(
        _("compressed"),
        default=False,
        help_text=_(
            "Send events as gzip to clients that accept it. Worth it for events of some hundred bytes and more; "
            "not for channels that mix secrets with text of strangers in one event."
        ),
    )

    #: The primary keys of `groups`, set by `events.channels`.
    group_ids: frozenset[int] = frozenset()

    objects = ChannelQuerySet.as_manager()

    class Meta:
        verbose_name = _("channel")
        verbose_name_plural = _("channels")
        ordering: ClassVar[list[str]] = ["name"]
        # For users with a session who publish over HTTP. Programs have a `PublishKey`.
        permissions: ClassVar[Any] = [("publish_to_channel", "Can publish to channels")]

    def __str__(self) -> str:
        return self.title or self.name

    def get_absolute_url(self) -> str:
        """The channel's live page; for a prefix, the page of all channels."""
        if self.is_pattern:
            return reverse("events:index")
        return reverse("events:channel", args=[self.name])

    def clean_fields(self, exclude: Collection[str] | None = None) -> None:
        """Raise `ValidationError` where a field is wrong, or two do not go together."""
        errors: dict[str, Any] = {}
        try:
            super().clean_fields(exclude=exclude)
        except ValidationError as error:
            errors = error.update_error_dict(errors)
        # Not in `clean`, which does not know what a form leaves out: a form cannot show an error at a field it lacks.
        for field, disagreement in self._disagreements().items():
            if field not in (exclude or ()):
                errors.setdefault(field, []).append(disagreement)
        if errors:
            raise ValidationError(errors)

    def _disagreements(self) -> dict[str, ValidationError]:
        # Codes that no form field has a message of its own for, which would take the place of these.
        errors: dict[str, ValidationError] = {}
        if self.source == "template" and not self.template.strip():
            errors["template"] = ValidationError(_("The source “template” needs a template."), code="missing")
        if self.is_pattern and self.source and not self.only_when_watched:
            errors["only_when_watched"] = ValidationError(
                _("A name ending in * stands for any number of channels: they can only tick while watched."),
                code="invalid",
            )
        if self.access == self.Access.POLICY and not self.policy:
            errors["policy"] = ValidationError(_("Name the function that decides who may read."), code="missing")
        return errors

    @property
    def is_pattern(self) -> bool:
        """Whether this row configures all channels with a prefix."""
        return self.name.endswith("*")


class ChannelRevision(models.Model):
    """One row, counted up by each change of a channel, so that other processes see with one look that there was one."""

    number = models.PositiveBigIntegerField(default=0)

    class Meta:
        verbose_name = _("channel revision")

    def __str__(self) -> str:
        return str(self.number)

    @classmethod
    def bump(cls, using: str) -> None:
        """
        Count one change in the transaction that makes it.

        The row's lock makes changes of channels wait for each other, so that a number once seen stands for everything
        that was committed before it.
        """
        if not cls.objects.using(using).filter(pk=1).update(number=models.F("number") + 1):
            # Not 1: a database that was emptied must not come to a number that a process knows from before.
            _row, made = cls.objects.using(using).get_or_create(pk=1, defaults={"number": time.time_ns()})
            if not made:
                # Another process was first, and who looked meanwhile knows its number: count this change too.
                cls.objects.using(using).filter(pk=1).update(number=models.F("number") + 1)
        signals.channels_changed.send(sender=Channel)
        signals.channel_written.send(sender=Channel, using=using)
        # Once more when it can be seen from other threads: one that looked in between has read the old rows.
        transaction.on_commit(lambda: signals.channels_changed.send(sender=Channel), using=using)


def _on_change(sender: Any, using: str, **kwargs: Any) -> None:
    ChannelRevision.bump(using)


def _on_groups_change(sender: Any, action: str, using: str, **kwargs: Any) -> None:
    if action.startswith("post_"):
        ChannelRevision.bump(using)


post_save.connect(_on_change, sender=Channel, dispatch_uid="events.channel_saved")
post_delete.connect(_on_change, sender=Channel, dispatch_uid="events.channel_deleted")
# A group that goes takes its rows of the relation with it, of which Django says nothing.
post_delete.connect(_on_change, sender="auth.Group", dispatch_uid="events.group_deleted")
m2m_changed.connect(_on_groups_change, sender=Channel.groups.through, dispatch_uid="events.channel_groups")


class PublishKey(models.Model):
    """
    What a program shows to publish over HTTP: which channels it may publish to, for how long, and how often.

    `events.keys` makes the secret and knows it again. It is not here: who reads the table cannot publish with it.
    """

    name = models.CharField(
        _("name"), max_length=200, help_text=_("Who or what publishes with it, e.g. “till in the foyer”.")
    )
    #: Hexadecimal SHA-256 of the token.
    digest = ExactCharField(_("digest"), max_length=64, unique=True, editable=False)
    #: The token's first characters: enough to find a key by what stands in a log, too few to be of use.
    prefix = models.CharField(_("token"), max_length=20, editable=False)
    channels = models.TextField(
        _("channels"),
        validators=[validate_key_channels],
        help_text=_(
            "Where it may publish: names of channels, one on each line. A last * stands for every channel that begins "
            "with what stands before it, * alone for all."
        ),
    )
    is_active = models.BooleanField(
        _("switched on"), default=True, help_text=_("Off: nobody can publish with it, from now on.")
    )
    expires_at = models.DateTimeField(
        _("expires"), null=True, blank=True, help_text=_("When it ceases to work. Empty: never.")
    )
    per_minute = models.PositiveIntegerField(
        _("requests per minute"),
        default=600,
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("How many requests it may make in a minute. Further ones are told to wait. Empty: any number."),
    )
    created_at = models.DateTimeField(_("made"), auto_now_add=True)
    last_used_at = models.DateTimeField(
        _("last used"), null=True, editable=False, help_text=_("When something was last published, to the minute.")
    )

    #: The token, on an instance that was just made. No field: it is shown once, and never stored.
    token = ""

    class Meta:
        verbose_name = _("publish key")
        verbose_name_plural = _("publish keys")
        ordering: ClassVar[list[str]] = ["name", "pk"]

    def __str__(self) -> str:
        return self.name


class Log(models.Model):
    """One row: which life of the log this is, and its highest position."""

    epoch = ExactCharField(max_length=32)
    head = models.PositiveBigIntegerField(default=0)
    #: When a process last began to trim, in seconds since 1970: one at a time is enough.
    trimmed_at = models.FloatField(default=0)

    class Meta:
        verbose_name = _("log")

    def __str__(self) -> str:
        return f"{self.epoch}-{self.head}"


class RowIdField(models.BigAutoField):  # type: ignore[type-arg]
    """
    A `BigAutoField` that is SQLite's row id, without AUTOINCREMENT.

    That keyword makes SQLite write a page of another table with each row, a fifth of what a publish costs, so that the
    number of a deleted row is never given again. Nothing here remembers a row's number longer than the row.
    """

    def db_type_suffix(self, connection: BaseDatabaseWrapper) -> str | None:
        """Nothing on SQLite; elsewhere what Django writes."""
        return None if connection.vendor == "sqlite" else super().db_type_suffix(connection)


class EventManager(models.Manager["Event"]):
    """What was published: without the messages between processes, which are in the log too."""

    def get_queryset(self) -> models.QuerySet[Event]:
        """Without what no channel has."""
        return super().get_queryset().exclude(channel=wire.CONTROL_CHANNEL)


class Event(models.Model):
    """
    One event: first a row of the outbox (no position), then, after its transaction has committed, a place in the log.
    """

    id = RowIdField(primary_key=True)
    position = models.PositiveBigIntegerField(_("position"), null=True, unique=True, editable=False)
    channel = ExactCharField(_("channel"), max_length=wire.MAX_CHANNEL_NAME)
    type = ExactCharField(_("type"), max_length=wire.MAX_TYPE)
    data = models.TextField(_("data"))
    #: Whether `data` is JSON, or text that goes as it is.
    is_json = models.BooleanField(_("JSON"))
    #: Seconds since 1970: the log is read with SQL, which should not depend on the site's time zone settings.
    created_at = models.FloatField(_("published"))

    objects = EventManager()
    #: All rows, for the log itself.
    rows = models.Manager["Event"]()

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering: ClassVar[list[str]] = ["-position"]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["channel", "position"], name="events_event_channel_position"),
        ]

    def __str__(self) -> str:
        return f"{self.channel} {self.position}"


class Floor(models.Model):
    """A channel's highest position that was trimmed away: who resumes from below it has missed something."""

    channel = ExactCharField(primary_key=True, max_length=wire.MAX_CHANNEL_NAME)
    position = models.PositiveBigIntegerField()

    class Meta:
        verbose_name = _("floor")

    def __str__(self) -> str:
        return f"{self.channel} {self.position}"


class IdempotencyKey(models.Model):
    """A key that an event was published with, kept for five minutes, also where the event is trimmed before."""

    channel = ExactCharField(max_length=wire.MAX_CHANNEL_NAME)
    key = ExactCharField(max_length=wire.MAX_KEY)
    type = ExactCharField(max_length=wire.MAX_TYPE)
    #: The row of the outbox. Not a foreign key: the event may be trimmed before the key expires.
    event = models.BigIntegerField()
    position = models.PositiveBigIntegerField(null=True)
    created_at = models.FloatField(db_index=True)

    class Meta:
        verbose_name = _("idempotency key")
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["channel", "key"], name="events_key_once"),
        ]

    def __str__(self) -> str:
        return f"{self.channel} {self.key}"


class Tick(models.Model):
    """A channel's latest interval message: when it was due, its number, and what went wrong if something did."""

    channel = ExactCharField(primary_key=True, max_length=wire.MAX_CHANNEL_NAME)
    #: Seconds since 1970, a multiple of the channel's interval.
    due_at = models.FloatField(default=0)
    number = models.PositiveBigIntegerField(default=0)
    error = models.TextField(blank=True)
    failed_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name = _("tick")

    def __str__(self) -> str:
        return f"{self.channel} {self.number}"


class Outbox(models.Model):
    """An event on its way to a log that is not in this database: written with the transaction, relayed after it."""

    #: The alias of the log.
    log = models.CharField(max_length=100)
    channel = ExactCharField(max_length=wire.MAX_CHANNEL_NAME)
    type = ExactCharField(max_length=wire.MAX_TYPE)
    data = models.TextField()
    is_json = models.BooleanField()
    #: Empty: none.
    key = ExactCharField(max_length=wire.MAX_KEY, blank=True)
    #: How many of the channel's newest events are kept; None without a limit.
    keep = models.PositiveBigIntegerField(null=True)
    #: By which the log knows the row again, however often it is relayed.
    token = models.CharField(max_length=32)
    created_at = models.FloatField()

    class Meta:
        verbose_name = _("event to be relayed")

    def __str__(self) -> str:
        return f"{self.channel} {self.token}"
