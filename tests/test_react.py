"""
The React hook in Chromium, with React itself (18 and 19) and real servers; and the demo's page that is made with it.

`tests/js/react-harness.jsx` is the component that the hook is looked at through. React is in its development mode, in
which StrictMode runs every effect twice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Route, expect

from . import browsers
from .browsers import GUARD, SECONDS, browser, build_react_page
from .plugins import require_program, require_that
from .servers import ROOT, DemoSite, Server, Site, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["browser"]  # a fixture

pytestmark = pytest.mark.browser

#: What a browser says of a server that has gone, or of an answer that it may not show.
NETWORK = re.compile("ERR_CONNECTION_|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_SOCKET")
POLICY = "script-src 'self'; style-src 'self'; object-src 'none'; base-uri 'none'"
PAGE = (
    "<!doctype html><link rel=icon href='data:,'><title>harness</title><div id=root></div>"
    "<script type=module src=/harness/harness.js></script>"
)


@pytest.fixture(scope="module")
def esbuild() -> str:
    """The path of esbuild, with React beside it."""
    require_program("node")
    names = ("esbuild", "react", "react-dom", "react-18", "react-dom-18")
    packages = [ROOT / "node_modules" / name for name in names]
    require_that(all(map(Path.exists, packages)), "node_modules", "esbuild and React are not installed: npm install")
    return str(ROOT / "node_modules/.bin/esbuild")


@pytest.fixture(scope="module", params=["18", "19"])
def react(request: pytest.FixtureRequest) -> str:
    """Which React it is: the oldest that the hook works with, and the newest."""
    return str(request.param)


@pytest.fixture(scope="module")
def harness(react: str, esbuild: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' component, in one file with React."""
    made = tmp_path_factory.mktemp("harness") / "harness.js"
    # package.json has npm install it beside the newest, which it would take for its own.
    older = [f"--alias:{name}={name}-18" for name in ("react", "react-dom")] if react == "18" else []
    command = [
        *(esbuild, "tests/js/react-harness.jsx", "--bundle", "--format=esm", "--jsx=automatic", "--jsx-dev"),
        "--alias:django-live-events/react=./events/static/events/react.js",
        '--define:process.env.NODE_ENV="development"',
        *older,
        *("--log-level=error", f"--outfile={made}"),
    ]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tests' site, with one worker: what it holds can be counted."""
    with closing(Site(tmp_path_factory.mktemp("react"))) as site:
        yield site.start("uvicorn")


@pytest.fixture(autouse=True)
def _is_running(request: pytest.FixtureRequest) -> None:
    """Start the server again where a test has left it dead."""
    if "server" in request.fixturenames:
        found: Server = request.getfixturevalue("server")
        if found.process is None or found.process.poll() is not None:
            found.start()


class Visitor(browsers.Visitor):
    """A page, and the streams that it asked for."""

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        #: The URLs of all of them.
        self.streams: list[str] = []
        page.on("request", self._asked_for)

    def _asked_for(self, request: Request) -> None:
        # A preflight is a request of the browser's, and no stream.
        if "/events/stream/" in request.url and request.method == "GET":
            self.streams.append(request.url)

    def show(self, *channels: str, **options: Any) -> None:
        """Render the component with these options; again, if it is there."""
        options = {"url": "/events/stream/", **({"channels": channels} if channels else {}), **options}
        self.page.evaluate("props => window.show(props)", options)

    def seen(self, name: str) -> Any:
        """What the component has seen."""
        return self.page.evaluate("name => window.seen[name]", name)

    def is_in(self, status: str) -> None:
        """Wait until that status is shown."""
        expect(self.page.locator("#status")).to_have_text(status, timeout=GUARD)

    def until(self, expression: str) -> None:
        """Wait until that is so on the page. Playwright's own wait evaluates a text in it, which its policy forbids."""
        self.wait(lambda: self.page.evaluate(expression), expression)

    @property
    def shown(self) -> list[str]:
        """The data of the list."""
        return self.page.locator("li").all_inner_texts()

    def shows(self, *data: str) -> None:
        """Wait until the list is exactly this."""
        expect(self.page.locator("li")).to_have_text(list(data), timeout=GUARD)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Let the page go on until something is so that is not on it."""
        return browsers.wait_for(self.page, condition, what)


@contextmanager
def visiting(browser: Browser) -> Iterator[tuple[BrowserContext, Callable[[], Visitor]]]:
    """A browser profile of the test's own, and what makes pages in it, on which nothing may go wrong."""
    context = browser.new_context()
    context.set_default_timeout(GUARD)
    visitors: list[Visitor] = []

    def make() -> Visitor:
        visitors.append(Visitor(context.new_page()))
        return visitors[-1]

    yield context, make
    context.close()
    for visitor in visitors:
        assert visitor.unexpected == []


