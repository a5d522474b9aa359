"""What tests of all modules share."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model

from events.channels import _Rows, channel_table
from events.models import Channel
from events.registry import event_backends
from events.sources import _registered
from events.ticks import ticker


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """Stop the ticker before any fixture goes: it would write while the test's database is emptied."""
    ticker.stop()


@pytest.fixture(autouse=True)
def _fresh_process():
    """Let each test begin as a new process does: no log, no source, no copy of another test's channels."""
    sources = dict(_registered)
    yield
    _registered.clear()
    _registered.update(sources)
    event_backends.reset()
    channel_table._rows, channel_table._revision = _Rows([]), None
    channel_table._looked_at = channel_table._read_at = float("-inf")


@pytest.fixture
def make_channel():
    """Makes a channel that everybody may read, unless told otherwise."""

    def make(name: str = "news", **fields) -> Channel:
        return Channel.objects.create(**{"name": name, "access": "public", **fields})

    return make


@pytest.fixture
def make_user():
    """Makes a user with the permissions named, as `events.change_channel`'s last part."""

    def make(username: str = "someone", *permissions: str, **fields):
        from django.contrib.auth.models import Permission

        user = get_user_model().objects.create_user(username, password="secret", **fields)
        user.user_permissions.set(Permission.objects.filter(content_type__app_label="events", codename__in=permissions))
        return user

    return make
