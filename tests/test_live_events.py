"""`openStream` in Chromium, against the real server behind a proxy that breaks what a network can break."""

from __future__ import annotations

import json
import re
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from .browsers import ARGUMENTS, GUARD, Visitor, browser, publishing, wait_for
from .proxy import Proxy
from .servers import Server, Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

__all__ = ["browser"]

pytestmark = pytest.mark.browser

#: What Chromium says of connections and answers that tests break on purpose.
BROKEN = re.compile(r"net::ERR_|Failed to load resource|Access to fetch")
#: Follows a channel with the client, and keeps what comes.
FOLLOW = """async ([name, options]) => {
  const { openStream } = await import("/static/events/live-events.js");
  window.got = [];
  window.said = [];
  window.resets = [];
  window.failed = null;
  window.stream = openStream("/events/stream/", {
    channels: [name], backoff: { base: 50, cap: 500 }, stallMs: 20_000, ...options,
  });
  stream.addEventListener("message", ({ detail }) => got.push(detail.id));
  stream.addEventListener("status", ({ detail }) => said.push(detail.status));
  stream.addEventListener("stream-reset", ({ detail }) => resets.push(detail.reason));
  stream.addEventListener("stream-closed", ({ detail }) => said.push(detail.reason));
  stream.addEventListener("error", ({ detail }) => (failed = [detail.status, detail.message]));
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tests' site, under uvicorn with two workers. Who is sent away may come back soon: much is broken here."""
    settings = json.dumps({"RETRY": (100, 500), "DRAIN_SPREAD": 0.5})
    with closing(Site(tmp_path_factory.mktemp("plain"), EVENTS_TEST_SETTINGS=settings)) as site:
        yield site.start("uvicorn-2")


@pytest.fixture(autouse=True)
def _is_up(server: Server) -> Iterator[None]:
    yield
    if server.process is None or server.process.poll() is not None:
        server.start()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


class Tabs:
    """Pages of one browser profile, which follow channels through the proxy."""

    def __init__(self, context: BrowserContext, proxy: Proxy) -> None:
        self.context = context
        self.proxy = proxy
        self.visitors: list[Visitor] = []
        context.set_default_timeout(GUARD)

    def blank(self) -> Page:
        visitor = Visitor(self.context.new_page())
        visitor.expected = BROKEN
        self.visitors.append(visitor)
        visitor.page.goto(f"{self.proxy.url}/blank/")
        return visitor.page

    def follow(self, name: str, page: Page | None = None, **options: Any) -> Page:
        page = page or self.blank()
        page.evaluate(FOLLOW, [name, options])
        return page

    def opened(self, name: str, **options: Any) -> Page:
        page = self.follow(name, **options)
        reached(page, "open")
        return page


@pytest.fixture
def tabs(browser: Browser, proxy: Proxy) -> Iterator[Tabs]:
    context = browser.new_context()
    tabs = Tabs(context, proxy)
    yield tabs
    context.close()
    for visitor in tabs.visitors:
        assert visitor.unexpected == []


def reached(page: Page, status: str) -> None:
    page.wait_for_function("status => window.stream.status === status", arg=status)


def got(page: Page) -> list[str]:
    ids: list[str] = page.evaluate("got")
    return ids


def has_grown(page: Page, by: int = 3) -> None:
    page.wait_for_function("count => got.length >= count", arg=page.evaluate("got.length") + by)


def has_exactly(page: Page, cursors: list[str]) -> None:
    """Wait until the last of these has come; all have then, once and in order, and no reset was told."""
    page.wait_for_function("last => got.at(-1) === last", arg=cursors[-1])
    assert got(page) == cursors
    assert page.evaluate("resets") == []


def following(proxy: Proxy) -> int:
    """How many streams are open that go on: not those that only fetch what there is."""
    return sum("follow=0" not in request.path for request in proxy.open_streams)


def settled(page: Page, proxy: Proxy, count: int = 1) -> None:
    wait_for(page, lambda: len(proxy.open_streams) == following(proxy) == count, f"{count} connections are open")


# One stream


