"""This project's site: its own URLs, and a view that publishes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.urls import include, path

import events
from bench.apps.control import answer, collect

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


def publish(request: HttpRequest) -> HttpResponse:
    """Publish the body."""
    events.publish("bench", request.body.decode())
    return answer("ok")


def burst(request: HttpRequest) -> HttpResponse:
    """Publish the lines of the body together."""
    events.publish_many([("bench", text) for text in request.body.decode().split("\n")])
    return answer("ok")


urlpatterns = [
    path("events/", include("events.urls")),
    path("publish", publish),
    path("burst", burst),
    path("collect", collect),
]
