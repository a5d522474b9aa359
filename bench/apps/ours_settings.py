"""This project, with its defaults, or with the log that BENCH_BACKEND says, an entry of EVENTS["BACKENDS"] as JSON."""

from __future__ import annotations

import json
import os

from bench.apps.common_settings import *  # noqa: F403  (a settings module inherits by import)
from bench.apps.common_settings import INSTALLED_APPS as _COMMON

INSTALLED_APPS = [*_COMMON, "events"]
ROOT_URLCONF = "bench.apps.ours_urls"
if "BENCH_BACKEND" in os.environ:
    EVENTS = {"BACKENDS": {"default": json.loads(os.environ["BENCH_BACKEND"])}}
