"""Boxes that the user gives, by image: from JSON, or from a feature store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_tools.errors import InputError
from data_tools.files import read_json
from data_tools.store.reading import FeatureStore

Boxes = Mapping[str, np.ndarray]  # id -> (P, 4) float32 x1 y1 x2 y2 in pixels of the upright original, P >= 1


def load_boxes(path: Path) -> dict[str, np.ndarray]:
    """The boxes of a file: JSON `{"id": [[x1, y1, x2, y2], ...]}`, or a store that has boxes.

    Images without any box are left out.

    Raises:
        InputError: the file cannot be read, or an image's boxes are malformed; the message names the image.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of boxes")
    if h5py.is_hdf5(path):
        return _of_store(path)
    document = read_json(path, unique_keys=True)
    if not isinstance(document, dict):
        raise InputError(f'{path}: expected an object {{"id": [[x1, y1, x2, y2], ...]}}')
    boxes = {image_id: _checked(path, image_id, rows) for image_id, rows in document.items()}
    return {image_id: rows for image_id, rows in boxes.items() if len(rows)}


def _of_store(path: Path) -> dict[str, np.ndarray]:
    with FeatureStore(path) as store:
        found = {}
        for row, image_id in enumerate(store.image_ids):
            boxes = store.boxes(row)
            if boxes is None:
                raise InputError(f"{path}: this store has no boxes")
            if np.isnan(boxes).any():
                raise InputError(
                    f"{path}: image {image_id}: region {int(np.isnan(boxes).any(axis=1).argmax())} has no box"
                )
            if len(boxes):
                found[image_id] = _checked(path, image_id, boxes)
        return found


def _checked(path: Path, image_id: str, rows: Any) -> np.ndarray:
    try:
        numbers = np.array(rows)
        if numbers.size and (numbers.dtype.kind not in "iuf" or numbers.ndim != 2):  # text, booleans, 400 digits
            raise ValueError
        with np.errstate(over="ignore"):  # infinity is refused below
            boxes = numbers.astype(np.float32).reshape(len(rows), 4)
    except (TypeError, ValueError):
        raise InputError(f"{path}: image {image_id}: expected a list of [x1, y1, x2, y2] in pixels") from None
    wrong = ~np.isfinite(boxes).all(axis=1) | (boxes[:, :2] > boxes[:, 2:]).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        found = boxes[row].tolist()
        raise InputError(f"{path}: image {image_id}: box {row} is {found}, expected x1 <= x2 and y1 <= y2")
    return boxes
