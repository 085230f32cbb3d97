"""Region features in tab-separated text: the TSV files of bottom-up attention and of LXMERT.

One row per image; arrays are little-endian numbers in base64. Files reach 100 GB: a first pass records the
position of each row and checks its lengths, and a row is decoded when it is asked for.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.console import Progress
from data_tools.errors import InputError, UsageError, one_line
from data_tools.formats.source import RegionSource
from data_tools.store.schema import Block

MAX_ROW_BYTES = 64 << 20  # forty times a row of 100 regions; bounds the memory for a file without line ends


@dataclass(frozen=True)
class TsvLayout:
    """The fields of a row.

    Attributes:
        name: butd or lxmert.
        fields: names of all fields in order.
        arrays: for each base64 field its type, numbers per region, and column of the store. The numbers per region
            are 0 for the features, whose dimension is that of the file.
    """

    name: str
    fields: tuple[str, ...]
    arrays: dict[str, tuple[str, int, str]]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the store that a row has besides the features."""
        return tuple(column for _, width, column in self.arrays.values() if width)


BUTD = TsvLayout(
    "butd",
    ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    {"boxes": ("<f4", 4, "boxes"), "features": ("<f4", 0, "features")},
)
LXMERT = TsvLayout(
    "lxmert",
    (
        *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ),
    {
        "objects_id": ("<i8", 1, "class_ids"),
        "objects_conf": ("<f4", 1, "class_scores"),
        "attrs_id": ("<i8", 1, "attribute_ids"),
        "attrs_conf": ("<f4", 1, "attribute_scores"),
        "boxes": ("<f4", 4, "boxes"),
        "features": ("<f4", 0, "features"),
    },
)
_LAYOUTS = {len(layout.fields): layout for layout in (BUTD, LXMERT)}


@dataclass(frozen=True)
class _Place:
    """Position of a row: bytes from the start of the file, bytes, and line number."""

    offset: int
    length: int
    line: int


