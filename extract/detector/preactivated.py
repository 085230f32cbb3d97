"""The pre-activated ResNet-152 of MILVLG's `bua-caffe-frcn-r152.pth` (He et al. 2016, "Identity Mappings").

Batch norm and ReLU come before a convolution, not after it, and nothing follows the residual sum. The images are
normalised by a batch norm of the network, not by the configuration. The region proposals and res5 take the map
after the norm and the ReLU with which res5 begins, so these belong to the backbone here (`norm`), and res5's first
block has none; the norm after the last block is the last part of res5. extract/weights/formats.py renames a file's
tensors accordingly.
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import CNNBlockBase
from torch import nn

from extract.detector.backbone import CaffeStem

NAME = "build_preactivated_resnet_backbone"  # the function of this name below
EPSILON = 2e-5  # of every batch norm
BLOCKS = {50: (3, 4, 6), 101: (3, 4, 23), 152: (3, 8, 36)}  # of res2 to res4, by depth; res5 has three


class Activation(FrozenBatchNorm2d):
    """Batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> the same."""
        return F.relu(super().forward(x))


class PreactivatedBlock(CNNBlockBase):
    """A bottleneck: norm, ReLU, 1 x 1; norm, ReLU, 3 x 3; norm, ReLU, 1 x 1; the stride is in the 3 x 3.

    Args:
        in_channels, out_channels, bottleneck_channels: before, after and within.
        stride: of the block.
        activated: whether what comes in has passed norm and ReLU already, so that the block has no first norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        activated: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.norm1 = nn.Identity() if activated else Activation(in_channels)
        self.conv1 = nn.Conv2d(in_channels, bottleneck_channels, 1, bias=False)
        self.norm2 = Activation(bottleneck_channels)
        self.conv2 = nn.Conv2d(bottleneck_channels, bottleneck_channels, 3, stride, padding=1, bias=False)
        self.norm3 = Activation(bottleneck_channels)
        self.conv3 = nn.Conv2d(bottleneck_channels, out_channels, 1, bias=False)
        changes = in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C', h', w'). The shortcut's convolution takes the activated map."""
        activated = self.norm1(x)
        residual = self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(activated)))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class NormalisingStem(CaffeStem):
    """Caffe's stem after a batch norm of the image."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, lambda channels: FrozenBatchNorm2d(channels, EPSILON))
        self.norm = FrozenBatchNorm2d(in_channels, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, about H/4, about W/4)."""
        return super().forward(self.norm(x))


class PreactivatedResNet(ResNet):
    """Detectron2's ResNet with norm and ReLU after its last stage."""

    def __init__(self, stem: CNNBlockBase, stages: list[list[CNNBlockBase]], freeze_at: int) -> None:
        super().__init__(stem, stages, out_features=["res4"], freeze_at=freeze_at)
        self.norm = Activation(stages[-1][-1].out_channels)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) -> `res4`, (B, C, about H/16, about W/16)."""
        return {name: self.norm(maps) for name, maps in super().forward(x).items()}


@BACKBONE_REGISTRY.register()
def build_preactivated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PreactivatedResNet:
    """The stem and res2 to res4."""
    stem = NormalisingStem(input_shape.channels, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS)
    stages = [_stage(cfg, number, count) for number, count in enumerate(BLOCKS[cfg.MODEL.RESNETS.DEPTH])]
    return PreactivatedResNet(stem, stages, cfg.MODEL.BACKBONE.FREEZE_AT)


def res5(cfg: CfgNode) -> tuple[nn.Module, int]:
    """res5, of stride 2, with the network's last norm and ReLU; and the number of its channels."""
    blocks = _stage(cfg, 3, 3, activated_per_block=[True, False, False])
    dim = blocks[-1].out_channels
    return nn.Sequential(*blocks, Activation(dim)), dim


def _stage(cfg: CfgNode, number: int, count: int, **arguments: Any) -> list[CNNBlockBase]:
    """The blocks of res2 (`number` 0) to res5 (3)."""
    resnet = cfg.MODEL.RESNETS
    out_channels = resnet.RES2_OUT_CHANNELS << number
    return ResNet.make_stage(
        PreactivatedBlock,
        count,
        stride_per_block=[1 if number == 0 else 2, *[1] * (count - 1)],
        in_channels=resnet.STEM_OUT_CHANNELS if number == 0 else out_channels // 2,
        bottleneck_channels=resnet.WIDTH_PER_GROUP << number,
        out_channels=out_channels,
        **arguments,
    )