@pytest.mark.parametrize(
    "status, headers", [(500, {}), (502, {}), (503, {"Retry-After": "1"}), (429, {"Retry-After": "1"})]
)
def test_what_passes_is_waited_out(
    tabs: Tabs, server: Server, proxy: Proxy, name: str, status: int, headers: dict[str, str]
) -> None:
    """A native EventSource would be closed for good; this one says what is wrong, and comes back."""  # promise 24
    proxy.refuse(status, headers)
    page = tabs.follow(name, lastEventId=server.site.publish(name, "seen"))
    reached(page, "reconnecting")
    assert page.evaluate("stream.error.status") == status
    wait_for(page, lambda: len(proxy.streams) >= 2, "it has tried again")
    first, second = proxy.streams[:2]
    assert second.at - first.at >= float(headers.get("Retry-After", 0))
    missed = server.site.publish(name, "while it was refused")
    proxy.accept()
    has_exactly(page, [missed])
    assert page.evaluate("[stream.status, stream.error]") == ["open", None]


@pytest.mark.parametrize("status", [204, 401, 403, 404, 410])
def test_what_does_not_pass_stops_the_stream(tabs: Tabs, proxy: Proxy, name: str, status: int) -> None:
    """And it says which it was."""  # promise 24
    proxy.refuse(status, {"Content-Type": "text/plain"}, b"" if status == 204 else b"Because.")
    page = tabs.follow(name)
    reached(page, "closed")
    assert page.evaluate("failed") == (None if status == 204 else [status, f"status {status}: Because."])
    page.wait_for_timeout(300)
    assert len(proxy.streams) == 1


def test_a_page_of_html_is_no_stream(tabs: Tabs, proxy: Proxy, name: str) -> None:
    """As where a sign-in page answers."""
    proxy.refuse(200, {"Content-Type": "text/html; charset=utf-8"}, b"<h1>Sign in</h1>")
    page = tabs.follow(name)
    reached(page, "closed")
    assert page.evaluate("failed") == [200, "the answer is text/html, not text/event-stream"]


def test_who_may_not_read_is_told(tabs: Tabs) -> None:
    """In the words of the server."""
    page = tabs.follow("no.such.channel")
    reached(page, "closed")
    assert page.evaluate("failed") == [403, "status 403: There is no such channel, or you may not read it."]


def test_a_killed_server_loses_nothing(tabs: Tabs, server: Server, name: str) -> None:
    """Killed and started again twice while another process publishes."""
    page = tabs.opened(name)
    with publishing(server, name, 0.02) as cursors:
        for _ in range(2):
            has_grown(page)
            server.kill()
            reached(page, "reconnecting")
            server.start()
            reached(page, "open")
        has_grown(page)
    has_exactly(page, cursors)


def test_a_drained_server_loses_nothing(tabs: Tabs, server: Server, name: str) -> None:
    """Stopped in order, as at a deployment: the stream ends, and goes on with the next process."""
    page = tabs.opened(name)
    with publishing(server, name, 0.02) as cursors:
        has_grown(page)
        server.stop()
        reached(page, "reconnecting")
        assert page.evaluate("stream.error?.message ?? null") is None or page.evaluate("stream.error.status") == 0
        server.start()
        reached(page, "open")
        has_grown(page)
    has_exactly(page, cursors)


def test_connections_that_are_cut_in_the_middle_lose_nothing(
    tabs: Tabs, server: Server, proxy: Proxy, name: str
) -> None:
    """Every connection breaks after some bytes, wherever that is in an event."""
    page = tabs.opened(name)
    with publishing(server, name, 0.02) as cursors:
        for size in (1277, 1001, 777):
            proxy.break_after(size)
            proxy.close_streams(reset=size == 777)
            has_grown(page, 8)
        proxy.break_after(None)
        has_grown(page, 8)
    has_exactly(page, cursors)


