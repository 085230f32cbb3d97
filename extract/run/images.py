"""Reading pictures as the detector wants them: upright, three channels, 8 bits, blue first."""

from pathlib import Path

import numpy as np

from data_tools.images.decoding import UnreadableImageError, decode_picture

__all__ = ["UnreadableImageError", "read_image"]


def read_image(path: Path) -> np.ndarray:
    """Read a picture as (height, width, 3) uint8, BGR, upright; see `decode_picture`.

    Raises:
        UnreadableImageError: the file is missing, empty, damaged, cut short or no picture.
    """
    return np.ascontiguousarray(decode_picture(path)[:, :, ::-1])
