"""Finding, reading and placing a detector's weights. Nothing in a weight file is ever run."""

import hashlib
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from data_tools.errors import InputError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME on the Hugging Face hub
REPOSITORY_FILE = "pytorch_model.bin"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
IGNORED = ("num_batches_tracked", "pixel_mean", "pixel_std")  # counters, and what the configuration says


def find_weights(spec: str) -> Path:
    """The weight file that `spec` means: a path, or a Hugging Face repository (fetched once, then cached).

    Raises:
        InputError: there is no such file, or the repository cannot be fetched and is not in the cache.
    """
    if Path(spec).is_file():
        return Path(spec)
    if Path(spec).exists() or not REPOSITORY.fullmatch(spec):
        raise InputError(f"{spec}: no such weight file")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(spec, REPOSITORY_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{spec}: no such file here, and {REPOSITORY_FILE} of that Hugging Face repository could not be "
            f"fetched ({type(error).__name__}); fetch it where there is a network and give its path by --weights"
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by name: safetensors, or torch's format with tensors and plain data only.

    Raises:
        InputError: the file is damaged, of another format, or holds anything but tensors.
    """
    try:
        content = safetensors.torch.load_file(path) if _is_safetensors(path) else _read_torch(path)
    except Exception as error:  # the two readers raise many kinds on damaged files
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path}: not a readable weight file (safetensors, or torch's with tensors only): {reason}"
        ) from None
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(map(torch.is_tensor, state.values())):
        raise InputError(f"{path}: expected tensors by name, or an object whose key model holds them")
    return dict(state)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < path.stat().st_size


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def place_weights(model: nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    """Copy every tensor to its place in `model`.

    The anchors of a published checkpoint replace those of the configuration; today's Detectron2 would drop
    them silently.

    Raises:
        InputError: tensors are missing, left over or wrongly shaped; the message lists them.
    """
    places = model.state_dict()
    given = {name: tensor for name, tensor in state.items() if name in places or not name.endswith(IGNORED)}
    anchors = given.pop(ANCHORS, None)
    wanted = [name for name in places if not name.endswith("num_batches_tracked")]
    problems = {
        "missing": [name for name in wanted if name not in given],
        "left over": [name for name in given if name not in places],
        "wrongly shaped": [
            f"{name} {tuple(given[name].shape)}, expected {tuple(places[name].shape)}"
            for name in places
            if name in given and given[name].shape != places[name].shape
        ],
    }
    if anchors is not None:
        buffer = model.get_buffer(ANCHORS)
        if anchors.shape == buffer.shape:
            buffer.copy_(anchors)
        else:
            problems["wrongly shaped"].append(f"{ANCHORS} {tuple(anchors.shape)}, expected {tuple(buffer.shape)}")
    found = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if found:
        raise InputError(f"{source}: does not fit the configuration's network; {'; '.join(found)}")
    model.load_state_dict(given, strict=False)


def _some(names: list[str], shown: int = 4) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
