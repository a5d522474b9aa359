"""The log in Redis: the contract, and what only Redis does to a log. What every engine survives is in `test_faults`."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
import weakref
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis
from django.db import transaction

from events.backends import outbox as outboxes
from events.backends import redis as redis_log
from events.backends import redis_scripts as scripts
from events.backends.base import CONTROL_CHANNEL, NewEvent, Params, Retention, StoredEvent
from events.backends.redis import RedisBackend
from events.exceptions import BackendUnavailable, InvalidEventBackend
from events.models import Outbox
from events.wire import Cursor
from tests.conftest import require_engine
from tests.engines import EVERY_WRITE, Redis, free_port
from tests.plugins import require_program
from tests.proxy import Proxy
from tests.waiting import GUARD, until

from .contract import Follower, backend_contract, collect, in_threads, new, next_batch, off_loop, positions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG_GUARD = 45


def log_at(url: str, **options) -> RedisBackend:
    return RedisBackend(Params("default", {"url": url, "trim_interval": None, "timeout": 2.0, **options}))


@contextmanager
def opened(url: str, **options) -> Iterator[RedisBackend]:
    backend = log_at(url, **options)
    try:
        yield backend
    finally:
        backend.close()


@contextmanager
def client_of(server: Redis) -> Iterator[Any]:
    """redis-py's own client, to do to a server what no log would."""
    with redis.Redis(port=server.port, decode_responses=True) as client:
        yield client


@contextmanager
def private(*arguments: str) -> Iterator[Redis]:
    """A server that a test may do anything to."""
    require_engine(Redis, "redis")
    with Redis(*arguments) as server:
        yield server


@pytest.fixture
def client(redis_server):
    """A client of the empty shared server."""
    with client_of(redis_server) as client:
        client.flushall()
        client.config_resetstat()
        yield client


@pytest.fixture
def backend(client, redis_server) -> Iterator[RedisBackend]:
    with opened(redis_server.url) as backend:
        yield backend


def make_redis(client, redis_server):
    with opened(redis_server.url) as backend:
        yield backend


def make_redis_with_outbox(client, redis_server):
    with opened(redis_server.url, outbox=True) as backend:
        yield backend


TestContract = backend_contract(make_redis)
TestContractWithOutbox = pytest.mark.django_db(transaction=True)(backend_contract(make_redis_with_outbox))


def cursor_of(backend: RedisBackend, *events: NewEvent) -> Cursor:
    """Publish, and return where the first one stands."""
    found = Cursor.parse(backend.append(events)[0].id or "")
    assert found is not None
    return found


def data_of(events) -> list[str]:
    return [event.data for event in events]


# Options


@pytest.mark.parametrize(
    "options, said",
    [
        ({"prefix": "a{b}"}, r"\['prefix'\] is 'a{b}': it must be 1 to 50 characters"),
        ({"prefix": 3}, r"\['prefix'\] is 3"),
        ({"timeout": 0}, r"\['timeout'\] is 0: it must be a number of seconds above 0"),
        ({"timeout": True}, r"\['timeout'\] is True"),
        ({"trim_interval": "x"}, r"\['trim_interval'\] is 'x': it must be a number of seconds above 0, or None"),
        ({"log_events": 0}, r"\['log_events'\] is 0: it must be a whole number above 0"),
        ({"history_events": 1.5}, r"\['history_events'\] is 1.5"),
        ({"wait_replicas": -1}, r"\['wait_replicas'\] is -1: it must be a whole number of replicas, or 0"),
        ({"wait_aof": 1}, r"\['wait_aof'\] is 1: it must be True or False"),
        ({"client_options": []}, r"\['client_options'\] is \[\]: it must be a dictionary"),
        ({"sentinels": ["a:1"]}, r"\['sentinels'\] is \['a:1'\]: it must be a list of \(host, port\)"),
        ({"sentinels": 1}, r"\['sentinels'\] is 1"),
        ({"sentinels": [("a", 1)]}, r"\['service'\] is None: it must be the name that the sentinels know"),
        ({"sentinels": [("a", 1)], "service": "s", "cluster": True}, r"\['cluster'\] is True: it must be False"),
        ({"url": "unix:///socket", "cluster": True}, r"\['url'\]: it must be redis:// or rediss://"),
        ({"url": "http://user:secret@host"}, r"\['url'\] is nothing that redis-py can read: .*redis://"),
        ({"url": None}, r"\['url'\] is nothing that redis-py can read"),
        ({"url": "redis://host/0?colour=red"}, "what redis-py's connections do not take: .*colour"),
        ({"client_options": {"colour": "red"}}, "what redis-py's connections do not take: .*colour"),
        ({"urls": "x"}, "Did you mean 'url'"),
    ],
)
def test_a_wrong_option_is_refused(options, said) -> None:
    """Which one, what it is, and what is right; never the password in a URL."""
    with pytest.raises(InvalidEventBackend, match=said) as caught:
        RedisBackend(Params("default", options))
    assert "secret" not in str(caught.value)


def test_without_redis_py_it_says_what_to_install() -> None:
    """Importing the module fails with the remedy; the rest of the app does without."""
    code = "import sys, django; django.setup(); sys.modules['redis'] = None; import events.backends.redis"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert 'pip install "django-live-events[redis]"' in done.stderr


def test_it_says_which_log_it_is() -> None:
    """Two aliases for one log say the same, with and without a password; another prefix is another log."""
    one = RedisBackend(Params("a", {"url": "redis://host/3"}))
    two = RedisBackend(Params("b", {"url": "redis://user:secret@host:6379/3"}))
    assert one.log_identity() == two.log_identity() == "Redis at host:6379, database 3, prefix 'events'"
    assert RedisBackend(Params("c", {"url": "redis://host/3", "prefix": "x"})).log_identity() != one.log_identity()


def test_two_prefixes_are_two_logs(backend: RedisBackend, redis_server) -> None:
    """On one database of one server."""
    with opened(redis_server.url, prefix="other") as other:
        backend.append([new()])
        assert other.head().position == 0
        assert backend.head().position == 1


