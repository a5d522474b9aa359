from __future__ import annotations

from django.apps import AppConfig


class SseSiteConfig(AppConfig):
    """The demo site as an app, so that Django finds its command, its table and its sources."""

    name = "sse_site"
    verbose_name = "Demo site"
    default_auto_field = "django.db.models.BigAutoField"
