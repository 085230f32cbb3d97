"""Greedy non-maximum suppression of many problems at once, on an NVIDIA GPU: which boxes survive, without a wait.

A problem is an image for the region proposals, an image and class or an image and threshold for a selection. Where
there is no kernel, on a CPU for instance, each caller has an implementation of its own that gives the same boxes.

Shapes: I images with P boxes in all, V variants of an image's problem, n boxes taken at most.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from data_tools.devices import runs_triton, to_device


def has_kernel(boxes: Tensor) -> bool:
    """Whether `greedy` takes such boxes."""
    return boxes.is_cuda and boxes.dtype == torch.float32 and _runs(boxes.device)


@cache
def _runs(device: torch.device) -> bool:
    box = torch.zeros(1, 4, device=device)
    return runs_triton(
        device,
        lambda: [greedy(box, box[:, :1], [1], [0.5], False, most) for most in (None, 1)],
        "non-maximum suppression",
    )


def greedy(
    boxes: Tensor,
    scores: Tensor,
    lengths: Sequence[int],
    limits: Sequence[float],
    inclusive: bool,
    most: int | None = None,
    presorted: bool = False,
) -> tuple[Tensor, Tensor]:
    """Suppress by IoU above a limit; of equal scores the first box is the better one, and NaN is the best score.

    Args:
        boxes: (P, 4) float32 of all images, on the GPU.
        scores: (V, P) float32, or (1, P) where all variants have the same; a box of score -inf takes no part.
        lengths: boxes of each image.
        limits: V, or one where all variants have the same; see `limit_below` and `nearest_limit`.
        inclusive: whether one is added to the sides of boxes.
        most: n; None takes all.
        presorted: whether the boxes of an image come in order of their scores already; goes with `most`.

    Returns:
        With `most`, the survivors' (I, V, n) int32 positions in their image, best first, and their (I, V) int32
        numbers, from which on the positions are 0. Without it, (V, P) bool whether a box survives, and nothing.
    """
    from extract.detector.suppression_triton import greedy as by_kernel  # Triton is not installed everywhere

    offsets = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))
    return by_kernel(
        boxes.contiguous(),
        scores.contiguous(),
        to_device(offsets, boxes.device),
        to_device(torch.tensor(limits, dtype=torch.float32), boxes.device),
        max(lengths),
        1.0 if inclusive else 0.0,
        most,
        presorted,
    )


def limit_below(threshold: float, inclusive: bool) -> float:
    """The limit of torchvision's suppression at a threshold, of which `boxes.nms` makes its own.

    It compares in float64: with the largest float32 that is not above the threshold. IoU >= threshold, of
    inclusive boxes, is IoU > the float32 before the nearest.

    >>> limit_below(0.5, inclusive=False), limit_below(0.5, inclusive=True) < 0.5
    (0.5, True)
    """
    nearest = np.float32(threshold)
    if inclusive or float(nearest) > threshold:
        nearest = np.nextafter(nearest, np.float32(-1))
    return float(nearest)


def nearest_limit(threshold: float, inclusive: bool) -> float:
    """The limit of `boxes.suppresses` at a threshold, which compares in float32.

    >>> nearest_limit(0.5, inclusive=False), nearest_limit(0.5, inclusive=True) < 0.5
    (0.5, True)
    """
    nearest = np.float32(threshold)
    return float(np.nextafter(nearest, np.float32(-1)) if inclusive else nearest)
