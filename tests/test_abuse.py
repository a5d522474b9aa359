"""What clients can do that mean no good: names without end, requests in halves, floods, and forged lines of a log."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from . import test_servers
from .growth import LITTLE, no_name
from .servers import (
    FOUR,
    GUARD,
    RESPONSE_LANE,
    ROOT,
    RawStream,
    Server,
    Servers,
    looked_after,
    opened,
    stream_path,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from events.models import Channel

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured

#: Seconds within which others are served, whatever somebody else does: less than a keep-alive.
AT_ONCE = 10


#: Code for another process of the site: the session of a new user, who may publish.
SIGN_IN = """
from django.contrib.auth.models import Permission, User
from django.test import Client

user = User.objects.create_user(name)
user.user_permissions.set(Permission.objects.filter(codename="publish_to_channel"))
client = Client()
client.force_login(user)
result = client.cookies["sessionid"].value
"""


# Names without end


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_names_that_clients_make_up_are_not_kept(make_channel: Callable[..., Channel]) -> None:
    """Of no request, however it is answered, nor of a stream: not in a table, a ring, a count or a cache."""
    make_channel("public.*")
    make_channel("staff.*", access="staff")
    # In a process of its own: what other tests have left, and what measures them, grows by itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.growth"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    assert len(grown) > 10
    # Less than a name, which is one block of memory at least, for each request.
    assert {asked: blocks for asked, blocks in grown.items() if blocks >= LITTLE} == {}


# Requests in halves


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with closing(Servers(tmp_path_factory.mktemp("abuse"))) as servers:
        yield servers


@pytest.fixture(params=FOUR)
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    yield from looked_after(servers[request.param])


#: How many clients send a half of something, and how many follow as many channels as they may.
CLIENTS, MANY = 200, 300
HALF_A_HEAD = b"GET /events/stream/?channel=public.half HTTP/1.1\r\nHost: localhost\r\nX-Half: "
HALF_A_BODY = (
    b"POST /events/stream/?channel=public.half HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 2000\r\n\r\n" + 1000 * b"x"
)


async def debug(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = await server.ajson("/debug/")
    return found


async def test_requests_in_halves_hold_no_thread_and_delay_nobody(server: Server, name: str) -> None:
    """200 clients stop in the middle of a head, 200 in the middle of a body: a stream is served as ever."""
    async with opened(server, name):
        await server.site.apublish(name, "what is loaded on first use is loaded")
        before = await debug(server)
    clients: list[socket.socket] = []
    try:
        for sent in CLIENTS * [HALF_A_HEAD] + CLIENTS * [HALF_A_BODY]:
            client = socket.create_connection(("127.0.0.1", server.port), GUARD)
            clients.append(client)
            client.sendall(sent)

        async def taken() -> dict[str, Any] | None:
            found = await debug(server)
            # Hypercorn waits five seconds for a head; nobody but nginx limits the time of a body.
            return found if found["files"] >= before["files"] + CLIENTS else None

        held = await until(taken, "the server has taken the connections")
        assert held["threads"] < before["threads"] + 10, held["thread_names"]
        assert held["streams"] == 0
        async with opened(server, name, count=3) as streams:
            await server.site.apublish(name, "as ever")
            for stream in streams:
                assert (await stream.next(AT_ONCE)).data == "as ever"
    finally:
        for client in clients:
            client.close()

    async def let_go() -> bool:
        found = await debug(server)
        # Hypercorn keeps some tasks of each request for five seconds, those of these looks, too.
        is_gone = all(found[kind] < before[kind] + 20 for kind in ("tasks", "files"))
        return is_gone and bool(found["unfinished"] == 0)

    await until(let_go, "nothing is left of them", every=1)


async def test_streams_of_many_channels_go_and_delay_nobody(servers: Servers) -> None:
    """300 streams of 50 channels each, under a prefix that is open to all, are opened and closed: others are served."""
    server = servers["uvicorn"]

    async def look() -> dict[str, Any]:
        return await asyncio.wait_for(debug(server), AT_ONCE)

    streams = await asyncio.gather(
        *(RawStream.open(server.port, stream_path(*(f"public.{no_name()}" for _ in range(50)))) for _ in range(MANY))
    )
    try:
        assert (await look())["streams"] == MANY
    finally:
        for stream in streams:
            stream.abort()

    async def gone() -> bool:
        return bool((await look())["streams"] == 0)

    await until(gone, "they are closed")


# Floods

#: How many streams somebody tries to open, and how many an address and a user may have.
FLOOD, PER_ADDRESS, PER_USER = 200, 20, 10


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that let few of an address or a user in."""
    settings = {"MAX_STREAMS_PER_ADDRESS": PER_ADDRESS, "MAX_STREAMS_PER_USER": PER_USER}
    with closing(Servers(tmp_path_factory.mktemp("strict"), EVENTS_TEST_SETTINGS=json.dumps(settings))) as servers:
        yield servers


