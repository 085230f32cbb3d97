"""Changes to pictures: headers that claim sizes, chunks, EXIF blocks, unusual modes and formats."""

import io
import struct
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image


def png_header(path: Path, rng: Random) -> None:
    """A PNG whose header claims another size, depth or colour type, with a right checksum."""
    content = bytearray(_as(path, "PNG"))
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", content[16:29])
    kind = rng.randrange(4)
    if kind <= 1:
        width, height = rng.choice(
            ((22_000, 22_000), (2**31 - 1, 1), (0, 5), (width, height + 1), (1, 2**31), (9_000, 9))
        )
    elif kind == 2:
        depth = rng.choice((0, 1, 2, 4, 16, 32, 255))
    else:
        colour = rng.choice((0, 1, 2, 3, 4, 6, 7))
    content[16:29] = struct.pack(">IIBBBBB", width, height, depth, colour, *rest)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def png_chunk(path: Path, rng: Random) -> None:
    """A PNG with one chunk more: a large text, a profile, a palette, EXIF, a second header, an animation."""
    content = _as(path, "PNG")
    kinds = (
        b"zTXt",
        b"iTXt",
        b"tEXt",
        b"iCCP",
        b"PLTE",
        b"eXIf",
        b"IHDR",
        b"tRNS",
        b"acTL",
        b"fcTL",
        b"gAMA",
        b"IEND",
    )
    body = rng.choice((b"", rng.randbytes(40), b"a\0\0" + zlib.compress(bytes(6_000_000)), b"a\0" + b"b" * 70_000))
    kind = rng.choice(kinds)
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content[:33] + chunk + content[33:])


def exif(path: Path, rng: Random) -> None:
    """An EXIF block that is none, or one with an orientation that does not exist."""
    image = _image(path)
    found = Image.Exif()
    found[0x0112] = rng.choice((0, 3, 6, 8, 9, 200, 65_535))
    block = rng.choice((found.tobytes(), b"Exif\0\0" + rng.randbytes(60), b"x", b"Exif\0\0MM\0*" + b"\xff" * 40))
    buffer = io.BytesIO()
    image.save(buffer, rng.choice(("JPEG", "PNG", "WEBP")), exif=block)
    path.write_bytes(buffer.getvalue())


def mode(path: Path, rng: Random) -> None:
    """The picture in an unusual mode or format, then with a bit flipped in one of two cases."""
    image = _image(path)
    name, form = rng.choice(
        (
            *(
                ("L", "JPEG"),
                ("CMYK", "JPEG"),
                ("1", "PNG"),
                ("I;16", "PNG"),
                ("LA", "PNG"),
                ("P", "GIF"),
                ("F", "TIFF"),
            ),
            *(
                ("I", "TIFF"),
                ("RGBA", "WEBP"),
                ("1", "TIFF"),
                ("P", "PNG"),
                ("RGB", "PPM"),
                ("RGBA", "ICO"),
                ("RGB", "BMP"),
            ),
            *(
                ("LAB", "TIFF"),
                ("YCbCr", "JPEG"),
                ("RGB", "TGA"),
                ("RGB", "JPEG2000"),
                ("RGB", "PCX"),
                ("RGB", "SGI"),
            ),
        )
    )
    if name == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    elif name == "LAB":
        image = Image.frombytes("LAB", image.size, image.tobytes())
    else:
        image = image.convert(name)
    buffer = io.BytesIO()
    image.save(buffer, form)
    content = bytearray(buffer.getvalue())
    for _ in range(rng.choice((0, 1, 4))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def size(path: Path, rng: Random) -> None:
    """A picture of one pixel, of one row, or very long."""
    width, height = rng.choice(((1, 1), (1, 500), (5000, 1), (3, 3), (20_000, 2), (2, 1500)))
    buffer = io.BytesIO()
    Image.new(rng.choice(("RGB", "L", "RGBA")), (width, height), 7).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def jpeg_segment(path: Path, rng: Random) -> None:
    """A JPEG whose frame claims another size or number of components, or with a segment of another length."""
    content = bytearray(_as(path, "JPEG"))
    frame = content.find(b"\xff\xc0")
    place = rng.choice((frame + 5, frame + 7))
    if rng.random() < 0.6:
        content[place : place + 2] = struct.pack(">H", rng.choice((0, 1, 65_535, 30_000, 17)))
    elif rng.random() < 0.5:
        content[frame + 9] = rng.randrange(6)
    else:
        content[frame + 2 : frame + 4] = struct.pack(">H", rng.choice((0, 1, 2, 65_535)))
    path.write_bytes(content)


def _image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _as(path: Path, form: str) -> bytes:
    buffer = io.BytesIO()
    _image(path).save(buffer, form)
    return buffer.getvalue()


PICTURES = (png_header, png_header, png_chunk, exif, exif, mode, mode, size, jpeg_segment, jpeg_segment)
