"""Reading the picture of an image id.

Pillow decodes: on JPEG it gives the very bytes that OpenCV gives (both use libjpeg-turbo), and it raises where
a file ends too early, which OpenCV's reader has filled with grey.
"""

import glob
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_tools.errors import InputError
from data_tools.layout import load_id_mapping

Image.MAX_IMAGE_PIXELS = 250_000_000  # Pillow refuses twice as many: a file that unpacks to gigabytes
WHITE = (255, 255, 255, 255)


class UnreadableImageError(Exception):
    """A file holds no whole picture; the message gives the reason in a few words."""


def decode_picture(path: Path) -> np.ndarray:
    """Read a picture of any kind as (height, width, 3) uint8, RGB, upright.

    EXIF orientation is applied, transparency is laid over white, 16-bit values keep their upper byte, and
    grey, palette and CMYK pictures become colour.

    Raises:
        UnreadableImageError: the file is missing, empty, damaged, cut short or no picture.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableImageError("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters in them is an error below
            with Image.open(path) as picture:
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                return np.asarray(_to_rgb(upright))
    except FileNotFoundError:
        raise UnreadableImageError("no such file") from None
    except UnidentifiedImageError:
        raise UnreadableImageError("not a picture in a known format, or its header is damaged") from None
    except UnreadableImageError:
        raise
    except Exception as error:  # decoders raise almost anything on a damaged file, and a run must go on
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImageError(" ".join(str(reason).split())) from None


def to_bgr(image: np.ndarray) -> np.ndarray:
    """A (height, width, 3) RGB image as a C-ordered copy in BGR, the channel order of the detectors.

    >>> to_bgr(np.array([[[1, 2, 3]]], dtype=np.uint8))
    array([[[3, 2, 1]]], dtype=uint8)
    """
    return np.ascontiguousarray(image[:, :, ::-1])


def decode_bgr(path: Path) -> np.ndarray:
    """As `decode_picture`, but (height, width, 3) uint8 in BGR."""
    return to_bgr(decode_picture(path))


def read_picture(path: Path) -> np.ndarray:
    """As `decode_picture`, for a picture that must be there.

    Raises:
        InputError: the file is missing, empty, damaged, cut short or no picture.
    """
    try:
        return decode_picture(path)
    except UnreadableImageError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def picture_of(image_id: str, images: Path) -> Path:
    """The file of an image in the folder `images`: by the id mapping beside the folder, else by its name.

    Raises:
        InputError: there is none.
    """
    mapping = images.resolve().parent / "id_mapping.json"
    if mapping.is_file():
        files = load_id_mapping(mapping)
        if image_id not in files:
            raise InputError(f"{mapping}: holds no image {image_id}")
        return images / files[image_id]
    candidates = images.rglob(f"{glob.escape(Path(image_id).name)}.*")
    found = sorted(path for path in candidates if path.stem == image_id and path.is_file())
    if not found:
        raise InputError(f"{images}: found no file of image {image_id} there, and no {mapping}")
    return found[0]


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "I":  # 32-bit integers that hold 16-bit values, as PNG readers make them
        return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, WHITE), coloured).convert("RGB")
    return picture.convert("RGB")
