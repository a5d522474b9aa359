"""
What a person who does not see, does not point, or does not run scripts finds on every page of the site; and its policy.

axe-core is run by the browser's own debugger, outside of the page's Content-Security-Policy, which stays on. So each
page that is looked at here has shown, too, that it works under it: any violation or line in the console is a fault.
"""

from __future__ import annotations

import json
import re
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, expect

from .browsers import GUARD, Visitor, browser, demo, live, visit, wait_for
from .plugins import require_that
from .proxy import Proxy
from .servers import ROOT, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import ViewportSize

__all__ = ["browser", "demo", "visit"]

pytestmark = pytest.mark.browser

WIDE: ViewportSize = {"width": 1200, "height": 800}
NARROW: ViewportSize = {"width": 390, "height": 844}
#: What the proxy, or a connection that it broke, leaves in Chromium's console.
BROKEN = re.compile(r"ERR_|status of (403|404|500|503)")
#: The pages that everybody may see.
PAGES = ("/", "/events/", "/events/channels/news/", "/react/", "/nothing/", "/admin/login/")
#: Those of the admin; `{channel}` is the number of one.
ADMIN_PAGES = (
    "/admin/events/",
    "/admin/events/channel/",
    "/admin/events/channel/add/",
    "/admin/events/channel/{channel}/change/",
    "/admin/events/channel/{channel}/publish/",
    "/admin/events/event/",
    "/admin/events/publishkey/",
    "/admin/events/publishkey/add/",
)
#: What the site says of itself, where the proxy answers in its place.
STRICT = {"Content-Security-Policy": "default-src 'self'; script-src 'self'; style-src 'self'; object-src 'none'"}
#: Rule and selector of what is Django's, on every page of its admin, and not for an app to change. Each with its why.
DJANGOS: tuple[tuple[str, str], ...] = (
    # The page to sign in has its site's name for a heading, in a div.
    ("page-has-heading-one", "html:has(body.login)"),
    # The way back at the top of each page is told by its colour alone. Our own pages have it as all others do.
    ("link-in-text-block", ".breadcrumbs > a"),
    # "Show all", beside the number of results.
    ("link-in-text-block", ".quiet a"),
    # The field to search in has a magnifying glass for a label.
    ("label-title-only", "#searchbar"),
    # A field for date and time is two inputs; its label is that of both.
    ("label", ".vDateField, .vTimeField"),
    # The sign with a question mark beside the two lists of groups.
    ("aria-prohibited-attr", ".help-tooltip"),
)
#: Runs axe, and tells what it found: rule, element, what to do. `only`: rules; `excluded`: pairs of rule and selector.
AUDIT = """async ({ only, excluded }) => {
  // Half-way from one colour to another no text has the contrast that it will have.
  const transitions = document.getAnimations().filter((animation) => animation instanceof CSSTransition);
  await Promise.all(transitions.map(({ finished }) => finished.catch(() => {})));
  const found = await axe.run(document, {
    resultTypes: ["violations"],
    // What it would look at only for the lock of a screen's orientation, it would put into the page as a <style>.
    preload: false,
    ...(only.length && { runOnly: { type: "rule", values: only } }),
  });
  const step = (root, selector) => (root?.shadowRoot ?? root)?.querySelector(selector);
  const reach = (target) => [target].flat().reduce(step, document);
  return found.violations.flatMap(({ id, help, nodes }) =>
    nodes
      .filter(({ target }) => !excluded.some(([rule, selector]) => rule === id && reach(target[0])?.matches(selector)))
      .map(({ target, failureSummary }) => `${id}: ${help} ${JSON.stringify(target)} ${failureSummary}`),
  );
}"""
#: Elements that Tab shall reach, in the order of the page as it is seen, each told by what it is and says.
FOCUSABLE = """() => {
  const found = [];
  const look = (node) => {
    if (!(node instanceof Element) || !node.checkVisibility({ visibilityProperty: true })) return;
    const isReached =
      node.matches("a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex]") &&
      !node.disabled && node.tabIndex >= 0;
    if (isReached) found.push(node);
    if (node.localName === "slot" && node.assignedElements().length) return node.assignedElements().forEach(look);
    if (node.localName === "details" && !node.open) return look(node.querySelector("summary"));
    (node.shadowRoot ?? node).childNodes.forEach(look);
  };
  look(document.body);
  window.focusables = found;
  return found.map((node) => `${node.localName} ${node.ariaLabel ?? node.textContent.trim() ?? ""}`.slice(0, 60));
}"""
#: What has the focus: its place among those, whether it shows that, and whether it can be seen. -1: none of them.
FOCUSED = """() => {
  let node = document.activeElement;
  while (node?.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(node);
  const box = node.getBoundingClientRect();
  const isInView = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const hasRing = node.matches(":focus-visible") && outlineStyle !== "none" && parseFloat(outlineWidth) >= 1;
  return { place: window.focusables.indexOf(node), hasRing, isInView, name: node.id || node.localName };
}"""


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    path = ROOT / "node_modules" / "axe-core" / "axe.min.js"
    require_that(path.exists(), "axe-core", "axe-core is not installed (npm install brings it)")
    return path.read_text("utf-8")


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    """Let `expect` wait as long as everything else does."""
    expect.set_options(timeout=GUARD)
    yield
    expect.set_options(timeout=None)


