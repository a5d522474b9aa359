"""django-eventstream's site: its own URLs, and a view that publishes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from django.urls import include, path

from bench.apps.control import answer, collect

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

send_event = import_module("django_eventstream").send_event


def publish(request: HttpRequest) -> HttpResponse:
    """Publish the body as it is: encoded as JSON once more, it would be longer than the peers'."""
    send_event("bench", "message", request.body.decode(), json_encode=False)
    return answer("ok")


def burst(request: HttpRequest) -> HttpResponse:
    """Publish each line of the body: there is no call for several events."""
    for text in request.body.decode().split("\n"):
        send_event("bench", "message", text, json_encode=False)
    return answer("ok")


urlpatterns = [
    path("events/", include("django_eventstream.urls")),
    path("publish", publish),
    path("burst", burst),
    path("collect", collect),
]
