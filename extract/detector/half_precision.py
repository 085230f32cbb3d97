"""The network for inference in half precision: weights converted once, and fewer passes over its maps.

Batch norm is folded into the convolutions before it, in float64. On a GPU what follows a convolution of a residual
block, the residual sum and the ReLU, is part of the same operator of cuDNN. Elsewhere, and where cuDNN cannot do
that, the same folded weights are convolved and the rest follows. The float32 network keeps the reference's order.

The network still runs under autocast (extract/detector/precision.py), which finds nothing to convert but its input
and the features that the linear layers take. What autocast leaves in float32, it still leaves.

Shapes: B maps of C channels, h x w.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn

from data_tools.errors import one_line
from extract.detector.backbone import CaffeStem
from extract.detector.network import BottomUpAttention

SIZES = ("kernel_size", "stride", "padding", "dilation", "groups")
BATCH_NORMS = FrozenBatchNorm2d | nn.BatchNorm2d


def in_half_precision(network: BottomUpAttention, kind: torch.dtype) -> BottomUpAttention:
    """A copy for inference whose convolutions and linear layers have weights of this type, batch norm folded.

    The network itself is left as it is. The copy shares what stays in float32: embeddings, norms of other kinds.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(network.parameters(), network.buffers())}
    converted: BottomUpAttention = _converted(copy.deepcopy(network, shared), kind)
    return converted


def _converted(module: nn.Module, kind: torch.dtype) -> Any:
    """The module, changed in place, or what replaces it."""
    replacement = _REPLACEMENTS.get(type(module))
    if replacement and all(_is_foldable(layer) for layer in module.modules() if isinstance(layer, nn.Conv2d)):
        return replacement(module, kind)
    if isinstance(module, nn.Conv2d) and (_norm(module) or _activation(module)) and _is_foldable(module):
        return FoldedConvolution(module, *folded(module), kind, relu=_activation(module) is not None)
    if isinstance(module, nn.Conv2d | nn.Linear):
        for name, weight in [*module.named_parameters(recurse=False)]:
            setattr(module, name, _frozen(weight, kind))
    for name, child in [*module.named_children()]:
        setattr(module, name, _converted(child, kind))
    return module


def _is_foldable(layer: nn.Conv2d) -> bool:
    return isinstance(_norm(layer), BATCH_NORMS | None) and isinstance(_activation(layer), nn.ReLU | None)


def _norm(layer: nn.Conv2d) -> Any:
    """Of a layer of Detectron2; PyTorch's has none."""
    return getattr(layer, "norm", None)


def _activation(layer: nn.Conv2d) -> Any:
    return getattr(layer, "activation", None)


def _frozen(weight: Tensor, kind: torch.dtype) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(kind), requires_grad=False)