@pytest.fixture
def visitor(browser: Browser, server: Server, react: str, harness: Path) -> Iterator[Visitor]:
    """The page of the tests' component, of the server's origin and under a strict policy."""

    def answer(route: Route) -> None:
        headers = {"Content-Security-Policy": POLICY}
        if route.request.url.endswith(".js"):
            route.fulfill(path=harness, content_type="text/javascript", headers=headers)
        else:
            route.fulfill(body=PAGE, content_type="text/html; charset=utf-8", headers=headers)

    with visiting(browser) as (context, make):
        context.route("**/harness/**", answer)
        visitor = make()
        visitor.page.goto(f"http://127.0.0.1:{server.port}/harness/")
        visitor.until("window.show !== undefined")
        assert visitor.seen("version").partition(".")[0] == react
        yield visitor


def streams_of(server: Server) -> int:
    """How many streams the server holds."""
    return int(server.json("/debug/")["streams"])


def test_strict_mode_opens_one_stream(visitor: Visitor, server: Server, name: str) -> None:
    """Effects run twice, and the server is asked once."""
    visitor.show(name)
    visitor.is_in("open")
    # Both, or StrictMode was not on, and the test shows nothing.
    assert visitor.seen("renders") >= 2 * visitor.seen("commits") - 2
    server.site.publish(name, "one")
    visitor.shows("one")
    assert len(visitor.streams) == 1
    assert streams_of(server) == 1
    assert visitor.seen("events") == [["", "one"]]
    assert visitor.seen("statuses") == ["connecting", "open"]


def test_rendering_again_with_equal_options_opens_nothing(visitor: Visitor, server: Server, name: str) -> None:
    """Arrays and objects that are written inline are others at each render, and mean the same."""
    options = {"headers": {"X-Page": "1"}, "backoff": {"base": 50, "cap": 100}, "stallMs": 30_000}
    visitor.show(name, tag="first", **options)
    visitor.is_in("open")
    for turn in range(20):
        visitor.show(name, tag=f"turn {turn}", lastEventId=f"none-{turn}", **options)
    visitor.until("seen.tag === 'turn 19'")
    server.site.publish(name, "one")
    visitor.shows("one")
    assert len(visitor.streams) == 1
    # Functions are other ones, too: the newest is called.
    assert visitor.seen("events") == [["turn 19", "one"]]


def test_the_order_in_which_options_are_written_means_nothing(visitor: Visitor, server: Server, name: str) -> None:
    """Nor does the case of a header's name."""
    options = {"stallMs": 30_000, "backoff": {"base": 50, "cap": 100}, "headers": {"X-Page": "1", "X-Token": "2"}}
    other = {"headers": {"x-token": "2", "x-page": "1"}, "backoff": {"cap": 100, "base": 50}, "stallMs": 30_000}
    visitor.show(name, tag="one", **options)
    visitor.is_in("open")
    visitor.show(name, tag="other", **other)
    visitor.until("seen.tag === 'other'")
    server.site.publish(name, "1")
    visitor.shows("1")
    assert visitor.seen("events") == [["other", "1"]]
    assert len(visitor.streams) == 1
    # What is other in them does.
    visitor.show(name, tag="third", **{**other, "backoff": {"cap": 50, "base": 100}})
    visitor.wait(lambda: len(visitor.streams) == 2, "there is another stream")


