"""The rows of VinVL's and Oscar's TSVs, which hold an image id and a JSON document.

| rows | written by |
| --- | --- |
| id, `{"num_boxes": K, "features": base64}` | Oscar |
| id, K, base64 | the features that Oscar's authors offer for download |
| id, `{"objects": [{"rect": [x1, y1, x2, y2], "conf": p, "feature": base64}]}` or its list | VinVL's detector |

Oscar's features of a region end in six numbers: its box x1 y1 x2 y2 in shares of the image's width and height, and
the box's width and height. The height and width of the images are `image_h` and `image_w` in the document, or are
looked up in a file beside the TSV, see `_sizes_beside`.

Shapes: K regions of one image, D feature dimension.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import InputError, one_line
from data_tools.formats.tsv_rows import (
    Measures,
    check_boxes,
    check_finite,
    decode_field,
    decoded_length,
    find_rows,
    numbers_per_region,
    read_image_id,
    split_row,
    whole_number,
)

BOX = 6  # numbers of a box at the end of Oscar's features
TOLERANCE = 0.02  # of its width and height, in shares of the image: some count the last pixel and some do not
_SIZE_KEYS = (("image_h", "image_w"), ("height", "width"))
_LARGEST = 2**31


@dataclass(frozen=True)
class _Row:
    """A row: K, the base64 of all features together or of each region, what else is known of each region, size."""

    image_id: str
    count: int
    texts: list[bytes]
    objects: list[dict[str, Any]]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class JsonLayout:
    """What the rows of a file hold; its first row with regions determines it, see `json_layout`.

    Attributes:
        ends_in_boxes: whether the features end in the numbers of boxes, which are not features.
        columns: those of the store besides the features.
        has_sizes: whether the size of each image is known.
        sizes: height and width by image id, for rows that do not give them.
        notes: what the user should know, one line each.
    """

    ends_in_boxes: bool = False
    columns: tuple[str, ...] = ()
    has_sizes: bool = False
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def measure(self, where: str, parts: list[bytes]) -> Measures:
        """See `RowLayout.measure`; a size that is missing is an error too."""
        row = _parse(where, parts)
        size = row.size or self.sizes.get(row.image_id)
        if self.has_sizes and size is None:
            raise InputError(f"{where}: image {row.image_id[:80]}: its height and width are not known")
        dim = _dim(where, row)
        if row.count and self.ends_in_boxes:
            dim -= BOX
            if dim < 1:
                raise InputError(f"{where}: features: {dim + BOX} numbers per region, of which {BOX} are the box")
        return Measures(row.image_id, size if self.has_sizes and size else (0, 0), row.count, dim)

    def decode(self, where: str, parts: list[bytes], row: Measures) -> dict[str, np.ndarray]:
        """See `RowLayout.decode`; a region that lacks a column of the layout is an error too."""
        parsed, tail = _parse(where, parts), BOX if self.ends_in_boxes and row.count else 0
        values = _values(where, parsed).reshape(row.count, row.dim + tail)
        check_finite(where, row, "features", values)
        regions = {"features": values[:, : row.dim]}
        if tail:
            if not _are_boxes(values[:, -BOX:]):
                raise InputError(
                    f"{where}: image {row.image_id[:80]}: features: the last {BOX} numbers are no box"
                )
            regions["boxes"] = values[:, -BOX : -BOX + 4] * np.tile(row.size[::-1], 2)
        elif "boxes" in self.columns:
            regions["boxes"] = _of_objects(where, parsed, "rect", 4)
        if "class_scores" in self.columns:
            regions["class_scores"] = _of_objects(where, parsed, "conf", 1).reshape(-1)
        regions = {name: regions[name].astype(np.float32) for name in ("features", *self.columns)}
        for name in self.columns:
            check_finite(where, row, name, regions[name])
        if "boxes" in self.columns and self.has_sizes:
            check_boxes(where, row, regions["boxes"])
        return regions

    def feature_values(self, where: str, parts: list[bytes]) -> np.ndarray:
        """See `RowLayout.feature_values`."""
        return _values(where, _parse(where, parts))


def is_json_row(parts: list[bytes]) -> bool:
    """Whether the fields of a row are those of one of the kinds above, by their looks."""
    return (len(parts) == 2 and parts[1][:1] in (b"{", b"[")) or (len(parts) == 3 and parts[1].isdigit())


def json_layout(path: Path, rows: Iterable[list[bytes]]) -> JsonLayout:
    """The layout of a file by the first of its rows, given as fields, that can be read and has regions.

    Raises:
        InputError: a file of image sizes beside it is malformed.
    """
    for parts in rows:
        try:
            row = _parse("", parts)
            values = _values("", row).reshape(row.count, -1) if row.count else None
        except InputError:
            continue
        if values is not None:
            return _layout_of(path, row, values)
    return JsonLayout()


def _layout_of(path: Path, row: _Row, values: np.ndarray) -> JsonLayout:
    ends_in_boxes = (
        not row.objects and values.shape[1] > BOX and values[:, -BOX:].any() and _are_boxes(values[:, -BOX:])
    )
    sizes = {} if row.size else _sizes_beside(path)
    has_sizes = row.size is not None or row.image_id in sizes
    columns = [
        *(["boxes"] if (ends_in_boxes and has_sizes) or (row.objects and "rect" in row.objects[0]) else []),
        *(["class_scores"] if row.objects and "conf" in row.objects[0] else []),
    ]
    notes = []
    if ends_in_boxes and not has_sizes:
        notes.append(
            f"{path}: boxes are left out, for they are shares of image sizes that are not known; fix: put "
            f"{_size_files(path)[0].name} beside it, with a line of image id, height and width for each image"
        )
    if row.objects and not {"class", "attributes"}.isdisjoint(row.objects[0]):
        notes.append(f"{path}: classes and attributes are left out, for they are names without ids")
    return JsonLayout(bool(ends_in_boxes), tuple(columns), has_sizes, sizes, tuple(notes))


def _are_boxes(shares: np.ndarray) -> bool:
    """Whether (K, 6) numbers are x1 y1 x2 y2 and the differences x2 - x1 and y2 - y1."""
    with np.errstate(all="ignore"):
        return bool((np.abs(shares[:, 2:4] - shares[:, :2] - shares[:, 4:]) <= TOLERANCE).all())


def _parse(where: str, parts: list[bytes]) -> _Row:
    """The content of a row; `InputError` if it is of none of the kinds."""
    if len(parts) not in (2, 3):
        raise InputError(
            f"{where}: {len(parts)} field(s), expected an image id and JSON, or an image id, a number of regions "
            "and base64; the row may be truncated"
        )
    image_id = read_image_id(where, "image id", parts[0])
    if len(parts) == 3:
        return _Row(image_id, whole_number(where, "number of regions", parts[1], 0), [parts[2]], [], None)
    document = _json(where, parts[1])
    objects = document.get("objects") if isinstance(document, dict) else document
    if isinstance(document, dict) and objects is None:
        count, text = document.get("num_boxes"), document.get("features")
        if not isinstance(text, str):
            raise InputError(f"{where}: expected the key objects, or num_boxes and features")
        return _Row(image_id, _number(where, "num_boxes", count), [_ascii(text)], [], _size(where, document))
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise InputError(f"{where}: objects: expected a list of JSON objects")
    texts = [entry.get("feature") for entry in objects]
    for region, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{where}: objects: region {region} has no feature in base64")
    size = _size(where, document) if isinstance(document, dict) else None
    return _Row(image_id, len(objects), [_ascii(str(text)) for text in texts], objects, size)


def _json(where: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {one_line(error)}; the row may be truncated") from None


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "replace")  # by "?", which is not base64


def _number(where: str, name: str, value: object, minimum: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < _LARGEST:
        least = f" of at least {minimum}" if minimum else ""
        raise InputError(f"{where}: {name}: expected a whole number{least}, found {repr(value)[:20]}")
    return value


def _size(where: str, document: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in a document, None if it has neither; `InputError` if they are no sizes."""
    for height, width in _SIZE_KEYS:
        if height in document or width in document:
            return (
                _number(where, height, document.get(height), 1),
                _number(where, width, document.get(width), 1),
            )
    return None


