"""
The recipes of docs/client.md, in Chromium: the very code that stands there, in a site that a reader would have made.

The site is that of the quickstart, under a strict policy, with the development server that the quickstart starts. The
libraries come from `node_modules`; nothing of them is in the repository.
"""

from __future__ import annotations

import http.client
import json
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from .browsers import GUARD, SECONDS, Visitor, browser, wait_for
from .plugins import require_that
from .servers import free_port
from .test_docs import ROOT, Project, blocks, chapter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page, Route

__all__ = ["browser"]

pytestmark = [pytest.mark.browser, pytest.mark.slow]

#: What the recipes take from `vendor/`.
VENDOR = [
    "htmx.org/dist/htmx.min.js",
    "htmx.org/dist/htmx.esm.js",
    "htmx-ext-sse/dist/sse.js",
    "@hotwired/turbo/dist/turbo.es2017-esm.js",
]
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
SETTINGS = """
MIDDLEWARE = ["shop.strict.strict", *MIDDLEWARE]
# Clients come back soon, so that tests need not wait for them.
EVENTS = {"RETRY": (300, 600)}
"""
MIDDLEWARE = f"""
import secrets

class Nonce:
    text = ""
    def __str__(self):
        self.text = self.text or secrets.token_urlsafe()
        return self.text

def strict(get_response):
    # As django-csp does it: the policy has a nonce where the page asks for one.
    def answer(request):
        request.csp_nonce = nonce = Nonce()
        response = get_response(request)
        source = f" 'nonce-{{nonce}}'" if nonce.text else ""
        response["Content-Security-Policy"] = {POLICY!r}.replace("style-src 'self'", "style-src 'self'" + source)
        return response
    return answer
"""
#: The recipes, by the name of their page, and the channels that they follow.
RECIPES = {
    "open-stream": "orders",
    "plain": "orders",
    "htmx": "order-rows",
    "htmx-stream": "order-rows",
    "turbo": "order-streams",
    "turbo-stream": "order-streams",
}
#: What Chromium and htmx say of a connection that was lost, or refused.
NETWORK = re.compile(r"ERR_CONNECTION_|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_SOCKET|htmx:sse|\[object Event\]")
REFUSED = re.compile(rf"{NETWORK.pattern}|status of 503|MIME type")


class Shop:
    """The site that the pages build, its server, and a process beside it."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.port = free_port()
        self.server: subprocess.Popen[bytes] | None = None
        self.shell = subprocess.Popen(
            [sys.executable, "-c", SHELL],
            cwd=project.folder,
            env=project.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        log = (self.project.folder / "server.log").open("ab")
        command = [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{self.port}"]
        with log:
            self.server = subprocess.Popen(
                command, cwd=self.project.folder, env=self.project.environment, stdout=log, stderr=log
            )
        end = time.monotonic() + SECONDS
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
            try:
                connection.request("GET", "/is-there-anybody/")
                connection.getresponse().read()
                return
            except OSError:
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.05)
            finally:
                connection.close()

    def kill(self) -> None:
        """End the server at once."""
        if self.server is not None:
            self.server.send_signal(signal.SIGKILL)
            self.server.wait(SECONDS)
            self.server = None

    def run(self, code: str) -> Any:
        """What an expression gives in another process."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(json.dumps(code) + "\n")
        self.shell.stdin.flush()
        assert select.select([self.shell.stdout], [], [], SECONDS)[0], f"no answer: {code}"
        return json.loads(self.shell.stdout.readline())

    def place(self, *items: str) -> list[str]:
        """Make orders; the `id` of their rows."""
        return [f"order-{self.run(f'place({item!r}).pk')}" for item in items]

    def switch(self, name: str, *, is_active: bool) -> None:
        """Switch a channel off or on."""
        self.run(f"switch({name!r}, {is_active})")

    def close(self) -> None:
        """End both."""
        self.kill()
        self.shell.kill()
        self.shell.communicate()


