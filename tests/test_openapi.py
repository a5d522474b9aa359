"""The OpenAPI document that is shipped: what it says is what a site does."""

from __future__ import annotations

import json
import os
import re
import subprocess
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from django.conf import settings as django_settings
from django.http import HttpHeaders
from django.test import Client
from django.urls import reverse
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from events import BackendUnavailable, api, bodies, wire
from events.conf import settings as defaults
from events.models import Channel
from events.registry import event_backends

from .plugins import require_program
from .publishers import MAKE_KEY, make_key, publish
from .servers import ROOT, Servers

if TYPE_CHECKING:
    from .servers import Server

DOCUMENT: dict[str, Any] = json.loads(files("events").joinpath("static/events/openapi.json").read_text())
PUBLISH = DOCUMENT["paths"]["/publish/{name}/"]["post"]
HISTORY = DOCUMENT["paths"]["/history/{name}/"]["get"]
SCHEMAS = DOCUMENT["components"]["schemas"]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A site on which every name is a channel."""
    found = Servers(tmp_path_factory.mktemp("openapi"))
    found["uvicorn"].site.run('Channel.objects.create(name="*", access="public")')
    yield found["uvicorn"]
    found.close()


@pytest.fixture(scope="module")
def headers(server: Server) -> dict[str, str]:
    """Of who may publish everything."""
    return {"Authorization": f"Bearer {server.site.run(MAKE_KEY)}"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("path, method, fine", [("/publish/{name}/", "POST", 201), ("/history/{name}/", "GET", 200)])
def test_a_site_answers_what_it_says(server: Server, headers, path: str, method: str, fine: int, mode) -> None:
    """To whatever fits the document, and to what does not: with those statuses, headers and bodies."""
    statuses: set[int] = set()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=schemathesis.openapi.from_dict(DOCUMENT)[path][method].as_strategy(generation_mode=mode))
    def ask(case) -> None:
        response = case.call(base_url=f"http://127.0.0.1:{server.port}/events", headers=headers)
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)

    ask()
    if mode == GenerationMode.POSITIVE:
        # A key in the header and another one in the body each fit.
        assert fine in statuses <= {fine, 422}
    else:
        assert 400 in statuses or 422 in statuses


class TestStatuses:
    """Each is answered by a request, and there is no other."""

    @pytest.fixture(autouse=True)
    def _channels(self, transactional_db, settings) -> None:
        Channel.objects.create(name="news", access="public")
        settings.EVENTS = {"MAX_EVENT_BYTES": 10}

    @staticmethod
    def unavailable(*args: Any) -> Any:
        raise BackendUnavailable("nothing was published: gone")

    def test_of_publish(self, monkeypatch) -> None:
        """All of them."""
        token, busy = make_key(per_minute=None), make_key(per_minute=1)
        publish(busy)
        answers = [
            publish(token),
            publish(token, b"\xff"),
            publish(None),
            publish(make_key("other")),
            publish(token, channel="other"),
            Client().get("/events/publish/news/"),
            publish(token, b""),
            publish(token, "more than ten bytes"),
            publish(token, Content_Type="image/png"),
            publish(token, {}),
            publish(busy),
        ]
        monkeypatch.setattr(type(event_backends["default"]), "append", self.unavailable)
        answers.append(publish(token))
        assert [str(answer.status_code) for answer in answers] == list(PUBLISH["responses"])

    def test_of_history(self, monkeypatch) -> None:
        """All of them."""
        url = "/events/history/news/"
        answers = [
            Client().get(url),
            Client().get(url, {"limit": 0}),
            Client().get("/events/history/other/"),
            Client().post(url),
        ]
        monkeypatch.setattr(type(event_backends["default"]), "read", self.unavailable)
        answers.append(Client().get(url))
        assert [str(answer.status_code) for answer in answers] == list(HISTORY["responses"])


def test_paths_and_limits_are_those_of_the_code(settings) -> None:
    """Also the ones that are said in words."""
    settings.EVENTS = {}
    prefix = DOCUMENT["servers"][0]["variables"]["prefix"]["default"]
    for name, path in zip(("publish", "history"), DOCUMENT["paths"], strict=True):
        assert prefix + path.format(name="news") == reverse(f"events:{name}", args=["news"])
    assert SCHEMAS["ChannelName"]["pattern"] == f"^{wire._CHANNEL_NAME.pattern}$"
    found = wire._CURSOR.pattern.replace("([A-Za-z0-9]{1,32})", "[A-Za-z0-9]{1,32}")
    assert SCHEMAS["Cursor"]["pattern"] == f"^{found}$"
    event = SCHEMAS["Event"]["properties"]
    assert tuple(event) == api._MEMBERS
    assert (event["event"]["maxLength"], event["event"]["default"]) == (wire.MAX_TYPE, wire.DEFAULT_TYPE)
    assert event["key"]["maxLength"] == wire.MAX_KEY
    limit = next(parameter["schema"] for parameter in HISTORY["parameters"] if parameter["name"] == "limit")
    assert (limit["maximum"], limit["default"]) == (api.MAX_LIMIT, api.DEFAULT_LIMIT)
    assert SCHEMAS["Page"]["properties"]["events"]["maxItems"] == api.MAX_LIMIT
    said = PUBLISH["responses"]["413"]["description"]
    assert re.findall("[0-9]+", said) == [str(defaults.MAX_EVENT_BYTES), str(bodies.AROUND_DATA)]
    assert (said[said.index("more than six") :][:19], 6) == ("more than six times", bodies.WORST_ESCAPING)


def test_who_may_publish_is_told_as_the_site_asks_for_it() -> None:
    """The names of cookie, header and permission."""
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert schemes["session"]["name"] == django_settings.SESSION_COOKIE_NAME
    assert (
        schemes["csrfToken"]["name"].lower()
        == (HttpHeaders.parse_header_name(django_settings.CSRF_HEADER_NAME) or "").lower()
    )
    codename, _ = Channel._meta.permissions[0]
    assert f"`events.{codename}`" in schemes["session"]["description"]


def test_every_reference_leads_somewhere() -> None:
    """Into the document itself, and nothing in there is unused."""
    text = json.dumps(DOCUMENT)
    used = set(re.findall(r'"\$ref": "#/components/(\w+/[\w-]+)"', text))
    assert used == {
        f"{kind}/{name}"
        for kind, found in DOCUMENT["components"].items()
        if kind != "securitySchemes"
        for name in found
    }


def chapter_statuses(page: str) -> list[str]:
    """The statuses in the table of a page of the docs."""
    return re.findall(r"^\| ([0-9]{3}) \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)


def blocks(page: str, language: str, beginning: str = "") -> list[str]:
    """The blocks of a page of the docs that begin so."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n({beginning}.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_docs_name_the_same_statuses() -> None:
    """In the same order."""
    assert chapter_statuses("publishing.md") == list(PUBLISH["responses"])
    assert chapter_statuses("history.md") == list(HISTORY["responses"])


