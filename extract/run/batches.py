"""Part of a list of images to a block of a store: decoding, batches of one shape, the network, the selection."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data_tools.errors import InputError
from data_tools.store.schema import Block
from extract.detector.detector import Detector
from extract.detector.proposals import Proposals
from extract.regions.given_boxes import Boxes
from extract.regions.selection import Selection
from extract.run.loading import Decoded, load
from extract.run.overlap import AsyncStage, Mark
from extract.run.sources import SourceImage
from extract.run.summary import Options

WAITING = 4  # batches of decoded images of different shapes that are held before one goes though it is not full


class BatchRunner:
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
        with AsyncStage(self.detector.device) as stage:
            for span in spans:
                yield self._block(span, decoded, stage, advance)

    def _block(
        self, span: range, decoded: Iterator[Decoded], stage: AsyncStage, advance: Callable[[int], None]
    ) -> Block:
        regions: dict[int, dict[str, np.ndarray]] = {}
        sizes: dict[int, tuple[int, int]] = {}
        failures: list[dict[str, str]] = []

        def fail(position: int, problem: str) -> None:
            failures.append(self._failure(position, problem))
            advance(1)

        before: tuple[list[Decoded], Future] | None = None
        for batch in self._batches(span, decoded, sizes, fail):
            begun = batch, self._begin(batch, stage)
            if before is not None:  # its regions are chosen while the network has the next batch
                regions.update(self._end(*before, stage, begun[1]))
                advance(len(before[0]))
            before = begun
        if before is not None:
            regions.update(self._end(*before, stage))
            advance(len(before[0]))
        too_large = [position for position in sizes if position not in regions]
        failures += [self._failure(position, "too large for the memory of the device") for position in too_large]
        return self._as_block(regions, sizes, tuple(failures))

    def _batches(
        self,
        span: range,
        decoded: Iterator[Decoded],
        sizes: dict[int, tuple[int, int]],
        fail: Callable[[int, str], None],
    ) -> Iterator[list[Decoded]]:
        """The images of a stretch in batches of one shape; `sizes` of the originals are filled in."""
        waiting: defaultdict[tuple[int, ...], list[Decoded]] = defaultdict(list)
        for position in span:
            item = self._next(decoded, position)
            self.seconds["decode"] += item.seconds
            problem = item.problem or self._wrong_boxes(item)
            if problem or item.pixels is None or item.geometry is None:
                fail(position, problem)
                continue
            sizes[position] = item.geometry.original
            waiting[item.pixels.shape].append(item)
            for shape in self._ready(waiting):
                yield waiting.pop(shape)
        yield from waiting.values()

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

    def _begin(self, batch: list[Decoded], stage: AsyncStage) -> Future:
        """Send a batch through the network, and have regions chosen after it: `_columns` will come."""
        start = stage.mark()
        try:
            proposals = self._proposals(batch)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            failed: Future = Future()
            failed.set_exception(error.with_traceback(None))  # which would hold the memory that is wanted
            return failed
        ready = stage.mark()
        return stage.submit(partial(self._columns, batch, proposals, start, ready), ready)

    def _end(
        self, batch: list[Decoded], begun: Future, stage: AsyncStage, next_one: Future | None = None
    ) -> dict[int, dict[str, np.ndarray]]:
        """Columns of each image of a batch, by position; `next_one` is the batch that was begun after it."""
        try:
            return _result(begun)
        except MemoryError:
            wait([] if next_one is None else [next_one])  # for where two batches do not fit one may
            return self._alone(batch, stage)

    def _alone(self, batch: list[Decoded], stage: AsyncStage) -> dict[int, dict[str, np.ndarray]]:
        """The same with nothing else in memory, and in halves where it does not hold the batch even so."""
        if self.detector.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return _result(self._begin(batch, stage))
        except MemoryError:
            if len(batch) == 1:
                return {}  # `_block` makes a failure of it
        half = (len(batch) + 1) // 2
        self.batch_size = min(self.batch_size, half)
        return self._alone(batch[:half], stage) | self._alone(batch[half:], stage)

    def _columns(
        self, batch: list[Decoded], proposals: list[Proposals], start: Mark, ready: Mark
    ) -> dict[int, dict[str, np.ndarray]]:
        described = time.perf_counter()
        columns = select_batch(proposals, self.selection, self.options)
        self.seconds["network"] += start.until(ready)
        self.seconds["selection"] += time.perf_counter() - described
        return {item.position: of_image for item, of_image in zip(batch, columns, strict=True)}

    def _proposals(self, batch: list[Decoded]) -> list[Proposals]:
        tensors = [torch.from_numpy(item.pixels) for item in batch if item.pixels is not None]
        geometries = [item.geometry for item in batch if item.geometry is not None]
        if self.boxes is None:
            return self.detector(tensors, geometries)
        given = [self.boxes[self.images[item.position].image_id] for item in batch]
        return self.detector.predict_boxes(tensors, geometries, [torch.from_numpy(boxes) for boxes in given])

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


def _result(begun: Future) -> dict[int, dict[str, np.ndarray]]:
    """What came of a batch; `MemoryError`, which holds nothing, where the memory was too small for it."""
    try:
        return begun.result()
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        error.__traceback__ = error.__context__ = None  # they hold the memory that is wanted
    raise MemoryError


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch, of the CPU's allocator or of a CUDA library means that."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def select_regions(proposals: Proposals, selection: Selection, options: Options) -> dict[str, np.ndarray]:
    """The columns of the store for one image, k rows each, of the proposals that `selection` chooses."""
    return select_batch([proposals], selection, options)[0]


def select_batch(
    batch: Sequence[Proposals], selection: Selection, options: Options
) -> list[dict[str, np.ndarray]]:
    """As `select_regions`, for several images, whose columns leave the device together."""
    chosen = selection.of_batch(batch)
    features, scores, attribute_scores = (
        torch.cat(
            [getattr(proposals, name)[regions.rows] for proposals, regions in zip(batch, chosen, strict=True)]
        )
        for name in ("features", "class_probabilities", "attribute_probabilities")
    )
    best_scores, best = scores.max(dim=1)
    best_attribute_scores, best_attributes = attribute_scores.max(dim=1)
    columns = {
        "features": (features[:, :0] if options.boxes_only else features).to(getattr(torch, options.dtype)),
        "boxes": torch.cat([regions.boxes for regions in chosen]).float(),
        "class_ids": best.int(),
        "class_scores": best_scores.float(),
        "attribute_ids": best_attributes.int(),
        "attribute_scores": best_attribute_scores.float(),
    }
    ends = np.cumsum([len(regions.rows) for regions in chosen])[:-1]
    pieces = {name: np.split(column.cpu().numpy(), ends) for name, column in columns.items()}
    return [{name: of_image[row] for name, of_image in pieces.items()} for row in range(len(batch))]
