"""What a site's `asgi.py` uses in place of Django's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import django

if TYPE_CHECKING:
    from .direct import EventsApplication


def get_asgi_application() -> EventsApplication:
    """
    Django's ASGI application with the direct lane, for a site's `asgi.py`.

    Use it instead of `django.core.asgi.get_asgi_application`. It serves every request as that does, but streams leave
    Django once they are admitted; it answers the lifespan protocol, and drains streams when the server stops.
    """
    django.setup(set_prefix=False)
    # These need the models, which are loaded by now.
    from .admission import AdmittingHandler  # noqa: PLC0415
    from .direct import EventsApplication  # noqa: PLC0415

    return EventsApplication(AdmittingHandler())
