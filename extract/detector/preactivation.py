"""The ResNet whose blocks normalise their input (He et al. 2016, "Identity mappings in deep residual networks").

MILVLG's Caffe-trained R-152 (`bua-caffe-frcn-r152.pth`) has it: a batch norm on the pixels, no activation after an
addition, and a batch norm and ReLU before the region proposals and after res5. Batch norms have MXNet's epsilon,
and are frozen: the network is for inference.

Shapes: B images or regions, C channels, (h, w) sides of a map.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import ResNet
from torch import nn

NAME = "build_preactivation_resnet_backbone"
EPS = 2e-5
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of res2 to res5


class NormReLU(FrozenBatchNorm2d):
    """Batch norm and ReLU of a (B, C, h, w) map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> the same."""
        return F.relu_(super().forward(x))


class NormedConv(nn.Conv2d):
    """A convolution of the normalised and activated input; without a bias."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = NormReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, out_channels, about h / stride, about w / stride)."""
        return super().forward(self.norm(x))


class PreactivationBlock(CNNBlockBase):
    """A bottleneck with its batch norms before the convolutions; the 3 x 3 convolution has the stride.

    Args:
        channels: of the input.
        out_channels: of the output; the shortcut is a convolution where they differ from the input's.
        inside: channels of the 3 x 3 convolution.
        stride: of the block.
        activated: the input is normalised and activated already, as res5's is.
    """

    def __init__(
        self, channels: int, out_channels: int, inside: int, stride: int, activated: bool = False
    ) -> None:
        super().__init__(channels, out_channels, stride)
        self.norm = None if activated else NormReLU(channels)
        self.conv1 = nn.Conv2d(channels, inside, 1, bias=False)
        self.conv2 = NormedConv(inside, inside, 3, stride)
        self.conv3 = NormedConv(inside, out_channels, 1)
        changes = channels != out_channels
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, out_channels, about h / stride, about w / stride)."""
        active = x if self.norm is None else self.norm(x)
        y = self.conv3(self.conv2(self.conv1(active)))
        return y + (x if self.shortcut is None else self.shortcut(active))


class PreactivationStem(CNNBlockBase):
    """A batch norm of the pixels, a 7 x 7 convolution with batch norm and ReLU, and Caffe's pooling."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 4)
        self.norm = FrozenBatchNorm2d(channels, eps=EPS)
        self.conv1 = Conv2d(channels, out_channels, 7, 2, padding=3, bias=False, norm=NormReLU(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, about H/4, about W/4)."""
        x = self.conv1(self.norm(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=0, ceil_mode=True)


class PreactivationResNet(ResNet):
    """Stem to res4; the map is normalised and activated at the end."""

    def __init__(self, stem: PreactivationStem, stages: list[list[PreactivationBlock]]) -> None:
        super().__init__(stem, stages, out_features=["res4"])
        self.norm = NormReLU(stages[-1][-1].out_channels)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) -> `res4`: (B, C, about H/16, about W/16)."""
        return {name: self.norm(features) for name, features in super().forward(x).items()}


def make_stage(cfg: CfgNode, number: int, activated: bool = False) -> list[PreactivationBlock]:
    """The blocks of res2 to res5, which `number` 0 to 3 means; the first one's input may be activated already."""
    resnet = cfg.MODEL.RESNETS
    inside, outside = resnet.WIDTH_PER_GROUP << number, resnet.RES2_OUT_CHANNELS << number
    channels = outside // 2 if number else resnet.STEM_OUT_CHANNELS
    first = PreactivationBlock(channels, outside, inside, 2 if number else 1, activated)
    return [
        first,
        *(PreactivationBlock(outside, outside, inside, 1) for _ in range(BLOCKS[resnet.DEPTH][number] - 1)),
    ]


@BACKBONE_REGISTRY.register()
def build_preactivation_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Stem to res4 of the configuration."""
    stem = PreactivationStem(input_shape.channels, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS)
    return PreactivationResNet(stem, [make_stage(cfg, number) for number in range(3)])


def build_res5(cfg: CfgNode) -> tuple[nn.Module, int]:
    """Res5 of a region's activated map, with a batch norm and ReLU at the end, and its channels."""
    blocks = make_stage(cfg, 3, activated=True)
    channels = blocks[-1].out_channels
    return nn.Sequential(*blocks, NormReLU(channels)), channels
