"""This project, with its defaults. BENCH_TRIM_INTERVAL, in seconds, makes it trim more often than every 30."""

from __future__ import annotations

import os

from bench.apps.common_settings import *  # noqa: F403  (a settings module inherits by import)
from bench.apps.common_settings import INSTALLED_APPS as _COMMON

INSTALLED_APPS = [*_COMMON, "events"]
ROOT_URLCONF = "bench.apps.ours_urls"
if "BENCH_TRIM_INTERVAL" in os.environ:
    EVENTS = {
        "BACKENDS": {
            "default": {
                "BACKEND": "events.backends.database.DatabaseBackend",
                "OPTIONS": {"trim_interval": float(os.environ["BENCH_TRIM_INTERVAL"])},
            }
        }
    }
