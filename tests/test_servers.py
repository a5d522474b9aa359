"""Streams through real servers and proxies: what reaches a client, and what is left when it has gone."""

from __future__ import annotations

import asyncio
import http.client
import re
import uuid
from contextlib import asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, Any

import pytest

from .clients import read_by_curl, read_by_httpx
from .plugins import require_program
from .servers import (
    BOTH_LANES,
    GUARD,
    RESPONSE_LANE,
    RawStream,
    Server,
    Servers,
    free_port,
    looked_after,
    opened,
    stream_path,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

#: Only clients of servers run here.
pytestmark = pytest.mark.unmeasured


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with closing(Servers(tmp_path_factory.mktemp("servers"))) as servers:
        yield servers


@pytest.fixture(params=["daphne", "uvicorn-2"])
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    yield from looked_after(servers[request.param])


@pytest.fixture(params=BOTH_LANES)
def single(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """A server that is one process, so that what it counts is all there is."""
    yield from looked_after(servers[request.param])


# Bytes in time


@pytest.mark.parametrize(
    "server",
    ["daphne", "uvicorn-2", "hypercorn", "granian", f"daphne{RESPONSE_LANE}", f"uvicorn-2{RESPONSE_LANE}"],
    indirect=True,
)
async def test_ten_events_arrive_as_ten_timely_reads(server: Server, name: str) -> None:
    """The first bytes come before there is any event, and then each event comes before the next is published."""
    # promise 8
    headers = [("Accept-Encoding", "gzip, deflate, br")]
    stream = await RawStream.open(server.port, stream_path(name), headers)
    try:
        await stream.begin()
        assert re.fullmatch(rb"retry: [0-9]+\n: stream\n", stream.body)
        assert stream.headers["content-encoding"] == "identity"
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-cache, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        for number in range(10):
            cursor = await server.site.apublish(name, f"event {number}")
            # Less than the time of a keep-alive, which would flush what is buffered.
            assert await stream.read(10) == f"id: {cursor}\ndata: event {number}\n\n".encode()
    finally:
        stream.abort()


async def test_curl_that_asks_for_compression_reads_events_in_time(server: Server, name: str) -> None:
    """`curl --compressed` shows each event as it is published, with GZipMiddleware in the site."""
    # promise 8
    await read_by_curl(server, server.port, name)


async def test_httpx_reads_events_in_time(server: Server, name: str) -> None:
    """httpx, which asks for every compression it knows, reads each event as it is published."""
    # promise 8
    await read_by_httpx(server, name)


NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_proxied any;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
        }}
    }}
}}
"""


@asynccontextmanager
async def behind_nginx(server: Server, folder: Path) -> AsyncIterator[int]:
    """The port of an nginx in front of the server, which buffers as it does when nothing else is said."""
    program = require_program("nginx")
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, port=port, upstream=server.port))
    nginx = await asyncio.create_subprocess_exec(
        *(program, "-e", "stderr", "-p", str(folder), "-c", str(configuration)), stdout=asyncio.subprocess.DEVNULL
    )

    async def answers() -> bool:
        assert nginx.returncode is None, "nginx did not start"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await until(answers, "nginx answers")
        yield port
    finally:
        with suppress(ProcessLookupError):
            nginx.kill()
        await asyncio.wait_for(nginx.wait(), GUARD)


async def test_nginx_that_buffers_by_default_passes_events_on_in_time(
    server: Server, name: str, tmp_path: Path
) -> None:
    """Behind nginx as it comes, each event reaches `curl --compressed` before the next is published."""
    # promise 8
    async with behind_nginx(server, tmp_path) as port:
        await read_by_curl(server, port, name)


# Methods and interfaces


def test_head_answers_headers_and_the_socket_stays_usable(server: Server, name: str) -> None:
    """HEAD on the stream ends at once, and the same connection carries the next requests."""
    # promise 12
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=GUARD)) as connection:
        connection.connect()
        socket = connection.sock
        for _ in range(2):
            connection.request("HEAD", stream_path(name))
            response = connection.getresponse()
            assert response.status == 200
            assert response.getheader("Content-Type", "").startswith("text/event-stream")
            assert response.read() == b""
            connection.request("GET", "/blank/")
            response = connection.getresponse()
            assert response.status == 200
            assert response.read().endswith(b"<title>blank</title>")
            assert connection.sock is socket, "the server closed the connection"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_other_methods_are_not_allowed(server: Server, name: str, method: str) -> None:
    """The stream is read only, and says which methods it knows."""
    # promise 12
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=GUARD)) as connection:
        connection.request(method, stream_path(name), body=b"{}", headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        assert response.status == 405
        assert {allowed.strip() for allowed in response.getheader("Allow", "").split(",")} == {"GET", "HEAD"}


@pytest.mark.parametrize("server", ["wsgi", "wsgi_gunicorn", "wsgi_granian", "wsgi_hypercorn"], indirect=True)
def test_wsgi_is_answered_with_501_at_once(server: Server, name: str) -> None:
    """Under WSGI the stream says what to do instead of holding the only worker, and the next request is served."""
    # promise 11
    for _ in range(3):
        status, body = server.get(stream_path(name))
        assert status == 501
        assert "ASGI" in body
        assert "daphne" in body
    assert server.get("/blank/")[0] == 200


# What is left


async def held(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = await server.ajson("/debug/")
    return found


async def abort_some(server: Server, path: str, count: int, turn: int) -> None:
    """Connect so many times at once and vanish: before the answer, with its first bytes, or in the middle of events."""
    streams = await asyncio.gather(*(RawStream.request(server.port, path) for _ in range(count)))
    for number, stream in enumerate(streams):
        moment = (number + turn) % 4
        if moment == 0:
            await stream.writer.drain()
        else:
            await stream.read_head()
            if moment > 1:
                await stream.begin()
            if moment == 3:
                await stream.close()
        stream.abort()


async def test_a_thousand_aborted_connections_leave_nothing_behind(single: Server, name: str) -> None:
    """1,000 clients that connect and vanish leave no stream, task, thread, file or database connection."""
    # promise 14
    path = stream_path(name, from_="earliest")
    async with opened(single, name) as (held_open,):
        # The pools of threads fill, and what is loaded on first use is loaded.
        for turn in range(2):
            await abort_some(single, path, 50, turn)

        # Django finishes a request before the direct lane takes its stream over.
        unfinished = 1 if single.is_in_response_lane else 0

        async def only_one_stream() -> dict[str, Any] | None:
            found = await held(single)
            return found if found["streams"] == 1 and found["unfinished"] == unfinished else None

        before = await until(only_one_stream, "the first clients are gone")
        for turn in range(20):
            await abort_some(single, path, 50, turn)
            if turn % 5 == 0:
                await single.site.apublish(name, f"turn {turn}")

        async def as_before() -> bool:
            found = await held(single)
            last[:] = [found]
            return found["streams"] == 1 and all(
                # The request that asks and a keep-alive connection of nobody's come and go; a leak would be hundreds.
                found[kind] <= before[kind] + 3
                for kind in ("tasks", "threads", "files", "databases", "unfinished")
            )

        last: list[dict[str, Any]] = []
        try:
            await until(as_before, "all is as before")
        except AssertionError:
            raise AssertionError(f"before: {before}\nafter: {last}") from None
        # The stream that stayed has missed nothing of it.
        await single.site.apublish(name, "last")
        assert [event.data for event in await held_open.until("last")] == [f"turn {turn}" for turn in (0, 5, 10, 15)]

    async def nothing() -> bool:
        found = await held(single)
        return found["feeds"] == found["streams"] == found["unfinished"] == 0 and not {"events-tail"} & set(
            found["thread_names"]
        )

    await until(nothing, "the hub has stopped too")


@pytest.mark.parametrize("kind", BOTH_LANES)
async def test_a_fault_in_mid_stream_ends_that_stream_and_is_logged(kind: str, servers: Servers, name: str) -> None:
    """An exception in a stream is logged, its response ends properly, the request is finished, others go on."""
    # promise 14
    server = servers[kind]
    mark = server.mark()
    async with opened(server, name) as (other,):
        stream = await RawStream.open(server.port, f"/fails/?channel={name}")
        try:
            await stream.begin()
            unfinished = 1 if server.is_in_response_lane else 0

            async def unfinished_are(count: int) -> bool:
                return bool((await held(server))["unfinished"] == count)

            # Those of both streams, where it is Django that sends them.
            await until(lambda: unfinished_are(2 * unfinished), "both streams are all that goes on")
            # Any change of a channel lets streams ask again, and this view's answer raises.
            await server.site.arun("Channel.objects.create(name=name)", name=f"other.{uuid.uuid4().hex}")
            await stream.rest()
            assert stream.ended
            assert stream.events == []

            await until(lambda: unfinished_are(unfinished), "request_finished was sent for the stream that failed")
            log = server.log(mark)
            assert f"a stream ended by a fault: channels={name}" in log
            assert "RuntimeError: the view has a fault" in log
            await server.site.apublish(name, "still here")
            assert (await other.next()).data == "still here"
        finally:
            stream.abort()


# Garbage

RESET = "stream-reset"
#: What may be sent as a header, and what then begins a stream anew with one reset.
GARBAGE_IDS = {
    "a number": b"12",
    "words": b"not a cursor",
    "10 kB": b"x" * 10_000,
    "10 kB of digits": b"9" * 10_000,
    "a cursor with 10 kB of digits": b"abcd-" + b"9" * 10_000,
    "Latin-1": b"caf\xe9-1",
    "UTF-8": "日本-1".encode(),
    "broken UTF-8": b"\xff\xfe\xfa",
    "a negative position": b"abcd--1",
    "a fraction": b"abcd-1.5",
    "a leading zero": b"abcd-01",
    "other digits": "abcd-١٢".encode(),
    "tabs": b"a\tb",
    "SQL": b"x'; DROP TABLE events_event; --",
    "a control event": b"x\\n\\nevent: y",
}
PERCENT = {
    "NUL": "%00",
    "CR LF": "a%0d%0adata:%20injected%0d%0a%0d%0a",
    "escape": "%1b[31m",
    "broken UTF-8": "%ff%fe",
    "a lone surrogate": "%ed%a0%80",
    "half an escape": "%",
    "markup": "%3Cscript%3Ealert(1)%3C/script%3E",
    "10 kB": "x" * 10_000,
    "emoji": "%f0%9f%98%80",
    "a line separator": "%e2%80%a8",
    "a plus": "+",
    "spaces": "%20%20",
    "a pattern": "public.*",
    "a path": "../../etc/passwd",
}


async def live_after_reset(server: Server, stream: RawStream, name: str) -> None:
    """One reset comes, and then what is published."""
    await stream.begin()
    reset = await stream.next()
    assert (reset.event, reset.id) == (RESET, "")
    assert reset.json()["reason"] == "unknown"
    assert reset.json()["channels"] == [name]
    marker = uuid.uuid4().hex
    await server.site.apublish(name, marker)
    assert await stream.until(marker) == []


@pytest.mark.parametrize("label", GARBAGE_IDS)
async def test_garbage_as_last_event_id_is_a_fresh_start(label: str, server: Server, name: str) -> None:
    """No `Last-Event-ID` is refused, for a browser would never come back: one reset, then live."""
    # promise 16
    headers = [("Last-Event-ID", GARBAGE_IDS[label])]
    stream = await RawStream.open(server.port, stream_path(name), headers)
    try:
        await live_after_reset(server, stream, name)
    finally:
        stream.abort()


@pytest.mark.parametrize("label", PERCENT)
async def test_garbage_as_parameter_last_event_id_is_a_fresh_start(label: str, server: Server, name: str) -> None:
    """The parameter is treated as the header is."""
    # promise 16
    stream = await RawStream.open(server.port, stream_path(name, last_event_id=PERCENT[label]))
    try:
        await live_after_reset(server, stream, name)
        assert b"injected" not in stream.body
    finally:
        stream.abort()


@pytest.mark.parametrize("value", [b"a\x00b", b"a\x01b", b"a\x7fb", b"a\rb", b"\x0b"])
async def test_control_characters_in_a_header_break_nothing(value: bytes, server: Server, name: str) -> None:
    """What HTTP forbids in a header is refused by the server with a 4xx or a closed connection, or begins anew."""
    # promise 16
    stream = await RawStream.request(server.port, stream_path(name), [("Last-Event-ID", value)])
    try:
        try:
            await stream.read_head(10)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        assert stream.status == 200 or 400 <= stream.status < 500, stream.head
        if stream.status == 200:
            await live_after_reset(server, stream, name)
    finally:
        stream.abort()


def queries(name: str) -> dict[str, tuple[str, set[int]]]:
    """What is wrong, by name: the query, and the answers that are right."""
    wrong = {f"a channel: {label}": (f"channel={value}", {400}) for label, value in PERCENT.items()}
    return {
        **wrong,
        "an unknown channel": ("channel=nobody-made-it", {403}),
        "a forbidden channel": ("channel=staff.secret", {403}),
        "one of two is forbidden": (f"channel={name}&channel=staff.secret", {403}),
        "no channel": ("", {400}),
        "an empty channel": ("channel=", {400}),
        "another word": ("channels=news", {400}),
        "101 characters": ("channel=" + "a" * 101, {400}),
        "51 channels": ("&".join(f"channel=public.{number}" for number in range(51)), {400}),
        "too many parameters": ("&".join(f"p{number}=1" for number in range(1500)), {400}),
        "only ampersands": ("&" * 500, {400}),
        "from": (f"channel={name}&from=yesterday", {400}),
        "from NUL": (f"channel={name}&from=%00", {400}),
        "from CR LF": (f"channel={name}&from=%0d%0aX-Injected:%201", {400}),
        "envelope": (f"channel={name}&envelope=maybe", {400}),
        "envelope in other digits": (f"channel={name}&envelope=%d9%a1", {400}),
        "broken UTF-8 as a name": ("%ff=%ff", {400}),
    }


@pytest.mark.parametrize("label", queries(""))
async def test_garbage_in_the_query_is_refused_with_a_reason(label: str, server: Server, name: str) -> None:
    """A request that cannot be served is a 4xx that says why, with a body that is whole and of plain text."""
    # promise 16
    query, statuses = queries(name)[label]
    stream = await RawStream.open(server.port, f"/events/stream/?{query}")
    try:
        body = await stream.rest()
        assert stream.status in statuses, (stream.head, body)
        assert stream.ended
        assert body
        assert "x-injected" not in stream.headers
        if label != "too many parameters":
            # That one is Django's own refusal.
            assert stream.headers["content-type"] == "text/plain; charset=utf-8"
            assert stream.headers["x-content-type-options"] == "nosniff"
            assert re.fullmatch(rb"[ -~\x80-\xff]{10,400}\n", body), body
    finally:
        stream.abort()


@pytest.mark.parametrize(
    "path",
    [
        b"/events/stream/?channel=\xff\xfe",
        b"/events/stream/?channel=\xe2\x98\x83",
        b"/events/channels/%00/",
        b"/events/channels/%ff%fe/",
        b"/events/channels/%0d%0aX-Injected:%201/",
        b"/events/channels/..%2f..%2fadmin/",
        b"/events/channels/" + b"x" * 8000 + b"/",
        b"/events/channels/staff.secret/",
        b"/events/%00",
    ],
)
async def test_garbage_in_the_path_is_a_4xx(path: bytes, server: Server) -> None:
    """Bytes that are no text, in path or query, are a 4xx too."""
    # promise 16
    stream = await RawStream.request(server.port, path)
    try:
        await stream.read_head()
        body = await stream.rest()
        assert 400 <= stream.status < 500, (stream.head, body)
        assert "x-injected" not in stream.headers
    finally:
        stream.abort()


async def test_the_server_lives_after_all_that(server: Server, name: str) -> None:
    """A hundred broken requests at once later, an ordinary stream works as ever."""

    # promise 16
    async def throw(number: int) -> None:
        garbage = bytes((number * 7 + index * 31) % 256 for index in range(300)).replace(b"\n", b"")
        stream = await RawStream.request(server.port, b"/events/stream/?channel=" + garbage, [("X", garbage)])
        with suppress(asyncio.IncompleteReadError, ConnectionError, ValueError, IndexError):
            await stream.read_head(5)
        stream.abort()

    await asyncio.gather(*(throw(number) for number in range(100)))
    async with opened(server, name) as streams:
        await server.site.apublish(name, "as ever")
        for stream in streams:
            assert (await stream.next()).data == "as ever"
