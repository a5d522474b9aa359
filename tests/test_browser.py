"""The pages in Chromium, with its own EventSource: those of the demo site, and those of a site with other channels."""

from __future__ import annotations

import json
import re
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from .browsers import (
    GUARD,
    Visitor,
    browser,
    demo,
    live,
    logged_ids,
    plain,
    publishing,
    shown_ids,
    visit,
    wait_for,
)
from .servers import Server, stream_path
from .test_promises import TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.browser

__all__ = ["browser", "demo", "plain", "visit"]  # fixtures


def test_the_live_page_shows_messages_as_they_come(
    demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
) -> None:
    """The page connects, shows ticks of the clock and what another process publishes, and counts them."""
    server, _ = demo
    page = visit(server, "/events/").page
    live(page)
    expect(page.locator('[part="status"]')).to_have_text("Live")
    clock = page.locator("[data-event-id]", has_text=re.compile(r"Message at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"))
    expect(clock.first).to_be_visible(timeout=GUARD)
    text = f"news of today {uuid.uuid4().hex}"
    cursor = server.site.publish("news", text)
    row = page.locator("[data-event-id]", has_text=text)
    expect(row).to_have_count(1)
    expect(row).to_have_attribute("data-event-id", cursor)
    expect(row).to_contain_text("news")
    # JSON is shown by its fields.
    server.site.publish("news", {"temperature": 21.5, "place": "roof"})
    expect(page.locator("[data-event-id]", has_text="roof")).to_contain_text("21.5")
    assert int(page.locator('[part~="count"]').inner_text()) >= 3
    # The newest is on top, so positions fall.
    ids = [int(cursor.rpartition("-")[2]) for cursor in shown_ids(page)]
    assert ids == sorted(set(ids))


def more_shown(page: Page, count: int) -> bool:
    return len(shown_ids(page)) > count


def head_moved(server: Server, head: str) -> bool:
    return logged_ids(server, "news")[-1] != head


def test_the_page_survives_a_server_that_is_killed_and_started_again(
    demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
) -> None:
    """While the server is down the page says so; when it is back the page has every message, once."""
    server, _ = demo
    visitor = visit(server, "/events/channels/news/")
    # Chromium reports the connection that the server's death broke.
    visitor.expected = re.compile("ERR_CONNECTION_|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_SOCKET")
    page = visitor.page
    live(page)
    first = server.site.publish("news", "before all")
    expect(page.locator(f'[data-event-id="{first}"]')).to_have_count(1)
    had = shown_ids(page)
    for _ in range(2):
        with publishing(server, "news", 0.05) as published:
            shown = len(shown_ids(page))
            wait_for(page, partial(more_shown, page, shown + 3), "some have arrived")
            server.kill()
            expect(page.locator("live-channel")).to_have_attribute("data-state", "reconnecting", timeout=GUARD)
            expect(page.locator('[part="status"]')).to_contain_text("Reconnecting")
            head = logged_ids(server, "news")[-1]
            # Some are published while nobody serves.
            wait_for(page, partial(head_moved, server, head), "others were published")
            server.start()
            live(page)
        assert len(published) > 5
        expect(page.locator(f'[data-event-id="{published[-1]}"]')).to_have_count(1, timeout=GUARD)
    expected = logged_ids(server, "news")
    # What came at once is there as soon as it is calm.
    wait_for(page, lambda: shown_ids(page)[0] == had[0], "the oldest are there again")
    assert shown_ids(page) == expected[expected.index(had[0]) :]


def sign_in(server: Server, password: str, visitor: Visitor) -> None:
    page = visitor.page
    page.locator("input[name=username]").fill("admin")
    page.locator("input[name=password]").fill(password)
    page.locator("[type=submit]").click()
    expect(page.locator("#user-tools")).to_be_visible()


def test_an_interval_changed_in_the_admin_speeds_up_the_open_page(
    demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
) -> None:
    """The page survives a restart and loses nothing; then, in a second tab, 1 s becomes 0.2 s, and it shows."""
    server, password = demo
    visitor = visit(server, "/events/channels/clock/")
    visitor.expected = re.compile("ERR_CONNECTION_|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_SOCKET")
    page = visitor.page
    page.evaluate("window.here = true")
    live(page)
    wait_for(page, lambda: len(shown_ids(page)) >= 2, "two messages have come")
    server.kill()
    live(page, "reconnecting")
    server.start()
    live(page)
    wait_for(page, lambda: len(shown_ids(page)) >= 4, "it goes on")
    expected = logged_ids(server, "clock")
    shown = shown_ids(page)
    begin = expected.index(shown[0])
    assert shown == expected[begin : begin + len(shown)]

    admin = visit(server, "/admin/events/channel/")
    sign_in(server, password, admin)
    row = admin.page.locator("#result_list tbody tr", has_text="clock").filter(has_text="Clock")
    field = row.locator("input[name$=-interval]")
    assert float(field.input_value()) == 1
    field.fill("0.2")
    try:
        admin.page.locator("input[name=_save]").click()
        expect(admin.page.locator(".messagelist .success")).to_be_visible()
        # Five in a second, or more: the rate counts over five seconds, so wait for what it comes to.
        wait_for(page, lambda: float(page.locator('[part~="rate"]').inner_text()) > 3, "the page is faster")
        before = len(shown_ids(page))
        begun = time.monotonic()
        wait_for(page, lambda: len(shown_ids(page)) >= before + 10, "ten more have come")
        assert time.monotonic() - begun < 6
        # And nobody loaded it again.
        assert page.evaluate("window.here") is True
        live(page)
        expected = logged_ids(server, "clock")
        shown = shown_ids(page)
        begin = expected.index(shown[0])
        assert shown == expected[begin : begin + len(shown)]
    finally:
        server.site.run("row = Channel.objects.get(name='clock'); row.interval = 1.0; row.save()")


