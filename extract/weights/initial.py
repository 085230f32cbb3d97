"""The weights that training starts from: an ImageNet ResNet, or a whole detector.

Files of a ResNet name their tensors in one of three ways: as blobs of Caffe2 (Detectron2's `MSRA/R-50.pkl`,
`MSRA/R-101.pkl`, `X-152-32x8d-IN5k.pkl`), as torchvision does, or as Detectron2 does.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from torch import nn

from data_tools.errors import InputError
from data_tools.weights.tensor_names import tensor_differences
from extract.weights.locating import sha256_of
from extract.weights.placing import place_weights
from extract.weights.reading import read_weights

_BACKBONE, _RES5 = "backbone.", "roi_heads.res5."
_LAYER = re.compile(r"(stem|res[2-5])\.")
_UNUSED = ("stem.conv1.bias", "num_batches_tracked")  # a bias before a batch norm adds nothing to it
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class InitialWeights:
    """What training started from.

    Attributes:
        file, sha256: the weight file.
        kind: what it holds: `detector`, or the naming of its ResNet: `caffe2`, `torchvision`, `detectron2`.
        placed: how many tensors of the network it gave.
        random: how many tensors kept the values that the network was built with.
    """

    file: str
    sha256: str
    kind: str
    placed: int
    random: int

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def place_initial_weights(model: nn.Module, source: Path) -> InitialWeights:
    """Copy the tensors of a file to their places in `model`: all of a detector's, a ResNet's to backbone and res5.

    Where the batch norms of a ResNet's file have scale and bias only, their statistics keep 0 and 1.

    Raises:
        InputError: the file cannot be read or holds neither, or tensors of the network's ResNet are missing,
            unexpected or of a wrong shape; the message lists them.
    """
    state = read_weights(source)
    places = {name: place for name, place in model.state_dict().items() if not name.endswith(_UNUSED)}
    if any(name.startswith((_BACKBONE, "proposal_generator.", "roi_heads.")) for name in state):
        place_weights(model, state, source)
        return InitialWeights(str(source), sha256_of(source), "detector", len(places), 0)
    kind = _kind(state, source)
    given = _by_place(_RENAME[kind](state))
    _check(given, places, source)
    with torch.no_grad():
        for name, tensor in given.items():
            places[name].copy_(tensor)
    return InitialWeights(str(source), sha256_of(source), kind, len(given), len(places) - len(given))


def _kind(state: Mapping[str, torch.Tensor], source: Path) -> str:
    for kind, name in (
        ("caffe2", "res2_0_branch2a_w"),
        ("torchvision", "layer1.0.conv1.weight"),
        ("detectron2", "res2.0.conv1.weight"),
    ):
        if name in state:
            return kind
    some = ", ".join(list(state)[:3])
    raise InputError(
        f"{source}: expected a detector, or a ResNet of Caffe2, torchvision or Detectron2; found {some}"
    )


def _from_caffe2(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    blobs = [name for name in state if not name.endswith("_momentum")]
    return {name: state[blob] for name, blob in zip(convert_basic_c2_names(blobs), blobs, strict=True)}


def _from_torchvision(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Detectron2's names by the rule of its tools/convert-torchvision-to-d2.py."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
        name = re.sub(r"^layer([1-4])\.", lambda match: f"res{int(match[1]) + 1}.", name)
        name = re.sub(r"\bbn([1-3])\.", r"conv\1.norm.", name)
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        renamed[name] = tensor
    return renamed


_RENAME: dict[str, Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "caffe2": _from_caffe2,
    "torchvision": _from_torchvision,
    "detectron2": dict,
}


def _by_place(named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The layers of the ResNet by their place in a C4 detector; the classifier behind them is left out."""
    return {
        _RES5 + name.removeprefix("res5.") if name.startswith("res5.") else _BACKBONE + name: tensor
        for name, tensor in named.items()
        if _LAYER.match(name) and not name.endswith(_UNUSED)
    }


def _check(given: dict[str, torch.Tensor], places: Mapping[str, torch.Tensor], source: Path) -> None:
    """Raise `InputError` where a file's ResNet is not the network's."""
    expected = {name: place.shape for name, place in places.items() if name.startswith((_BACKBONE, _RES5))}
    if not any(name.endswith(_STATISTICS) for name in given):
        expected = {name: shape for name, shape in expected.items() if not name.endswith(_STATISTICS)}
    different = tensor_differences({name: tensor.shape for name, tensor in given.items()}, expected)
    if different:
        raise InputError(f"{source}: its ResNet is not the configuration's; {different}")