def test_a_connection_that_only_looks_open_is_noticed(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """Silent for as long as `stallMs`: taken for dead, and opened anew from the cursor."""  # promise 26
    page = tabs.opened(name, stallMs=1500)
    first = server.site.publish(name, "arrives")
    has_exactly(page, [first])
    proxy.stall()
    second = server.site.publish(name, "goes nowhere")
    has_exactly(page, [first, second])
    assert page.evaluate("said") == ["open", "reconnecting", "open"]


def test_offline_and_online(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """Back online the stream goes on at once, and does not wait for the end of its pause."""
    page = tabs.opened(name, backoff={"base": 600_000, "cap": 600_000})
    first = server.site.publish(name, "before")
    has_exactly(page, [first])
    tabs.context.set_offline(True)
    proxy.close_streams(reset=True)
    reached(page, "reconnecting")
    second = server.site.publish(name, "meanwhile")
    tabs.context.set_offline(False)
    has_exactly(page, [first, second])


def test_a_slow_handler_holds_the_stream_and_loses_nothing(tabs: Tabs, server: Server, name: str) -> None:
    """Iterated with a pause at each event, while they come faster: all come, and the rest waits at the server."""
    page = tabs.blank()
    page.evaluate(
        """async (name) => {
          const { openStream } = await import("/static/events/live-events.js");
          window.got = []; window.resets = [];
          window.stream = openStream("/events/stream/", { channels: [name] });
          (async () => {
            for await (const { id } of stream) {
              await new Promise((done) => setTimeout(done, 20));
              got.push(id);
            }
          })();
        }""",
        name,
    )
    reached(page, "open")
    cursors = server.site.run("result = [publish(channel, n).id for n in range(100)]", channel=name)
    has_exactly(page, cursors)
    page.wait_for_function("last => stream.cursor === last || got.at(-1) === last", arg=cursors[-1])


def test_a_reload_goes_on_from_what_was_kept(tabs: Tabs, server: Server, name: str) -> None:
    """With `persist`: what was published while the page was loaded anew comes, and nothing that it had."""
    page = tabs.opened(name, persist=True)
    seen = server.site.publish(name, "seen")
    has_exactly(page, [seen])
    page.goto("about:blank")
    missed = server.site.run("result = [publish(channel, n).id for n in range(3)]", channel=name)
    page.goto(f"{tabs.proxy.url}/blank/")
    tabs.follow(name, page, persist=True)
    has_exactly(page, missed)


def test_an_answer_that_comes_late_loses_nothing(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """What is published while a slow network still carries the answer comes with it."""
    cursor = server.site.publish(name, "seen")
    proxy.delay(1)
    page = tabs.follow(name, lastEventId=cursor)
    wait_for(page, lambda: proxy.streams, "it has asked")
    missed = server.site.publish(name, "meanwhile")
    assert page.evaluate("stream.status") == "connecting"
    has_exactly(page, [missed])


def test_a_connection_that_breaks_before_its_first_event_loses_nothing(
    tabs: Tabs, server: Server, proxy: Proxy, name: str
) -> None:
    """A stream that began without a cursor has got one with its headers."""
    proxy.break_after(10)
    page = tabs.follow(name)
    wait_for(page, lambda: len(proxy.streams) >= 2, "the first connection has broken")
    missed = server.site.run("result = [publish(channel, n).id for n in range(3)]", channel=name)
    proxy.break_after(None)
    has_exactly(page, missed)


# Pages that are not seen


def test_a_frozen_page_catches_up(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """
    Frozen by the browser it lets its connection go; when it is back it has all.

    The events are a stand-in: a headless Chromium freezes no page, whatever DevTools ask for.
    """  # promise 26
    page = tabs.opened(name)
    first = server.site.publish(name, "before")
    has_exactly(page, [first])
    page.evaluate("document.dispatchEvent(new Event('freeze'))")
    wait_for(page, lambda: not proxy.open_streams, "the connection is closed")
    missed = server.site.publish(name, "while it was frozen")
    page.evaluate("document.dispatchEvent(new Event('resume'))")
    has_exactly(page, [first, missed])
    assert page.evaluate("said") == ["open", "paused", "open"]


@pytest.fixture
def cached(chromium: str, browser: Browser, proxy: Proxy) -> Iterator[Tabs]:
    """Tabs with a back-forward cache, which Playwright switches off."""
    caching = browser.browser_type.launch(
        executable_path=chromium, args=ARGUMENTS, ignore_default_args=["--disable-back-forward-cache"]
    )
    yield Tabs(caching.new_context(), proxy)
    caching.close()


@pytest.mark.parametrize("share", [None, "tabs"])
def test_a_page_from_the_back_forward_cache_catches_up(
    cached: Tabs, server: Server, proxy: Proxy, name: str, share: str | None
) -> None:
    """It holds no connection while it is there, so it can be kept; and goes on from its cursor."""  # promise 26
    page = cached.opened(name, share=share)
    first = server.site.publish(name, "before")
    has_exactly(page, [first])
    page.evaluate("addEventListener('pageshow', (event) => (window.isFromCache = event.persisted))")
    page.goto(f"{proxy.url}/blank/?other")
    proxy.wait_until(lambda: not proxy.open_streams, "the connection is closed")
    missed = server.site.publish(name, "while it was away")
    page.evaluate("history.back()")
    page.wait_for_function("window.isFromCache === true")
    has_exactly(page, [first, missed])


def hide(page: Page, is_hidden: bool) -> None:
    """
    What a page sees when its tab is put behind another one.

    A stand-in: a headless Chromium never hides a page. Firefox does, in tests/test_firefox.py.
    """
    page.evaluate(
        """(isHidden) => {
          Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        is_hidden,
    )


def test_a_hidden_page_lets_its_connection_go_where_it_is_to(
    tabs: Tabs, server: Server, proxy: Proxy, name: str
) -> None:
    """With `pauseWhenHidden`; seen again, it has all. Without, it stays connected."""
    page, other = tabs.opened(name, pauseWhenHidden=True), tabs.opened(name)
    first = server.site.publish(name, "before")
    has_exactly(page, [first])
    hide(page, True)
    hide(other, True)
    reached(page, "paused")
    settled(page, proxy)
    missed = server.site.publish(name, "while it was hidden")
    has_exactly(other, [first, missed])
    assert got(page) == [first]
    hide(page, False)
    has_exactly(page, [first, missed])


# Tabs that share


def test_eight_tabs_use_one_connection(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """HTTP/1.1 gives a host six: these need one, and a page of the site still loads beside them."""  # promise 25
    pages = [tabs.opened(name, share="tabs") for _ in range(8)]
    cursors = server.site.run("result = [publish(channel, n).id for n in range(20)]", channel=name)
    for page in pages:
        has_exactly(page, cursors)
    settled(pages[0], proxy)
    tabs.blank()


def test_without_sharing_eight_tabs_need_more_than_there_are(tabs: Tabs, proxy: Proxy, name: str) -> None:
    """What the sharing is for: the seventh waits."""
    pages = [tabs.blank() for _ in range(8)]
    for page in pages:
        tabs.follow(name, page)
    wait_for(pages[0], lambda: following(proxy) == 6, "six are connected")
    pages[0].wait_for_timeout(500)
    assert following(proxy) == 6
    assert sorted(page.evaluate("stream.status") for page in pages) == ["connecting"] * 2 + ["open"] * 6


def test_the_tab_with_the_connection_is_closed(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """Again and again, while another process publishes: who is left has all, once and in order."""  # promise 25
    pages = [tabs.opened(name, share="tabs") for _ in range(5)]
    with publishing(server, name, 0.01) as cursors:
        has_grown(pages[-1], 5)
        while len(pages) > 1:
            # The first has waited longest for the lock, so it leads.
            pages.pop(0).close()
            has_grown(pages[-1], 10)
    has_exactly(pages[0], cursors)
    settled(pages[0], proxy)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_the_tabs_survive_a_server_that_ends(tabs: Tabs, server: Server, proxy: Proxy, name: str, end: str) -> None:
    """Killed, or drained as at a deployment: all say that it is away, one asks for it, all have everything."""
    pages = [tabs.opened(name, share="tabs") for _ in range(4)]
    with publishing(server, name, 0.02) as cursors:
        has_grown(pages[-1])
        getattr(server, end)()
        for page in pages:
            reached(page, "reconnecting")
        server.start()
        for page in pages:
            reached(page, "open")
        has_grown(pages[-1])
    for page in pages:
        has_exactly(page, cursors)
    settled(pages[0], proxy)


def test_a_tab_that_comes_later_begins_where_its_page_was_made(tabs: Tabs, server: Server, name: str) -> None:
    """What was published between the rendering of its page and its joining comes; what came before does not."""
    first = tabs.opened(name, share="tabs")
    before = server.site.publish(name, "before")
    between = server.site.publish(name, "between")
    late = tabs.opened(name, share="tabs", lastEventId=before)
    after = server.site.publish(name, "after")
    has_exactly(first, [before, between, after])
    has_exactly(late, [between, after])


def test_a_gap_is_filled(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """A tab that missed what the leading one told gets it from the log, in its place."""
    leader, other = (tabs.opened(name, share="tabs") for _ in range(2))
    first = server.site.publish(name, "first")
    has_exactly(other, [first])
    # The leading tab's words are lost for a while, as to a tab whose browser has thrown them away.
    leader.evaluate(
        """() => {
          window.tell = BroadcastChannel.prototype.postMessage;
          BroadcastChannel.prototype.postMessage = () => {};
        }"""
    )
    missed = server.site.run("result = [publish(channel, n).id for n in range(3)]", channel=name)
    has_exactly(leader, [first, *missed])
    assert got(other) == [first]
    leader.evaluate("() => void (BroadcastChannel.prototype.postMessage = tell)")
    last = server.site.publish(name, "last")
    has_exactly(other, [first, *missed, last])
    settled(leader, proxy)


def test_a_leader_that_is_stuck_is_deposed(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """Its page does nothing at all: another tab takes over, and when it is back it has all, too."""
    leader, other = (tabs.opened(name, share="tabs", stallMs=1500) for _ in range(2))
    first = server.site.publish(name, "first")
    has_exactly(other, [first])
    # It waits, as scripts should not, for an answer that comes when the other has taken over.
    proxy.delay(GUARD, path="?stuck")
    leader.evaluate(
        """() => void setTimeout(() => {
          const request = new XMLHttpRequest();
          request.open("GET", "/blank/?stuck", false);
          try { request.send(); } catch {}
          window.isBack = true;
        })"""
    )
    (stuck,) = wait_for(other, lambda: [each for each in proxy.requests if "stuck" in each.path], "the leader is stuck")
    second = server.site.publish(name, "second")
    has_exactly(other, [first, second])
    assert not stuck.is_over
    proxy.release()
    leader.wait_for_function("window.isBack")
    third = server.site.publish(name, "third")
    for page in (leader, other):
        has_exactly(page, [first, second, third])
    settled(other, proxy)


@contextmanager
def cookie_of(tabs: Tabs, key: str) -> Iterator[None]:
    tabs.context.add_cookies([{"name": "sessionid", "value": key, "url": tabs.proxy.url}])
    yield
    tabs.context.clear_cookies()


def test_two_users_in_one_browser_never_share(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """The second one signs in where the first one's tabs are open: a connection each, and one for two of a user."""
    keys = server.site.run(
        """
        from django.contrib.auth import get_user_model
        from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
        from django.contrib.sessions.backends.db import SessionStore
        result = []
        for each in ("ann", "bob"):
            user = get_user_model().objects.create_user(f"{each}-{channel}", password="x")
            session = SessionStore()
            session[SESSION_KEY] = str(user.pk)
            session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
            session[HASH_SESSION_KEY] = user.get_session_auth_hash()
            session.save()
            result.append(session.session_key)
        """,
        channel=name,
    )
    with cookie_of(tabs, keys[0]):
        ann = [tabs.opened(name, share="tabs") for _ in range(2)]
    with cookie_of(tabs, keys[1]):
        bob = tabs.opened(name, share="tabs")
        settled(bob, proxy, 2)
        nobody_yet = got(bob)
    anonymous = tabs.opened(name, share="tabs")
    settled(anonymous, proxy, 3)
    cursor = server.site.publish(name, "to all")
    for page in (*ann, bob, anonymous):
        has_exactly(page, [*nobody_yet, cursor])


def test_tabs_of_other_channels_have_their_own(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """Two channels in any order are one set; one of them alone is another."""
    both = tabs.blank()
    tabs.follow(name, both, channels=[name, f"{name}.b"], share="tabs")
    turned = tabs.blank()
    tabs.follow(name, turned, channels=[f"{name}.b", name], share="tabs")
    alone = tabs.opened(name, share="tabs")
    for page in (both, turned):
        reached(page, "open")
    settled(alone, proxy, 2)
    other = server.site.publish(f"{name}.b", "b")
    cursor = server.site.publish(name, "a")
    has_exactly(both, [other, cursor])
    has_exactly(turned, [other, cursor])
    has_exactly(alone, [cursor])


def test_an_end_is_told_to_all_tabs(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """Switched off: each tab is told why, and none asks again."""
    server.site.run("Channel.objects.create(name=channel, access='public')", channel=f"{name}.off")
    pages = [tabs.opened(f"{name}.off", share="tabs") for _ in range(3)]
    server.site.run("row = Channel.objects.get(name=channel); row.is_active = False; row.save()", channel=f"{name}.off")
    for page in pages:
        reached(page, "closed")
        assert page.evaluate("said.at(-1)") == "switched-off"
    wait_for(pages[0], lambda: not proxy.open_streams, "no connection is left")


def test_where_there_are_no_locks_a_tab_has_its_own(tabs: Tabs, server: Server, proxy: Proxy, name: str) -> None:
    """As on a page without https."""
    tabs.context.add_init_script("Object.defineProperty(Navigator.prototype, 'locks', { get: () => undefined })")
    pages = [tabs.opened(name, share="tabs") for _ in range(2)]
    cursor = server.site.publish(name, "to both")
    for page in pages:
        has_exactly(page, [cursor])
    assert following(proxy) == 2
