"""The region heads of bottom-up attention: res5 per region, class and box predictions, and attributes.

Shapes: R regions of all images of a batch, D channels of res5, C object classes, A attributes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from extract.detector import preactivation, region_pooling
from extract.detector.boxes import INCLUSIVE_TRANSFORMS

CPU_GROUP = 4 * 1024 * 14 * 14  # numbers that pass res5 together on a CPU: four such regions fit a cache


@dataclass(frozen=True)
class RegionOutputs:
    """The predictions of the heads for regions.

    Attributes:
        features: (R, D) mean of res5 over each region.
        class_logits: (R, C + 1), background last.
        box_deltas: (R, 4 C), or (R, 4) of a class-agnostic box layer, in the coding of `box2box_transform`.
        attribute_probabilities: (R, A), without "none".
    """

    features: torch.Tensor
    class_logits: torch.Tensor
    box_deltas: torch.Tensor
    attribute_probabilities: torch.Tensor


class AttributePredictor(FastRCNNOutputLayers):
    """Detectron2's class and box layers, and the attribute layers of Anderson et al. (2018).

    An attribute is predicted from the region's feature and an embedding of its class: the true class in
    training, the most probable one otherwise. Layer names are those of airsplay's and
    Hugging Face's checkpoints.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_attributes: int,
        none: str,
        attribute_weight: float,
        attribute_dims: tuple[int, int] | None = None,
        of_background: bool = True,
        **kwargs: Any,
    ):
        """Build the layers.

        Args:
            input_shape: channels of a region's feature.
            num_attributes: A, without "none".
            none: treatment of the attribute "none", the last output: `dropped` before the softmax
                (airsplay, Hugging Face), `counted` in the softmax and then left out (Caffe), or `absent` from
                the layer (MILVLG's Detectron2-trained files).
            attribute_weight: factor of the loss.
            attribute_dims: numbers of a class's embedding, and of the hidden layer; None for an eighth and a
                quarter of the channels.
            of_background: whether the most probable class may be the background; VinVL takes the most probable
                of the others.
            kwargs: for Detectron2's layers.
        """
        super().__init__(input_shape, **kwargs)
        dim = input_shape.channels
        embedded, hidden = attribute_dims or (dim // 8, dim // 4)
        self.num_attributes, self.none, self.of_background = num_attributes, none, of_background
        self.attribute_weight = attribute_weight
        self.cls_embedding = nn.Embedding(self.num_classes + 1, embedded)
        self.fc_attr = nn.Linear(dim + embedded, hidden)
        self.attr_score = nn.Linear(hidden, num_attributes + (none != "absent"))
        nn.init.normal_(self.cls_embedding.weight, std=0.01)
        nn.init.normal_(self.attr_score.weight, std=0.01)
        nn.init.zeros_(self.attr_score.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Translate the config into the arguments of `__init__`."""
        arguments = super().from_config(cfg, input_shape)
        inclusive = INCLUSIVE_TRANSFORMS.get(cfg.MODEL.PROPOSAL_GENERATOR.NAME)
        if inclusive is not None:
            arguments["box2box_transform"] = inclusive(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS)
        arguments["num_attributes"] = cfg.MODEL.ROI_ATTRIBUTE_HEAD.NUM_ATTRIBUTES
        arguments["none"] = cfg.MODEL.ROI_ATTRIBUTE_HEAD.NONE
        arguments["of_background"] = cfg.MODEL.ROI_ATTRIBUTE_HEAD.OF_BACKGROUND
        arguments["attribute_weight"] = cfg.MODEL.ROI_ATTRIBUTE_HEAD.LOSS_WEIGHT
        arguments["attribute_dims"] = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 2
        return arguments

    def attribute_logits(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Score the attributes of regions of the given classes: (R, D), (R,) -> (R, A), or A + 1, "none" last."""
        joint = torch.cat([features, self.cls_embedding(classes)], dim=1)
        return self.attr_score(F.relu(self.fc_attr(joint)))

    def attribute_probabilities(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(R, A) probabilities without "none"; where "none" is counted, rows add up to one minus its share."""
        logits = self.attribute_logits(features, classes).float()
        if self.none == "counted":
            return logits.softmax(dim=1)[:, : self.num_attributes]
        return logits[:, : self.num_attributes].softmax(dim=1)

    def attribute_loss(self, features: torch.Tensor, proposals: list[Instances]) -> torch.Tensor:
        """Cross-entropy averaged over an object's attributes, then over the objects that have any."""
        classes = torch.cat([p.gt_classes for p in proposals])
        targets = torch.cat(
            [p.gt_attributes if p.has("gt_attributes") else self._no_attributes(p) for p in proposals]
        )
        labelled = (classes >= 0) & (classes < self.num_classes) & (targets.sum(dim=1) > 0)
        if not labelled.any():
            # every parameter stays in the graph, as distributed training needs
            return self.attribute_logits(features, classes.clamp(0, self.num_classes)).sum() * 0
        logits = self.attribute_logits(features[labelled], classes[labelled])[:, : self.num_attributes]
        shares = targets[labelled] / targets[labelled].sum(dim=1, keepdim=True)
        return self.attribute_weight * F.cross_entropy(logits, shares)

    def _no_attributes(self, proposals: Instances) -> torch.Tensor:
        return torch.zeros(len(proposals), self.num_attributes, device=proposals.gt_classes.device)


@ROI_HEADS_REGISTRY.register()
class BUTDROIHeads(Res5ROIHeads):
    """Detectron2's C4 heads with attributes, and with Caffe's res5 of stride 1 where RES5_DILATION is 2."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate the config into the arguments of `__init__`."""
        arguments = super().from_config(cfg, input_shape)
        dim = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8
        arguments["box_predictor"] = AttributePredictor(cfg, ShapeSpec(channels=dim, height=1, width=1))
        return arguments

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        if cfg.MODEL.BACKBONE.NAME == preactivation.NAME:
            return preactivation.build_res5(cfg)
        if cfg.MODEL.RESNETS.RES5_DILATION == 1:
            return super()._build_res5_block(cfg)
        resnet = cfg.MODEL.RESNETS
        out_channels = resnet.RES2_OUT_CHANNELS * 8
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[1, 1, 1],  # dilation replaces the stride: the map stays 14 x 14
            in_channels=out_channels // 2,
            bottleneck_channels=resnet.NUM_GROUPS * resnet.WIDTH_PER_GROUP * 8,
            out_channels=out_channels,
            num_groups=resnet.NUM_GROUPS,
            norm=resnet.NORM,
            stride_in_1x1=resnet.STRIDE_IN_1X1,
            dilation=resnet.RES5_DILATION,
        )
        return nn.Sequential(*blocks), out_channels

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See Detectron2's `ROIHeads.forward`; training adds `loss_attribute`."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        assert targets is not None
        proposals = self.label_and_sample_proposals(proposals, targets)
        pooled = self._pooled(features, [p.proposal_boxes for p in proposals])
        losses = self.box_predictor.losses(self.box_predictor(pooled), proposals)
        losses["loss_attribute"] = self.box_predictor.attribute_loss(pooled, proposals)
        return [], losses

    def predict_regions(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> RegionOutputs:
        """Features and predictions of given boxes, one entry per image; the regions of all are concatenated."""
        return self.predict_features(self._pooled(features, boxes))

    def predict_features(self, pooled: torch.Tensor) -> RegionOutputs:
        """The predictions for features (R, D), which are part of the result."""
        class_logits, box_deltas = (output.float() for output in self.box_predictor(pooled))
        candidates = class_logits if self.box_predictor.of_background else class_logits[:, :-1]
        attributes = self.box_predictor.attribute_probabilities(pooled, candidates.argmax(dim=1))
        return RegionOutputs(pooled, class_logits, box_deltas, attributes)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.box_predictor.cls_score.in_features)

    def pool_grid(self, features: dict[str, torch.Tensor], cells: int) -> torch.Tensor:
        """(B, cells * cells, D): res5 of the whole map, averaged over each cell; the cells row by row."""
        [name] = self.in_features
        return _cells(self.res5(features[name]), cells)

    def _shared_roi_transform(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """(R, D, 1, 1): the means of `_pooled` as maps, of which Detectron2's inference takes the mean."""
        return self._pooled(dict(zip(self.in_features, features, strict=True)), boxes)[:, :, None, None]

    def _pooled(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """(R, D) float32: res5 of all regions of all images, averaged over each region."""
        [maps] = [features[name] for name in self.in_features]
        [pooler] = self.pooler.level_poolers
        groups = region_pooling.pooled_groups(pooler, maps, boxes, self._group_size(maps))
        return torch.cat([self.res5(group).mean(dim=[2, 3], dtype=torch.float32) for group in groups])

    def _group_size(self, maps: torch.Tensor) -> int:
        """How many regions of (B, C, h, w) maps go through res5 together."""
        side, channels = math.prod(self.pooler.output_size), maps.shape[1]
        if maps.device.type == "cpu" and not self.training:
            return max(1, CPU_GROUP // (channels * side))
        widest = max(channels, self.box_predictor.cls_score.in_features)  # res5's own maps: no larger than those
        return max(1, region_pooling.LIMIT // (widest * side))


@ROI_HEADS_REGISTRY.register()
class GridROIHeads(StandardROIHeads):
    """The heads of facebookresearch/grid-feats-vqa: res5 is the backbone's, and a grid is taken from its map.

    Its detector was trained on a dilated res5 and its published features are those of one without dilation, so the
    layers that detect are only the places of a weight file's tensors; nothing is predicted with them.
    """

    @configurable
    def __init__(self, *, dim: int, **kwargs: Any):
        """`dim` is D; the other arguments are Detectron2's."""
        super().__init__(**kwargs)
        self.dim = dim

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate the config into the arguments of `__init__`."""
        arguments = super().from_config(cfg, input_shape)
        [name] = cfg.MODEL.ROI_HEADS.IN_FEATURES
        return {**arguments, "dim": input_shape[name].channels}

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super()._init_box_head(cfg, input_shape)
        return {**arguments, "box_predictor": AttributePredictor(cfg, arguments["box_head"].output_shape)}

    def pool_grid(self, features: dict[str, torch.Tensor], cells: int) -> torch.Tensor:
        """(B, cells * cells, D): the map, averaged over each cell; the cells row by row."""
        [name] = self.in_features
        return _cells(features[name], cells)


def _cells(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """(B, cells * cells, D) means of (B, D, h, w) maps."""
    return F.adaptive_avg_pool2d(maps.float(), cells).flatten(2).transpose(1, 2)
