"""The wheel: what is in it, and that a stranger's site works with it and nothing but what the README says."""

from __future__ import annotations

import email
import http.client
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    # What points this run at the checkout or measures it has no business in a stranger's site.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("COV", "COVERAGE"))
        and name not in ("DJANGO_SETTINGS_MODULE", "PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        command, check=False, cwd=cwd, env={**environment, **more}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    # No isolation: the build backend is in this environment, and the test needs no network.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="session")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_carries_the_app_and_nothing_else(names):
    assert {name.split("/")[0] for name in names} == {"events", "django_live_events-0.1.0.dist-info"}
    assert not [name for name in names if "__pycache__" in name or "test_" in name]


def test_the_wheel_carries_all_that_git_or_the_checkout_has_of_the_app(names):
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "events").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("events/")} == here


@pytest.mark.parametrize(
    "pattern",
    [
        r"events/templates/events/.+\.html",
        r"events/static/events/.+\.css",
        r"events/static/events/.+\.js",
        r"events/static/events/.+\.d\.ts",
        r"events/static/events/package\.json",
        r"events/migrations/0001_\w+\.py",
        r"events/py\.typed",
    ],
)
def test_the_wheel_carries(names, pattern):
    assert [name for name in names if re.fullmatch(pattern, name)]


def test_django_is_the_only_hard_dependency(metadata):
    hard = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert [line.lower() for line in hard] == ["django>=5.2"]


def test_the_extras(metadata):
    assert set(metadata.get_all("Provides-Extra")) == {"daphne", "redis", "postgres"}


def test_the_metadata_says_what_it_is(metadata):
    assert metadata["Name"] == "django-live-events"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert "publish" in metadata.get_payload()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def connected(port: int, server: subprocess.Popen[bytes], log: Path) -> http.client.HTTPConnection:
    """A connection to a server that is starting."""
    end = time.monotonic() + 30
    while True:
        assert server.poll() is None, log.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.connect()
        except OSError:
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        else:
            return connection


def events(connection: http.client.HTTPConnection, path: str) -> http.client.HTTPResponse:
    connection.request("GET", path)
    return connection.getresponse()


@pytest.mark.slow
def test_a_new_project_streams_with_the_wheel_and_what_the_readme_says(wheel, tmp_path):
    """A fresh environment, a fresh project, the README's five lines; then an event travels."""
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[daphne]", cwd=tmp_path)
    run(python, "-m", "django", "startproject", "shop", cwd=tmp_path)
    project = tmp_path / "shop"

    settings = project / "shop" / "settings.py"
    text = settings.read_text()
    text = text.replace("INSTALLED_APPS = [\n", 'INSTALLED_APPS = [\n    "daphne",\n    "events",\n')
    settings.write_text(text + '\nASGI_APPLICATION = "shop.asgi.application"\n')
    urls = project / "shop" / "urls.py"
    text = urls.read_text().replace("import path", "import include, path")
    urls.write_text(
        text.replace("urlpatterns = [\n", 'urlpatterns = [\n    path("events/", include("events.urls")),\n')
    )

    run(python, "manage.py", "migrate", cwd=project)
    run(python, "manage.py", "check", "--fail-level", "ERROR", cwd=project)
    code = "from events.models import Channel; Channel.objects.create(name='orders', access='public', replay='latest')"
    run(python, "manage.py", "shell", "-c", code, cwd=project)

    port = free_port()
    log = tmp_path / "server.log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "DJANGO", "PYTHON"))}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [python, "-m", "daphne", "--port", str(port), "shop.asgi:application"],
            cwd=project,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with (
            closing(connected(port, server, log)) as connection,
            closing(events(connection, "/events/stream/?channel=orders")) as response,
        ):
            assert response.status == 200, log.read_text()
            assert response.getheader("Content-Type", "").startswith("text/event-stream")
            # The first bytes: the stream is open, so what is published now must come.
            assert response.readline().strip()
            run(python, "manage.py", "publish_event", "orders", "order 17 is paid", cwd=project)
            lines: list[bytes] = []
            while b"data: order 17 is paid\n" not in lines:
                lines.append(response.readline())
                assert lines[-1], (lines, log.read_text())
            assert any(re.fullmatch(rb"id: ?\w+-\d+\n", line) for line in lines), lines
    finally:
        server.terminate()
        server.wait(timeout=30)
