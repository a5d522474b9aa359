"""
Private servers of other engines: for tests, which kill and stop them, and for benchmarks.

    with PostgreSQL() as engine:
        engine.url, engine.settings

Each has a free port of 127.0.0.1 and a temporary folder, and keeps both until it is closed. Durable as shipped: what
makes a server safe is left switched on. Where the tests run as root, the servers run as `nobody`: databases refuse
root. None of them outlives the process that started it, however that ends.
"""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil

from .programs import find_program

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds for a server to answer, or to end.
PATIENCE = 60
#: Who a server runs as where the tests are root.
UNPRIVILEGED = "nobody"
#: Ends a server and removes its folder once its standard input ends, which it does with the process that holds it.
GUARDIAN = 'cat; kill -KILL $(cat "$1/pid"); rm -rf "$1"'


def free_port() -> int:
    """
    A port that nobody listens on.

    Below those that the system gives to outgoing connections: one of these could take the port of a server that is
    down, and a client that tries again and again would in the end reach itself.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class Engine:
    """A server that is started, stopped, killed and paused. `port`, `url` and `folder` stay the same meanwhile."""

    #: The programs it needs.
    programs: ClassVar[tuple[str, ...]] = ()
    #: Asks a server to end in order.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.found = {name: find_program(name) for name in self.programs}
        if missing := [name for name, path in self.found.items() if path is None]:
            raise FileNotFoundError(f"{', '.join(missing)}: not installed, and {type(self).__name__} needs it.")
        self.folder = Path(tempfile.mkdtemp(prefix=f"events-{type(self).__name__.lower()}-"))
        self._owner = os.getpid()
        self._guardian = subprocess.Popen(
            ["/bin/sh", "-c", GUARDIAN, "sh", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.close)
        if self._as:
            shutil.chown(self.folder, self._as["user"], self._as["group"])

    @property
    def url(self) -> str:
        """The address, as django-environ and redis-py read it."""
        raise NotImplementedError

    @property
    def log(self) -> str:
        """What the server has said."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Start, and wait until it answers."""
        if not (self.folder / "prepared").exists():
            self.prepare()
            (self.folder / "prepared").touch()
        with (self.folder / "log").open("ab") as log:
            self.process = self._run(self.command(), stdout=log)
        self._note([self.process.pid])
        end = time.monotonic() + PATIENCE
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{type(self).__name__} on port {self.port} does not answer:\n{self.log[-4000:]}")
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """End it in order: what was acknowledged is kept."""
        self.resume()
        if self.process is not None:
            processes = self._processes()
            self.process.send_signal(self.stop_signal)
            self._wait(processes)

    def kill(self) -> None:
        """End all its processes with SIGKILL, at one moment."""
        self.pause()
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._wait(processes)

    def restart(self) -> None:
        """`stop`, where it runs, and `start`, with its data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop all its processes with SIGSTOP: connections stay open and are accepted, and nothing answers."""
        self._send(signal.SIGSTOP)
        # One that is stopped does not see that its parent is gone.
        self._note([process.pid for process in self._processes()])

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._send(signal.SIGCONT)
        self._note([process.pid for process in self._processes()[:1]])

    def close(self) -> None:
        """End it, and remove its data."""
        if os.getpid() != self._owner or self._guardian.stdin is None:
            return
        atexit.unregister(self.close)
        self.kill()
        self._guardian.stdin.close()
        self._guardian.wait(PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # What an engine says of itself

    def prepare(self) -> None:
        """Make what the server needs in `folder`, before its first start."""

    def command(self) -> list[str]:
        """The command that serves, in the foreground."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server does its work."""
        raise NotImplementedError

    # How it is done

    def program(self, name: str) -> str:
        """The path of one of `programs`."""
        path = self.found[name]
        assert path is not None
        return path

    @property
    def _as(self) -> dict[str, Any]:
        if os.getuid() != 0:
            return {}
        user = pwd.getpwnam(UNPRIVILEGED)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def _run(self, command: list[str], **kwargs: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **kwargs,
            **self._as,
        )

    def _finish(self, command: list[str]) -> None:
        """Run a program to its end, as the user the server runs as."""
        process = self._run(command, stdout=subprocess.PIPE)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{output.decode(errors='replace')[-4000:]}")

    def _note(self, pids: list[int]) -> None:
        """Say what the guardian is to kill."""
        (self.folder / "pid").write_text(" ".join(map(str, pids)))

    def _processes(self) -> list[psutil.Process]:
        # Not its process group: PostgreSQL gives each of its children one of its own.
        if self.process is None or self.process.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.process.pid)
            return [main, *main.children(recursive=True)]
        return []

    def _send(self, number: signal.Signals) -> None:
        # The first process first: once it is stopped it starts no others, so that the second look finds all of them.
        for process in (*self._processes()[:1], *self._processes()[1:]):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _wait(self, processes: list[psutil.Process]) -> None:
        """Wait until all are gone: one that is left may hold the port or the data."""
        if self.process is None:
            return
        self.process.wait(PATIENCE)
        end = time.monotonic() + PATIENCE
        while any(_is_alive(process) for process in processes):
            if time.monotonic() > end:
                raise TimeoutError(f"{type(self).__name__} on port {self.port} does not end: {processes}")
            time.sleep(0.005)
        self.process = None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


