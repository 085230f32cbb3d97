"""Caffe's own weight files of bottom-up attention (peteanderson80/bottom-up-attention), as MILVLG names tensors.

Layers are named as in `models/vg/ResNet-101/faster_rcnn_end2end_final/test.prototxt` there. Caffe has two layers
for a batch norm: `BatchNorm` (mean and variance, each to be divided by a third blob, the scale factor) and `Scale`
(weight and bias). The conventions for objectness, background and boxes are those of MILVLG's Caffe-trained files,
which extract/weights/formats.py converts: the box layer is in plain units too, since the training code took the
normalisation of its targets out of every snapshot.
"""

import re
from pathlib import Path

import numpy as np
import torch

from data_tools.errors import InputError
from data_tools.weights.caffe_files import DEFAULT_EPS, CaffeLayer, read_caffe_file

_RPN, _HEAD = "proposal_generator.rpn_head", "roi_heads.box_predictor"
_PLACES = {
    "conv1": "backbone.stem.conv1",
    "rpn_conv/3x3": f"{_RPN}.conv",
    "rpn_cls_score": f"{_RPN}.objectness_logits",
    "rpn_bbox_pred": f"{_RPN}.anchor_deltas",
    "cls_score": f"{_HEAD}.cls_score",
    "bbox_pred": f"{_HEAD}.bbox_pred",
    "cls_embedding": f"{_HEAD}.cls_embed",
    "fc_attr": f"{_HEAD}.attr_linear1",
    "attr_score": f"{_HEAD}.attr_linear2",
}
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_CONVOLUTION = re.compile(r"res([2-5])([a-z])([0-9]{0,3})_branch(1|2a|2b|2c)")  # res2c, or res4b22 where many
_NORM = re.compile(r"(?:bn|scale)(?:_(conv1)|([2-5].*))")
_RANKS = {"InnerProduct": 2, "Embed": 2}  # of the weight; old files give every blob four sides, ones first


def read_caffe_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.caffemodel` under the names of MILVLG's Caffe-trained files.

    Batch norms become weight, bias, running_mean and running_var for an eps of 1e-5. Layers that the detector does
    not have keep their names, for messages.

    Raises:
        InputError: see `read_caffe_file`; or the blobs of a layer are not those of its type, or two layers have
            the same place.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in read_caffe_file(path).items():
        try:
            found = _statistics(layer) if layer.type == "BatchNorm" else _weight_and_bias(layer)
        except ValueError as error:
            raise InputError(f"{path}: layer {name!r}: {error}") from None
        for kind, array in found.items():
            place = f"{_place(name)}.{kind}"
            if place in tensors:
                raise InputError(f"{path}: layer {name!r}: another layer has its place, {place}")
            tensors[place] = torch.from_numpy(array)
    return tensors


def _place(name: str) -> str:
    """A layer's name in the network: `bn4b22_branch2a` is `backbone.res4.22.conv1.norm`."""
    if name in _PLACES:
        return _PLACES[name]
    if norm := _NORM.fullmatch(name):
        convolution = norm[1] or f"res{norm[2]}"
        place = _place(convolution)
        return name if place == convolution else f"{place}.norm"
    if found := _CONVOLUTION.fullmatch(name):
        stage, letter, number, branch = found.groups()
        block = int(number) if number else ord(letter) - ord("a")
        parent = "roi_heads" if stage == "5" else "backbone"
        return f"{parent}.res{stage}.{block}.{_BRANCHES[branch]}"
    return name


def _weight_and_bias(layer: CaffeLayer) -> dict[str, np.ndarray]:
    """Of a convolution, a linear layer, an embedding (without bias), or Caffe's `Scale`."""
    if len(layer.blobs) > 2:
        raise ValueError(f"expected a weight and a bias, found {len(layer.blobs)} blobs")
    weight, *bias = layer.blobs
    if layer.type == "Scale":
        weight = weight.reshape(-1)
    while weight.ndim > _RANKS.get(layer.type, weight.ndim) and weight.shape[0] == 1:
        weight = weight[0]
    return {"weight": weight, "bias": bias[0].reshape(-1)} if bias else {"weight": weight}


def _statistics(layer: CaffeLayer) -> dict[str, np.ndarray]:
    """The (C,) running_mean and running_var of a batch norm; a scale factor of 0 makes both 0, as in Caffe."""
    if len(layer.blobs) != 3 or layer.blobs[2].size != 1 or layer.blobs[0].size != layer.blobs[1].size:
        shapes = ", ".join(str(blob.shape) for blob in layer.blobs)
        raise ValueError(f"expected mean, variance and scale factor of a batch norm, found blobs of {shapes}")
    mean, variance, factor = (blob.reshape(-1) for blob in layer.blobs)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        inverse = np.where(factor == 0, np.float32(0), 1 / factor)
        mean, variance = mean * inverse, variance * inverse
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance + layer.eps > 0).all()):
        raise ValueError("the mean or variance of a batch norm is not finite, or the variance negative")
    if layer.eps != DEFAULT_EPS:
        variance = variance + np.float32(layer.eps - DEFAULT_EPS)
    return {"running_mean": mean, "running_var": variance}
