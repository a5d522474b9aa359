"""`publish()`, the only way into a log, and its siblings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder
from django.db import transaction
from django.utils.functional import Promise

from . import wire
from .backends.base import BaseEventBackend, NewEvent, PublishedEvent
from .channels import channel_table, retention_of
from .conf import settings
from .exceptions import ChannelNotFound, EventTooLarge, InvalidEvent
from .registry import event_backends

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

#: What wants to hear of each event that was handed to a log (`events.testing`).
observers: list[Callable[[NewEvent], None]] = []


def publish(
    channel: str,
    data: object,
    *,
    event: str = wire.DEFAULT_TYPE,
    key: str | None = None,
    using: str = "default",
) -> PublishedEvent:
    """
    Publish one event, from anywhere: a view, a task, a shell.

    Text is sent as it is, anything else as JSON (dates, decimals and UUIDs as Django's JSON encoder writes them).
    `event` is its type. A `key` that was used on this channel in the last five minutes publishes nothing and returns
    the first event. Inside a transaction the event is published if and only if that commits; until then the `id` of
    what is returned is None.

    Raises `InvalidChannelName`, `ChannelNotFound`, `InvalidEvent` or `EventTooLarge`, and nothing was published; or
    `BackendUnavailable`, which says whether that is so or nobody knows. With a key it is safe to publish again.
    """
    return publish_many([(channel, data, event, key)], using=using)[0]


def publish_many(
    events: Iterable[tuple[Any, ...] | Mapping[str, Any]], *, using: str = "default"
) -> list[PublishedEvent]:
    """
    Publish several events, all or none, in this order, and return one result for each.

    Each is `(channel, data)`, `(channel, data, event)` or `(channel, data, event, key)`, or a mapping with those names.
    Raises as `publish` does.
    """
    new = [_prepare(*item) if isinstance(item, tuple) else _prepare(**item) for item in events]
    backend = event_backends[using]
    published = append(backend, new)
    for event in new:
        for observer in observers:
            observer(event)
    backend.maintain(retention_of)
    return published


async def apublish(
    channel: str,
    data: object,
    *,
    event: str = wire.DEFAULT_TYPE,
    key: str | None = None,
    using: str = "default",
) -> PublishedEvent:
    """`publish` from async code. Never blocks the loop."""
    return await sync_to_async(publish)(channel, data, event=event, key=key, using=using)


async def apublish_many(
    events: Iterable[tuple[Any, ...] | Mapping[str, Any]], *, using: str = "default"
) -> list[PublishedEvent]:
    """`publish_many` from async code. Never blocks the loop."""
    return await sync_to_async(publish_many)(events, using=using)


def append(
    backend: BaseEventBackend, events: list[NewEvent], *, database: str = "", is_robust: bool = False
) -> list[PublishedEvent]:
    """
    Append to the log in the open transaction of `database` (empty: the default one), or else when that has committed.

    With `is_robust` a late append that fails is logged by Django, and what else waits for the commit goes on.
    """
    connection = transaction.get_connection(database or None)
    if not connection.in_atomic_block or _joins(backend, connection.alias):
        return backend.append(events)
    published = [PublishedEvent(channel=event.channel, event=event.type) for event in events]
    transaction.on_commit(lambda: _append_late(backend, events, published), using=connection.alias, robust=is_robust)
    return published


def _joins(backend: BaseEventBackend, alias: str) -> bool:
    """Whether an append is part of a transaction: of this database's, or of the open one of the log's own."""
    if not backend.joins_transactions:
        return False
    return backend.database == alias or transaction.get_connection(backend.database).in_atomic_block


def _append_late(backend: BaseEventBackend, events: list[NewEvent], published: list[PublishedEvent]) -> None:
    for result, stored in zip(published, backend.append(events), strict=True):
        result.event, result.id, result.repeated = stored.event, stored.id, stored.repeated


def _prepare(channel: str, data: object, event: str = wire.DEFAULT_TYPE, key: str | None = None) -> NewEvent:
    wire.validate_channel_name(channel)
    text, is_json = encode_data(data)
    if event != wire.DEFAULT_TYPE:
        wire.validate_type(event)
    if key is not None:
        wire.validate_key(key)
    row = channel_table.get(channel)
    if row is None:
        raise ChannelNotFound(
            f"no channel is called {channel!r}, and no prefix with * covers it: make one in the admin, under Channels."
        )
    if not row.is_active:
        raise ChannelNotFound(f"the channel {channel!r} is switched off: switch it on in the admin, under Channels.")
    return NewEvent(channel=channel, data=text, type=event, is_json=is_json, key=key, keep=row.history_events)


def encode_data(data: object) -> tuple[str, bool]:
    """What is written of `data`: the text, and whether it is JSON. Raises `InvalidEvent` or `EventTooLarge`."""
    if is_json := not isinstance(data, (str, Promise)):
        if isinstance(data, (bytes, bytearray, memoryview)):
            raise InvalidEvent(f"data is text or can be written as JSON, not {type(data).__name__}: decode it first.")
        try:
            # NaN and Infinity are no JSON: a browser could not read them.
            text = json.dumps(data, cls=DjangoJSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidEvent(f"data cannot be written as JSON: {error}. It is {wire.shown(data)}.") from error
        text = wire.escape_json(text)
    else:
        # A subclass, or a lazy translation, becomes plain text here, while its language is active.
        text = str.__str__(data) if isinstance(data, str) else str(data)
    wire.validate_text(text)
    limit = settings.MAX_EVENT_BYTES
    # No character takes more than four bytes: most events need no counting.
    if len(text) * 4 > limit and (size := len(text.encode())) > limit:
        raise EventTooLarge(
            f"data has {size} bytes, more than EVENTS['MAX_EVENT_BYTES'] = {limit}: "
            "publish where it can be fetched instead."
        )
    return text, is_json
