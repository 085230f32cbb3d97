"""Weight files of Caffe (`.caffemodel`): a protocol buffer `NetParameter` whose layers hold weights as blobs.

Field numbers are those of Caffe's caffe.proto. Only names, types, weights and the eps of batch norms are read.
Files in the format before 2015, whose layers are in the field `layers`, are refused: it had no batch norms.
"""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.errors import InputError, reading
from data_tools.weights.wire import BYTES, FIXED32, VARINT, Field, WireError, WireReader, signed

DEFAULT_EPS = 1e-5  # of Caffe's batch norms
MAX_AXES = 32  # of Caffe's blobs
MAX_NAME = 256  # bytes of a layer's name or type

_NET = {1: BYTES, 2: BYTES, 3: BYTES, 4: VARINT, 5: VARINT, 6: BYTES, 7: VARINT, 8: BYTES, 100: BYTES}
_LAYER, _OLD_LAYER = 100, 2  # fields of NetParameter
_NAME, _TYPE, _BLOBS, _BATCH_NORM = 1, 2, 7, 139  # of LayerParameter
_EPS = 3  # of BatchNormParameter
_LEGACY = (1, 2, 3, 4)  # num, channels, height and width of BlobProto
_DATA, _SHAPE, _DOUBLE_DATA = 5, 7, 8  # of BlobProto
_DIM = 1  # of BlobShape
_HEAD = 1 << 16  # bytes in which the first layer begins


@dataclass(frozen=True)
class CaffeLayer:
    """The weights of one layer.

    Attributes:
        type: for example `Convolution`, `BatchNorm`, `Scale`, `InnerProduct`, `Embed`.
        blobs: float32 arrays of finite numbers.
        eps: of a batch norm.
    """

    type: str
    blobs: list[np.ndarray]
    eps: float = DEFAULT_EPS


def is_caffe_file(path: Path) -> bool:
    """Whether a file begins as Caffe's weight files do: with fields of `NetParameter` and then a layer."""
    with path.open("rb") as file:
        head = memoryview(file.read(_HEAD))
        size = path.stat().st_size
    reader = WireReader(head)
    at = 0
    try:
        while True:
            field, at = reader.field(at, size)
            if _NET.get(field.number) != field.kind:
                return False
            if field.number in (_LAYER, _OLD_LAYER):
                return True
    except (WireError, IndexError, ValueError):  # it ends, or its head does
        return False


def is_whole_caffe_file(path: Path) -> bool:
    """Whether a file that begins as Caffe's do ends where its last layer does."""
    try:
        for _ in _layers(WireReader(memoryview(_mapped(path))), path.stat().st_size):
            pass
    except WireError:
        return False
    return True


def read_caffe_file(path: Path) -> dict[str, CaffeLayer]:
    """The layers that have weights, by name, in the order of the file.

    The file is mapped and not read whole; memory is taken for the weights once.

    Raises:
        InputError: the file is damaged, in the format before 2015, has no weights, or holds a number that is not
            finite; the message names the layer.
    """
    mapped = _mapped(path)
    reader = WireReader(memoryview(mapped))
    layers: dict[str, CaffeLayer] = {}
    where = "before its first layer"
    try:
        for number, field in enumerate(_layers(reader, len(mapped))):
            where = f"layer {number}"
            draft = _Draft(reader, field)
            where = f"layer {draft.name!r}"
            layer = draft.finish()
            if layer.blobs and draft.name in layers:
                raise WireError("there are two of this name")
            if layer.blobs:
                layers[draft.name] = layer
            where = f"after {where}"
            _forget(mapped, field)
    except WireError as error:
        raise InputError(f"{path}: not a readable Caffe weight file: {where}: {error}") from None
    if not layers:
        raise InputError(f"{path}: a Caffe network without weights")
    return layers


