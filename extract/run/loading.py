"""The images of a list, decoded and resized in worker processes.

Sending an array of megabytes through a pipe takes as long as making it, so the workers write their arrays into
anonymous memory that they inherit. PyTorch's own sharing is about as fast (`benchmarks/loading.py`: the faster one
depends on the images), but it needs room in `/dev/shm`. A Docker container has 64 MB there by default: the arrays
of five workers, two of 7.2 MB each, do not fit, and the loader raises an error.
"""

import mmap
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_tools.images.decoding import MAX_PIXELS, UnreadableImageError, decode_bgr, to_bgr, upright_size
from data_tools.workers import fitting_workers
from extract.detector.resizing import Geometry, Resizing
from extract.run.sources import SourceImage

AHEAD = 2  # images that each worker prepares before they are requested


@dataclass(frozen=True)
class Decoded:
    """A decoded image of the list, or the reason why it cannot be read.

    Attributes:
        position: of the image in the list.
        seconds: spent on decoding and resizing.
        pixels: (3, h, w), resized; None where there is a problem.
        geometry: of the resize.
        problem: why the image cannot be read; empty where it can.
    """

    position: int
    seconds: float
    pixels: np.ndarray | None = None
    geometry: Geometry | None = None
    problem: str = ""


class _Ring:
    """Slots for arrays in memory that a process shares with the processes forked from it.

    The array of index i is in slot i modulo the number of slots, until that of a later round overwrites it.
    """

    def __init__(self, slots: int, size: int) -> None:
        self._bytes = np.frombuffer(mmap.mmap(-1, slots * size), np.uint8).reshape(slots, size)

    def slot(self, index: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """The array of an index; None where it is larger than a slot."""
        size = int(np.prod(shape)) * dtype.itemsize
        row = self._bytes[index % len(self._bytes)]
        return row[:size].view(dtype).reshape(shape) if size <= len(row) else None


@dataclass(frozen=True)
class _InRing:
    """Sent instead of an array: where in the ring it is."""

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype


class _Images(Dataset):
    """The images of a list, decoded and resized; arrays go to the ring where there is one.

    An item is requested by its place in the order and its position in the list.
    """

    def __init__(
        self,
        folder: Path,
        images: Sequence[SourceImage],
        resizing: Resizing,
        ring: _Ring | None,
        max_pixels: int,
    ) -> None:
        self.folder, self.images, self.resizing = folder, images, resizing
        self.ring, self.max_pixels = ring, max_pixels

    def __getitem__(self, request: tuple[int, int]) -> tuple[Decoded, _InRing | None]:
        index, position = request
        decoded = self._decode(position)
        if self.ring is None or decoded.pixels is None:
            return decoded, None
        in_ring = _InRing(index, decoded.pixels.shape, decoded.pixels.dtype)
        slot = self.ring.slot(index, in_ring.shape, in_ring.dtype)
        if slot is None:
            return decoded, None
        np.copyto(slot, decoded.pixels)
        return replace(decoded, pixels=None), in_ring

    def _decode(self, position: int) -> Decoded:
        start, source = time.perf_counter(), self.images[position]
        try:
            if source.problem:
                raise UnreadableImageError(source.problem)
            if source.pixels is not None:
                image = to_bgr(source.pixels)
            else:
                image = decode_bgr(self.folder / source.file, self.max_pixels)
            pixels, geometry = self.resizing(image)
        except UnreadableImageError as error:
            return Decoded(position, time.perf_counter() - start, problem=str(error))
        except (MemoryError, cv2.error):
            return Decoded(position, time.perf_counter() - start, problem="too large for this machine's memory")
        return Decoded(position, time.perf_counter() - start, pixels.numpy(), geometry)


def _itself(item: Any) -> Any:
    return item


def reading_order(
    folder: Path, images: Sequence[SourceImage], spans: Sequence[range], resizing: Resizing
) -> Iterator[int]:
    """The positions of all spans, one span after another; in each, images of one resized shape come together.

    The headers of a span are read, in a thread, while the images of the span before are requested.
    """

    def shape_of(position: int) -> tuple[int, int]:
        image = images[position]
        known = None if image.pixels is None else image.pixels.shape[:2]
        size = known or upright_size(folder / image.file)
        return resizing.geometry(*size).resized if size and min(size) else (0, 0)

    with ThreadPoolExecutor(1) as thread:
        ahead = [thread.submit(sorted, span, key=shape_of) for span in spans[:1]]
        for number in range(len(spans)):
            ahead += [thread.submit(sorted, span, key=shape_of) for span in spans[number + 1 : number + 2]]
            yield from ahead[number].result()


def load(
    folder: Path,
    images: Sequence[SourceImage],
    order: Iterable[int],
    resizing: Resizing,
    workers: int,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Decoded]:
    """The images at some positions of a list, in that order.

    Args:
        folder: folder of the image files.
        images: the list.
        order: positions in the list; it is read as far as images are decoded ahead.
        resizing: how each image is resized.
        workers: number of worker processes; 0 decodes in this process.
        max_pixels: a larger image is not decoded.

    Raises:
        RuntimeError: of PyTorch, when a worker was killed.
    """
    workers = min(fitting_workers(workers, 0), len(images))  # the arrays are in memory of their own
    shares = workers > 0 and multiprocessing.get_start_method() == "fork"
    largest = resizing.min_side * resizing.max_side * 3 * np.dtype(np.float32).itemsize
    # an index is given to a worker before the array AHEAD * workers indices earlier is copied out below
    ring = _Ring(AHEAD * workers + 1, largest) if shares else None
    dataset = _Images(folder, images, resizing, ring, max_pixels)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=enumerate(order),
        num_workers=workers,
        collate_fn=_itself,
        prefetch_factor=AHEAD if workers else None,
    )
    for decoded, in_ring in loader:
        if ring is None or in_ring is None:
            yield decoded
        else:
            slot = ring.slot(in_ring.index, in_ring.shape, in_ring.dtype)
            assert slot is not None
            # copied by PyTorch: NumPy requests huge pages, which the kernel may have to assemble first
            yield replace(decoded, pixels=torch.from_numpy(slot).clone().numpy())