@pytest.mark.slow
def test_the_commands_of_the_docs_publish(server: Server, headers) -> None:
    """As shown, with the site's own address and key."""
    require_program("curl")
    (block,) = blocks("publishing.md", "sh", "curl")
    site = f"http://127.0.0.1:{server.port}"
    done = subprocess.run(
        ["sh", "-ec", block.replace("https://www.example.org", site)],
        env={**os.environ, "KEY": headers["Authorization"].removeprefix("Bearer "), "NO_PROXY": "*"},
        check=True,
        capture_output=True,
        timeout=60,
    )
    first, second = re.findall(rb'\{"id": "([^"]+)"\}', done.stdout)
    assert server.json("/events/history/news/?limit=1000")["events"][-1]["id"] == first.decode()
    assert server.json("/events/history/orders.7/")["events"][-1] == {
        "id": second.decode(),
        "event": "order",
        "channel": "orders.7",
        "data": {"id": 7, "state": "shipped"},
    }


def test_the_page_of_the_docs_is_one() -> None:
    """The example fits the schema, by its members."""
    (block,) = blocks("history.md", "json")
    page = json.loads(block)
    assert list(page) == SCHEMAS["Page"]["required"]
    for event in page["events"]:
        assert list(event) == SCHEMAS["Page"]["properties"]["events"]["items"]["required"]
