"""Sources of interval messages that fail, or are slow, when a test says so."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from events import source

if TYPE_CHECKING:
    from events.models import Channel

FOLDER = Path(os.environ["EVENTS_TEST_DIR"])


@source("test-sensor")
def sensor(channel: Channel) -> dict[str, int]:
    """Works while there is no file that says it is broken."""
    if (FOLDER / f"broken-{channel.name}").exists():
        raise RuntimeError("the sensor is gone")
    return {"celsius": 21}
