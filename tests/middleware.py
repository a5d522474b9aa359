"""Middleware as sites have it, for tests that put it before a stream."""

from __future__ import annotations

from django.utils.decorators import async_only_middleware


@async_only_middleware
def wrapping_middleware(get_response):
    async def middleware(request):
        response = await get_response(request)
        response.streaming_content = upper(response.streaming_content)
        return response

    return middleware


@async_only_middleware
def encoding_middleware(get_response):
    async def middleware(request):
        response = await get_response(request)
        response["Content-Encoding"] = "x-none"
        return response

    return middleware


async def upper(parts):
    async for part in parts:
        yield part.upper()