@pytest.fixture
def proxy(demo: tuple[Server, str]) -> Iterator[Proxy]:
    with Proxy(demo[0].port) as proxy:
        yield proxy


@contextmanager
def opened(browser: Browser, proxy: Proxy, path: str, expected: str = "(?!)", **options: Any) -> Iterator[Visitor]:
    """A page in a profile of its own, on which nothing goes wrong but what is expected."""
    context = browser.new_context(viewport=WIDE, **options)
    context.set_default_timeout(GUARD)
    try:
        visitor = Visitor(context.new_page())
        visitor.expected = re.compile(expected)
        visitor.page.goto(f"{proxy.url}{path}")
        yield visitor
    finally:
        context.close()
    assert visitor.unexpected == []


def forget_news(server: Server) -> None:
    """Let the channel have no events."""
    server.site.run("from events.control import clear_history; clear_history(['news']); result = None")


def sign_in(visitor: Visitor, password: str, path: str, name: str = "admin") -> None:
    """Sign in, and go to a page of the admin."""
    page = visitor.page
    page.locator("input[name=username]").fill(name)
    page.locator("input[name=password]").fill(password)
    page.locator("[type=submit]").click()
    expect(page.locator("#user-tools")).to_be_visible()
    page.goto(page.url.partition("/admin/")[0] + path)


def audit(page: Page, axe: str, *only: str) -> list[str]:
    """What axe finds on the page as it is now."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    found: list[str] = page.evaluate(AUDIT, {"only": only, "excluded": DJANGOS})
    return found


def audit_all(page: Page, axe: str) -> None:
    """See that axe finds nothing: light and wide, dark and narrow, with all its rules; else, those about colours."""
    faults = {}
    for scheme, size, only in (
        ("light", WIDE, ()),
        ("dark", WIDE, ("color-contrast",)),
        ("dark", NARROW, ()),
        ("light", NARROW, ("color-contrast",)),
    ):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size(size)
        if found := audit(page, axe, *only):
            faults[f"{scheme}, {size['width']} px"] = found
    assert faults == {}, json.dumps(faults, indent=1)


def test_axe_looks_into_the_element(browser: Browser, proxy: Proxy, axe: str) -> None:
    """A fault put into the page and one put into the element's shadow are found: what finds nothing has looked."""
    with opened(browser, proxy, "/events/channels/news/") as visitor:
        page = visitor.page
        live(page)
        page.evaluate("document.querySelector('h1').append(document.createElement('button'))")
        page.evaluate("document.querySelector('live-channel').shadowRoot.append(document.createElement('button'))")
        assert len(audit(page, axe, "button-name")) == 2


@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_on_a_page_that_everybody_may_see(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, axe: str, path: str
) -> None:
    """Light and dark, wide and narrow, and where there is a list, before anything is in it."""
    forget_news(demo[0])
    with opened(browser, proxy, path, "status of 404" if path == "/nothing/" else "(?!)") as visitor:
        if visitor.page.locator("live-channel").count():
            live(visitor.page)
        audit_all(visitor.page, axe)


