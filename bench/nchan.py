"""nchan: nginx with the module that keeps channels and their subscribers, no application behind it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bench.process import command
from bench.scratch import folder

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = "ngx_nchan_module.so"

# One worker, as the other servers have one. Without its master it crashes when it ends with streams open. 1,000
# messages are kept, as this project's channel keeps them. A subscriber gets what is published from now on, like
# everybody's.
CONFIGURATION = """
load_module {module};
{user}daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {place}/pid;
error_log stderr error;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    keepalive_requests 1000000;
    keepalive_timeout 600s;
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        nchan_message_buffer_length 1000;
        location = /publish {{ nchan_publisher; nchan_channel_id bench; }}
        location = /events {{
            nchan_subscriber eventsource;
            nchan_channel_id bench;
            nchan_subscriber_first_message newest;
        }}
        location = /collect {{ return 200 "0"; }}
    }}
}}
"""


def _program() -> str | None:
    # Debian keeps it where an ordinary user's PATH does not look.
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin")


@cache
def _said() -> str:
    program = _program()
    if program is None:
        return ""
    return subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stderr


@cache
def _module() -> Path | None:
    found = re.search(r"--modules-path=(\S+)", _said())
    for place in ([found[1]] if found else []) + ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"]:
        if (path := Path(place) / MODULE).exists():
            return path
    return None


def installed() -> bool:
    """Whether nginx and the module are here."""
    return _module() is not None


def versions() -> str:
    """nginx's version, and the module's as far as Debian's packages tell it."""
    if not installed():
        return "nginx with nchan is not installed"
    found = re.search(r"nginx/(\S+)", _said())
    module = "of unknown version"
    with contextlib.suppress(OSError):
        asked = ["dpkg-query", "--show", "--showformat=${Version}", "libnginx-mod-nchan"]
        module = subprocess.run(asked, capture_output=True, text=True, check=False).stdout or module
    return f"nginx {found[1] if found else '?'}, nchan {module}"


@contextlib.contextmanager
def running(port: int) -> Iterator[subprocess.Popen[str]]:
    """Run nginx on ``port``, with its files in a folder of its own."""
    program, module = _program(), _module()
    assert program is not None
    with folder() as place:
        configuration = place / "nginx.conf"
        # Started by root, its worker would become somebody who cannot enter the folder.
        user = "user root;\n" if os.geteuid() == 0 else ""
        text = CONFIGURATION.format(module=module, place=place, port=port, user=user)
        configuration.write_text(text, encoding="utf-8")
        with command(
            program, "-c", str(configuration), "-p", str(place), "-e", "stderr", env={}, core="server"
        ) as process:
            yield process
