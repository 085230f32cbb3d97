"""The resize before the detector. Its interpolation and rounding are part of a published model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

METHODS = ("caffe", "torch", "pillow", "maskrcnn")
SMALLEST_SIDE = 32  # pixels: below it the feature map (stride 16) of a very long image would be empty


@dataclass(frozen=True)
class Geometry:
    """The sizes of an image before and after its resize.

    Attributes:
        original: height and width of the upright original.
        resized: height and width in the network.
        scale: (y, x): pixels of the resized image per pixel of the original. Caffe's is the requested factor,
            of which the rounded sides are an approximation.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    scale: tuple[float, float]

    def to_original(self, boxes: torch.Tensor) -> torch.Tensor:
        """(P, 4) boxes of the resized image in pixels of the original."""
        scaled = boxes.clone()
        scaled[:, 0::2] /= self.scale[1]
        scaled[:, 1::2] /= self.scale[0]
        return scaled

    def to_resized(self, boxes: torch.Tensor) -> torch.Tensor:
        """(P, 4) boxes of the original image in pixels of the resized one."""
        scaled = boxes.clone()
        scaled[:, 0::2] *= self.scale[1]
        scaled[:, 1::2] *= self.scale[0]
        return scaled


@dataclass(frozen=True)
class Resizing:
    """Scale the shorter side to `min_side` pixels, or the longer to `max_side` where it would exceed that.

    `method` is
    `caffe`: OpenCV's bilinear on floats from which `pixel_mean` is subtracted, sides rounded to the nearest
        even (Anderson et al.'s extractor);
    `torch`: bilinear on floats without antialiasing (airsplay's and Hugging Face's ports);
    `pillow`: bilinear on bytes with antialiasing, as Detectron2 trains;
    `maskrcnn`: the same, but the longer side is rounded down, as maskrcnn-benchmark does.
    `torch` and `pillow` round int(x + 0.5), as Detectron2 does.

    >>> Resizing("torch", 600, 1000).geometry(480, 640).resized
    (600, 800)
    """

    method: str
    min_side: int
    max_side: int
    pixel_mean: Sequence[float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"resize method {self.method!r}; expected {', '.join(METHODS)}")

    def geometry(self, height: int, width: int) -> Geometry:
        """The resize of an image of these sides; a resized side is at least `SMALLEST_SIDE` pixels."""
        short, long = min(height, width), max(height, width)
        scale = self.min_side / short
        if self.method == "caffe":
            if np.round(scale * long) > self.max_side:
                scale = self.max_side / long
            exact = round(height * scale), round(width * scale)  # Python's round is to even, as rint
        elif self.method == "maskrcnn":
            exact = self._of_maskrcnn(height, width)
        else:  # in Detectron2's order of operations, which decides how a half is rounded
            enlarged = scale * long
            shrink = min(self.max_side / enlarged, 1.0)
            shorter, longer = int(self.min_side * shrink + 0.5), int(enlarged * shrink + 0.5)
            exact = (shorter, longer) if height < width else (longer, shorter)
        resized = max(exact[0], SMALLEST_SIDE), max(exact[1], SMALLEST_SIDE)
        ratios = resized[0] / height, resized[1] / width
        keeps_scale = self.method == "caffe" and resized == exact
        return Geometry((height, width), resized, (scale, scale) if keeps_scale else ratios)

    def _of_maskrcnn(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in maskrcnn-benchmark's order of operations."""
        short, long, side = min(height, width), max(height, width), self.min_side
        if long / short * side > self.max_side:
            side = round(self.max_side * short / long)
        if side == short:
            return height, width
        longer = int(side * long / short)
        return (longer, side) if width < height else (side, longer)

    def __call__(self, image: np.ndarray) -> tuple[torch.Tensor, Geometry]:
        """Resize (H, W, 3) uint8 to a (3, h, w) tensor: uint8 for `pillow` and `maskrcnn`, float32 otherwise.

        `caffe` subtracts the mean.
        """
        geometry = self.geometry(*image.shape[:2])
        height, width = geometry.resized
        if self.method == "caffe":
            return _chw(self._opencv(image, geometry)), geometry
        if self.method in ("pillow", "maskrcnn"):
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
        if y == x:  # OpenCV then samples by the factor and not by the rounded sides
            return cv2.resize(without_mean, None, fx=x, fy=y, interpolation=cv2.INTER_LINEAR)
        return cv2.resize(without_mean, geometry.resized[::-1], interpolation=cv2.INTER_LINEAR)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as in a loader's process: in several, PyTorch's resize differs in the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chw(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()