def _mapped(path: Path) -> mmap.mmap:
    with reading(path), path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _forget(mapped: mmap.mmap, field: Field) -> None:
    """Let the system drop the pages of a field that has been read, which otherwise count as this process's."""
    start = -(-field.start // mmap.PAGESIZE) * mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED") and field.end > start:
        mapped.madvise(mmap.MADV_DONTNEED, start, field.end - start)


def _layers(reader: WireReader, size: int) -> Iterator[Field]:
    for field in reader.fields(0, size):
        if field.number == _OLD_LAYER:
            raise WireError("its layers are in Caffe's format before 2015; fix: Caffe's upgrade_net_proto_binary")
        if field.number == _LAYER:
            yield _expect(field, BYTES)


def _expect(field: Field, kind: int) -> Field:
    if field.kind != kind:
        raise WireError(f"field {field.number} has the wire type {field.kind}, expected {kind}")
    return field


class _Draft:
    """A layer whose name is known and whose weights have not been read."""

    def __init__(self, reader: WireReader, message: Field) -> None:
        self._reader = reader
        self.name, self._type, self._eps = "", "", DEFAULT_EPS
        self._blobs: list[Field] = []
        for field in reader.fields(message.start, message.end):
            if field.number in (_NAME, _TYPE, _BLOBS, _BATCH_NORM):
                self._take(_expect(field, BYTES))

    def _take(self, field: Field) -> None:
        if field.number == _NAME:
            self.name = _text(self._reader, field)
        elif field.number == _TYPE:
            self._type = _text(self._reader, field)
        elif field.number == _BLOBS:
            self._blobs.append(field)
        else:
            self._eps = _eps(self._reader, field, self._eps)

    def finish(self) -> CaffeLayer:
        blobs = []
        for number, field in enumerate(self._blobs):
            try:
                blobs.append(_blob(self._reader, field))
            except WireError as error:
                raise WireError(f"blob {number}: {error}") from None
        return CaffeLayer(self._type, blobs, self._eps)


def _text(reader: WireReader, field: Field) -> str:
    if field.end - field.start > MAX_NAME:
        raise WireError(f"a name of {field.end - field.start} bytes")
    try:
        text = bytes(reader.content[field.start : field.end]).decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise WireError("a name that is not text")
    return text


def _eps(reader: WireReader, message: Field, default: float) -> float:
    eps = default
    for field in reader.fields(message.start, message.end):
        if field.number == _EPS:
            eps = float(reader.numbers(_expect(field, FIXED32), "<f4")[-1])
    if not 0 <= eps < 1:
        raise WireError(f"the eps {eps}")
    return DEFAULT_EPS if np.float32(eps) == np.float32(DEFAULT_EPS) else eps


def _blob(reader: WireReader, message: Field) -> np.ndarray:
    """A float32 copy of a blob's numbers. Doubles, where there are any, take the place of floats, as in Caffe."""
    pieces: dict[int, list[np.ndarray]] = {_DATA: [], _DOUBLE_DATA: []}
    legacy: dict[int, int] = {}
    shape: list[int] = []
    for field in reader.fields(message.start, message.end):
        if field.number in _LEGACY:
            legacy[field.number] = signed(_expect(field, VARINT).value)
        elif field.number == _SHAPE:
            shape += _shape(reader, _expect(field, BYTES))
        elif field.number in pieces:
            pieces[field.number].append(reader.numbers(field, "<f4" if field.number == _DATA else "<f8"))
    if legacy:
        shape = [legacy.get(number, 0) for number in _LEGACY]
    numbers = pieces[_DOUBLE_DATA if any(map(len, pieces[_DOUBLE_DATA])) else _DATA]
    count = sum(map(len, numbers))
    if len(shape) > MAX_AXES or any(side <= 0 for side in shape) or math.prod(shape) != count:
        raise WireError(f"{count} numbers for the shape {_short(shape)}")
    array = np.empty(count, np.float32)
    with np.errstate(over="ignore"):  # of doubles
        np.concatenate(numbers, out=array, casting="same_kind")
    if not np.isfinite(array).all():
        raise WireError("holds a number that is not finite")
    return array.reshape(shape)


def _shape(reader: WireReader, message: Field) -> list[int]:
    sides = []
    for field in reader.fields(message.start, message.end):
        if field.number == _DIM and field.kind == VARINT:
            sides.append(field.value)
        elif field.number == _DIM:
            sides += reader.varints(_expect(field, BYTES), MAX_AXES)
    return list(map(signed, sides))


def _short(shape: list[int]) -> str:
    return "x".join(map(str, shape[:8])) + ("x..." if len(shape) > 8 else "") or "()"
