"""The demo site, run as a person runs it: other processes, with an environment of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: What the site reads from its environment: a test's site must not meet what the person running the tests has set.
READ = {
    "ALLOWED_HOSTS",
    "CSRF_TRUSTED_ORIGINS",
    "DATABASE_URL",
    "DATA_DIR",
    "DEBUG",
    "DJANGO_SETTINGS_MODULE",
    "EVENTS_URL",
    "HOST",
    "HSTS_PRELOAD",
    "HSTS_SUBDOMAINS",
    "HTTPS",
    "LOG_LEVEL",
    "SECRET_KEY",
}


class Site:
    """The demo site with its files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def environment(self, **settings: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in READ}
        return {**kept, "DATA_DIR": str(self.folder), **settings}

    def run(self, *arguments: str, **settings: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=ROOT,
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def manage(self, *arguments: str, **settings: str) -> str:
        return self.run("manage.py", *arguments, **settings)

    def python(self, code: str, **settings: str) -> Any:
        """What the code printed as JSON, run with Django set up."""
        prelude = "import json, django; django.setup()\n"
        return json.loads(self.run("-c", prelude + code, DJANGO_SETTINGS_MODULE="sse_site.settings", **settings))

    def setting(self, name: str, **settings: str) -> Any:
        """One setting's value. Nothing is set up, so no driver of a database is needed."""
        code = f"import json; from sse_site import settings; print(json.dumps(settings.{name}, default=str))"
        return json.loads(self.run("-c", code, **settings))

    def rows(self, query: str) -> list[tuple[object, ...]]:
        connection = sqlite3.connect(self.folder / "db.sqlite3")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def change(self, query: str) -> None:
        connection = sqlite3.connect(self.folder / "db.sqlite3")
        try:
            with connection:
                connection.execute(query)
        finally:
            connection.close()


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "var")


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """The folder of a site with a new database, which is not to be changed."""
    site = Site(tmp_path_factory.mktemp("migrated") / "var")
    site.manage("migrate", "--verbosity", "0")
    return site.folder


@pytest.fixture(scope="module")
def set_up(migrated, tmp_path_factory):
    """As `migrated`, after `setup_demo`."""
    folder = tmp_path_factory.mktemp("set-up") / "var"
    shutil.copytree(migrated, folder)
    Site(folder).manage("setup_demo")
    return folder


@pytest.fixture
def ready_site(site, migrated):
    """A site with a database that nobody has changed."""
    shutil.copytree(migrated, site.folder)
    return site


@pytest.fixture
def demo_site(site, set_up):
    """A site that `setup_demo` has set up."""
    shutil.copytree(set_up, site.folder)
    return site


def test_debug_is_off_unless_asked_for(site):
    assert site.setting("DEBUG") is False
    assert site.setting("DEBUG", DEBUG="1") is True


def test_only_local_names_are_served_unless_more_are_named(site):
    assert set(site.setting("ALLOWED_HOSTS")) == {"localhost", "127.0.0.1", "[::1]"}
    assert "events.example" in site.setting("ALLOWED_HOSTS", HOST="events.example")
    assert "a.example" in site.setting("ALLOWED_HOSTS", ALLOWED_HOSTS="a.example,b.example")


def test_listening_everywhere_serves_this_machines_own_names_and_no_others(site):
    hosts = site.setting("ALLOWED_HOSTS", HOST="0.0.0.0")
    assert "localhost" in hosts
    assert "0.0.0.0" not in hosts
    assert "*" not in hosts


def test_the_secret_key_is_made_once_and_only_its_owner_reads_it(site):
    first = site.setting("SECRET_KEY")
    assert len(first) >= 50
    assert site.setting("SECRET_KEY") == first
    assert stat.S_IMODE((site.folder / "secret_key").stat().st_mode) == 0o600
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    assert [path.name for path in site.folder.iterdir()] == ["secret_key"]


def test_two_sites_have_different_keys(tmp_path):
    assert Site(tmp_path / "one").setting("SECRET_KEY") != Site(tmp_path / "two").setting("SECRET_KEY")


def test_a_secret_key_in_the_environment_is_used_and_not_kept(site):
    assert site.setting("SECRET_KEY", SECRET_KEY="x" * 60) == "x" * 60
    assert not (site.folder / "secret_key").exists()


def test_sqlite_gets_a_write_ahead_log_and_immediate_transactions(ready_site):
    assert ready_site.rows("PRAGMA journal_mode") == [("wal",)]
    assert ready_site.setting("DATABASES")["default"]["OPTIONS"]["transaction_mode"] == "IMMEDIATE"


def test_another_database_is_used_as_the_address_says(site):
    database = site.setting("DATABASES", DATABASE_URL="postgres://someone@127.0.0.1:5432/somewhere")["default"]
    assert database["ENGINE"] == "django.db.backends.postgresql"
    assert "init_command" not in database.get("OPTIONS", {})


