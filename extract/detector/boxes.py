"""Boxes in the dialects in which bottom-up attention has been published.

`inclusive` is Caffe's: corners are pixels that belong to the box, so that its width is x2 - x1 + 1; the last
pixel of an image is w - 1; non-maximum suppression drops a box at IoU >= threshold. Otherwise coordinates are
continuous, as in Detectron2: the width is x2 - x1, the image ends at w, a box is dropped at IoU > threshold.
maskrcnn-benchmark, which VinVL is made with, has inclusive boxes and continuous suppression.

No function here makes a tensor on a GPU from Python numbers: the host would wait for the copy.

Shapes: P boxes, x1 y1 x2 y2.
"""

import torch
import torchvision
from detectron2.modeling.box_regression import Box2BoxTransform


def sides(boxes: torch.Tensor, inclusive: bool) -> torch.Tensor:
    """(..., 2) widths and heights of (..., 4) boxes.

    >>> sides(torch.tensor([[0.0, 0.0, 9.0, 4.0]]), inclusive=True)
    tensor([[10.,  5.]])
    """
    return boxes[..., 2:] - boxes[..., :2] + (1.0 if inclusive else 0.0)


def suppresses(boxes: torch.Tensor, threshold: float, inclusive: bool) -> torch.Tensor:
    """(P, P) bool, symmetric: whether the IoU of two of (P, 4) boxes lets one suppress the other.

    >>> suppresses(torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]]), 0.5, inclusive=False)
    tensor([[ True, False],
            [False,  True]])
    """
    top_left = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    one = 1.0 if inclusive else 0.0
    intersection = (bottom_right - top_left + one).clamp(min=0).prod(dim=2)
    areas = sides(boxes, inclusive).prod(dim=1)
    iou = intersection / (areas[:, None] + areas[None, :] - intersection)
    return iou >= threshold if inclusive else iou > threshold


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, inclusive: bool) -> torch.Tensor:
    """Greedy non-maximum suppression of (P, 4) boxes by (P,) scores: positions of the survivors, best first.

    torchvision's function has continuous boxes and IoU > threshold only. An inclusive box is the continuous
    one that ends one pixel later; IoU >= threshold is IoU > the next smaller float.

    >>> nms(torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0]]), torch.tensor([0.4, 0.9]), 0.5, False)
    tensor([1])
    """
    if not inclusive:
        return torchvision.ops.nms(boxes, scores, threshold)
    below = torch.nextafter(torch.tensor(threshold), torch.tensor(-1.0)).item()
    return torchvision.ops.nms(ending_one_later(boxes), scores, below)


def ending_one_later(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) inclusive boxes as continuous ones with the same sides."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] + 1.0], dim=-1)


def clip(boxes: torch.Tensor, size: tuple[int, int], inclusive: bool) -> torch.Tensor:
    """(..., 4) boxes clipped to an image of this (height, width)."""
    height, width = size
    one = 1.0 if inclusive else 0.0
    clipped = boxes.clamp(min=0)
    clipped[..., 0::2].clamp_(max=width - one)
    clipped[..., 1::2].clamp_(max=height - one)
    return clipped


def grid_boxes(size: tuple[int, int], cells: int) -> torch.Tensor:
    """(cells * cells, 4) continuous boxes, row by row, that tile an image of this (height, width).

    >>> grid_boxes((10, 30), 2)
    tensor([[ 0.,  0., 15.,  5.],
            [15.,  0., 30.,  5.],
            [ 0.,  5., 15., 10.],
            [15.,  5., 30., 10.]])
    """
    steps = torch.arange(cells + 1, dtype=torch.float64)
    y, x = ((steps * side / cells).float() for side in size)
    top, left = torch.meshgrid(y[:-1], x[:-1], indexing="ij")
    bottom, right = torch.meshgrid(y[1:], x[1:], indexing="ij")
    return torch.stack([left, top, right, bottom], dim=2).view(-1, 4)


class CaffeBoxTransform:
    """Detectron2's box coding on inclusive boxes: sides have + 1, decoded corners lack the - 1, as in Caffe.

    Detectron2's transform is a compiled (TorchScript) class, which can be wrapped but not subclassed.
    """

    def __init__(self, weights: tuple[float, float, float, float]) -> None:
        self.weights = weights
        self._continuous = Box2BoxTransform(weights=weights)

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(P, 4 k) boxes from (P, 4 k) deltas of (P, 4) boxes."""
        return self._continuous.apply_deltas(deltas, ending_one_later(boxes))


class MaskRCNNBoxTransform(CaffeBoxTransform):
    """maskrcnn-benchmark's: as Caffe's, but decoded corners have the - 1."""

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(P, 4 k) boxes from (P, 4 k) deltas of (P, 4) boxes."""
        decoded = super().apply_deltas(deltas, boxes).view(len(deltas), -1, 4)
        return torch.cat([decoded[..., :2], decoded[..., 2:] - 1.0], dim=2).view(deltas.shape)


INCLUSIVE_TRANSFORMS: dict[str, type[CaffeBoxTransform]] = {
    "CaffeRPN": CaffeBoxTransform,
    "MaskRCNNRPN": MaskRCNNBoxTransform,
}
"""Of the proposal generators with inclusive boxes, by their names in a configuration."""
