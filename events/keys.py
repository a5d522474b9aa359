"""
Publish keys: what a program shows to publish over HTTP.

A token is `lek_`, so that scanners for secrets find one that was committed by mistake, and 256 random bits. The
table has its SHA-256. A slow hash, as for passwords, would gain nothing: it protects secrets that can be guessed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from datetime import timedelta
from functools import lru_cache

from django.core.cache import cache
from django.db import DatabaseError, InterfaceError, connections, router, transaction
from django.db.models import Q
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from . import wire
from .models import PublishKey

logger = logging.getLogger("events.keys")

#: What every token begins with.
TOKEN_PREFIX = "lek_"  # noqa: S105 - no secret
#: Characters of a token that the table keeps. Eight of them are random: 48 of the 256 bits.
SHOWN = len(TOKEN_PREFIX) + 8
#: Seconds in which a key may make `per_minute` requests, and for which `last_used_at` is good.
WINDOW = 60

_TOKEN = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@sensitive_variables("token")
def issue(key: PublishKey) -> str:
    """Give `key`, which is not saved here, a secret. Returns the token: show it, for nothing can find it again."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    key.digest, key.prefix = _digest(token), token[:SHOWN]
    return token


@sensitive_variables("token")
def find(token: str) -> PublishKey | None:
    """
    The key with this token. None where there is none, where it is switched off or has expired, and for any other text.

    One query, and none for what cannot be a token. Raises Django's `DatabaseError` or `InterfaceError` where the
    database cannot say.
    """
    if _TOKEN.fullmatch(token) is None:
        return None
    key = PublishKey.objects.filter(digest=_digest(token), is_active=True).first()
    if key is None or (key.expires_at is not None and key.expires_at <= timezone.now()):
        return None
    return key


def may_publish(key: PublishKey, channel_name: str) -> bool:
    """Whether one of the names and prefixes of `key` covers `channel_name`. No query."""
    return any(wire.covers(scope, channel_name) for scope in key.channels.split())


def admit(key: PublishKey) -> float | None:
    """
    Count one request of `key`: None where it may be answered, or the seconds (above 0, at most 60) until the next may.

    Requests are counted by the clock's minute, in the site's default cache, and so for all the processes that share it.
    Where the cache fails, requests are answered: who sends one has shown a key. That the limit rests is logged.
    """
    if key.per_minute is None:
        return None
    window, elapsed = divmod(time.time(), WINDOW)
    try:
        count = _count(f"events.publish_key.{key.pk}.{window:.0f}")
    except Exception:  # noqa: BLE001 - each cache has errors of its own
        _say_uncounted(window)
        return None
    return WINDOW - elapsed if count > key.per_minute else None


def _count(name: str) -> int:
    """Count `name` up, from nothing to 1. Raises what the cache raises, and `ValueError` where it keeps nothing."""
    try:
        return cache.incr(name)
    except ValueError:
        # The first request of its minute, or what was counted has been thrown out. Where two come here at once, one
        # of them adds the 0, and both are counted. It is kept for longer than it is wanted: clocks differ.
        cache.add(name, 0, 2 * WINDOW)
        return cache.incr(name)


@lru_cache(maxsize=1)
def _say_uncounted(window: float) -> None:
    """Log the exception that is being handled; once in a window, for it is remembered that it was said."""
    text = "requests with publish keys are not limited: the default cache does not count them"
    logger.warning(text, exc_info=True)  # noqa: LOG014 - it is called where one is handled


def used(key: PublishKey) -> None:
    """
    Note that something was published with `key`, at most once a minute.

    The event is in the log by then: where the database refuses the note, or another holds the row, there is none.
    """
    now = timezone.now()
    if key.last_used_at is not None and now - key.last_used_at < timedelta(seconds=WINDOW):
        return
    database = router.db_for_write(PublishKey, instance=key)
    stale = PublishKey.objects.using(database).filter(
        Q(last_used_at=None) | Q(last_used_at__lte=now - timedelta(seconds=WINDOW)), pk=key.pk
    )
    try:
        with transaction.atomic(using=database):
            can_skip = connections[database].features.has_select_for_update_skip_locked
            # An `UPDATE` alone would wait for who has the row: a long transaction that changes the key.
            if not can_skip or stale.select_for_update(skip_locked=True).first() is not None:
                stale.update(last_used_at=now)
    except (DatabaseError, InterfaceError) as error:
        logger.warning("the last use of a publish key is not noted: key=%s error=%s", key.pk, error)
