"""
The documentation is true: its code runs, its examples are the bytes, its links lead somewhere.

README and quickstart are followed from top to bottom, each in a project that `startproject` has just made and in
processes of its own. A block whose first line names a file is written there; a Python block that names none is run as a
script of the project; of shell blocks the commands are run; templates are rendered; scripts go through `node --check`.
"""

from __future__ import annotations

import ast
import http.client
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from django.test import AsyncRequestFactory, Client

from events import EventStreamResponse, __version__, wire
from events.conf import KEYS
from events.conf import settings as defaults
from events.testing import StreamClient

from .conftest import require_engine
from .engines import Engine, MariaDB, PostgreSQL, Redis
from .plugins import require_program, require_that
from .servers import GUARD, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench" / "README.md"])
#: Commands that are shown and not run, by how they begin, with the reason.
NOT_RUN = {
    "pip install ": "tests/test_packaging.py installs the wheel into a fresh environment; here it is the checkout",
    "python -m venv ": "the environment that runs the tests is used",
    ". .venv/": "as above",
    "make ": "that the target exists is checked; .ci/run and people run it",
    "daphne ": "needs a server that stays; tests/servers.py starts all four with these options",
    "uvicorn ": "as above",
    "hypercorn ": "as above",
    "granian ": "as above",
    "gunicorn ": "as above",
    "npm ": "tests/test_packaging.py packs what is published, and installs it without a network",
    "docker ": "the tests have no containers; that the profile exists is checked",
    "curl ": "tests/test_openapi.py publishes with these commands",
    "sudo ": "the tests start private servers, and make the account themselves",
    "redis-cli ": "as above",
    "DATABASE_URL=": "the settings that it leads to are looked at below",
    "EVENTS_URL=": "as above",
    ".venv/bin/python ": "the environment that runs the tests is used",
}
#: Languages of blocks that cannot be run here, with the reason.
NOT_CHECKED = {
    "jsx": "tests/test_recipes.py gives it to TypeScript",
    "nginx": "tests/test_servers.py runs an nginx of its own",
    "sql": "whoever prepares the server runs it, as its administrator",
    "ts": "as for jsx",
}

FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A block's first line, where it is the name of a file: in a comment of Python, JavaScript or a template.
NAMED = re.compile(r"(?:#|//|\{#) (\w[\w/.-]*\.\w+)(, at the end)?(?: #\})?\n")
#: What runs a Python block as a script of the project.
RUNNER = "import sys, django; django.setup(); exec(compile(sys.stdin.read(), sys.argv[1], 'exec'), {'__name__': 'doc'})"
RENDERER = """
import sys, django; django.setup()
from django.template.backends.django import DjangoTemplates
from django.utils import timezone
from events.models import Channel
engine = DjangoTemplates({"NAME": "doc", "DIRS": [], "APP_DIRS": True, "OPTIONS": {"string_if_invalid": "INVALID"}})
text = engine.from_string(sys.stdin.read()).render({"now": timezone.now(), "n": 1, "channel": Channel(title="News")})
assert text.strip() and "INVALID" not in text, text
"""


