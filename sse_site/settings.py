"""
The demo site's settings.

Everything comes from the environment and has a default that is safe, so that `make run` needs none of it:

    DEBUG=1               error pages with details; never where others can reach the site
    HOST                  where `make run` listens; also an allowed host name
    ALLOWED_HOSTS         further host names, with commas between them
    CSRF_TRUSTED_ORIGINS  e.g. https://example.org, behind a proxy that speaks HTTPS
    HTTPS=1               the site is reached by HTTPS only, through a proxy that sets X-Forwarded-Proto itself
    HSTS_SUBDOMAINS=1     with HTTPS=1: so is every subdomain, and browsers shall not ask them otherwise for a year
    HSTS_PRELOAD=1        with both: the whole domain may stand in the lists that browsers come with, which is for good
    SECRET_KEY            else one is made once and kept in DATA_DIR
    DATA_DIR              where the site keeps its files; default: var/
    DATABASE_URL          e.g. postgres://user:password@host/name; default: SQLite in DATA_DIR
    EVENTS_URL            keeps events in a Redis, e.g. redis://host:6379/0; default: in the database
    CORS_ORIGINS          origins whose pages may read streams, e.g. http://127.0.0.1:3000, with commas between them
    LOG_LEVEL             default: INFO
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import tempfile
from pathlib import Path
from typing import Any

import environ
import psutil
from csp.constants import NONE, SELF

env = environ.Env()

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(env.str("DATA_DIR", default=str(BASE_DIR / "var"))).resolve()
# For this user alone: it holds the secret key, sessions and password hashes.
DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)


def kept_secret_key(path: Path) -> str:
    """
    The secret key in the file `path`, made at the first call, readable by its owner alone.

    The file appears under its name only when it is complete, so several processes that start at once agree on one key.
    """
    if not path.exists():
        # mkstemp makes the file with mode 0600.
        descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(50))
            # Unlike a rename, a link fails where another process was faster.
            os.link(made, path)
        except FileExistsError:
            pass
        finally:
            Path(made).unlink()
    return path.read_text()


def own_names(host: str) -> list[str]:
    """The names by which a site that listens on `host` is reached: with 0.0.0.0 or ::, all of this machine's own."""
    names = ["localhost", "127.0.0.1", "[::1]"]
    try:
        listens_everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        listens_everywhere = False
    if not listens_everywhere:
        return [*names, f"[{host}]" if ":" in host else host]
    names.append(socket.gethostname())
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family is socket.AF_INET:
                names.append(address.address)
            elif address.family is socket.AF_INET6:
                names.append(f"[{address.address.partition('%')[0]}]")
    return names


DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="") or kept_secret_key(DATA_DIR / "secret_key")
ALLOWED_HOSTS = list(
    dict.fromkeys([*own_names(env.str("HOST", default="127.0.0.1")), *env.list("ALLOWED_HOSTS", default=[])])
)
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    # First: its runserver, which speaks ASGI, takes the place of Django's own.
    "daphne",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "csp",
    "events",
    "sse_site",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
if not DEBUG:
    # With DEBUG on, runserver serves static files itself. The middleware is asynchronous, and to a request for anything
    # but a static file it is one look into a dictionary: an event stream passes untouched.
    MIDDLEWARE.insert(1, "servestatic.middleware.ServeStaticMiddleware")

ROOT_URLCONF = "sse_site.urls"
ASGI_APPLICATION = "sse_site.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

database: dict[str, Any] = env.db_url("DATABASE_URL", default=f"sqlite:///{DATA_DIR / 'db.sqlite3'}")
if database["ENGINE"] == "django.db.backends.sqlite3":
    database["OPTIONS"] = {
        # With a write-ahead log, readers and the one writer do not wait for each other, and a commit waits for no disk:
        # a power cut may lose the last moments, but never breaks the file.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        # A transaction that begins by reading and then writes fails at once where another has written meanwhile,
        # whatever the timeout. One that takes the writer's place at its start waits for it.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
    }
elif database["ENGINE"] in ("django.db.backends.postgresql", "django.db.backends.mysql"):
    # Who waits for a server that is not there wants to be told: the drivers wait for minutes.
    database["OPTIONS"] = {"connect_timeout": 5, **database.get("OPTIONS", {})}
DATABASES = {"default": database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

EVENTS: dict[str, Any] = {
    "BACKENDS": {"default": {"BACKEND": "events.backends.database.DatabaseBackend"}},
    "CORS_ORIGINS": env.list("CORS_ORIGINS", default=[]),
}
if events_url := env.str("EVENTS_URL", default=""):
    EVENTS["BACKENDS"]["default"] = {"BACKEND": "events.backends.redis.RedisBackend", "OPTIONS": {"url": events_url}}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "home"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
# Straight from the apps and from static/: nothing has to be collected before the site can start.
SERVESTATIC_USE_FINDERS = True
SERVESTATIC_AUTOREFRESH = False
# The files belong to this site's pages. (The default lets any site read them.)
SERVESTATIC_ALLOW_ALL_ORIGINS = False

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    },
}
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"

# Off by default: http://127.0.0.1 has no certificate, and a browser would never send a secure cookie there.
if env.bool("HTTPS", default=False):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
    SECURE_HSTS_INCLUDE_SUBDOMAINS = env.bool("HSTS_SUBDOMAINS", default=False)
    SECURE_HSTS_PRELOAD = env.bool("HSTS_PRELOAD", default=False)
    # `check --deploy` asks for these two. They bind all hosts of a domain, of which this site knows nothing: whoever
    # runs it decides, and no is an answer.
    SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True

LOG_LEVEL = env.str("LOG_LEVEL", default="INFO").upper()
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "line"},
    },
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "events": {"level": LOG_LEVEL},
        "sse_site": {"level": LOG_LEVEL},
        # Django gives this logger a handler of its own that is silent with DEBUG off.
        "django": {"handlers": ["console"], "level": LOG_LEVEL, "propagate": False},
    },
}
