"""Reading pickles of unknown origin without running anything in them.

A pickle is a program: it may call whatever it can import. Here it can import the few constructors that arrays,
tensors and plain containers are made of, and nothing else.
"""

import codecs
import io
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch

from data_tools.errors import InputError, one_line
from data_tools.weights.torch_files import FalseClaimError, RefusedError, check_claims, is_torch_file


def read_pickle(path: Path, allowed: Sequence[type] = (), what: str = "weight file") -> Any:
    """What a pickle or a file of `torch.save` holds: plain data, NumPy arrays, tensors.

    Args:
        path: the file.
        allowed: further classes that a file of `torch.save` may hold.
        what: kind of file, for messages.

    Raises:
        InputError: the file is damaged, claims more than it holds, or holds anything else; none of it has been run
            then.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size, allowed)
    except FalseClaimError as error:
        raise InputError(f"{path}: damaged or hostile: it claims {error}") from None
    except RefusedError as error:
        raise InputError(f"{path}: holds {error}, not only arrays and tensors; nothing of it was run") from None
    except Exception as error:  # readers raise many types of exception on damaged files
        raise InputError(
            f"{path}: not a readable {what}, or it holds more than tensors: {one_line(error, 160)}"
        ) from None


def _read(file: BinaryIO, size: int, allowed: Sequence[type] = ()) -> Any:
    start = file.read(32)
    if not is_torch_file(start):
        file.seek(0)
        return _ArraysOnly(file, encoding="latin1").load()  # Python 2 wrote some of these files
    check_claims(file, size, allowed)
    file.seek(0)
    with torch.serialization.safe_globals(list(allowed)):
        return torch.load(file, map_location="cpu", weights_only=True)


def _latin1(text: str, encoding: str) -> bytes:
    """The one use of `_codecs.encode` in pickles: bytes of protocol 2."""
    if encoding != "latin1":
        raise RefusedError(f"text in the encoding {encoding}")
    return codecs.encode(text, "latin1")


def _storage(content: bytes) -> Any:
    """A tensor's numbers in a plain pickle, which torch itself would read freely."""
    if not is_torch_file(content[:32]):
        raise RefusedError("a storage that PyTorch did not write")
    return _read(io.BytesIO(content), len(content))


class _Numbers:
    """A pickled `numpy.dtype`, of which only the type of number is taken.

    NumPy itself believes a pickle that claims that objects are numbers, or numbers objects; then whoever wrote
    the file could have any address taken for an object's.
    """

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "fiub":
            raise RefusedError(f"an array of the NumPy type {self.dtype}")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose pickled contents are numbers; empty until they come."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, numbers, by_columns, content = state
        content = content.encode("latin1") if isinstance(content, str) else content  # from Python 2
        array = _from_buffer(content, numbers, shape, "F" if by_columns else "C")
        super().__setstate__((1, array.shape, array.dtype, by_columns, content))


def _reconstruct(*_: Any) -> np.ndarray:
    return _Array((0,), np.uint8)


def _from_buffer(
    content: bytes, numbers: _Numbers, shape: tuple[int, ...], order: Literal["C", "F"]
) -> np.ndarray:
    return np.frombuffer(content, numbers.dtype).reshape(shape, order=order)


def _scalar(numbers: _Numbers, content: bytes) -> np.generic:
    return np.frombuffer(content, numbers.dtype)[0]


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): None,  # pickles only name it, to `_reconstruct`
    ("numpy", "dtype"): _Numbers,
    ("_codecs", "encode"): _latin1,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
    **{
        (f"{package}.{module}", name): function
        for package in ("numpy.core", "numpy._core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _ArraysOnly(pickle._Unpickler):  # in Python: the C one trusts memo indices
    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`."""
        if (module, name) not in _ADMITTED:
            raise RefusedError(f"{module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """See `pickle.Unpickler`."""
        raise RefusedError("references to something outside the file")