def test_all_keys_are_in_one_slot(backend: RedisBackend, client) -> None:
    """One hash tag, so that a cluster keeps them together."""
    backend.append([new("a", key="k"), new("b")])
    backend.trim(lambda name: Retention(events=0))
    assert client.keys()
    assert all(key.startswith("{events}:") for key in client.scan_iter())


# Where it connects to


def test_a_unix_socket(tmp_path: Path) -> None:
    """By its path."""
    with private("--unixsocket", "socket", "--unixsocketperm", "777") as server:
        with opened(f"unix://{server.folder}/socket") as backend:
            assert backend.append([new()])[0].id == str(backend.head())
            server.kill()
            with pytest.raises(BackendUnavailable, match=f"nothing was published: Redis at {server.folder}/socket"):
                backend.append([new()])


ACL = ["--user", "site", "on", ">geheim", "~{events}:*", "+@all", "-info", "--user", "default", "off"]


def make_certificate(folder: Path) -> None:
    """`key.pem` and `cert.pem`, signed by itself, for 127.0.0.1."""
    command = [require_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    # Made by root, read by the server.
    (folder / "key.pem").chmod(0o644)


class RedisWithTLS(Redis):
    """Speaks nothing but TLS."""

    def prepare(self) -> None:
        make_certificate(self.folder)
        tls = {"port": 0, "tls-port": self.port, "tls-auth-clients": "no"}
        tls.update({"tls-cert-file": f"{self.folder}/cert.pem", "tls-key-file": f"{self.folder}/key.pem"})
        self.arguments += tuple(str(part) for name, value in tls.items() for part in (f"--{name}", value))

    def answers(self) -> bool:
        return "Ready to accept connections" in self.log


async def test_tls_and_a_user_by_url(caplog) -> None:
    """`rediss://user:password@`, with the authority in the URL; a user who may not ask INFO goes on without."""
    require_engine(Redis, "redis")
    with RedisWithTLS(*ACL) as server:
        where = f"127.0.0.1:{server.port}/0?ssl_ca_certs={server.folder}/cert.pem"
        with opened(f"rediss://site:geheim@{where}") as backend:
            async with aclosing(backend.tail()) as batches:
                await next_batch(batches)
                await backend.aappend([new(data="over TLS")])
                assert data_of(await collect(batches, 1)) == ["over TLS"]
            assert (await backend.ahead()).position == 1
        assert len(caplog.records) == 1
        assert "does not say who it is" in caplog.records[0].message
        with opened(f"rediss://site:wrong-one@{where}") as backend:
            with pytest.raises(BackendUnavailable, match=r"nothing was published: .* cannot be reached") as caught:
                await off_loop(backend.append, [new()])
            assert "wrong-one" not in str(caught.value)
        with opened(f"rediss://site:geheim@127.0.0.1:{server.port}/0") as backend:
            with pytest.raises(BackendUnavailable, match="certificate"):
                await off_loop(backend.head)


def wait_for(is_so) -> None:
    """Ask servers that nobody else hears from, until they say so."""
    end = time.monotonic() + LONG_GUARD
    while True:
        with suppress(redis.RedisError):
            if is_so():
                return
        assert time.monotonic() < end
        time.sleep(0.02)


def in_cluster() -> Redis:
    """A node without slots. It speaks with others on a port that is free, which the default one need not be."""
    require_engine(Redis, "redis")
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2500", *EVERY_WRITE)
    return Redis(*options, "--cluster-port", str(free_port()))


class Cluster:
    """Three masters, and a replica of the one that has the log."""

    def __enter__(self) -> Cluster:
        self.nodes = [in_cluster().start() for _ in range(4)]
        clients = [redis.Redis(port=node.port, decode_responses=True) for node in self.nodes]
        for client, (first, last) in zip(clients, [(0, 5460), (5461, 10922), (10923, 16383)], strict=False):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        known = self.nodes[0]
        for client in clients[1:]:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", known.port, known.arguments[-1])
        slot = clients[0].execute_command("CLUSTER", "KEYSLOT", "{events}:meta")
        number = 0 if slot <= 5460 else 1 if slot <= 10922 else 2
        self.master, self.replica = self.nodes[number], self.nodes[3]
        wait_for(lambda: all(len(client.cluster("NODES")) == 4 for client in clients))
        wait_for(lambda: all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients))
        owner = clients[number].execute_command("CLUSTER", "MYID")
        wait_for(lambda: clients[3].execute_command("CLUSTER", "REPLICATE", owner))
        wait_for(lambda: clients[3].info("replication").get("master_link_status") == "up")
        for client in clients:
            client.close()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for node in self.nodes:
            node.close()


def insist(backend: RedisBackend, event: NewEvent) -> None:
    """Publish until the log takes it."""
    end = time.monotonic() + LONG_GUARD
    while True:
        try:
            backend.append([event])
            return
        except BackendUnavailable:
            assert time.monotonic() < end
            time.sleep(0.05)


async def test_a_cluster() -> None:
    """Any node shows the way; one that is not the right one is left; a replica that takes over is found."""
    with Cluster() as cluster:
        other = next(node for node in cluster.nodes[:3] if node is not cluster.master)
        with opened(other.url, cluster=True) as backend:
            async with aclosing(backend.tail()) as batches:
                epoch = (await next_batch(batches)).head.epoch
                await off_loop(backend.append, [new(data="1", key="k"), new("b", "2")])
                assert data_of(await collect(batches, 2)) == ["1", "2"]
                assert data_of((await backend.aread(["news", "b"], 0, 10)).events) == ["1", "2"]
                backend.close()
                await asyncio.sleep(0)
                # The log has moved since: the node that had it says so, and has done nothing.
                backend._address = ("127.0.0.1", other.port)
                await off_loop(backend.append, [new(data="3")])
                backend._address = ("127.0.0.1", other.port)
                assert (await backend.ahead()).position == 3
                assert data_of(await collect(batches, 1)) == ["3"]
                assert backend._address == ("127.0.0.1", cluster.master.port)
                with client_of(cluster.master) as client:
                    assert client.execute_command("WAIT", 1, GUARD * 1000) == 1
                await off_loop(cluster.master.kill)
                await off_loop(insist, backend, new(data="4", key="4"))
                found: list[StoredEvent] = []
                batch = None
                while not found:
                    batch = await next_batch(batches, LONG_GUARD)
                    found += batch.events
                assert data_of(found) == ["4"]
                # Nothing was lost, and the replica has an append-only file: it is the same log.
                assert batch is not None
                assert batch.head == Cursor(epoch, 4)
                assert backend._address == ("127.0.0.1", cluster.replica.port)