def test_another_channel_is_another_stream_and_another_list(visitor: Visitor, server: Server, name: str) -> None:
    """The old stream is closed, and what it brought is not shown under the new name for one frame."""
    other = f"public.{uuid.uuid4().hex}"
    visitor.show(name, tag="a")
    visitor.is_in("open")
    server.site.publish(name, "of a")
    visitor.shows("of a")
    visitor.show(other, tag="b")
    expect(visitor.page.locator("li")).to_have_count(0)
    visitor.is_in("open")
    server.site.publish(name, "nobody's")
    server.site.publish(other, "of b")
    visitor.shows("of b")
    assert [f"channel={name}" in url for url in visitor.streams] == [True, False]
    visitor.wait(lambda: streams_of(server) == 1, "the first stream has ended")
    assert visitor.seen("lists") == ["a: ", "a: of a", "b: ", "b: of b"]
    assert visitor.seen("events") == [["a", "of a"], ["b", "of b"]]


def test_another_header_goes_on_where_the_stream_was(visitor: Visitor, server: Server, name: str) -> None:
    """A new token is a new stream of the same events: the list stays, nothing is lost, nothing comes twice."""
    first = server.site.publish(name, "0")
    visitor.show(name, lastEventId=first, headers={"X-Token": "0"})
    visitor.is_in("open")
    for turn in range(1, 6):
        server.site.publish(name, str(turn))
        visitor.shows(*map(str, range(1, turn + 1)))
        # Between two streams nobody listens.
        visitor.show(name, lastEventId=first, headers={"X-Token": "0"}, enabled=False)
        visitor.is_in("closed")
        turns = turn + 1
        visitor.wait(lambda: streams_of(server) == 0, "nobody listens")
        visitor.show(name, lastEventId=first, headers={"X-Token": str(turns)})
    visitor.is_in("open")
    server.site.publish(name, "6")
    visitor.shows("1", "2", "3", "4", "5", "6")
    assert [data for _, data in visitor.seen("events")] == ["1", "2", "3", "4", "5", "6"]


def test_what_is_published_while_it_is_switched_off_comes_when_it_is_on(
    visitor: Visitor, server: Server, name: str
) -> None:
    """`enabled` is a pause: the list stays, and the stream goes on from there."""
    visitor.show(name)
    visitor.is_in("open")
    server.site.publish(name, "1")
    visitor.shows("1")
    visitor.show(name, enabled=False)
    visitor.is_in("closed")
    visitor.wait(lambda: streams_of(server) == 0, "the stream has ended")
    visitor.shows("1")
    server.site.publish(name, "2")
    server.site.publish(name, "3")
    visitor.show(name, enabled=True)
    visitor.shows("1", "2", "3")
    assert visitor.seen("statuses") == ["connecting", "open", "closed", "connecting", "open"]


def test_what_is_switched_off_before_its_first_event_goes_on_from_where_it_began(
    visitor: Visitor, server: Server, name: str
) -> None:
    """Where the page gives no cursor, that is where the server let the stream begin."""
    visitor.show(name)
    visitor.is_in("open")
    visitor.show(name, enabled=False)
    visitor.is_in("closed")
    server.site.publish(name, "1")
    visitor.show(name, enabled=True)
    visitor.shows("1")


