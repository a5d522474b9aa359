"""What an ASGI server loads: `sse_site.asgi:application`."""

from __future__ import annotations

import os

from events.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sse_site.settings")

application = get_asgi_application()
