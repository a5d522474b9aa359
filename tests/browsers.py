"""
What the tests in Chromium share: a browser, sites to visit, and what is asked of a page.

A module that has such tests imports `browser` and `visit`, and of the sites what it visits. While Playwright's
synchronous interface is open no other test of the process can run a loop, so the browser lives for one module only.
"""

from __future__ import annotations

import fcntl
import re
import subprocess
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from .servers import GUARD as SECONDS
from .servers import ROOT, DemoSite, Server, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "GUARD",
    "SECONDS",
    "Visitor",
    "browser",
    "demo",
    "live",
    "logged_ids",
    "plain",
    "publishing",
    "shown_ids",
    "visit",
    "wait_for",
]

#: Milliseconds after which a wait has failed.
GUARD = SECONDS * 1000
#: Chromium as root, in a container, and without anything of its own to do.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def launched(chromium: str) -> Iterator[Browser]:
    """Chromium. While it is open, no other test of the process can run a loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Chromium, for the tests of one module."""
    with launched(chromium) as browser:
        yield browser


def build_react_page() -> subprocess.CompletedProcess[str]:
    """Build the demo's React page, if need be. Two processes of a run do not do it at once."""
    lock = ROOT / ".cache" / "react.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        command = [str(ROOT / "scripts/react"), "--if-needed"]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """The demo site under daphne, and the password of its admin user."""
    # Where that cannot be, one of its pages says so. Built later, while the site runs, it would not be served.
    build_react_page()
    with closing(DemoSite(tmp_path_factory.mktemp("demo"))) as site:
        said = site.manage("setup_demo").stdout
        found = re.search(r"password\s+(\S+)", said)
        assert found, said
        yield site.start("daphne"), found[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tests' site, under uvicorn with two workers."""
    with closing(Site(tmp_path_factory.mktemp("plain"))) as site:
        yield site.start("uvicorn-2")


class Visitor:
    """A page, and what went wrong on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.faults: list[str] = []
        #: Faults of the network that the test makes on purpose.
        self.expected = re.compile("(?!)")
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("dialog", self._asked)
        page.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " (event) => console.error('violation: ' + event.violatedDirective + ' ' + event.blockedURI));"
        )

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def _asked(self, dialog: Any) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    @property
    def unexpected(self) -> list[str]:
        """What nobody meant to happen."""
        return [fault for fault in self.faults if not self.expected.search(fault)]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[[Server, str], Visitor]]:
    """Opens a page of a server in a browser profile of the test's own, where no page may have a fault."""
    context = browser.new_context()
    context.set_default_timeout(GUARD)
    visitors: list[Visitor] = []

    def open_page(server: Server, path: str) -> Visitor:
        visitor = Visitor(context.new_page())
        visitors.append(visitor)
        visitor.page.goto(f"http://127.0.0.1:{server.port}{path}")
        return visitor

    yield open_page
    context.close()
    for visitor in visitors:
        assert visitor.unexpected == []


def live(page: Page, state: str = "live") -> None:
    """Wait until the page's element says that its connection is in that state."""
    expect(page.locator("live-channel")).to_have_attribute("data-state", state, timeout=GUARD)


def shown_ids(page: Page) -> list[str]:
    """The cursors of the messages in the list, oldest first."""
    ids: list[str] = page.locator("[data-event-id]").evaluate_all("rows => rows.map(row => row.dataset.eventId)")
    return ids[::-1]


def logged_ids(server: Server, channel: str) -> list[str]:
    """The cursors of the channel's events in the log, oldest first."""
    ((epoch,),) = server.site.query("SELECT epoch FROM events_log")
    rows = server.site.query("SELECT position FROM events_event WHERE channel = ? ORDER BY position", channel)
    return [f"{epoch}-{position}" for (position,) in rows]


@contextmanager
def publishing(server: Server, channel: str, every: float) -> Iterator[list[str]]:
    """Another process publishes to the channel, without rest, until the block ends. What it published comes then."""
    stop = server.site.folder / "stop"
    stop.unlink(missing_ok=True)
    published: list[str] = []
    code = """
    result = []
    while not os.path.exists(stop):
        result.append(publish(channel, f"message {len(result)}").id)
        time.sleep(every)
    """
    thread = threading.Thread(
        target=lambda: published.extend(server.site.run(code, stop=str(stop), channel=channel, every=every))
    )
    thread.start()
    try:
        yield published
    finally:
        stop.touch()
        thread.join(60)


def wait_for(page: Page, condition: Callable[[], Any], what: str, guard: float = SECONDS) -> Any:
    """Let the page go on until something is so that is not on it."""
    end = time.monotonic() + guard
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited {guard} s until {what}"
        page.wait_for_timeout(50)
    return answer
