"""The rows of a TSV with region features: finding them in the file, dividing them into fields, and decoding these.

A field may be quoted, with its base64 wrapped into lines (Python's csv module and `base64.encodebytes` write
that), or be printed as Python 3 prints bytes, `b'...'`: base64 holds no quotes, so both can only mean one thing.

Shapes: K regions of one image, D feature dimension.
"""

import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from data_tools.errors import InputError, one_line
from data_tools.layout import is_image_id

MAX_ROW_BYTES = 64 << 20  # forty times a row of 100 regions; bounds the memory for a file without line ends
FAR = 100  # a coordinate beyond so many times the larger side of the image cannot be one of its boxes


class RowLayout(Protocol):
    """What the fields of a file's rows mean."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the store that a row has besides the features."""

    @property
    def has_sizes(self) -> bool:
        """Whether each row has the height and width of its image."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about rows of this layout, one line each."""

    def measure(self, where: str, parts: list[bytes]) -> "Measures":
        """What a row says of itself.

        Args:
            where: file and line, for messages.
            parts: the fields, see `split_row`.

        Raises:
            InputError: a number is none, or the lengths of the fields disagree.
        """

    def decode(self, where: str, parts: list[bytes], row: "Measures") -> dict[str, np.ndarray]:
        """The arrays of a row by column of the store: features (K, D), boxes (K, 4), others (K,).

        Args:
            where: file and line, for messages.
            parts: the fields, see `split_row`.
            row: what `measure` found.

        Raises:
            InputError: a field is not base64, a number is NaN or infinite, or a box is far outside the image.
        """

    def feature_values(self, where: str, parts: list[bytes]) -> np.ndarray:
        """The numbers of a row's features, read as float32; `InputError` if they are not base64."""


@dataclass(frozen=True)
class TsvLayout:
    """The fields of a row that has one field for each number or array.

    Attributes:
        name: butd or lxmert.
        fields: names of all fields in order.
        arrays: for each base64 field its type, numbers per region, and column of the store. The numbers per region
            are 0 for the features, whose dimension is that of the file.
    """

    name: str
    fields: tuple[str, ...]
    arrays: dict[str, tuple[str, int, str]]
    has_sizes: bool = True
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the store that a row has besides the features."""
        return tuple(column for _, width, column in self.arrays.values() if width)

    @property
    def sizes(self) -> tuple[str, str]:
        """The names of height and width."""
        return ("image_h", "image_w") if "image_h" in self.fields else ("img_h", "img_w")

    def measure(self, where: str, parts: list[bytes]) -> "Measures":
        """See `RowLayout.measure`."""
        if len(parts) != len(self.fields):
            raise InputError(
                f"{where}: {len(parts)} fields, expected {len(self.fields)} ({' '.join(self.fields)}); "
                "the row may be truncated"
            )
        fields = dict(zip(self.fields, parts, strict=True))
        image_id = read_image_id(where, self.fields[0], parts[0])
        height, width = (whole_number(where, name, fields[name], 1) for name in self.sizes)
        count, dim = whole_number(where, "num_boxes", fields["num_boxes"], 0), 0
        for name, (dtype, numbers, _) in self.arrays.items():
            length, item = decoded_length(where, name, fields[name]), np.dtype(dtype).itemsize
            if numbers and length != count * numbers * item:
                raise InputError(
                    f"{where}: {name}: {length} bytes, expected {count * numbers * item} for {count} regions"
                    + _other_type(length, count * numbers, dtype)
                )
            if not numbers:
                dim = numbers_per_region(where, name, length, count)
        return Measures(image_id, (height, width), count, dim)

    def decode(self, where: str, parts: list[bytes], row: "Measures") -> dict[str, np.ndarray]:
        """See `RowLayout.decode`; an id outside int32 is an error too."""
        fields = dict(zip(self.fields, parts, strict=True))
        regions = {}
        for name, (dtype, _, column) in self.arrays.items():
            values = decode_field(where, name, fields[name], dtype)
            check_finite(where, row, name, values)
            regions[column] = _as_int32(where, column, values) if values.dtype.kind == "i" else values
        regions["features"] = regions["features"].reshape(row.count, row.dim)
        regions["boxes"] = regions["boxes"].reshape(row.count, 4)
        check_boxes(where, row, regions["boxes"])
        return regions

    def feature_values(self, where: str, parts: list[bytes]) -> np.ndarray:
        """See `RowLayout.feature_values`."""
        return decode_field(where, "features", parts[self.fields.index("features")], "<f4")


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
LAYOUTS = {len(layout.fields): layout for layout in (BUTD, LXMERT)}


@dataclass(frozen=True)
class Place:
    """Position of a row: bytes from the start of the file, bytes, and number of its first line."""

    offset: int
    length: int
    line: int


@dataclass(frozen=True)
class Measures:
    """What a row says of itself: image id, height and width in pixels, K, and D (0 without regions)."""

    image_id: str
    size: tuple[int, int]
    count: int
    dim: int


def find_rows(path: Path, offset: int, line: int) -> Iterator[tuple[Place, bytes]]:
    """The rows from a position of the file on, without their line ends; empty lines are no rows.

    A row goes on in the next line as long as a quoted field is open. A line with a tab before the quote that would
    close the field begins the next row: the row before it was cut.

    Raises:
        InputError: a row is longer than `MAX_ROW_BYTES`, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.readline(MAX_ROW_BYTES)
            while content:
                lines, following = _gather(file, content)
                length = sum(map(len, lines))
                if length >= MAX_ROW_BYTES:
                    raise InputError(
                        f"{path}, line {line}: longer than {MAX_ROW_BYTES >> 20} MiB; line ends are missing"
                    )
                row = (lines[0] if len(lines) == 1 else b"".join(lines)).rstrip(b"\r\n")
                if row:
                    yield Place(offset, len(row), line), row
                offset, line = offset + length, line + len(lines)
                content = file.readline(MAX_ROW_BYTES) if following is None else following
    except OSError as error:
        raise InputError(f"{path}: {one_line(error)}") from None


