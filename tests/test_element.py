"""`<live-channel>` in Chromium, against real servers, under the strictest policy that it promises to work under."""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from .browsers import GUARD, Visitor, browser, demo, live, plain, shown_ids, visit, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from .servers import Server

    Show = Callable[..., Page]
    Burst = tuple[Page, Callable[[int], list[str]]]

pytestmark = pytest.mark.browser

__all__ = ["browser", "demo", "plain", "visit"]  # fixtures

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'"
EVIL = '<img src=x onerror="window.harmed=true"><script>window.harmed=true</script><b>bold</b>'
#: What Chromium says of answers that are not 200.
REFUSALS = re.compile("Failed to load resource")


@pytest.fixture
def show(plain: Server, visit: Callable[[Server, str], Visitor]) -> Show:
    """Opens a page of the plain site's origin with that markup on it, and the module."""
    visitors: list[Visitor] = []

    def show_page(
        markup: str,
        *,
        head: str = "",
        lang: str = "en",
        module: bool = True,
        expected: re.Pattern[str] | None = None,
        clock: bool = False,
    ) -> Page:
        visitor = visit(plain, "/blank/")
        visitors.append(visitor)
        if clock:
            visitor.page.clock.install()
        if expected:
            visitor.expected = expected
        script = '<script type="module" src="/static/events/live-channel.js"></script>' if module else ""
        body = (
            f"<!doctype html><html lang='{lang}'><meta name=color-scheme content='light dark'>"
            f"<link rel=icon href='data:,'><title>page</title>{head}<body>{markup}{script}"
        )
        headers = {"Content-Security-Policy": POLICY, "Content-Type": "text/html; charset=utf-8"}
        visitor.page.route("**/shown/", lambda route: route.fulfill(body=body, headers=headers))
        visitor.page.goto(f"http://127.0.0.1:{plain.port}/shown/")
        return visitor.page

    return show_page


def streams_of(plain: Server) -> int:
    """How many streams the site has open, in all of its processes."""
    found: dict[int, int] = {}
    for _ in range(200):
        answer = plain.json("/debug/")
        found[answer["process"]] = answer["streams"]
        if len(found) == plain.workers:
            break
    return sum(found.values())


def row(page: Page, cursor: str) -> Any:
    return page.locator(f'[data-event-id="{cursor}"]')


def part(page: Page, name: str) -> Any:
    return page.locator(f'[part~="{name}"]')


def gathered(page: Page, *types: str) -> None:
    """Collect the events of the element that come to the document, in `got`."""
    page.evaluate(
        """types => {
          window.got = [];
          for (const type of types) {
            document.addEventListener(type, ({ detail }) => {
              const { status, error, reason } = detail ?? {};
              got.push(status ? [type, status, error && error.status, reason] : [type, detail]);
            });
          }
        }""",
        list(types),
    )


