from __future__ import annotations

import os

from django.core.asgi import get_asgi_application as get_django_application

from events.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.site.settings")

application = get_django_application() if os.environ.get("EVENTS_TEST_LANE") == "response" else get_asgi_application()
