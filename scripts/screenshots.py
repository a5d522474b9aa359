#!/usr/bin/env python3
"""Take the pictures that README and docs show: the demo site in Chromium, with a database of its own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "images"
#: A page of docs with pictures should load quickly, and every version of a picture stays in the repository.
MAX_BYTES = 200_000

#: As root, Chromium has no sandbox. The rest keeps it from looking for its maker's hosts.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: What is published while the pages look on, and after how many messages: enough for the charts to have a shape.
NEWS = (
    (14, ("--json", '{"title": "Doors open at seven", "room": "Hall 2"}')),
    (40, ("Coffee is ready in the foyer.",)),
    (42, ("--json", '{"title": "The first band is on stage", "room": "Hall 1"}')),
)


class Shot(NamedTuple):
    """One picture: its file's name, what it shows, and how."""

    name: str
    path: str
    width: int = 1200
    height: int = 800
    scheme: Literal["light", "dark"] = "light"
    signed_in: bool = False
    #: All of the page, not only what the window shows.
    whole: bool = False


SHOTS = (
    Shot("live-light", "/events/", height=860),
    Shot("live-dark", "/events/", height=860, scheme="dark"),
    Shot("live-phone", "/events/", width=390, height=844),
    Shot("admin-channels", "/admin/events/channel/", height=560, signed_in=True),
    Shot("admin-channel", "/admin/events/channel/1/change/", width=1000, signed_in=True, whole=True),
)


class DemoSite(NamedTuple):
    """A running demo site."""

    base: str
    password: str
    environment: dict[str, str]

    def manage(self, *arguments: str) -> str:
        """Run a management command beside the server; what it printed."""
        return _manage(self.environment, *arguments)


def _manage(environment: dict[str, str], *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether something listens on a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def demo_site() -> Iterator[DemoSite]:
    """A running demo site, fresh."""
    # Nothing of the person's own settings gets into a picture.
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with tempfile.TemporaryDirectory() as folder:
        environment |= {"DATA_DIR": folder, "PYTHONUNBUFFERED": "1", "LOG_LEVEL": "WARNING"}
        _manage(environment, "migrate", "--verbosity", "0")
        said = _manage(environment, "setup_demo")
        password = re.search(r"with the password +(\S+)", said)
        if password is None:
            raise SystemExit(f"setup_demo showed no password: {said!r}")
        port = free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "daphne", "--verbosity", "0", "--port", str(port), "sse_site.asgi:application"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 30
            while not answers(port):
                if server.poll() is not None or time.monotonic() > end:
                    raise SystemExit("The demo site did not start.")
                time.sleep(0.1)
            yield DemoSite(f"http://127.0.0.1:{port}", password.group(1), environment)
        finally:
            server.terminate()
            server.wait(timeout=30)


def opened(browser: Browser, shot: Shot, site: DemoSite, complaints: list[str]) -> Page:
    """The page of a picture, in a window of its own. What it complains about is added to `complaints`."""
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme, locale="en-GB"
    )
    page = context.new_page()
    page.on(
        "console",
        lambda message: complaints.append(f"{shot.path}: {message.text}") if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: complaints.append(f"{shot.path}: {error}"))
    if shot.signed_in:
        page.goto(f"{site.base}/admin/login/?next={shot.path}")
        page.fill("#id_username", "admin")
        page.fill("#id_password", site.password)
        page.click("[type=submit]")
        page.wait_for_url(f"{site.base}{shot.path}")
        # What the picture is about needs the room.
        page.click("#toggle-nav-sidebar")
        page.evaluate("window.scrollTo(0, 0)")
    else:
        page.goto(site.base + shot.path)
    return page


def taken(page: Page, shot: Shot, complaints: list[str]) -> None:
    """Take the picture, and close its window."""
    file = FOLDER / f"{shot.name}.png"
    page.screenshot(path=file, full_page=shot.whole, animations="disabled", caret="hide")
    page.context.close()
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}  {size // 1000} kB")
    if size > MAX_BYTES:
        complaints.append(f"{file.name} has {size} bytes, more than {MAX_BYTES}.")


def main(names: list[str]) -> int:
    """Take the pictures that were named, or all. A page that complains in the browser's console is a failure."""
    if unknown := sorted(set(names) - {shot.name for shot in SHOTS}):
        print(f"No picture is called {', '.join(unknown)}: {', '.join(shot.name for shot in SHOTS)}", file=sys.stderr)
        return 1
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("No Chromium was found. On Debian: apt install chromium", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    complaints: list[str] = []
    shots = [shot for shot in SHOTS if not names or shot.name in names]
    with demo_site() as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        # All live pages look on at the same time, so that the pictures tell one story.
        live = [(shot, opened(browser, shot, site, complaints)) for shot in shots if not shot.signed_in]
        for count, arguments in NEWS if live else ():
            for _, page in live:
                wait_for_messages(page, count)
            site.manage("publish_event", "news", *arguments)
        for shot, page in live:
            page.locator("live-channel").get_by_text("The first band").wait_for()
            taken(page, shot, complaints)
        for shot in shots:
            if shot.signed_in:
                taken(opened(browser, shot, site, complaints), shot, complaints)
        browser.close()
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


def wait_for_messages(page: Page, count: int) -> None:
    """Wait until a live page has received so many messages."""
    page.wait_for_function(
        """count => {
          const { shadowRoot } = document.querySelector("live-channel");
          return parseInt(shadowRoot.querySelector('[part~="count"]').textContent) >= count;
        }""",
        arg=count,
        timeout=120_000,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
