"""Reading the tensors of a weight file. Nothing in a weight file is ever run."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from data_tools.errors import InputError, reading
from data_tools.weights.caffe_files import is_caffe_file
from data_tools.weights.pickles import read_pickle
from data_tools.weights.states import check_finite
from extract.weights.caffe_names import read_caffe_weights


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by name: of safetensors, torch, a pickle of arrays, or Caffe.

    Raises:
        InputError: the file is damaged, of another format, or holds anything but tensors of finite numbers.
    """
    content = _read(path)
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: expected tensors by name, or an object whose key model holds them")
    tensors = {_name(path, name): _tensor(path, name, value) for name, value in state.items()}
    try:
        check_finite(tensors)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return tensors


def _read(path: Path) -> object:
    if _is_safetensors(path):
        return _read_safetensors(path)
    return read_caffe_weights(path) if is_caffe_file(path) else read_pickle(path)


def _name(path: Path, name: object) -> str:
    if not isinstance(name, str):
        raise InputError(f"{path}: expected tensors by name, found the key {name!r}")
    return name.removeprefix("module.")  # DataParallel's prefix of every name


def _tensor(path: Path, name: str, value: object) -> torch.Tensor:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
        value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{path}: {name} is a {type(value).__name__}, expected a tensor of numbers")
    return value


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with reading(path, "not a readable weight file"):
        return safetensors.torch.load_file(path)
