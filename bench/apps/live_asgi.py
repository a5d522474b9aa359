"""This project's own ASGI application, in place of Django's: the direct lane."""

from __future__ import annotations

from events.asgi import get_asgi_application

application = get_asgi_application()
