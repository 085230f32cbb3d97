"""The resize in front of the detector. How it interpolates and rounds is part of a published model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

METHODS = ("caffe", "torch", "pillow")
SMALLEST_SIDE = 32  # pixels: below it the feature map (stride 16) of a very long picture would vanish


@dataclass(frozen=True)
class Geometry:
    """A picture before and after its resize.

    Attributes:
        original: height and width of the upright original.
        resized: height and width in the network.
        scale: (y, x): pixels of the resized picture for one of the original. Caffe's is the factor that was
            asked for, which the rounded sides meet only nearly.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    scale: tuple[float, float]

    def to_original(self, boxes: torch.Tensor) -> torch.Tensor:
        """(P, 4) boxes of the resized picture in pixels of the original."""
        scaled = boxes.clone()
        scaled[:, 0::2] /= self.scale[1]
        scaled[:, 1::2] /= self.scale[0]
        return scaled

    def to_resized(self, boxes: torch.Tensor) -> torch.Tensor:
        """(P, 4) boxes of the original picture in pixels of the resized one."""
        scaled = boxes.clone()
        scaled[:, 0::2] *= self.scale[1]
        scaled[:, 1::2] *= self.scale[0]
        return scaled


@dataclass(frozen=True)
class Resizing:
    """Scale the shorter side to `min_side` pixels unless the longer would pass `max_side`.

    `method` is
    `caffe`: OpenCV's bilinear on floats from which `pixel_mean` is subtracted, sides rounded to the nearest
        even (Anderson et al.'s extractor);
    `torch`: bilinear on floats without antialiasing (airsplay's and Hugging Face's ports);
    `pillow`: bilinear on bytes with antialiasing, as Detectron2 trains.
    The last two round int(x + 0.5), as Detectron2 does.
    """

    method: str
    min_side: int
    max_side: int
    pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"resize method {self.method!r}; expected {', '.join(METHODS)}")

    def geometry(self, height: int, width: int) -> Geometry:
        """What becomes of a picture of these sides. A side under `SMALLEST_SIDE` pixels is widened to it."""
        short, long = min(height, width), max(height, width)
        scale = self.min_side / short
        if self.method == "caffe":
            if np.round(scale * long) > self.max_side:
                scale = self.max_side / long
            exact = round(height * scale), round(width * scale)  # Python's round is to even, as rint
        else:  # in Detectron2's order of operations, which decides where a side ends in a half
            enlarged = scale * long
            shrink = min(self.max_side / enlarged, 1.0)
            shorter, longer = int(self.min_side * shrink + 0.5), int(enlarged * shrink + 0.5)
            exact = (shorter, longer) if height < width else (longer, shorter)
        resized = max(exact[0], SMALLEST_SIDE), max(exact[1], SMALLEST_SIDE)
        ratios = resized[0] / height, resized[1] / width
        keeps_scale = self.method == "caffe" and resized == exact
        return Geometry((height, width), resized, (scale, scale) if keeps_scale else ratios)

    def __call__(self, image: np.ndarray) -> tuple[torch.Tensor, Geometry]:
        """Resize (H, W, 3) uint8 to a (3, h, w) tensor: uint8 for `pillow`, float32 otherwise.

        `caffe` returns it without its mean.
        """
        geometry = self.geometry(*image.shape[:2])
        height, width = geometry.resized
        if self.method == "caffe":
            return _chw(self._opencv(image, geometry)), geometry
        if self.method == "pillow":
            small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
            return _chw(np.array(small)), geometry
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        with _one_thread():
            resize = torch.nn.functional.interpolate
            return resize(tensor, (height, width), mode="bilinear", align_corners=False)[0], geometry

    def _opencv(self, image: np.ndarray, geometry: Geometry) -> np.ndarray:
        without_mean = image.astype(np.float32)
        np.subtract(without_mean, np.asarray(self.pixel_mean), out=without_mean, casting="same_kind")
        y, x = geometry.scale
        if y == x:  # the factor, not the rounded sides, says where OpenCV samples
            return cv2.resize(without_mean, None, fx=x, fy=y, interpolation=cv2.INTER_LINEAR)
        return cv2.resize(without_mean, geometry.resized[::-1], interpolation=cv2.INTER_LINEAR)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a process that loads: PyTorch's resize has another arithmetic, by last bits, in several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chw(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