@pytest.fixture(params=[*FOUR, f"uvicorn{RESPONSE_LANE}"])
async def limited(request: pytest.FixtureRequest, strict: Servers) -> AsyncIterator[Server]:
    """One of them, which has let nobody in yet."""
    server = strict[request.param]
    await only(server, 0)
    for checked in looked_after(server):
        yield checked


async def only(server: Server, count: int) -> None:
    """Wait until so many streams are open."""

    async def is_so() -> bool:
        return bool((await debug(server))["streams"] == count)

    await until(is_so, f"{count} streams are open")


async def flood(server: Server, name: str, count: int, headers: list[tuple[str, str]]) -> tuple[list[RawStream], int]:
    """Open streams. Returns those that get what is published, and how many were put off."""
    streams = await asyncio.gather(*(RawStream.open(server.port, stream_path(name), headers) for _ in range(count)))
    data = no_name()
    await server.site.apublish(name, data)
    admitted = []
    for stream in streams:
        try:
            assert (await stream.next()).data == data
            admitted.append(stream)
        except EOFError:
            # By a stream that ends at once, and says when to come back: 200, for anything else is for good.
            assert (stream.status, stream.ended) == (200, True)
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert len(stream.retries) == 1
            assert 5000 <= stream.retries[0] <= 20_000
            await stream.close()
    return admitted, count - len(admitted)


@pytest.mark.parametrize("whose", ["address", "user"])
async def test_a_flood_of_one_address_or_user_is_put_off(limited: Server, whose: str) -> None:
    """As many as are allowed get in; the others cost one log line, and get in when there is room."""
    if whose == "user":
        name, most = f"signed-in.{no_name()}", PER_USER
        session = await limited.site.arun(SIGN_IN, name=name)
        headers = [("Cookie", f"sessionid={session}")]
    else:
        name, most, headers = f"public.{no_name()}", PER_ADDRESS, []
    limit = f"MAX_STREAMS_PER_{whose.upper()}"
    mark = limited.mark()
    admitted, put_off = await flood(limited, name, FLOOD, headers)
    try:
        assert (len(admitted), put_off) == (most, FLOOD - most)
        assert (await debug(limited))["limits"][f"{limit} {name}"] == FLOOD - most
        lines = [line for line in limited.log(mark).splitlines() if f"limit={limit}" in line]
        # One in ten seconds.
        assert 1 <= len(lines) <= 3
        assert f"limit={limit} channels={name}" in lines[0]
        assert f" {whose}='" in lines[0]
        for stream in admitted[:5]:
            stream.abort()
        await only(limited, most - 5)
        more, put_off = await flood(limited, name, 6, headers)
        admitted += more
        assert (len(more), put_off) == (5, 1)
    finally:
        for stream in admitted:
            stream.abort()


# Behind a proxy

DEPLOYING = Path(__file__).resolve().parent.parent / "docs" / "deploying.md"
#: What clients of the documentation's nginx are told that ask too often, or for too much.
LATER = b"retry: 20000\n: later\n"


