from __future__ import annotations

import pytest
from django.contrib.auth.models import AnonymousUser, User

from events.access import load_policy
from events.policies import own_user


@pytest.mark.parametrize(
    "name, may_read",
    [
        ("user.5", True),
        ("shop.user.5", True),
        ("5", True),
        ("user.55", False),
        ("user.05", False),
        ("user.5.", False),
        ("user.5.6", False),
        ("user.", False),
        ("user.None", False),
    ],
)
def test_to_each_user_what_is_theirs(name: str, may_read: bool) -> None:
    """What stands after the last dot is the key, letter by letter."""
    assert own_user(User(pk=5), name) is may_read


@pytest.mark.parametrize("name", ["user.5", "user.None", "user."])
def test_nothing_is_anybodys(name: str) -> None:
    """A visitor who is not signed in has no key."""
    assert own_user(AnonymousUser(), name) is False


def test_it_is_found_where_the_admin_says() -> None:
    """By its dotted path."""
    assert load_policy("events.policies.own_user") is own_user
