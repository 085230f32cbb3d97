"""COCO's detection files (`instances_*.json`) in the form of this project's annotation file.

    {
      "categories": [{"id": 17, "name": "cat"}, ...],        ids need not be consecutive
      "attributes": [{"id": 5, "name": "white"}, ...],       optional
      "images": [{"id": 1, "file_name": "1.jpg", "height": 480, "width": 640}, ...],
      "annotations": [
        {
          "image_id": 1, "category_id": 17,
          "bbox": [x, y, width, height],                     pixels
          "attribute_ids": [5],                              optional
          "iscrowd": 0                                       optional
        }
      ]
    }

The attributes are as in Fashionpedia's files, which extend COCO's. Other keys are not read.
"""

from collections import Counter
from typing import Any

MAX_EDGE = 2**31  # pixels: no number beyond any image


def is_coco(document: Any) -> bool:
    """Whether a document has COCO's categories in place of this project's classes."""
    return isinstance(document, dict) and "categories" in document and "classes" not in document


def from_coco(document: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A document of COCO in the form of `data_tools.detection.annotations`, and notes on what was left out.

    Classes and attributes are in the order of their ids. Images without objects are kept. Annotations of crowds
    (`iscrowd` 1) are left out, for their box is round many objects, as are boxes without area inside the image.

    >>> from_coco({
    ...     "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    ...     "images": [{"id": 1, "file_name": "1.jpg", "height": 40, "width": 60}],
    ...     "annotations": [{"image_id": 1, "category_id": 9, "bbox": [50, 10, 20, 5]}],
    ... })[0]["images"][0]["annotations"]
    [{'bbox': [50, 10, 60, 15], 'category_id': 1, 'attribute_ids': []}]

    Raises:
        ValueError: a key is missing or has a value of a wrong kind, an id is listed twice or is not listed.
    """
    classes, class_names = _positions(document, "categories")
    attributes, attribute_names = _positions(document, "attributes") if "attributes" in document else ({}, [])
    images: dict[Any, dict[str, Any]] = {}
    for number, image in enumerate(_list(document, "images")):
        image_id = _value(image, "id", f"images[{number}]")
        _check_id(image_id, f"images[{number}]: id")
        if image_id in images:
            raise ValueError(f"images: id {image_id} is listed twice")
        sides = {key: _value(image, key, f"image {image_id}") for key in ("file_name", "height", "width")}
        images[image_id] = {"image_id": image_id, **sides, "annotations": []}
    left_out: Counter[str] = Counter()
    for number, item in enumerate(_list(document, "annotations")):
        where = f"annotations[{number}]"
        image = images[_listed(_value(item, "image_id", where), images, f"{where}: image_id")]
        category = classes[_listed(_value(item, "category_id", where), classes, f"{where}: category_id")]
        given = item.get("attribute_ids") or []
        if not isinstance(given, list):
            raise ValueError(f"{where}: attribute_ids: expected a list")
        chosen = sorted({attributes[_listed(value, attributes, f"{where}: attribute_ids")] for value in given})
        box = _clipped(item, image, where)
        if item.get("iscrowd"):
            left_out["annotations of crowds"] += 1
        elif box[0] >= box[2] or box[1] >= box[3]:
            left_out["boxes without area inside their image"] += 1
        else:
            image["annotations"].append({"bbox": box, "category_id": category, "attribute_ids": chosen})
    notes = [f"{count} {what} left out" for what, count in left_out.items()]
    empty = sum(not image["annotations"] for image in images.values())
    notes += [f"{empty} of {len(images)} images without objects"] if empty else []
    return {"classes": class_names, "attributes": attribute_names, "images": list(images.values())}, notes


def _positions(document: dict[str, Any], key: str) -> tuple[dict[Any, int], list[Any]]:
    """The position of each id of a list of ids and names, from 0 by rising id, and the names in this order."""
    names: dict[Any, Any] = {}
    for number, entry in enumerate(_list(document, key)):
        found = _value(entry, "id", f"{key}[{number}]")
        if not isinstance(found, int) or isinstance(found, bool):
            raise ValueError(f"{key}[{number}]: id: expected a whole number")
        if found in names:
            raise ValueError(f"{key}: id {found} is listed twice")
        names[found] = _value(entry, "name", f"{key}[{number}]")
    order = sorted(names)
    return {found: position for position, found in enumerate(order)}, [names[found] for found in order]


def _clipped(item: dict[str, Any], image: dict[str, Any], where: str) -> list[float]:
    """x1 y1 x2 y2 of an annotation, cut to its image."""
    box = _value(item, "bbox", where)
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_edge, box)):
        raise ValueError(f"{where}: bbox: expected x, y, width and height in pixels")
    x, y, width, height = box
    sides = image["width"], image["height"]
    if not all(map(_is_edge, sides)):
        raise ValueError(f"image {image['image_id']}: width and height: expected numbers of pixels")
    x1, x2 = (min(max(edge, 0), sides[0]) for edge in (x, x + width))
    y1, y2 = (min(max(edge, 0), sides[1]) for edge in (y, y + height))
    return [x1, y1, x2, y2]


def _list(document: dict[str, Any], key: str) -> list[Any]:
    values = document.get(key)
    if not isinstance(values, list):
        raise ValueError(f"{key}: expected a list")
    return values


def _value(record: Any, key: str, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{where}: the key {key} is missing")
    return record[key]


def _check_id(value: Any, where: str) -> None:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"{where}: expected a whole number or text")


def _listed(value: Any, known: dict[Any, Any], where: str) -> Any:
    _check_id(value, where)
    if value not in known:
        raise ValueError(f"{where} {value!r:.60}: is not listed")
    return value


def _is_edge(value: object) -> bool:
    """Whether a value is a number of pixels: neither NaN nor beyond any image."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_EDGE