class Block(NamedTuple):
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where an editor finds it."""
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, of these languages or of all."""
    text = (ROOT / page).read_text() if text is None else text
    found = [Block(page, text.count("\n", 0, match.start()) + 1, *match.groups()) for match in FENCE.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


class Project:
    """A project that follows a page."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        # What points this run at the checkout's settings, or measures it, has no business in a stranger's site.
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("COV", "DJANGO", "EVENTS_", "PYTHON"))
        } | {
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "default",
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "DJANGO_SUPERUSER_USERNAME": "admin",
            "DJANGO_SUPERUSER_EMAIL": "admin@example.org",
            "DJANGO_SUPERUSER_PASSWORD": "only for tests",
        }

    def run(self, *arguments: str, stdin: str = "", place: str = "") -> str:
        """Run Python with these arguments; what it printed."""
        environment = dict(self.environment)
        if "startproject" in arguments:
            # Django would look for settings that are about to be made.
            del environment["DJANGO_SETTINGS_MODULE"]
        done = subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=self.folder,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{place} {' '.join(arguments[:3])}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """What a page takes for granted that begins inside a project: the project, migrated."""
        self.run("-m", "django", "startproject", "shop")
        self.folder /= "shop"
        # The last line of the quickstart's first block.
        self.run("manage.py", "startapp", "orders")

    def follow(self, page: str, text: str | None = None) -> None:
        """Do what the page says, from top to bottom."""
        for block in blocks(page, text=text):
            if block.language in ("sh", "python", "html+django"):
                getattr(self, {"sh": "shell", "html+django": "template"}.get(block.language, "python"))(block)
            elif block.language == "js":
                self.script(block)
            else:
                assert block.language in NOT_CHECKED, f"{block.place}: nothing checks a block of {block.language!r}"

    def shell(self, block: Block) -> None:
        """Run the commands of a block."""
        for line in re.sub(r"\\\n *", "", block.text).splitlines():
            # Comments of the shell begin after two spaces.
            command = line.partition("  #")[0].strip()
            if command.startswith("make "):
                assert f"\n{command[5:]}:" in (ROOT / "Makefile").read_text(), f"{block.place}: {command}"
            if command.startswith(tuple(NOT_RUN)):
                continue
            words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
            if words[:3] == ["python", "manage.py", "runserver"]:
                with self.server() as get:
                    assert get("/events/").status == 200, block.place
            elif words[:3] == ["python", "manage.py", "createsuperuser"]:
                self.run(*words[1:], "--noinput", place=block.place)
            elif words[:2] == ["python", "manage.py"]:
                self.run(*words[1:], place=block.place)
            elif words[0] == "django-admin":
                self.run("-m", "django", *words[1:], place=block.place)
            elif words[0] == "cd":
                self.folder /= words[1]
                assert self.folder.is_dir(), block.place
            else:
                pytest.fail(f"{block.place}: what is to be done with {command!r}?")

    def python(self, block: Block) -> None:
        """Write a block to the file it names; check it, where it is settings; else run it."""
        if self.written(block):
            return
        if block.text.startswith("EVENTS = "):
            self.check_settings(block.text, block.place)
        else:
            self.run("-c", RUNNER, block.place, stdin=block.text, place=block.place)

    def template(self, block: Block) -> None:
        """Write a block to the file it names, else render it."""
        if not self.written(block):
            self.run("-c", RENDERER, stdin=block.text, place=block.place)

    def script(self, block: Block) -> None:
        """Check a script, and write it to the file it names."""
        self.written(block)
        checked = self.folder / "checked.mjs"
        checked.write_text(block.text)
        node = shutil.which("node")
        if node is not None:
            done = subprocess.run([node, "--check", checked], check=False, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{block.place}\n{done.stderr}"

    def written(self, block: Block) -> bool:
        """Whether the block names a file, which then has it."""
        named = NAMED.match(block.text)
        if named is None:
            return False
        path = self.folder / named[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        before = f"{path.read_text()}\n" if named[2] else ""
        path.write_text(before + block.text)
        return True

    def check_settings(self, text: str, place: str) -> None:
        """The system checks with these settings: not even a warning."""
        path = self.folder / "shop" / "settings.py"
        before = path.read_text()
        path.write_text(f"{before}\n{text}")
        try:
            self.run("manage.py", "check", "--fail-level", "WARNING", "--database", "default", place=place)
        finally:
            path.write_text(before)

    @contextmanager
    def server(self) -> Iterator[Callable[..., http.client.HTTPResponse]]:
        """`runserver` on a free port, and a function that sends it a GET."""
        port = free_port()
        log = self.folder / "server.log"
        stack = ExitStack()
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        def get(path: str, **headers: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GUARD)
            stack.callback(connection.close)
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            stack.callback(response.close)
            return response

        try:
            end = time.monotonic() + GUARD
            while True:
                assert server.poll() is None, log.read_text()
                try:
                    get("/is-there-anybody/").read()
                    break
                except OSError:
                    assert time.monotonic() < end, log.read_text()
                    time.sleep(0.05)
            yield get
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            stack.close()
            server.terminate()
            server.wait(GUARD)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The site that the quickstart builds. Shared: who changes it takes a copy."""
    project = Project(tmp_path_factory.mktemp("quickstart"))
    project.follow("docs/quickstart.md")
    return project


@pytest.fixture
def copied(quickstart: Project, tmp_path: Path) -> Project:
    """A copy of the quickstart's site, to be changed."""
    project = Project(tmp_path / "copy")
    project.folder.rmdir()
    shutil.copytree(quickstart.folder, project.folder)
    return project


@pytest.mark.slow
def test_the_readme_can_be_followed(tmp_path):
    """Every block of the README works in a new project, in the order in which it is read."""
    project = Project(tmp_path)
    project.start()
    project.follow("README.md")
    assert "Doors open at seven" in project.run("-c", RUNNER, "doc", stdin=NEWEST)


NEWEST = "from events.models import Event; print(Event.objects.order_by('position').last().data)"


@pytest.mark.slow
def test_the_quickstart_ends_with_a_site_that_is_live(quickstart):
    """The pages answer, an order that is shipped arrives, and the view of one's own lets in who may."""
    with quickstart.server() as get:
        for path, part in (("/events/", "News"), ("/news/", "<live-channel"), ("/orders/", "Tea: shipped")):
            response = get(path)
            assert (response.status, part in response.read().decode()) == (200, True), path
        page = get("/orders/").read().decode()
        url, cursor = (re.search(rf'data-{name}="([^"]+)"', page) for name in ("stream", "cursor"))
        assert url is not None
        assert cursor is not None
        # What is published between rendering and subscribing arrives.
        quickstart.run("-c", RUNNER, "doc", stdin=SHIP)
        stream = get(f"{url[1]}?channel=orders&last_event_id={cursor[1]}")
        assert stream.status == 200
        lines = [stream.readline().decode() for _ in range(5)]
        assert lines[3] == "event: order\n", lines
        assert '"item":"Coffee","state":"shipped"' in lines[4]

        assert get("/orders/1/stream/").status == 403
        cookie = quickstart.run("-c", RUNNER, "doc", stdin=SIGN_IN).strip()
        assert get("/orders/1/stream/", Cookie=cookie).getheader("Content-Type") == wire.CONTENT_TYPE
        assert get("/orders/999/stream/", Cookie=cookie).status == 403
        assert get("/events/stream/?channel=open-orders", Cookie=cookie).status == 200


SHIP = "from orders.models import Order; Order.objects.create(item='Coffee').ship()"
SIGN_IN = """
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.get(username="admin"))
print("sessionid=" + client.cookies["sessionid"].value)
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/access.md", "docs/channels.md", "docs/deploying.md", "docs/publishing.md"])
def test_the_other_pages_can_be_followed_from_there(page, copied):
    """Their blocks work in the site of the quickstart."""
    copied.follow(page)
    copied.run("manage.py", "check", "--fail-level", "WARNING", "--database", "default")


@pytest.mark.slow
def test_the_examples_of_tests_pass(copied):
    """What docs/testing.md shows are tests that pass in the site of the quickstart."""
    copied.follow("docs/testing.md")
    copied.run("manage.py", "test")


@pytest.mark.slow
def test_a_source_and_a_policy_as_shown_can_be_used(copied):
    """A source of docs/channels.md is found where it says, once its package is an app; each reads what is theirs."""
    copied.follow("docs/channels.md")
    settings = copied.folder / "shop" / "settings.py"
    settings.write_text(settings.read_text() + '\nINSTALLED_APPS += ["shop"]\n')
    copied.run("-c", RUNNER, "doc", stdin=USE)


USE = """
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from events import make_ticket
from events.admin import ChannelForm
from events.models import Channel
from shop.sources import temperature

row = Channel.objects.get(name="user.*")
values = {name: getattr(row, name) for name in ("name", "interval", "event_type", "replay", "access", "policy")}
form = ChannelForm({**values, "is_active": True, "source": "temperature", "only_when_watched": True}, instance=row)
assert form.is_valid(), form.errors
assert temperature(form.save()) == {"celsius": 21.5}
user = User.objects.get(username="admin")
assert make_ticket(user, [f"user.{user.pk}"])
try:
    make_ticket(user, ["user.0"])
except PermissionDenied:
    pass
else:
    raise AssertionError("a policy that lets everybody in")
"""


def test_a_broken_block_is_noticed(tmp_path):
    """A script that raises, a command that is refused, a template that is none: each names its line."""
    project = Project(tmp_path)
    project.start()
    for text, complaint in (
        ("```python\nfrom events import pubish\n```\n", "cannot import name 'pubish'"),
        ("```sh\npython manage.py pubish_event\n```\n", "Unknown command: 'pubish_event'"),
        ("```html+django\n{% load event %}\n```\n", "'event' is not a registered tag library"),
        ('```python\nEVENTS = {"KEEPALIV": 5}\n```\n', "Did you mean 'KEEPALIVE'?"),
        ("```ruby\nputs 1\n```\n", "nothing checks a block of 'ruby'"),
    ):
        shop = project.folder / "shop" / "settings.py"
        if "events" not in shop.read_text():
            shop.write_text(shop.read_text() + '\nINSTALLED_APPS += ["events"]\n')
        with pytest.raises(AssertionError) as caught:
            project.follow("page.md", text=f"\n{text}")
        assert complaint in str(caught.value)
        assert "page.md:2" in str(caught.value)


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(str(page.relative_to(ROOT)), "js")])
def test_scripts_are_javascript(block, tmp_path):
    """`node --check` has nothing to say."""
    node = require_program("node")
    file = tmp_path / "block.mjs"
    file.write_text(block.text)
    done = subprocess.run([node, "--check", file], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{block.place}\n{done.stderr}"


# Engines

#: The sections of docs/engines.md that need a server: which, its driver, and the port that the page takes for granted.
SERVERS: dict[str, tuple[type[Engine], str, str]] = {
    "PostgreSQL": (PostgreSQL, "psycopg", "5432"),
    "MariaDB and MySQL": (MariaDB, "MySQLdb", "3306"),
    "Redis and Valkey": (Redis, "redis", "6379"),
}


def engine_text(heading: str, server: Engine) -> str:
    """A section of docs/engines.md, for a server on a port of its own."""
    port = SERVERS[heading][2]
    text = chapter("docs/engines.md", heading)
    return re.sub(rf'(127\.0\.0\.1:|"PORT": ){port}\b', rf"\g<1>{server.port}", text)


def make_account(server: Engine) -> None:
    """What the page lets an administrator do."""
    if isinstance(server, PostgreSQL):
        import psycopg

        with psycopg.connect(server.url, autocommit=True) as administrator:
            administrator.execute("CREATE ROLE shop LOGIN PASSWORD 'shop'")
            administrator.execute("CREATE DATABASE shop OWNER shop")
    elif isinstance(server, MariaDB):
        import MySQLdb

        (block,) = blocks("docs/engines.md", "sql")
        connection = MySQLdb.connect(host="127.0.0.1", port=server.port, user="root")
        # The tests' server looks up no names.
        for statement in block.text.replace("localhost", "'127.0.0.1'").split(";"):
            if statement.strip():
                connection.cursor().execute(statement)
        connection.close()


def read_data(stream: http.client.HTTPResponse) -> str:
    """The data of the next event."""
    # Keep-alives are lines, too.
    end = time.monotonic() + GUARD
    while not (line := stream.readline().decode()).startswith("data: "):
        assert line, "the stream ended"
        assert time.monotonic() < end, "no event came"
    return line.removeprefix("data: ").strip()


@pytest.mark.slow
@pytest.mark.parametrize("heading", SERVERS)
def test_each_engine_can_be_taken_as_shown(heading, copied):
    """With its section's settings, what another process publishes reaches a stream, and is in that engine's log."""
    kind, driver, _ = SERVERS[heading]
    require_engine(kind, driver)
    with kind() as server:
        make_account(server)
        copied.follow("docs/engines.md", text=engine_text(heading, server))
        copied.run("-c", RUNNER, "doc", stdin=MAKE_CHANNEL)
        with copied.server() as get:
            stream = get("/events/stream/?channel=engine")
            assert stream.status == 200
            said = copied.run("manage.py", "publish_event", "engine", "It works here, too.")
            assert read_data(stream) == "It works here, too."
        log = copied.run("-c", RUNNER, "doc", stdin=WHICH_LOG).split()
        assert log == [{PostgreSQL: "postgresql", MariaDB: "mysql"}.get(kind, "RedisBackend"), said.split()[-1]]


MAKE_CHANNEL = "from events.models import Channel; Channel.objects.create(name='engine', access='public')"
WHICH_LOG = """
from django.db import connections
from events.registry import event_backends
log = event_backends["default"]
print(connections[log.database].vendor if log.joins_transactions else type(log).__name__, log.head())
"""


@pytest.mark.slow
def test_a_site_moves_to_another_engine_as_shown(copied):
    """Its channels come along. A client that comes back with an old cursor gets one reset, and then what is new."""
    require_engine(PostgreSQL, "psycopg")
    old = copied.run("-c", RUNNER, "doc", stdin=WHICH_LOG).split()[-1]
    dump, load = [block for block in blocks("docs/engines.md", "sh") if "site.json" in block.text]
    with PostgreSQL() as server:
        make_account(server)
        copied.shell(dump)
        text = engine_text("PostgreSQL", server)
        copied.follow("docs/engines.md", text=text.partition("### ")[0])
        copied.shell(load)
        with copied.server() as get:
            stream = get("/events/stream/?channel=news", **{"Last-Event-ID": old})
            assert '"reason": "epoch"' in read_data(stream)
            copied.run("manage.py", "publish_event", "news", "We have moved.")
            assert read_data(stream) == "We have moved."


@pytest.mark.slow
def test_the_rest_of_the_engines_page_can_be_followed(copied):
    """What needs no server. A new epoch is told to a stream that is open."""
    copied.follow("docs/engines.md", text=chapter("docs/engines.md", "Memory"))
    copied.run("manage.py", "check", "--settings", "shop.test_settings")
    copied.follow("docs/engines.md", text=chapter("docs/engines.md", "The demo site"))
    with copied.server() as get:
        stream = get("/events/stream/?channel=news")
        # What the channel replays to each new stream.
        assert "Doors open" in read_data(stream)
        copied.follow("docs/engines.md", text=chapter("docs/engines.md", "After a restore"))
        assert '"reason": "epoch"' in read_data(stream)


def test_one_variable_moves_the_demo_site(tmp_path):
    """Each that the page shows leads to the engine that its address names."""
    (block,) = [block for block in blocks("docs/engines.md", "sh") if "EVENTS_URL=" in block.text]
    found = {}
    for line in block.text.splitlines():
        (setting, *command), project = line.split(), Project(tmp_path)
        assert command == ["make", "run"]
        name, _, address = setting.partition("=")
        for own in ("DATABASE_URL", "EVENTS_URL"):
            project.environment.pop(own, None)
        project.environment.update({"DATA_DIR": str(tmp_path), name: address})
        found[address.partition(":")[0]] = project.run("-c", WHICH_ENGINE).split()
    assert found == {
        "postgres": ["django.db.backends.postgresql", "DatabaseBackend", "5"],
        "mysql": ["django.db.backends.mysql", "DatabaseBackend", "5"],
        "redis": ["django.db.backends.sqlite3", "RedisBackend"],
    }


WHICH_ENGINE = """
from sse_site.settings import DATABASES, EVENTS
database = DATABASES["default"]
log = EVENTS["BACKENDS"]["default"]["BACKEND"].rpartition(".")[2]
print(database["ENGINE"], log, database["OPTIONS"].get("connect_timeout", ""))
"""


def test_compose_has_what_the_pages_say():
    """Each profile they start is there, and the accounts in the addresses they name are those of the servers."""
    compose = (ROOT / "compose.yaml").read_text()
    pages = "".join(page.read_text() for page in PAGES) + compose
    started = set(re.findall(r"docker compose --profile (\w+)", pages))
    assert started == set(re.findall(r"^    profiles: \[(\w+)\]$", compose, re.MULTILINE))
    for heading, (_, _, port) in SERVERS.items():
        assert f'ports: ["127.0.0.1:{port}:{port}"]' in compose, heading
    for name in ("USER", "PASSWORD", "DATABASE", "DB"):
        assert set(re.findall(rf"_{name}: (\w+)$", compose, re.MULTILINE)) == {"shop"}, name


# Settings


def chapter(page: str, heading: str) -> str:
    """What stands under a heading of the second level, up to the next one, in the lines where the page has it."""
    text = (ROOT / page).read_text()
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no chapter {heading!r}"
    return "\n" * text.count("\n", 0, found.start(1)) + found[1]


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"{page} has no heading {heading!r}"
    return found[1]


def default_of(heading: str, text: str) -> object:
    found = re.search(r"^Default: `(.+)`$", text, re.MULTILINE)
    assert found is not None, f"{heading} has no line `Default:`"
    return ast.literal_eval(found[1])


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_has_a_heading_with_type_and_default(key, settings):
    """Nobody has to read the code to know a setting."""
    settings.EVENTS = {}
    text = section("docs/settings.md", f"`{key}`")
    assert default_of(key, text) == getattr(defaults, key)
    assert re.search(r"^Type: \S", text, re.MULTILINE)


@pytest.mark.parametrize("word, name", [("database", "DatabaseBackend"), ("Redis", "RedisBackend")])
def test_every_option_of_a_backend_has_one_too(word, name):
    """As for settings; and no heading names an option that is not there."""
    if word == "Redis":
        require_that(find_spec("redis"), "redis", "the Python module redis is not installed")
    options = getattr(import_module(f"events.backends.{word.lower()}"), name).default_options
    text = chapter("docs/settings.md", f"Options of the {word} backend")
    parts = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sorted(parts) == sorted(options)
    for option, part in parts.items():
        assert default_of(option, part) == options[option], option
        assert re.search(r"^Type: \S", part, re.MULTILINE), option


def test_no_heading_names_a_setting_that_is_not_there():
    """A setting that was renamed or is only planned misleads."""
    headings = re.findall(r"^## `(.+)`$", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(KEYS)


@pytest.mark.slow
def test_the_settings_shown_pass_the_checks(copied, redis_server):
    """In the site of the quickstart, without a warning."""
    found = blocks("docs/settings.md")
    assert {block.language for block in found} == {"python"}
    for block in found:
        copied.check_settings(block.text.replace(":6379", f":{redis_server.port}"), block.place)


# Wire protocol

ORDER = '{"id":7,"state":"shipped"}'
#: The examples of docs/wire-protocol.md, in their order.
BYTES = [
    wire.prelude(2750),
    wire.encode("Doors open at seven", id="5f2a9c01-17"),
    wire.encode('{"title":"Café opens","room":2}', id="5f2a9c01-18"),
    wire.encode(ORDER, event="order", id="5f2a9c01-19"),
    wire.encode("Two lines,\r\none event", id="5f2a9c01-20"),
    wire.control("stream-reset", {"channels": ["news"], "reason": "trimmed", "cursor": "5f2a9c01-40"}),
    wire.control("stream-closed", {"reason": "switched-off"}),
    wire.control("stream-end", {"cursor": "5f2a9c01-40"}),
    wire.KEEPALIVE,
    wire.encode_envelope("Doors open at seven", is_json=False, channel="news", event="message", id="5f2a9c01-17"),
    wire.encode_envelope(ORDER, is_json=True, channel="orders", event="order", id="5f2a9c01-19"),
]


def test_the_examples_of_the_wire_protocol_are_what_is_written():
    """Byte for byte, and none is left out."""
    assert [block.text.encode() for block in blocks("docs/wire-protocol.md", "sse")] == BYTES


def test_json_is_written_as_the_example_says(settings):
    """The text of the example is what `publish()` makes of the value."""
    from events.publishing import encode_data

    assert encode_data({"title": "Café opens", "room": 2}) == ('{"title":"Café opens","room":2}', True)
    assert encode_data({"id": 7, "state": "shipped"}) == (ORDER, True)


@pytest.mark.django_db
def test_the_headers_are_those_of_a_stream():
    """All of them, and no other but the one that differs from answer to answer."""
    (block,) = blocks("docs/wire-protocol.md", "http")
    response = EventStreamResponse(AsyncRequestFactory().get("/"), ["news"])
    del response["Events-Cursor"]
    assert sorted(block.text.splitlines()) == sorted(f"{name}: {value}" for name, value in response.items())


def test_the_parameters_are_those_that_the_code_reads():
    """All of them, and no other."""
    code = "".join((ROOT / "events" / name).read_text() for name in ("views.py", "responses.py"))
    read = set(re.findall(r'GET\.get(?:list)?\("(\w+)"', code))
    assert set(re.findall(r"^\| `(\w+)` \|", section("docs/wire-protocol.md", "Request"), re.MULTILINE)) == read


@pytest.mark.django_db(transaction=True)
async def test_each_status_of_the_table_is_answered(make_channel):
    """By the request that the table names, and the table has no other."""
    from asgiref.sync import sync_to_async

    await sync_to_async(make_channel)("news")
    answers = {}
    for query, status in (("?channel=news", 200), ("", 400), ("?channel=news&from=then", 400), ("?channel=other", 403)):
        async with StreamClient(f"/events/stream/{query}") as stream:
            assert stream.status == status, query
            answers[stream.status] = query
    for response in (await sync_to_async(Client().post)("/events/stream/"), await _under_wsgi()):
        answers[response.status_code] = "other"
    found = re.findall(r"^\| (\d{3}) \|", (ROOT / "docs/wire-protocol.md").read_text(), re.MULTILINE)
    assert [int(status) for status in found] == sorted(answers) == [200, 400, 403, 405, 501]


async def _under_wsgi():
    from asgiref.sync import sync_to_async

    return await sync_to_async(Client().get)("/events/stream/?channel=news")


# All pages


def slugs(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To a file of the repository, and to a heading where they name one."""
    text = FENCE.sub("", page.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'\b(?:src|srcset|href)="([^"]+)"', text)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_relative_to(ROOT), target
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in slugs(path.read_text()), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_commands_that_a_page_names_exist(page):
    """Paths of the repository, targets of make, commands of manage.py."""
    # A page names files as seen from the top, or from its own folder.
    text = page.read_text()
    for name in re.findall(r"`((?:\.ci|bench|docs|scripts|sse_site|static|templates|tests)/[\w./-]*)`", text):
        assert (ROOT / name).exists() or (page.parent / name).exists(), f"{page.name}: {name}"
    for name in re.findall(r"`(events/[\w./-]*\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name}: {name}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)", text):
        assert f"\n{target}:" in makefile, f"{page.name}: make {target}"
    for command in re.findall(r"manage\.py (\w+_(?:events?|publish_key))\b", text):
        assert (ROOT / "events/management/commands" / f"{command}.py").exists(), f"{page.name}: {command}"


def test_the_commands_of_the_readme_have_the_options_it_names():
    """And no command is left out."""
    from django.core.management import load_command_class

    table = dict(re.findall(r"^\| `(\w+)[^`]*` \| (.+) \|$", section("README.md", "Commands"), re.MULTILINE))
    commands = {path.stem for path in (ROOT / "events/management/commands").glob("[a-z]*.py")}
    assert set(table) == commands
    for name, text in table.items():
        known = load_command_class("events", name).create_parser("manage.py", name)._option_string_actions
        for option in re.findall(r"--[a-z-]+", text):
            assert option in known, f"{name} {option}"


#: What stands in a page for who wants to see that a promise is held.
TESTS = re.compile(r"<!-- tests: (.+?) -->", re.DOTALL)


@pytest.mark.parametrize("page, heading", [("README.md", "What it promises"), ("docs/security.md", "What is promised")])
def test_every_promise_has_tests(page, heading):
    """Each bullet names some in a comment."""
    bullets = re.split(r"^- ", section(page, heading), flags=re.MULTILINE)[1:]
    assert bullets
    for bullet in bullets:
        assert TESTS.search(bullet), bullet


def test_the_tests_that_pages_name_are_there():
    """None was renamed, none has gone."""
    there = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        there.update(re.findall(r"^ *(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE))
    for page in PAGES:
        for comment in TESTS.findall(page.read_text()):
            for name in re.split(r",\s+", comment):
                assert name in there, f"{page.name}: no test is called {name}"


def test_the_readme_lists_every_page():
    """There is no other list of them."""
    named = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", section("README.md", "Documentation")))
    assert named == {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")}


def test_the_changelog_speaks_of_this_version():
    """The newest entry is that of `events.__version__`."""
    found = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == __version__
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_pictures_are_small_and_made_by_the_script():
    """No picture is forgotten, none is larger than the script allows."""
    script = (ROOT / "scripts/screenshots.py").read_text()
    names = set(re.findall(r'Shot\("([\w-]+)"', script))
    pictures = {path.stem: path.stat().st_size for path in (ROOT / "docs/images").iterdir()}
    assert set(pictures) == names
    assert max(pictures.values()) <= 200_000


@pytest.mark.parametrize(
    "page",
    ["README.md", "CHANGELOG.md", "SECURITY.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))],
)
def test_lines_are_at_most_120_characters(page):
    """But for tables, which cannot be wrapped; and no line ends with a space."""
    for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
        assert line == line.rstrip(), f"{page}:{number}"
        assert len(line) <= 120 or line.startswith("|"), f"{page}:{number}"