class TestRows:
    """What is shown."""

    def test_a_bare_element_shows_events_newest_first(self, plain: Server, show: Show, name: str) -> None:
        """One tag and one module are a live list, under the strictest policy."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        live(page)
        expect(part(page, "status")).to_have_text("Live")
        expect(part(page, "empty")).to_have_text("Waiting for the first message…")
        cursors = [plain.site.publish(name, text) for text in ("one", "two", "three")]
        expect(row(page, cursors[-1])).to_contain_text("three")
        assert shown_ids(page) == cursors
        expect(part(page, "empty")).to_be_hidden()
        expect(part(page, "count")).to_have_text("3")
        # The rows are the element's children: a page's own rules reach them.
        assert page.locator("live-channel > .events-entry > .events-data > .events-text").count() == 3

    def test_each_kind_of_data_has_its_look(self, plain: Server, show: Show, name: str) -> None:
        """Text as it is, JSON objects by their keys, other JSON as a value; each cut to its limit."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        live(page)
        data = ["text", "x" * 4010, 5, [1, {"a": None}], {}, {"k" * 300: "v" * 300, "n": 1.5}]
        data.append({str(number) + "k": number for number in range(30)})
        cursors = [plain.site.publish(name, each) for each in data]
        texts = []
        for cursor in cursors:
            expect(row(page, cursor)).to_have_count(1)
            texts.append(row(page, cursor).locator(".events-data").text_content())
        assert texts[0] == "text"
        assert texts[1] == "x" * 4000 + " … and 10 more characters"
        assert texts[2:5] == ["5", '[1,{"a":null}]', "{}"]
        assert texts[5] == f"{'k' * 240}: {'v' * 240}… n: 1.5 "
        assert texts[6].endswith("23k: 23 … and 6 more")

    def test_text_is_never_parsed_as_html(self, plain: Server, show: Show, name: str) -> None:
        """In rows of its own look and of a template's: letters, no element, no script, no request."""  # promise 27
        page = show(
            f'<live-channel id="own" channels="{name}"></live-channel><live-channel id="template" channels="{name}">'
            '<template><p><b data-field="event"></b> <i data-field="data"></i><u data-field="data.k"></u></p>'
            "</template></live-channel>"
        )
        for each in page.locator("live-channel").all():
            expect(each).to_have_attribute("data-state", "live", timeout=GUARD)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        evil = [plain.site.publish(name, data, event=EVIL[:90]) for data in (EVIL, {EVIL: EVIL}, [EVIL], {"k": EVIL})]
        for cursor in evil:
            expect(row(page, cursor)).to_have_count(2)
        for element, fixed in (("own", 0), ("template", 4)):
            rows = page.locator(f"#{element} > [data-event-id]")
            assert rows.locator("img, script").count() == 0
            assert rows.locator("b").count() == fixed
            for index in range(4):
                expect(rows.nth(index)).to_contain_text("<img src=x onerror=")
        assert page.evaluate("window.harmed") is None
        assert requests == []

    def test_a_template_says_how_a_row_looks(self, plain: Server, show: Show, name: str) -> None:
        """Fields and paths get text; what an event does not have is empty; several elements are wrapped."""
        page = show(
            f'<live-channel id="one" channels="{name}"><template><article class="mine"><time data-field="time"></time>'
            '<h3 data-field="data.title"></h3><p data-field="data.place.0"></p><i data-field="data.__proto__"></i>'
            '<code data-field="id"></code><em data-field="channel"></em><s data-field="event"></s></article></template>'
            f'</live-channel><live-channel id="two" channels="{name}"><template><b data-field="data"></b>, and '
            '<time data-field="data.at"></time></template></live-channel>'
        )
        for each in page.locator("live-channel").all():
            expect(each).to_have_attribute("data-state", "live", timeout=GUARD)
        data = {"title": "Doors", "place": ["roof"], "at": "2026-01-02"}
        cursor = plain.site.publish(name, data, event="opened")
        mine = page.locator("#one > article.mine")
        expect(mine).to_have_attribute("data-event-id", cursor)
        assert mine.locator("h3, p, i, code, em, s").all_text_contents() == [
            "Doors",
            "roof",
            "",
            cursor,
            name,
            "opened",
        ]
        assert re.fullmatch(r"\d\d:\d\d:\d\d", mine.locator("time").inner_text())
        assert re.fullmatch(r"20\d\d-.*Z", str(mine.locator("time").get_attribute("datetime")))
        other = page.locator("#two > [data-event-id]")
        expect(other).to_have_text(json.dumps(data, separators=(",", ":")) + ", and 2026-01-02")
        expect(other.locator("time")).to_have_attribute("datetime", "2026-01-02")

    def test_a_field_that_no_event_has_is_said_to_the_author(self, show: Show, name: str) -> None:
        """A typing error would otherwise be an empty place."""
        said: list[str] = []
        page = show(
            f'<live-channel channels="{name}"><template><p data-field="titel"></p></template></live-channel>',
            module=False,
            expected=re.compile("data-field"),
        )
        page.on("console", lambda message: said.append(message.text))
        page.evaluate("import('/static/events/live-channel.js')")
        live(page)
        assert len(said) == 1
        assert 'data-field="titel" is nothing that an event has' in said[0]

    def test_rows_that_the_server_rendered_are_the_first(self, plain: Server, show: Show, name: str) -> None:
        """They are not added again, what is new comes above, what is older below; times are the visitor's."""
        old, first, second = (plain.site.publish(name, text) for text in ("old", "first", "second"))
        rows = "".join(
            f'<div class="events-entry" data-event-id="{cursor}"><time class="events-time" datetime='
            f'"2026-01-02T03:04:05Z">?</time><span class="events-channel">{name}</span>rendered</div>'
            for cursor in (second, first)
        )
        # From before all: the stream brings what is there already.
        epoch = old.rpartition("-")[0]
        attributes = f'channels="public.other {name}" cursor="{epoch}-0"'
        page = show(f"<live-channel {attributes}>{rows}</live-channel>", module=False)
        assert shown_ids(page) == [first, second]
        page.evaluate("import('/static/events/live-channel.js')")
        live(page)
        expect(row(page, old)).to_have_count(1)
        third = plain.site.publish(name, "third")
        expect(row(page, third)).to_have_count(1)
        assert shown_ids(page) == [old, first, second, third]
        assert page.locator("text=rendered").count() == 2
        assert row(page, first).get_attribute("data-hue") == "1"
        assert re.fullmatch(r"Jan [123] \d\d:\d\d:\d\d", row(page, first).locator("time").inner_text())

    @pytest.mark.parametrize("lang, count", [("de_DE", "1.234"), ("ar_EG.UTF-8", "1,234"), ("in two words", "1,234")])
    def test_a_language_that_the_browser_has_no_such_name_for(
        self, plain: Server, show: Show, name: str, lang: str, count: str
    ) -> None:
        """Gettext's name means the same; where there is none, figures and times are the browser's."""
        page = show(f'<live-channel channels="{name}" limit="1"></live-channel>', lang=lang)
        live(page)
        published = "publish_many([(name, f'message {n}') for n in range(1234)])"
        plain.site.run(f"from events import publish_many; {published}", name=name)
        expect(page.locator(".events-text")).to_have_text("message 1233")
        assert re.fullmatch(r"\d\d:\d\d:\d\d", page.locator(".events-time").inner_text())
        expect(part(page, "count")).to_have_text(count)

    def test_rows_that_the_page_took_away_take_no_others_with_them(self, plain: Server, show: Show, name: str) -> None:
        """What is older than the rows that are left comes among and below them."""
        oldest, fourth, third, second, newest = (plain.site.publish(name, text) for text in "abcde")
        rows = "".join(f'<p data-event-id="{cursor}">rendered</p>' for cursor in (newest, second, fourth))
        page = show(f'<live-channel channels="{name}" cursor="{newest}">{rows}</live-channel>')
        live(page)
        row(page, fourth).evaluate("row => row.remove()")
        for cursor in (third, oldest):
            page.locator("live-channel").evaluate(
                "(element, id) => element.stream.dispatchEvent(new CustomEvent('message', {detail: "
                "{id, channel: 'any', event: 'message', data: 'replayed'}}))",
                cursor,
            )
        expect(row(page, oldest)).to_have_count(1)
        assert shown_ids(page) == [oldest, third, second, newest]

    def test_rows_that_the_page_took_away_are_none_that_the_limit_allows(self, show: Show, name: str) -> None:
        """A smaller limit, or a note, takes away no more than it must."""
        rows = "".join(f'<p data-event-id="log-{number}">rendered</p>' for number in (3, 2, 1))
        page = show(f'<live-channel channels="{name}">{rows}</live-channel>')
        live(page)
        row(page, "log-3").evaluate("row => row.remove()")
        page.locator("live-channel").evaluate("element => element.setAttribute('limit', '2')")
        assert shown_ids(page) == ["log-1", "log-2"]
        row(page, "log-2").evaluate("row => row.remove()")
        note = "element => element.stream.dispatchEvent(new CustomEvent('stream-reset', {detail: {reason: 'trimmed'}}))"
        page.locator("live-channel").evaluate(note)
        expect(page.locator(".events-note")).to_have_count(1)
        assert shown_ids(page) == ["log-1"]

    def test_no_more_rows_than_the_limit(self, plain: Server, show: Show, name: str) -> None:
        """The oldest go, also when the limit is made smaller; a word is the same as no limit."""
        page = show(f'<live-channel channels="{name}" limit="5"></live-channel>')
        live(page)
        cursors = plain.site.run("result = [publish(name, str(n)).id for n in range(30)]", name=name)
        expect(row(page, cursors[-1])).to_have_count(1)
        assert shown_ids(page) == cursors[-5:]
        page.evaluate("document.querySelector('live-channel').setAttribute('limit', '2')")
        assert shown_ids(page) == cursors[-2:]
        page.evaluate("document.querySelector('live-channel').setAttribute('limit', 'many')")
        more = plain.site.run("result = [publish(name, str(n)).id for n in range(120)]", name=name)
        expect(row(page, more[-1])).to_have_count(1)
        wait_for(page, lambda: shown_ids(page) == more[-100:], "the newest hundred are there")
        expect(part(page, "count")).to_have_text("150")

    def test_slots_and_texts_are_the_pages(self, show: Show, name: str) -> None:
        """A heading, something between bar and list, what stands for no rows, and every text in another language."""
        page = show(
            f'<live-channel channels="{name}" data-text-live="Läuft" data-text-pause="Anhalten" data-text-list="Neues">'
            '<h2 slot="heading">Head</h2><p slot="before">Before</p><p slot="empty">Nichts da</p></live-channel>'
        )
        live(page)
        expect(part(page, "status")).to_have_text("Läuft")
        expect(part(page, "pause")).to_have_text("Anhalten")
        expect(page.get_by_role("log", name="Neues")).to_have_count(1)
        heights = [
            page.locator(at).bounding_box() for at in ("h2", '[part="bar"]', '[slot="before"]', '[slot="empty"]')
        ]
        tops = [box["y"] for box in heights if box]
        assert len(tops) == 4
        assert tops == sorted(tops)
        assert page.get_by_text("Waiting for the first message").filter(visible=True).count() == 0

    def test_a_page_styles_rows_by_class_and_the_rest_by_part(self, plain: Server, show: Show, name: str) -> None:
        """No rule of the element's is in the way of a stylesheet of the page's."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        page.evaluate(
            """() => {
              const sheet = new CSSStyleSheet();
              sheet.replaceSync(`.events-text { color: rgb(1, 2, 3); }
                live-channel::part(bar) { background: rgb(4, 5, 6); } live-channel { border-color: rgb(7, 8, 9); }`);
              document.adoptedStyleSheets = [sheet];
            }"""
        )
        live(page)
        plain.site.publish(name, "styled")
        expect(page.locator(".events-text")).to_have_css("color", "rgb(1, 2, 3)")
        expect(part(page, "bar")).to_have_css("background-color", "rgb(4, 5, 6)")
        expect(page.locator("live-channel")).to_have_css("border-top-color", "rgb(7, 8, 9)")


class TestLife:
    """When there is a stream, and which."""

    def test_removing_it_closes_the_stream_and_adding_it_goes_on(self, plain: Server, show: Show, name: str) -> None:
        """Out of the document it holds no connection; back again it has what was published meanwhile, once."""
        # promise 28
        page = show(f'<live-channel channels="{name}"></live-channel>')
        live(page)
        first = plain.site.publish(name, "first")
        expect(row(page, first)).to_have_count(1)
        before = wait_for(page, lambda: streams_of(plain), "the stream is there")
        page.evaluate("window.element = document.querySelector('live-channel'); window.stream = element.stream")
        page.evaluate("element.remove()")
        assert page.evaluate("[stream.status, element.stream]") == ["closed", None]
        wait_for(page, lambda: streams_of(plain) == before - 1, "the server has noticed")
        between = plain.site.publish(name, "between")
        page.evaluate("document.body.append(element)")
        live(page)
        expect(row(page, between)).to_have_count(1)
        last = plain.site.publish(name, "last")
        expect(row(page, last)).to_have_count(1)
        assert shown_ids(page) == [first, between, last]

    @pytest.mark.parametrize("share", ["", "share"])
    def test_adding_it_again_goes_on_before_the_first_event_too(
        self, plain: Server, show: Show, name: str, share: str
    ) -> None:
        """It goes on from where it began to follow, though its page gave it no cursor."""
        page = show(f'<live-channel channels="{name}" {share}></live-channel>')
        live(page)
        page.evaluate("window.element = document.querySelector('live-channel'); element.remove()")
        between = plain.site.publish(name, "between")
        page.evaluate("document.body.append(element)")
        expect(row(page, between)).to_have_count(1)
        assert shown_ids(page) == [between]

    @pytest.mark.parametrize(
        "reopen",
        [
            "element.remove(); setTimeout(() => document.body.append(element))",
            "element.channels = [...element.channels, 'public.other']",
        ],
    )
    def test_what_channels_replay_comes_though_the_stream_before_it_brought_nothing(
        self, plain: Server, show: Show, reopen: str
    ) -> None:
        """The first connection has told where it begins, and broken: the next stream gets what a new one gets."""
        name = f"all.{uuid.uuid4().hex}"
        cursors = [plain.site.publish(name, str(number)) for number in range(3)]
        page = show(f'<live-channel channels="{name}"></live-channel>', module=False)
        answer = {"Content-Type": "text/event-stream", "Events-Cursor": cursors[-1]}
        # It does not come back by itself.
        body = "retry: 600000\n\n"
        page.route("**/events/stream/**", lambda route: route.fulfill(headers=answer, body=body))
        gathered(page, "live-event")
        page.evaluate("import('/static/events/live-channel.js')")
        page.evaluate("window.element = document.querySelector('live-channel')")
        live(page, "reconnecting")
        assert page.evaluate("element.stream.cursor") == cursors[-1]
        page.unroute("**/events/stream/**")
        page.evaluate(f"() => {{ {reopen}; }}")
        for cursor in cursors:
            expect(row(page, cursor)).to_have_count(1)
        # Only once.
        page.evaluate("element.remove()")
        cursors.append(plain.site.publish(name, "between"))
        page.evaluate("document.body.append(element)")
        expect(row(page, cursors[-1])).to_have_count(1)
        assert shown_ids(page) == cursors
        assert [detail["id"] for _, detail in page.evaluate("got")] == cursors

    @pytest.mark.parametrize("reason, cursor", [("epoch", "new-7"), ("trimmed", "old-1")])
    def test_it_goes_on_from_where_a_reset_has_left_it(self, show: Show, name: str, reason: str, cursor: str) -> None:
        """In the log that was begun anew, or where it was, for the channels that were not trimmed."""
        reset = {"channels": ["another"], "reason": reason, "cursor": "new-7"}
        event = json.dumps({"channel": name, "event": "message", "data": "before"})
        body = f"retry: 600000\n\nid: old-1\ndata: {event}\n\nevent: stream-reset\ndata: {json.dumps(reset)}\n\n"
        page = show(f'<live-channel channels="{name}"></live-channel>', module=False)
        asked: list[str] = []

        def answer(route: Route) -> None:
            asked.append(route.request.url)
            route.fulfill(headers={"Content-Type": "text/event-stream"}, body=body)

        page.route("**/events/stream/**", answer)
        page.evaluate("import('/static/events/live-channel.js')")
        live(page, "reconnecting")
        expect(page.locator(".events-note")).to_have_count(1)
        page.evaluate("name => { document.querySelector('live-channel').channels = [name, 'another']; }", name)
        wait_for(page, lambda: len(asked) == 2, "it has asked again")
        query = dict(parse_qsl(asked[1].partition("?")[2]))
        assert (query["last_event_id"], query.get("replay")) == (cursor, None)

    def test_a_loop_over_its_stream_that_is_not_done_brings_nothing_twice(
        self, plain: Server, show: Show, name: str
    ) -> None:
        """What the element has shown it does not ask for again, though the stream does not count it yet."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        gathered(page, "live-event")
        live(page)
        page.evaluate(
            """async () => {
              window.element = document.querySelector("live-channel");
              (async () => { for await (const _ of element.stream) await new Promise(() => {}); })();
            }"""
        )
        first = plain.site.publish(name, "first")
        expect(row(page, first)).to_have_count(1)
        page.evaluate("name => { element.channels = [name, 'public.other']; }", name)
        second = plain.site.publish(name, "second")
        expect(row(page, second)).to_have_count(1)
        assert [detail["id"] for _, detail in page.evaluate("got")] == [first, second]

    def test_moving_it_keeps_the_stream(self, plain: Server, show: Show, name: str) -> None:
        """A sorted or filtered page does not connect anew."""
        page = show(f'<main></main><live-channel channels="{name}"></live-channel>')
        live(page)
        kept = page.evaluate(
            """async () => {
              const element = document.querySelector("live-channel");
              const { stream } = element;
              const main = document.querySelector("main");
              main.append(element);
              await new Promise((done) => setTimeout(done));
              element.remove();
              main.prepend(element);
              await new Promise((done) => setTimeout(done));
              return stream && element.stream === stream && stream.status;
            }"""
        )
        assert kept == "open"
        cursor = plain.site.publish(name, "still there")
        expect(row(page, cursor)).to_have_count(1)

    def test_no_listener_is_left_behind(self, show: Show, name: str) -> None:
        """What it hears of window and document, it hears while it is there."""
        page = show("", module=False)
        page.evaluate(
            """() => {
              window.heard = 0;
              for (const target of [window, document]) {
                const add = target.addEventListener.bind(target);
                target.addEventListener = (type, listener, options) => {
                  heard++;
                  options?.signal?.addEventListener("abort", () => heard--);
                  add(type, listener, options);
                };
              }
            }"""
        )
        page.evaluate("import('/static/events/live-channel.js')")
        page.evaluate(
            """name => {
              window.element = document.createElement("live-channel");
              element.channels = [name];
              document.body.append(element);
            }""",
            name,
        )
        live(page)
        assert page.evaluate("heard") > 3
        page.evaluate("element.remove()")
        assert page.evaluate("heard") == 0

    def test_other_channels_are_one_new_stream_from_the_cursor(self, plain: Server, show: Show, name: str) -> None:
        """As property and as attribute; two changes at once are one; none is said."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        live(page)
        first = plain.site.publish(name, "first")
        expect(row(page, first)).to_have_count(1)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.evaluate("window.element = document.querySelector('live-channel'); element.channels = []")
        live(page, "closed")
        expect(part(page, "status")).to_have_text("No channel chosen")
        expect(part(page, "notice-text")).to_have_text("Choose at least one channel.")
        # It was asked for: that is no error, and does not look like one.
        ink = part(page, "count").evaluate("(node) => getComputedStyle(node).color")
        assert part(page, "status").evaluate("(node) => getComputedStyle(node).color") == ink
        expect(part(page, "retry")).to_be_hidden()
        assert page.evaluate("element.stream") is None
        other = f"{name}.other"
        missed = plain.site.publish(other, "while there was no stream")
        page.evaluate("([a, b]) => { element.channels = [a]; element.channels = [a, b, b]; }", [name, other])
        live(page)
        expect(row(page, missed)).to_have_count(1)
        assert page.evaluate("element.channels") == [name, other]
        assert len(requests) == 1
        assert shown_ids(page) == [first, missed]

    def test_what_was_set_before_the_module_came_counts(self, plain: Server, show: Show, name: str) -> None:
        """Frameworks set properties whether the element is defined or not."""
        page = show("<live-channel></live-channel>", module=False)
        page.evaluate(
            "name => Object.assign(document.querySelector('live-channel'), { channels: [name], paused: true })", name
        )
        page.evaluate("import('/static/events/live-channel.js')")
        live(page, "paused")
        assert page.locator("live-channel").get_attribute("channels") == name

    def test_a_module_that_is_loaded_twice_does_no_harm(self, show: Show, name: str) -> None:
        """Static files can have two names."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        page.evaluate("import('/static/events/live-channel.js?again')")
        live(page)

    def test_channels_that_are_no_array_are_refused(self, show: Show) -> None:
        """A text would be followed letter by letter."""
        page = show('<live-channel channels=""></live-channel>')
        live(page, "closed")
        assert (
            page.evaluate(
                """() => {
              try {
                document.querySelector("live-channel").channels = "news";
              } catch (error) {
                return String(error);
              }
            }"""
            )
            == "TypeError: <live-channel>: channels is an array of names, not news"
        )

    def test_the_page_s_cursor_is_where_it_begins(self, plain: Server, show: Show, name: str) -> None:
        """What was published between rendering and subscribing comes; what is older does not."""
        plain.site.publish(name, "before")
        cursor = plain.site.publish(name, "rendered")
        missed = plain.site.publish(name, "between")
        page = show(f'<live-channel channels="{name}" cursor="{cursor}"></live-channel>')
        expect(row(page, missed)).to_have_count(1)
        assert shown_ids(page) == [missed]

    def test_what_channels_replay_comes_where_it_is_asked_for(self, plain: Server, show: Show) -> None:
        """With the page's cursor, too."""
        name = f"all.{uuid.uuid4().hex}"
        cursors = [plain.site.publish(name, str(number)) for number in range(3)]
        page = show(f'<live-channel channels="{name}" cursor="{cursors[-1]}" replay></live-channel>')
        expect(row(page, cursors[0])).to_have_count(1)
        assert shown_ids(page) == cursors

    def test_a_reload_goes_on_where_the_page_was(self, plain: Server, show: Show, name: str) -> None:
        """With `persist`, under the name that is given."""
        page = show(f'<live-channel channels="{name}" persist="mine"></live-channel>')
        live(page)
        seen = plain.site.publish(name, "seen")
        expect(row(page, seen)).to_have_count(1)
        assert page.evaluate("sessionStorage.getItem('mine')") == seen
        page.route("**/elsewhere/", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
        address = page.url
        page.goto(address.replace("/shown/", "/elsewhere/"))
        missed = plain.site.publish(name, "missed")
        page.goto(address)
        expect(row(page, missed)).to_have_count(1)
        assert shown_ids(page) == [missed]

    def test_tabs_share_a_connection_and_each_shows_all(
        self, plain: Server, show: Show, browser: Browser, name: str
    ) -> None:
        """With `share`, a second tab paints what the first one's connection brings."""
        before = streams_of(plain)
        markup = f'<live-channel channels="{name}" share></live-channel>'
        pages = [show(markup), show(markup)]
        for page in pages:
            live(page)
        cursors = [plain.site.publish(name, text) for text in ("one", "two")]
        for page in pages:
            page.bring_to_front()
            expect(row(page, cursors[-1])).to_have_count(1)
            assert shown_ids(page) == cursors
        wait_for(pages[0], lambda: streams_of(plain) == before + 1, "there is one connection for both")

    def test_options_of_the_stream_are_attributes(self, show: Show, name: str) -> None:
        """Address and credentials, as `fetch` has them; nothing else is asked for."""
        page = show("")
        asked: list[str] = []

        def answer(route: Route) -> None:
            asked.append(route.request.url)
            route.fulfill(status=204)

        page.route("**/mine/**", answer)
        page.evaluate(
            """name => {
              window.fetched = [];
              const { fetch } = window;
              window.fetch = (url, options) => (fetched.push(options.credentials), fetch(url, options));
              const element = document.createElement("live-channel");
              for (const [key, value] of Object.entries({ channels: name, src: "/mine/?a=1", credentials: "omit" })) {
                element.setAttribute(key, value);
              }
              document.body.append(element);
            }""",
            name,
        )
        live(page, "closed")
        assert [url.partition("/mine/")[2] for url in asked] == [f"?a=1&channel={name}&envelope=1"]
        assert page.evaluate("fetched") == ["omit"]
        expect(part(page, "status")).to_have_text("Closed: the server has ended it")

    @pytest.mark.parametrize(
        "attribute, said", [('credentials="yes"', "credentials is .*, not yes"), ('src="//["', "URL")]
    )
    def test_an_attribute_that_cannot_be_is_said(self, show: Show, name: str, attribute: str, said: str) -> None:
        """It is closed, as an element and in words, and the console has it for the author."""
        page = show(f'<live-channel channels="{name}" {attribute}></live-channel>', expected=re.compile("TypeError"))
        live(page, "closed")
        expect(part(page, "status")).to_have_text(re.compile(f"^Closed: .*{said}"))
        # Nothing that would be the same the next time.
        expect(part(page, "retry")).to_be_hidden()
        page.evaluate(
            """() => {
              const element = document.querySelector("live-channel");
              element.removeAttribute("credentials");
              element.setAttribute("src", "/events/stream/");
            }"""
        )
        live(page)


class TestWords:
    """What it says about its connection."""

    @pytest.mark.parametrize(
        "status, words, help_text",
        [
            (401, "you are not signed in", "Sign in, then try again."),
            (403, "you may not read it", "you have been signed out"),
            (404, "there is no such stream", "no stream at this address (status 404: sorry)"),
            (410, "there is no such stream", "(status 410: sorry)"),
            (400, "the server refused this stream", "The server’s answer: status 400: sorry"),
        ],
    )
    def test_a_refusal_is_named(
        self, plain: Server, show: Show, name: str, status: int, words: str, help_text: str
    ) -> None:
        """In a few words and with what it means; trying again is a button, and works."""
        page = show(f'<live-channel channels="{name}"></live-channel>', module=False, expected=REFUSALS)
        page.route(
            "**/events/stream/**", lambda route: route.fulfill(status=status, body="sorry", content_type="text/plain")
        )
        gathered(page, "live-status")
        page.evaluate("import('/static/events/live-channel.js')")
        live(page, "closed")
        expect(part(page, "status")).to_have_text(f"Closed: {words}")
        expect(part(page, "notice-text")).to_contain_text(help_text)
        assert page.evaluate("got") == [["live-status", "connecting", None, ""], ["live-status", "closed", status, ""]]
        page.unroute("**/events/stream/**")
        part(page, "retry").click()
        live(page)
        expect(part(page, "notice")).to_be_hidden()
        # The button is gone: who used it by keyboard is at the next one.
        assert page.evaluate("document.activeElement.shadowRoot.activeElement.textContent") == "Pause"
        cursor = plain.site.publish(name, "back")
        expect(row(page, cursor)).to_have_count(1)

    def test_a_channel_that_nobody_may_read_is_refused_by_the_server_itself(self, show: Show) -> None:
        """Not only by a made-up answer."""
        page = show('<live-channel channels="staff.room"></live-channel>', expected=REFUSALS)
        live(page, "closed")
        expect(part(page, "status")).to_have_text("Closed: you may not read it")

    def test_the_reason_of_the_server_comes_with_the_status(self, plain: Server, show: Show, name: str) -> None:
        """Switched off: said in words, in the list where it happened, and to scripts."""
        channel = f"off-{uuid.uuid4().hex}"
        plain.site.run("Channel.objects.create(name=name, access='public')", name=channel)
        page = show(f'<live-channel channels="{channel}"></live-channel>', module=False, expected=REFUSALS)
        wait_for(
            page,
            lambda: {plain.get(f"/events/channels/{channel}/")[0] for _ in range(8)} == {200},
            "both processes know the channel",
        )
        gathered(page, "live-status")
        page.evaluate("import('/static/events/live-channel.js')")
        live(page)
        plain.site.run("row = Channel.objects.get(name=name); row.is_active = False; row.save()", name=channel)
        live(page, "closed")
        expect(part(page, "status")).to_have_text("Closed: a channel was switched off")
        expect(page.locator("live-channel > .events-note")).to_contain_text(
            "The server ended this stream: a channel was switched off"
        )
        assert page.evaluate("got.at(-1)") == ["live-status", "closed", None, "switched-off"]

    def test_what_is_wrong_is_said_while_it_is_tried_again(self, show: Show, name: str) -> None:
        """Since when, at once; after a while also why, with a button for who does not want to wait."""
        page = show(f'<live-channel channels="{name}"></live-channel>', module=False, expected=REFUSALS)
        page.route("**/events/stream/**", lambda route: route.fulfill(status=503, headers={"Retry-After": "600"}))
        page.clock.install()
        page.evaluate("import('/static/events/live-channel.js')")
        live(page, "reconnecting")
        expect(part(page, "status")).to_have_text(re.compile(r"Reconnecting since \d\d:\d\d:\d\d…"))
        expect(part(page, "status")).to_have_attribute("title", "status 503")
        expect(part(page, "notice")).to_be_hidden()
        page.clock.run_for(6000)
        expect(part(page, "notice-text")).to_have_text(
            "There is no connection at the moment (status 503). It is tried again by itself."
        )
        page.unroute("**/events/stream/**")
        part(page, "retry").click()
        live(page)
        expect(part(page, "notice")).to_be_hidden()

    def test_a_server_that_is_away_is_said_in_words(self, show: Show, name: str) -> None:
        """Not in those that a browser has for it."""
        expected = re.compile("ERR_FAILED")
        page = show(f'<live-channel channels="{name}"></live-channel>', module=False, expected=expected)
        page.route("**/events/stream/**", lambda route: route.abort())
        page.clock.install()
        page.evaluate("import('/static/events/live-channel.js')")
        live(page, "reconnecting")
        page.clock.run_for(6000)
        expect(part(page, "notice-text")).to_have_text(
            "The server cannot be reached at the moment. It is tried again by itself."
        )

    def test_offline_is_said_and_over_when_it_is_over(self, plain: Server, show: Show, name: str) -> None:
        """An open stream is believed more than the browser; a lost one is not tried for nothing."""
        page = show(
            f'<live-channel channels="{name}"></live-channel>', expected=re.compile("ERR_INTERNET_DISCONNECTED")
        )
        live(page)
        first = plain.site.publish(name, "first")
        expect(row(page, first)).to_have_count(1)
        page.context.set_offline(True)
        # Chromium leaves open connections alone: a new one is needed to notice.
        page.evaluate(
            "window.element = document.querySelector('live-channel'); element.channels = [...element.channels, 'x']"
        )
        live(page, "offline")
        expect(part(page, "status")).to_have_text(re.compile(r"Offline since \d\d:\d\d:\d\d"))
        expect(part(page, "notice-text")).to_contain_text("This device has no network")
        page.evaluate("name => { element.channels = [name]; }", name)
        missed = plain.site.publish(name, "missed")
        page.context.set_offline(False)
        live(page)
        expect(part(page, "notice")).to_be_hidden()
        expect(row(page, missed)).to_have_count(1)
        assert shown_ids(page) == [first, missed]

    def test_what_may_be_missing_is_noted_where_it_is_missing(self, plain: Server, show: Show, name: str) -> None:
        """A reset is a line of the list and an event."""
        page = show(f'<live-channel channels="{name}" cursor="elsewhere-5"></live-channel>', module=False)
        gathered(page, "live-reset")
        page.evaluate("import('/static/events/live-channel.js')")
        live(page)
        note = page.locator("live-channel > .events-note")
        expect(note).to_contain_text("Some messages may be missing here")
        expect(note).to_contain_text(f"Channels: {name}")
        ((kind, detail),) = page.evaluate("got")
        assert (kind, detail["channels"]) == ("live-reset", [name])
        cursor = plain.site.publish(name, "after")
        expect(row(page, cursor)).to_have_count(1)
        # Newest first: the note is below what came after it.
        assert page.evaluate("[...document.querySelector('live-channel').children].map((row) => row.className)") == [
            "events-entry",
            "events-note",
        ]

    def test_the_mark_has_another_shape_for_each_state(self, show: Show, name: str) -> None:
        """Who sees no colours sees the state all the same."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        live(page)
        shapes = page.evaluate(
            """() => {
              const element = document.querySelector("live-channel");
              const style = getComputedStyle(element.shadowRoot.querySelector("[part=mark]"));
              const shapes = ["connecting", "live", "offline", "paused", "closed"].map((state) => {
                element.dataset.state = state;
                const { borderRadius, transform, borderTopWidth, animationName } = style;
                return JSON.stringify([borderRadius, transform, borderTopWidth, animationName]);
              });
              return new Set(shapes).size;
            }"""
        )
        assert shapes == 5


class TestBursts:
    """More events at once than fit into a view: the document has what is seen, and the rest when it is calm."""

    VIEW = 30

    @pytest.fixture
    def burst(self, plain: Server, show: Show, name: str) -> Burst:
        """A page whose time stands still, and what makes it go on."""
        page = show(f'<live-channel channels="{name}" limit="300"></live-channel>', clock=True)
        live(page)
        page.evaluate("document.addEventListener('live-event', () => (window.came = (window.came ?? 0) + 1))")
        page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)
        published: list[str] = []

        def publish(count: int) -> list[str]:
            code = "result = [event.id for event in publish_many([(name, f'message {n}') for n in range(count)])]"
            published.extend(plain.site.run(f"from events import publish_many; {code}", name=name, count=count))
            wait_for(page, lambda: page.evaluate("window.came") == len(published), "the page has all")
            return published

        return page, publish

    def test_the_newest_come_first_and_the_others_when_it_is_calm(self, burst: Burst) -> None:
        """Each once, and in order; the list never has a hole."""
        page, publish = burst
        published = publish(250)
        assert shown_ids(page) == []
        page.clock.run_for(120)
        assert shown_ids(page) == published[-self.VIEW :]
        publish(100)
        page.clock.run_for(120)
        assert shown_ids(page) == published[-self.VIEW :]
        # Few: they come above what is there.
        publish(2)
        page.clock.run_for(120)
        assert shown_ids(page) == published[-self.VIEW - 2 :]
        found = []
        for _ in range(60):
            page.clock.run_for(32)
            found.append(shown_ids(page))
        assert all(shown == published[-len(shown) :] for shown in found)
        assert len(found[-1]) == 300

    def test_rows_that_the_page_took_away_keep_no_others_out(self, burst: Burst) -> None:
        """Not even the last ones, after which the others come."""
        page, publish = burst
        published = publish(100)
        page.clock.run_for(120)
        gone = published[-self.VIEW : -self.VIEW + 2]
        for cursor in gone:
            row(page, cursor).evaluate("row => row.remove()")
        page.clock.run_for(2000)
        assert shown_ids(page) == [cursor for cursor in published if cursor not in gone]

    def test_a_view_with_room_for_more_gets_more(self, burst: Burst) -> None:
        """A list as high as a high window."""
        page, publish = burst
        page.set_viewport_size({"width": 1200, "height": 2400})
        page.evaluate("document.querySelector('live-channel').style.setProperty('--events-height', '3000px')")
        published = publish(250)
        page.clock.run_for(120)
        for _ in range(3):
            publish(100)
            page.clock.run_for(120)
        shown = shown_ids(page)
        assert shown == published[-len(shown) :]
        assert self.VIEW < len(shown) < 150
        bottoms = "rows => rows.map(row => row.getBoundingClientRect().bottom)"
        assert max(page.locator("[data-event-id]").evaluate_all(bottoms)) >= 2400

    def test_who_scrolls_down_gets_the_others_at_once(self, burst: Burst) -> None:
        """And reads on undisturbed while the burst goes on."""
        page, publish = burst
        published = publish(250)
        page.clock.run_for(120)
        part(page, "list").evaluate("list => { list.scrollTop = 300; }")
        # Sooner than it could be taken for calm.
        for _ in range(8):
            page.clock.run_for(32)
            publish(1)
        shown = shown_ids(page)
        assert len(shown) > 150
        start = published.index(shown[0])
        assert shown == published[start : start + len(shown)]
        page.clock.run_for(2000)
        assert shown_ids(page) == published[-300:]

    def test_what_is_done_to_the_list_in_a_burst_is_done_to_all_of_it(self, burst: Burst) -> None:
        """A pause shows what came before it; a smaller limit and clearing take away what is not shown, too."""
        page, publish = burst
        element = page.locator("live-channel")
        published = publish(250)
        page.clock.run_for(120)
        element.evaluate("element => { element.paused = true; }")
        publish(50)
        page.clock.run_for(2000)
        assert shown_ids(page) == published[:250]
        element.evaluate("element => { element.paused = false; }")
        page.clock.run_for(120)
        element.evaluate("element => element.setAttribute('limit', '40')")
        page.clock.run_for(2000)
        assert shown_ids(page) == published[-40:]
        publish(200)
        page.clock.run_for(120)
        element.evaluate("element => element.clear()")
        page.clock.run_for(2000)
        assert shown_ids(page) == []

    def test_a_note_stands_where_it_happened(self, plain: Server, burst: Burst, name: str) -> None:
        """Between what came before and what comes after, also among rows that were out of the document."""
        page, publish = burst
        publish(100)
        page.clock.run_for(120)
        note = "element => element.stream.dispatchEvent(new CustomEvent('stream-reset', {detail: {reason: 'trimmed'}}))"
        page.locator("live-channel").evaluate(note)
        published = publish(100)
        page.clock.run_for(120)
        assert page.locator(".events-note").count() == 0
        page.clock.run_for(2000)
        assert shown_ids(page) == published
        before = ".events-note + [data-event-id]"
        assert page.locator(before).get_attribute("data-event-id") == published[99]

    def test_what_is_older_than_the_rows_comes_below_them(self, burst: Burst) -> None:
        """A channel's replay can come after a burst of another."""
        page, publish = burst
        published = publish(100)
        page.clock.run_for(120)
        epoch, _, position = published[0].rpartition("-")
        old = f"{epoch}-{int(position) - 1}"
        page.locator("live-channel").evaluate(
            "(element, id) => element.stream.dispatchEvent(new CustomEvent('message', {detail: "
            "{id, channel: 'other', event: 'message', data: 'old'}}))",
            old,
        )
        page.clock.run_for(120)
        assert shown_ids(page) == [old, *published]


class TestControls:
    """Pause, clear, the way up, and what is read out."""

    def test_a_pause_holds_back_at_most_the_limit(self, plain: Server, show: Show, name: str) -> None:
        """The newest are kept, and it is said how many wait."""
        page = show(f'<live-channel channels="{name}" limit="5"></live-channel>')
        live(page)
        page.evaluate("document.querySelector('live-channel').paused = true")
        live(page, "paused")
        expect(part(page, "status")).to_have_text("Paused")
        cursors = plain.site.run("result = [publish(name, str(n)).id for n in range(23)]", name=name)
        expect(part(page, "waiting")).to_have_text("23 waiting, the newest 5 are kept")
        assert shown_ids(page) == []
        part(page, "pause").click()
        live(page)
        expect(row(page, cursors[-1])).to_have_count(1)
        assert shown_ids(page) == cursors[-5:]
        expect(part(page, "waiting")).to_be_hidden()

    def test_clear_empties_it_and_says_so(self, plain: Server, show: Show, name: str) -> None:
        """Rows, notes, counts; the stream goes on."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        gathered(page, "live-clear", "live-event")
        live(page)
        cursor = plain.site.publish(name, {"n": 1}, event="typed")
        expect(row(page, cursor)).to_have_count(1)
        page.evaluate("document.querySelector('live-channel').clear()")
        assert shown_ids(page) == []
        expect(part(page, "count")).to_have_text("0")
        expect(part(page, "empty")).to_be_visible()
        assert page.evaluate("got") == [
            ["live-event", {"id": cursor, "channel": name, "event": "typed", "data": {"n": 1}}],
            ["live-clear", None],
        ]
        last = plain.site.publish(name, "after")
        expect(row(page, last)).to_have_count(1)
        assert shown_ids(page) == [last]

    def test_who_has_scrolled_down_is_told_what_is_new_above(self, plain: Server, show: Show, name: str) -> None:
        """What is read stays where it is; one button leads to the newest."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        live(page)
        cursors = plain.site.run("result = [publish(name, str(n)).id for n in range(60)]", name=name)
        expect(row(page, cursors[-1])).to_have_count(1)
        page.emulate_media(reduced_motion="reduce")
        part(page, "list").evaluate("list => { list.scrollTop = 600; }")
        reading = row(page, cursors[40])
        before = reading.bounding_box()
        plain.site.publish(name, "one")
        newest = plain.site.publish(name, "two")
        expect(row(page, newest)).to_have_count(1)
        jump = part(page, "jump")
        expect(jump).to_have_text("2 new above")
        after = reading.bounding_box()
        assert before
        assert after
        # The button itself takes no room.
        assert abs(after["y"] - before["y"]) < 12
        jump.click()
        expect(jump).to_be_hidden()
        expect(row(page, newest)).to_be_in_viewport()

    def test_every_control_is_reached_by_keyboard(self, plain: Server, show: Show, name: str) -> None:
        """In the order that is seen; the list can be scrolled with the arrows."""
        page = show(f'<live-channel channels="{name}"></live-channel>')
        live(page)
        cursors = plain.site.run("result = [publish(name, str(n)).id for n in range(40)]", name=name)
        expect(row(page, cursors[-1])).to_have_count(1)
        reached = []
        for _ in range(3):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.shadowRoot.activeElement.getAttribute('part')"))
        assert reached == ["button pause", "button clear", "list"]
        page.keyboard.press("PageDown")
        wait_for(page, lambda: part(page, "list").evaluate("list => list.scrollTop > 50"), "the list has moved")

    def test_fast_events_are_read_out_as_a_count(self, plain: Server, show: Show, name: str) -> None:
        """Slow ones are the log's own additions; a flood would never end being read."""
        page = show(f'<live-channel channels="{name}"></live-channel>', module=False)
        page.clock.install()
        page.evaluate("import('/static/events/live-channel.js')")
        live(page)
        listed = page.get_by_role("log")
        expect(listed).to_have_attribute("aria-live", "polite")
        for second in range(1, 20):
            plain.site.run("result = [publish(name, str(n)).id for n in range(5)]", name=name)
            expect(part(page, "count")).to_have_text(str(5 * second))
            page.clock.run_for(1000)
            expect(listed).to_have_attribute("aria-live", "off")
        expect(part(page, "summary")).to_have_text(re.compile(r"New messages: \d+"))
        page.clock.run_for(20_000)
        expect(listed).to_have_attribute("aria-live", "polite")


class TestPages:
    """As the templates of this app use it."""

    def test_without_its_script_the_newest_events_show(
        self, demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
    ) -> None:
        """A module that does not load takes nothing away; when it loads, the same rows are the first of the list."""
        server, _ = demo
        cursors = [server.site.publish("news", data) for data in ("kept", {"title": "Doors", "n": 1.5}, [EVIL], EVIL)]
        visitor = visit(server, "/")
        visitor.expected = re.compile("ERR_FAILED")
        page = visitor.page
        page.route("**/live-channel.js", lambda route: route.abort())
        address = page.url + "events/channels/news/"
        page.goto(address)
        assert shown_ids(page)[-4:] == cursors
        rendered = [row(page, cursor).evaluate("row => row.innerHTML") for cursor in cursors]
        assert page.locator("[part]").count() == 0
        assert page.evaluate("window.harmed") is None
        page.unroute("**/live-channel.js")
        page.goto(address)
        live(page)
        assert shown_ids(page)[-4:] == cursors
        # One look: what the server renders is what the script makes, but for the time of arrival.
        page.evaluate(
            """() => {
              const element = document.createElement("live-channel");
              const { channels, cursor } = { channels: "news", cursor: document.querySelector("[data-event-id]") };
              element.id = "other";
              element.setAttribute("channels", channels);
              element.setAttribute("cursor", cursor.dataset.eventId.replace(/-.*/, "-0"));
              document.body.append(element);
            }"""
        )
        for cursor, markup in zip(cursors, rendered, strict=True):
            made = page.locator(f'#other > [data-event-id="{cursor}"]')
            expect(made).to_have_count(1)
            timeless = [
                re.sub(r"<time.*?</time>", "", text) for text in (made.evaluate("row => row.innerHTML"), markup)
            ]
            assert timeless[0] == timeless[1]

    @pytest.mark.parametrize("path", ["/events/", "/events/channels/news/", "/"])
    def test_a_visitor_without_javascript_sees_events_and_is_told(
        self, demo: tuple[Server, str], browser: Browser, path: str
    ) -> None:
        """The newest are there, nothing that would need a script is, and a line says what does."""
        server, _ = demo
        cursor = server.site.publish("clock" if path == "/" else "news", "for everybody")
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.port}{path}")
        expect(row(page, cursor)).to_contain_text("for everybody")
        expect(row(page, cursor)).to_be_visible()
        expect(page.locator(".events-noscript")).to_be_visible()
        for text in ("Pause", "Clear", "Waiting", "last 90 s", "There are no messages"):
            assert page.get_by_text(text).filter(visible=True).count() == 0
        for box in page.locator("[type=checkbox]").all():
            expect(box).to_be_hidden()
        context.close()

    def test_without_javascript_and_without_events_it_says_so(self, plain: Server, browser: Browser, name: str) -> None:
        """An empty frame would look broken."""
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{plain.port}/events/channels/{name}/")
        expect(page.locator(".events-nothing")).to_have_text("There are no messages to show.")
        expect(page.locator(".events-nothing")).to_be_visible()
        context.close()

    def test_the_live_page_holds_charts_strip_and_counts(
        self, demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
    ) -> None:
        """Numbers become charts, seconds bars, channels their counts; clearing takes the charts away."""
        server, _ = demo
        page = visit(server, "/events/channels/news/").page
        live(page)
        for number in (1, 5):
            server.site.publish("news", {"degrees": number})
        chart = page.locator(".events-chart", has_text="degrees")
        expect(chart).to_have_count(1)
        expect(chart.get_by_role("img")).to_have_accessible_name(
            "degrees, channel news: now 5, lowest 1, highest 5 of the last 2 values"
        )
        expect(page.locator(".events-strip-up")).to_have_attribute("d", re.compile("^M"))
        part(page, "clear").click()
        expect(chart).to_have_count(0)
        page = visit(server, "/events/").page
        live(page)
        server.site.publish("news", "counted")
        expect(page.locator('[data-seen="news"]')).to_have_text(re.compile(r"\d+ received, last at \d\d:\d\d:\d\d"))
        expect(page.locator('[data-role="chosen"]')).to_have_text("3 of 3")

    def test_the_live_page_in_a_language_that_the_browser_has_no_such_name_for(
        self, demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
    ) -> None:
        """What is around the element goes without, too."""
        server, _ = demo
        page = visit(server, "/").page

        def answer(route: Route) -> None:
            response = route.fetch()
            route.fulfill(response=response, body=re.sub('lang="[^"]*"', 'lang="de_DE"', response.text()))

        page.route("**/events/", answer)
        page.goto(f"http://127.0.0.1:{server.port}/events/")
        assert page.evaluate("document.documentElement.lang") == "de_DE"
        live(page)
        server.site.publish("news", "counted")
        expect(page.locator('[data-seen="news"]')).to_have_text(re.compile(r"\d+ received, last at \d\d:\d\d:\d\d"))


