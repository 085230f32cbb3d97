"""The pictures of a list, read and resized in processes of their own.

An array of megabytes takes as long to send through a pipe as to make. So the processes leave their arrays in
memory that they inherit. It is anonymous: `/dev/shm`, which PyTorch would use, is often too small in containers.
"""

import mmap
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_tools.images.decoding import UnreadableImageError, decode_bgr
from extract.detector.resizing import Geometry, Resizing
from extract.run.sources import SourceImage

AHEAD = 2  # images that each process prepares before they are asked for


@dataclass(frozen=True)
class Decoded:
    """A picture of the list, or why there is none.

    Attributes:
        position: in the list.
        seconds: that it took.
        pixels: (3, h, w), resized; None where there is a problem.
        geometry: of the resize.
        problem: why it cannot be read.
    """

    position: int
    seconds: float
    pixels: np.ndarray | None = None
    geometry: Geometry | None = None
    problem: str = ""


class _Ring:
    """Places for arrays in memory that processes share with those that they are forked from.

    The array of index i is in place i modulo their number, until that of the index one round later is.
    """

    def __init__(self, places: int, size: int) -> None:
        self._bytes = np.frombuffer(mmap.mmap(-1, places * size), np.uint8).reshape(places, size)

    def place(self, index: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """The array of an index; None where it is larger than a place."""
        size = int(np.prod(shape)) * dtype.itemsize
        row = self._bytes[index % len(self._bytes)]
        return row[:size].view(dtype).reshape(shape) if size <= len(row) else None


@dataclass(frozen=True)
class _Left:
    """In the place of an array: where in the ring it is."""

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype


class _Images(Dataset):
    """Positions of a list of images, read and resized; their arrays are left in the ring where there is one."""

    def __init__(
        self,
        folder: Path,
        images: Sequence[SourceImage],
        order: Sequence[int],
        resizing: Resizing,
        ring: _Ring | None,
    ) -> None:
        self.folder, self.images, self.order, self.resizing = folder, images, order, resizing
        self.ring = ring

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Decoded, _Left | None]:
        decoded = self._decode(self.order[index])
        if self.ring is None or decoded.pixels is None:
            return decoded, None
        left = _Left(index, decoded.pixels.shape, decoded.pixels.dtype)
        place = self.ring.place(index, left.shape, left.dtype)
        if place is None:
            return decoded, None
        np.copyto(place, decoded.pixels)
        return replace(decoded, pixels=None), left

    def _decode(self, position: int) -> Decoded:
        start, source = time.perf_counter(), self.images[position]
        try:
            if source.problem:
                raise UnreadableImageError(source.problem)
            pixels, geometry = self.resizing(decode_bgr(self.folder / source.file))
        except UnreadableImageError as error:
            return Decoded(position, time.perf_counter() - start, problem=str(error))
        except (MemoryError, cv2.error):
            return Decoded(position, time.perf_counter() - start, problem="too large for this machine's memory")
        return Decoded(position, time.perf_counter() - start, pixels.numpy(), geometry)


def _itself(item: Any) -> Any:
    return item


def load(
    folder: Path, images: Sequence[SourceImage], order: Sequence[int], resizing: Resizing, workers: int
) -> Iterator[Decoded]:
    """The images of some positions of a list, in that order.

    Args:
        folder: where the files are.
        images: the list.
        order: positions in it.
        resizing: what becomes of each.
        workers: processes that decode; 0 for this one.

    Raises:
        RuntimeError: PyTorch's, when a process was killed.
    """
    workers = min(workers, len(order))
    shares = workers > 0 and multiprocessing.get_start_method() == "fork"
    largest = resizing.min_side * resizing.max_side * 3 * np.dtype(np.float32).itemsize
    # an index is handed out before the array of AHEAD * workers indices earlier is taken out below
    ring = _Ring(AHEAD * workers + 1, largest) if shares else None
    dataset = _Images(folder, images, order, resizing, ring)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_itself,
        prefetch_factor=AHEAD if workers else None,
    )
    for decoded, left in loader:
        if ring is None or left is None:
            yield decoded
        else:
            place = ring.place(left.index, left.shape, left.dtype)
            assert place is not None
            # by PyTorch, since NumPy asks for huge pages, which the kernel may first have to make
            yield replace(decoded, pixels=torch.from_numpy(place).clone().numpy())