def documented_nginx() -> str:
    """The template of `tests.test_servers` with what the documentation tells nginx of floods, at another pace."""
    chapter = DEPLOYING.read_text().partition("## Floods and slow clients")[2]
    block = chapter.partition("```nginx\n")[2].partition("```")[0]
    block = block.replace("http://127.0.0.1:8000", "http://127.0.0.1:UPSTREAM").replace("_timeout 10s", "_timeout 1s")
    in_http, in_server = (
        part.replace("{", "{{").replace("}", "}}").replace("UPSTREAM", "{upstream}")
        for part in block.split("# In server")
    )
    template = test_servers.NGINX.replace("    gzip on;", f"    gzip on;\n{in_http}", 1)
    return template.replace("        location / {{", f"# {in_server}\n        location / {{{{", 1)


@pytest.fixture
async def nginx(strict: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Server, int]]:
    """A server, and the port of an nginx in front of it that is set up as documented."""
    monkeypatch.setattr(test_servers, "NGINX", documented_nginx())
    # One that no flood is tried on: of each limit there is a line in ten seconds, which another test may have had.
    server = strict["plain_uvicorn"]
    await only(server, 0)
    async with test_servers.behind_nginx(server, tmp_path) as port:
        yield server, port


async def test_the_documented_nginx_lets_no_client_choose_its_address(nginx: tuple[Server, int], name: str) -> None:
    """Streams that each say they are from somewhere else are of one address, and ask too often for nginx as well."""
    server, port = nginx
    streams = []
    try:
        for number in range(2 * PER_ADDRESS):
            headers = [("X-Forwarded-For", f"203.0.113.{number}")]
            streams.append(await RawStream.open(port, stream_path(name), headers))
        await only(server, PER_ADDRESS)
        assert all(stream.status == 200 for stream in streams)
        assert "address='127.0.0.1'" in server.log()
        assert "203.0.113" not in server.log()
        for _ in range(2 * FLOOD):
            stream = await RawStream.open(port, stream_path(name))
            streams.append(stream)
            if await stream.read() == LATER:
                break
        else:
            raise AssertionError("nginx lets everybody ask as often as they like")
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert await stream.rest() == LATER
    finally:
        for stream in streams:
            stream.abort()


async def test_the_documented_nginx_waits_for_no_half_request(nginx: tuple[Server, int]) -> None:
    """It ends who is slow with a head or a body, and takes no body that is too large; the server sees none of them."""
    server, port = nginx
    before = (await debug(server))["tasks"]
    for sent in (HALF_A_HEAD, HALF_A_BODY.replace(b"2000", b"1023")):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), GUARD)
        assert answer == b"" or b" 408 " in answer.splitlines()[0]
        writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /events/publish/news/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n")
    assert b" 413 " in await asyncio.wait_for(reader.readline(), GUARD)
    writer.close()
    assert (await debug(server))["tasks"] <= before


# Text made to look like a log

FORGED = "FORGED WARNING events.limits: limit reached"
#: Each is a line's end for somebody who reads logs: a terminal, an editor, a program.
HOSTILE = [
    f"x{end}{FORGED}" for end in ("\n", "\r\n", "\r", "\0", "\x0b\x0c", "\x1b[2K\x1b[1G", "\x85", "\u2028", "\u2029")
]
#: What no log may have but as an escape: all of these, and the rest of their kind.
UNSEEN = re.compile(r"[^\t\n\x20-\x7e\xa0-\u2027\u202a-\U0010ffff]")
LOUD = """
import logging
for name in ("events", "django.request", "django.security"):
    logging.getLogger(name).setLevel(logging.DEBUG)
"""


