"""django-eventstream. BENCH_STORAGE=model gives it its own durable storage."""

from __future__ import annotations

import os

from bench.apps.common_settings import *  # noqa: F403  (a settings module inherits by import)
from bench.apps.common_settings import INSTALLED_APPS as _COMMON

INSTALLED_APPS = [*_COMMON, "django_eventstream"]
ROOT_URLCONF = "bench.apps.eventstream_urls"
if os.environ.get("BENCH_STORAGE") == "model":
    EVENTSTREAM_STORAGE_CLASS = "django_eventstream.storage.DjangoModelStorage"
EVENTSTREAM_CHANNELMANAGER_CLASS = "bench.apps.eventstream_access.ChannelManager"