def test_a_cluster_that_cannot_be_asked(redis_server) -> None:
    """No node answers, it is no cluster, or nobody has the slot: each is said."""
    with opened("redis://127.0.0.1:1/0", cluster=True) as backend:
        with pytest.raises(BackendUnavailable, match=r"127.0.0.1:1: "):
            backend.head()
    with opened(redis_server.url, cluster=True) as backend:
        with pytest.raises(BackendUnavailable, match="cluster support disabled"):
            backend.head()
    with in_cluster() as server, opened(server.url, cluster=True) as backend:
        with pytest.raises(BackendUnavailable, match="no node of the cluster has the slot"):
            backend.head()
        with pytest.raises(BackendUnavailable, match="no node of the cluster has the slot"):
            asyncio.run(backend.ahead())


async def test_sentinels_and_a_failover() -> None:
    """The master is asked for by name; when a replica takes over without an append-only file, the epoch is new."""
    with private() as master, private("--replicaof", "127.0.0.1", str(master.port)) as replica, private() as sentinel:
        sentinel.stop()
        config = sentinel.folder / "sentinel.conf"
        config.write_text(
            f"port {sentinel.port}\nsentinel monitor events 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds events 1500\nsentinel failover-timeout events 4000\n"
        )
        config.chmod(0o666)
        sentinel.command = lambda: [sentinel.program("redis-server"), str(config), "--sentinel"]  # type: ignore[method-assign]
        sentinel.start()
        with client_of(replica) as client:
            wait_for(lambda: client.info("replication").get("master_link_status") == "up")
        with client_of(sentinel) as client:
            wait_for(lambda: client.sentinel_slaves("events"))
        hosts = [("127.0.0.1", 1), ("127.0.0.1", sentinel.port)]
        with opened("redis:///0", sentinels=hosts, service="events") as backend:
            async with aclosing(backend.tail()) as batches:
                first = (await next_batch(batches)).head
                await backend.aappend([new(data="1")])
                await collect(batches, 1)
                assert backend._where() == f"127.0.0.1:{master.port}"
                with client_of(master) as client:
                    assert client.execute_command("WAIT", 1, GUARD * 1000) == 1
                await off_loop(master.kill)
                batch = await next_batch(batches, LONG_GUARD)
                assert list(batch.events) == []
                assert batch.head.epoch != first.epoch
                assert batch.head.position == 1
                assert data_of((await backend.aread(["news"], 0, 10)).events) == ["1"]
                await backend.aappend([new(data="2")])
                assert data_of(await collect(batches, 1)) == ["2"]
                assert backend._where() == f"127.0.0.1:{replica.port}"
        options = {"sentinels": hosts[1:], "service": "unknown", "sentinel_options": {"socket_timeout": 1.0}}
        with opened("redis:///0", **options) as backend:
            with pytest.raises(BackendUnavailable, match="the sentinel knows no master 'unknown'"):
                await off_loop(backend.head)


# What Redis forgets


def test_an_emptied_redis_begins_anew(backend: RedisBackend, client) -> None:
    """Whatever asks first, on a connection that was open before."""  # promise 19
    before = cursor_of(backend, new(), new())
    for ask, position in (
        (lambda: cursor_of(backend, new()), 1),
        (lambda: cursor_of(backend, new(), new()), 1),
        (backend.head, 0),
        (lambda: backend.read(["news"], 0, 10).head, 0),
    ):
        client.flushall()
        after = ask()
        assert after.position == position
        assert after.epoch != before.epoch
        before = after


def test_a_kill_with_an_append_only_file_loses_nothing() -> None:
    """The same epoch, and every event."""
    with private(*EVERY_WRITE) as server, opened(server.url) as backend, opened(server.url) as other:
        first = cursor_of(backend, new(data="1"), new(data="2"))
        other.head()
        server.kill()
        with pytest.raises(BackendUnavailable, match=r"nothing was published: Redis at .* cannot be reached"):
            backend.append([new()])
        server.start()
        assert cursor_of(backend, new(data="3")) == Cursor(first.epoch, 3)
        assert data_of(other.read(["news"], 0, 10).events) == ["1", "2", "3"]


def test_a_restart_without_an_append_only_file_is_a_new_life() -> None:
    """Whether something was lost nobody can know, so the epoch is new; what the snapshot has is kept and counted on."""
    with private() as server, opened(server.url) as backend, opened(server.url) as other:
        before = cursor_of(backend, new(data="1"), new(data="2"))
        other.head()
        with client_of(server) as client:
            client.save()
        server.kill()
        server.start()
        after = cursor_of(backend, new(data="3"))
        assert after.position == 3
        assert after.epoch != before.epoch
        # Once: those who come later find the run that the record names.
        assert other.head() == after
        assert data_of(other.read(["news"], 0, 10).events) == ["1", "2", "3"]


def test_an_older_copy_is_noticed_though_others_have_published_since(caplog) -> None:
    """A fresh process cannot know that positions are given a second time; who saw the first ones does."""  # promise 19
    with private(*EVERY_WRITE) as server, opened(server.url) as backend:
        backend.append([new(data="1")])
        server.stop()
        shutil.copytree(server.folder / "appendonlydir", server.folder / "copy")
        server.start()
        lost = cursor_of(backend, new(data="2"), new(data="3"))
        server.kill()
        shutil.rmtree(server.folder / "appendonlydir")
        shutil.copytree(server.folder / "copy", server.folder / "appendonlydir")
        for path in [server.folder / "appendonlydir", *(server.folder / "appendonlydir").iterdir()]:
            shutil.chown(path, *_owner(server))
        server.start()
        with opened(server.url) as fresh:
            assert cursor_of(fresh, new(data="4"), new(data="5"), new(data="6")) == lost
            after = backend.head()
            assert after.epoch != lost.epoch
            assert after.position == 4
            assert fresh.head() == after
        assert data_of(backend.read(["news"], 0, 10).events) == ["1", "4", "5", "6"]
        assert [record for record in caplog.records if "the log went backwards" in record.message]


