"""Visual Genome as a dataset for the detector.

SOURCE/{objects,attributes,image_data}.json   as Visual Genome publishes them (versions 1.2 and 1.4)
OUT/images/VG_100K, VG_100K_2                 its images
OUT/annotations/{train,val,test}.json         written, see `data_tools.detection.annotations`
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from data_tools.console import Progress
from data_tools.detection.annotations import AnnotatedImage, AnnotatedObject, Box, write_annotations
from data_tools.detection.labels import Labels
from data_tools.detection.visual_genome_names import NameTable, name_table, split_attributes
from data_tools.detection.visual_genome_splits import draw_image_lists, read_image_lists
from data_tools.errors import InputError
from data_tools.files import read_json

_URL = re.compile(r"(?:.*/)?(VG_100K(?:_2)?/\d+\.jpg)")
_ORIENTATION = 0x0112  # the EXIF tag; for values from 5 on, stored rows are columns of the upright image
MAX_EDGE = 2**31  # pixels: no number beyond any image


@dataclass
class VisualGenomeSummary:
    """Counts of what the conversion wrote and of what it left out.

    Attributes:
        images: number of images per split.
        objects, attributes: objects in these images, and attributes of these objects.
        unknown_objects: objects left out: no name of theirs is in the vocabulary.
        empty_boxes: objects left out: their box has no area inside the image.
        merged_objects: objects merged into another one with the same box and class.
        unknown_attributes: attributes of kept objects left out: not in the vocabulary.
        images_without_objects: images left out: no object of theirs was kept.
        images_without_size: images left out: not in `image_data.json`.
        images_missing: images left out: their file is missing or unreadable.
        images_of_other_size: images left out: their file has another size than `image_data.json` says.
        images_unlisted: images left out: in none of the lists.
        listed_without_annotation: entries of the lists that no usable image matches.
        files_checked: whether there was an images folder, so that files could be checked.
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
        """Several lines of text: the counts of each split, then one line per kind of loss."""
        lines = [", ".join(f"{name}: {count} images" for name, count in self.images.items())]
        lines.append(f"{self.objects} objects with {self.attributes} attributes")
        for count, what in (
            (self.unknown_objects, "objects left out: their name is not in the vocabulary"),
            (self.empty_boxes, "objects left out: their box is empty or outside the image"),
            (self.merged_objects, "objects merged with another of the same box and class"),
            (self.unknown_attributes, "attributes left out: not in the vocabulary"),
            (self.images_without_objects, "images left out: none of their objects was kept"),
            (self.images_without_size, "images left out: not in image_data.json"),
            (self.images_missing, "images left out: the file is missing or unreadable"),
            (self.images_of_other_size, "images left out: the file has another size than image_data.json says"),
            (self.images_unlisted, "images left out: in none of the lists"),
            (self.listed_without_annotation, "entries of the lists match no usable image"),
        ):
            if count:
                lines.append(f"  {count} {what}")
        if not self.files_checked:
            lines.append("  image files were not checked: there is no images folder yet")
        return "\n".join(lines)


@dataclass(frozen=True)
class _ImageEntry:
    """File and size of an image according to `image_data.json`."""

    file_name: str
    width: int
    height: int


def convert_visual_genome(
    source: Path, out: Path, labels: Labels, lists: Path | None, val: int, test: int, seed: int
) -> VisualGenomeSummary:
    """Write `OUT/annotations/{train,val,test}.json` from Visual Genome's files in `source`.

    Boxes become x1 y1 x2 y2, clipped to their image. Objects of one image with equal box and class are one object
    that was annotated several times: they become one with the attributes of all. Otherwise a detection could
    match only one of them, the others would count as misses, and the losses would count the object repeatedly.

    Args:
        source: folder of `objects.json`, `attributes.json` and `image_data.json`.
        out: the dataset's folder. If it has an `images` folder, images whose file is missing there or has another
            size are left out.
        labels: the vocabulary with its aliases.
        lists: a folder of image lists, see `read_image_lists`; None draws a random split of `val` validation and
            `test` test images.
        seed: of the random split.

    Raises:
        InputError: a file is missing or malformed, or no image is left for a split.
    """
    report: Counter[str] = Counter()
    listed = None if lists is None else read_image_lists(lists)
    entries = _read_image_data(source / "image_data.json")
    attributes = _read_attributes(source / "attributes.json")
    records = _read_objects(source / "objects.json", entries, attributes, name_table(labels), report)
    if not records:
        raise InputError(f"{source / 'objects.json'}: no image has an object of the vocabulary")
    checked = (out / "images").is_dir()
    if checked:
        records = _with_files(records, out / "images", report)
    if listed is None:
        listed = draw_image_lists(list(records), val, test, seed)
    else:
        _count_lists(listed, records, report)
    splits = {
        name: [records[image_id] for image_id in ids if image_id in records] for name, ids in listed.items() if ids
    }
    for name, members in splits.items():
        if not members:
            raise InputError(f"{lists}: none of the images of {name}.txt has an object of the vocabulary")
    for name, members in splits.items():
        write_annotations(out / "annotations" / f"{name}.json", labels, members)
    objects = [item for members in splits.values() for record in members for item in record.annotations]
    return VisualGenomeSummary(
        images={name: len(members) for name, members in splits.items()},
        objects=len(objects),
        attributes=sum(len(item.attribute_ids) for item in objects),
        files_checked=checked,
        **report,
    )


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of one of Visual Genome's files, one object per image; `ValueError` for anything else."""
    document = read_json(path)
    if not isinstance(document, list):
        raise ValueError("expected a list with one object per image")
    for number, entry in enumerate(document):
        if not isinstance(entry, dict) or not _is_id(entry.get("image_id")):
            raise ValueError(f"entry {number}: expected an object with the number image_id")
        yield entry


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_image_data(path: Path) -> dict[int, _ImageEntry]:
    entries: dict[int, _ImageEntry] = {}
    try:
        for entry in _entries(path):
            image_id = entry["image_id"]
            where = f"image {image_id}"
            if image_id in entries:
                raise ValueError(f"{where}: is listed twice")
            match = _URL.fullmatch(str(entry.get("url")))
            if match is None:
                raise ValueError(f"{where}: url: expected it to end in VG_100K/NUMBER.jpg or VG_100K_2/NUMBER.jpg")
            width, height = (entry.get(key) for key in ("width", "height"))
            if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
                raise ValueError(f"{where}: width and height: expected pixels, not {width} and {height}")
            entries[image_id] = _ImageEntry(match[1], width, height)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return entries


