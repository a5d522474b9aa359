"""Where programs are found that no package of Python's brings: servers of other engines, a browser, a proxy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: Other names under which a program may be found, where it has any.
ALIASES = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "firefox-esr": ("firefox-esr", "firefox"),
    "mariadbd": ("mariadbd", "mysqld"),
    "redis-server": ("redis-server", "valkey-server"),
}
#: Where Debian keeps servers, which may not be on the PATH of an ordinary user.
ALSO_IN = ("/usr/sbin", "/sbin", "/usr/local/sbin")
#: Debian keeps every major version of PostgreSQL in a folder of its own, and none of them on the PATH.
POSTGRESQL = Path("/usr/lib/postgresql")


def find_program(name: str) -> str | None:
    """The path of a program, or None."""
    versions = sorted(POSTGRESQL.glob("[0-9]*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *ALSO_IN, *map(str, versions)])
    for alias in ALIASES.get(name, (name,)):
        if found := shutil.which(alias, path=path):
            return found
    return None
