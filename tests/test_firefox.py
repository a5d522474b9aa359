"""The client and the pages in Firefox: what Chromium shows at length is shown to be no habit of Chromium's."""

from __future__ import annotations

import re
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from .browsers import publishing
from .proxy import Proxy
from .servers import DemoSite, Server, Site, stream_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .firefox import Firefox, Tab

pytestmark = pytest.mark.browser

#: What Firefox says of a connection that a test has broken.
BROKEN = re.compile(r"NetworkError|interrupted|can.t establish a connection|NS_ERROR|CORS request did not succeed")
#: Follows a channel with the client, and keeps what comes.
FOLLOW = """(async () => {
  const { openStream } = await import("/static/events/live-events.js");
  window.got = [];
  window.said = [];
  window.stream = openStream("/events/stream/", { channels: [name], backoff: { base: 50, cap: 500 }, ...options });
  stream.addEventListener("message", ({ detail }) => got.push(detail));
  for (const type of ["status", "stream-reset", "stream-closed", "error"]) {
    stream.addEventListener(type, ({ detail }) => said.push([type, detail.status ?? detail.reason ?? detail.message]));
  }
  return true;
})()"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tests' site, under uvicorn with two workers."""
    with closing(Site(tmp_path_factory.mktemp("plain"))) as site:
        yield site.start("uvicorn-2")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo site under daphne."""
    with closing(DemoSite(tmp_path_factory.mktemp("demo"))) as site:
        site.manage("setup_demo")
        yield site.start("daphne")


@pytest.fixture
def proxy(plain: Server) -> Iterator[Proxy]:
    with Proxy(plain.port) as proxy:
        yield proxy


@pytest.fixture
def follow(firefox: Firefox, proxy: Proxy, name: str) -> Callable[..., Tab]:
    """Opens a tab that follows the test's channel through the proxy."""

    def open_tab(**options: Any) -> Tab:
        tab = firefox.open(f"{proxy.url}/blank/")
        assert tab.evaluate(FOLLOW, name=name, options=options)
        tab.wait_for("stream.status === 'open'")
        return tab

    return open_tab


def has_grown(tab: Tab, by: int = 3) -> None:
    """Wait until some more events have come."""
    tab.wait_for("got.length >= count", count=tab.evaluate("got.length") + by)


def has_exactly(tab: Tab, cursors: list[str]) -> None:
    """Wait until the last of these events has come, and see that all have, once and in order."""
    tab.wait_for("got.at(-1)?.id === last", last=cursors[-1])
    assert tab.evaluate("got.map((event) => event.id)") == cursors
    assert tab.evaluate("said.filter(([type]) => type !== 'status')") == []


def open_follows(proxy: Proxy) -> int:
    """How many streams are open that go on: not those which only fetch what there is."""
    return sum("follow=0" not in request.path for request in proxy.open_streams)


def test_its_own_eventsource_receives_and_resumes(firefox: Firefox, plain: Server, proxy: Proxy, name: str) -> None:
    """Without a line of ours: what the browser brings works with the server."""
    firefox.expected = BROKEN
    tab = firefox.open(f"{proxy.url}/blank/")
    tab.evaluate(
        "new Promise((opened) => { window.got = []; window.source = new EventSource(url); source.onopen = opened;"
        " source.onmessage = (event) => got.push(event.lastEventId); })",
        url=stream_path(name),
    )
    cursors = [plain.site.publish(name, "first")]
    tab.wait_for("got.length === 1")
    proxy.close_streams()
    cursors.append(plain.site.publish(name, "second"))
    tab.wait_for("got.length === 2")
    assert tab.evaluate("got") == cursors
    assert proxy.streams[-1].headers["last-event-id"] == cursors[0]


def test_the_client_connects_and_receives(follow: Callable[..., Tab], plain: Server, name: str) -> None:
    """Text and JSON come as they were published, with channel, type and cursor."""
    tab = follow()
    first = plain.site.publish(name, "Grüße\n🙂")
    second = plain.site.publish(name, {"title": "<b>Doors</b>", "at": [7, None]}, event="opened")
    tab.wait_for("got.length === 2")
    assert tab.evaluate("got") == [
        {"id": first, "channel": name, "event": "message", "data": "Grüße\n🙂"},
        {"id": second, "channel": name, "event": "opened", "data": {"title": "<b>Doors</b>", "at": [7, None]}},
    ]
    assert tab.evaluate("stream.cursor") == second
    tab.evaluate("stream.close()")
    assert tab.evaluate("said") == [["status", "open"], ["status", "closed"]]