def test_pause_holds_messages_back_and_clear_takes_them_away(
    demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
) -> None:
    """Paused, the list stands still and says how many wait; resumed, they come; cleared, they go."""
    server, _ = demo
    page = visit(server, "/events/channels/news/").page
    live(page)
    rows = page.locator("[data-event-id]")
    first = server.site.publish("news", "seen")
    expect(page.locator(f'[data-event-id="{first}"]')).to_have_count(1)
    pause, status = page.locator('[part~="pause"]'), page.locator('[part="status"]')
    pause.click()
    live(page, "paused")
    expect(status).to_have_text("Paused")
    expect(pause).to_have_text("Resume")
    count = rows.count()
    held = [server.site.publish("news", f"held back {number}") for number in range(3)]
    expect(page.locator('[part="waiting"]')).to_have_text("3 waiting")
    assert rows.count() == count
    pause.click()
    live(page)
    expect(status).to_have_text("Live")
    expect(rows).to_have_count(count + 3)
    assert shown_ids(page)[-3:] == held
    page.locator('[part~="clear"]').click()
    expect(rows).to_have_count(0)
    expect(page.locator('[part="empty"]')).to_be_visible()
    expect(page.locator('[part~="count"]')).to_have_text("0")
    last = server.site.publish("news", "after")
    expect(rows).to_have_count(1)
    assert shown_ids(page) == [last]


def test_data_are_shown_as_text_and_never_run(
    demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
) -> None:
    """Markup in data, keys, values and types is letters on the page: no element, no script, no request."""
    server, _ = demo
    page = visit(server, "/events/channels/news/").page
    page.evaluate("window.harmed = false")
    live(page)
    evil = '<img src=x onerror="window.harmed=true"><script>window.harmed=true</script><b>bold</b>'
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    cursors = [
        server.site.publish("news", evil),
        server.site.publish("news", {evil: evil}),
        server.site.publish("news", [evil]),
        server.site.publish("news", "typed", event=evil[:90]),
    ]
    for cursor in cursors:
        row = page.locator(f'[data-event-id="{cursor}"]')
        expect(row).to_have_count(1)
        expect(row).to_contain_text('<img src=x onerror="window.harmed=true">' if cursor != cursors[2] else "<img")
        assert row.locator("img, script, b").count() == 0
    assert page.evaluate("window.harmed") is False
    assert requests == []


def test_the_page_follows_only_the_channels_that_are_chosen(
    demo: tuple[Server, str], visit: Callable[[Server, str], Visitor]
) -> None:
    """Unchecked channels stop, nothing of the others is lost, and with none chosen the page says so."""
    server, _ = demo
    page = visit(server, "/events/").page
    live(page)
    expect(page.locator("[data-event-id]", has_text="Message at").first).to_be_visible(timeout=GUARD)
    page.locator('[data-role="none"]').click()
    live(page, "closed")
    expect(page.locator('[part="status"]')).to_have_text("No channel chosen")
    between = server.site.publish("news", "while none was chosen")
    page.locator('[data-channel="news"] input').check()
    live(page)
    # It goes on from where it stopped.
    expect(page.locator(f'[data-event-id="{between}"]')).to_have_count(1)
    last = server.site.publish("news", "chosen")
    expect(page.locator(f'[data-event-id="{last}"]')).to_have_count(1)
    assert all("Message at" not in text for text in page.locator("[data-event-id]").all_inner_texts()[:2])


def test_a_channel_that_is_switched_off_says_so_on_the_page(
    plain: Server, visit: Callable[[Server, str], Visitor]
) -> None:
    """The server tells the open page not to come back, and the page tells its reader why."""
    name = f"off-{uuid.uuid4().hex}"
    plain.site.run("Channel.objects.create(name=name, access='public')", name=name)

    def answers() -> bool:
        return {plain.get(f"/events/channels/{name}/")[0] for _ in range(8)} == {200}

    end = time.monotonic() + 10
    while not answers():
        assert time.monotonic() < end
    page = visit(plain, f"/events/channels/{name}/").page
    live(page)
    plain.site.run("row = Channel.objects.get(name=name); row.is_active = False; row.save()", name=name)
    live(page, "closed")
    expect(page.locator('[part="status"]')).to_contain_text("Closed")
    expect(page.locator('[part="status"]')).to_have_text(re.compile("switched.off"))
    expect(page.locator('[part="notice"]')).to_be_visible()


