"""Small files that are legal, or nearly so, and cost a parser far more than they are worth."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

MEGABYTE = 2**20


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


SMALL = Image.new("L", (8, 8), 100)
JPEG, PNG, WEBP = (saved(SMALL, kind) for kind in ("JPEG", "PNG", "WEBP"))


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(inserted: bytes) -> bytes:
    return JPEG[:2] + inserted + JPEG[2:]


def jpeg_of_scans(times: int, side: int = 1900) -> bytes:
    """Return a progressive JPEG with one of its scans, 14 bytes, so many times more."""
    data = saved(Image.new("L", (side, side)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * times + data[-2:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_with(inserted: bytes) -> bytes:
    # After the header.
    return PNG[:33] + inserted + PNG[33:]


def png_bomb(width: int, height: int, bits: int = 8, colour: int = 0, size: int = 10**7) -> bytes:
    """Return a PNG of a few kilobytes that says it has so many pixels."""
    header = struct.pack(">II5B", width, height, bits, colour, 0, 0, 0)
    packer = zlib.compressobj(9)
    blocks = [packer.compress(bytes(min(10**6, size - at))) for at in range(0, size, 10**6)]
    data = b"".join(blocks) + packer.flush()
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return PNG[:8] + chunks


def webp_with(inserted: bytes, width: int = 8, height: int = 8) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = webp_chunk(b"VP8X", b"\x08\0\0\0" + canvas) + WEBP[12:] + inserted
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def webp_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def bmp_of_runs(width: int, height: int) -> bytes:
    """Return a run-length encoded BMP with one pixel in each line."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    data = b"\x01\x07\x00\x00" * height + b"\x00\x01"
    start = 54 + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return head + info + palette + data


def exif_of_tags(count: int) -> bytes:
    """Return an EXIF block of so many tags, 65,535 at most."""
    tags = (struct.pack("<HHII", i, 3, 1, 1) for i in range(count))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, count) + b"".join(tags) + bytes(4)


def exif_of_fractions(count: int, tag: int = 274) -> bytes:
    """Return an EXIF block whose orientation, or another tag, is so many fractions."""
    entry = struct.pack("<HHII", tag, 5, count, 26)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + bytes([1]) * 8 * count


def tiff(tags: list[tuple[int, int, list[int]]], data: bytes = b"", big: bool = False) -> bytes:
    """Return a TIFF of one directory: tag, type (3, 4 or 5), values. The data lie at its end.

    A value of -1 is the place where the data begin, and so is every one after it in a long tag.
    """
    size = {3: 2, 4: 4, 5: 4}
    per_tag, offset, head = (20, "Q", 16) if big else (12, "I", 8)
    room = struct.calcsize(offset)
    start = head + (8 if big else 2) + per_tag * len(tags) + room
    outside = sum(
        size[kind] * len(values) for _, kind, values in tags if size[kind] * len(values) > room
    )
    entries, extra = b"", b""
    for tag, kind, values in sorted(tags):
        told = [start + outside if value == -1 else value for value in values]
        packed = struct.pack(f"<{len(told)}{'H' if kind == 3 else 'I'}", *told)
        count = len(told) // 2 if kind == 5 else len(told)
        if len(packed) > room:
            place = struct.pack(f"<{offset}", start + len(extra))
            extra += packed
        else:
            place = packed.ljust(room, b"\0")
        entries += struct.pack(f"<HH{offset}", tag, kind, count) + place
    first = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, len(tags)) if big else b""
    first = first or b"II*\0" + struct.pack("<IH", 8, len(tags))
    return first + entries + bytes(room) + extra + data


def tiff_tags(width: int, height: int, compression: int = 1) -> list[tuple[int, int, list[int]]]:
    return [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [8]),
        (259, 3, [compression]),
        (262, 3, [1]),
        (277, 3, [1]),
    ]


def tiff_of_tiles(width: int, height: int, tile: tuple[int, int]) -> bytes:
    """Return a TIFF whose tiles all are the same few bytes, which unpack to a whole tile."""
    data = zlib.compress(bytes(tile[0] * tile[1]), 9)
    tiles = -(-width // tile[0]) * -(-height // tile[1])
    tags = [*tiff_tags(width, height, 8), (322, 4, [tile[0]]), (323, 4, [tile[1]])]
    tags += [(324, 4, [-1] * tiles), (325, 4, [len(data)] * tiles)]
    return tiff(tags, data)


def tiff_of_strips(width: int, height: int, rows: int, compression: int = 1) -> bytes:
    data = bytes(width * rows) if compression == 1 else zlib.compress(bytes(width * rows), 9)
    strips = -(-height // rows)
    tags = [*tiff_tags(width, height, compression), (278, 4, [rows])]
    tags += [(273, 4, [-1] * strips), (279, 4, [len(data)] * strips)]
    return tiff(tags, data)


def tiff_with(*tags: tuple[int, int, list[int]], big: bool = False) -> bytes:
    strip = [(278, 4, [8]), (273, 4, [-1]), (279, 4, [64])]
    return tiff([*tiff_tags(8, 8), *strip, *tags], bytes(64), big)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
    return Image.fromarray(values)
