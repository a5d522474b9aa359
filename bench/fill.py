"""Fill a log: ``python -m bench.fill publish <count>`` or ``python -m bench.fill sql <count>``.

With ``publish``: one event, then so many more; prints the first one's cursor as JSON. With ``sql``: rows of the channel
`bench` as they stand after so many events were published, written by the database itself.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module

import django
from django.db import connection

from bench import payload

BATCH = 1000
NUMBERS = {
    "postgresql": "generate_series(1, {count}) AS numbers(n)",
    "sqlite": (
        "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "
        "SELECT n FROM numbers) AS numbers"
    ),
}


def publish(count: int) -> str | None:
    """Publish one event and then ``count`` more. Returns the first one's cursor."""
    events = import_module("events")
    first: str | None = events.publish("bench", payload.make(time.time(), 0)).id
    for start in range(1, count + 1, BATCH):
        numbers = range(start, min(start + BATCH, count + 1))
        events.publish_many([("bench", payload.make(time.time(), number)) for number in numbers])
    return first


def sql(count: int) -> None:
    """Write ``count`` rows, and let the database take them for what it has had for long."""
    models, registry = import_module("events.models"), import_module("events.registry")
    # Begins the log's life. What the site has told its other processes stands there already.
    head = registry.event_backends["default"].head().position
    numbers = NUMBERS[connection.vendor].format(count=count)
    table, log = models.Event._meta.db_table, models.Log._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (position, channel, type, data, is_json, created_at) "
            f"SELECT n + {head}, 'bench', 'message', %s, FALSE, %s FROM {numbers}",
            [payload.make(time.time(), 0), time.time()],
        )
        cursor.execute(f"UPDATE {log} SET head = %s", [head + count])
        if connection.vendor == "postgresql":
            cursor.execute(f"VACUUM ANALYZE {table}")
            cursor.execute("CHECKPOINT")
        else:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def main(how: str, count: int) -> None:
    """Fill in one way or the other."""
    django.setup()
    if how == "publish":
        print(json.dumps(publish(count)))
    else:
        sql(count)
        print(json.dumps("filled"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
