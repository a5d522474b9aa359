from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.db import SessionStore
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.http import HttpResponse
from django.template import Context, Template, TemplateSyntaxError, engines
from django.template.response import TemplateResponse
from django.test import Client, RequestFactory
from django.urls import include, path
from django.utils.functional import SimpleLazyObject
from django.views.decorators.cache import cache_page

import events
from events import apublish, publish
from events.access import Visitor, auth_tags, session_tag
from events.backends.base import NewEvent
from events.backends.memory import MemoryBackend
from events.channels import ChannelTable, channel_table
from events.entries import newest_entries
from events.exceptions import BackendUnavailable, InvalidChannelName, InvalidEventBackend
from events.models import Channel
from events.registry import event_backends
from events.templatetags.events import live_channel
from events.tickets import read_ticket
from events.wire import Cursor
from tests.waiting import GUARD

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
        assert ' cursor=""' in render("{% live_channel 'news' %}")
    assert {record.getMessage() for record in caplog.records} == {"a page has no cursor: using=default error=gone"}


def test_a_live_list_says_to_its_script_what_it_needs(make_channel):
    """Channels, where the stream is, from where on, and how many events to show; all of it in attributes."""
    make_channel("news")
    make_channel("alerts")
    publish("alerts", "x")
    assert live_channel(Context(), "news", "alerts", "news", limit=5) == {
        "channels": ["news", "alerts"],
        "limit": 5,
        "share": True,
        "stream_url": "/events/stream/",
        "cursor": str(event_backends["default"].head()),
        "entries": newest_entries(["news", "alerts"], 5)[0],
    }
    page = render("{% live_channel 'news' name limit=5 %}", name="alerts")
    (element,) = re.findall(r"<live-channel\b[^>]*>", page)
    assert 'src="/events/stream/"' in element
    assert f'cursor="{event_backends["default"].head()}"' in element
    assert 'limit="5"' in element
    assert 'channels="news alerts"' in element
    assert 'src="/static/events/live-channel.js"' in page
    assert 'href="/static/events/live.css"' in page


def test_tabs_share_a_connection_unless_told_otherwise():
    """Which is how a page does without, whatever other pages do."""
    assert re.search(r"<live-channel\b[^>]*\sshare\b", render("{% live_channel 'news' %}"))
    assert not re.search(r"<live-channel\b[^>]*\sshare\b", render("{% live_channel 'news' share=False %}"))


def test_a_limit_is_a_number_in_every_language(settings):
    """A script reads it: no thousand separators."""
    settings.USE_THOUSAND_SEPARATOR = True
    assert ' limit="5000"' in render("{% live_channel 'news' limit=5000 %}")
    assert ' limit="100"' in render("{% live_channel 'news' %}")


def test_what_is_not_a_number_cannot_leave_its_attribute():
    """Whatever a page hands on from its visitor."""
    page = render("{% live_channel 'news' limit=limit %}", limit='"><script>alert(1)</script>')
    assert "<script>alert" not in page
    assert ' limit="&quot;&gt;&lt;script&gt;' in page


def test_there_is_no_inline_script_and_no_inline_style():
    """It works under `script-src 'self'`."""
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
    assert 'channels="a b"' in render("{% live_channel 'a' 'b' 'a' %}")


def test_an_unknown_option_is_refused():
    """When the template is compiled."""
    with pytest.raises(TemplateSyntaxError, match="lmit"):
        Template("{% load events %}{% live_channel 'news' lmit=5 %}")


@pytest.mark.parametrize(
    "script, template, least", [("live-channel.js", "_texts.html", 35), ("live-page.js", "_page_texts.html", 5)]
)
def test_all_that_a_script_says_can_be_translated(script, template, least):
    """A text without its attribute would stay English on a translated site."""
    code = (FILES / "static/events" / script).read_text()
    start = code.index("const TEXTS")
    own = re.findall(r"^  (\w+):", code[start : code.index("\n};", start)], re.MULTILINE)
    texts = (FILES / "templates/events" / template).read_text()
    given = [re.sub(r"-(\w)", lambda part: part[1].upper(), name) for name in re.findall(r"data-text-([\w-]+)", texts)]
    assert sorted(given) == sorted(own)
    assert len(own) >= least