@pytest.mark.parametrize("path", ["/events/", "/events/channels/news/"])
def test_axe_finds_nothing_among_events(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, axe: str, path: str
) -> None:
    """Text, fields, a value, a type of its own; rendered by the server, and come later; after a reset, too."""
    server, _ = demo
    server.site.publish("news", "rendered by the server")
    server.site.publish("news", {"temperature": 21.5, "place": "roof"})
    with opened(browser, proxy, path) as visitor:
        page = visitor.page
        live(page)
        server.site.publish("news", [1, 2, 3])
        last = server.site.publish("news", "x" * 5000, event="long")
        expect(page.locator(f"[data-event-id='{last}']")).to_be_visible()
        audit_all(page, axe)


@pytest.mark.parametrize("path", ["/events/", "/events/channels/news/"])
@pytest.mark.parametrize("state", ["connecting", "paused", "reconnecting", "offline", "closed"])
def test_axe_finds_nothing_in_any_state(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, axe: str, path: str, state: str
) -> None:
    """Whatever has become of the connection, and with what is said about it."""
    if state == "connecting":
        proxy.delay(GUARD)
    with opened(browser, proxy, path, BROKEN.pattern) as visitor:
        page = visitor.page
        if state != "connecting":
            live(page)
        if state == "paused":
            page.get_by_role("button", name="Pause").click()
            demo[0].site.publish("news", "waits")
            expect(page.get_by_text(re.compile(r"\d+ waiting"))).to_be_visible()
        elif state == "reconnecting":
            proxy.refuse(503)
            proxy.close_streams()
            # After a while it says what is wrong, too.
            expect(page.locator("[part=notice]")).to_be_visible()
        elif state == "offline":
            proxy.refuse(503)
            page.context.set_offline(True)
            proxy.close_streams()
        elif state == "closed":
            proxy.refuse(403)
            proxy.close_streams()
        live(page, state)
        audit_all(page, axe)


@pytest.mark.parametrize("path", ADMIN_PAGES)
def test_axe_finds_nothing_in_the_admin(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, axe: str, path: str
) -> None:
    """Lists, forms, and the page to publish from."""
    server, password = demo
    with opened(browser, proxy, "/admin/login/") as visitor:
        number = server.site.run("result = Channel.objects.get(name='news').pk")
        sign_in(visitor, password, path.format(channel=number))
        audit_all(visitor.page, axe)


def test_axe_finds_nothing_where_a_history_is_to_be_cleared(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, axe: str
) -> None:
    """The page that asks whether that is meant."""
    with opened(browser, proxy, "/admin/login/") as visitor:
        sign_in(visitor, demo[1], "/admin/events/channel/")
        page = visitor.page
        page.locator("#result_list tbody tr", has_text="News").locator("input.action-select").check()
        page.locator("select[name=action]").select_option("clear_history")
        page.get_by_role("button", name="Run").or_(page.get_by_role("button", name="Go")).click()
        expect(page.get_by_role("button", name="Yes, clear the history")).to_be_visible()
        audit_all(page, axe)


def test_axe_finds_nothing_where_a_token_is_shown(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, axe: str
) -> None:
    """The page that shows a key's token, this once; and the list of keys with one in it."""
    with opened(browser, proxy, "/admin/login/") as visitor:
        sign_in(visitor, demo[1], "/admin/events/publishkey/add/")
        page = visitor.page
        page.locator("input[name=name]").fill("roof")
        page.locator("textarea[name=channels]").fill("news")
        page.locator("input[name=_save]").click()
        expect(page.locator("#token")).to_be_visible()
        audit_all(page, axe)
        page.goto(f"{proxy.url}/admin/events/publishkey/")
        expect(page.locator("#result_list")).to_contain_text("roof")
        audit_all(page, axe)


