"""Decoding image files, and finding the file of an image id.

Pillow decodes: for JPEG it gives the same bytes as OpenCV (both use libjpeg-turbo), and it raises an error for a
truncated file, which OpenCV's reader fills with grey.
"""

import glob
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_tools.errors import InputError, one_line
from data_tools.layout import load_id_mapping

Image.MAX_IMAGE_PIXELS = 250_000_000  # Pillow refuses images of more than twice as many: decompression bombs
WHITE = (255, 255, 255, 255)


class UnreadableImageError(Exception):
    """A file cannot be decoded as an image; the message gives the reason in a few words."""


def decode_image(path: Path) -> np.ndarray:
    """Decode an image file of any kind.

    The EXIF orientation is applied, transparent pixels are blended with white, 16-bit values keep their upper
    byte, and grey, palette and CMYK images are converted to RGB.

    Returns:
        (height, width, 3) uint8, RGB, upright.

    Raises:
        UnreadableImageError: the file is missing, empty, damaged, truncated or not an image.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableImageError("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage that matters raises an error below
            with Image.open(path) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
                return np.asarray(_to_rgb(upright))
    except FileNotFoundError:
        raise UnreadableImageError("no such file") from None
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image in a known format, or its header is damaged") from None
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise many types on a damaged file, and a run must continue
        raise UnreadableImageError(one_line(error)) from None


def to_bgr(image: np.ndarray) -> np.ndarray:
    """A (height, width, 3) RGB image as a C-ordered copy in BGR, the channel order of the detectors.

    >>> to_bgr(np.array([[[1, 2, 3]]], dtype=np.uint8))
    array([[[3, 2, 1]]], dtype=uint8)
    """
    return np.ascontiguousarray(image[:, :, ::-1])


def decode_bgr(path: Path) -> np.ndarray:
    """As `decode_image`, but (height, width, 3) uint8 in BGR."""
    return to_bgr(decode_image(path))


def read_image(path: Path) -> np.ndarray:
    """As `decode_image`, with an error that a command prints: for an image that is required.

    Raises:
        InputError: the file is missing, empty, damaged, truncated or not an image; the message names it.
    """
    try:
        return decode_image(path)
    except UnreadableImageError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def find_image_file(image_id: str, images: Path) -> Path:
    """The file of an image id in the folder `images`.

    The file is that of `id_mapping.json` beside the folder; without a mapping it is the file below the folder that
    is called by the id, with any extension.

    Raises:
        InputError: there is no such file, or the mapping lacks the id.
    """
    mapping = images.resolve().parent / "id_mapping.json"
    if mapping.is_file():
        files = load_id_mapping(mapping)
        if image_id not in files:
            raise InputError(f"{mapping}: lacks image {image_id}")
        return images / files[image_id]
    candidates = images.rglob(f"{glob.escape(Path(image_id).name)}.*")
    found = sorted(path for path in candidates if path.stem == image_id and path.is_file())
    if not found:
        raise InputError(f"{images}: holds no file called {image_id}.*; fix: write {mapping}, or correct the id")
    return found[0]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":  # 32-bit integers with 16-bit values: Pillow's form of some 16-bit PNGs
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, WHITE), coloured).convert("RGB")
    return image.convert("RGB")
