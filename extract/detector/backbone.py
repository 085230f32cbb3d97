"""The ResNet of the Caffe-trained detector: Detectron2's with another pooling in the stem."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicStem


class CaffeStem(BasicStem):
    """Stem whose 3 x 3 max-pooling has no padding and rounds its output size up, as Caffe's layer does."""

    pooling: ClassVar[dict[str, Any]] = {"padding": 0, "ceil_mode": True}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, C, about H/4, about W/4)."""
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, **self.pooling)


@BACKBONE_REGISTRY.register()
def build_caffe_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet of the config, with `CaffeStem`."""
    backbone = build_resnet_backbone(cfg, input_shape)
    stem = CaffeStem(input_shape.channels, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM)
    backbone.stem = stem.freeze() if cfg.MODEL.BACKBONE.FREEZE_AT >= 1 else stem
    return backbone