def test_what_channels_replay_comes_though_the_stream_before_it_brought_nothing(
    visitor: Visitor, server: Server
) -> None:
    """The first connection has told where it begins, and broken: the next stream gets what a new one gets, once."""
    name = f"all.{uuid.uuid4().hex}"
    cursor = [server.site.publish(name, text) for text in ("1", "2", "3")][-1]
    # It does not come back by itself.
    answer = {"Content-Type": "text/event-stream", "Events-Cursor": cursor}
    stream = "**/events/stream/**"
    visitor.page.route(stream, lambda route: route.fulfill(headers=answer, body="retry: 600000\n\n"))
    visitor.show(name, tag="a")
    visitor.is_in("reconnecting")
    visitor.page.unroute(stream)
    visitor.show(name, tag="a", headers={"X-Page": "1"})
    visitor.shows("1", "2", "3")
    visitor.show(name, tag="a", headers={"X-Page": "2"})
    visitor.wait(lambda: len(visitor.streams) == 3, "there is another stream")
    server.site.publish(name, "4")
    visitor.shows("1", "2", "3", "4")
    assert [data for _, data in visitor.seen("events")] == ["1", "2", "3", "4"]


def test_an_option_that_is_changed_at_once_brings_nothing_twice(visitor: Visitor, server: Server, name: str) -> None:
    """What `onEvent` was called with counts, also where it does not return before the next stream is opened."""
    visitor.show(name, switchAt="2")
    visitor.is_in("open")
    for text in ("1", "2"):
        server.site.publish(name, text)
    visitor.shows("1", "2")
    visitor.wait(lambda: len(visitor.streams) == 2, "there is another stream")
    server.site.publish(name, "3")
    visitor.shows("1", "2", "3")
    assert [data for _, data in visitor.seen("events")] == ["1", "2", "3"]


def test_an_option_that_is_changed_where_events_are_missing_is_told_once(
    visitor: Visitor, server: Server, name: str
) -> None:
    """The next stream begins in the new log."""
    visitor.show(name, switchAt="epoch", lastEventId="ffffffff-1")
    visitor.wait(lambda: len(visitor.streams) == 2, "there is another stream")
    visitor.is_in("open")
    server.site.publish(name, "1")
    visitor.shows("1")
    assert len(visitor.seen("resets")) == 1
    assert len(visitor.streams) == 2


def test_what_is_switched_off_from_the_start_asks_for_nothing(visitor: Visitor, name: str) -> None:
    """It is closed, without an error."""
    visitor.show(name, enabled=False)
    visitor.is_in("closed")
    visitor.until("seen.commits > 0")
    assert visitor.streams == []
    assert visitor.page.evaluate("seen.shown.error") is None


def test_removing_the_component_closes_the_stream(visitor: Visitor, server: Server, name: str) -> None:
    """Nothing is rendered afterwards, and React has nothing to say."""
    visitor.show(name)
    visitor.is_in("open")
    server.site.publish(name, "1")
    visitor.shows("1")
    # With something that has come and is not shown yet.
    visitor.page.evaluate("() => { window.requestAnimationFrame = () => 0; seen.waits = seen.events.length }")
    server.site.publish(name, "2")
    visitor.until("seen.events.length > seen.waits")
    visitor.page.evaluate("() => window.show(null)")
    expect(visitor.page.locator("#status")).to_have_count(0)
    renders = visitor.seen("renders")
    visitor.wait(lambda: streams_of(server) == 0, "the stream has ended")
    server.site.publish(name, "3")
    assert visitor.seen("renders") == renders
    assert len(visitor.streams) == 1


def test_a_refusal_is_shown_and_not_tried_again(visitor: Visitor, server: Server) -> None:
    """403: closed, with the status and what the server said."""
    visitor.expected = re.compile("403")
    visitor.show(f"staff.{uuid.uuid4().hex}")
    visitor.is_in("closed")
    expect(visitor.page.locator("#error")).to_have_text(re.compile("403: "))
    assert len(visitor.streams) == 1
    assert visitor.seen("statuses") == ["connecting", "closed"]