def _owner(server: Redis) -> tuple[int, int]:
    stat = server.folder.stat()
    return stat.st_uid, stat.st_gid


async def test_a_head_that_goes_back_is_a_new_life(backend: RedisBackend, client) -> None:
    """Also while the server runs: what is published then gets positions a second time, and a new epoch with them."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        first = await off_loop(cursor_of, backend, new(), new(), new())
        await collect(batches, 3)
        client.hset("{events}:meta", "head", 1)
        client.delete("{events}:log", "{events}:history:news")
        again = await off_loop(cursor_of, backend, new())
        assert again.position == 2
        assert again.epoch != first.epoch
        batch = await next_batch(batches)
        assert batch.head == again
        client.hset("{events}:meta", "head", 0)
        # Nobody publishes: the tail itself sees it, within a second.
        batch = await next_batch(batches)
        assert batch.head.epoch != again.epoch


async def test_a_tail_sees_a_new_log_that_counts_from_one(backend: RedisBackend, client, redis_server) -> None:
    """It waits for positions above those of the old life, which the new one has not: it looks all the same."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        await backend.aappend([new() for _ in range(20)])
        await collect(batches, 20)
        client.flushall()
        with opened(redis_server.url) as other:
            first = (await off_loop(other.append, [new(data="first of its life")]))[0]
        batch = await next_batch(batches)
        assert str(batch.head) == first.id


def test_what_an_evicted_record_leaves_behind_is_not_read(backend: RedisBackend, client) -> None:
    """A log without its record is a new one, also where keys of the old one are still there."""
    backend.append([new(channel, "old") for channel in "abab"])
    client.hdel("{events}:floors", "b")
    client.delete("{events}:meta")
    assert cursor_of(backend, new("b", "new")).position == 1
    backend.append([new("c") for _ in range(10)])
    found = backend.read(["a", "b"], -1, 10)
    assert data_of(found.events) == ["new"]
    # Of the second channel nobody knew any more: what was there is in the way of the first event, and said to be gone.
    assert found.floors == {}
    assert backend.channels() == ["b", "c"]


def test_a_history_that_nobody_knew_of_is_said_to_be_gone(backend: RedisBackend, client) -> None:
    """Its entries are in the way of new ones; who resumes from among them is told."""
    backend.append([new(data="1")])
    client.xadd("{events}:history:news", {"h": "1.0 0 news message", "d": "x"}, id="9-0")
    backend.append([new("other"), new(data="3")])
    found = backend.read(["news"], 0, 10)
    assert data_of(found.events) == ["3"]
    assert found.floors == {"news": 2}


def test_who_may_not_ask_for_the_run_sees_no_loss_where_there_is_none(
    backend: RedisBackend, client, redis_server
) -> None:
    """The record names a run that this process cannot compare with anything: that alone proves nothing."""
    client.acl_setuser("deaf", enabled=True, passwords=["+x"], keys=["{events}:*"], commands=["+@all", "-info"])
    try:
        epoch = cursor_of(backend, new()).epoch
        with opened(f"redis://deaf:x@127.0.0.1:{redis_server.port}/0") as deaf:
            for position in (2, 3, 4):
                assert cursor_of(deaf, new()) == Cursor(epoch, position)
                deaf.close()
        assert backend.head() == Cursor(epoch, 4)
    finally:
        client.acl_deluser("deaf")


def test_who_may_not_run_scripts_is_told(client, redis_server) -> None:
    """Before anything is written, with what Redis says."""
    client.acl_setuser("mute", enabled=True, passwords=["+x"], keys=["*"], commands=["+@all", "-evalsha"])
    try:
        with opened(f"redis://mute:x@127.0.0.1:{redis_server.port}/0") as mute:
            with pytest.raises(BackendUnavailable, match=r"nothing was published: Redis at .* says: .*permissions"):
                mute.append([new()])
            assert mute._idle == []
    finally:
        client.acl_deluser("mute")


# What others do to the keys


def test_scripts_that_were_forgotten_are_sent_again(backend: RedisBackend, client) -> None:
    """As after a restart."""
    for number, event in enumerate((new(), new(key="k"), new())):
        client.script_flush()
        assert cursor_of(backend, event).position == number + 1
    client.script_flush()
    assert positions(backend.read(["news"], 0, 10).events) == [1, 2, 3]


