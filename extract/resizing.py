"""The resize in front of the detector. How it interpolates and rounds is part of a published model."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

METHODS = ("pillow", "torch")
SMALLEST_SIDE = 32  # pixels: below it the feature map (stride 16) of a very long picture would vanish


@dataclass(frozen=True)
class Resizing:
    """Scale the shorter side to `min_side` pixels unless the longer would pass `max_side`.

    `method` is `pillow` (bilinear on bytes with antialiasing, as Detectron2 trains) or `torch` (bilinear on
    floats without antialiasing, as airsplay's and Hugging Face's ports of the Caffe-trained detector).
    """

    method: str
    min_side: int
    max_side: int

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"resize method {self.method!r}; expected pillow or torch")

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """The resized (height, width), rounded as Detectron2 rounds: int(x + 0.5)."""
        scale = min(self.min_side / min(height, width), self.max_side / max(height, width))
        rounded = (int(height * scale + 0.5), int(width * scale + 0.5))
        return max(rounded[0], SMALLEST_SIDE), max(rounded[1], SMALLEST_SIDE)

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Resize (H, W, 3) uint8 to a (3, h, w) tensor: uint8 for `pillow`, float32 for `torch`."""
        height, width = self.shape(*image.shape[:2])
        if self.method == "pillow":
            small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[0]
