"""Part of a list of images to a block of a store: decoding, batches of one shape, the network, the selection."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data_tools.errors import InputError
from data_tools.store import Block
from extract.detector import Detector
from extract.given_boxes import Boxes
from extract.loading import Decoded, load
from extract.proposals import Proposals
from extract.selection import Selection
from extract.sources import SourceImage
from extract.summary import Options

WAITING = 4  # batches of decoded images of different shapes that are held before one goes though it is not full


class Describer:
    """Describes the images of a list.

    Args:
        detector: describes proposals.
        selection: chooses regions among them.
        folder: where the images' files are.
        images: the list.
        options: see `Options`.
        boxes: for each id the boxes to describe in the place of proposals; None for proposals.

    Attributes:
        seconds: spent so far, by stage.
        batch_size: of the options, or less once the memory did not hold it.
    """

    def __init__(
        self,
        detector: Detector,
        selection: Selection,
        folder: Path,
        images: Sequence[SourceImage],
        options: Options,
        boxes: Boxes | None = None,
    ) -> None:
        self.detector, self.selection, self.folder, self.images = detector, selection, folder, images
        self.options, self.boxes = options, boxes
        self.batch_size = options.batch_size
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def blocks(self, spans: Sequence[range], advance: Callable[[int], None]) -> Iterator[Block]:
        """The block of each of some stretches of the list; `advance` is told how many images are done.

        A batch never crosses a stretch, and holds only images of exactly one resized shape.

        Raises:
            InputError: an image cannot be read and the options say to stop then.
        """
        order = [position for span in spans for position in span]
        decoded = load(self.folder, self.images, order, self.detector.resizing, self.options.workers)
        for span in spans:
            yield self._block(span, decoded, advance)

    def _block(self, span: range, decoded: Iterator[Decoded], advance: Callable[[int], None]) -> Block:
        waiting: defaultdict[tuple[int, ...], list[Decoded]] = defaultdict(list)
        regions: dict[int, dict[str, np.ndarray]] = {}
        sizes: dict[int, tuple[int, int]] = {}
        failures = []
        for position in span:
            item = self._next(decoded, position)
            self.seconds["decode"] += item.seconds
            problem = item.problem or self._wrong_boxes(item)
            if problem or item.pixels is None or item.geometry is None:
                failures.append(self._failure(position, problem))
                advance(1)
                continue
            sizes[position] = item.geometry.original
            waiting[item.pixels.shape].append(item)
            for shape in self._ready(waiting):
                batch = waiting.pop(shape)
                regions.update(self._describe(batch))
                advance(len(batch))
        for batch in waiting.values():
            regions.update(self._describe(batch))
            advance(len(batch))
        too_large = [position for position in sizes if position not in regions]
        failures += [self._failure(position, "too large for the memory of the device") for position in too_large]
        return self._as_block(regions, sizes, tuple(failures))

    def _next(self, decoded: Iterator[Decoded], position: int) -> Decoded:
        try:
            return next(decoded)
        except RuntimeError as error:  # PyTorch says so of a process that was killed
            image = self.images[position]
            raise InputError(
                f"{self.folder / image.file}: a process that reads images died here or near, perhaps for want of "
                f"memory ({' '.join(str(error).split())[:120]}); the same command goes on"
            ) from None

    def _ready(self, waiting: dict[tuple[int, ...], list[Decoded]]) -> list[tuple[int, ...]]:
        """The shape that has a full batch, or the most images where too many wait in all."""
        fullest = max(waiting, key=lambda shape: len(waiting[shape]))
        too_many = sum(map(len, waiting.values())) >= WAITING * self.options.batch_size
        return [fullest] if too_many or len(waiting[fullest]) >= self.batch_size else []

    def _wrong_boxes(self, item: Decoded) -> str:
        """Why the boxes that are given for an image cannot be described; empty where they can, or none are."""
        if self.boxes is None or item.geometry is None:
            return ""
        boxes = self.boxes.get(self.images[item.position].image_id)
        if boxes is None:
            return "no boxes are given for it"
        height, width = item.geometry.original
        outside = (boxes[:, 2:] < 0).any(axis=1) | (boxes[:, 0] > width) | (boxes[:, 1] > height)
        return f"box {int(outside.argmax())} of those given for it lies outside" if outside.any() else ""

    def _failure(self, position: int, reason: str) -> dict[str, str]:
        image = self.images[position]
        if self.options.fail_on_error:
            raise InputError(f"{self.folder / image.file}: image {image.image_id} cannot be read: {reason}")
        return {"id": image.image_id, "file": image.file, "reason": reason}

    def _describe(self, batch: list[Decoded]) -> dict[int, dict[str, np.ndarray]]:
        """Columns of each image of a batch, by position; in halves where the memory does not hold it whole."""
        try:
            return self._describe_at_once(batch)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
        if len(batch) == 1:
            return {}  # `_block` makes a failure of it
        if self.detector.device.type == "cuda":
            torch.cuda.empty_cache()
        half = (len(batch) + 1) // 2
        self.batch_size = min(self.batch_size, half)
        return {**self._describe(batch[:half]), **self._describe(batch[half:])}

    def _describe_at_once(self, batch: list[Decoded]) -> dict[int, dict[str, np.ndarray]]:
        start = time.perf_counter()
        proposals = self._proposals(batch)
        self._synchronise()
        described = time.perf_counter()
        self.seconds["network"] += described - start
        regions = {
            item.position: select_regions(found, self.selection, self.options)
            for item, found in zip(batch, proposals, strict=True)
        }
        self.seconds["selection"] += time.perf_counter() - described
        return regions

    def _proposals(self, batch: list[Decoded]) -> list[Proposals]:
        tensors = [torch.from_numpy(item.pixels) for item in batch if item.pixels is not None]
        geometries = [item.geometry for item in batch if item.geometry is not None]
        if self.boxes is None:
            return self.detector(tensors, geometries)
        given = [self.boxes[self.images[item.position].image_id] for item in batch]
        return self.detector.describe_boxes(tensors, geometries, [torch.from_numpy(boxes) for boxes in given])

    def _synchronise(self) -> None:
        if self.detector.device.type == "cuda":
            # so that the seconds are charged to the stage that spends them
            torch.cuda.synchronize(self.detector.device)

    def _as_block(
        self,
        regions: dict[int, dict[str, np.ndarray]],
        sizes: dict[int, tuple[int, int]],
        failures: tuple[dict[str, str], ...],
    ) -> Block:
        positions = sorted(regions)
        columns = {
            name: np.concatenate([empty, *(regions[position][name] for position in positions)])
            for name, empty in self._no_regions().items()
        }
        return Block(
            image_ids=[self.images[position].image_id for position in positions],
            counts=np.array([len(regions[position]["boxes"]) for position in positions], dtype=np.int64),
            regions=columns,
            image_sizes=np.array([sizes[position] for position in positions], dtype=np.int32).reshape(-1, 2),
            failures=failures,
        )

    def _no_regions(self) -> dict[str, np.ndarray]:
        """Columns of no rows: they give an empty part its shapes and types."""
        scores, ids = np.empty(0, np.float32), np.empty(0, np.int32)
        dim = 0 if self.options.boxes_only else self.detector.dim
        return {
            "features": np.empty((0, dim), self.options.dtype),
            "boxes": np.empty((0, 4), np.float32),
            "class_ids": ids,
            "class_scores": scores,
            "attribute_ids": ids,
            "attribute_scores": scores,
        }


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch, of the CPU's allocator or of a CUDA library means that."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def select_regions(proposals: Proposals, selection: Selection, options: Options) -> dict[str, np.ndarray]:
    """The columns of the store for one image, k rows each, of the proposals that `selection` chooses."""
    chosen = selection(proposals)
    rows = chosen.rows
    class_scores, class_ids = proposals.class_probabilities[rows].max(dim=1)
    attribute_scores, attribute_ids = proposals.attribute_probabilities[rows].max(dim=1)
    features = proposals.features[rows].to(getattr(torch, options.dtype))
    columns = {
        "features": features[:, :0] if options.boxes_only else features,
        "boxes": chosen.boxes.float(),
        "class_ids": class_ids.int(),
        "class_scores": class_scores.float(),
        "attribute_ids": attribute_ids.int(),
        "attribute_scores": attribute_scores.float(),
    }
    return {name: column.cpu().numpy() for name, column in columns.items()}