async def test_a_tail_whose_script_was_forgotten_goes_on(backend: RedisBackend, client) -> None:
    """It sends the script again."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        client.script_flush()
        await backend.aappend([new()])
        assert positions(await collect(batches, 1)) == [1]


async def test_a_tail_of_a_quiet_log_asks_again_and_again(client, redis_server, caplog) -> None:
    """A wait that ends with nothing new is no event, no fault and no end."""

    def asked() -> int:
        return int(client.info("commandstats")["cmdstat_xread"]["calls"])

    with opened(redis_server.url, timeout=0.2) as backend:
        async with aclosing(backend.tail()) as batches:
            await next_batch(batches)
            waits = asyncio.ensure_future(collect(batches, 1))
            await until(lambda: "cmdstat_xread" in client.info("commandstats"))
            before = asked()
            await until(lambda: asked() >= before + 3)
            assert not waits.done()
            await backend.aappend([new(data="1")])
            assert data_of(await waits) == ["1"]
    assert "cannot be read" not in caplog.text


@pytest.mark.parametrize("keyed", [None, "k"])
@pytest.mark.parametrize("key", ["log", "history:news"])
def test_a_key_of_another_type_is_said_and_nothing_is_written(backend: RedisBackend, client, key, keyed) -> None:
    """All or none: neither the log nor a history has half of it."""
    backend.append([new("other")])
    client.delete(f"{{events}}:{key}")
    client.set(f"{{events}}:{key}", "x")
    with pytest.raises(BackendUnavailable, match=r"nothing was published: Redis at .* says: .*WRONGTYPE"):
        backend.append([new("other", key=keyed), new("news")])
    assert backend.head().position == 1
    assert positions(backend.read(["other"], 0, 10).events) == [1]


def test_foreign_entries_above_the_head_are_no_obstacle(backend: RedisBackend, client) -> None:
    """Redis refuses smaller ids than the last: what is in the way goes, and is said to be gone."""
    backend.append([new(data="1"), new("other")])
    client.xadd("{events}:log", {"any": "thing"})
    client.xadd("{events}:history:news", {"any": "thing"})
    assert positions(backend.read(["news"], 0, 10).events) == [1]
    assert backend.latest(["news"])["news"].data == "1"
    backend.append([new(data="2"), new(data="3")])
    found = backend.read(["news"], 0, 10)
    assert data_of(found.events) == ["2", "3"]
    assert found.floors == {"news": 2}


def test_foreign_entries_in_a_history_are_passed_over(backend: RedisBackend, client) -> None:
    """Read, latest and both ways of trimming take no harm."""
    backend.append([new(data="1")])
    client.xadd("{events}:history:news", {"any": "thing"}, id="1-5")
    client.xadd("{events}:history:news", {"any": "thing"}, id="2-0")
    client.hset("{events}:meta", "head", 2)
    backend.append([new(data="3")])
    assert data_of(backend.read(["news"], 0, 10).events) == ["1", "3"]
    assert backend.trim(lambda name: Retention(seconds=0)) == 4
    backend.append([new(data="4")])
    client.xadd("{events}:history:news", {"any": "thing"}, id="4-7")
    assert backend.latest(["news"])["news"].data == "4"
    client.xadd("{events}:history:news", {"any": "thing"}, id="5-0")
    client.hset("{events}:meta", "head", 5)
    assert backend.latest(["news"]) == {}


async def test_foreign_entries_in_the_log_neither_end_nor_hurry_the_tail(backend: RedisBackend, client, caplog) -> None:
    """They are removed, once, and what follows arrives."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        await backend.aappend([new(data="1")])
        client.xadd("{events}:log", {"any": "thing"}, id="1-7")
        client.xadd("{events}:log", {"any": "thing"})
        waits = asyncio.ensure_future(collect(batches, 2))
        await until(lambda: client.xlen("{events}:log") == 1)
        await backend.aappend([new(data="2")])
        assert data_of(await waits) == ["1", "2"]
    assert [record for record in caplog.records if "did not write" in record.message]