def test_options_that_cannot_be_are_an_error_of_the_component(visitor: Visitor, name: str) -> None:
    """An error boundary gets the `TypeError`, of the hook's own options and of the stream's."""
    # React 18 says in the console what a boundary has caught.
    visitor.expected = re.compile("useEventStream: limit|openStream: stallMs|The above error occurred")
    visitor.show(name, limit=-1)
    expect(visitor.page.locator("#thrown")).to_have_text(
        "TypeError: useEventStream: limit is a whole number from 0, not -1"
    )
    visitor.page.evaluate("() => window.show(null)")
    visitor.show(name, stallMs=-5)
    expect(visitor.page.locator("#thrown")).to_have_text(re.compile("TypeError: openStream: stallMs"))
    assert visitor.streams == []


def test_a_server_that_is_killed_and_started_again_costs_nothing(visitor: Visitor, server: Server, name: str) -> None:
    """It says that it reconnects; then every event is there once, also those that were published meanwhile."""
    visitor.expected = NETWORK
    visitor.show(name, backoff={"base": 50, "cap": 200})
    visitor.is_in("open")
    expected: list[str] = []
    for turn in range(2):
        for part in range(3):
            expected.append(f"{turn} {part}")
            server.site.publish(name, expected[-1])
        visitor.shows(*expected)
        server.kill()
        visitor.is_in("reconnecting")
        expect(visitor.page.locator("#error")).to_have_text(re.compile("0: ."))
        expected.append(f"{turn} while it was away")
        server.site.publish(name, expected[-1])
        server.start()
        visitor.shows(*expected)
        visitor.is_in("open")
        expect(visitor.page.locator("#error")).to_have_text("")
    assert [data for _, data in visitor.seen("events")] == expected


#: A thousand events a second, for two seconds.
BUSY = """
begun = time.monotonic()
for part in range(40):
    publish_many([(channel, str(part * 50 + number)) for number in range(50)])
    time.sleep(max(0, begun + (part + 1) * 0.05 - time.monotonic()))
"""


def test_a_thousand_events_a_second_are_not_a_thousand_renders(visitor: Visitor, server: Server, name: str) -> None:
    """At most one for each frame; the newest are shown, and `onEvent` has had all."""
    visitor.show(name, limit=50)
    visitor.is_in("open")
    before = visitor.seen("commits")
    visitor.page.evaluate(
        """() => {
            window.frames = 0;
            const count = () => { window.frames += 1; requestAnimationFrame(count); };
            requestAnimationFrame(count);
        }"""
    )
    server.site.run(BUSY, channel=name)
    visitor.until("seen.events.length === 2000")
    visitor.shows(*map(str, range(1950, 2000)))
    assert [data for _, data in visitor.seen("events")] == list(map(str, range(2000)))
    commits = visitor.seen("commits") - before
    assert 3 <= commits <= visitor.page.evaluate("window.frames") + 2


def test_where_frames_are_rare_so_are_renders(visitor: Visitor, server: Server, name: str) -> None:
    """What comes between two frames is one render, in however many parts it came."""
    visitor.show(name, limit=50)
    visitor.is_in("open")
    before = visitor.seen("commits")
    # None at all: then four times a second.
    visitor.page.evaluate("() => { window.requestAnimationFrame = () => 0; window.begun = performance.now() }")
    server.site.run(BUSY, channel=name)
    visitor.until("seen.events.length === 2000")
    visitor.shows(*map(str, range(1950, 2000)))
    seconds = visitor.page.evaluate("performance.now() - begun") / 1000
    assert visitor.seen("commits") - before <= seconds * 4 + 2


def test_only_the_newest_are_kept(visitor: Visitor, server: Server, name: str) -> None:
    """`limit` holds at once where it is made smaller, and opens no stream; 0 keeps nothing."""
    visitor.show(name, limit=4)
    visitor.is_in("open")
    for number in range(6):
        server.site.publish(name, str(number))
    visitor.shows("2", "3", "4", "5")
    visitor.show(name, limit=2)
    visitor.shows("4", "5")
    visitor.show(name, limit=3)
    server.site.publish(name, "6")
    visitor.until("seen.events.length === 7")
    expect(visitor.page.locator("li").last).to_have_text("6")
    assert len(visitor.shown) == 3
    visitor.show(name, limit=0)
    server.site.publish(name, "7")
    visitor.until("seen.events.length === 8")
    visitor.shows()
    assert len(visitor.streams) == 1


