"""Visual Genome as a data set for the detector.

SOURCE/{objects,attributes,image_data}.json   as Visual Genome publishes them (versions 1.2 and 1.4)
OUT/images/VG_100K, VG_100K_2                 its images
OUT/annotations/{train,val,test}.json         written: classes, attributes and Detectron2 dataset dicts
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from data_tools.console import Progress
from data_tools.detection.labels import Labels
from data_tools.detection.visual_genome_names import NameTable, name_table, split_attributes
from data_tools.detection.visual_genome_splits import draw_splits, read_lists
from data_tools.errors import InputError
from data_tools.files import read_json, replace_file

_URL = re.compile(r"(?:.*/)?(VG_100K(?:_2)?/\d+\.jpg)")
_XYXY_ABS = 0  # the value of detectron2.structures.BoxMode.XYXY_ABS, which data_tools may not import
_ORIENTATION = 0x0112  # the EXIF tag; from 5 on the picture lies on its side

Box = tuple[float, float, float, float]
Record = dict[str, Any]


@dataclass
class Conversion:
    """What a conversion wrote and what it left out.

    Attributes:
        images: number of images of each split.
        objects, attributes: annotated objects in them, and attributes of these objects.
        unknown_objects: objects whose name is in no line of the vocabulary.
        empty_boxes: objects without area inside their image.
        merged_objects: objects whose box and class another object of the image has; it took their attributes.
        unknown_attributes: attributes of kept objects that are in no line of the vocabulary.
        images_without_objects: annotated images without any object left.
        images_without_size: annotated images that `image_data.json` does not hold.
        images_missing, images_of_other_size: files absent or unreadable, or not as large as announced.
        images_unlisted: usable images in none of the lists.
        listed_without_annotation: images of the lists that are not usable.
        files_checked: whether the images were there to be looked at.
    """

    images: dict[str, int]
    objects: int = 0
    attributes: int = 0
    unknown_objects: int = 0
    empty_boxes: int = 0
    merged_objects: int = 0
    unknown_attributes: int = 0
    images_without_objects: int = 0
    images_without_size: int = 0
    images_missing: int = 0
    images_of_other_size: int = 0
    images_unlisted: int = 0
    listed_without_annotation: int = 0
    files_checked: bool = True

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

    def as_text(self) -> str:
        """Some lines for people."""
        lines = [", ".join(f"{name}: {count} images" for name, count in self.images.items())]
        lines.append(f"{self.objects} objects with {self.attributes} attributes")
        for count, what in (
            (self.unknown_objects, "objects left out: their name is not in the vocabulary"),
            (self.empty_boxes, "objects left out: their box is empty or outside the image"),
            (self.merged_objects, "objects merged with another of the same box and class"),
            (self.unknown_attributes, "attributes left out: not in the vocabulary"),
            (self.images_without_objects, "images left out: no object is left in them"),
            (self.images_without_size, "images left out: image_data.json does not hold them"),
            (self.images_missing, "images left out: the file is missing or unreadable"),
            (self.images_of_other_size, "images left out: the file has another size than image_data.json says"),
            (self.images_unlisted, "images left out: in none of the lists"),
            (self.listed_without_annotation, "images of the lists are none of those that are left"),
        ):
            if count:
                lines.append(f"  {count} {what}")
        if not self.files_checked:
            lines.append("  image files not looked at: there is no images folder yet")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Picture:
    """An image as `image_data.json` has it."""

    file_name: str
    width: int
    height: int


def convert_visual_genome(
    source: Path, out: Path, labels: Labels, lists: Path | None, val: int, test: int, seed: int
) -> Conversion:
    """Write `OUT/annotations/{train,val,test}.json` from Visual Genome's files in `source`.

    Boxes become x1 y1 x2 y2, clipped to their image. Objects of one image with one box and one class are the
    same object, annotated several times: they become one with the attributes of all, for a detection can match
    only one of them, and the others would count as misses and weigh twice in the losses.

    Args:
        source: folder of `objects.json`, `attributes.json` and `image_data.json`.
        out: the data set's folder. Where it has an `images` folder, images that are absent from it or of
            another size are left out.
        labels: the vocabulary with its aliases.
        lists: a folder of lists, see `read_lists`; without it a random split of `val` and `test` images.
        seed: decides the random split.

    Raises:
        InputError: a file is absent or malformed, or no image is left for a split.
    """
    report: Counter[str] = Counter()
    listed = None if lists is None else read_lists(lists)
    pictures = _read_pictures(source / "image_data.json")
    attributes = _read_attributes(source / "attributes.json")
    records = _read_objects(source / "objects.json", pictures, attributes, name_table(labels), report)
    if not records:
        raise InputError(f"{source / 'objects.json'}: no image has an object of the vocabulary")
    checked = (out / "images").is_dir()
    if checked:
        records = _with_files(records, out / "images", report)
    if listed is None:
        listed = draw_splits(list(records), val, test, seed)
    else:
        _count_lists(listed, records, report)
    splits = {
        name: [records[image_id] for image_id in ids if image_id in records] for name, ids in listed.items() if ids
    }
    for name, members in splits.items():
        if not members:
            raise InputError(f"{lists}: none of the images of {name}.txt has an object of the vocabulary")
    for name, members in splits.items():
        _write(out / "annotations" / f"{name}.json", labels, members)
    annotations = [item for members in splits.values() for record in members for item in record["annotations"]]
    return Conversion(
        images={name: len(members) for name, members in splits.items()},
        objects=len(annotations),
        attributes=sum(len(item["attribute_ids"]) for item in annotations),
        files_checked=checked,
        **report,
    )


def _write(path: Path, labels: Labels, records: list[Record]) -> None:
    document = {"classes": labels.classes, "attributes": labels.attributes, "images": records}
    replace_file(path, f"{json.dumps(document)}\n".encode())


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of one of Visual Genome's files, an object for each image; `ValueError` where it is none."""
    document = read_json(path)
    if not isinstance(document, list):
        raise ValueError("expected a list with an object for each image")
    for number, entry in enumerate(document):
        if not isinstance(entry, dict) or not _is_id(entry.get("image_id")):
            raise ValueError(f"entry {number}: expected an object with the number image_id")
        yield entry


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_pictures(path: Path) -> dict[int, _Picture]:
    pictures: dict[int, _Picture] = {}
    try:
        for entry in _entries(path):
            image_id = entry["image_id"]
            where = f"image {image_id}"
            if image_id in pictures:
                raise ValueError(f"{where}: is there twice")
            match = _URL.fullmatch(str(entry.get("url")))
            if match is None:
                raise ValueError(f"{where}: url: expected VG_100K/NUMBER.jpg or VG_100K_2/NUMBER.jpg at its end")
            width, height = (entry.get(key) for key in ("width", "height"))
            if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
                raise ValueError(f"{where}: width and height: expected pixels, not {width} and {height}")
            pictures[image_id] = _Picture(match[1], width, height)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return pictures


