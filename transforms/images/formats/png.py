"""PNG by libpng, given only the chunks that pixels need.

So no text, profile or time, however large or broken, costs an image or memory.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import imagecodecs

from transforms.images.base import Decoded, Limits
from transforms.images.bit_depth import scale_to_8_bits
from transforms.images.errors import ImageError
from transforms.images.orientation import read_orientation, turn_upright
from transforms.images.transparency import image_from_samples

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}
_HEX_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
_END = b"\0\0\0\0IEND\xaeB`\x82"
_LONGEST_SIDE = 1_000_000
"""libpng's own limit, in pixels."""
_LARGEST_WINDOW = 0x78
"""The first byte of zlib's data whose matches reach back as far as they may."""
_AROUND_HEAD = (slice(0, 4), slice(4, 8), slice(10, -4), slice(-4, None))
"""What stands around the first two bytes of a chunk's data: length, name, the other data, checksum."""
_MAX_METADATA = 1 << 20
"""Bytes of EXIF or XMP, as stored and inflated, that are looked at for the orientation."""


@dataclass(slots=True)
class _Chunks:
    """What a PNG is made of.

    Attributes:
        needed: whole chunks, in order.
        complete: whether the file goes on behind its image data, or ends with it.
        exif: the first block of that name, where its checksum holds.
        exif_text: likewise, from text.
        xmp: likewise.
        icc_profile: whether there is one.
    """

    needed: list[memoryview] = field(default_factory=list)
    complete: bool = True
    exif: bytes | None = None
    exif_text: bytes | None = None
    xmp: bytes | None = None
    icc_profile: bool = False


def decode(data: bytes, limits: Limits) -> Decoded:
    """Decode a PNG. Of an animated one, decode the default image."""
    if data[12:16] == b"CgBI":
        raise ImageError("unsupported_layout", "The PNG is in Apple's own variant (CgBI), not in the standard's.")
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise ImageError("truncated" if len(data) < 33 else "undecodable", "The PNG has no whole header (IHDR).")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    limits.check(width, height)
    chunks = _read_chunks(data)
    if not chunks.complete:
        raise ImageError("truncated", "The PNG ends within its image data.")
    if len(chunks.needed) < 2:
        raise ImageError("undecodable", "The PNG has no image data (IDAT).")
    if max(width, height) > _LONGEST_SIDE:
        raise ImageError(
            "unsupported_layout",
            f"The PNG has {width} x {height} pixels; at most {_LONGEST_SIDE:,} a side are read.",
        )
    samples = imagecodecs.png_decode(b"".join([SIGNATURE, *_with_largest_window(chunks.needed), _END]))
    image = image_from_samples(scale_to_8_bits(samples, 65_535 if samples.itemsize == 2 else 255))
    upright = turn_upright(image, read_orientation(chunks.exif or chunks.exif_text, chunks.xmp))
    return Decoded(upright, width, height, chunks.icc_profile)


def _read_chunks(data: bytes) -> _Chunks:
    """Pick the chunks that pixels need, and those that say how the picture lies."""
    view = memoryview(data)
    chunks = _Chunks()
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        name = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            break
        if name in _NEEDED:
            chunks.needed.append(view[position:end])
        elif name == b"IEND":
            return chunks
        elif name == b"iCCP":
            chunks.icc_profile = True
        elif name in (b"eXIf", b"iTXt", b"tEXt", b"zTXt") and end - position <= _MAX_METADATA:
            _read_metadata(chunks, name, data[position + 8 : end - 4], data[end - 4 : end])
        elif not name[0] & 0x20 and name.isalpha():
            raise ImageError("unsupported_layout", f"The PNG needs a chunk that is not known: {name.decode()}.")
        position = end
    # Chunks that no pixel needs may be cut off: what follows the image data says nothing of it.
    chunks.complete = data[position + 4 : position + 8] not in (b"IDAT", b"PLTE", b"tRNS") and bool(chunks.needed)
    if len(data) - position < 8 and position < len(data):
        chunks.complete = False  # Nobody can say what was to follow.
    return chunks


def _with_largest_window(chunks: list[memoryview]) -> list[memoryview]:
    """The same chunks, with the largest window of deflate where the image data asks for a smaller one.

    Some writers ask for a smaller one than their data needs, which no other reader minds.
    """
    data = (at for at, chunk in enumerate(chunks) if bytes(chunk[4:8]) == b"IDAT" and len(chunk) > 13)
    first = next(data, None)
    if first is None:
        return chunks
    head = bytes(chunks[first][8:10])
    if head[0] == _LARGEST_WINDOW or head[0] & 15 != 8 or int.from_bytes(head, "big") % 31:
        return chunks
    length, name, rest, checksum = (bytes(chunks[first][part]) for part in _AROUND_HEAD)
    if zlib.crc32(name + head + rest).to_bytes(4, "big") != checksum:
        return chunks
    level = head[1] & 0xE0
    body = name + bytes([_LARGEST_WINDOW, level + 31 - (_LARGEST_WINDOW << 8 | level) % 31]) + rest
    changed = memoryview(length + body + zlib.crc32(body).to_bytes(4, "big"))
    return [*chunks[:first], changed, *chunks[first + 1 :]]


def _read_metadata(chunks: _Chunks, name: bytes, body: bytes, checksum: bytes) -> None:
    """Keep EXIF or XMP whose checksum holds; an overlong one is passed over."""
    if zlib.crc32(name + body).to_bytes(4, "big") != checksum:
        return
    keyword, _, rest = body.partition(b"\0")
    if name == b"eXIf":
        chunks.exif = chunks.exif or body
    elif name == b"iTXt" and keyword == b"XML:com.adobe.xmp":
        chunks.xmp = _text(rest[2:].split(b"\0", 2)[-1], compressed=rest[:1] == b"\1")
    elif name in (b"tEXt", b"zTXt") and keyword in _HEX_EXIF and chunks.exif_text is None:
        text = _text(rest[1:] if name == b"zTXt" else rest, compressed=name == b"zTXt")
        chunks.exif_text = _unhex(text) if text else None


def _text(data: bytes, *, compressed: bool) -> bytes | None:
    """Text as it was, cut at a length; None where it is damaged."""
    try:
        return zlib.decompressobj().decompress(data, _MAX_METADATA) if compressed else data
    except zlib.error:
        return None


def _unhex(text: bytes) -> bytes | None:
    """ImageMagick's way to keep EXIF: its name, its length, and hexadecimal digits, in lines."""
    try:
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        return None