def test_a_component_that_keeps_nothing_is_not_rendered_for_events(visitor: Visitor, server: Server, name: str) -> None:
    """With a `limit` of 0, `events` is the same empty array however many come."""
    visitor.show(name, limit=0)
    visitor.is_in("open")
    visitor.page.evaluate("() => { window.begun = { ...seen } }")
    for number in range(20):
        server.site.publish(name, str(number))
        visitor.until(f"seen.events.length === {number + 1}")
        # And the frame after it.
        visitor.page.evaluate("new Promise((shown) => requestAnimationFrame(() => requestAnimationFrame(shown)))")
    assert visitor.page.evaluate("[seen.commits - begun.commits, seen.shown.events === begun.shown.events]") == [
        0,
        True,
    ]
    # React may look once more before it finds that there is nothing to do; StrictMode makes that two.
    assert visitor.page.evaluate("seen.renders - begun.renders") <= 2
    assert visitor.shown == []
    # What was kept before is not shown again with a hole in it, however many came meanwhile.
    for text, limit, count in (("one", 2, 2), ("two", 0, 16), ("three", 2, 1)):
        visitor.show(name, tag=text, limit=limit)
        visitor.until(f"seen.tag === '{text}'")
        server.site.run("publish_many([(channel, text)] * count)", channel=name, text=text, count=count)
        visitor.until(f"seen.events.filter(([, data]) => data === '{text}').length === {count}")
        visitor.shows(*[text] * min(limit, count))


def test_clear_empties_the_list_and_the_stream_goes_on(visitor: Visitor, server: Server, name: str) -> None:
    """It is the same function at each render."""
    visitor.show(name)
    visitor.is_in("open")
    visitor.page.evaluate("() => { window.clearIt = seen.shown.clear }")
    server.site.publish(name, "1")
    visitor.shows("1")
    assert visitor.page.evaluate("clearIt === seen.shown.clear")
    visitor.page.evaluate("clearIt()")
    visitor.shows()
    visitor.is_in("open")
    server.site.publish(name, "2")
    visitor.shows("2")


def test_where_no_frame_comes_it_is_shown_all_the_same(visitor: Visitor, server: Server, name: str) -> None:
    """A hidden page has no frames; when it is seen, it has what came."""
    visitor.page.evaluate("() => { window.requestAnimationFrame = () => 0 }")
    visitor.show(name)
    visitor.is_in("open")
    server.site.publish(name, "1")
    visitor.shows("1")


def test_what_cannot_be_continued_is_told(visitor: Visitor, server: Server, name: str) -> None:
    """A cursor of another log is one reset; events come on."""
    visitor.show(name, lastEventId="ffffffff-1")
    visitor.until("seen.resets.length === 1")
    (reset,) = visitor.seen("resets")
    assert (reset["channels"], reset["reason"]) == ([name], "epoch")
    server.site.publish(name, "1")
    visitor.shows("1")


def test_a_stream_that_the_server_ends_is_closed_without_an_error(visitor: Visitor, server: Server, name: str) -> None:
    """`onClosed` has the reason, and nothing asks again."""
    channel = f"news-{uuid.uuid4().hex}"
    server.site.run("Channel.objects.create(name=channel, access='public')", channel=channel)
    visitor.wait(lambda: server.get(f"/events/channels/{channel}/")[0] == 200, "the server knows the channel")
    visitor.show(channel)
    visitor.is_in("open")
    server.site.run(
        "switched = Channel.objects.get(name=channel); switched.is_active = False; switched.save()", channel=channel
    )
    visitor.is_in("closed")
    assert visitor.page.evaluate("seen.shown.error") is None
    assert visitor.seen("closed") == [{"reason": "switched-off"}]
    assert len(visitor.streams) == 1


