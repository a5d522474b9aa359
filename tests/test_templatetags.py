from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Template, TemplateSyntaxError
from django.test import RequestFactory

import events
from events import publish
from events.access import Visitor, auth_tags, session_tag
from events.backends.memory import MemoryBackend
from events.exceptions import BackendUnavailable, InvalidChannelName, InvalidEventBackend
from events.registry import event_backends
from events.templatetags.events import live_channel
from events.tickets import read_ticket
from events.wire import Cursor

if TYPE_CHECKING:
    from django.http import HttpRequest

pytestmark = pytest.mark.django_db(transaction=True)

FILES = Path(events.__file__).parent


class BrokenBackend(MemoryBackend):
    """A log that cannot be reached."""

    def head(self) -> Cursor:
        raise BackendUnavailable("gone")


def render(text: str, **context) -> str:
    return Template("{% load events %}" + text).render(Context(context))


def test_the_cursor_is_the_logs_head(make_channel):
    """What is published after it was rendered follows it."""  # promise 3
    make_channel("news")
    publish("news", "before")
    text = render("{% event_cursor %}")
    assert text == str(event_backends["default"].head())
    publish("news", "after")
    cursor = Cursor.parse(text)
    assert cursor is not None
    read = event_backends["default"].read(["news"], cursor.position, 10)
    assert [event.data for event in read.events] == ["after"]


def test_the_cursor_can_be_kept_in_a_variable():
    """To be read before the page's own queries, and written after them."""
    assert render("{% event_cursor as cursor %}[{{ cursor }}]") == f"[{event_backends['default'].head()}]"


def test_the_cursor_of_another_log(settings):
    """A site may have several."""
    memory = {"BACKEND": "events.backends.memory.MemoryBackend"}
    settings.EVENTS = {"BACKENDS": {"default": memory, "other": memory}}
    assert render("{% event_cursor 'other' %}") == str(event_backends["other"].head())
    assert render("{% event_cursor using='other' %}") != render("{% event_cursor %}")
    with pytest.raises(InvalidEventBackend, match="Did you mean 'other'"):
        render("{% event_cursor 'othr' %}")


def test_a_page_can_be_shown_while_the_log_cannot_be_reached(settings, caplog):
    """Its stream waits for the log; the site's log says why the page has no cursor."""
    settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": f"{__name__}.BrokenBackend"}}}
    with caplog.at_level(logging.WARNING, "events.templatetags"):
        assert render("[{% event_cursor %}]") == "[]"
        assert 'data-cursor=""' in render("{% live_channel 'news' %}")
    assert caplog.records[0].getMessage() == "a page has no cursor: using=default error=gone"


def test_a_live_list_says_to_its_script_what_it_needs():
    """Channels, where the stream is, from where on, and how many events to show; all of it in attributes."""
    assert live_channel("news", "alerts", "news", limit=5) == {
        "channels": ["news", "alerts"],
        "limit": 5,
        "stream_url": "/events/stream/",
        "cursor": str(event_backends["default"].head()),
    }
    page = render("{% live_channel 'news' name limit=5 %}", name="alerts")
    assert 'data-stream-url="/events/stream/"' in page
    assert f'data-cursor="{event_backends["default"].head()}"' in page
    assert 'data-limit="5"' in page
    assert 'data-channels="[&quot;news&quot;, &quot;alerts&quot;]"' in page
    assert 'src="/static/events/live.js"' in page
    assert 'href="/static/events/live.css"' in page


def test_a_limit_is_a_number_in_every_language(settings):
    """A script reads it: no thousand separators."""
    settings.USE_THOUSAND_SEPARATOR = True
    assert 'data-limit="5000"' in render("{% live_channel 'news' limit=5000 %}")
    assert 'data-limit="100"' in render("{% live_channel 'news' %}")


def test_what_is_not_a_number_cannot_leave_its_attribute():
    """Whatever a page hands on from its visitor."""
    page = render("{% live_channel 'news' limit=limit %}", limit='"><script>alert(1)</script>')
    assert "<script>alert" not in page
    assert 'data-limit="&quot;&gt;&lt;script&gt;' in page


