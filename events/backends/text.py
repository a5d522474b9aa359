"""Text in a database: any comes back equal, on PostgreSQL too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper


def storable(connection: BaseDatabaseWrapper, text: str) -> str:
    """The text as the engine can hold it. PostgreSQL knows no NUL: there SUB 0 stands for it, and SUB 1 for SUB."""
    if connection.vendor == "postgresql" and ("\0" in text or "\x1a" in text):
        return text.replace("\x1a", "\x1a1").replace("\0", "\x1a0")
    return text


def restored(connection: BaseDatabaseWrapper, text: str) -> str:
    """What `storable` was given."""
    if connection.vendor == "postgresql" and "\x1a" in text:
        return text.replace("\x1a0", "\0").replace("\x1a1", "\x1a")
    return text