# The demo's page


@pytest.fixture(scope="module")
def built(esbuild: str) -> None:
    """The demo's page is built."""
    done = build_react_page()
    assert done.returncode == 0, done.stdout + done.stderr


def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script that builds the page."""
    return subprocess.run(
        [str(ROOT / "scripts/react"), *arguments],
        check=False,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


#: Where the page of another origin is served from.
PORT = free_port()


@pytest.fixture(scope="module")
def demo(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo site under daphne, which allows one other origin."""
    with closing(DemoSite(tmp_path_factory.mktemp("demo"), CORS_ORIGINS=f"http://127.0.0.1:{PORT}")) as site:
        site.manage("setup_demo")
        yield site.start("daphne")


@contextmanager
def served_elsewhere(port: int, stream: str) -> Iterator[None]:
    """The page on a port of its own."""
    process = subprocess.Popen(
        [str(ROOT / "scripts/react"), "--serve", str(port), "--stream", stream],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            if f"http://127.0.0.1:{port}/" in line:
                break
        assert f"http://127.0.0.1:{port}/" in line, "the page is not served"
        yield
    finally:
        process.terminate()
        process.wait(SECONDS)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[[str], Visitor]]:
    """Opens a page in a browser profile of the test's own."""
    with visiting(browser) as (_, make):

        def open_page(url: str) -> Visitor:
            visitor = make()
            visitor.page.goto(url)
            return visitor

        yield open_page


MESSAGE = re.compile(r"^Message at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


def test_the_demo_shows_live_updates_from_the_server(demo: Server, visit: Callable[[str], Visitor]) -> None:
    """Heading, status in words, messages with the newest on top; from one stream, under the site's policy."""
    visitor = visit(f"http://127.0.0.1:{demo.port}/react/")
    page = visitor.page
    expect(page.get_by_role("heading", level=1)).to_have_text("Live updates from server")
    expect(page.get_by_role("status")).to_have_text("Live", timeout=GUARD)
    expect(page.locator(".react-text").first).to_have_text(MESSAGE, timeout=GUARD)
    visitor.wait(lambda: page.locator(".react-text").count() >= 3, "some have come")
    shown = page.locator(".react-text").all_inner_texts()
    assert shown == sorted(shown, reverse=True)
    assert len(visitor.streams) == 1

    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_have_text("Paused")
    ids = page.locator(".react-cursor").all_inner_texts()
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("status")).to_have_text("Live", timeout=GUARD)
    visitor.wait(lambda: page.locator(".react-cursor").count() > len(ids), "it goes on")
    positions = [int(text.rpartition("-")[2]) for text in page.locator(".react-cursor").all_inner_texts()]
    logged = [row[0] for row in demo.site.query("SELECT position FROM events_event WHERE channel = 'clock'")]
    # Every one from the first to the last, none twice: also those of the pause.
    assert positions == sorted((one for one in logged if positions[-1] <= one <= positions[0]), reverse=True)

    page.get_by_role("button", name="Clear").click()
    visitor.wait(lambda: page.locator(".react-cursor").count() < len(positions), "it is empty")


def test_the_demo_works_from_another_port_that_is_allowed(demo: Server, visit: Callable[[str], Visitor]) -> None:
    """A page of another origin, with a policy of its own, shows the messages."""
    with served_elsewhere(PORT, f"http://127.0.0.1:{demo.port}/events/stream/"):
        visitor = visit(f"http://127.0.0.1:{PORT}/")
        expect(visitor.page.get_by_role("status")).to_have_text("Live", timeout=GUARD)
        expect(visitor.page.locator(".react-text").first).to_have_text(MESSAGE, timeout=GUARD)
        assert len(visitor.streams) == 1


