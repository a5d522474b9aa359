"""Settings of the tests, and of the servers that tests start: those inherit the folder through the environment."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Tests may run in several processes at once, each of which needs a folder that the others do not have.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if os.environ.get("EVENTS_TEST_WORKER", "") != _worker or "EVENTS_TEST_DIR" not in os.environ:
    os.environ["EVENTS_TEST_WORKER"] = _worker
    os.environ["EVENTS_TEST_DIR"] = tempfile.mkdtemp(prefix="events-tests-")
    # Only the process that made it removes it.
    atexit.register(shutil.rmtree, os.environ["EVENTS_TEST_DIR"], ignore_errors=True)
DATABASE = Path(os.environ["EVENTS_TEST_DIR"]) / "db.sqlite3"

SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.urls"
ASGI_APPLICATION = "tests.asgi.application"
STATIC_URL = "static/"
LOGIN_URL = "admin:login"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# The real ones are slow on purpose.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        # The options that docs/settings.md asks every site on SQLite for.
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
        # A file, not memory: other threads and other processes open it too.
        "TEST": {"NAME": DATABASE},
    }
}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "events",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
