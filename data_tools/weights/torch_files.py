"""What a file of `torch.save` claims, checked before PyTorch takes memory for it.

PyTorch reads such a file without running code in it, but believes its numbers: a few bytes can claim a storage
larger than the file, a tensor larger than its storage, or an archive that grows a thousandfold. The pickle in the
file is walked here first with stand-ins for everything that it names, and no tensor is made.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, BinaryIO

MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # of the format before archives
MAX_EXPANSION = 16  # of a compressed archive: numbers of weights shrink by less than two
MAX_SHARING = 4  # all tensors together may have so many times the bytes of the storages: tied weights share one
SLACK = 1 << 20  # bytes that the two above leave to small files

_ITEM_SIZES = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2},
    **{"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
    "UntypedStorage": 1,
}


_PLAIN = (  # what else belongs to plain data: all that torch.load(weights_only=True) takes and our files have
    *("torch._utils._rebuild_parameter", "torch.Size", "torch.device", "_codecs.encode", "collections.Counter"),
    *(
        f"torch.{name}"
        for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
    ),
)


class RefusedError(Exception):
    """A file holds what it may not; the message says what, in a few words."""


class FalseClaimError(Exception):
    """A file claims more than it holds; the message says what, in a few words."""


def is_torch_file(start: bytes) -> bool:
    """Whether `torch.save` wrote a file that starts with these 32 bytes: an archive, or the format before it."""
    return MAGIC in start or start.startswith(b"PK\x03\x04")


def check_claims(file: BinaryIO, size: int, allowed: Sequence[type] = ()) -> None:
    """Check the claims of a file of `torch.save`.

    Args:
        file: opened for reading; it is left anywhere.
        size: of the file, in bytes.
        allowed: further classes that it may hold.

    Raises:
        FalseClaimError: the file claims more than it holds.
        RefusedError: it holds another kind of tensor than dense ones.
        Exception: whatever reading a damaged archive or pickle raises.
    """
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":
        _check_archive(file, size, allowed)
        return
    file.seek(0)
    for _ in range(3):  # magic number, protocol version, properties of the machine
        _Walker(file, {}, 0).load()
    _Walker(file, None, size, allowed).load()


def _check_archive(file: BinaryIO, size: int, allowed: Sequence[type]) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        expanded = sum(entry.file_size for entry in entries)
        if expanded > MAX_EXPANSION * size + SLACK:
            raise FalseClaimError(f"{expanded / 1e6:.0f} MB compressed into {size / 1e6:.1f} MB")
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"an archive with {len(pickles)} files data.pkl")
        prefix = pickles[0].filename.removesuffix("data.pkl") + "data/"
        records = {
            entry.filename.removeprefix(prefix): entry.file_size
            for entry in entries
            if entry.filename.startswith(prefix)
        }
        _Walker(io.BytesIO(archive.read(pickles[0])), records, 0, allowed).load()


class _Stored:
    """A storage that a pickle names: how many numbers of how many bytes."""

    def __init__(self, count: int, item_size: int) -> None:
        self.count, self.item_size = count, item_size


class _Named:
    """Stands for anything that a pickle names; it can be called, filled and given a state, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "_Named":
        return _Named()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """As of a list."""

    def extend(self, values: Any) -> None:
        """As of a list."""

    def add(self, value: Any) -> None:
        """As of a set."""

    update = extend


class _Class(_Named):
    """A storage class, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Walker(pickle._Unpickler):  # in Python: the C one trusts memo indices
    """Walks a pickle of `torch.save`.

    Args:
        file: at the pickle.
        records: size in bytes of each storage's record, by its key; None in the format before archives, where
            the storages follow the pickle in the file.
        size: of the file in that format.
        allowed: further classes.
    """

    def __init__(self, file: Any, records: dict[str, int] | None, size: int, allowed: Sequence[type] = ()) -> None:
        super().__init__(file, encoding="latin1")
        self._allowed = [f"{kind.__module__}.{kind.__qualname__}" for kind in allowed]
        self._records, self._left = records, size
        self._storages: dict[str, int] = {}
        self._tensor_bytes = 0

    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if name in _ITEM_SIZES and module in ("torch", "torch.storage"):
            return _Class(name)
        if f"{module}.{name}" not in (*_PLAIN, *self._allowed):
            raise RefusedError(f"{module}.{name}")  # sparse, quantized, meta and wrapped tensors too
        return _Named

    def persistent_load(self, pid: Any) -> Any:
        """A storage: see `pickle.Unpickler`."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise RefusedError("a reference to something outside the file")
        kind, key, count = pid[1], pid[2], pid[4]
        item_size = _ITEM_SIZES.get(getattr(kind, "name", ""))
        if item_size is None:
            raise RefusedError(f"numbers of the type {getattr(kind, 'name', kind)}")
        if type(count) is not int or count < 0 or not isinstance(key, str):
            raise FalseClaimError("a storage without a size")
        if len(pid) == 6 and pid[5] is not None:
            raise RefusedError("a view of a storage")
        claimed = count * item_size
        if self._records is not None:
            if claimed > self._records.get(key, -1):
                raise FalseClaimError(f"a storage of {claimed} bytes, of which the file holds less")
        elif key not in self._storages:
            self._left -= claimed
            if self._left < 0:
                raise FalseClaimError(f"a storage of {claimed} bytes, of which the file holds less")
        self._storages[key] = claimed
        return _Stored(count, item_size)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Named:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Stored) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise FalseClaimError("a tensor without a storage, or of a negative size")
        if len(shape) != len(strides) or len(shape) > 64:
            raise FalseClaimError("a tensor whose shape and strides differ in length")
        count = math.prod(shape)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if count > storage.count or (count and last >= storage.count):
            raise FalseClaimError(f"a tensor of shape {tuple(shape)} in a storage of {storage.count} numbers")
        self._tensor_bytes += count * storage.item_size
        if self._tensor_bytes > MAX_SHARING * sum(self._storages.values()) + SLACK:
            raise FalseClaimError("many tensors that share one storage")
        return _Named()
