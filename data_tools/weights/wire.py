"""The wire format of protocol buffers: a message is a sequence of numbered fields.

Nothing here knows what a field means. Every length is compared with the bytes that are left of the message, so no
memory is taken for what a file only claims.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; the others are of groups, or unused
WIDTHS = {FIXED64: 8, FIXED32: 4}
MAX_FIELDS = 1 << 18  # of a file, where a run of numbers counts once: the published detector has some 10,000

_VARINT_BYTES = 10
_NUMBERS = (1 << 29) - 1  # of fields
_ROWS = 1 << 18  # numbers of a run that are looked at together


class WireError(Exception):
    """Bytes that are no message of the expected kind; the message says what, in a few words."""


@dataclass(frozen=True)
class Field:
    """One field of a message, or a run of numbers of the same field one after another.

    Attributes:
        number: of the field.
        kind: `VARINT`, `BYTES`, or `FIXED32` and `FIXED64` for a run.
        value: of a varint, without sign.
        start, end: where its bytes are; those of a run include the tag before each number.
        count: numbers of a run.
    """

    number: int
    kind: int
    value: int = 0
    start: int = 0
    end: int = 0
    count: int = 1


class WireReader:
    """Reads the fields of messages from the bytes of one file."""

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self._fields_left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message at [start, end), in the order of the bytes.

        Raises:
            WireError: a varint or a field does not end before the message does, a wire type is not in use, or the
                file has more than `MAX_FIELDS` fields.
        """
        at = start
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise WireError(f"more than {MAX_FIELDS} fields")
            field, at = self.field(at, end)
            yield field

    def field(self, at: int, end: int) -> tuple[Field, int]:
        """The field or run at `at` in a message that ends at `end`, and where the next one begins."""
        tag, value_at = self._varint(at, end)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= _NUMBERS:
            raise WireError(f"a field of the number {number}")
        if kind == VARINT:
            value, after = self._varint(value_at, end)
            return Field(number, kind, value), after
        if kind == BYTES:
            length, value_at = self._varint(value_at, end)
            if length > end - value_at:
                raise WireError(f"a field of {length} bytes, where {end - value_at} are left")
            return Field(number, kind, start=value_at, end=value_at + length), value_at + length
        if kind not in WIDTHS:
            raise WireError(f"a field of the wire type {kind}")
        if WIDTHS[kind] > end - value_at:
            raise WireError(f"a field of {WIDTHS[kind]} bytes, where {end - value_at} are left")
        step = value_at - at + WIDTHS[kind]
        count = self._run(at, value_at - at, step, end)
        after = at + count * step
        return Field(number, kind, start=at, end=after, count=count), after

    def varints(self, field: Field, most: int) -> list[int]:
        """The varints, without sign, that a `BYTES` field holds packed.

        Raises:
            WireError: one does not end, or there are more than `most`.
        """
        values: list[int] = []
        at = field.start
        while at < field.end:
            value, at = self._varint(at, field.end)
            values.append(value)
            if len(values) > most:
                raise WireError(f"more than {most} packed numbers")
        return values

    def numbers(self, field: Field, kind: str) -> np.ndarray:
        """(N,) numbers of a run, or of a `BYTES` field that holds them packed, as a view of the file.

        Args:
            field: as `fields` yields it.
            kind: of the numbers, in NumPy's words: `<f4` or `<f8`.

        Raises:
            WireError: the field has another wire type, or packed bytes are no whole numbers.
        """
        dtype = np.dtype(kind)
        size = field.end - field.start
        if field.kind == BYTES:
            if size % dtype.itemsize:
                raise WireError(f"{size} bytes are no whole numbers of {dtype.itemsize} bytes")
            return np.frombuffer(self.content, dtype, size // dtype.itemsize, field.start)
        if WIDTHS.get(field.kind) != dtype.itemsize:
            raise WireError(f"numbers of {dtype.itemsize} bytes with the wire type {field.kind}")
        rows = np.frombuffer(self.content, np.uint8, size, field.start).reshape(field.count, -1)
        return rows[:, -dtype.itemsize :].view(dtype)[:, 0]

    def _run(self, at: int, tag_length: int, step: int, end: int) -> int:
        """How many fields of `step` bytes with the tag at `at` follow one another; at least one."""
        tag = np.frombuffer(self.content, np.uint8, tag_length, at)
        most = (end - at) // step
        count, ahead = 1, 1
        while count < most:
            ahead = min(8 * ahead, _ROWS, most - count)
            rows = np.frombuffer(self.content, np.uint8, ahead * step, at + count * step).reshape(ahead, step)
            others = np.flatnonzero((rows[:, :tag_length] != tag).any(axis=1))
            if len(others):
                return count + int(others[0])
            count += ahead
        return count

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift, place in zip(itertools.count(0, 7), range(at, min(end, at + _VARINT_BYTES)), strict=False):
            byte = self.content[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & ((1 << 64) - 1), place + 1
        raise WireError("a varint that does not end")


def signed(value: int) -> int:
    """An int32 or int64 from the 64 bits of its varint.

    >>> signed(3), signed(2**64 - 1)
    (3, -1)
    """
    return value - (1 << 64) if value >> 63 else value
