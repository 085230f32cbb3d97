"""Finding and reading the picture of an image id."""

import glob
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data_tools.errors import InputError
from data_tools.layout import load_id_mapping


def read_picture(path: Path) -> np.ndarray:
    """(height, width, 3) uint8, RGB, upright by its EXIF orientation.

    Raises:
        InputError: the file is absent, damaged, cut short or no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters in them is an error below
            with Image.open(path) as picture:
                picture.load()
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except Exception as error:  # decoders raise almost anything on a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if str(path) in reason:  # Pillow's "cannot identify image file" repeats the path
            reason = "not a picture in a known format, or its header is damaged"
        raise InputError(f"{path}: cannot be read: {' '.join(reason.split())}") from None


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
    found = sorted(path for path in images.rglob(f"{glob.escape(Path(image_id).name)}.*") if path.is_file())
    if not found:
        raise InputError(f"{images}: found no file of image {image_id} there, and no {mapping}")
    return found[0]