SHELL = """
import json, sys, django
django.setup()
from events.models import Channel
from events.registry import event_backends
from events import publish
from orders.rows import place

def switch(name, is_active):
    channel = Channel.objects.get(name=name)
    channel.is_active = is_active
    channel.save()

for line in sys.stdin:
    print(json.dumps(eval(json.loads(line))), flush=True)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The quickstart's site as far as the recipes need it, and what docs/client.md adds."""
    modules = ROOT / "node_modules"
    require_that(modules.is_dir(), "node_modules", "`npm install` was not run")
    project = Project(tmp_path_factory.mktemp("recipes"))
    for heading in ("1. A project", "2. A channel", "4. Publish in a transaction"):
        project.follow("docs/quickstart.md", text=chapter("docs/quickstart.md", heading))
    project.follow("docs/client.md")
    vendor = project.folder / "orders" / "static" / "vendor"
    vendor.mkdir(parents=True)
    for name in VENDOR:
        shutil.copy(modules / name, vendor)
    settings = project.folder / "shop" / "settings.py"
    settings.write_text(settings.read_text() + SETTINGS)
    (project.folder / "shop" / "strict.py").write_text(MIDDLEWARE)
    with closing(Shop(project)) as shop:
        shop.start()
        yield shop


class Reader(Visitor):
    """A page of the shop, and what went wrong on it."""

    def __init__(self, page: Page, shop: Shop) -> None:
        super().__init__(page)
        self.shop = shop
        #: Each stream that the page has asked for.
        self.streams: list[str] = []
        page.on("request", lambda request: self.streams.append(request.url) if "/stream/?" in request.url else None)
        page.add_init_script(WATCH)
        # Every browser asks for it, and the quickstart's site has none.
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))

    def open(self, name: str) -> None:
        """Go to a recipe's page."""
        self.page.goto(f"http://127.0.0.1:{self.shop.port}/{name}/")

    def rows(self) -> list[str]:
        """The rows that are shown, oldest first."""
        found: list[str] = self.page.locator("#rows li").evaluate_all("rows => rows.map(row => row.id)")
        return found[::-1]

    def added(self) -> list[str]:
        """The rows that scripts have put into the page since it was loaded, each time that one did, oldest first."""
        found: list[str] = self.page.evaluate("window.added")
        return found

    def wait_for(self, row: str) -> None:
        """Until the page shows the row."""
        self.page.locator(f"#{row}").wait_for(state="attached")


#: Notes each row that is put into the page after it was parsed. One that moves counts again: so would a repeat.
WATCH = """
window.added = [];
addEventListener("DOMContentLoaded", () => new MutationObserver((records) => {
  for (const { addedNodes } of records)
    for (const node of addedNodes)
      if (node.localName === "li") added.push(node.id);
}).observe(document.body, { childList: true, subtree: true }));
"""


@pytest.fixture
def visitor(browser: Browser, shop: Shop) -> Iterator[Reader]:
    """Somebody whose pages may have no fault."""
    context = browser.new_context()
    context.set_default_timeout(GUARD)
    visitor = Reader(context.new_page(), shop)
    yield visitor
    context.close()
    assert visitor.unexpected == []


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_published_before_the_page_subscribes_is_on_it(name: str, shop: Shop, visitor: Reader) -> None:
    """What came before rendering is in the page; what came after it, before any script ran, is the stream's first."""
    before = shop.place("Tea", "Coffee")
    between: list[str] = []

    def publish(route: Route) -> None:
        # The page is there, and nothing of it has run.
        if not between:
            between.extend(shop.place("Milk", "Sugar"))
        route.continue_()

    visitor.page.route("**/*.js", publish)
    visitor.open(name)
    visitor.wait_for(between[-1])
    after = shop.place("Bread")
    visitor.wait_for(after[0])
    assert visitor.rows()[-5:] == [*before, *between, *after]
    assert visitor.added() == [*between, *after]
    assert len(visitor.streams) == 1


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_that_is_on_the_page_and_in_the_stream_is_shown_once(name: str, shop: Shop, visitor: Reader) -> None:
    """An order that was made after the page's cursor and before its query comes as an event, too."""
    cursor = shop.run("str(event_backends['default'].head())")
    row, last = shop.place("both", "last")
    # What the page says is the newest cursor: let it say the one from before.
    newest = shop.run("str(event_backends['default'].head())")

    def earlier(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=response.text().replace(newest, cursor))

    visitor.page.route(f"**/{name}/", earlier)
    visitor.open(name)
    wait_for(visitor.page, lambda: last in visitor.added(), "the stream has brought both")
    assert sorted(set(visitor.added())) == sorted([row, last])
    assert visitor.rows()[-2:] == [row, last]
    assert visitor.page.locator(f"#{row}, #{last}").count() == 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_server_killed_and_started_again_costs_no_row_and_brings_none_twice(
    name: str, shop: Shop, visitor: Reader
) -> None:
    """What is published while nobody serves comes when somebody does: in order, once."""
    visitor.expected = NETWORK
    visitor.open(name)
    rows = shop.place("first")
    visitor.wait_for(rows[0])
    for _ in range(2):
        shop.kill()
        try:
            rows += shop.place("nobody", "serves")
        finally:
            shop.start()
        visitor.wait_for(rows[-1])
        rows += shop.place("again")
        visitor.wait_for(rows[-1])
    assert visitor.added() == rows
    assert visitor.rows()[-len(rows) :] == rows


