"""Changes to weight files and states: tensors of other shapes, strides and types, pickles with other opcodes."""

import io
import json
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from tests.fuzz.mutators.arrays import Runs
from tests.fuzz.mutators.documents import HOSTILE, TRACE, change, places

_CALL = f"cos\nmkdir\n(S'{TRACE}'\ntR".encode()  # opcodes that make the folder TRACE


def _hostile(value: torch.Tensor, rng: Random) -> Any:
    """Another tensor in the place of `value`."""
    if rng.random() < 0.4:
        kinds = (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.bool,
            torch.complex64,
            torch.uint8,
        )
        return value.detach().to(rng.choice(kinds))
    makers = (
        lambda: value[..., None],
        lambda: value.reshape(-1),
        lambda: value.reshape(-1)[:1],
        lambda: value.reshape(-1)[:0],
        lambda: torch.tensor(1.0),
        lambda: torch.zeros(1).expand(20_000, 20_000),  # 4 bytes in the file
        lambda: torch.zeros(1).expand(value.shape),
        lambda: torch.full(value.shape, rng.choice((float("nan"), float("inf"), 1e30, -1.0))),
        lambda: torch.zeros(3),
        lambda: torch.zeros(2, 2).to_sparse(),
        lambda: value.t() if value.ndim == 2 else value.flip(0),
        lambda: torch.nn.Parameter(value.detach().float()),
        lambda: torch.empty(5, device="meta"),
        lambda: value.reshape(-1).as_strided((4, 4), (0, 1)),
        lambda: value.numpy(),
    )
    return rng.choice(makers)()


def _changed(document: Any, rng: Random) -> Any:
    tensors = [(node, key) for node, key in places(document) if isinstance(node[key], torch.Tensor)]
    if tensors and rng.random() < 0.5:
        node, key = rng.choice(tensors)
        node[key] = _hostile(node[key], rng)
        return document
    return change(document, rng, (*HOSTILE, *(torch.zeros(3), 10**9, Runs(), b"x", (1,), {1, 2}, 1j)))


def torch_value(path: Path, rng: Random) -> None:
    """One or two values of a file of `torch.save`, in either of its formats, with or without compression."""
    content = torch.load(path, map_location="cpu", weights_only=False)
    content = _plain(content)
    for _ in range(rng.choice((1, 1, 2))):
        content = _changed(content, rng) if isinstance(content, dict | list) and places(content) else content
    old = rng.random() < 0.25
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    if not old and rng.random() < 0.1:
        _rewrite(path, lambda name, data: data, zipfile.ZIP_DEFLATED)