def _read_attributes(path: Path) -> dict[int, list[str]]:
    """The attributes that the annotators wrote for each object, by its `object_id`."""
    attributes: defaultdict[int, list[str]] = defaultdict(list)
    try:
        for entry in _entries(path):
            for item in _items(entry, "attributes"):
                texts = item.get("attributes") or []  # a missing key and null mean that there are none
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
    image_entries: dict[int, _ImageEntry],
    attributes: dict[int, list[str]],
    names: NameTable,
    report: Counter[str],
) -> dict[int, AnnotatedImage]:
    """Each image that has an object of the vocabulary, by its id."""
    records: dict[int, AnnotatedImage] = {}
    seen: set[int] = set()
    try:
        for entry in _entries(path):
            image_id = entry["image_id"]
            if image_id in seen:
                raise ValueError(f"image {image_id}: is listed twice")
            seen.add(image_id)
            items = _items(entry, "objects")
            image = image_entries.get(image_id)
            if image is None:
                report["images_without_size"] += 1
                continue
            objects = _objects(entry, items, image, attributes, names, report)
            if not objects:
                report["images_without_objects"] += 1
                continue
            records[image_id] = AnnotatedImage(image.file_name, image_id, image.height, image.width, objects)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return records


def _objects(
    entry: dict[str, Any],
    items: list[dict[str, Any]],
    image: _ImageEntry,
    attributes: dict[int, list[str]],
    names: NameTable,
    report: Counter[str],
) -> tuple[AnnotatedObject, ...]:
    """The objects of an image that are kept, merged where box and class are equal."""
    merged: dict[tuple[Box, int], set[int]] = {}
    for item in items:
        texts = item.get("names")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{_name(entry, item)}: names: expected a list of names")
        box = _clipped_box(item, image, _name(entry, item))
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
    return tuple(AnnotatedObject(box, category, tuple(sorted(ids))) for (box, category), ids in merged.items())


def _clipped_box(item: dict[str, Any], image: _ImageEntry, where: str) -> Box:
    values = [item.get(key) for key in ("x", "y", "w", "h")]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < MAX_EDGE for v in values):
        raise ValueError(f"{where}: x, y, w, h: expected four numbers, not {values}")
    x, y, w, h = map(float, values)  # type: ignore[arg-type]  # checked above
    width, height = float(image.width), float(image.height)
    x1, x2 = (min(max(edge, 0.0), width) for edge in (x, x + w))
    y1, y2 = (min(max(edge, 0.0), height) for edge in (y, y + h))
    return x1, y1, x2, y2


def _with_files(
    records: dict[int, AnnotatedImage], folder: Path, report: Counter[str]
) -> dict[int, AnnotatedImage]:
    """The records whose image file is in the folder and has the size that `image_data.json` says."""
    kept: dict[int, AnnotatedImage] = {}
    first = ""
    with Progress("check image files", len(records), "images") as bar:
        for image_id, record in records.items():
            size = _upright_size(folder / record.file_name)
            if size == (record.width, record.height):
                kept[image_id] = record
            else:
                first = first or record.file_name
                report["images_missing" if size is None else "images_of_other_size"] += 1
            bar.advance()
    if not kept:
        raise InputError(f"{folder}: holds none of the annotated images, for instance {first}")
    return kept


def _upright_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image after its EXIF rotation; None if it cannot be read. Pixels are not decoded."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, TypeError):
        return None
    return (height, width) if turned else (width, height)


def _count_lists(listed: dict[str, list[int]], records: dict[int, AnnotatedImage], report: Counter[str]) -> None:
    all_listed = {image_id for ids in listed.values() for image_id in ids}
    report["images_unlisted"] += len(records.keys() - all_listed)
    report["listed_without_annotation"] += len(all_listed - records.keys())
