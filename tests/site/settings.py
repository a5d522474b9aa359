"""Settings of the servers that tests start: the tests' own, with what a demanding site would add."""

from __future__ import annotations

import json
import os

from tests.settings import *  # noqa: F403 - settings that begin where others end
from tests.settings import INSTALLED_APPS as _APPS
from tests.settings import MIDDLEWARE as _MIDDLEWARE

# Apps that come first, such as daphne's, which makes the development server one of ASGI.
INSTALLED_APPS = [*filter(None, [os.environ.get("EVENTS_TEST_APPS")]), *_APPS, "tests.site"]
MIDDLEWARE = [
    # The first, as Django's documentation asks: whatever streams passes through it.
    "django.middleware.gzip.GZipMiddleware",
    "tests.site.views.name_process",
    *_MIDDLEWARE,
]
ROOT_URLCONF = "tests.site.urls"
ASGI_APPLICATION = "tests.site.asgi.application"
EVENTS = json.loads(os.environ.get("EVENTS_TEST_SETTINGS", "{}"))
# Where the site stands on another engine than SQLite.
if "EVENTS_TEST_BACKEND" in os.environ:
    EVENTS = {"BACKENDS": {"default": json.loads(os.environ["EVENTS_TEST_BACKEND"])}, **EVENTS}
if "EVENTS_TEST_DATABASE" in os.environ:
    DATABASES = {"default": json.loads(os.environ["EVENTS_TEST_DATABASE"])}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "events": {"level": "INFO"},
        "events.limits": {"level": "DEBUG"},
        "tests": {"level": "INFO"},
        # Otherwise silent with DEBUG off.
        "django": {"handlers": ["console"], "level": "WARNING", "propagate": False},
        # Every refusal that a test provokes would be a line.
        "django.request": {"level": "ERROR"},
        "django.security": {"level": "CRITICAL"},
    },
}
