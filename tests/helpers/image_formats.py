"""Image files byte by byte: modes and depths that Pillow reads but does not write."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

_PNG_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Encode uint8 or uint16 pixels (height, width, channels), with chunks around the pixels."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.itemsize
    head = struct.pack(">IIBBBBB", width, height, bits, _PNG_COLOR_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{pixels.itemsize}").tobytes() for row in pixels)
    chunks = png_chunk(b"IHDR", head) + before + png_chunk(b"IDAT", zlib.compress(rows))
    return PNG_SIGNATURE + chunks + after + png_chunk(b"IEND", b"")


def tiff(
    data: bytes,
    size: tuple[int, int],
    *,
    bits: Sequence[int],
    photometric: int,
    order: str = "<",
    sample_format: int = 1,
    extra: Sequence[int] = (),
    colors: Sequence[int] = (),
) -> bytes:
    """Encode a TIFF file of one strip.

    Args:
        data: the rows of pixels.
        size: (height, width).
        bits: bits of each channel.
        photometric: 0 for gray with 0 as white, 1 for gray, 2 for RGB, 3 for a palette.
        order: "<" for little-endian, ">" for big-endian.
        sample_format: 1 for unsigned, 2 for signed, 3 for floating point.
        extra: meaning of each channel beyond the colors: 0 unknown, 1 or 2 alpha.
        colors: 16-bit entries of the palette.
    """
    tags: dict[int, Sequence[int]] = {256: [size[1]], 257: [size[0]], 258: bits, 259: [1]}
    tags |= {262: [photometric], 273: [8], 277: [len(bits)], 278: [size[0]], 279: [len(data)]}
    tags |= {320: colors, 338: extra, 339: [sample_format] * len(bits)}
    tags = {tag: values for tag, values in sorted(tags.items()) if values}
    content = (b"II*\0" if order == "<" else b"MM\0*") + bytes(4) + data + bytes(len(data) % 2)
    entries = b""
    for tag, values in tags.items():
        value = struct.pack(f"{order}{len(values)}H", *values)
        if len(value) > 4:
            content, value = content + value, struct.pack(f"{order}I", len(content))
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + value.ljust(4, b"\0")
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    return content[:4] + struct.pack(f"{order}I", len(content)) + content[8:] + directory
