"""django-eventstream's rights: who may read which channel."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_Base: Any = import_module("django_eventstream.channelmanager").DefaultChannelManager


class ChannelManager(_Base):  # type: ignore[misc]
    """The channel ``members`` is for signed-in users, the others are for everybody."""

    def can_read_channel(self, user: Any, channel: str) -> bool:
        """Whether a user, None for nobody, may read."""
        return channel != "members" or (user is not None and user.is_authenticated)
