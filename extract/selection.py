"""Which of a detector's proposals become an image's regions: the rule of Caffe's `generate_tsv.py`.

Shapes: P proposals of one image, C object classes (background left out).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CaffeSelection:
    """Anderson et al.'s rule: per-class non-maximum suppression, then the confident proposals.

    Attributes:
        min_boxes, max_boxes: bounds on the number of regions; equal for a fixed number.
        threshold: the confidence from which a proposal is kept.
        nms: the overlap (IoU with +1 widths) from which a less probable box is suppressed.
    """

    min_boxes: int
    max_boxes: int
    threshold: float = 0.2
    nms: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.min_boxes <= self.max_boxes:
            raise ValueError(f"need 1 <= min_boxes <= max_boxes, got {self.min_boxes} and {self.max_boxes}")

    def __call__(self, boxes: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """The selected proposals' positions, (k,) int64, k <= P.

        Args:
            boxes: (P, 4) x1 y1 x2 y2 in pixels of the original image.
            probabilities: (P, C).

        A proposal's confidence is its best probability among the classes in which it survived. Fewer
        confident ones than `min_boxes`: the `min_boxes` best; more than `max_boxes`: the `max_boxes` best, in
        order of confidence; otherwise in the proposals' order. Equal confidences keep the proposals' order.
        """
        confidence = self.confidence(boxes, probabilities)
        confident = (confidence >= self.threshold).nonzero().flatten()
        if self.min_boxes <= len(confident) <= self.max_boxes:
            return confident
        wanted = self.min_boxes if len(confident) < self.min_boxes else self.max_boxes
        return torch.argsort(confidence, descending=True, stable=True)[:wanted]

    def confidence(self, boxes: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """(P,) best probability of each proposal among the classes in which it survived; 0 where in none."""
        survives = per_class_nms(boxes, probabilities, self.nms)
        return torch.where(survives, probabilities, 0.0).amax(dim=1)

    def describe(self) -> str:
        """The rule in a line, for a store's provenance."""
        return f"caffe min={self.min_boxes} max={self.max_boxes} threshold={self.threshold} nms={self.nms}"


def pixel_iou(boxes: torch.Tensor) -> torch.Tensor:
    """(P, P) intersection over union of (P, 4) boxes whose corners are pixels: widths are x2 - x1 + 1."""
    top_left = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = (bottom_right - top_left + 1).clamp(min=0).prod(dim=2)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    return intersection / (areas[:, None] + areas[None, :] - intersection)


def per_class_nms(boxes: torch.Tensor, probabilities: torch.Tensor, threshold: float) -> torch.Tensor:
    """(P, C) whether each proposal survives greedy suppression in each class.

    All classes share the boxes, so one overlap matrix serves them all, and they advance together: at step r
    each class looks at its r-th most probable proposal and, if that still stands, suppresses what overlaps
    it by `threshold` or more. P steps in place of C separate suppressions.
    """
    count, classes = probabilities.shape
    overlaps = pixel_iou(boxes) >= threshold
    overlaps.fill_diagonal_(False)
    order = torch.argsort(probabilities, dim=0, descending=True, stable=True)
    suppressed = torch.zeros(classes, count, dtype=torch.bool, device=boxes.device)
    columns = torch.arange(classes, device=boxes.device)
    for candidates in order:  # (C,) one proposal a class
        standing = ~suppressed[columns, candidates]
        suppressed |= overlaps[candidates] & standing[:, None]
    return ~suppressed.T
