from __future__ import annotations

import gzip
import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.compression import HEADER, Checksum, accepts_gzip, deflate

#: Texts as streams carry them: what comes again and again is what a compressor would refer back to.
texts = st.one_of(
    st.binary(max_size=300),
    st.sampled_from([b"", b":\n", b"id: epoch-1\ndata: the same text every time\n\n", b"x" * 100_000]),
    st.builds(lambda n: f"id: epoch-{n}\ndata: the same text, and {n}\n\n".encode(), st.integers(0, 99)),
)


def whole(pieces: list[tuple[bytes, bytes]]) -> bytes:
    """The pieces as one client gets them."""
    checksum = Checksum()
    for text, _ in pieces:
        checksum.add(text)
    return HEADER + b"".join([packed for _, packed in pieces]) + checksum.trailer()


@given(st.lists(texts, max_size=12), st.data())
def test_pieces_in_any_order_are_one_gzip_stream(frames: list[bytes], data: st.DataObject) -> None:
    """Each client joins the stream somewhere, and misses and repeats what it will: gzip checks sum and length."""
    packed = [(text, deflate(text)) for text in frames]
    order = data.draw(st.lists(st.sampled_from(packed), max_size=20)) if packed else []
    assert gzip.decompress(whole(order)) == b"".join([text for text, _ in order])


@given(st.lists(texts, min_size=1, max_size=8))
def test_each_piece_can_be_read_when_it_has_come(frames: list[bytes]) -> None:
    """A reader that gets one piece has all that was packed in it, and asks for no more."""
    inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    assert inflate.decompress(HEADER) == b""
    for text in frames:
        assert inflate.decompress(deflate(text)) == text
    assert not inflate.eof


@given(st.binary(max_size=200))
def test_a_piece_depends_on_nothing_before_it(text: bytes) -> None:
    """The same text gives the same bytes, whatever was compressed in between."""
    first = deflate(text)
    deflate(b"something else" + text)
    assert zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(deflate(text)) == text
    assert zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(first) == text


def test_it_is_worth_it() -> None:
    """A frame of some hundred bytes of JSON becomes smaller, by itself."""
    text = b'id: 12345678-1234\ndata: {"id": 17, "state": "shipped", "previous_state": "packed", "items": ['
    text += b",".join(b'{"sku": "A-%d", "state": "shipped", "count": 1}' % n for n in range(10)) + b"]}\n\n"
    assert len(deflate(text)) < len(text) / 3


def test_every_thread_compresses_for_itself() -> None:
    """Two event loops do not write into one another's bytes."""
    results: dict[int, bool] = {}
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait(10)
        frames = [b"%d %d " % (number, turn) * 50 for turn in range(200)]
        packed = [(text, deflate(text)) for text in frames]
        results[number] = gzip.decompress(whole(packed)) == b"".join(frames)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == dict.fromkeys(range(4), True)


def test_the_length_wraps_where_that_of_gzip_does() -> None:
    """RFC 1952 has four bytes for it: a stream that is open for weeks passes them."""
    checksum = Checksum()
    checksum.add(b"abc")
    checksum._size += 2**32
    assert checksum.trailer()[-4:] == (3).to_bytes(4, "little")


def test_the_sum_is_that_of_the_text() -> None:
    """A reader that checks would see any other."""
    broken = bytearray(whole([(b"data: x\n\n", deflate(b"data: x\n\n"))]))
    broken[-8] ^= 1
    with pytest.raises(gzip.BadGzipFile, match="CRC"):
        gzip.decompress(bytes(broken))


@pytest.mark.parametrize(
    "header, expected",
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("br, gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate,gzip;q=0.5", True),
        ("gzip ; q=0.001", True),
        ("gzip; Q=1", True),
        ("*", True),
        ("br, *;q=0.1", True),
        ("*;q=0, gzip", True),
        ("gzip;q=0, x-gzip", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("identity", False),
        ("br", False),
        ("", False),
        (",,;", False),
        ("gzip;q=", False),
        ("gzip;q=many", False),
        ("gzip;q=nan", False),
        ("gzip;q=-1", False),
        ("gzipped", False),
        ("x gzip", False),
    ],
)
def test_what_a_client_accepts(header: str, expected: bool) -> None:
    """As RFC 9110 says; what cannot be read is not accepted."""
    assert accepts_gzip(header) is expected


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_no_header_makes_an_error(header: str) -> None:
    """Whatever a client sends: yes or no."""
    assert accepts_gzip(header) in (True, False)
