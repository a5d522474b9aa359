"""
gzip for streams, compressed once for all: RFC 1951 and RFC 1952.

After a full flush deflate remembers nothing, and its output ends at a byte. So what is compressed in one piece can be
put behind whatever a client got before: each frame is compressed once per process, and a stream is a gzip header of its
own, those pieces in the stream's order, and at an orderly end a trailer. No stream has a compressor.
"""

from __future__ import annotations

import struct
import threading
import zlib

#: RFC 1952, section 2.3: magic, deflate, no flags, no time, no hints, unknown system.
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
#: RFC 1951, section 3.2.4 and 3.2.6: a last block with nothing in it.
_LAST_BLOCK = b"\x03\x00"

_local = threading.local()


def deflate(data: bytes) -> bytes:
    """`data` as whole deflate blocks that depend on nothing before them."""
    try:
        compressor = _local.compressor
    except AttributeError:
        # A quarter of a megabyte: one for each thread that runs an event loop.
        compressor = _local.compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    compressed: bytes = compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH)
    return compressed


class Checksum:
    """What a gzip trailer says of all that one client got: its CRC-32 and its length."""

    __slots__ = ("_crc", "_size")

    def __init__(self) -> None:
        self._crc = self._size = 0

    def add(self, data: bytes) -> None:
        """Count `data`, which was sent compressed."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)

    def trailer(self) -> bytes:
        """The end of the stream."""
        return _LAST_BLOCK + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)


def accepts_gzip(header: str) -> bool:
    """Whether an `Accept-Encoding` header lets a server answer with gzip (RFC 9110, section 12.5.3)."""
    weights = {}
    for item in header.lower().split(","):
        name, _, parameters = item.partition(";")
        weight = parameters.partition("q=")[2].strip() if "q=" in parameters else "1"
        weights[name.strip()] = weight
    found = weights.get("gzip", weights.get("x-gzip", weights.get("*", "0")))
    try:
        return float(found) > 0
    except ValueError:
        return False