def refuse_once(visitor: Reader) -> list[str]:
    """Answer 503 to the next stream that the page asks for, as a proxy does while the site restarts."""
    refused: list[str] = []

    def answer(route: Route) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.fulfill(status=503, content_type="text/plain", body="The site restarts.")

    visitor.page.route("**/stream/?**", answer)
    return refused


# Turbo's own sources do not come back, as the page says.
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "turbo"])
def test_a_refusal_while_the_site_restarts_costs_no_row_and_brings_none_twice(
    name: str, shop: Shop, visitor: Reader
) -> None:
    """After a 503, which ends an EventSource for good, the page goes on behind what it has shown."""
    visitor.expected = REFUSED
    visitor.open(name)
    rows = shop.place("first", "second")
    visitor.wait_for(rows[-1])
    shop.kill()
    refused = refuse_once(visitor)
    try:
        rows += shop.place("nobody serves")
    finally:
        shop.start()
    visitor.wait_for(rows[-1])
    assert len(refused) == 1
    rows += shop.place("again")
    visitor.wait_for(rows[-1])
    assert visitor.added() == rows


def test_htmx_alone_begins_again_where_the_page_was_rendered(shop: Shop, visitor: Reader) -> None:
    """Without the recipe's second listener, what was shown comes once more after a 503: what the page says of it."""
    scripts = [block.text for block in blocks("docs/client.md", "js")]
    (script,) = [text for text in scripts if text.startswith("// orders/static/orders/htmx.js\n")]
    part = script[: script.index("// A source that was refused")]
    assert part != script
    visitor.page.route("**/htmx.js", lambda route: route.fulfill(content_type="text/javascript", body=part))
    visitor.expected = REFUSED
    visitor.open("htmx")
    rows = shop.place("first", "second")
    visitor.wait_for(rows[-1])
    shop.kill()
    refuse_once(visitor)
    shop.start()
    after = shop.place("after")
    visitor.wait_for(after[0])
    assert visitor.added() == [*rows, *rows, *after]


