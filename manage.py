#!/usr/bin/env python
"""Django's command line for the demo site."""

import os
import sys


def main() -> None:
    """Run the command that the arguments name."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sse_site.settings")
    try:
        from django.core.management import execute_from_command_line  # noqa: PLC0415 - so that the hint below can help
    except ImportError as error:
        raise SystemExit(
            "Django is not installed here. `make run` makes an environment in .venv that has it."
        ) from error
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
