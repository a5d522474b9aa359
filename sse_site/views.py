from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.staticfiles import finders
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.views.decorators.http import require_safe

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

#: What `make react` builds.
REACT_PAGE = "sse_site/built/react-page.js"


@cache
def is_served(path: str) -> bool:
    """Whether that static file was there when it was first asked for: with DEBUG off, later ones are not served."""
    return finders.find(path) is not None


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """What this site is, and where to go from here."""
    return render(
        request,
        "home.html",
        {"live_url": reverse("events:index"), "admin_url": reverse("admin:index")},
    )


@require_safe
def react(request: HttpRequest) -> HttpResponse:
    """The channel “clock” in a React component; where that is not built, what to run."""
    if settings.DEBUG:
        is_served.cache_clear()
    return render(request, "react.html", {"program": REACT_PAGE if is_served(REACT_PAGE) else None})


@require_safe
def icon(request: HttpRequest) -> HttpResponse:
    """The icon, for who asks for it by its old name."""
    return redirect(static("events/icon.svg"))