def test_an_origin_that_is_not_allowed_is_told_and_shows_nothing(demo: Server, visit: Callable[[str], Visitor]) -> None:
    """The browser keeps the answer from the page, which says that it has none."""
    port = free_port()
    with served_elsewhere(port, f"http://127.0.0.1:{demo.port}/events/stream/"):
        visitor = visit(f"http://127.0.0.1:{port}/")
        # What Chromium says of an answer without the header.
        visitor.expected = re.compile("blocked by CORS policy|ERR_FAILED")
        expect(visitor.page.get_by_role("status")).to_have_text("Reconnecting…", timeout=GUARD)
        expect(visitor.page.locator(".react-error")).to_contain_text("does not let pages of this origin read")
        # After the second try, too.
        visitor.wait(lambda: len(visitor.streams) >= 2, "it has tried again")
        assert visitor.page.locator(".react-text").count() == 0
        assert any("CORS" in fault for fault in visitor.faults)


def answer_of_the_page(folder: Path, **settings: str) -> str:
    """What the demo site answers at /react/, without a server."""
    code = """
import json, os
import django
django.setup()
from django.conf import settings
from django.test import Client, override_settings
settings.ALLOWED_HOSTS = ["testserver"]
places = [place for place in os.environ["PLACES"].split(":") if place]
with override_settings(STATICFILES_DIRS=places):
    response = Client().get("/react/")
print(json.dumps([response.status_code, response.content.decode()]))
"""
    site = DemoSite(folder, None, **settings)
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, env=site.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    status, body = json.loads(done.stdout)
    assert status == 200
    return str(body)


def test_a_page_that_is_not_built_says_what_to_run(tmp_path: Path) -> None:
    """And has no program; where it is built, it has, and says nothing of it."""
    static = tmp_path / "static"
    static.mkdir()
    body = answer_of_the_page(tmp_path / "site", PLACES=str(static))
    assert "<code>make react</code>" in body
    assert "<script" not in body
    (static / "sse_site/built").mkdir(parents=True)
    (static / "sse_site/built/react-page.js").touch()
    body = answer_of_the_page(tmp_path / "site", PLACES=str(static))
    assert "make react" not in body
    assert '<script type="module" src="/static/sse_site/built/react-page.js"></script>' in body
    assert "Live updates from server" in body


def test_the_demo_allows_the_origins_that_it_is_told(tmp_path: Path) -> None:
    """None, unless the environment names them."""
    code = "import json; from sse_site import settings; print(json.dumps(settings.EVENTS['CORS_ORIGINS']))"
    for named, expected in (
        ("", []),
        ("https://a.example,http://b.example:3000", ["https://a.example", "http://b.example:3000"]),
    ):
        environment = {**os.environ, "DATA_DIR": str(tmp_path / "var"), **({"CORS_ORIGINS": named} if named else {})}
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert json.loads(done.stdout) == expected


def test_the_script_says_what_it_cannot_do(esbuild: str, tmp_path: Path) -> None:
    """An option, a port or a URL that cannot be; and a machine without Node."""
    for arguments, text in (
        (["--sreve", "3000"], "usage: scripts/react"),
        (["--serve", "http"], '--serve is a port, 0 for any that is free, not "http"'),
        (["--serve", "0", "--stream", "/events/stream/"], 'not "/events/stream/"'),
    ):
        done = build(*arguments)
        assert done.returncode == 1
        assert text in done.stderr
    for program in ("dirname", "sh"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / program).symlink_to(found)
    done = build(PATH=str(tmp_path))
    assert done.returncode == 1
    assert "node was not found" in done.stderr


def test_what_is_built_is_not_built_again(built: None) -> None:
    """Unless it is asked for, or a source is newer."""
    page = ROOT / "static/sse_site/built/react-page.js"
    before = page.stat().st_mtime_ns
    assert "up to date" in build("--if-needed").stdout
    assert build("--if-needed", "--quiet").stdout == ""
    assert page.stat().st_mtime_ns == before
    os.utime(page, (0, 0))
    assert "Built" in build("--if-needed").stdout
    assert page.stat().st_mtime_ns >= before
