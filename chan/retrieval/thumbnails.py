"""Small pictures of the images that a search found."""

import io
from pathlib import Path

from PIL import Image

from data_tools.images.decoding import UnreadableImageError, decode_image

SIDE = 480  # pixels of the longer side
QUALITY = 85


def thumbnail(file: Path | None) -> bytes | None:
    """A JPEG of an image, upright, at most `SIDE` pixels wide and high; None where the file cannot be read."""
    if file is None:
        return None
    try:
        picture = Image.fromarray(decode_image(file))
    except UnreadableImageError:
        return None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=QUALITY)
    return written.getvalue()
