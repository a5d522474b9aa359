"""
Real servers for the tests, each site on a database of its own, with other processes beside it, and clients.

Nothing here touches the database of the process that runs the tests: what a test does to a site, it does from another
process (`Site.run`, `Site.manage`), as a site's shell or task queue would.
"""

from __future__ import annotations

import asyncio
import functools
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from events.testing import EventParser, ReceivedEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping

    from .engines import Engine, MariaDB, PostgreSQL, Redis

ROOT = Path(__file__).resolve().parent.parent
#: Seconds after which a wait has failed. Long: a machine may be busy with much else.
GUARD = float(os.environ.get("EVENTS_TEST_GUARD", "30"))
#: Seconds that hypercorn waits for open responses when it stops, and gunicorn for its workers.
HYPERCORN_GRACE = GUNICORN_GRACE = 1
#: What the demo site and the tests' settings read from the environment of whoever runs the tests.
NOT_INHERITED = {
    "ALLOWED_HOSTS",
    "CSRF_TRUSTED_ORIGINS",
    "DATABASE_URL",
    "DATA_DIR",
    "DEBUG",
    "DJANGO_SETTINGS_MODULE",
    "EVENTS_TEST_APPS",
    "EVENTS_TEST_BACKEND",
    "EVENTS_TEST_DATABASE",
    "EVENTS_TEST_DIR",
    "EVENTS_TEST_IMPORT",
    "EVENTS_TEST_LANE",
    "EVENTS_TEST_SETTINGS",
    "HOST",
    "HTTPS",
    "LOG_LEVEL",
    "SECRET_KEY",
}
#: The channels of every tests' site: a test takes names of its own under these prefixes.
CHANNELS = """
Channel.objects.create(name="public.*", access="public", history_events=None)
Channel.objects.create(name="all.*", access="public", history_events=None, replay="all")
Channel.objects.create(name="latest.*", access="public", history_events=None, replay="latest")
Channel.objects.create(name="staff.*", access="staff")
Channel.objects.create(name="signed-in.*", access="authenticated")
Channel.objects.create(name="gzip.*", access="public", history_events=None, compress=True)
"""
#: Behind a server's kind: with Django's own application, and not that of `events.asgi`.
RESPONSE_LANE = " in the response lane"
#: Each with one process, whose streams are in the direct lane.
FOUR = ["daphne", "uvicorn", "hypercorn", "granian"]
#: Where the response lane is shown, too.
BOTH_LANES = [*FOUR, f"daphne{RESPONSE_LANE}", f"uvicorn{RESPONSE_LANE}"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def command_of(kind: str, port: int, application: str) -> list[str]:
    """
    The command line of a server, by its kind: `uvicorn-2` is uvicorn with two workers.

    Neither daphne nor uvicorn nor granian has a limit to its patience with open streams when it stops. `runserver` is
    the development server with daphne in it, and starts again when a file changes; `wsgi` is the one without.
    """
    name, _, workers = kind.partition("-")
    host = "127.0.0.1"
    wsgi = "tests.site.wsgi:application"
    uvicorn = ["uvicorn", "--host", host, "--port", str(port), "--workers", workers or "1", "--no-access-log"]
    granian = ["granian", "--host", host, "--port", str(port), "--interface"]
    gunicorn = [
        *("gunicorn", "--bind", f"{host}:{port}", "--workers", workers or "1", "--no-control-socket"),
        # Its workers of uvicorn's kind never stop on Ctrl-C by themselves, whatever they serve.
        *("--graceful-timeout", str(GUNICORN_GRACE), "--worker-class"),
    ]
    hypercorn = ["hypercorn", "--bind", f"{host}:{port}", "--graceful-timeout", str(HYPERCORN_GRACE)]
    arguments = {
        "daphne": ["daphne", "--bind", host, "--port", str(port), "--verbosity", "0", application],
        "uvicorn": [*uvicorn, application],
        # Neither httptools nor uvloop, which not everybody has.
        "plain_uvicorn": [*uvicorn, "--http", "h11", "--loop", "asyncio", application],
        "lifespan_uvicorn": [*uvicorn, "--lifespan", "on", application],
        "hypercorn": [*hypercorn, application],
        "granian": [*granian, "asgi", application],
        "gunicorn": [*gunicorn, "uvicorn_worker.UvicornWorker", application],
        "runserver": ["django", "runserver", f"{host}:{port}"],
        "wsgi": ["django", "runserver", "--noreload", f"{host}:{port}"],
        "wsgi_granian": [*granian, "wsgi", wsgi],
        "wsgi_gunicorn": [*gunicorn, "sync", wsgi],
        "wsgi_hypercorn": [*hypercorn, f"wsgi:{wsgi}"],
    }[name]
    return [sys.executable, "-m", *arguments]


def environment_of(kind: str) -> dict[str, str]:
    """What a server of that kind needs to be told."""
    return {"EVENTS_TEST_APPS": "daphne"} if kind == "runserver" else {}


class Server:
    """A running server. `port` stays its own when it is killed and started again."""

    def __init__(self, site: Site, kind: str, port: int | None = None, **environment: str) -> None:
        self.site = site
        self.kind, self.is_in_response_lane = kind.removesuffix(RESPONSE_LANE), kind.endswith(RESPONSE_LANE)
        lane = {"EVENTS_TEST_LANE": "response"} if self.is_in_response_lane else {}
        self.environment = {**site.environment, **lane, **environment_of(self.kind), **environment}
        self.port = port or free_port()
        self.log_path = site.folder / f"{self.kind}-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def workers(self) -> int:
        """How many processes answer."""
        return int(self.kind.partition("-")[2] or 1)

    def start(self) -> None:
        """Start, and wait until every worker answers."""
        mark = self.mark()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command_of(self.kind, self.port, self.site.application),
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own, so that workers can be killed with their parent.
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self._answers() or (self.workers > 1 and self._started(mark) < self.workers):
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise AssertionError(f"{self.kind} did not start:\n{self.log(mark)}")
            time.sleep(0.02)

    def _started(self, mark: int) -> int:
        """How many workers have started: uvicorn says so in its own process and in gunicorn's."""
        return self.log(mark).lower().count("application startup complete")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=GUARD)
        try:
            connection.request("GET", "/is-there-anybody/")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def kill(self) -> None:
        """End all of its processes at once, without a chance to do anything."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(GUARD)

    def suspend(self) -> None:
        """Let all of its processes sleep."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Wake them up."""
        self._signal(signal.SIGCONT)

    def signal(self, number: int) -> float:
        """Send its first process a signal, or all of them where a terminal would. Returns when that was."""
        assert self.process is not None
        if self.kind == "runserver":
            self._signal(number)
        else:
            self.process.send_signal(number)
        return time.monotonic()

    async def exited(self, guard: float = GUARD) -> float:
        """Wait until its first process has ended. Returns when that was."""
        assert self.process is not None
        await asyncio.to_thread(self.process.wait, guard)
        return time.monotonic()

    def stop(self) -> None:
        """Ask it to end, and after some seconds do not ask any more."""
        if self.process is None:
            return
        self._signal(signal.SIGCONT)
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(8)
        self.kill()
        self.process = None

    def _signal(self, number: int) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def mark(self) -> int:
        """Where the log ends now."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def log(self, since: int = 0) -> str:
        """What it has written, from a mark on."""
        with self.log_path.open("rb") as file:
            file.seek(since)
            return file.read().decode("utf-8", "replace")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a short answer, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=GUARD)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """A JSON answer."""
        status, body = self.get(path)
        assert status == 200, f"{status}: {body}\n{self.log()[-4000:]}"
        return json.loads(body)

    async def aget(self, path: str) -> tuple[int, str]:
        """`get` while streams are read."""
        return await asyncio.to_thread(self.get, path)

    async def ajson(self, path: str) -> Any:
        """`json` while streams are read."""
        return await asyncio.to_thread(self.json, path)


class WorkerDiedError(Exception):
    """The other process ended in the middle of what it did. The argument is its return code."""


class Worker:
    """Another process of the site; see `tests/site/worker.py`."""

    def __init__(self, environment: Mapping[str, str], log_path: Path) -> None:
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.site.worker"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def run(self, code: str, guard: float = 60.0, **values: Any) -> Any:
        """Run code there, and return what it left in `result`. Values are what JSON can carry."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = json.dumps({"code": textwrap.dedent(code), "values": values})
        self.process.stdin.write(request.encode() + b"\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], guard)[0]:
            raise TimeoutError(f"the other process did not answer in {guard} s:\n{code}")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerDiedError(self.process.wait(GUARD))
        reply = json.loads(line)
        assert "error" not in reply, reply["error"]
        return reply["result"]

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(GUARD)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


class Ground:
    """What a site's database and log stand on. This one: SQLite, a file in the site's folder."""

    def environment(self, site: Site, port: int | None = None) -> dict[str, str]:
        """What tells the site's settings; `port` is another way to the engine, such as a proxy's."""
        return {}

    def prepare(self, site: Site) -> None:
        """Give the site a database of its own: a copy of one that was made once."""
        for path in template_folder().glob("db.sqlite3*"):
            shutil.copy(path, site.folder / path.name)

    def query(self, site: Site, sql: str, values: tuple[object, ...]) -> list[Any]:
        """Rows of the site's database, read past Django. `?` stands for a value."""
        connection = sqlite3.connect(site.database, timeout=GUARD)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()


class OnRedis(Ground):
    """The log in Redis, under a prefix of the site's own; the site's database stays on SQLite."""

    def __init__(self, engine: Redis, **options: Any) -> None:
        self.engine = engine
        self.options = options

    def environment(self, site: Site, port: int | None = None) -> dict[str, str]:
        url = self.engine.url.replace(str(self.engine.port), str(port or self.engine.port))
        return {
            "EVENTS_TEST_BACKEND": json.dumps(
                {
                    "BACKEND": "events.backends.redis.RedisBackend",
                    "OPTIONS": {"url": url, "prefix": site.name, **self.options},
                }
            )
        }


class DatabaseGround(Ground):
    """Database and log on a server."""

    #: The servers that have the database which the others are copied from.
    _have_template: ClassVar[WeakSet[Engine]] = WeakSet()

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.engine = engine
        self.options = options

    def environment(self, site: Site, port: int | None = None) -> dict[str, str]:
        settings: dict[str, Any] = self.engine.settings  # type: ignore[attr-defined]
        # As the docs ask every site for: Django's own connections would wait for ever.
        options = {**settings.get("OPTIONS", {}), "connect_timeout": round(self.options.get("timeout", 5))}
        settings = {**settings, "NAME": site.name, "PORT": port or self.engine.port, "OPTIONS": options}
        backend = {"BACKEND": "events.backends.database.DatabaseBackend", "OPTIONS": self.options}
        return {"EVENTS_TEST_DATABASE": json.dumps(settings), "EVENTS_TEST_BACKEND": json.dumps(backend)}

    def prepare(self, site: Site) -> None:
        if self.engine not in self._have_template:
            self._have_template.add(self.engine)
            self.execute(f"CREATE DATABASE {TemplateSite.name}")
            with tempfile.TemporaryDirectory(prefix="events-tests-template-") as folder:
                TemplateSite(Path(folder), self)
        self.copy(site.name)

    def copy(self, name: str) -> None:
        """Make a database like that of the `TemplateSite`."""
        raise NotImplementedError

    def execute(self, sql: str) -> None:
        """Run a statement that makes a database."""
        raise NotImplementedError


class OnPostgreSQL(DatabaseGround):
    """Database and log on PostgreSQL."""

    engine: PostgreSQL

    def copy(self, name: str) -> None:
        self.execute(f"CREATE DATABASE {name} TEMPLATE {TemplateSite.name}")

    def execute(self, sql: str) -> None:
        with closing(self._connect("postgres")) as connection:
            connection.execute(sql)

    def query(self, site: Site, sql: str, values: tuple[object, ...]) -> list[Any]:
        with closing(self._connect(site.name)) as connection:
            return list(connection.execute(sql.replace("?", "%s"), values).fetchall())

    def _connect(self, database: str) -> Any:
        import psycopg

        port = self.engine.port
        return psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname=database, autocommit=True)