def hostile_requests(text: str, session: str) -> Iterator[tuple[str, str, list[tuple[str, str]], str]]:
    """
    Method, path, headers and body of requests that have the text in every place where a client can put it.

    `session` is that of somebody who may publish.
    """
    raw, path = text, quote(text, safe="")
    for method, url in [
        ("GET", f"/{path}"),
        ("GET", f"/events/{path}"),
        ("GET", f"/events/?{path}={path}"),
        ("GET", f"/events/channels/{path}/"),
        ("GET", f"/events/stream/?channel={path}"),
        ("GET", f"/events/stream/?channel=public.log&from={path}"),
        ("GET", f"/events/stream/?channel=public.log&envelope={path}"),
        ("GET", f"/events/stream/?channel=public.log&replay={path}"),
        ("GET", f"/events/stream/?channel=public.log&ticket={path}"),
        ("GET", f"/events/stream/?channel=public.log&last_event_id={path}&{path}={path}"),
        ("POST", f"/events/stream/?channel={path}"),
        ("GET", f"/events/history/{path}/"),
        ("GET", f"/events/history/public.log/?after={path}&limit={path}"),
        ("POST", f"/events/publish/{path}/"),
        ("GET", f"/events/publish/{path}/"),
    ]:
        yield method, url, [], ""
    for header in [
        *("Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cookie", "Host", "Idempotency-Key"),
        *("Last-Event-ID", "Origin", "Referer", "User-Agent", "X-CSRFToken", "X-Forwarded-For", "X-Forwarded-Host"),
    ]:
        for value in (raw, f"Bearer {raw}", f"sessionid={raw}"):
            # Twice: the second of an address is put off.
            for _ in range(2):
                yield "GET", "/events/stream/?channel=public.log", [(header, value)], ""
            yield "POST", "/events/publish/public.log/", [(header, value)], ""
    signed_in = ("Cookie", f"sessionid={session}")
    for method, url in (("GET", "/events/"), *2 * [("GET", "/events/stream/?channel=public.log")]):
        yield method, url, [signed_in], ""
    for header in ("Origin", "Referer", "X-CSRFToken", "Content-Type"):
        yield "POST", "/events/publish/public.log/", [signed_in, (header, raw)], ""
    body = json.dumps({"data": raw, "event": raw, "key": raw, raw: raw})
    for media_type in ("application/json", "text/plain", f"text/plain; charset={raw}", raw):
        yield "POST", "/events/publish/public.log/", [("Content-Type", media_type)], body
    yield f"GET{raw}", "/events/", [], ""


@pytest.fixture
def loud(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that logs every refusal, and lets in one of each address."""
    (tmp_path / "loud.py").write_text(LOUD)
    settings = json.dumps({"MAX_STREAMS_PER_ADDRESS": 1, "MAX_STREAMS_PER_USER": 1, "CORS_ORIGINS": ["https://a.test"]})
    environment = {"EVENTS_TEST_IMPORT": "loud", "PYTHONPATH": str(tmp_path), "EVENTS_TEST_SETTINGS": settings}
    with closing(Servers(tmp_path, **environment)) as servers:
        yield servers[request.param]


@pytest.mark.parametrize("loud", FOUR, indirect=True)
async def test_no_request_writes_a_line_of_its_own_into_the_log(loud: Server) -> None:
    """Whatever ends a line, in whatever place, a user's name too: it is escaped, left out, or the request refused."""
    held: list[RawStream] = []
    try:
        for text in HOSTILE:
            session = await loud.site.arun(SIGN_IN, name=text.replace("\0", ""))
            for method, path, headers, body in hostile_requests(text, session):
                length = [("Content-Length", str(len(body.encode())))] if body else []
                stream = await RawStream.request(loud.port, path, [*headers, *length], method=method)
                held.append(stream)
                stream.writer.write(body.encode())
                # Some servers answer, some close, and daphne waits where a head has ended early.
                with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError):
                    await stream.read_head(1)
                if len(held) > 3:
                    held.pop(0).abort()
        assert loud.get("/blank/")[0] == 200
    finally:
        for stream in held:
            stream.abort()
    log = loud.log()
    print(log[-8000:])
    assert "limit reached: limit=MAX_STREAMS_PER_ADDRESS" in log
    assert "Forbidden: /events/stream/" in log
    assert "limit reached: limit=MAX_STREAMS_PER_USER" in log
    assert "Internal Server Error" not in log
    assert not [line for line in log.splitlines() if line.startswith(FORGED)]
    assert not UNSEEN.findall(log)