def _gather(file: BinaryIO, content: bytes) -> tuple[list[bytes], bytes | None]:
    """The lines of the row that `content` begins, and the line after them if it was read already."""
    lines, length = [content], len(content)
    is_open = b'"' in content and b'\t"' in content and content.count(b'"') % 2 == 1
    while is_open and length < MAX_ROW_BYTES and (following := file.readline(MAX_ROW_BYTES)):
        tab, quote = following.find(b"\t"), following.find(b'"')
        if tab >= 0 and (quote < 0 or tab < quote):
            return lines, following
        lines.append(following)
        length += len(following)
        is_open = following.count(b'"') % 2 == 0
    return lines, None


def split_row(row: bytes) -> list[bytes]:
    """The fields of a row without quotes, `b'...'` and the line ends of wrapped base64."""
    parts = row.split(b"\t")
    if any(part[:1] == b'"' for part in parts[1:]):  # else a quote is part of the id, as `write_tsv` writes it
        parts = [_unquoted(part) for part in parts]
    return [
        part[2:-1].replace(b"\\n", b"") if part[:2] == b"b'" and part[-1:] == b"'" and len(part) > 2 else part
        for part in parts
    ]


def _unquoted(part: bytes) -> bytes:
    if len(part) < 2 or part[:1] != b'"' or part[-1:] != b'"':
        return part
    return part[1:-1].replace(b'""', b'"').translate(None, b"\r\n")


def read_image_id(where: str, name: str, text: bytes) -> str:
    """The image id in a field; `InputError` if it cannot be one."""
    try:
        image_id = text.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where}: {name} is not UTF-8 text") from None
    if not image_id:
        raise InputError(f"{where}: {name} is empty")
    if not is_image_id(image_id):
        raise InputError(
            f"{where}: {name}: expected printable characters without space around them, found {image_id[:40]!r}"
        )
    return image_id


def check_tsv_id(path: Path, image_id: str) -> None:
    """Raise `InputError` if a TSV cannot hold this id of an image of `path`."""
    if any(character in image_id for character in "\t\r\n"):
        raise InputError(f"{path}: image {image_id!r}: a TSV cannot hold an id with a tab or a line break")


def whole_number(where: str, name: str, text: bytes, minimum: int) -> int:
    """The number in a field; `InputError` unless it is whole, at least `minimum` and below 2 ** 31."""
    if not text.isdigit() or len(text) > 10 or not minimum <= int(text) < 2**31:
        found = repr(text[:20].decode("utf-8", "replace"))
        least = f" of at least {minimum}" if minimum else ""
        raise InputError(f"{where}: {name}: expected a whole number{least}, found {found}")
    return int(text)