async def test_entries_that_cannot_be_read_are_a_hole(backend: RedisBackend, client) -> None:
    """The head moves past them, so the hub counts that something is missing, and asks the history."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        with client.pipeline() as together:
            together.xadd("{events}:log", {"h": "nonsense", "d": "x"}, id="1-0")
            together.hset("{events}:meta", "head", 1)
            together.execute()
        batch = await next_batch(batches)
        assert (batch.events, batch.head.position) == ([], 1)


async def test_a_tail_behind_the_end_of_the_log_says_where_it_is(client, redis_server) -> None:
    """What was removed before it was read is a difference between the head and the number of events."""
    with opened(redis_server.url, log_events=100) as backend:
        async with aclosing(backend.tail()) as batches:
            before = (await next_batch(batches)).head
            await backend.aappend([new(data=str(number)) for number in range(1000)])
            batch = await next_batch(batches)
            assert batch.head.position - before.position > len(batch.events) >= 100
            assert batch.events[-1].position == batch.head.position == 1000
        assert len((await backend.aread(["news"], 0, 2000)).events) == 1000


# What is kept


def test_a_history_keeps_what_it_must_and_not_much_more(backend: RedisBackend) -> None:
    """Trimmed now and then while publishing; the floor is the last position that went, not one more."""
    for number in range(100):
        backend.append([new("a", str(number), keep=10), new("b", keep=None)])
    found = backend.read(["a", "b"], 0, 1000)
    kept = [event.position for event in found.events if event.channel == "a"]
    assert 10 <= len(kept) < 10 + scripts.SLACK
    assert kept[-1] == 199
    assert found.floors == {"a": kept[0] - 2}


def test_a_history_has_a_limit_also_without_one(client, redis_server) -> None:
    """`history_events`: memory is bounded whatever the admin says. A lot goes in steps, each publish one."""
    with opened(redis_server.url, history_events=10) as backend:
        backend.append([new(keep=None) for _ in range(500)])
        assert len(backend.read(["news"], 0, 1000).events) < 10 + scripts.SLACK
        backend.append([new()])
        assert client.xlen("{events}:history:news") < 10 + scripts.SLACK
    with opened(redis_server.url) as backend:
        backend.append([new("long") for _ in range(1500)])
        backend.append([new("long", keep=5)])
        assert client.xlen("{events}:history:long") == 1501 - scripts.TRIM_LIMIT


def test_what_is_not_kept_is_said_to_be_missing(backend: RedisBackend) -> None:
    """A channel that keeps nothing has a floor at its newest event; control messages have neither."""
    backend.append([new("a"), new("a", keep=0)])
    backend.append([new(CONTROL_CHANNEL, keep=0)])
    backend.append([new("b", keep=0), new(CONTROL_CHANNEL)])
    found = backend.read(["a", "b", CONTROL_CHANNEL], 0, 10)
    assert positions(found.events) == [1]
    assert found.floors == {"a": 2, "b": 4}
    assert backend.channels() == ["a"]


def test_a_large_read_stops_early_and_says_so(backend: RedisBackend) -> None:
    """Redis serves others meanwhile, and no answer is larger than some events above a megabyte."""
    backend.append([new(data="x" * 300_000) for _ in range(10)])
    found = backend.read(["news"], 0, 100)
    assert positions(found.events) == [1, 2, 3, 4]
    assert found.more
    assert positions(backend.read(["news"], 8, 100).events) == [9, 10]


def test_a_read_of_many_channels_is_in_order(backend: RedisBackend) -> None:
    """Also where one has most of the events, and there are more than one step reads."""
    names = [f"c{number}" for number in range(40)]
    backend.append([new(names[number % 40 if number % 3 else 0], str(number)) for number in range(900)])
    after, seen = 0, []
    while True:
        found = backend.read(names, after, 70)
        seen += positions(found.events)
        after = seen[-1]
        if not found.more:
            break
    assert seen == list(range(1, 901))
    assert backend.read([], 0, 10).events == []


def test_trimming_by_age_takes_steps(backend: RedisBackend, monkeypatch) -> None:
    """More than one look and more than one call: the old ones go, the young ones stay, the floor is exact."""
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - 100)
    backend.append([new() for _ in range(620)])
    monkeypatch.setattr("time.time", lambda: now)
    backend.append([new("other"), new()])
    assert backend.trim(lambda name: Retention(seconds=50, events=1000)) == 620
    assert backend.read(["news"], 0, 10).floors == {"news": 620}
    assert positions(backend.read(["news"], 0, 10).events) == [622]
    assert backend.trim(lambda name: Retention()) == 0
    assert backend.clear(["never used"]) == 0


async def test_trimming_in_the_background(client, redis_server) -> None:
    """On a thread of its own, in one process at a time, now and then, and not where it is switched off."""
    with opened(redis_server.url, trim_interval=60) as backend, opened(redis_server.url) as never:
        backend._next_trim = 0.0
        backend.append([new() for _ in range(5)])
        ran = threading.Event()

        def retention(name: str) -> Retention:
            ran.set()
            return Retention(events=2)

        backend.maintain(retention)
        assert await off_loop(ran.wait, GUARD)
        await until(lambda: client.xlen("{events}:history:news") == 2 and not backend._trimming.locked())
        # Another process has just been at it.
        backend.append([new()])
        ran.clear()
        backend._next_trim = 0.0
        backend.maintain(retention)
        backend.maintain(retention)
        await until(lambda: not backend._trimming.locked())
        assert not ran.is_set()
        never._next_trim = 0.0
        never.maintain(retention)
        assert not never._trimming.locked()


async def test_trimming_in_the_background_that_fails_is_logged(caplog) -> None:
    """And tried again the next time."""
    with opened("redis://127.0.0.1:1/0", trim_interval=0.5) as backend:
        backend._next_trim = 0.0
        backend.maintain(lambda name: Retention())
        await until(lambda: [record for record in caplog.records if "trimming failed" in record.message])
        await until(lambda: not backend._trimming.locked())


# What is refused


def test_a_full_memory_takes_nothing(caplog) -> None:
    """OOM is an answer: nothing was published. When there is room again, it goes on."""
    with private() as server, opened(server.url) as backend, client_of(server) as client:
        backend.append([new()])
        client.config_set("maxmemory", 1)
        for events in ([new()], [new(key="k"), new()]):
            with pytest.raises(BackendUnavailable, match=r"nothing was published: Redis at .* says: .*maxmemory"):
                backend.append(events)
        assert positions(backend.read(["news"], 0, 10).events) == [1]
        client.config_set("maxmemory", 0)
        assert cursor_of(backend, new(key="k")).position == 2


def test_a_replica_takes_nothing() -> None:
    """Asked once more on a new connection, for it may have been the master until now; then it is said."""
    with private() as master, private() as server, opened(server.url) as backend, client_of(server) as client:
        backend.append([new()])
        client.replicaof("127.0.0.1", master.port)
        with pytest.raises(BackendUnavailable, match=r"nothing was published: Redis at .* says: .*read only replica"):
            backend.append([new()])
        client.replicaof("no", "one")


def test_an_answer_that_is_missing_is_said_to_be(backend: RedisBackend, redis_server) -> None:
    """Nobody knows whether Redis has written it, so it is not written again; with a key the publisher may."""
    with Proxy(redis_server.port) as proxy, opened(f"redis://127.0.0.1:{proxy.port}/0", timeout=1) as cut:
        cut.append([new()])
        proxy.cut()
        with pytest.raises(BackendUnavailable, match=r"nobody knows whether this was published.*with a key"):
            cut.append([new()])
    assert backend.head().position == 1


async def test_reads_wait_for_each_other_only_so_long(backend: RedisBackend, redis_server) -> None:
    """Four at a time on a loop that follows the log; a fifth is told so, and none is left hanging."""
    with Proxy(redis_server.port) as proxy:
        with opened(f"redis://127.0.0.1:{proxy.port}/0", timeout=0.5) as cut:
            async with aclosing(cut.tail()) as batches:
                await next_batch(batches)
                pool = cut._pools[asyncio.get_running_loop()]
                for _ in range(redis_log.MAX_READING):
                    await pool.room.acquire()
                with pytest.raises(BackendUnavailable, match="4 other reads"):
                    await cut.ahead()
                for _ in range(redis_log.MAX_READING):
                    pool.room.release()
                proxy.cut()
                with pytest.raises(BackendUnavailable, match=r"no answer within 0.5 s|cannot be reached"):
                    await cut.ahead()


async def test_connections_that_were_closed_while_idle(backend: RedisBackend, client) -> None:
    """Are opened again, for reading and for publishing, and nobody is bothered."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        await asyncio.gather(*(backend.ahead() for _ in range(3)))
        await backend.aappend([new()])
        client.client_kill_filter(_type="normal", skipme=True)
        assert (await backend.ahead()).position == 1
        await backend.aappend([new()])
        assert positions(await collect(batches, 2)) == [1, 2]


def test_a_connection_with_an_answer_that_nobody_read_is_not_used(backend: RedisBackend) -> None:
    """It would be taken for the answer to what is asked next."""
    backend.head()
    (idle,) = backend._idle
    idle.send_command("PING")
    assert idle.can_read(timeout=GUARD)
    assert cursor_of(backend, new()).position == 1
    assert backend._idle != [idle]


