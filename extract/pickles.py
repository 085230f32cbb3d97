"""Reading pickles that somebody else made, without running anything in them.

A pickle is a program: it may call whatever it can import. Here it can import the few constructors that arrays,
tensors and plain containers are made of, and nothing else.
"""

import codecs
import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_tools.errors import InputError


def read_pickle(path: Path) -> Any:
    """What a pickle or a file of `torch.save` holds: plain data, NumPy arrays, tensors.

    Raises:
        InputError: the file is damaged, or holds anything else; none of it has been run then.
    """
    try:
        if zipfile.is_zipfile(path) or _is_old_torch(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()  # Python 2 wrote some of these files
    except _RefusedError as error:
        raise InputError(f"{path}: holds {error}, not only arrays and tensors; nothing of it was run") from None
    except Exception as error:  # readers raise many kinds on damaged files
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{path}: not a readable weight file, or it holds more than tensors: {reason}") from None


def _is_old_torch(path: Path) -> bool:
    """Whether a file begins with the magic number of `torch.save` before its zip archives."""
    with path.open("rb") as file:
        return b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in file.read(32)


class _RefusedError(Exception):
    pass


def _latin1(text: str, encoding: str) -> bytes:
    """The one use of `_codecs.encode` in pickles: bytes of protocol 2."""
    if encoding != "latin1":
        raise _RefusedError(f"text in the encoding {encoding}")
    return codecs.encode(text, "latin1")


def _storage(content: bytes) -> Any:
    """A tensor's numbers in a plain pickle, which torch itself would read freely."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_reconstruct: Any = np.empty(0).__reduce__()[0]  # numpy keeps these three to itself
_scalar: Any = np.float32(0).__reduce__()[0]
_frombuffer: Any = np.empty(0).__reduce_ex__(5)[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    **{
        (module, name): function
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`."""
        if (module, name) not in _ADMITTED:
            raise _RefusedError(f"{module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """See `pickle.Unpickler`."""
        raise _RefusedError("references to something outside the file")