def _plain(value: Any) -> Any:
    """Ordered dictionaries and tuples as dictionaries and lists, which can be changed in place."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _rewrite(path: Path, change_member: Any, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            changed = change_member(name, content)
            if changed is not None:
                archive.writestr(name, changed)


def torch_archive(path: Path, rng: Random) -> None:
    """A member of a zip checkpoint missing, longer, shorter, renamed, or expanding a thousandfold."""
    with zipfile.ZipFile(path) as archive:
        chosen = rng.choice(archive.namelist())
    kind = rng.randrange(5)
    new = (lambda data: None, lambda data: data[:-1], lambda data: data + b"\0", lambda data: b"",
           lambda data: data + bytes(50_000_000))[kind]  # fmt: skip
    method = zipfile.ZIP_DEFLATED if kind == 4 else zipfile.ZIP_STORED
    _rewrite(path, lambda name, data: new(data) if name == chosen else data, method)


def torch_opcodes(path: Path, rng: Random) -> None:
    """Opcodes of the pickle within a checkpoint of either format."""
    if zipfile.is_zipfile(path):
        _rewrite(path, lambda name, data: _other_opcodes(data, rng) if name.endswith("data.pkl") else data)
    else:
        path.write_bytes(_other_opcodes(path.read_bytes(), rng))


def pickle_opcodes(path: Path, rng: Random) -> None:
    """Opcodes of a pickle."""
    path.write_bytes(_other_opcodes(path.read_bytes(), rng))


def _other_opcodes(content: bytes, rng: Random) -> bytes:
    """A pickle with one opcode replaced, removed or repeated, a number changed, or a call inserted."""
    found = list(pickletools.genops(content))
    number = rng.randrange(len(found) - 1)
    first, last = found[number][2], found[number + 1][2]
    assert first is not None
    assert last is not None
    piece = content[first:last]
    numbers = (
        b"J\xff\xff\xff\xff",
        b"J\xff\xff\xff\x7f",
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
        b"M\x00\x00",
        b"K\x07",
    )
    others = (
        b"", piece + piece, rng.choice(numbers), rng.choice(numbers), _CALL, _CALL + b"0" + piece, b"N", b"]",
        b"}", b")",
        b"(", b"0", b"h\xff", b"2", b"e", b"R", b"b", b"\x8d" + b"\xff" * 7 + b"\x00", b"X\xff\xff\xff\x7f",
        b"]" * 5000, b"ctorch\nload\n", b"cbuiltins\neval\n", b"\x80\x09", b"P7\n", b"\x95" + b"\xff" * 8,
    )  # fmt: skip
    return content[:first] + rng.choice(others) + content[last:]


def pickle_value(path: Path, rng: Random) -> None:
    """One value of a pickle of NumPy arrays, in any protocol."""
    content = pickle.loads(path.read_bytes())
    arrays = [(node, key) for node, key in places(content) if isinstance(node[key], np.ndarray)]
    if arrays and rng.random() < 0.6:
        node, key = rng.choice(arrays)
        value = node[key]
        kinds = ("f8", "f2", "i8", "?", "c8", "S4", "U2", "O", ">f4", "M8[s]", "g")
        node[key] = rng.choice(
            (
                np.resize(value, value.shape).astype(rng.choice(kinds)),
                value.reshape(-1)[:0],
                value.reshape(-1),
                np.broadcast_to(np.float32(1), (300, 300)),
                np.full(value.shape, np.nan, "f4"),
                np.asfortranarray(value),
                np.float32(1),
                np.array([None, Runs()], dtype=object),
                np.ma.masked_array(value),
            )
        )
    else:
        content = change(content, rng, (*HOSTILE, Runs(), b"x", {1, 2}, 1j, np.float32))
    path.write_bytes(pickle.dumps(content, protocol=rng.randrange(6)))


def safetensors_header(path: Path, rng: Random) -> None:
    """The header of a safetensors file: another type, shape or place of a tensor, or the length of the header."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    kind = rng.randrange(7)
    if kind == 0:
        entry["dtype"] = rng.choice(("F64", "BF16", "I64", "BOOL", "F8_E5M2", "F4", "C64", "X", 7, None))
    elif kind == 1:
        entry["shape"] = rng.choice(([], [0], [2**62], [2**32, 2**32], [-1], [1.5], [1], entry["shape"][::-1]))
    elif kind == 2:
        entry["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [8, 4], [0, 4], [-4, 0], [0], [2**40, 2**41]))
    elif kind == 3:
        del header[name]
    elif kind == 4:
        header[rng.choice(("x", "", "__metadata__", "\0"))] = entry
    else:
        header = change(header, rng)
    text = json.dumps(header).encode(errors="surrogatepass")
    length = rng.choice((len(text), len(text), len(text), 2**63, 10**12, len(text) - 1, len(content)))
    path.write_bytes(struct.pack("<Q", length) + text + content[8 + size :])


def safetensors_value(path: Path, rng: Random) -> None:
    """A safetensors file with one tensor of another shape, type or value."""
    from safetensors.torch import load, save

    tensors = load(path.read_bytes())
    name = rng.choice(list(tensors))
    changed = _hostile(tensors[name], rng)
    if changed.numel() > 10**6:
        raise ValueError("this format has no strides: the file would be large")
    tensors[name] = changed.detach().contiguous()
    path.write_bytes(save(tensors))


def saved(content: Any) -> bytes:
    """What `torch.save` writes for `content`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