def page(request: HttpRequest) -> HttpResponse:
    """A page of a site's own, with lists of the channels that its URL names."""
    names = " ".join(f'"{name}"' for name in request.GET.getlist("channel"))
    text = f"{{% load events %}}{{% live_channel {names} %}}"
    return HttpResponse(engines["django"].from_string(text).render({}, request))


def later(request: HttpRequest) -> TemplateResponse:
    """The same, rendered when the view has returned, and with a ticket where the URL asks for one."""
    template = engines["django"].from_string(
        "{% load events %}{% if ticket %}{% event_ticket name %}{% else %}{% live_channel name %}{% endif %}"
    )
    return TemplateResponse(request, template, {"name": request.GET["channel"], "ticket": "ticket" in request.GET})


urlpatterns = [
    path("page/", page),
    path("cached/", cache_page(60)(page)),
    path("cached-later/", cache_page(60)(later)),
    path("later/", later),
    path("events/", include("events.urls")),
]


def shown(text: str) -> list[str]:
    """The texts of a page's entries."""
    return re.findall(r'class="events-text">([^<]*)<', text)


class TestEntries:
    """The first rows of `{% live_channel %}`."""

    @pytest.fixture(autouse=True)
    def published(self, make_channel) -> None:
        for name, access in (("news", "public"), ("talk", "public"), ("crew", "staff"), ("ours", "authenticated")):
            make_channel(name, access=access)
            publish(name, f"of {name}")

    def request(self, user: Any = None) -> HttpRequest:
        request = RequestFactory().get("/")
        request.user = user or AnonymousUser()
        return request

    def test_the_newest_are_there_before_a_script_runs(self, make_channel) -> None:
        """Newest first, at most as many as the list takes, with the cursor that follows them."""  # promise 3
        publish("news", "newer")
        text = render("{% live_channel 'news' 'talk' limit=2 %}")
        assert shown(text) == ["newer", "of talk"]
        assert f'cursor="{event_backends["default"].head()}"' in text
        assert shown(render("{% live_channel 'news' limit='1' %}")) == ["newer"]
        assert shown(render("{% live_channel 'news' limit=0 %}")) == []
        for odd in ("many", None, float("inf")):
            assert shown(render("{% live_channel 'news' limit=odd %}", odd=odd)) == ["newer", "of news"]

    def test_text_is_text(self) -> None:
        """Whatever is published, and however the page around it escapes."""  # promise 17
        publish("news", "<img src=x onerror=alert(1)>")
        for text in (
            render("{% live_channel 'news' %}"),
            render("{% autoescape off %}{% live_channel 'news' %}{% endautoescape %}"),
        ):
            assert "<img" not in text
            assert "&lt;img src=x onerror=alert(1)&gt;" in text

    def test_half_a_character_does_not_take_the_page_down(self) -> None:
        """JSON may have it, and no page can."""
        event_backends["default"].append(
            [NewEvent(channel="news", data='{"\\ud800": ["\\udc00"], "b": "\\ud800"}', is_json=True)]
        )
        assert render("{% live_channel 'news' %}").encode()

    def test_only_what_the_visitor_may_read(self, make_user) -> None:
        """All of the channels, or nothing of any."""  # promise 20
        staff = self.request(make_user("ann", is_staff=True))
        user = self.request(make_user("bob"))
        away = self.request(make_user("eve", is_staff=True, is_active=False))
        for request, names, expected in (
            (staff, "'crew'", ["of crew"]),
            (staff, "'news' 'ours' 'crew'", ["of ours", "of crew", "of news"]),
            (user, "'ours'", ["of ours"]),
            (user, "'crew'", []),
            (user, "'news' 'crew'", []),
            (away, "'crew'", []),
            (self.request(), "'ours'", []),
            (self.request(), "'news' 'ours'", []),
            (self.request(), "'news' 'talk'", ["of talk", "of news"]),
        ):
            text = render(f"{{% live_channel {names} %}}", request=request)
            assert shown(text) == expected, names
            assert f'cursor="{event_backends["default"].head()}"' in text

    def test_a_template_without_a_request_shows_what_everybody_may_read(self) -> None:
        """Nobody is known who might read more."""
        assert shown(render("{% live_channel 'news' %}")) == ["of news"]
        assert shown(render("{% live_channel 'ours' %}")) == []

    def test_what_is_switched_off_or_unknown_is_not_shown(self, make_user) -> None:
        """Not to staff either."""
        request = self.request(make_user("ann", is_staff=True, is_superuser=True))
        Channel.objects.filter(name__in=["talk", "crew"]).update(is_active=False)
        Channel.objects.filter(name="ours").delete()
        for name in ("talk", "crew", "ours"):
            assert shown(render("{% live_channel name %}", name=name, request=request)) == []
            assert shown(render("{% live_channel 'news' name %}", name=name, request=request)) == []

    def test_a_change_of_access_counts_at_once(self) -> None:
        """As for streams."""
        assert shown(render("{% live_channel 'news' %}")) == ["of news"]
        Channel.objects.filter(name="news").update(access="staff")
        assert shown(render("{% live_channel 'news' %}")) == []

    def test_a_page_of_public_channels_may_be_cached_for_all(self, client, settings, make_user) -> None:
        """Nobody looks into the session. For other channels somebody does, and the page says that it differs."""
        settings.ROOT_URLCONF = __name__
        client.force_login(make_user("ann", is_staff=True))
        response = client.get("/page/?channel=news&channel=talk")
        assert shown(response.content.decode()) == ["of talk", "of news"]
        assert "Cookie" not in response.get("Vary", "")
        response = client.get("/page/?channel=news&channel=crew")
        assert shown(response.content.decode()) == ["of crew", "of news"]
        assert "Cookie" in response["Vary"]
        client.logout()
        response = client.get("/page/?channel=news&channel=crew")
        assert shown(response.content.decode()) == []
        assert "Cookie" in response["Vary"]

    @pytest.mark.parametrize("url", ["/cached/", "/cached-later/", "/page/", "/later/"])
    def test_no_cache_of_djangos_keeps_what_not_everybody_may_read(self, client, settings, make_user, url) -> None:
        """Neither that of a view, which stores a page before the session's middleware has said `Vary`, nor a site's."""
        settings.ROOT_URLCONF = __name__
        settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": url}}
        if not url.startswith("/cached"):
            before, after = "UpdateCacheMiddleware", "FetchFromCacheMiddleware"
            package = "django.middleware.cache"
            settings.MIDDLEWARE = [f"{package}.{before}", *settings.MIDDLEWARE, f"{package}.{after}"]
        reader = self.signed_in(make_user("ann", is_staff=True))
        assert shown(reader.get(f"{url}?channel=crew").content.decode()) == ["of crew"]
        assert shown(client.get(f"{url}?channel=crew").content.decode()) == []
        assert shown(reader.get(f"{url}?channel=crew").content.decode()) == ["of crew"]
        # What everybody may read is kept.
        assert shown(client.get(f"{url}?channel=news").content.decode()) == ["of news"]
        publish("news", "newer")
        assert shown(client.get(f"{url}?channel=news").content.decode()) == ["of news"]
        if "later" in url:
            assert reader.get(f"{url}?channel=crew&ticket").content
            assert client.get(f"{url}?channel=crew&ticket").content == b""

    def signed_in(self, user: User) -> Client:
        client = Client()
        client.force_login(user)
        return client

    def test_what_a_view_calls_request_is_not_the_visitor(self, make_user) -> None:
        """As the detail page of a model of that name does: its author reads more than who looks at it."""
        author = make_user("ann", is_staff=True)
        request = self.request()
        for named in (SimpleNamespace(user=author), self.request(author)):
            template = engines["django"].from_string("{% load events %}{% live_channel 'crew' %}")
            assert shown(template.render({"request": named}, request)) == []
        assert shown(render("{% live_channel 'crew' %}", request=SimpleNamespace(user=author))) == []

    def test_an_include_that_takes_no_variables_along_knows_the_visitor(self, make_user) -> None:
        """The request stays that of the page."""
        part = Template("{% load events %}{% live_channel 'crew' %}")
        template = engines["django"].from_string("{% include part only %}")
        text = template.render({"part": part}, self.request(make_user("ann", is_staff=True)))
        assert shown(text) == ["of crew"]

    def test_what_it_asks_of_the_database(self, client, settings, make_user, django_assert_num_queries) -> None:
        """Head and events; whether the channels have changed; and for who it is, the session and the user."""
        settings.ROOT_URLCONF = __name__
        client.force_login(make_user("ann", is_staff=True))
        for url, most in (("/page/?channel=news&channel=talk", 3), ("/page/?channel=crew", 5)):
            channel_table._looked_at = float("-inf")
            with django_assert_num_queries(most):
                client.get(url)

    @pytest.mark.parametrize("error, is_expected", [(OperationalError("gone"), True), (RuntimeError("gone"), False)])
    def test_rights_that_cannot_be_asked_show_nothing(self, error, is_expected, monkeypatch, caplog) -> None:
        """The page is shown, with its cursor, and the site's log says why; where it was a bug, also where."""

        def fail(*args) -> None:
            raise error

        monkeypatch.setattr("events.templatetags.events.user_of", fail)
        with caplog.at_level(logging.WARNING, "events.templatetags"):
            text = render("{% live_channel 'news' 'crew' %}", request=self.request())
        assert shown(text) == []
        assert f'cursor="{event_backends["default"].head()}"' in text
        (record,) = caplog.records
        assert record.getMessage() == (
            "a page shows no events, nobody can say who may read them: channels=news,crew error=gone"
        )
        assert (record.exc_info is None) is is_expected

    def test_channels_that_cannot_be_read_show_nothing(self, settings, monkeypatch, caplog) -> None:
        """The log may be elsewhere: then the page has a cursor all the same."""
        settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}
        publish("news", "x")

        def fail(*args) -> None:
            raise OperationalError("gone")

        monkeypatch.setattr(ChannelTable, "_look", fail)
        channel_table.invalidate()
        text = render("{% live_channel 'news' %}")
        assert shown(text) == []
        assert f'cursor="{event_backends["default"].head()}"' in text
        assert "nobody can say who may read them: channels=news error=the channels cannot be read" in caplog.text

    async def test_a_page_that_an_async_view_renders_by_itself(self, settings, caplog, monkeypatch) -> None:
        """On the event loop, where a log that is in no database works: nothing there may ask the database."""
        monkeypatch.setattr("events.channels.MAX_AGE", GUARD)
        settings.EVENTS = {"BACKENDS": {"default": {"BACKEND": "events.backends.memory.MemoryBackend"}}}
        await apublish("news", "x")
        head = event_backends["default"].head()
        request = RequestFactory().get("/")
        # As Django's middleware does it.
        request.user = SimpleLazyObject(lambda: User.objects.get(username="ann"))  # type: ignore[assignment]
        await channel_table.arefresh()
        for names, expected in (("'news'", ["x"]), ("'news' 'crew'", [])):
            text = render(f"{{% live_channel {names} %}}", request=request)
            assert shown(text) == expected
            assert f'cursor="{head}"' in text
        channel_table.invalidate()
        text = render("{% live_channel 'news' %}", request=request)
        assert shown(text) == []
        assert f'cursor="{head}"' in text
        assert [record.getMessage() for record in caplog.records if record.name == "events.templatetags"] == [
            f"a page shows no events, it is rendered on an event loop: channels={names}. Use sync_to_async(render)."
            for names in ("news,crew", "news")
        ]


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

    def test_a_ticket_is_nobodys_whom_a_view_calls_request(self, make_channel, make_user) -> None:
        """It is the visitor's, and this one may read nothing."""
        make_channel("news", access="staff")
        author = make_user("ann", is_staff=True)
        template = engines["django"].from_string("{% load events %}[{% event_ticket 'news' %}]")
        context = {"request": SimpleNamespace(user=author)}
        assert template.render(context, self.request(AnonymousUser())) == "[]"

    def test_a_template_without_a_request(self) -> None:
        """It is said what to do."""
        with pytest.raises(ImproperlyConfigured, match=r"event_ticket %} needs the request"):
            render("{% event_ticket 'news' %}")