class TsvSource(RegionSource):
    """The rows of a TSV in either layout; a header row and Windows line ends are accepted.

    A row that is repeated byte for byte counts once; the published files have such rows.

    Raises:
        InputError: the file is empty, a row is malformed or truncated, or two rows of one image differ; the
            message gives the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout, first = _layout_of(path)
        self._places: list[_Place] = []
        ids: list[str] = []
        counts: list[int] = []
        seen: dict[str, tuple[int, bytes]] = {}
        dim, repeated = 0, 0
        for place, row in _indexed(path, first):
            image_id, count, width = _measure(path, place.line, row, self.layout)
            digest = hashlib.blake2b(row, digest_size=16).digest()
            if image_id in seen:
                if seen[image_id][1] != digest:
                    raise InputError(
                        f"{path}, line {place.line}: image {image_id} is on line {seen[image_id][0]} too, "
                        "with different content"
                    )
                repeated += 1
                continue
            seen[image_id] = place.line, digest
            if count and dim not in (0, width):
                raise InputError(
                    f"{path}, line {place.line}: {width} numbers per region; the rows before have {dim}"
                )
            dim = dim or width
            ids.append(image_id)
            counts.append(count)
            self._places.append(place)
        if not dim:
            raise InputError(f"{path}: holds no region")
        super().__init__(
            path,
            ids,
            np.array(counts, dtype=np.int64),
            dim,
            np.dtype("float32"),
            region_columns=self.layout.columns,
            has_image_sizes=True,
            notes=[f"{path}: {repeated} repeated rows were skipped"] if repeated else [],
        )
        self._file = path.open("rb")

    def image(self, row: int) -> Block:
        """One image; see `RegionSource.image`."""
        place, count = self._places[row], int(self.counts[row])
        self._file.seek(place.offset)
        fields = _split(self._file.read(place.length), self.layout)
        regions = {
            column: _decode(self.path, place.line, name, fields[name], dtype)
            for name, (dtype, _, column) in self.layout.arrays.items()
        }
        regions["features"] = regions["features"].reshape(count, self.dim)
        regions["boxes"] = regions["boxes"].reshape(count, 4)
        for name in ("class_ids", "attribute_ids"):
            if name in regions:
                regions[name] = _as_int32(self.path, place.line, name, regions[name])
        height, width = (int(fields[name]) for name in _size_fields(self.layout))
        size = np.array([[height, width]], dtype=np.int32)
        return Block([self.image_ids[row]], np.array([count]), regions, size)


def write_tsv(path: Path, source: RegionSource, layout: TsvLayout, advance: Callable[[], None]) -> None:
    """Write the images of `source` as rows of `layout`.

    Args:
        path: written in place; the caller renames it.
        source: the images; they need the columns of the layout and image sizes.
        layout: `BUTD` or `LXMERT`.
        advance: called after each image.

    Raises:
        UsageError: the source lacks a column or image sizes.
        InputError: an id holds a tab or a line break.
    """
    missing = [name for name in layout.columns if name not in source.region_columns]
    missing += [] if source.has_image_sizes else ["image_sizes"]
    if missing:
        raise UsageError(f"{source.path}: lacks {', '.join(missing)}, which a {layout.name} TSV needs")
    with path.open("wb") as file:
        for row in range(len(source.image_ids)):
            file.write(_row(source.image(row), layout, source.path))
            advance()


def _row(block: Block, layout: TsvLayout, path: Path) -> bytes:
    image_id = block.image_ids[0]
    if any(character in image_id for character in "\t\r\n"):
        raise InputError(f"{path}: image {image_id!r}: a TSV cannot hold an id with a tab or a line break")
    assert block.image_sizes is not None
    height, width = _size_fields(layout)
    values = {
        layout.fields[0]: image_id.encode(),
        height: str(block.image_sizes[0, 0]).encode(),
        width: str(block.image_sizes[0, 1]).encode(),
        "num_boxes": str(block.counts[0]).encode(),
    }
    for name, (dtype, _, column) in layout.arrays.items():
        values[name] = base64.b64encode(np.ascontiguousarray(block.regions[column], dtype=dtype).tobytes())
    return b"\t".join(values[name] for name in layout.fields) + b"\n"


def _size_fields(layout: TsvLayout) -> tuple[str, str]:
    """The names of height and width."""
    return ("image_h", "image_w") if layout is BUTD else ("img_h", "img_w")


def _layout_of(path: Path) -> tuple[TsvLayout, int]:
    """The layout of the first row, and the position of the first row of data in bytes."""
    try:
        with path.open("rb") as file:
            line = file.readline(MAX_ROW_BYTES)
            after = file.tell()
    except OSError as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    start = 3 if line.startswith(b"\xef\xbb\xbf") else 0
    fields = line[start:].rstrip(b"\r\n").split(b"\t")
    layout = _LAYOUTS.get(len(fields))
    if not line.strip() or layout is None:
        found = "an empty line" if not line.strip() else f"{len(fields)} field(s)"
        raise InputError(
            f"{path}, line 1: expected the {len(BUTD.fields)} fields of a bottom-up-attention TSV or the "
            f"{len(LXMERT.fields)} of LXMERT's, found {found}"
        )
    header = tuple(field.decode("utf-8", "replace") for field in fields) == layout.fields
    return layout, after if header else start


def _rows(path: Path, first: int) -> Iterator[tuple[_Place, bytes]]:
    with path.open("rb") as file:
        file.seek(first)
        offset, line = first, 1 if first in (0, 3) else 2
        while content := file.readline(MAX_ROW_BYTES):
            if len(content) == MAX_ROW_BYTES:
                raise InputError(
                    f"{path}, line {line}: longer than {MAX_ROW_BYTES >> 20} MiB; line ends are missing"
                )
            row = content.rstrip(b"\r\n")
            if row:
                yield _Place(offset, len(row), line), row
            offset += len(content)
            line += 1


def _indexed(path: Path, first: int) -> Iterator[tuple[_Place, bytes]]:
    """The rows, with a progress bar in MiB."""
    with Progress("index", path.stat().st_size >> 20, "MiB") as bar:
        done = 0
        for place, row in _rows(path, first):
            yield place, row
            now = (place.offset + place.length) >> 20
            bar.advance(now - done)
            done = now


def _split(row: bytes, layout: TsvLayout) -> dict[str, bytes]:
    return dict(zip(layout.fields, row.split(b"\t"), strict=True))


def _measure(path: Path, line: int, row: bytes, layout: TsvLayout) -> tuple[str, int, int]:
    """Image id, number of regions and feature dimension of a row; `InputError` if its lengths disagree."""
    where = f"{path}, line {line}"
    parts = row.split(b"\t")
    if len(parts) != len(layout.fields):
        raise InputError(
            f"{where}: {len(parts)} fields, expected {len(layout.fields)} ({' '.join(layout.fields)}); "
            "the row may be truncated"
        )
    fields = dict(zip(layout.fields, parts, strict=True))
    try:
        image_id = fields[layout.fields[0]].decode()
    except UnicodeDecodeError:
        raise InputError(f"{where}: {layout.fields[0]} is not UTF-8 text") from None
    if not image_id:
        raise InputError(f"{where}: {layout.fields[0]} is empty")
    numbers = {}
    for name in (*_size_fields(layout), "num_boxes"):
        if not fields[name].isdigit() or int(fields[name]) >= 2**31:
            raise InputError(f"{where}: {name}: expected a whole number, found {_excerpt(fields[name])}")
        numbers[name] = int(fields[name])
    count, dim = numbers["num_boxes"], 0
    for name, (dtype, width, _) in layout.arrays.items():
        length, item = _decoded_length(where, name, fields[name]), np.dtype(dtype).itemsize
        if width and length != count * width * item:
            raise InputError(
                f"{where}: {name}: {length} bytes, expected {count * width * item} for {count} regions"
            )
        if not width:
            if length % (max(count, 1) * item) or bool(length) != bool(count):
                raise InputError(f"{where}: {name}: {length} bytes cannot be divided into {count} regions")
            dim = length // (max(count, 1) * item)
    return image_id, count, dim


def _decoded_length(where: str, name: str, text: bytes) -> int:
    if len(text) % 4:
        raise InputError(f"{where}: {name}: {len(text)} characters are not base64; the row may be truncated")
    padding = len(text[-2:]) - len(text[-2:].rstrip(b"="))
    return len(text) // 4 * 3 - padding


def _decode(path: Path, line: int, name: str, text: bytes, dtype: str) -> np.ndarray:
    try:
        values = np.frombuffer(binascii.a2b_base64(text, strict_mode=True), dtype)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{path}, line {line}: {name}: not base64: {one_line(error)}") from None
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _as_int32(path: Path, line: int, name: str, values: np.ndarray) -> np.ndarray:
    if len(values) and not (values.min() >= -(2**31) and values.max() < 2**31):
        raise InputError(f"{path}, line {line}: {name}: {values.max()} is outside the range of int32")
    return values.astype(np.int32)


def _excerpt(text: bytes) -> str:
    return repr(text[:20].decode("utf-8", "replace"))


def tsv_layout(name: str) -> TsvLayout:
    """The layout with this name, butd or lxmert."""
    return {layout.name: layout for layout in (BUTD, LXMERT)}[name]