def test_a_flood_leaves_no_memory_behind(plain: Server, show: Show, name: str) -> None:
    """What a page holds does not grow with what it has shown, nor with what comes while it is paused."""
    page = show(f'<live-channel channels="{name}" limit="200"></live-channel>')
    live(page)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def held() -> tuple[float, float]:
        session.send("HeapProfiler.collectGarbage")
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        return metrics["JSHeapUsedSize"], metrics["Nodes"]

    flood = "publish_many([(name, f'message {n}') for n in range(5000)])"
    found = []
    for times in range(1, 4):
        plain.site.run(f"from events import publish_many; {flood}", name=name)
        expect(part(page, "count")).to_have_text(f"{5000 * times:,}", timeout=GUARD)
        expect(page.locator("[data-event-id]").first).to_contain_text("message 4999")
        expect(page.locator("[data-event-id]")).to_have_count(200)
        found.append(held())
    assert found[-1][0] < found[0][0] * 1.1 + 200_000
    # Nor with what it holds back.
    page.evaluate("document.querySelector('live-channel').paused = true")
    flood = "publish_many([(name, f'{n}' * 500) for n in range(5000)])"
    plain.site.run(f"from events import publish_many; {flood}", name=name)
    expect(part(page, "waiting")).to_have_text("5,000 waiting, the newest 200 are kept", timeout=GUARD)
    assert held()[0] < found[0][0] * 1.1 + 2_000_000
    assert found[-1][1] < found[0][1] * 1.1 + 500
