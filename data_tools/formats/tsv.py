"""Region features in tab-separated text: the TSV files of bottom-up attention, LXMERT, Oscar and VinVL.

One row per image; arrays are little-endian numbers in base64. Files reach 100 GB: a first pass records the
position of each row and checks its lengths, and a row is decoded when it is asked for.
"""

import base64
import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from data_tools.console import Progress
from data_tools.errors import InputError, UsageError, one_line
from data_tools.formats.source import RegionSource
from data_tools.formats.tsv_rows import (
    BUTD,
    LAYOUTS,
    LXMERT,
    Measures,
    Place,
    RowLayout,
    TsvLayout,
    check_tsv_id,
    find_rows,
    float_type,
    split_row,
)
from data_tools.formats.vinvl_rows import is_json_row, json_layout
from data_tools.layout import is_image_id
from data_tools.store.schema import Block

FIRST_ROWS = 16  # which determine the layout
SKIP = "fix: repair the row, or --on-error skip leaves such rows out and lists them"


class TsvSource(RegionSource):
    """The rows of a TSV in any layout; a header row and Windows line ends are accepted.

    A row that is repeated byte for byte counts once; the published files have such rows.

    Args:
        path: the file.
        skip_damaged: whether rows that are malformed, truncated or repeated with other content are left out. Each
            is then in `notes`, and in `failures` if the image has no other row. Every row is decoded twice.

    Raises:
        InputError: the file is empty or holds no row that can be read; or, without `skip_damaged`, a row is
            malformed or truncated, or two rows of one image differ; the message gives the line.
    """

    def __init__(self, path: Path, skip_damaged: bool = False) -> None:
        self.path = path
        self.layout, first = _layout_of(path)
        self._index = index = _Index(path, self.layout, thorough=skip_damaged)
        for place, row in _with_progress(path, first):
            try:
                index.add(place, row)
            except InputError as error:
                if not skip_damaged:
                    raise InputError(f"{error}; {SKIP}") from None
                index.damaged.append((_legible_id(row), str(error)))
        if not index.dim:
            raise InputError(index.damaged[0][1] if index.damaged else f"{path}: holds no region")
        super().__init__(
            path,
            [row.image_id for row in index.rows],
            np.array([row.count for row in index.rows], dtype=np.int64),
            index.dim,
            np.dtype("float32"),
            region_columns=self.layout.columns,
            has_image_sizes=self.layout.has_sizes,
            failures=index.failures(),
            notes=index.notes(),
        )
        self._file = path.open("rb")

    @property
    def lost(self) -> int:
        """The number of damaged rows whose image has no other row."""
        return len(self._index.lost())

    def image(self, row: int) -> Block:
        """One image; see `RegionSource.image`."""
        place, expected = self._index.places[row], self._index.rows[row]
        self._file.seek(place.offset)
        parts = split_row(self._file.read(place.length))
        where = f"{self.path}, line {place.line}"
        try:
            if self.layout.measure(where, parts) != expected:
                raise InputError(f"{where}: the file was changed while it was read")
            regions = self.layout.decode(where, parts, expected)
        except InputError as error:
            raise InputError(f"{error}; {SKIP}") from None
        regions["features"] = regions["features"].reshape(expected.count, self.dim)
        size = np.array([expected.size], dtype=np.int32) if self.has_image_sizes else None
        return Block([self.image_ids[row]], np.array([expected.count]), regions, size)


