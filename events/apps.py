"""The app's configuration."""

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class EventsConfig(AppConfig):
    """Registers the checks and the ticker's receivers, and imports every installed app's `sources` module."""

    name = "events"
    verbose_name = _("Live events")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import what registers itself."""
        from . import checks, control, ticks  # noqa: F401, PLC0415 - they need the models, which are loaded by now

        autodiscover_modules("sources")
