"""What the detector predicts for an image, before regions are selected.

Shapes: P proposals of one image, D channels of res5, C object classes, A attributes. The cells of a grid are
proposals of which nothing is predicted: C and A are 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from data_tools.devices import to_host


@dataclass(frozen=True)
class Proposals:
    """The proposals of one image with their features and predictions.

    Attributes:
        boxes: (P, 4) x1 y1 x2 y2 in pixels of the original image.
        regressed_boxes: (P, 4) the same after the box layer's correction for each one's most probable class,
            clipped to the image.
        features: (P, D).
        class_probabilities: (P, C) without background; rows add up to one minus the background's probability.
        attribute_probabilities: (P, A) without "none".
        count: () how many of the rows are proposals, where the others fill up the batch of a GPU; None for all.
    """

    boxes: torch.Tensor
    regressed_boxes: torch.Tensor
    features: torch.Tensor
    class_probabilities: torch.Tensor
    attribute_probabilities: torch.Tensor
    count: torch.Tensor | None = None


def without_padding(batch: Sequence[Proposals]) -> list[Proposals]:
    """The proposals of several images without the rows that fill up; a GPU is waited for once, if at all."""
    counts = [proposals.count for proposals in batch if proposals.count is not None]
    if len(counts) < len(batch):
        assert not counts, "images of one batch with and without padding"
        return list(batch)
    [numbers] = to_host(torch.stack(counts))
    return [_first(proposals, number) for proposals, number in zip(batch, numbers.tolist(), strict=True)]


def _first(proposals: Proposals, number: int) -> Proposals:
    columns = [getattr(proposals, field.name) for field in fields(proposals) if field.name != "count"]
    return Proposals(*(column[:number] for column in columns))
