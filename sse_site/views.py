from __future__ import annotations

from typing import TYPE_CHECKING

from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.views.decorators.http import require_safe

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """What this site is, and where to go from here."""
    return render(
        request,
        "home.html",
        {"live_url": reverse("events:index"), "admin_url": reverse("admin:index")},
    )


@require_safe
def icon(request: HttpRequest) -> HttpResponse:
    """The icon, for who asks for it by its old name."""
    return redirect(static("events/icon.svg"))
