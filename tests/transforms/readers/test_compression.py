"""Compressed streams one behind the other, wherever a read of the file ends, against Python's own modules."""

import bz2
import gzip
import io
import lzma
import random
import zlib
from collections.abc import Callable

import pyarrow as pa
import pytest

from transforms.readers import compression
from transforms.readers.compression import content, inflate, is_archive_compressed

READ = 256

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress}


class Trickle(io.BytesIO):
    """Gives at most so many bytes at once."""

    def __init__(self, data, most):
        super().__init__(data)
        self._most = most

    def read(self, size=-1):
        return super().read(self._most if size is None or size < 0 else min(size, self._most))


def noise(size, seed):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("padding", [0, 4, 300])
@pytest.mark.parametrize("kind", list(COMPRESS))
def test_read_ends_anywhere_about_where_streams_meet(monkeypatch, kind, padding):
    first, second = COMPRESS[kind](noise(200, 0)), COMPRESS[kind](noise(50, 1))
    wanted = DECOMPRESS[kind](first) + DECOMPRESS[kind](second)
    met = len(first) + padding
    for read in (*range(20, 40), *range(len(first) - 16, len(first) + 16), *range(met - 16, met + 16)):
        monkeypatch.setattr(compression, "_CHUNK", read)
        assert inflate(io.BytesIO(first + bytes(padding) + second + bytes(8))).read() == wanted, read


@pytest.mark.parametrize("before_the_end", range(1, 7))
@pytest.mark.parametrize("kind", list(COMPRESS))
def test_second_header_begins_just_before_the_end_of_a_read(monkeypatch, kind, before_the_end):
    first, second = COMPRESS[kind](noise(100, 0)), COMPRESS[kind](noise(50, 1))
    monkeypatch.setattr(compression, "_CHUNK", READ)
    file = first.ljust(READ - before_the_end, b"\0") + second
    assert inflate(io.BytesIO(file)).read() == DECOMPRESS[kind](first) + DECOMPRESS[kind](second)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("kind", list(COMPRESS))
def test_source_that_gives_less_than_it_is_asked_for(kind, most):
    first, second = COMPRESS[kind](noise(100, 0)), COMPRESS[kind](noise(50, 1))
    source = Trickle(first + bytes(8) + second + bytes(16), most)
    assert content(source, is_archive_compressed).read() == DECOMPRESS[kind](first) + DECOMPRESS[kind](second)


@pytest.mark.parametrize("most", [1, 2, 100])
def test_zlib_that_comes_in_small_pieces(most):
    packed = zlib.compress(noise(100, 0))
    assert inflate(Trickle(packed + bytes(16), most)).read() == zlib.decompress(packed)


@pytest.mark.parametrize("kind", list(COMPRESS))
def test_every_cut_is_told(kind):
    first, second = COMPRESS[kind](noise(100, 0)), COMPRESS[kind](noise(50, 1))
    for kept in range(1, len(second)):
        with pytest.raises(EOFError):
            inflate(io.BytesIO(first + second[:kept])).read()


@pytest.mark.parametrize(
    "rest", [b"x", b"BZx", b"BZh9damaged" + bytes(80), b"\xfd7zXX" + bytes(80), b"\x1f\x8c" + bytes(80)]
)
@pytest.mark.parametrize("kind", list(COMPRESS))
def test_what_is_no_stream_behind_one_is_damage(kind, rest):
    with pytest.raises(zlib.error):
        inflate(io.BytesIO(COMPRESS[kind](noise(100, 0)) + rest)).read()


# Zstandard, whose decompressor is Arrow's.

SKIPPED = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"


def frame(data):
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


@pytest.mark.parametrize("most", [1, 7, 1 << 20])
def test_frames_of_zstandard_are_one_stream(most):
    parts = [noise(100, 0), bytes(3_000_000), noise(200_000, 1)]
    source = Trickle(SKIPPED + b"".join(map(frame, parts)), most)
    kept = bytearray()
    inflated = content(source, is_archive_compressed, kept.extend)
    assert inflated.read(50) == parts[0][:50]
    inflated.seek(200)
    assert inflated.read() == b"".join(parts)[200:]
    assert kept == b"".join(parts)
    del inflated
    assert not source.closed


def test_every_cut_of_zstandard_is_told():
    first, second = frame(noise(100, 0)), frame(noise(50, 1))
    for kept in range(1, len(second)):
        with pytest.raises(EOFError):
            inflate(io.BytesIO(first + second[:kept])).read()


def test_damaged_zstandard_is_told():
    with pytest.raises(zlib.error):
        inflate(io.BytesIO(frame(noise(100, 0)) + b"something else")).read()


def test_errors_of_the_storage_stay_what_they_are():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 100_000:
                raise ConnectionResetError(104, "Connection reset by peer")
            return super().read(size)

    with pytest.raises(ConnectionResetError):
        inflate(Failing(frame(noise(1_000_000, 0)))).read()