class OnMariaDB(DatabaseGround):
    """Database and log on MariaDB."""

    engine: MariaDB

    def copy(self, name: str) -> None:
        template = TemplateSite.name
        with closing(self._connect(template)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SHOW TABLES")
            tables = [table for (table,) in cursor.fetchall()]
            statements = []
            for table in tables:
                cursor.execute(f"SHOW CREATE TABLE {table}")
                statements += [cursor.fetchone()[1], f"INSERT INTO {table} SELECT * FROM {template}.{table}"]
            # They refer to each other.
            for statement in (f"CREATE DATABASE {name}", f"USE {name}", "SET foreign_key_checks = 0", *statements):
                cursor.execute(statement)

    def execute(self, sql: str) -> None:
        with closing(self._connect("events")) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql)

    def query(self, site: Site, sql: str, values: tuple[object, ...]) -> list[Any]:
        with closing(self._connect(site.name)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql.replace("?", "%s"), values)
            return list(cursor.fetchall())

    def _connect(self, database: str) -> Any:
        import MySQLdb

        port = self.engine.port
        return MySQLdb.connect(host="127.0.0.1", port=port, user="root", database=database, autocommit=True)


class Site:
    """A Django site with its files in a folder of its own, its servers and its other processes."""

    settings = "tests.site.settings"
    application = "tests.site.asgi:application"
    #: What its database on a server, or its keys there, are called. Each site has a name of its own.
    name = ""

    def __init__(self, folder: Path, ground: Ground | None = None, **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ground = ground or Ground()
        self.name = self.name or f"site_{uuid.uuid4().hex[:12]}"
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        self.environment = {
            **inherited,
            "DJANGO_SETTINGS_MODULE": self.settings,
            "PYTHONUNBUFFERED": "1",
            **self.places(),
            **self.ground.environment(self),
            **environment,
        }
        self.servers: list[Server] = []
        self._worker: Worker | None = None
        self.prepare()

    def places(self) -> dict[str, str]:
        """What tells the settings where the site's files are."""
        return {"EVENTS_TEST_DIR": str(self.folder)}

    def prepare(self) -> None:
        """Make the database."""
        self.ground.prepare(self)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "db.sqlite3"

    def query(self, sql: str, *values: object) -> list[Any]:
        """Rows of the site's database, read at this moment past Django. `?` stands for a value."""
        return self.ground.query(self, sql, values)

    def start(self, kind: str, port: int | None = None, **environment: str) -> Server:
        """A new server of the site."""
        server = Server(self, kind, port, **environment)
        self.servers.append(server)
        return server

    def run(self, code: str, guard: float = 60.0, **values: Any) -> Any:
        """Run code in another process of the site, which stays for the next call."""
        if self._worker is None or self._worker.process.poll() is not None:
            if self._worker is not None:
                self._worker.close()
            self._worker = Worker(self.environment, self.folder / "worker.log")
        return self._worker.run(code, guard, **values)

    async def arun(self, code: str, guard: float = 60.0, **values: Any) -> Any:
        """`run` while streams are read."""
        return await asyncio.to_thread(self.run, code, guard, **values)

    def publish(self, channel: str, data: object, **options: Any) -> str:
        """Publish from that other process; the event's cursor."""
        code = "result = publish(channel, data, **options).id"
        return str(self.run(code, channel=channel, data=data, options=options))

    async def apublish(self, channel: str, data: object, **options: Any) -> str:
        """`publish` while streams are read."""
        return await asyncio.to_thread(self.publish, channel, data, **options)

    def manage(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a management command in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            check=False,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def close(self) -> None:
        """End all that runs."""
        if self._worker is not None:
            self._worker.close()
        for server in self.servers:
            server.stop()


class DemoSite(Site):
    """The site of this repository, as `make run` serves it."""

    settings = "sse_site.settings"
    application = "sse_site.asgi:application"

    def places(self) -> dict[str, str]:
        """As the demo site reads it."""
        return {"DATA_DIR": str(self.folder)}

    def prepare(self) -> None:
        """Migrate; the demo channels are made by `setup_demo`."""
        self.manage("migrate", "--verbosity", "0")


class TemplateSite(Site):
    """The site whose database the others copy."""

    name = "site_template"

    def prepare(self) -> None:
        """Migrate, and make the channels that every test uses."""
        self.manage("migrate", "--verbosity", "0")
        self.run(CHANNELS)
        self.close()


_folders: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def template_folder() -> Path:
    """The folder with the migrated database, made at the first call, removed at the end of the run."""
    _folders.append(tempfile.TemporaryDirectory(prefix="events-tests-template-"))
    folder = Path(_folders[0].name)
    TemplateSite(folder)
    return folder


class Servers:
    """
    Sites with a server each, started when first asked for and kept for the tests that follow.

    By kind, as `uvicorn-2`, which is on SQLite, or `uvicorn-2 on redis`: the engine is then one of `grounds`. What the
    sites and their servers find in their environment is the same for all.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._environment = environment
        self.grounds: dict[str, Ground] = {"": Ground()}
        self._made: dict[str, Server] = {}

    def __getitem__(self, key: str) -> Server:
        server = self._made.get(key)
        if server is None:
            kind, _, engine = key.partition(" on ")
            site = Site(self._folder / key.replace(" ", "-"), self.grounds[engine], **self._environment)
            server = self._made[key] = site.start(kind)
        elif server.process is None or server.process.poll() is not None:
            server.start()
        return server

    def close(self) -> None:
        """End all of them, at once: each takes its time."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Site.close, [server.site for server in self._made.values()]))


def looked_after(server: Server) -> Iterator[Server]:
    """For a fixture: the server, whose log is shown where the test fails, and holds no fault where it does not."""
    mark = server.mark()
    yield server
    check_log(server, mark)


def check_log(server: Server, mark: int) -> None:
    """Show the server's log where the test failed, and see that it holds no fault."""
    log = server.log(mark)
    print(log[-8000:])
    assert "Traceback" not in log


class RawStream:
    """
    A client on a socket: the bytes as they come, each chunk as the server sent it, and the events in them.

    `head` is all before the body; `reads` are the body's chunks, each with its time (`time.monotonic()`).
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        #: What decompresses the body as it comes, where it is compressed.
        self.inflate: Any = None
        #: All of the body that came, decompressed.
        self.text = bytearray()
        self.head = b""
        self.status = 0
        self.headers: dict[str, str] = {}
        self.reads: list[tuple[float, bytes]] = []
        self.parser = EventParser()
        #: All events that came.
        self.events: list[ReceivedEvent] = []
        #: How many of them `next` has returned.
        self.taken = 0
        #: The body ended as HTTP says it must.
        self.ended = False

    @classmethod
    async def open(
        cls,
        port: int,
        path: str,
        headers: Iterable[tuple[str, str | bytes]] = (),
        *,
        method: str = "GET",
        guard: float = GUARD,
        buffer: int | None = None,
    ) -> RawStream:
        """Send a request and read the head of the answer."""
        stream = await cls.request(port, path, headers, method=method, guard=guard, buffer=buffer)
        try:
            await stream.read_head(guard)
        except BaseException:
            stream.abort()
            raise
        return stream

    @classmethod
    async def request(
        cls,
        port: int,
        path: str | bytes,
        headers: Iterable[tuple[str, str | bytes]] = (),
        *,
        method: str = "GET",
        guard: float = GUARD,
        buffer: int | None = None,
    ) -> RawStream:
        """Send a request and read nothing. `buffer`: how much the system may take for who does not read."""
        client = socket.socket()
        client.setblocking(False)
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port)), guard)
        except BaseException:
            client.close()
            raise
        reader, writer = await asyncio.open_connection(sock=client)
        path = path.encode() if isinstance(path, str) else path
        lines = [method.encode() + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1:%d" % port]
        # As every EventSource says it, unless the test says otherwise.
        given = list(headers)
        if not any(name.lower() == "accept" for name, _ in given):
            given.append(("Accept", "text/event-stream"))
        for name, value in given:
            lines.append(name.encode() + b": " + (value.encode() if isinstance(value, str) else value))
        writer.write(b"\r\n".join([*lines, b"", b""]))
        return cls(reader, writer)

    async def read_head(self, guard: float = GUARD) -> None:
        """Read status and headers."""
        self.head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), guard)
        first, *rest = self.head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        pairs = (line.partition(":") for line in rest if line)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if self.headers.get("content-encoding") == "gzip":
            self.inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    async def read(self, guard: float = GUARD) -> bytes:
        """The next chunk of the body; nothing where it has ended."""
        if self.ended:
            return b""
        chunk = await asyncio.wait_for(self._read(), guard)
        if chunk:
            self.reads.append((time.monotonic(), chunk))
            text = self.inflate.decompress(chunk) if self.inflate else chunk
            self.text += text
            self.events += self.parser.feed(text)
        return chunk

    async def _read(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            chunk = (await self.reader.readexactly(size + 2))[:-2]
            self.ended = not chunk
            return chunk
        if "content-length" in self.headers:
            self.ended = True
            return await self.reader.readexactly(int(self.headers["content-length"]))
        chunk = await self.reader.read(65_536)
        self.ended = not chunk
        return chunk

    @property
    def body(self) -> bytes:
        """All of the body that came."""
        return b"".join(chunk for _, chunk in self.reads)

    @property
    def process(self) -> str:
        """Which of the server's processes answered."""
        return self.headers["x-process"]

    async def begin(self) -> RawStream:
        """Read the first bytes of a stream."""
        assert self.status == 200, self.head
        await self.read()
        assert self.text.startswith(b"retry: "), self.body
        return self

    async def next(self, guard: float = GUARD) -> ReceivedEvent:
        """The next event. Raises `EOFError` where the stream has ended."""
        end = time.monotonic() + guard
        while self.taken == len(self.events):
            if not await self.read(max(0.1, end - time.monotonic())):
                raise EOFError(f"the stream ended after {self.body[-500:]!r}")
        self.taken += 1
        return self.events[self.taken - 1]

    async def until(self, data: str, guard: float = GUARD) -> list[ReceivedEvent]:
        """The events up to the first one with that data, which is not among them."""
        found: list[ReceivedEvent] = []
        while (event := await self.next(guard)).data != data:
            found.append(event)
        return found

    async def rest(self, guard: float = GUARD) -> bytes:
        """The whole body, read to its end."""
        while await self.read(guard):
            pass
        return self.body

    @property
    def retries(self) -> list[int]:
        """The milliseconds of all `retry:` lines that came: the first bytes' and, after an orderly end, the last."""
        return [int(value) for value in re.findall(rb"^retry: ([0-9]+)$", self.text, re.MULTILINE)]

    def abort(self) -> None:
        """Reset the connection, as a client that vanishes."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with suppress(ConnectionError):
            await asyncio.wait_for(self.writer.wait_closed(), GUARD)


def stream_path(*channels: str, **options: str) -> str:
    """The path of a stream of these channels."""
    return "/events/stream/?" + "&".join(
        [*(f"channel={name}" for name in channels), *(f"{name.rstrip('_')}={value}" for name, value in options.items())]
    )


@asynccontextmanager
async def opened(
    server: Server,
    *channels: str,
    count: int = 1,
    cursor: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    **options: str,
) -> AsyncIterator[list[RawStream]]:
    """
    Streams that are live: they have read the first bytes.

    Of a server with several workers at least `count` on each, which are then the first so many of that worker.
    """
    headers = [*headers, *([] if cursor is None else [("Last-Event-ID", cursor)])]
    streams: list[RawStream] = []
    chosen: list[RawStream] = []
    try:
        for _ in range(60):
            batch = [RawStream.open(server.port, stream_path(*channels, **options), headers) for _ in range(count)]
            streams += await asyncio.gather(*batch)
            by_process: dict[str, list[RawStream]] = {}
            for stream in streams:
                by_process.setdefault(stream.process, []).append(stream)
            if len(by_process) == server.workers and all(len(found) >= count for found in by_process.values()):
                chosen = [stream for found in by_process.values() for stream in found[:count]]
                break
        assert chosen, "one of the workers answers nobody"
        for stream in streams:
            if stream not in chosen:
                stream.abort()
        await asyncio.gather(*(stream.begin() for stream in chosen))
        yield chosen
    finally:
        for stream in streams:
            stream.abort()
        # Aborted connections say goodbye in the next turn of the loop.
        await asyncio.sleep(0)


async def until(condition: Callable[[], Awaitable[Any]], what: str, guard: float = GUARD, every: float = 0.05) -> Any:
    """What the condition answers as soon as that is true. For what can only be asked for, not waited on."""
    end = time.monotonic() + guard
    while True:
        if answer := await condition():
            return answer
        assert time.monotonic() < end, f"waited {guard} s until {what}"
        await asyncio.sleep(every)


async def wait_open(server: Server, name: str, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Wait until every worker knows the channel: they look once in half a second."""

    async def known() -> bool:
        statuses = await asyncio.gather(*(_head_status(server, name, headers) for _ in range(6 * server.workers)))
        return {status for status, _ in statuses} == {200} and len({process for _, process in statuses}) == (
            server.workers
        )

    await until(known, f"every worker knows {name}")


async def _head_status(server: Server, name: str, headers: Iterable[tuple[str, str]]) -> tuple[int, str]:
    stream = await RawStream.open(server.port, stream_path(name), headers, method="HEAD")
    await stream.close()
    return stream.status, stream.process