def test_a_child_uses_no_connection_of_its_parent(backend: RedisBackend) -> None:
    """Nor does it close one: whatever has the number of another process is left alone."""
    backend.head()
    parents, pools = backend._idle, weakref.ref(backend._pools)
    backend._pid = 0
    assert cursor_of(backend, new()).position == 1
    assert len(parents) == len(backend._idle) == 1
    assert parents[0] is not backend._idle[0]
    parents[0].send_command("PING")
    assert parents[0].read_response() == b"PONG"
    # As garbage they would be closed on the parent's event loop.
    assert pools() is not None


async def test_an_error_of_ours_is_no_fault_of_the_connection(backend: RedisBackend, client) -> None:
    """What Redis refuses is raised, and the connection is used again; an error in between ends it."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        await backend.ahead()
        backend.append([new()])
        client.delete("{events}:history:news")
        client.set("{events}:history:news", "x")
        with pytest.raises(BackendUnavailable, match=r"the log cannot be read: Redis at .* says: .*WRONGTYPE"):
            await backend.aread(["news"], 0, 10)
        assert len(backend._pools[asyncio.get_running_loop()].idle) == 1
        with pytest.raises(TypeError):
            await backend.aread([3], 0, 10)  # type: ignore[list-item]
        with pytest.raises(TypeError):
            backend.read([3], 0, 10)  # type: ignore[list-item]
        assert (await backend.ahead()).position == 1


def test_a_process_keeps_only_so_many_connections(backend: RedisBackend, client, monkeypatch) -> None:
    """What many threads have opened at once is closed again."""
    monkeypatch.setattr(redis_log, "MAX_IDLE", 2)
    barrier = threading.Barrier(5)

    def steps():
        (reply,) = yield [("PING",)]
        barrier.wait(GUARD)
        return reply

    in_threads(*[partial(backend._run_steps, steps, "x")] * 5)
    assert len(backend._idle) == 2


async def test_a_closed_backend_lets_go_of_what_its_loops_read_with(backend: RedisBackend) -> None:
    """On the loop's own thread; and a loop that is gone is passed over."""
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
        await backend.ahead()
        pool = backend._pools[asyncio.get_running_loop()]
        assert pool.idle
        backend.close()
        await until(lambda: not pool.idle)
        assert (await backend.ahead()).position == 0
    gone = asyncio.new_event_loop()
    gone.close()
    backend._pools[gone] = pool
    backend.close()


async def test_a_fault_of_our_own_is_logged_with_its_trace(backend: RedisBackend, monkeypatch, caplog) -> None:
    """The tail tries again all the same, and says when it works."""
    broken = threading.Event()
    steps = RedisBackend._tail_steps

    def fail_once(self, *args, **kwargs):
        if not broken.is_set():
            broken.set()
            raise ZeroDivisionError
        return steps(self, *args, **kwargs)

    monkeypatch.setattr(RedisBackend, "_tail_steps", fail_once)
    async with aclosing(backend.tail()) as batches:
        await next_batch(batches)
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
    assert "can be read again" in caplog.records[1].message


# Confirmation


def test_waiting_for_replicas() -> None:
    """Enough of them: published. Too few: it says what has happened, and that a key makes repeating safe."""
    with private() as master, private("--replicaof", "127.0.0.1", str(master.port)) as replica:
        with client_of(replica) as client:
            wait_for(lambda: client.info("replication").get("master_link_status") == "up")
        with opened(master.url, wait_replicas=1) as backend:
            assert backend.append([new()])[0].id == str(backend.head())
            replica.kill()
        with opened(master.url, wait_replicas=1) as backend:
            with pytest.raises(BackendUnavailable, match=r"published, but not confirmed by 1 replicas.*with a key"):
                backend.append([new(key="k")])
            assert backend.head().position == 2
            assert len(backend._idle) == 1


def test_waiting_for_the_disk(backend: RedisBackend, client, redis_server) -> None:
    """A server that knows no WAITAOF is named before anything is written; one that is silent about itself, after."""
    with opened(redis_server.url, wait_aof=True) as waiting:
        waiting.head()
        if waiting._server.version >= redis_log.VERSION_WITH_WAITAOF:
            assert waiting.append([new()])[0].id == str(backend.head())
        else:
            with pytest.raises(InvalidEventBackend, match=r"\['wait_aof'\] is True: it must be False with Redis"):
                waiting.append([new()])
            assert waiting.head().position == 0
            waiting._server = redis_log.Server()
            with pytest.raises(BackendUnavailable, match=r"published, but not confirmed.*says: .*WAITAOF"):
                waiting.append([new()])
            assert waiting.head().position == 1
        # What it makes of the answers, on whatever server this runs.
        for answer, is_confirmed in (([1, 0], True), ([0, 0], False)):
            steps = waiting._confirm()
            assert next(steps) == [("WAITAOF", 1, 0, 1000)]
            with pytest.raises(StopIteration if is_confirmed else BackendUnavailable):
                steps.send([answer])


# Checks


def test_checks_connect_only_when_they_may(backend: RedisBackend, client) -> None:
    """A sound server gives no message, and is asked only where databases may be."""
    assert backend.check() == []
    assert backend.check(["default"]) == []
    assert client.keys() == []
    with opened("redis://127.0.0.1:1/0") as nobody:
        assert nobody.check() == []
        (message,) = nobody.check(["default"])
        assert message.id == "events.W005"
        assert "127.0.0.1:1" in message.msg


def test_a_policy_that_may_drop_the_log_is_said(caplog) -> None:
    """By the checks, and once in the log of a process."""
    with private("--maxmemory-policy", "allkeys-lru") as server, opened(server.url) as backend:
        (message,) = backend.check(["default"])
        assert message.id == "events.W004"
        assert "allkeys-lru" in message.msg
        in_threads(*[backend.head] * 3)
        backend.close()
        backend.head()
        said = [record for record in caplog.records if "allkeys-lru" in record.getMessage()]
        assert len(said) == 1