@pytest.mark.parametrize("name", RECIPES)
def test_what_users_wrote_is_text(name: str, shop: Shop, visitor: Reader) -> None:
    """Markup in an order's name is letters, also where the row comes as HTML."""
    visitor.open(name)
    text = f'<img src=x onerror="alert(1)"><script>alert({uuid.uuid4().int})</script></template></li>&amp;'
    (row,) = shop.place(text)
    visitor.wait_for(row)
    assert visitor.page.locator(f"#{row}").inner_text() == f"{text}: new"
    assert visitor.page.locator("#rows > *:not(li), #rows li > *").count() == 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_reset_loads_the_rows_anew(name: str, shop: Shop, visitor: Reader) -> None:
    """Where events are missing, the page takes what it shows from the site again, and goes on from there."""
    asked: list[str] = []
    missed: list[str] = []

    def spoil(route: Route) -> None:
        # A cursor that is none: the first stream begins with a reset, behind what was published meanwhile.
        asked.append(route.request.url)
        if len(asked) > 1:
            route.continue_()
            return
        missed.extend(shop.place("missed"))
        route.continue_(url=re.sub("last_event_id=[^&]*", "last_event_id=garbage", route.request.url))

    visitor.page.route("**/stream/?**", spoil)
    visitor.open(name)
    wait_for(visitor.page, lambda: len(asked) == 2, "the page asks for a second stream")
    visitor.wait_for(missed[0])
    rows = shop.place("after")
    visitor.wait_for(rows[0])
    assert visitor.rows()[-2:] == [*missed, *rows]
    assert visitor.page.locator(f"#{missed[0]}").count() == 1
    assert len(asked) == 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_channel_that_is_switched_off_is_not_asked_for_again(name: str, shop: Shop, visitor: Reader) -> None:
    """The page takes `stream-closed` for an end: no further request, so no refusal."""
    visitor.open(name)
    rows = shop.place("first")
    visitor.wait_for(rows[0])
    ended: list[str] = []
    visitor.page.on("requestfinished", lambda request: ended.append(request.url))
    visitor.page.on("requestfailed", lambda request: ended.append(request.url))
    shop.switch(RECIPES[name], is_active=False)
    try:
        wait_for(visitor.page, lambda: any("/stream/?" in url for url in ended), "the stream has ended")
        # Longer than `RETRY`: whoever comes back has done so.
        visitor.page.wait_for_timeout(1500)
    finally:
        shop.switch(RECIPES[name], is_active=True)
    assert len(visitor.streams) == 1


def test_the_element_shows_rows_by_the_template(shop: Shop, visitor: Reader) -> None:
    """What stands under `<live-channel>`: its slots, and the fields of what is published."""
    visitor.open("element")
    element = visitor.page.locator("live-channel")
    expect(element).to_have_attribute("data-state", "live", timeout=GUARD)
    expect(element.get_by_role("heading")).to_have_text("What is new", timeout=GUARD)
    expect(element.get_by_text("Nothing yet.")).to_be_visible(timeout=GUARD)
    shop.run("publish('news', {'title': '<b>Doors</b> open', 'room': 'Hall 2'}).id")
    row = element.locator("article")
    expect(row.locator("strong")).to_have_text("<b>Doors</b> open", timeout=GUARD)
    expect(row.locator("span")).to_have_text("Hall 2")
    expect(element.get_by_text("Nothing yet.")).to_be_hidden(timeout=GUARD)


def test_the_types_of_what_is_shown_are_right(tmp_path: Path) -> None:
    """TypeScript has nothing to say of the blocks that only a bundler reads."""
    modules = ROOT / "node_modules"
    require_that(modules.is_dir(), "node_modules", "`npm install` was not run")
    static = ROOT / "events" / "static" / "events"
    shown = [*blocks("docs/client.md", "ts", "jsx"), *blocks("README.md", "jsx")]
    assert {block.language for block in shown} == {"ts", "jsx"}
    for number, block in enumerate(shown):
        # JavaScript does not say what is published: as the page says it for TypeScript.
        text = block.text.replace("useEventStream(", "useEventStream<{ title: string }>(")
        (tmp_path / f"block{number}.{'ts' if block.language == 'ts' else 'tsx'}").write_text(text)
    options = {
        **dict.fromkeys(("strict", "noEmit", "skipLibCheck", "allowJs"), True),
        "target": "ES2022",
        "module": "ESNext",
        "moduleResolution": "bundler",
        "jsx": "react-jsx",
        "types": [],
        "paths": {
            "django-live-events": [str(static / "live-events.d.ts")],
            "django-live-events/react": [str(static / "react.d.ts")],
            "react": [str(modules / "@types/react")],
            "react/*": [str(modules / "@types/react/*")],
        },
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["block*"]}))
    command = [str(modules / ".bin" / "tsc"), "--project", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
