"""What tests ask a server: to publish, to fail, and to count what it holds."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction
from django.core.signals import request_finished, request_started
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.template import RequestContext, Template
from django.utils.decorators import sync_and_async_middleware

from events import BackendUnavailable, EventStreamResponse, apublish, hub, limits, publish

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

_requests: Counter[str] = Counter()
_queries: Counter[str] = Counter()
_lock = threading.Lock()


def _count(signal: Any, **kwargs: Any) -> None:
    with _lock:
        _requests["started" if signal is request_started else "finished"] += 1


request_started.connect(_count, dispatch_uid="tests.started")
request_finished.connect(_count, dispatch_uid="tests.finished")


def _count_query(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
    """Count what Django's connections are asked, by the first table that it is about."""
    table = re.search(r"""(?:FROM|INTO|UPDATE) ["`]?(\w+)""", sql)
    with _lock:
        _queries[table[1] if table else sql.partition(" ")[0]] += 1
    return execute(sql, params, many, context)


def _watch_queries(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    # A connection that is opened again is still watched.
    if _count_query not in connection.execute_wrappers:
        connection.execute_wrappers.append(_count_query)


connection_created.connect(_watch_queries, dispatch_uid="tests.queries")


@sync_and_async_middleware
def name_process(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Say in a header which process answers."""
    if iscoroutinefunction(get_response):

        async def anamed(request: HttpRequest) -> HttpResponseBase:
            response: HttpResponseBase = await get_response(request)
            response["X-Process"] = str(os.getpid())
            return response

        return anamed

    def named(request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase = get_response(request)
        response["X-Process"] = str(os.getpid())
        return response

    return named


async def blank(request: HttpRequest) -> HttpResponse:
    """A page of this origin without anything on it."""
    return HttpResponse("<!doctype html><link rel=icon href='data:,'><title>blank</title>")


async def debug(request: HttpRequest) -> JsonResponse:
    """What this process holds at this moment."""
    with _lock:
        # The request that asks is one of them.
        unfinished = _requests["started"] - _requests["finished"] - 1
        queries = dict(_queries)
    hubs = [found for _, found in hub.hubs()]
    streams = [stream for found in hubs for stream in tuple(found.streams)]
    return JsonResponse(
        {
            "process": os.getpid(),
            "streams": len(streams),
            # In which lane they are, and how many of the direct one have a task because their client is behind.
            "lanes": Counter(type(stream).__name__ for stream in streams),
            "driven": sum(getattr(stream, "_driver", None) is not None for stream in streams),
            "feeds": sum(len(found.feeds) for found in hubs),
            "limits": {f"{limit} {channel}": count for (limit, channel), count in sorted(limits.counts.items())},
            "memory": _memory(),
            "tasks": len(asyncio.all_tasks()),
            "threads": threading.active_count(),
            "thread_names": sorted(thread.name for thread in threading.enumerate()),
            "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - without a thread, and it is not a disk
            # By their write-ahead logs: SQLite keeps files of the database itself for connections that come later.
            "databases": sum(name.endswith("db.sqlite3-wal") for name in _open_files()),
            "unfinished": unfinished,
            "queries": queries,
        }
    )


def _memory() -> dict[str, int]:
    """What this process takes now, and took at most: bytes."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[{"VmRSS": "now", "VmHWM": "most"}[name]] = int(value.split()[0]) * 1024
    return found


def _open_files() -> list[str]:
    names = []
    for path in Path("/proc/self/fd").iterdir():
        # The folder's own is closed by now.
        with suppress(OSError):
            names.append(str(path.readlink()))
    return names


def page(request: HttpRequest) -> HttpResponse:
    """A page that says where the log is, before anything else is read."""
    return render(request, "tests_site/page.html")


def ticket(request: HttpRequest) -> HttpResponse:
    """A page that has a ticket for its visitor."""
    text = "{% load events %}{% event_ticket channel %}"
    return HttpResponse(Template(text).render(RequestContext(request, {"channel": request.GET["channel"]})))


def publish_here(request: HttpRequest) -> JsonResponse:
    """Publish from a sync view: on a thread of Django's. 503 where the log cannot be reached."""
    try:
        published = publish(request.GET["channel"], request.GET["data"], key=request.GET.get("key"))
    except BackendUnavailable as error:
        return JsonResponse({"error": str(error)}, status=503)
    return JsonResponse({"id": published.id, "process": os.getpid()})


async def apublish_here(request: HttpRequest) -> JsonResponse:
    """Publish from an async view: on the server's own loop."""
    published = await apublish(request.GET["channel"], request.GET["data"])
    return JsonResponse({"id": published.id, "process": os.getpid()})


async def fails(request: HttpRequest) -> HttpResponseBase:
    """A stream whose view has a fault that shows only later."""

    async def allowed() -> bool:
        raise RuntimeError("the view has a fault")

    return EventStreamResponse(request, request.GET.getlist("channel"), allowed=allowed)
