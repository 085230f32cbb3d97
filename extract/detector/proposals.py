"""What the detector predicts for an image, before regions are selected.

Shapes: P proposals of one image, D channels of res5, C object classes, A attributes. The cells of a grid are
proposals of which nothing is predicted: C and A are 0.
"""

from dataclasses import dataclass

import torch


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
    """

    boxes: torch.Tensor
    regressed_boxes: torch.Tensor
    features: torch.Tensor
    class_probabilities: torch.Tensor
    attribute_probabilities: torch.Tensor