def decoded_length(where: str, name: str, text: bytes) -> int:
    """The bytes that a base64 field holds, by its length; `InputError` if that is not a multiple of four."""
    if len(text) % 4:
        raise InputError(f"{where}: {name}: {len(text)} characters are not base64; the row may be truncated")
    padding = len(text[-2:]) - len(text[-2:].rstrip(b"="))
    return len(text) // 4 * 3 - padding


def numbers_per_region(where: str, name: str, length: int, count: int) -> int:
    """D of `length` bytes of float32 for `count` regions; `InputError` if they cannot be divided so."""
    if length % (max(count, 1) * 4) or bool(length) != bool(count):
        raise InputError(f"{where}: {name}: {length} bytes cannot be divided into {count} regions")
    return length // (max(count, 1) * 4)


def check_finite(where: str, row: Measures, name: str, values: np.ndarray) -> None:
    """Raise `InputError` if one of the numbers of a row's regions is NaN or infinite; they come by region."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        region = int(np.argmin(np.isfinite(values.reshape(-1)))) // (values.size // row.count)
        raise InputError(f"{where}: image {row.image_id[:80]}: {name}: NaN or Inf in region {region}")


def check_boxes(where: str, row: Measures, boxes: np.ndarray) -> None:
    """Raise `InputError` if one of (K, 4) boxes is far outside the image."""
    furthest = np.abs(boxes).max(initial=0)
    if furthest > FAR * max(row.size):
        raise InputError(
            f"{where}: image {row.image_id[:80]}: boxes: {furthest:g} is far outside an image of "
            f"{row.size[1]} x {row.size[0]} pixels"
        )


def _other_type(length: int, numbers: int, dtype: str) -> str:
    """The end of a message that names the type which the length fits; empty if there is none."""
    kind = "float" if "f" in dtype else "int"
    fitting = [f"{kind}{8 * size}" for size in (2, 4, 8) if numbers and length == numbers * size]
    expected = np.dtype(dtype).name
    return f"; they seem to be {fitting[0]}, expected {expected}" if fitting else ""


def decode_field(where: str, name: str, text: bytes, dtype: str) -> np.ndarray:
    """The numbers of a base64 field in native byte order; `InputError` if it is not base64."""
    try:
        values = np.frombuffer(binascii.a2b_base64(text, strict_mode=True), dtype)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where}: {name}: not base64: {one_line(error)}") from None
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _as_int32(where: str, name: str, values: np.ndarray) -> np.ndarray:
    if len(values) and not (values.min() >= -(2**31) and values.max() < 2**31):
        furthest = values.max() if values.max() >= 2**31 else values.min()
        raise InputError(f"{where}: {name}: {furthest} is outside the range of int32")
    return values.astype(np.int32)


def float_type(values: np.ndarray) -> str:
    """The type, float16, float32 or float64, whose numbers the bytes of `values` are.

    Read as float32, float64 gives the lower half of a number in every second place: a number of any size, or, if
    it was converted from float32, one of a few. Read as float16, float32 gives the lower half of a number in every
    second place, in which all exponents occur.

    >>> numbers = np.random.default_rng(0).normal(size=200)
    >>> [float_type(np.frombuffer(numbers.astype(f"f{size}").tobytes(), "f4")) for size in (2, 4, 8)]
    ['float16', 'float32', 'float64']

    Args:
        values: (n,) float32, the bytes of a row's features.
    """
    if len(values) % 2 == 0 and _is_float64(values):
        return "float64"
    return "float16" if _is_float16(values) else "float32"


def _is_float64(values: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        doubles = np.abs(values.view(np.float64))
        used = doubles != 0
        if used.sum() < 4 or not ((doubles[used] > 1e-30) & (doubles[used] < 1e10)).all():
            return False
        lower = values[0::2][used]
        size = np.abs(lower)
        strange = ~((size > 1e-18) & (size < 1e10)) & (lower != 0)
    converted = (lower.view(np.uint32) & 0x1FFFFFFF) == 0  # of float32, which has 29 bits less
    return bool(strange.mean() > 0.25 or converted.all())


def _is_float16(values: np.ndarray) -> bool:
    halves = values.view(np.float16)
    if not (np.abs(halves) < 1000).all():  # NaN and Inf are not
        return False
    lower = np.unique(values.view(np.uint32) & 0xFFFF)
    return bool((lower % 0x2000 != 0).sum() >= 48)  # a multiple: float32 that was converted from float16
