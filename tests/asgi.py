"""What the servers that tests start load."""

from __future__ import annotations

import os

from events.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

application = get_asgi_application()