def _read_attributes(path: Path) -> dict[int, list[str]]:
    """What the annotators wrote of each object that they gave attributes, by its `object_id`."""
    attributes: defaultdict[int, list[str]] = defaultdict(list)
    try:
        for entry in _entries(path):
            for item in _items(entry, "attributes"):
                texts = item.get("attributes") or []  # missing or null: none
                if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                    raise ValueError(f"{_name(entry, item)}: attributes: expected a list of words")
                if texts:
                    attributes[item["object_id"]] += texts
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return attributes


def _items(entry: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of an image."""
    items = entry.get(key)
    if not isinstance(items, list):
        raise ValueError(f"image {entry['image_id']}: {key}: expected a list of objects")
    for item in items:
        if not isinstance(item, dict) or not _is_id(item.get("object_id")):
            raise ValueError(f"image {entry['image_id']}: {key}: expected objects with the number object_id")
    return items


def _name(entry: dict[str, Any], item: dict[str, Any]) -> str:
    return f"image {entry['image_id']}: object {item['object_id']}"


def _read_objects(
    path: Path,
    pictures: dict[int, _Picture],
    attributes: dict[int, list[str]],
    names: NameTable,
    report: Counter[str],
) -> dict[int, Record]:
    """Detectron2's dataset dict of each image that has an object of the vocabulary, by the image's id."""
    records: dict[int, Record] = {}
    seen: set[int] = set()
    try:
        for entry in _entries(path):
            image_id = entry["image_id"]
            if image_id in seen:
                raise ValueError(f"image {image_id}: is there twice")
            seen.add(image_id)
            items = _items(entry, "objects")
            picture = pictures.get(image_id)
            if picture is None:
                report["images_without_size"] += 1
                continue
            annotations = _annotations(entry, items, picture, attributes, names, report)
            if not annotations:
                report["images_without_objects"] += 1
                continue
            records[image_id] = {
                "image_id": image_id,
                "file_name": picture.file_name,
                "height": picture.height,
                "width": picture.width,
                "annotations": annotations,
            }
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return records


def _annotations(
    entry: dict[str, Any],
    items: list[dict[str, Any]],
    picture: _Picture,
    attributes: dict[int, list[str]],
    names: NameTable,
    report: Counter[str],
) -> list[Record]:
    """The objects of an image that are kept, merged where box and class are the same."""
    merged: dict[tuple[Box, int], set[int]] = {}
    for item in items:
        texts = item.get("names")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{_name(entry, item)}: names: expected a list of names")
        box = _clipped_box(item, picture, _name(entry, item))
        found = names.find_class(texts)
        if found is None:
            report["unknown_objects"] += 1
            continue
        if box[0] >= box[2] or box[1] >= box[3]:
            report["empty_boxes"] += 1
            continue
        category, adjectives = found
        report["merged_objects"] += (box, category) in merged
        wanted = {*adjectives}.union(*map(split_attributes, attributes.get(item["object_id"], [])))
        known = {names.attributes[text] for text in wanted if text in names.attributes}
        report["unknown_attributes"] += sum(text not in names.attributes for text in wanted)
        merged.setdefault((box, category), set()).update(known)
    return [
        {"bbox": list(box), "bbox_mode": _XYXY_ABS, "category_id": category, "attribute_ids": sorted(ids)}
        for (box, category), ids in merged.items()
    ]


def _clipped_box(item: dict[str, Any], picture: _Picture, where: str) -> Box:
    values = [item.get(key) for key in ("x", "y", "w", "h")]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v) for v in values):
        raise ValueError(f"{where}: x, y, w, h: expected four numbers, not {values}")
    x, y, w, h = map(float, values)  # type: ignore[arg-type]  # numbers, as was just seen
    width, height = float(picture.width), float(picture.height)
    x1, x2 = (min(max(edge, 0.0), width) for edge in (x, x + w))
    y1, y2 = (min(max(edge, 0.0), height) for edge in (y, y + h))
    return x1, y1, x2, y2


def _with_files(records: dict[int, Record], folder: Path, report: Counter[str]) -> dict[int, Record]:
    """The records whose image is in the folder and has the announced size."""
    kept: dict[int, Record] = {}
    first = ""
    with Progress("look at images", len(records), "images") as bar:
        for image_id, record in records.items():
            size = _upright_size(folder / record["file_name"])
            if size == (record["width"], record["height"]):
                kept[image_id] = record
            else:
                first = first or record["file_name"]
                report["images_missing" if size is None else "images_of_other_size"] += 1
            bar.advance()
    if not kept:
        raise InputError(f"{folder}: holds no image of those annotated; expected {first}, for instance")
    return kept


def _upright_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image, turned as its EXIF data says; None where there is no readable one."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, TypeError):
        return None
    return (height, width) if turned else (width, height)


def _count_lists(listed: dict[str, list[int]], records: dict[int, Record], report: Counter[str]) -> None:
    all_listed = {image_id for ids in listed.values() for image_id in ids}
    report["images_unlisted"] += len(records.keys() - all_listed)
    report["listed_without_annotation"] += len(all_listed - records.keys())
