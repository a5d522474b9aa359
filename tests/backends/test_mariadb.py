"""The log in MariaDB."""

from __future__ import annotations

from events.backends.base import Params
from events.backends.database import DatabaseBackend

from .contract import backend_contract


def make_mariadb(mariadb: str):
    backend = DatabaseBackend(Params("default", {"database": mariadb, "trim_interval": None}))
    yield backend
    backend.close()


TestContract = backend_contract(make_mariadb)
