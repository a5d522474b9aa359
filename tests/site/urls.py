from __future__ import annotations

from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path

from . import views

urlpatterns = [
    path("events/", include("events.urls")),
    path("admin/", admin.site.urls),
    path("blank/", views.blank),
    path("debug/", views.debug),
    path("page/", views.page),
    path("ticket/", views.ticket),
    path("publish/", views.publish_here),
    path("apublish/", views.apublish_here),
    path("fails/", views.fails),
    # Served as in development, though DEBUG is off.
    path("static/<path:path>", serve, {"insecure": True}),
]