@pytest.mark.parametrize("wait_aof, needed", [(False, "6.2"), (True, "7.2")])
def test_a_server_that_is_too_old_is_an_error(
    backend: RedisBackend, redis_server, monkeypatch, wait_aof, needed
) -> None:
    """Named with its version, and the one that is needed."""

    def say_so(self):
        yield [("PING",)]
        return redis_log.Server(run="x", version=(6, 0))

    monkeypatch.setattr(RedisBackend, "_ask_server", say_so)
    with opened(redis_server.url, wait_aof=wait_aof) as old:
        (message,) = old.check(["default"])
    assert message.id == "events.E006"
    assert "is 6.0, too old. " in message.msg
    assert f"came with {needed}" in message.msg


# The outbox


@pytest.fixture
def outbox(client, redis_server, transactional_db) -> Iterator[RedisBackend]:
    with opened(redis_server.url, outbox=True) as backend:
        yield backend


def test_an_outbox_joins_transactions(outbox: RedisBackend, backend: RedisBackend) -> None:
    """Nothing of one that is rolled back; all of one that commits, with the cursors filled in."""  # promise 5
    assert (outbox.joins_transactions, outbox.database) == (True, "default")
    assert (backend.joins_transactions, backend.database) == (False, None)
    with transaction.atomic():
        outbox.append([new(data="never", key="k")])
        transaction.set_rollback(True)
    with transaction.atomic():
        one, two = outbox.append([new(data="1", key="k"), new("b", "2", is_json=True, type="t", keep=3)])
        assert (one.id, two.id) == (None, None)
        assert outbox.head().position == 0
    epoch = outbox.head().epoch
    assert (one.id, two.id) == (f"{epoch}-1", f"{epoch}-2")
    assert not Outbox.objects.exists()
    (event,) = outbox.read(["b"], 0, 10).events
    assert (event.type, event.is_json, event.data) == ("t", True, "2")
    again = outbox.append([new(data="again", key="k")])[0]
    assert (again.id, again.repeated) == (one.id, True)


def test_an_outbox_waits_for_redis(transactional_db, monkeypatch, caplog) -> None:
    """Publishing goes on; what waits is relayed in order, once, when Redis is back."""  # promise 18
    with private(*EVERY_WRITE) as server, opened(server.url, outbox=True) as backend:
        backend.append([new(data="1")])
        server.kill()
        two = backend.append([new(data="2")])[0]
        # A second later nobody tries again at once.
        three = backend.append([new(data="3")])[0]
        assert (two.id, three.id) == (None, None)
        # Nor is it said again and again.
        assert backend._outbox is not None
        backend._outbox.relay(backend._append)
        assert Outbox.objects.count() == 2
        server.start()
        follower = Follower(backend, 2)
        assert data_of(follower.events()) == ["2", "3"]
        assert cursor_of(backend, new(data="4")).position == 4
    said = [record.message for record in caplog.records if record.name == "events.backends.outbox"]
    assert len(said) == 2
    assert "wait in the outbox" in said[0]
    assert "relayed again" in said[1]


def test_an_outbox_row_that_was_relayed_before_is_not_relayed_again(outbox: RedisBackend, monkeypatch) -> None:
    """A process that died between the log and the delete has left it there."""
    send = outbox._append

    def send_and_die(events, tokens=None):
        send(events, tokens)
        raise BackendUnavailable("killed")

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "_append", send_and_die)
        assert outbox.append([new(data="1", key="k")])[0].id is None
    assert Outbox.objects.count() == 1
    assert positions(outbox.read(["news"], 0, 10).events) == [1]
    assert outbox._outbox is not None
    outbox._outbox.relay(outbox._append)
    assert Outbox.objects.count() == 0
    assert positions(outbox.read(["news"], 0, 10).events) == [1]


def test_an_outbox_row_that_another_process_relays(outbox: RedisBackend, redis_server) -> None:
    """The publisher's result has its cursor all the same, and is no repeat; that of a used key is one."""
    outbox.append([new(data="0", key="used")])
    with opened(redis_server.url, outbox=True) as other, transaction.atomic():
        assert other._outbox is not None
        # Runs first: between the commit and the publisher's own look.
        transaction.on_commit(partial(other._outbox.relay, other._append))
        one, two = outbox.append([new(data="1"), new(data="2", key="used")])
    assert not Outbox.objects.exists()
    epoch = outbox.head().epoch
    assert (one.id, one.repeated) == (f"{epoch}-2", False)
    assert (two.id, two.repeated) == (f"{epoch}-1", True)
    assert data_of(outbox.read(["news"], 0, 10).events) == ["0", "1"]


def test_an_outbox_without_its_table_publishes_nothing(outbox: RedisBackend, monkeypatch) -> None:
    """The database's own error is said."""
    monkeypatch.setattr(Outbox._meta, "db_table", "no_such_table")
    with pytest.raises(
        BackendUnavailable, match=r"nothing was published: the database 'default' says: .*no_such_table"
    ):
        outbox.append([new()])


def test_an_outbox_with_autocommit_switched_off(outbox: RedisBackend) -> None:
    """There is no hook for the commit: whoever looks next relays."""
    transaction.set_autocommit(False)
    try:
        outbox.append([new()])
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert Outbox.objects.count() == 1
    outbox.append([new()])
    assert positions(outbox.read(["news"], 0, 10).events) == [1, 2]


async def test_a_tail_relays_what_is_left_over(outbox: RedisBackend, transactional_db, monkeypatch) -> None:
    """Of a process that died right after its commit, whichever it was."""
    monkeypatch.setattr(outboxes, "INTERVAL", 0.05)
    row = {"channel": "news", "type": "message", "data": "last words", "is_json": False, "created_at": 1.0}
    async with aclosing(outbox.tail()) as batches:
        await next_batch(batches)
        await Outbox.objects.acreate(log="default", token="t", **row)
        await Outbox.objects.acreate(log="another", token="u", **row)
        assert data_of(await collect(batches, 1)) == ["last words"]
    for thread in threading.enumerate():
        if thread.name == "events-relay":
            await off_loop(thread.join, GUARD)
    assert [row.log async for row in Outbox.objects.all()] == ["another"]
    assert str(await Outbox.objects.afirst()) == "news u"
