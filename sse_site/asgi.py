"""What an ASGI server loads: `sse_site.asgi:application`."""

from __future__ import annotations

import os

from events.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sse_site.settings")

application = get_asgi_application()

# Behind `get_asgi_application`, which sets Django up.
from .views import REACT_PAGE, is_served  # noqa: E402

# Asked when the static files are looked through, which is now: what is built later is not served.
is_served(REACT_PAGE)
