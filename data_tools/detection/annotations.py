"""The annotation file of a detection dataset: `DATA/annotations/{split}.json`.

    {
      "classes": ["dog", ...],
      "attributes": ["white", ...],
      "images": [
        {
          "file_name": "train/1.jpg",        relative to the images folder
          "image_id": "1",                   text or a whole number
          "height": 480, "width": 640,       pixels of the upright image
          "annotations": [
            {
              "bbox": [x1, y1, x2, y2],      pixels, x1 < x2 and y1 < y2
              "category_id": 0,              position in classes
              "attribute_ids": [0, 3]        positions in attributes
            }
          ]
        }
      ]
    }

Other keys of an image or of an object are not read. A file in COCO's form is read too, see
`data_tools.detection.coco`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_tools.detection.coco import from_coco, is_coco
from data_tools.detection.labels import Labels, check_names
from data_tools.errors import InputError
from data_tools.files import is_inside, read_json, replace_file

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One object of an image.

    Attributes:
        bbox: x1 y1 x2 y2 in pixels of the upright image.
        category_id: position of its class in the file's `classes`.
        attribute_ids: positions of its attributes in the file's `attributes`.
    """

    bbox: Box
    category_id: int
    attribute_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image and its objects.

    Attributes:
        file_name: the file, relative to the images folder.
        image_id: text, or the number that Visual Genome gives it.
        height, width: pixels of the upright image.
        annotations: its objects; there may be none.
    """

    file_name: str
    image_id: str | int
    height: int
    width: int
    annotations: tuple[AnnotatedObject, ...]


@dataclass(frozen=True)
class Annotations:
    """What an annotation file holds: the names of classes and attributes, and the images.

    `notes` says what of a file in COCO's form was left out.
    """

    classes: list[str]
    attributes: list[str]
    images: list[AnnotatedImage]
    notes: tuple[str, ...] = ()


def write_annotations(path: Path, labels: Labels, images: Sequence[AnnotatedImage]) -> None:
    """Write an annotation file, complete or not at all.

    Args:
        path: the file, `DATA/annotations/{split}.json`.
        labels: the names that `category_id` and `attribute_ids` count in.
        images: the images, in the order to write.
    """
    document = {"classes": labels.classes, "attributes": labels.attributes, "images": list(images)}
    replace_file(path, f"{json.dumps(document, default=_plain)}\n".encode())


def _plain(record: AnnotatedImage | AnnotatedObject) -> dict[str, Any]:
    """The fields of a record, one level deep: the encoder asks again for the objects of an image."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def read_annotations(path: Path) -> Annotations:
    """Read an annotation file of this project's or of COCO's form. That the image files exist is not checked here.

    Raises:
        InputError: the file is missing, not JSON, or holds no image; or a key is missing or has a value that the
            schema does not allow, in which case the message names the image, the object and the key.
    """
    document = read_json(path)
    notes: list[str] = []
    try:
        if is_coco(document):
            document, notes = from_coco(document)
        if not isinstance(document, dict):
            raise ValueError("expected an object with the keys classes, attributes and images, or COCO's")
        classes, attributes = (check_names(_list(document, key), key) for key in ("classes", "attributes"))
        records = _list(document, "images")
        if not records:
            raise ValueError("holds no image")
        images = [
            _image(record, f"images[{position}]", len(classes), len(attributes))
            for position, record in enumerate(records)
        ]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return Annotations(classes, attributes, images, tuple(notes))


def _image(record: Any, where: str, classes: int, attributes: int) -> AnnotatedImage:
    image_id = _value(record, "image_id", where)
    if not isinstance(image_id, str | int) or isinstance(image_id, bool) or not str(image_id).isprintable():
        raise ValueError(f"{where}: image_id {_shown(image_id)}: expected printable text or a whole number")
    where = f"image {image_id}"
    file_name = _value(record, "file_name", where)
    if not isinstance(file_name, str) or not is_inside(file_name):
        raise ValueError(f"{where}: file_name {_shown(file_name)}: expected a file relative to the images folder")
    height, width = (_value(record, key, where) for key in ("height", "width"))
    for key, side in (("height", height), ("width", width)):
        if not _is_index(side) or side == 0:
            raise ValueError(f"{where}: {key} {_shown(side)}: expected a number of pixels")
    objects = _list(record, "annotations", where)
    return AnnotatedImage(
        file_name,
        image_id,
        height,
        width,
        tuple(
            _object(item, f"{where}: annotations[{position}]", classes, attributes)
            for position, item in enumerate(objects)
        ),
    )


def _object(item: Any, where: str, classes: int, attributes: int) -> AnnotatedObject:
    box = _list(item, "bbox", where)
    if len(box) != 4 or not all(map(_is_edge, box)) or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"{where}: bbox {_shown(box)}: expected x1 y1 x2 y2 with x1 < x2 and y1 < y2")
    category_id = _value(item, "category_id", where)
    if not _is_index(category_id, classes):
        raise ValueError(f"{where}: category_id {_shown(category_id)}: expected 0 to {classes - 1}")
    attribute_ids = _list(item, "attribute_ids", where)
    if not all(_is_index(attribute, attributes) for attribute in attribute_ids):
        raise ValueError(
            f"{where}: attribute_ids {_shown(attribute_ids)}: expected numbers of the {attributes} attributes"
        )
    x1, y1, x2, y2 = map(float, box)
    return AnnotatedObject((x1, y1, x2, y2), category_id, tuple(attribute_ids))


def _value(record: Any, key: str, where: str = "") -> Any:
    prefix = f"{where}: " if where else ""
    if not isinstance(record, dict):
        raise ValueError(f"{prefix}expected an object, found {_shown(record)}")
    if key not in record:
        raise ValueError(f"{prefix}the key {key} is missing")
    return record[key]


def _list(record: Any, key: str, where: str = "") -> list[Any]:
    values = _value(record, key, where)
    if not isinstance(values, list):
        raise ValueError(f"{f'{where}: ' if where else ''}{key} {_shown(values)}: expected a list")
    return values


def _is_index(value: object, size: int | None = None) -> bool:
    """Whether a value is a whole number from 0, below `size` if that is given."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0 and (size is None or value < size)


def _is_edge(value: object) -> bool:
    """Whether a value is a number that a box can have: neither NaN nor beyond any image."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31


def _shown(value: object) -> str:
    """A value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
