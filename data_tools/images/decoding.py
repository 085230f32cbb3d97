"""Decoding image files, and finding the file of an image id.

Pillow decodes: for JPEG it gives the same bytes as OpenCV (both use libjpeg-turbo), and it raises an error for a
truncated file, which OpenCV's reader fills with grey.
"""

import glob
import os
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from data_tools.errors import InputError, one_line
from data_tools.layout import load_id_mapping

MAX_PIXELS = 64_000_000  # of an image: 64 megapixels take about 1.2 GB to decode and resize
Image.MAX_IMAGE_PIXELS = 250_000_000  # where a library opens images for us
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20  # whole pixels may follow large texts
WHITE = (255, 255, 255, 255)


class UnreadableImageError(Exception):
    """A file cannot be decoded as an image; the message gives the reason in a few words."""


def decode_image(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file of any kind.

    The EXIF orientation is applied, transparent pixels are blended with white, 16-bit values keep their upper
    byte, floats of 0 to 1 or 0 to 255 become bytes, and grey, palette and CMYK images are converted to RGB. A file
    whose name has its accents in another Unicode form than `path` is found all the same.

    Args:
        path: the file.
        max_pixels: width times height of the largest image that is decoded.

    Returns:
        (height, width, 3) uint8, RGB, upright.

    Raises:
        UnreadableImageError: the file is missing, empty, damaged, truncated, too large or not an image.
    """
    try:
        path = _existing(path)
        if path.stat().st_size == 0:
            raise UnreadableImageError("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage that matters raises an error below
            with Image.open(path) as image:
                if image.width * image.height > max_pixels:
                    raise UnreadableImageError(
                        f"{image.width} x {image.height} pixels, more than the limit of {max_pixels}"
                    )
                image.load()
                return np.asarray(_to_rgb(_upright(image)))
    except FileNotFoundError:
        raise UnreadableImageError("no such file") from None
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image in a known format, or its header is damaged") from None
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise many types on a damaged file, and a run must continue
        raise UnreadableImageError(one_line(error)) from None


def to_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an opened PIL image, as `decode_image` gives those of its file.

    Raises:
        UnreadableImageError: they cannot be decoded.
    """
    try:
        return np.asarray(_to_rgb(_upright(image)))
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise many types on a damaged file
        raise UnreadableImageError(one_line(error)) from None


def to_bgr(image: np.ndarray) -> np.ndarray:
    """A (height, width, 3) RGB image as a C-ordered copy in BGR, the channel order of the detectors.

    >>> to_bgr(np.array([[[1, 2, 3]]], dtype=np.uint8))
    array([[[3, 2, 1]]], dtype=uint8)
    """
    return np.ascontiguousarray(image[:, :, ::-1])


def decode_bgr(path: Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `decode_image`, but (height, width, 3) uint8 in BGR."""
    return to_bgr(decode_image(path, max_pixels))


def read_image(path: Path) -> np.ndarray:
    """As `decode_image`, with an error that a command prints: for an image that is required.

    Raises:
        InputError: the file is missing, empty, damaged, truncated or not an image; the message names it.
    """
    try:
        return decode_image(path)
    except UnreadableImageError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width that `decode_image` gives, by the file's header alone; None where it cannot be read.

    The orientation is looked for in JPEG files only: others may have to be decoded for it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(_existing(path)) as image:
                turned = image.format in ("JPEG", "MPO") and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # whatever is wrong is reported where the image is decoded
        return None


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


def _existing(path: Path) -> Path:
    """The file of this name, or the one whose name differs from it only in the form of its Unicode characters.

    A Mac writes "é" as two characters where other systems write one.
    """
    if path.exists():
        return path
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (found / part).exists():
            wanted = unicodedata.normalize("NFC", part)
            names = os.listdir(found) if found.is_dir() and not part.isascii() else []
            part = next((name for name in names if unicodedata.normalize("NFC", name) == wanted), part)
        found /= part
    return found


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF block says; as it is where that block is damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of the readers of EXIF and TIFF, on blocks that are neither
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        return _of_floats(np.asarray(image))
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":  # 32-bit integers with 16-bit values: Pillow's form of some 16-bit PNGs
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, WHITE), coloured).convert("RGB")
    return image.convert("RGB")


def _of_floats(values: np.ndarray) -> Image.Image:
    low, high = (float(values.min()), float(values.max())) if np.isfinite(values).all() else (-np.inf, np.inf)
    if low < 0 or high > 255:
        raise UnreadableImageError(f"pixels are floats from {low:g} to {high:g}; expected 0 to 1 or 0 to 255")
    scaled = values * 255 if high <= 1 else values
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
