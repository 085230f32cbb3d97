"""Caffe's weight files as Caffe writes them, for the tests to read: protocol buffers, written field by field."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch


@dataclass
class Layer:
    """A layer of a network: `eps` of a batch norm, where it is written."""

    name: str
    type: str
    blobs: list[np.ndarray] = field(default_factory=list)
    eps: float | None = None


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def number(tag: int, value: int) -> bytes:
    return varint(tag << 3) + varint(value)


def nested(tag: int, content: bytes) -> bytes:
    return varint(tag << 3 | 2) + varint(len(content)) + content


def singles(tag: int, values: np.ndarray) -> bytes:
    """Each number with its own tag, as protocol buffers allow."""
    key = varint(tag << 3 | (5 if values.dtype.itemsize == 4 else 1))
    rows = np.empty((values.size, len(key) + values.itemsize), np.uint8)
    rows[:, : len(key)] = np.frombuffer(key, np.uint8)
    rows[:, len(key) :] = np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8)
    return rows.tobytes()


def blob(array: np.ndarray, form: str = "packed", shape: Sequence[int] | None = None) -> bytes:
    """A BlobProto: packed, singles, double, legacy (four sides), diff (gradients too)."""
    sides = array.shape if shape is None else shape
    data = array.astype("<f4")
    if form == "legacy":
        four = [1] * (4 - len(sides)) + list(sides)
        return b"".join(number(tag + 1, side) for tag, side in enumerate(four)) + nested(5, data.tobytes())
    content = {
        "packed": lambda: nested(5, data.tobytes()),
        "singles": lambda: singles(5, data),
        "double": lambda: nested(8, array.astype("<f8").tobytes()),
        "double singles": lambda: singles(8, array.astype("<f8")),
        "diff": lambda: nested(5, data.tobytes()) + nested(6, data.tobytes()),
    }[form]()
    return content + nested(7, nested(1, b"".join(map(varint, sides))))


def layer_message(layer: Layer, form: str = "packed") -> bytes:
    message = nested(1, layer.name.encode()) + nested(2, layer.type.encode())
    message += nested(3, b"below") + nested(4, layer.name.encode())
    message += nested(6, varint(3 << 3 | 5) + np.float32(0).tobytes())  # param { lr_mult: 0 }
    message += b"".join(nested(7, blob(array, form)) for array in layer.blobs)
    if layer.eps is not None:
        message += nested(139, varint(3 << 3 | 5) + np.float32(layer.eps).tobytes())
    return message


def network(layers: Iterable[Layer], form: str = "packed") -> bytes:
    """A NetParameter with a name, an input and its shape."""
    head = nested(1, b"ResNet-101") + nested(3, b"data") + nested(8, nested(1, bytes([1, 3, 224, 224 & 0x7F])))
    return head + b"".join(nested(100, layer_message(layer, form)) for layer in layers)


def write(path: Path, layers: Iterable[Layer], form: str = "packed") -> Path:
    """A file, layer by layer."""
    with path.open("wb") as file:
        file.write(network([]))
        for layer in layers:
            file.write(nested(100, layer_message(layer, form)))
    return path


# The published network

_HEADS = {
    "proposal_generator.rpn_head.conv": ("rpn_conv/3x3", "Convolution"),
    "proposal_generator.rpn_head.objectness_logits": ("rpn_cls_score", "Convolution"),
    "proposal_generator.rpn_head.anchor_deltas": ("rpn_bbox_pred", "Convolution"),
    "roi_heads.box_predictor.cls_score": ("cls_score", "InnerProduct"),
    "roi_heads.box_predictor.bbox_pred": ("bbox_pred", "InnerProduct"),
    "roi_heads.box_predictor.cls_embed": ("cls_embedding", "Embed"),
    "roi_heads.box_predictor.attr_linear1": ("fc_attr", "InnerProduct"),
    "roi_heads.box_predictor.attr_linear2": ("attr_score", "InnerProduct"),
}
_BRANCH = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}


def short_name(module: str) -> str:
    """What follows `res`, `bn` and `scale` in Caffe's names of ResNet-101: 2c_branch1, 4b22_branch2a, _conv1."""
    if module == "backbone.stem.conv1":
        return "_conv1"
    stage, block, part = re.findall(r"res(\d)\.(\d+)\.(\w+)$", module)[0]
    place = f"b{block}" if stage in "34" and block != "0" else "abc"[int(block)]
    return f"{stage}{place}_{_BRANCH[part]}"


def layers_of(state: dict[str, torch.Tensor], seed: int = 2) -> list[Layer]:
    """The layers of MILVLG-caffe tensors, the batch norms with random scale factors, and some without weights."""
    rng = np.random.default_rng(seed)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    layers = [Layer("input", "Python")]
    for name in arrays:
        module = name.removesuffix(".weight")
        if module == name or module.endswith(".norm"):
            continue
        weights = [arrays[f"{module}.{kind}"] for kind in ("weight", "bias") if f"{module}.{kind}" in arrays]
        if f"{module}.norm.weight" not in arrays:
            layers.append(Layer(*_HEADS[module], weights))
            continue
        short = short_name(module)
        factor = np.float32(rng.choice([1.0, 999.98, 0.25, 37.5]))
        gamma, beta = (arrays[f"{module}.norm.{kind}"] for kind in ("weight", "bias"))
        mean, variance = (factor * arrays[f"{module}.norm.{kind}"] for kind in ("running_mean", "running_var"))
        layers += [
            Layer("conv1" if short == "_conv1" else f"res{short}", "Convolution", weights),
            Layer(f"bn{short}", "BatchNorm", [mean, variance, np.array([factor])]),
            Layer(f"scale{short}", "Scale", [gamma, beta]),
            Layer(f"res{short}_relu", "ReLU"),
        ]
    return layers
