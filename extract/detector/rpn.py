"""Caffe's region proposals: anchors, and which decoded boxes become proposals.

Shapes: B images of one shape, A anchors at each position of an h x w feature map, P proposals of one image.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances

from extract.detector.boxes import INCLUSIVE_TRANSFORMS, clip, nms, sides

BASE = 16  # pixels: the box that Caffe's generate_anchors scales; also the stride of the feature map


@ANCHOR_GENERATOR_REGISTRY.register()
class CaffeAnchorGenerator(DefaultAnchorGenerator):
    """Anchors of Caffe's `generate_anchors`: rounded sides, inclusive corners, centred at 7.5.

    They are in Detectron2's order, size by size; a weight file may contain others: see extract/weights/placing.py.
    """

    def generate_cell_anchors(self, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> torch.Tensor:
        """(sizes x ratios, 4) anchors at the first position of the map; a ratio is height / width."""
        anchors = []
        for size in sizes:
            for ratio in aspect_ratios:
                base_width = round(math.sqrt(BASE * BASE / ratio))
                width = base_width * size / BASE
                height = round(base_width * ratio) * size / BASE
                middle = (BASE - 1) / 2
                anchors.append(
                    [
                        middle - (width - 1) / 2,
                        middle - (height - 1) / 2,
                        middle + (width - 1) / 2,
                        middle + (height - 1) / 2,
                    ]
                )
        return torch.tensor(anchors)


class ScaledImages(ImageList):
    """Detectron2's batch of images with the factor by which each was enlarged: `scales`, one number per image."""

    scales: list[float]


@PROPOSAL_GENERATOR_REGISTRY.register()
class CaffeRPN(RPN):
    """Detectron2's region proposal network with Caffe's box arithmetic; for inference only.

    `PROPOSAL_GENERATOR.MIN_SIZE` is in pixels of the original image.
    """

    inclusive_nms = True

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Translate the config into the arguments of `RPN`."""
        arguments = super().from_config(cfg, input_shape)
        arguments["box2box_transform"] = INCLUSIVE_TRANSFORMS[cls.__name__](cfg.MODEL.RPN.BBOX_REG_WEIGHTS)
        return arguments

    def forward(
        self,
        images: ScaledImages,
        features: dict[str, torch.Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """The proposals of each image, best first, and no losses. One feature map is used."""
        maps = [features[name] for name in self.in_features]
        [anchors] = self.anchor_generator(maps)
        [logits], [deltas] = self.rpn_head(maps)
        count, _, height, width = logits.shape
        scores = logits.permute(0, 2, 3, 1).reshape(count, -1).float()
        deltas = deltas.view(count, -1, 4, height, width).permute(0, 3, 4, 1, 2).reshape(count, -1, 4)
        sizes = zip(images.image_sizes, images.scales, strict=True)
        return [
            self._propose(self.box2box_transform.apply_deltas(deltas[row], anchors.tensor), scores[row], *size)
            for row, size in enumerate(sizes)
        ], {}

    def _propose(
        self, boxes: torch.Tensor, scores: torch.Tensor, image_size: tuple[int, int], scale: float
    ) -> Instances:
        """Proposals of one image from its (h w A, 4) decoded boxes, in the order of Caffe's proposal layer.

        Clip, drop small boxes, take the best `PRE_NMS_TOPK_TEST`, suppress, take the best `POST_NMS_TOPK_TEST`.
        """
        boxes = clip(boxes, image_size, inclusive=True)
        large = (sides(boxes, inclusive=True) >= self.min_box_size * scale).all(dim=1)
        kept = large.nonzero().flatten()  # a GPU is waited for once, not in each selection; a NaN is not large
        boxes, scores = boxes[kept], scores[kept]
        best = scores.argsort(descending=True, stable=True)[: self.pre_nms_topk[False]]
        boxes, scores = boxes[best], scores[best]
        kept = nms(boxes, scores, self.nms_thresh, self.inclusive_nms)[: self.post_nms_topk[False]]
        return Instances(image_size, proposal_boxes=Boxes(boxes[kept]), objectness_logits=scores[kept])


@PROPOSAL_GENERATOR_REGISTRY.register()
class MaskRCNNRPN(CaffeRPN):
    """The same with maskrcnn-benchmark's box arithmetic; see extract/detector/boxes.py.

    It takes the best boxes before it drops small ones, which is the same where MIN_SIZE is 0.
    """

    inclusive_nms = False