#: The environment of a site that others can reach.
PRODUCTION = {"ALLOWED_HOSTS": "events.example", "HTTPS": "1", "SECRET_KEY": "4cNk7xZs-" * 8}


def test_the_deployment_check_has_nothing_to_say_in_production(ready_site):
    """Not even a hint, also of the database; and none of a site that has made its key by itself."""
    check, database = ("check", "--deploy", "--fail-level", "DEBUG"), ("--database", "default")
    assert "no issues" in ready_site.manage(*check, **PRODUCTION)
    assert "no issues" in ready_site.manage(*check, *database, **PRODUCTION)
    assert "no issues" in ready_site.manage(*check, *database, HTTPS="1")


def test_the_deployment_check_speaks_up_where_something_is_missing(site):
    """What it has nothing to say about is looked at: it finds each of these."""
    for lacks, name in (({"HTTPS": "0"}, "security.W008"), ({"DEBUG": "1"}, "security.W018")):
        with pytest.raises(AssertionError, match=name):
            site.manage("check", "--deploy", "--fail-level", "WARNING", **{**PRODUCTION, **lacks})


def test_other_hosts_of_the_domain_are_bound_to_https_only_where_asked_for(site):
    """A browser that was told so once does not forget it for a year."""
    names = ("SECURE_HSTS_INCLUDE_SUBDOMAINS", "SECURE_HSTS_PRELOAD")
    assert [site.setting(name, **PRODUCTION) for name in names] == [False, False]
    asked = {**PRODUCTION, "HSTS_SUBDOMAINS": "1", "HSTS_PRELOAD": "1"}
    assert [site.setting(name, **asked) for name in names] == [True, True]


def test_models_and_migrations_agree(site):
    site.manage("makemigrations", "--check", "--dry-run")


def test_the_demo_is_set_up_once_and_the_password_shown_once(ready_site):
    first = ready_site.manage("setup_demo")
    assert "clock, machine, news" in first
    shown = re.search(r"with the password  (\S+)", first)
    assert shown, first
    password = shown[1]
    assert len(password) >= 12
    code = f"""
from django.contrib.auth import authenticate
print(json.dumps(authenticate(username="admin", password={password!r}).is_superuser))
"""
    assert ready_site.python(code) is True

    before = ready_site.rows("SELECT * FROM events_channel ORDER BY name")
    assert ready_site.manage("setup_demo") == ""
    assert ready_site.rows("SELECT * FROM events_channel ORDER BY name") == before
    assert ready_site.rows("SELECT count(*) FROM auth_user") == [(1,)]


def test_the_demo_channels_are_what_the_readme_says(demo_site):
    columns = "name, title, source, interval, access, is_active, only_when_watched"
    assert demo_site.rows(f"SELECT {columns} FROM events_channel ORDER BY name") == [
        ("clock", "Clock", "clock", 1.0, "public", 1, 1),
        ("machine", "Machine", "machine", 2.0, "public", 1, 1),
        ("news", "News", "", 1.0, "public", 1, 1),
    ]


def test_deleted_and_edited_demo_channels_stay_so(demo_site):
    demo_site.change("DELETE FROM events_channel WHERE name = 'news'")
    demo_site.change("UPDATE events_channel SET interval = 0.2 WHERE name = 'clock'")
    assert demo_site.manage("setup_demo") == ""
    assert demo_site.rows("SELECT name, interval FROM events_channel ORDER BY name") == [
        ("clock", 0.2),
        ("machine", 2.0),
    ]


def test_a_channel_that_somebody_made_before_the_demo_is_left_alone(ready_site):
    ready_site.python("from events.models import Channel; Channel.objects.create(name='clock', title='Mine'); print(1)")
    assert "Made the demo channels: machine, news." in ready_site.manage("setup_demo")
    assert ready_site.rows("SELECT title FROM events_channel WHERE name = 'clock'") == [("Mine",)]


def test_no_admin_is_made_where_another_superuser_can_sign_in(ready_site):
    ready_site.python(
        "from django.contrib.auth.models import User; User.objects.create_superuser('maria', password='x'); print(1)"
    )
    assert "password" not in ready_site.manage("setup_demo")
    assert ready_site.rows("SELECT username FROM auth_user") == [("maria",)]


# Django's test client calls itself by this name.
NAME = "testserver"
GET = """
import asyncio
from django.test import AsyncClient
def get(path):
    async def go():
        response = await AsyncClient().get(path)
        if response.streaming:
            body = b"".join([part async for part in response.streaming_content])
        else:
            body = response.content
        return response.status_code, dict(response.headers), body.decode()
    return asyncio.run(go())
"""


