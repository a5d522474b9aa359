from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

from . import views

urlpatterns = [
    path("", views.home, name="home"),
    # Pages name their icon; browsers ask for this one all the same, on pages that do not.
    path("favicon.ico", views.icon),
    path("react/", views.react, name="react"),
    path("events/", include("events.urls")),
    path("admin/", admin.site.urls),
]
