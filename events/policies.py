"""Policies that come with the app, to be named in the admin: functions `(user, channel_name) -> bool`."""

from __future__ import annotations

from typing import Any


def own_user(user: Any, channel_name: str) -> bool:
    """
    To each user what is theirs: what stands after the last dot of the name is the user's primary key.

    For a channel such as `user.*`: `user.5` is read by the user whose key is 5, and by nobody else.
    """
    return bool(user.is_authenticated) and channel_name.rpartition(".")[2] == str(user.pk)
