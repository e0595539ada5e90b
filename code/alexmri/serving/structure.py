"""Refuse files that cost far more to parse than to decode, before Pillow opens them.

Pillow parses segments, chunks and tags in Python, at 1 to 10 microseconds each, and libtiff unpacks
whole tiles. So the number of these parts is limited by the size of the file. What is checked here
mirrors how Pillow reads a file; a damaged file passes, and Pillow refuses it.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from alexmri.serving.request_error import RequestError, too_large, unreadable

# A file may have this many parts, and one more for each KB of it. A PNG usually has a chunk for
# each 8 KB, a JPEG 20 segments.
MAX_PARTS, BYTES_PER_PART = 1000, 1024
# Each scan of a progressive JPEG goes over all pixels: 1,000 of them, in 28 KB, took 2.2 s. Usual
# are 10, and libtiff has the same limit. In a scan's data this pair of bytes cannot be.
MAX_SCANS = 100
# Bytes of a JPEG's tables, or of junk between its segments. Pillow reads junk byte by byte.
MAX_TABLE_BYTES = MAX_JUNK_BYTES = 2**17
MAX_PHOTOSHOP_BLOCKS = 10_000
MAX_EXIF_BYTES = 2**20
# Texts of a PNG that are compressed: 1 KB may be 1 MB of text.
MAX_PACKED_TEXTS = 16
# Of a TIFF directory, also of one in an EXIF block. Usual are 20 tags; every strip and tile needs
# two values. Pillow makes an object of each value, and a fraction costs 20 times as much.
MAX_TAGS, MAX_DIRECTORIES = 512, 16
MAX_VALUES, MAX_FRACTIONS = 2**18, 4096
# libtiff unpacks whole tiles, however little of them lies inside of the image.
MAX_TILE_PIXELS, MAX_TILE_OVERHEAD = 2**20, 4
# Colours with 16 bits each need 20 bytes of memory for a pixel, five times as much as others.
MAX_WIDE_COLOUR_PIXELS = 10_000_000
# A WebP image is given memory for two canvases before it can be refused by its size.
MAX_CANVAS_PIXELS = 64_000_000

_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xfe])")
_JPEG_WITHOUT_LENGTH = {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
_JPEG_SCAN, _START_OF_SCAN = re.compile(rb"\xff\xda"), 0xDA
_APP1, _APP13, _APPS, _COMMENT = 0xE1, 0xED, range(0xE0, 0xF0), 0xFE
_BMP_RUN_LENGTH = (1, 2)
# Of a TIFF directory: bytes per value by type; the types that are fractions; pointers to others.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"II\0*", b"MM*\0")
_BYTES, _FRACTIONS = (1, 2, 7), (5, 10)
_COMPRESSION, _BITS = 259, 258
_SIDES = _WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_FAX = (2, 3, 32771)
_DIRECTORIES = (34665, 34853, 37500, 40965)


def check_structure(data: bytes) -> None:
    """Refuse an image file that is made of too many parts, or of parts too costly to parse.

    Raises:
        RequestError: 422 too many parts; 413 too many pixels with 16 bits per colour.
    """
    for signature, check in CHECKS.items():
        if data.startswith(signature):
            check(data)


def _refusal(what: str) -> RequestError:
    return unreadable(f"{what}; save the image anew, for example as PNG without metadata")


def _check_count(what: str, count: int, data: bytes) -> None:
    allowed = MAX_PARTS + len(data) // BYTES_PER_PART
    if count > allowed:
        raise _refusal(f"the file has more than {allowed} {what}")


def _check_jpeg(data: bytes) -> None:
    # A third of the time of bytes.count.
    if any(True for _ in itertools.islice(_JPEG_SCAN.finditer(data), MAX_SCANS, None)):
        raise _refusal(f"the JPEG has more than {MAX_SCANS} scans")
    at, segments, junk, tables, photoshop, exif = 2, 0, 0, 0, 0, b""
    while marker := _JPEG_MARKER.search(data, at, at + MAX_JUNK_BYTES + 2):
        junk += marker.start() - at
        kind, at = marker[1][0], marker.end()
        segments += 1
        _check_count("segments", segments, data)
        if junk > MAX_JUNK_BYTES or kind == _START_OF_SCAN:
            break
        if kind in _JPEG_WITHOUT_LENGTH:
            continue
        length = max(2, int.from_bytes(data[at : at + 2]))
        segment = data[at + 2 : at + length]
        if kind == _APP1 and segment.startswith(b"Exif\0\0"):
            # Pillow puts several together, of which only the first has a head.
            exif += segment[6:]
            _check_exif(exif)
        elif kind == _APP13:
            photoshop += segment.count(b"8BIM")
        elif kind not in _APPS and kind != _COMMENT:
            tables += length
        if photoshop > MAX_PHOTOSHOP_BLOCKS:
            raise _refusal(f"the JPEG has more than {MAX_PHOTOSHOP_BLOCKS} Photoshop blocks")
        if tables > MAX_TABLE_BYTES:
            raise _refusal(f"the JPEG has more than {MAX_TABLE_BYTES} bytes of tables")
        at += length
    else:
        junk += len(data) - at
    if junk > MAX_JUNK_BYTES:
        raise _refusal(f"the JPEG has more than {MAX_JUNK_BYTES} bytes between its segments")


def _check_png(data: bytes) -> None:
    if data[24:25] == b"\x10" and data[25:26] in (b"\x02", b"\x04", b"\x06"):
        _check_wide_colour(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    at, chunks, packed = 8, 0, 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        chunks += 1
        packed += kind in (b"zTXt", b"iTXt", b"iCCP")
        _check_count("chunks", chunks, data)
        if packed > MAX_PACKED_TEXTS:
            raise _refusal(f"the PNG has more than {MAX_PACKED_TEXTS} compressed texts")
        if kind == b"eXIf":
            _check_exif(data[at + 8 : at + 8 + length])
        at += 12 + length


def _check_webp(data: bytes) -> None:
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[i : i + 3], "little") for i in (24, 27))
        if width * height > MAX_CANVAS_PIXELS:
            raise _refusal(f"the WebP has a canvas of {width} x {height} pixels")
    at, chunks = 12, 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        chunks += 1
        _check_count("chunks", chunks, data)
        if data[at : at + 4] == b"EXIF":
            _check_exif(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2


def _check_bmp(data: bytes) -> None:
    has_compression = int.from_bytes(data[14:18], "little") >= 40
    if has_compression and int.from_bytes(data[30:34], "little") in _BMP_RUN_LENGTH:
        # A file of 9 KB took 9 s: Pillow decodes these in Python, pixel by pixel.
        raise unreadable("the BMP is run-length encoded (RLE); save it as PNG, or uncompressed")


def _check_exif(block: bytes) -> None:
    if len(block) > MAX_EXIF_BYTES:
        raise _refusal(f"the EXIF block has more than {MAX_EXIF_BYTES} bytes")
    _check_tiff(block.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0"))


def _check_tiff(data: bytes) -> None:
    if data.startswith(b"MM\0+"):
        # Pillow takes it for another kind than libtiff does.
        raise unreadable("the file is a big-endian BigTIFF; save it as TIFF or PNG")
    if data[:4] not in _TIFF_STARTS:
        return
    values = fractions = colour_bits = 0
    sides = dict.fromkeys(_SIDES, 0)
    for tag in _tags(data):
        values += tag.values if tag.kind not in _BYTES else 0
        fractions += tag.values if tag.kind in _FRACTIONS else 0
        if not tag.is_first:
            continue
        if tag.number == _COMPRESSION and tag.value in _FAX:
            # libtiff writes a line to the log for each damaged row: 600 MB for one request.
            raise unreadable("the TIFF is compressed as a fax; save it as PNG")
        if tag.number == _BITS and tag.values > 1:
            colour_bits = max(colour_bits, tag.value)
        elif tag.number in (_TILE_WIDTH, _TILE_HEIGHT):
            sides[tag.number] = max(sides[tag.number], tag.value)
        elif tag.number in sides:
            sides[tag.number] = sides[tag.number] or tag.value
    if values > MAX_VALUES or fractions > MAX_FRACTIONS:
        raise _refusal(
            f"the file's tags have more than {MAX_VALUES} numbers, or {MAX_FRACTIONS} fractions"
        )
    _check_tiles(*sides.values())
    if colour_bits > 8:
        _check_wide_colour(sides[_WIDTH], sides[_HEIGHT])


class _Tag(NamedTuple):
    """A tag, whether it is in the first directory, how many values it has, and the first."""

    is_first: bool
    number: int
    kind: int
    values: int
    value: int


def _tags(data: bytes) -> Iterator[_Tag]:
    """Yield the tags that Pillow reads: of the first image, and what it points to as EXIF."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    # Bytes of an offset, of how many tags there are, and of a tag.
    offset_bytes, count_bytes, tag_bytes = (8, 8, 20) if data[2:3] == b"+" else (4, 2, 12)

    def number(at: int, length: int) -> int:
        return int.from_bytes(data[at : at + length], order)

    pending, seen = [number(offset_bytes, offset_bytes)], set[int]()
    while pending and len(seen) < MAX_DIRECTORIES:
        directory = pending.pop()
        if directory in seen or directory + count_bytes > len(data):
            continue
        seen.add(directory)
        tags = number(directory, count_bytes)
        if tags > MAX_TAGS:
            raise _refusal(f"a directory of the file has more than {MAX_TAGS} tags")
        for i in range(tags):
            at = directory + count_bytes + i * tag_bytes
            kind, count = number(at + 2, 2), number(at + 4, offset_bytes)
            size = _SIZES.get(kind, 0)
            # Pillow skips what cannot be in the file.
            if not size or count * size > len(data):
                continue
            value_at = at + 4 + offset_bytes
            place = value_at if count * size <= offset_bytes else number(value_at, offset_bytes)
            tag = _Tag(len(seen) == 1, number(at, 2), kind, count, number(place, size))
            if tag.number in _DIRECTORIES:
                pending.append(tag.value)
            yield tag


def _check_tiles(width: int, height: int, tile_width: int, tile_height: int) -> None:
    if tile_width and tile_height:
        tiles = -(-width // tile_width) * -(-height // tile_height)
        allowed = max(MAX_TILE_PIXELS, MAX_TILE_OVERHEAD * width * height)
        if tiles * tile_width * tile_height > allowed:
            raise _refusal(
                f"the tiles of the TIFF have {tile_width} x {tile_height} pixels, which is too"
                f" large for {width} x {height}"
            )


def _check_wide_colour(width: int, height: int) -> None:
    if width * height > MAX_WIDE_COLOUR_PIXELS:
        raise too_large(
            f"the image has {width} x {height} pixels in colour with 16 bits per channel; at most"
            f" {MAX_WIDE_COLOUR_PIXELS // 10**6} million are taken; save it as grayscale, or with"
            " 8 bits per channel"
        )


CHECKS: dict[bytes, Callable[[bytes], None]] = {
    b"\xff\xd8": _check_jpeg,
    b"\x89PNG\r\n\x1a\n": _check_png,
    b"RIFF": _check_webp,
    b"BM": _check_bmp,
    b"II": _check_tiff,
    b"MM": _check_tiff,
}