def test_a_user_whom_the_site_disconnects_is_told_so(plain: Server, visit: Callable[[Server, str], Visitor]) -> None:
    """The page says who has ended the stream."""
    name = uuid.uuid4().hex
    session = plain.site.run(
        """
        from django.contrib.auth.models import User
        from django.test import Client

        client = Client()
        client.force_login(User.objects.create_user(name))
        result = client.cookies["sessionid"].value
        """,
        name=name,
    )
    page = visit(plain, "/events/").page
    page.context.add_cookies([{"name": "sessionid", "value": session, "url": page.url}])
    page.goto(f"{page.url}channels/signed-in.{name}/")
    live(page)
    plain.site.run(
        """
        from django.contrib.auth.models import User
        from events import disconnect

        disconnect(User.objects.get(username=name))
        """,
        name=name,
    )
    live(page, "closed")
    expect(page.locator('[part="status"]')).to_have_text("Closed: the site has disconnected you")
    expect(page.locator('[part="notice"]')).to_be_visible()


def test_a_visitor_who_may_read_nothing_is_told_what_to_do(
    plain: Server, visit: Callable[[Server, str], Visitor]
) -> None:
    """The tests' site has no channel but prefixes: the page says so, and where to sign in."""
    plain.site.run("Channel.objects.create(name='for-staff', access='staff')")
    try:
        visitor = visit(plain, "/events/")
        expect(visitor.page.get_by_role("heading", level=1)).to_have_text("Nothing to read here yet")
        assert "for-staff" not in visitor.page.content()
        link = visitor.page.get_by_role("link", name="Sign in")
        assert "/admin/login/?next=%2Fevents%2F" in str(link.get_attribute("href"))
        assert visitor.page.locator("live-channel").count() == 0
    finally:
        plain.site.run("Channel.objects.get(name='for-staff').delete()")


# Chromium's own parser

LISTEN = """
(path) => {
  window.got = [];
  window.source = new EventSource(path);
  window.opened = new Promise((resolve) => { source.onopen = resolve; });
  const take = (event) => got.push({ type: event.type, data: event.data, id: event.lastEventId });
  for (const type of ["message", "update", "événement", " spaces ", "a:b", "stream-reset"]) {
    source.addEventListener(type, take);
  }
  return opened.then(() => true);
}
"""


def test_texts_come_back_equal_through_chromium(plain: Server, visit: Callable[[Server, str], Visitor]) -> None:
    """Chromium's EventSource opens before there is any event, and reads every text and type as it was published."""
    # promise 8, promise 17
    name = f"public.{uuid.uuid4().hex}"
    page = visit(plain, "/blank/").page
    assert page.evaluate(LISTEN, stream_path(name)) is True
    for number, (text, expected) in enumerate(TEXTS.values()):
        cursor = plain.site.publish(name, text)
        page.wait_for_function("count => got.length > count", arg=number)
        assert page.evaluate("got.at(-1)") == {"type": "message", "data": expected, "id": cursor}
    for kind in ("update", "événement", " spaces ", "a:b"):
        cursor = plain.site.publish(name, "typed", event=kind)
        page.wait_for_function("id => got.at(-1).id === id", arg=cursor)
        assert page.evaluate("got.at(-1).type") == kind
    assert page.evaluate("got.length") == len(TEXTS) + 4
    page.evaluate("source.close()")


def test_chromium_resumes_with_the_cursor_that_it_got(plain: Server, visit: Callable[[Server, str], Visitor]) -> None:
    """A new EventSource with the last id continues exactly; one with garbage is told once, and stays open."""
    # promise 4
    name = f"public.{uuid.uuid4().hex}"
    page = visit(plain, "/blank/").page
    ids = [plain.site.publish(name, str(number)) for number in range(5)]
    assert page.evaluate(LISTEN, stream_path(name, last_event_id=ids[1]))
    page.wait_for_function("() => got.length === 3")
    assert page.evaluate("got.map((event) => event.data)") == ["2", "3", "4"]
    page.evaluate("source.close()")
    assert page.evaluate(LISTEN, stream_path(name, last_event_id="garbage"))
    page.wait_for_function("() => got.length === 1")
    assert json.loads(page.evaluate("got[0].data"))["reason"] == "unknown"
    plain.site.publish(name, "live")
    page.wait_for_function("() => got.length === 2")
    assert page.evaluate("got.map((event) => event.type)") == ["stream-reset", "message"]
    page.evaluate("source.close()")
