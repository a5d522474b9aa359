"""Requests the load sends to both Django sites alike."""

from __future__ import annotations

import gc

from django.http import HttpRequest, HttpResponse


def answer(text: str) -> HttpResponse:
    """A short answer with its length, which Django adds in a middleware that is not installed here."""
    return HttpResponse(text, headers={"Content-Length": str(len(text))})


def collect(request: HttpRequest) -> HttpResponse:
    """Collect garbage, so that memory is read without it."""
    return answer(str(gc.collect()))