@dataclass
class _Index:
    """The rows that were found in a file.

    Attributes:
        path, layout: the file.
        thorough: whether rows are decoded too, not only measured.
        places, rows: of each image.
        damaged: id, or "" where it cannot be read, and problem of each row that was left out.
        dim: numbers per region, 0 before the first region.
        repeated: number of rows that equal an earlier one.
    """

    path: Path
    layout: RowLayout
    thorough: bool
    places: list[Place] = field(default_factory=list)
    rows: list[Measures] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    dim: int = 0
    repeated: int = 0
    _seen: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    _type_is_known: bool = False

    def add(self, place: Place, row: bytes) -> None:
        """Add a row; `InputError` if it cannot be read or does not fit the rows before it."""
        where, parts = f"{self.path}, line {place.line}", split_row(row)
        found = self.layout.measure(where, parts)
        digest = hashlib.blake2b(row, digest_size=16).digest()
        line, earlier = self._seen.get(found.image_id, (0, b""))
        if earlier and earlier != digest:
            raise InputError(f"{where}: image {found.image_id[:80]} is on line {line} too, with different content")
        if earlier:
            self.repeated += 1
            return
        if found.count and not self._type_is_known:
            self._check_type(where, parts)
        if found.count and self.dim not in (0, found.dim):
            raise InputError(f"{where}: {found.dim} numbers per region; the rows before have {self.dim}")
        if self.thorough:
            self.layout.decode(where, parts, found)
        self._seen[found.image_id] = place.line, digest
        self.dim = self.dim or found.dim
        self.places.append(place)
        self.rows.append(found)

    def _check_type(self, where: str, parts: list[bytes]) -> None:
        """Whether the features are float32, by the first row with features that are not zero."""
        values = self.layout.feature_values(where, parts)
        found = float_type(values)
        if found != "float32":
            raise InputError(f"{where}: features: the numbers are {found}, expected float32")
        self._type_is_known = bool(values.any())

    def lost(self) -> list[tuple[str, str]]:
        """Those of `damaged` whose image has no other row."""
        return [(image_id, problem) for image_id, problem in self.damaged if image_id not in self._seen]

    def failures(self) -> tuple[dict[str, str], ...]:
        """The images that were lost, once each."""
        reasons: dict[str, str] = {}
        for image_id, problem in self.lost():
            reasons.setdefault(image_id, problem)
        return tuple(
            {"id": image_id, "file": self.path.name, "reason": problem}
            for image_id, problem in reasons.items()
            if image_id
        )

    def notes(self) -> list[str]:
        """One line about repeated rows, and one for each row that was left out."""
        repeated = [f"{self.path}: {self.repeated} repeated rows were skipped"] if self.repeated else []
        return [*self.layout.notes, *repeated, *(f"left out: {problem}" for _, problem in self.damaged)]


def _legible_id(row: bytes) -> str:
    """The image id of a damaged row, "" if there is none."""
    image_id = split_row(row)[0].decode("utf-8", "replace")
    return image_id if b"\t" in row and is_image_id(image_id) and "\ufffd" not in image_id else ""


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
    check_tsv_id(path, image_id)
    assert block.image_sizes is not None
    height, width = layout.sizes
    values = {
        layout.fields[0]: image_id.encode(),
        height: str(block.image_sizes[0, 0]).encode(),
        width: str(block.image_sizes[0, 1]).encode(),
        "num_boxes": str(block.counts[0]).encode(),
    }
    for name, (dtype, _, column) in layout.arrays.items():
        values[name] = base64.b64encode(np.ascontiguousarray(block.regions[column], dtype=dtype).tobytes())
    return b"\t".join(values[name] for name in layout.fields) + b"\n"


def _layout_of(path: Path) -> tuple[RowLayout, tuple[int, int]]:
    """The layout of a file, and where its data begin: bytes from the start, and line.

    It is that of the first row, or of one of the first rows if that row is damaged.
    """
    try:
        with path.open("rb") as file:
            mark = file.read(3)
    except OSError as error:
        raise InputError(f"{path}: {one_line(error)}") from None
    if mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: UTF-16 text; fix: save it as UTF-8")
    start = 3 if mark == codecs.BOM_UTF8 else 0
    rows = list(islice(find_rows(path, start, line=1), FIRST_ROWS))
    fields = [split_row(row) for _, row in rows]
    for parts in fields:
        layout = LAYOUTS.get(len(parts))
        if layout is not None and _has_numbers(parts, layout):
            break
    else:
        if any(map(is_json_row, fields)):
            return json_layout(path, (split_row(row) for _, row in find_rows(path, start, line=1))), (start, 1)
        layout = LAYOUTS.get(len(fields[0])) if fields else None
    if layout is None:
        found = f"{len(fields[0])} field(s)" if fields else "an empty line"
        raise InputError(
            f"{path}, line 1: expected the {len(BUTD.fields)} fields of a bottom-up-attention TSV, the "
            f"{len(LXMERT.fields)} of LXMERT's, or an image id and JSON, as VinVL's, found {found}"
        )
    if tuple(part.decode("utf-8", "replace") for part in fields[0]) != layout.fields:
        return layout, (start, 1)
    after = rows[1][0] if len(rows) > 1 else Place(path.stat().st_size, 0, rows[0][0].line + 1)
    return layout, (after.offset, after.line)


def _has_numbers(parts: list[bytes], layout: TsvLayout) -> bool:
    """Whether the fields for image size and number of boxes hold numbers."""
    return all(parts[layout.fields.index(name)].isdigit() for name in (*layout.sizes, "num_boxes"))


def _with_progress(path: Path, first: tuple[int, int]) -> Iterator[tuple[Place, bytes]]:
    """The rows from a byte and line on, with a progress bar in MiB."""
    with Progress("index", path.stat().st_size >> 20, "MiB") as bar:
        done = 0
        for place, row in find_rows(path, *first):
            yield place, row
            now = (place.offset + place.length) >> 20
            bar.advance(now - done)
            done = now


def tsv_layout(name: str) -> TsvLayout:
    """The layout with this name, butd or lxmert."""
    return {layout.name: layout for layout in (BUTD, LXMERT)}[name]
