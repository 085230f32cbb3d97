"""Changes to NumPy's files: arrays of other types and shapes, headers that claim, archives."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random

import numpy as np

from tests.fuzz.mutators.documents import TRACE

_KINDS = ("f2", "f4", "f8", "g", "i8", "u1", "?", "c8", "S4", "U3", ">f4", ">f2", "M8[s]", "V4")


class Runs:
    """Pickles into a call that makes the folder `TRACE`."""

    def __reduce__(self) -> tuple:
        import os

        return os.mkdir, (TRACE,)


def _hostile(array: np.ndarray, rng: Random) -> np.ndarray:
    kind = rng.randrange(9)
    if kind <= 1:
        return np.resize(array, array.shape).astype(rng.choice(_KINDS))
    if kind == 2:
        return array[..., None]
    if kind == 3:
        return array.reshape(-1)
    if kind == 4:
        return array[:0]
    if kind == 5:
        return array[:-1] if array.ndim else array.reshape(1)
    if kind == 6:
        return np.asfortranarray(array)
    if kind == 7:
        return np.full(array.shape, rng.choice((np.nan, np.inf, 1e9, -1, 0)), "f4")
    return np.concatenate([np.atleast_1d(array)] * 2)


def _bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _claim(content: bytes, rng: Random) -> bytes:
    """An array file whose header says something else, with the numbers as they were."""
    size = struct.unpack("<H", content[8:10])[0]
    numbers = content[10 + size :]
    shape = rng.choice(
        ("(10000000000000,)", "(2, 1000000000000, 8)", "(-1, 3, 8)", "(0, 3, 8)", "(2.0, 3, 8)", "7")
    )
    kind = rng.choice(
        ("'<f4'", "'<f4'", "'|O'", "'<f16'", "[('a', '<f4')]", "'|S0'", "7", "'x'", "'<U1000000000'")
    )
    header = f"{{'descr': {kind}, 'fortran_order': {rng.choice(('False', 'True', '3'))}, 'shape': {shape}, }}"
    header = rng.choice((header, header, header[:-2], "[" * 3000, f"__import__('os').mkdir('{TRACE}')", "{}"))
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([rng.choice((1, 1, 1, 2, 9)), 0]) + struct.pack("<H", len(text)) + text + numbers


def npy(path: Path, rng: Random) -> None:
    """An array file with another array, another header, or a pickle."""
    choice = rng.randrange(5)
    if choice <= 1:
        path.write_bytes(_bytes(_hostile(np.load(path), rng)))
    elif choice <= 3:
        path.write_bytes(_claim(path.read_bytes(), rng))
    elif rng.random() < 0.5:
        path.write_bytes(pickle.dumps(Runs()))
    else:
        np.save(path, np.array([Runs(), None], dtype=object), allow_pickle=True)


def npz(path: Path, rng: Random) -> None:
    """An archive of which one member is another array, is missing, is repeated, or expands a thousandfold."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    choice, method = rng.randrange(8), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    repeated = []
    if choice <= 2:
        members[name] = _bytes(_hostile(np.load(io.BytesIO(members[name]), allow_pickle=True), rng))
    elif choice == 3:
        members[name] = _claim(members[name], rng)
    elif choice == 4:
        del members[name]
    elif choice == 5:
        repeated = [(name, members[name][:-4])]
    elif choice == 6:
        members[name], method = members[name] + bytes(50_000_000), zipfile.ZIP_DEFLATED
    else:
        members[rng.choice(("x", "../x.npy", "x.npy.npy", "info.npy"))] = members.pop(name)
    with zipfile.ZipFile(path, "w", method) as archive:
        for member, content in [*members.items(), *repeated]:
            archive.writestr(member, content)