@torch.no_grad()
def folded(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias (C,) in float64 of the convolution that does what a layer does with its batch norm.

    With y = convolution(x): (y - mean) / sqrt(variance + eps) * weight + bias.
    """
    weight = layer.weight.double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.double()
    norm = _norm(layer)
    if norm is None:
        return weight, bias
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight * scale[:, None, None, None], (bias - norm.running_mean.double()) * scale + norm.bias.double()


class FoldedConvolution(nn.Conv2d):
    """A convolution and the ReLU after it, if there is one, with a residual sum between them.

    Args:
        layer: whose sizes it has.
        weight: of the convolution.
        bias: (C,), or None, with which there is no residual sum.
        kind: the type of weight and maps. The bias stays in float32, except where cuDNN adds it.
        relu: whether the result is max(0, x).
    """

    def __init__(
        self, layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, kind: torch.dtype, relu: bool = False
    ) -> None:
        sizes: dict[str, Any] = {name: getattr(layer, name) for name in ("in_channels", "out_channels", *SIZES)}
        super().__init__(**sizes, bias=False, device="meta")  # allocates and draws nothing
        self._relu = relu
        self._settings: Any = layer.stride, layer.padding, layer.dilation, layer.groups
        self.weight = _frozen(weight, kind)
        device = self.weight.device
        self._fuses = relu and device.type == "cuda" and _fuses(device, kind, weight.shape, self._settings)
        if bias is not None:
            self.bias = _frozen(bias, kind if self._fuses else _widest(kind))

    def forward(self, maps: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w'); `added` has the result's shape and type."""
        maps = maps.to(self.weight.dtype)
        if self._fuses:
            return _convolved(maps, self.weight, self.bias, added, self._settings)
        result = F.conv2d(maps, self.weight, None, *self._settings)
        if self.bias is not None:
            bias = self.bias[:, None, None]
            result.add_(bias if added is None else added + bias)  # rounded once
        return result.relu_() if self._relu else result


def _widest(kind: torch.dtype) -> torch.dtype:
    """The type in which a bias is added to numbers of this type."""
    return torch.promote_types(kind, torch.float32)


def _convolved(maps: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None, settings: Any) -> Tensor:
    if added is None:
        return torch.cudnn_convolution_relu(maps, weight, bias, *settings)
    return torch.cudnn_convolution_add_relu(maps, weight, added, 1.0, bias, *settings)


@cache
def _fuses(device: torch.device, kind: torch.dtype, shape: torch.Size, settings: Any) -> bool:
    """Whether cuDNN has right fused operators for a convolution with a weight of this shape, tried once.

    Without a sum it is given its result's memory to add zero times: NaNs that lie there must not come through.
    """
    channels, groups = shape[1] * settings[-1], settings[-1]

    def waves(*sizes: int, period: float = 1.0) -> Tensor:
        numbers = torch.arange(math.prod(sizes), device=device).view(sizes)
        return (numbers * period).sin().to(kind).contiguous(memory_format=torch.channels_last)

    weight, bias = waves(*shape) / (channels // groups), waves(shape[0], 1, 1, 1).flatten()
    maps = waves(2, channels, 16, 16, period=0.7)
    product = F.conv2d(maps, weight, None, *settings).float() + bias.float()[:, None, None]
    try:
        for added in (None, waves(*product.shape)):
            expected = (product if added is None else product + added).relu()
            torch.full_like(product, torch.nan, dtype=kind)  # what the allocator gives to the result
            error = (_convolved(maps, weight, bias, added, settings).float() - expected).abs()
            if not (error <= 0.05 + 0.05 * expected).all():  # a NaN is not
                raise RuntimeError("cuDNN's result is wrong")
    except Exception as failure:
        warnings.warn(
            f"a convolution of the detector runs without its ReLU and is slower: {one_line(failure)}", stacklevel=2
        )
        return False
    return True


class ResidualBlock(nn.Module):
    """Detectron2's `BottleneckBlock` or `BasicBlock`; the shortcut's bias is part of the last convolution's."""

    def __init__(self, block: BottleneckBlock | BasicBlock, kind: torch.dtype) -> None:
        super().__init__()
        *first, last = [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
        weight, bias = folded(last)
        self.shortcut = None
        if block.shortcut is not None:
            of_shortcut, additional = folded(block.shortcut)
            self.shortcut = FoldedConvolution(block.shortcut, of_shortcut, None, kind)
            bias = bias + additional
        self.first = nn.Sequential(*(FoldedConvolution(layer, *folded(layer), kind, relu=True) for layer in first))
        self.last = FoldedConvolution(last, weight, bias, kind, relu=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        return self.last(self.first(maps), maps if self.shortcut is None else self.shortcut(maps))


class Stem(nn.Module):
    """The stem of Detectron2 or Caffe, with bias and ReLU after the maxima, where they are a quarter of the work.

    Neither changes which number is the largest. The ReLU is not the convolution's: for 7 x 7 and three channels
    cuDNN's fused operator has been slow (pytorch/pytorch#68506).
    """

    def __init__(self, stem: BasicStem, kind: torch.dtype) -> None:
        super().__init__()
        weight, bias = folded(stem.conv1)
        self.conv1 = FoldedConvolution(stem.conv1, weight, None, kind)
        self.bias = _frozen(bias[:, None, None], _widest(kind))
        self._pooling = stem.pooling if isinstance(stem, CaffeStem) else {"padding": 1}

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, about H/4, about W/4)."""
        largest = F.max_pool2d(self.conv1(maps), kernel_size=3, stride=2, **self._pooling)
        return largest.add_(self.bias).relu_()


_REPLACEMENTS: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {
    BottleneckBlock: ResidualBlock,
    BasicBlock: ResidualBlock,
    BasicStem: Stem,
    CaffeStem: Stem,
}