#: What a killed Redis has still. With the usual `everysec` it puts a write off while the disk is busy.
EVERY_WRITE = ("--appendonly", "yes", "--appendfsync", "always")


class Redis(Engine):
    """
    redis-server, or Valkey's. `arguments` are its options, as `EVERY_WRITE`.

    Writes nothing to disk by itself unless they say so; `SAVE` makes a dump in `folder`, which a restart reads.
    """

    programs = ("redis-server",)

    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self.arguments = arguments

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        own = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "save": "", "appendonly": "no"}
        options = [str(part) for name, value in own.items() for part in (f"--{name}", value)]
        return [self.program("redis-server"), *options, *self.arguments]

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as client:
            client.sendall(b"PING\r\n")
            # It refuses while it loads its data; who needs a password is let know, and that is an answer too.
            return client.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        return False


class PostgreSQL(Engine):
    """PostgreSQL. `arguments` are options of `postgres`, as `"-c", "max_connections=20"`."""

    programs = ("initdb", "postgres", "pg_isready")
    # "Fast": its SIGTERM would wait for every client to go.
    stop_signal = signal.SIGINT

    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self.arguments = arguments

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def settings(self) -> dict[str, Any]:
        """An entry of `DATABASES`."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": "127.0.0.1",
            "PORT": self.port,
        }

    def prepare(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        self._finish([self.program("initdb"), *options, "--pgdata", str(self.folder / "data")])

    def command(self) -> list[str]:
        own = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.folder}
        options = [part for name, value in own.items() for part in ("-c", f"{name}={value}")]
        return [self.program("postgres"), "-D", str(self.folder / "data"), *options, *self.arguments]

    def answers(self) -> bool:
        command = [self.program("pg_isready"), "--quiet", "--host=127.0.0.1", f"--port={self.port}", "--timeout=1"]
        return subprocess.run(command, check=False).returncode == 0


class MariaDB(Engine):
    """MariaDB. `arguments` are options of `mariadbd`, as `"--max-connections=20"`."""

    programs = ("mariadb-install-db", "mariadbd")

    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self.arguments = arguments

    @property
    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/events"

    @property
    def settings(self) -> dict[str, Any]:
        """An entry of `DATABASES`."""
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": "events",
            "USER": "root",
            "HOST": "127.0.0.1",
            "PORT": self.port,
            "OPTIONS": {"charset": "utf8mb4"},
        }

    def prepare(self) -> None:
        options = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]
        self._finish([self.program("mariadb-install-db"), *options, f"--datadir={self.folder / 'data'}"])
        (self.folder / "first.sql").write_text("CREATE DATABASE IF NOT EXISTS events CHARACTER SET utf8mb4;\n")

    def command(self) -> list[str]:
        own = {
            "port": self.port,
            "bind-address": "127.0.0.1",
            "datadir": self.folder / "data",
            "tmpdir": self.folder,
            "socket": self.folder / "socket",
            "pid-file": self.folder / "server.pid",
            "init-file": self.folder / "first.sql",
        }
        options = [f"--{name}={value}" for name, value in own.items()]
        return [self.program("mariadbd"), "--no-defaults", "--skip-name-resolve", *options, *self.arguments]

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as client:
            # A server greets first: four bytes of length and number, then the version of the protocol, or 255.
            return client.recv(5)[4:] == b"\n"
        return False


class PgBouncer(Engine):
    """PgBouncer before a PostgreSQL. `options` are lines of its file's main section, as `default_pool_size=5`."""

    programs = ("pgbouncer",)

    def __init__(self, postgresql: PostgreSQL, **options: object) -> None:
        super().__init__()
        self.postgresql = postgresql
        self.options = options

    @property
    def url(self) -> str:
        return f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def settings(self) -> dict[str, Any]:
        """An entry of `DATABASES`."""
        return {**self.postgresql.settings, "PORT": self.port, "DISABLE_SERVER_SIDE_CURSORS": True}

    def prepare(self) -> None:
        own = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            **self.options,
        }
        lines = [
            "[databases]",
            f"postgres = host=127.0.0.1 port={self.postgresql.port} dbname=postgres user=postgres",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in own.items()),
        ]
        (self.folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [self.program("pgbouncer"), str(self.folder / "pgbouncer.ini")]

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as client:
            # "Do you speak TLS?", to which the answer is one letter.
            client.sendall(bytes.fromhex("0000000804d2162f"))
            return client.recv(1) in (b"N", b"S")
        return False