def test_the_client_resumes_where_the_server_was_killed(
    firefox: Firefox, follow: Callable[..., Tab], plain: Server, name: str
) -> None:
    """Killed and started again twice while another process publishes: nothing is lost, nothing comes twice."""
    firefox.expected = BROKEN
    tab = follow()
    with publishing(plain, name, 0.02) as cursors:
        for _ in range(2):
            has_grown(tab)
            plain.kill()
            tab.wait_for("stream.status === 'reconnecting'")
            plain.start()
            tab.wait_for("stream.status === 'open'")
        has_grown(tab)
    assert len(cursors) > 9
    has_exactly(tab, cursors)


def test_a_reload_goes_on_from_what_was_kept(
    follow: Callable[..., Tab], plain: Server, proxy: Proxy, name: str
) -> None:
    """With `persist` the page that is loaded anew has what was published meanwhile, and nothing that it had."""
    tab = follow(persist=True)
    plain.site.publish(name, "seen")
    tab.wait_for("got.length === 1")
    tab.goto("about:blank")
    missed = [plain.site.publish(name, number) for number in range(3)]
    tab.goto(f"{proxy.url}/blank/")
    assert tab.evaluate(FOLLOW, name=name, options={"persist": True})
    has_exactly(tab, missed)


def test_a_tab_behind_another_lets_its_connection_go_where_it_is_to(
    firefox: Firefox, follow: Callable[..., Tab], plain: Server, proxy: Proxy, name: str
) -> None:
    """With `pauseWhenHidden`: hidden by the browser itself, and seen again it has what was published meanwhile."""
    # promise 26
    tab = follow(pauseWhenHidden=True)
    first = plain.site.publish(name, "seen")
    has_exactly(tab, [first])
    firefox.open(f"{proxy.url}/blank/")
    tab.wait_for("document.visibilityState === 'hidden' && stream.status === 'paused'")
    proxy.wait_until(lambda: not proxy.open_streams, "its connection is closed")
    second = plain.site.publish(name, "while it was hidden")
    assert tab.evaluate("got.length") == 1
    tab.activate()
    has_exactly(tab, [first, second])
    assert tab.evaluate("document.visibilityState") == "visible"


def test_tabs_share_one_connection_and_outlive_the_one_that_has_it(
    firefox: Firefox, follow: Callable[..., Tab], plain: Server, proxy: Proxy, name: str
) -> None:
    """Three tabs, one stream; the tab with the connection is closed while another process publishes, and none loses."""
    first = follow(share="tabs")
    proxy.wait_until(lambda: open_follows(proxy) == 1, "the first tab has a connection")
    second, third = follow(share="tabs"), follow(share="tabs")
    before = [plain.site.publish(name, number) for number in range(3)]
    for tab in (first, second, third):
        has_exactly(tab, before)
    assert open_follows(proxy) == 1
    with publishing(plain, name, 0.02) as cursors:
        has_grown(third)
        mark = len(proxy.streams)
        first.close()
        proxy.wait_until(
            lambda: any("follow=0" not in request.path and request.is_open for request in proxy.streams[mark:]),
            "another tab has a connection",
        )
        has_grown(third)
    for tab in (second, third):
        has_exactly(tab, before + cursors)
    assert open_follows(proxy) == 1
    second.close()
    last = plain.site.publish(name, "last")
    has_exactly(third, [*before, *cursors, last])


@pytest.mark.parametrize("path", ["/", "/events/", "/events/channels/news/"])
def test_a_page_shows_events_as_they_come(firefox: Firefox, demo: Server, path: str) -> None:
    """Each page with a list shows what is published, and its console stays empty."""
    channel = "clock" if path == "/" else "news"
    tab = firefox.open(f"http://127.0.0.1:{demo.port}{path}")
    text = f"<b>news</b> of {time.monotonic()}"
    cursor = demo.site.publish(channel, text)
    row = "document.querySelector(`[data-event-id='${cursor}']`)"
    assert text in tab.wait_for(f"{row}?.textContent", cursor=cursor)
    assert tab.evaluate(f"{row}.querySelectorAll('b').length", cursor=cursor) == 0