def test_the_home_page_leads_to_the_live_page_and_the_admin(demo_site):
    status, headers, body = demo_site.python(GET + "print(json.dumps(get('/')))", ALLOWED_HOSTS=NAME)
    assert status == 200
    assert 'href="/events/"' in body
    assert 'href="/admin/"' in body
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert "style-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"


def test_no_page_needs_inline_script_or_style(demo_site):
    pages = ("/", "/events/", "/events/channels/clock/", "/admin/login/")
    answers = demo_site.python(GET + f"print(json.dumps([get(path) for path in {pages!r}]))", ALLOWED_HOSTS=NAME)
    for path, (status, _, body) in zip(pages, answers, strict=True):
        assert status == 200, path
        for script in re.findall(r"<script\b[^>]*>", body):
            assert "src=" in script or 'type="application/json"' in script, (path, script)
        assert not re.search(r"<style\b", body), path
        assert not re.search(r"<[a-z][^>]*\s(style|on[a-z]+)=", body), path


def test_static_files_are_served_with_debug_off(site):
    status, headers, body = site.python(
        GET + "print(json.dumps(get('/static/admin/css/base.css')))", ALLOWED_HOSTS=NAME
    )
    assert status == 200
    assert headers["Content-Type"].startswith("text/css")
    assert "body" in body


#: What the demo site has none of: channels that are not for everybody. No page has their names and titles by chance.
CLOSED = """
from events.models import Channel
policy = "events.access.load_policy"  # raises for every visitor
for access in ("authenticated", "staff", "groups", "policy"):
    Channel.objects.create(name=f"zq-{access}", title=f"Zq {access}", access=access, policy=policy, replay="all")
Channel.objects.create(name="zq-off", title="Zq off", access="public", is_active=False)
Channel.objects.create(name="zq-prefix.*", title="Zq prefix", access="staff")
print(json.dumps("made"))
"""
#: What the site answers to somebody who is not signed in: each channel's pages, and all that is shown.
ANONYMOUS = (
    GET
    + """
from django.urls import reverse
from events.models import Channel
from events.testing import StreamClient

async def stream(name):
    async with StreamClient(f"{reverse('events:stream')}?channel={name}&from=earliest") as client:
        return client.status, {}, "" if client.status == 200 else client.body.decode()

answers, shown = {}, [get(path)[2] for path in ("/", "/events/", "/admin/login/", "/nowhere/")]
rows = {row.name.replace("*", "1"): row for row in Channel.objects.all()}
for name in [*rows, "zq-nothing"]:
    pages = [reverse(f"events:{view}", args=[name]) for view in ("channel", "history")]
    found = [asyncio.run(stream(name)), *(get(page) for page in pages)]
    answers[name] = [status for status, _, _ in found]
    shown += [text for _, _, text in found]
public = [name for name, row in rows.items() if row.access == "public" and row.is_active]
closed = [text for name, row in rows.items() if name not in public for text in (row.name, row.title) if text]
print(json.dumps({"public": public, "answers": answers, "leaked": [t for t in closed if any(t in s for s in shown)]}))
"""
)


def test_an_anonymous_visitor_is_shown_the_public_channels_and_nothing_else(demo_site):
    """On every page and endpoint; what is closed, switched off or unknown answers alike, and nothing names it."""
    demo_site.python(CLOSED)
    found = demo_site.python(ANONYMOUS, ALLOWED_HOSTS=NAME)
    assert found["public"] == ["clock", "machine", "news"]
    assert found["leaked"] == []
    assert len(found["answers"]) == 10
    for name, statuses in found["answers"].items():
        # Stream, page and history. There is no page for who may not read the channel; the others are refused.
        assert statuses == ([200, 200, 200] if name in found["public"] else [403, 404, 403]), name


FIGURES = """
from sse_site import sources
before = sources.Reading(at=10.0, busy=100.0, total=1000.0, received=5000, sent=9000)
now = sources.Reading(at=12.0, busy=125.0, total=1100.0, received=25000, sent=1000)
print(json.dumps([sources.figures(before, now), sources.figures(before, before)]))
"""


def test_the_machine_source_tells_what_happened_between_two_readings(site):
    # `sent` went backwards: an interface went away, and nothing is known to have been sent.
    assert site.python(FIGURES) == [
        {"load": 25.0, "received": 10.0, "sent": 0.0},
        {"load": 0.0, "received": 0.0, "sent": 0.0},
    ]


def test_the_machine_source_speaks_of_this_machine(site):
    code = """
from types import SimpleNamespace
from sse_site import sources
print(json.dumps([sources.machine(SimpleNamespace(interval=2.0)) for _ in range(2)]))
"""
    for figures in site.python(code):
        assert list(figures) == ["load", "memory", "received", "sent"]
        assert all(isinstance(value, float) and value >= 0 for value in figures.values())
        assert figures["load"] <= 100
        assert 0 < figures["memory"] <= 100