def test_axe_finds_nothing_on_the_pages_for_what_went_wrong(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, axe: str
) -> None:
    """403, as a user without permission gets it, and 500, as the server shows it when a view has broken."""
    server, _ = demo
    number = server.site.run(
        """
        from django.contrib.auth import get_user_model
        if not get_user_model().objects.filter(username="clerk"):
            get_user_model().objects.create_user("clerk", password="secret", is_staff=True)
        result = Channel.objects.get(name="news").pk
        """
    )
    with opened(browser, proxy, "/admin/login/", "status of 403") as visitor:
        sign_in(visitor, "secret", f"/admin/events/channel/{number}/publish/", "clerk")
        expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Not for you")
        audit_all(visitor.page, axe)
    broken = server.site.run(
        "from django.template.loader import render_to_string; result = render_to_string('500.html')"
    )
    proxy.refuse(500, {"Content-Type": "text/html; charset=utf-8", **STRICT}, broken.encode(), path="/broken/")
    with opened(browser, proxy, "/broken/", "status of 500") as visitor:
        expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Something broke")
        audit_all(visitor.page, axe)


# The policy


@pytest.mark.parametrize("path", [*PAGES, "/admin/"])
def test_every_page_has_a_strict_policy(browser: Browser, proxy: Proxy, path: str) -> None:
    """Scripts and styles from the site alone: nothing inline, no eval. That a page works so, the other tests show."""
    with opened(browser, proxy, path, "status of 404" if path == "/nothing/" else "(?!)") as visitor:
        response = visitor.page.request.get(f"{proxy.url}{path}")
        rules = dict(rule.strip().split(" ", 1) for rule in response.headers["content-security-policy"].split(";"))
        assert rules["script-src"] == rules["style-src"] == "'self'"
        assert (rules["default-src"], rules["object-src"], rules["base-uri"]) == ("'self'", "'none'", "'none'")


def test_a_violation_is_a_fault(browser: Browser, proxy: Proxy) -> None:
    """An inline script and an inline style, put into a page, are told: so are those that a page brings along."""
    with opened(browser, proxy, "/", "violation: |violates the following") as visitor:
        visitor.page.evaluate(
            "for (const tag of ['script', 'style']) {"
            "  const element = document.createElement(tag);"
            "  element.textContent = '/**/';"
            "  document.body.append(element); }"
        )
        told = ("violation: script-src-elem inline", "violation: style-src-elem inline")
        wait_for(visitor.page, lambda: all(any(one in f for f in visitor.faults) for one in told), "both are told")


# The keyboard


@pytest.mark.parametrize("path", ["/", "/events/", "/events/channels/news/", "/react/"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_tab_reaches_everything_in_order_and_goes_on(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, path: str, size: ViewportSize
) -> None:
    """Each thing that can be used gets the focus, in the order of the page, shows it, is in view, and lets it go."""
    with opened(browser, proxy, path) as visitor:
        page = visitor.page
        page.set_viewport_size(size)
        if page.locator("live-channel").count():
            live(page)
        names: list[str] = page.evaluate(FOCUSABLE)
        assert len(names) > 4
        for place, name in enumerate(names):
            page.keyboard.press("Tab")
            assert page.evaluate(FOCUSED) == {
                "place": place,
                "hasRing": True,
                "isInView": True,
                "name": page.evaluate("(place) => focusables[place].id || focusables[place].localName", place),
            }, name
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUSED)["place"] in (-1, 0), "the last one does not let the focus go"
        page.evaluate("focusables.at(-1).focus()")
        for place in reversed(range(len(names) - 1)):
            page.keyboard.press("Shift+Tab")
            assert page.evaluate(FOCUSED)["place"] == place


@pytest.mark.parametrize("path", ["/", "/events/", "/events/channels/news/", "/react/", "/nothing/"])
def test_the_first_link_skips_to_the_content(browser: Browser, proxy: Proxy, path: str) -> None:
    """It is seen when it has the focus, and what Tab reaches next is inside the content."""
    with opened(browser, proxy, path, "status of 404") as visitor:
        page = visitor.page
        page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="Skip to the content")
        expect(skip).to_be_focused()
        expect(skip).to_be_in_viewport(ratio=1)
        page.keyboard.press("Enter")
        expect(page.locator("#content")).to_be_focused()
        page.keyboard.press("Tab")
        assert page.evaluate("document.querySelector('#content').contains(document.activeElement)")


