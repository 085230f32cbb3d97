"""Caffe's region proposals: anchors, and which decoded boxes become proposals; and Detectron2's for a whole batch.

All images of a batch have the same number of candidates and of places for proposals, whatever becomes of their
boxes: one that is too small is marked and not removed, and places that are left are filled. So the host does not
wait for a GPU.

Shapes: B images of one shape, A anchors at each position of an h x w feature map, K candidates of an image for the
suppression (`PRE_NMS_TOPK_TEST`), n places for its proposals (`POST_NMS_TOPK_TEST`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances

from data_tools.devices import to_device, to_host
from extract.detector.boxes import INCLUSIVE_TRANSFORMS, clip, ending_one_later, nms, sides
from extract.detector.suppression import greedy, has_kernel, limit_below

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


@dataclass(frozen=True)
class ProposalBatch:
    """The proposals of images of one shape, best first.

    Attributes:
        boxes: (B, n, 4); those beyond the image's count are the whole image.
        scores: (B, n); beyond the count they mean nothing.
        counts: (B,) int64.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    counts: torch.Tensor


def propose(rpn: RPN, images: ScaledImages, features: dict[str, torch.Tensor]) -> ProposalBatch:
    """The proposals of images of one shape, in inference; one feature map is used.

    Of Detectron2's own `RPN` they are those that it gives, which waits eight times per image for a GPU. Here the
    host waits for nothing, and there are at most 76 operations, however many images there are.
    """
    [size] = {tuple(size) for size in images.image_sizes}
    maps = [features[name] for name in rpn.in_features]
    [anchors] = rpn.anchor_generator(maps)
    [logits], [deltas] = rpn.rpn_head(maps)
    count, _, height, width = logits.shape
    scores = logits.permute(0, 2, 3, 1).reshape(count, -1)
    deltas = deltas.view(count, -1, 4, height, width).permute(0, 3, 4, 1, 2).reshape(count, -1, 4)
    inclusive = isinstance(rpn, CaffeRPN)
    if inclusive:
        boxes = clip(_decoded(rpn, deltas, anchors.tensor), size, inclusive)
        smallest = torch.tensor(images.scales, dtype=torch.float64) * rpn.min_box_size
        valid = are_large(boxes, to_device(smallest.float(), boxes.device))
        scores = scores.float()
        best = best_of_valid(scores, valid, rpn.pre_nms_topk[False])
        boxes, valid, scores = _rows(boxes, best), valid.gather(1, best), scores.gather(1, best)
    else:
        scores, best = scores.topk(min(rpn.pre_nms_topk[False], scores.shape[1]), dim=1)
        boxes = _decoded(rpn, _rows(deltas, best), anchors.tensor[best])
        valid = boxes.isfinite().all(dim=2) & scores.isfinite()
        boxes = clip(boxes, size, inclusive)
        valid &= (sides(boxes, inclusive) > rpn.min_box_size).all(dim=2)
    whole = boxes.new_zeros(4)
    whole[2:3].fill_(size[1] - inclusive)
    whole[3:4].fill_(size[0] - inclusive)
    inclusive_nms = inclusive and rpn.inclusive_nms
    rows, counts = survivors(boxes, valid, rpn.nms_thresh, inclusive_nms, rpn.post_nms_topk[False])
    placed = torch.arange(rows.shape[1], device=rows.device) < counts[:, None]
    return ProposalBatch(
        torch.where(placed[:, :, None], _rows(boxes, rows), whole), scores.gather(1, rows), counts
    )


def are_large(boxes: torch.Tensor, smallest: torch.Tensor) -> torch.Tensor:
    """(B, P) whether both sides of inclusive boxes (B, P, 4) are at least `smallest` (B,); a NaN is not."""
    return (sides(boxes, inclusive=True) >= smallest[:, None, None]).all(dim=2)


def best_of_valid(scores: torch.Tensor, valid: torch.Tensor, most: int) -> torch.Tensor:
    """(B, K) positions of the `most` best of the valid (B, P) scores, and invalid ones after them where they lack.

    Of equal scores the first comes first; NaN is the best.
    """
    lowest = torch.finfo(torch.float32).min * 2.0  # a float64, between -inf and any other float32
    ranked = torch.where(valid, scores.double().clamp(min=lowest), -math.inf)
    return ranked.argsort(dim=1, descending=True, stable=True)[:, :most]


def survivors(
    boxes: torch.Tensor, valid: torch.Tensor, threshold: float, inclusive: bool, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy suppression in each image: (B, n) int64 positions of the best survivors, and (B,) their numbers.

    Args:
        boxes: (B, K, 4) candidates, best first.
        valid: (B, K) which of them count.
        threshold: see `extract.detector.boxes.nms`.
        inclusive: see there.
        most: n; beyond an image's number its positions are 0.
    """
    images, candidates = valid.shape
    most = min(most, candidates)
    if has_kernel(boxes):
        ends = ending_one_later(boxes) if inclusive else boxes
        order = torch.arange(0, -candidates, -1, device=boxes.device, dtype=torch.float32)
        scores = torch.where(valid, order, -math.inf)
        limit = limit_below(threshold, inclusive)
        rows, counts = greedy(
            ends.view(-1, 4), scores.view(1, -1), [candidates] * images, [limit], False, most, presorted=True
        )
        return rows[:, 0].long(), counts[:, 0].long()
    rows = torch.zeros((images, most), dtype=torch.int64, device=boxes.device)
    lengths = []
    for image, (own, counted) in enumerate(zip(boxes, valid, strict=True)):
        of_image = counted.nonzero().flatten()
        kept = of_image[nms(own[of_image], -of_image.to(own.dtype), threshold, inclusive)][:most]
        rows[image, : len(kept)] = kept
        lengths.append(len(kept))
    return rows, to_device(torch.tensor(lengths), boxes.device)


def _decoded(rpn: RPN, deltas: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """(B, P, 4) boxes of (B, P, 4) deltas from anchors (P, 4) or (B, P, 4)."""
    anchors = anchors.expand(deltas.shape).reshape(-1, 4)
    return rpn.box2box_transform.apply_deltas(deltas.reshape(-1, 4), anchors).view(deltas.shape)


def _rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """(B, n, 4) of (B, P, 4): rows (B, n) of each image."""
    return values.gather(1, rows[:, :, None].expand(-1, -1, 4))


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
        """The proposals of each image, best first, and no losses: see `propose`."""
        found = propose(self, images, features)
        [counts] = to_host(found.counts)
        return [
            Instances(size, proposal_boxes=Boxes(boxes[:count]), objectness_logits=scores[:count])
            for size, boxes, scores, count in zip(
                images.image_sizes, found.boxes, found.scores, counts.tolist(), strict=True
            )
        ], {}


@PROPOSAL_GENERATOR_REGISTRY.register()
class MaskRCNNRPN(CaffeRPN):
    """The same with maskrcnn-benchmark's box arithmetic; see extract/detector/boxes.py.

    It takes the best boxes before it drops small ones, which is the same where MIN_SIZE is 0.
    """

    inclusive_nms = False