def test_there_is_no_inline_script_and_no_inline_style():
    """It works under `script-src 'self'`."""
    import re

    page = render("{% live_channel 'news' %}")
    assert [script for script in re.findall(r"<script\b[^>]*>", page) if "src=" not in script] == []
    assert not re.search(r"<style\b|\sstyle=|\son[a-z]+=", page)


@pytest.mark.parametrize("name", ["a b", "orders.*", "", "<b>", None, 5])
def test_no_name_of_a_channel_is_refused(name):
    """By the page that is wrong, not by a stream that never opens."""
    with pytest.raises(InvalidChannelName, match="is not a channel name"):
        render("{% live_channel name %}", name=name)


def test_one_to_the_limit_of_channels(settings):
    """No channel is a mistake, and so is more than one stream may follow; the same one twice counts once."""
    settings.EVENTS = {"MAX_CHANNELS_PER_STREAM": 2}
    with pytest.raises(InvalidChannelName, match=r'\{% live_channel "name" … %\} takes 1 to 2 channels, not 0'):
        render("{% live_channel %}")
    with pytest.raises(InvalidChannelName, match="takes 1 to 2 channels, not 3"):
        render("{% live_channel 'a' 'b' 'c' %}")
    assert "&quot;a&quot;, &quot;b&quot;]" in render("{% live_channel 'a' 'b' 'a' %}")


def test_an_unknown_option_is_refused():
    """When the template is compiled."""
    with pytest.raises(TemplateSyntaxError, match="lmit"):
        Template("{% load events %}{% live_channel 'news' lmit=5 %}")


def test_all_that_the_script_says_can_be_translated():
    """A text without its attribute would stay English on a translated site."""
    script = (FILES / "static/events/live.js").read_text()
    start = script.index("const TEXTS")
    own = re.findall(r"^  (\w+):", script[start : script.index("\n};", start)], re.MULTILINE)
    texts = (FILES / "templates/events/_texts.html").read_text()
    given = [re.sub(r"-(\w)", lambda part: part[1].upper(), name) for name in re.findall(r"data-text-([\w-]+)", texts)]
    assert sorted(given) == sorted(own)
    assert len(own) > 30


class TestTickets:
    """`{% event_ticket %}`."""

    def request(self, user: Any) -> HttpRequest:
        request = RequestFactory().get("/")
        request.session = SessionStore()
        request.session.create()

        request.user = user
        return request

    def test_a_ticket_is_the_visitors_own(self, make_channel, make_user) -> None:
        """For the channels that are named, and as long as the page's session."""
        make_channel("news", access="staff")
        make_channel("talk")
        request = self.request(make_user("ann", is_staff=True))
        visitor, channels = read_ticket(render("{% event_ticket 'news' 'talk' %}", request=request))
        assert visitor == Visitor(
            user_id=str(request.user.pk),
            session=session_tag(str(request.session.session_key)),
            auth=auth_tags(request.user)[0],
        )
        assert channels == ["news", "talk"]

    def test_who_may_not_read_gets_none(self, make_channel, make_user) -> None:
        """The page is shown; its stream is refused."""
        make_channel("news", access="staff")
        for user in (make_user("ann"), make_user("bob", is_staff=True, is_active=False), AnonymousUser()):
            assert render("[{% event_ticket 'news' %}]", request=self.request(user)) == "[]"

    def test_its_time_can_be_said(self, make_channel) -> None:
        """In seconds."""
        make_channel("news")
        request = self.request(AnonymousUser())
        render("{% event_ticket 'news' max_age=3600 %}", request=request)
        with pytest.raises(ValueError, match="a ticket lives for 1 to 3600 seconds"):
            render("{% event_ticket 'news' max_age=3601 %}", request=request)

    def test_a_template_without_a_request(self) -> None:
        """It is said what to do."""
        with pytest.raises(ImproperlyConfigured, match=r"event_ticket %} needs the request"):
            render("{% event_ticket 'news' %}")