#: Waits until an element is at the same place in ten frames that follow each other.
STANDS_STILL = """
    (element) => new Promise((done) => {
      let [was, frames] = [NaN, 0];
      const look = () => {
        const { top } = element.getBoundingClientRect();
        frames = top === was ? frames + 1 : 0;
        was = top;
        if (frames === 10) done();
        else requestAnimationFrame(look);
      };
      look();
    })
"""


def test_the_live_page_is_used_by_keys_alone(browser: Browser, demo: tuple[Server, str], proxy: Proxy) -> None:
    """Scroll the list, pause, resume, clear, and take a channel away: not once with a pointer."""
    server, _ = demo
    forget_news(server)
    cursors = [server.site.publish("news", f"line {number}") for number in range(60)]
    with opened(browser, proxy, "/events/channels/news/") as visitor:
        page = visitor.page
        live(page)
        expect(page.locator(f"[data-event-id='{cursors[-1]}']")).to_be_visible()
        page.set_viewport_size({"width": 1200, "height": 500})
        log = page.get_by_role("log")

        def press_until(is_there: Callable[[], bool]) -> None:
            for _ in range(40):
                if is_there():
                    return
                page.keyboard.press("Tab")
            raise AssertionError("Tab does not reach it")

        press_until(lambda: bool(log.evaluate("(node) => node.getRootNode().activeElement === node")))
        rows = page.locator("[data-event-id]")
        # A list with a height of its own scrolls; where it has none, the page does.
        expect(rows.last).not_to_be_in_viewport()
        page.keyboard.press("End")
        expect(rows.last).to_be_in_viewport()
        # A key that is pressed while the page still glides may count for nothing.
        rows.last.evaluate(STANDS_STILL)
        page.keyboard.press("Home")
        expect(rows.last).not_to_be_in_viewport()
        page.evaluate("document.activeElement.blur()")

        def on_button(name: str) -> bool:
            button = page.get_by_role("button", name=name)
            return button.count() == 1 and bool(button.evaluate("(node) => node.getRootNode().activeElement === node"))

        press_until(lambda: on_button("Pause"))
        page.keyboard.press("Space")
        live(page, "paused")
        page.keyboard.press("Enter")
        live(page, "live")
        press_until(lambda: on_button("Clear"))
        page.keyboard.press("Enter")
        expect(page.locator("[data-event-id]")).to_have_count(0)
        page.goto(f"{proxy.url}/events/")
        live(page)
        box = page.get_by_role("checkbox", name="News")
        press_until(lambda: bool(box.evaluate("(node) => document.activeElement === node")))
        page.keyboard.press("Space")
        expect(box).not_to_be_checked()
        live(page)


# Without scripts


@pytest.mark.parametrize("path", ["/events/", "/events/channels/news/"])
def test_without_javascript_a_page_shows_the_newest_events_and_says_what_is_missing(
    browser: Browser, demo: tuple[Server, str], proxy: Proxy, path: str
) -> None:
    """What was published before the page was loaded is there, and no control that would do nothing."""
    server, _ = demo
    texts = [f"<b>seen without scripts</b> {number} {uuid.uuid4().hex}" for number in range(3)]
    for text in texts:
        server.site.publish("news", text)
    with opened(browser, proxy, path, java_script_enabled=False) as visitor:
        page = visitor.page
        for text in texts:
            expect(page.get_by_text(text)).to_be_visible()
        # By its class: Playwright does not look for texts inside <noscript>.
        expect(page.locator(".events-noscript")).to_contain_text("Live updates need JavaScript")
        expect(page.locator(".events-noscript")).to_be_visible()
        expect(page.get_by_role("button")).to_have_count(0)
        assert proxy.streams == []


def test_without_javascript_and_events_a_page_says_so(browser: Browser, demo: tuple[Server, str], proxy: Proxy) -> None:
    """An empty list is no riddle."""
    forget_news(demo[0])
    with opened(browser, proxy, "/events/channels/news/", java_script_enabled=False) as visitor:
        for selector, text in ((".events-noscript", "need JavaScript"), (".events-nothing", "no messages")):
            expect(visitor.page.locator(selector)).to_contain_text(text)
            expect(visitor.page.locator(selector)).to_be_visible()
