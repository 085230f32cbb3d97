"""Finding, reading and placing a detector's weights. Nothing in a weight file is ever run."""

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from data_tools.errors import InputError
from extract.detector.rpn import CaffeAnchorGenerator
from extract.weights.downloads import download
from extract.weights.formats import convert, ratio_by_ratio
from extract.weights.pickles import read_pickle

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME on the Hugging Face hub
REPOSITORY_FILE = "pytorch_model.bin"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
IGNORED = ("num_batches_tracked", "pixel_mean", "pixel_std")  # counters, and what the configuration says


def find_weights(spec: str) -> Path:
    """The weight file that `spec` means: a path, a URL, or a Hugging Face repository.

    What is fetched is fetched once, then cached.

    Raises:
        InputError: there is no such file, or it cannot be fetched and is not in the cache.
    """
    if Path(spec).is_file():
        return Path(spec)
    if spec.startswith(("http://", "https://")):
        return download(spec)
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
    """The tensors of a weight file by name, whatever its format: safetensors, torch's, or a pickle of arrays.

    Raises:
        InputError: the file is damaged, of another format, or holds anything but tensors.
    """
    content = _read_safetensors(path) if _is_safetensors(path) else read_pickle(path)
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path}: expected tensors by name, or an object whose key model holds them")
    return {_name(path, name): _tensor(path, name, value) for name, value in state.items()}


def _name(path: Path, name: object) -> str:
    if not isinstance(name, str):
        raise InputError(f"{path}: expected tensors by name, found the key {name!r}")
    return name.removeprefix("module.")  # what DataParallel puts before every name


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
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # a damaged file raises many kinds
        raise InputError(f"{path}: not a readable weight file: {' '.join(str(error).split())[:160]}") from None


@dataclass(frozen=True)
class _Misfit:
    missing: list[str]
    left_over: list[str]
    wrongly_shaped: list[str]

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "left over": self.left_over, "wrongly shaped": self.wrongly_shaped}
        return "; ".join(f"{kind}: {first_names(names)}" for kind, names in kinds.items() if names)


def place_weights(model: GeneralizedRCNN, state: dict[str, torch.Tensor], source: Path) -> None:
    """Copy every tensor to its place in `model`, whichever published format its names are of.

    Args:
        model: the network, changed in place.
        state: tensors as `read_weights` gives them.
        source: the file, for messages.

    Raises:
        InputError: tensors are missing, left over or wrongly shaped; the message lists them.
    """
    given = convert(state)
    anchors = _anchors(model.proposal_generator.anchor_generator, given.pop(ANCHORS, None), ratio_by_ratio(state))
    places = model.state_dict()
    given = {name: tensor for name, tensor in given.items() if name in places or not name.endswith(IGNORED)}
    wanted = [name for name in places if not name.endswith("num_batches_tracked")]
    misfit = _Misfit(
        missing=[name for name in wanted if name not in given],
        left_over=[name for name in given if name not in places],
        wrongly_shaped=[
            f"{name} {tuple(given[name].shape)}, expected {tuple(places[name].shape)}"
            for name in places
            if name in given and given[name].shape != places[name].shape
        ],
    )
    buffer = model.get_buffer(ANCHORS)
    if anchors.shape != buffer.shape:
        misfit.wrongly_shaped.append(f"{ANCHORS} {tuple(anchors.shape)}, expected {tuple(buffer.shape)}")
    if str(misfit):
        raise InputError(f"{source}: does not fit the configuration's network; {misfit}")
    model.load_state_dict(given, strict=False)
    buffer.copy_(anchors)


def first_names(names: list[str], shown: int = 4) -> str:
    """The first few of some names, and how many more there are, for a message."""
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _anchors(generator: DefaultAnchorGenerator, stored: torch.Tensor | None, by_ratio: bool) -> torch.Tensor:
    """(A, 4) the anchors of the channels of a file's region proposal layers.

    Detectron2's arithmetic takes the file's own (today's Detectron2 would drop them silently); Caffe's takes
    them where they are Caffe's in some order. Otherwise the generator's own are put in the file's order.
    """
    own = next(generator.cell_anchors.buffers())
    if stored is not None:
        caffe = isinstance(generator, CaffeAnchorGenerator)
        if not caffe or _same_rows(stored, own):
            return stored
    if not by_ratio:
        return own
    sizes = 1 if len(own) % 3 else len(own) // 3
    return own.view(sizes, -1, 4).transpose(0, 1).reshape(-1, 4)


def _same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    ordered, expected = (torch.tensor(sorted(rows.tolist())) for rows in (one.float(), other.float()))
    return torch.allclose(ordered, expected, atol=1e-3)