def _dim(where: str, row: _Row) -> int:
    """The numbers per region of a row, with those of boxes; 0 without regions."""
    lengths = [decoded_length(where, "features", text) for text in row.texts]
    if len(set(lengths)) > 1:
        raise InputError(f"{where}: objects: features of {min(lengths)} and of {max(lengths)} bytes")
    return numbers_per_region(where, "features", sum(lengths), row.count)


def _values(where: str, row: _Row) -> np.ndarray:
    """The (K D,) numbers of a row's features."""
    _dim(where, row)
    found = [decode_field(where, "features", text, "<f4") for text in row.texts]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def _of_objects(where: str, row: _Row, name: str, width: int) -> np.ndarray:
    """(K, width) float64 of an entry of each region; `InputError` if it is missing or holds other than numbers."""
    if len(row.objects) != row.count:
        raise InputError(f"{where}: expected the key objects, as in the rows before")
    found = np.empty((row.count, width))
    for region, entry in enumerate(row.objects):
        value = entry.get(name)
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) != width or not all(type(number) in (int, float) for number in numbers):
            wanted = f"{width} numbers" if width > 1 else "a number"
            raise InputError(f"{where}: objects: {name} of region {region}: expected {wanted}")
        try:
            found[region] = numbers
        except OverflowError:
            found[region] = np.inf
    return found


def _size_files(path: Path) -> list[Path]:
    """Where image sizes may be: `a.hw.tsv` beside `a.feature.tsv`, or the detector's own predictions."""
    names = (f"{path.name.split('.')[0]}.hw.tsv", f"{path.stem}.hw.tsv", "predictions.tsv")
    return [path.with_name(name) for name in dict.fromkeys(names) if name != path.name]


def _sizes_beside(path: Path) -> dict[str, tuple[int, int]]:
    """Height and width by image id from the first of `_size_files` that exists; empty if there is none.

    A line is an image id and JSON, an object with height and width or `image_h` and `image_w`, or a list of one;
    or an image id and two numbers.
    """
    for file in _size_files(path):
        if file.is_file():
            found = {}
            for place, line in find_rows(file, 0, 1):
                where, parts = f"{file}, line {place.line}", split_row(line)
                size = _size_in(where, parts)
                if size is not None:
                    found[read_image_id(where, "image id", parts[0])] = size
            return found
    return {}


def _size_in(where: str, parts: list[bytes]) -> tuple[int, int] | None:
    if len(parts) != 2:
        raise InputError(f"{where}: {len(parts)} field(s), expected an image id, and its height and width")
    if parts[1][:1] not in (b"{", b"["):
        height, _, width = parts[1].partition(b" ")
        return whole_number(where, "height", height, 1), whole_number(where, "width", width, 1)
    document = _json(where, parts[1])
    document = document[0] if isinstance(document, list) and document else document
    return _size(where, document) if isinstance(document, dict) else None
