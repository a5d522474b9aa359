"""What is in memory, as the garbage collector sees it."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def new_instances(*kinds: type) -> Iterator[Callable[[], list[Any]]]:
    """
    A function that returns the instances that were made in the block and are in memory still.

    What other tests left may be there as well: it is kept for as long as the block, to be known from what is new.
    """
    before = {id(thing): thing for thing in _instances(kinds)}
    yield lambda: [thing for thing in _instances(kinds) if before.get(id(thing)) is not thing]


def _instances(kinds: tuple[type, ...]) -> list[Any]:
    gc.collect()
    # Not `isinstance`, which asks a lazy object what it is: it would be made for that.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]
