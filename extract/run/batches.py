"""From images of a list to a block of a store: decoding, batches of one shape, the network, the selection."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
import torch

from data_tools.devices import to_host
from data_tools.errors import InputError, one_line
from data_tools.store.schema import Block
from extract.choices import Dtype, OnError, RunOptions
from extract.detector.detector import Detector
from extract.detector.proposals import Proposals, without_padding
from extract.regions.given_boxes import Boxes
from extract.regions.recovery import Recovery
from extract.regions.selection import Grid, Selection, joint_rows
from extract.run.loading import Decoded, load, reading_order
from extract.run.overlap import AsyncStage, TimedEvent
from extract.run.sources import Sources

FAR = 10  # a given box may reach so many times the image's longer side beyond it
WAITING = 4  # a batch that is not full is computed once images of this many batches wait for others of their shape


@dataclass(frozen=True)
class _Part:
    """What is known of a span of the list so far, by position: columns, sizes of originals, and failures."""

    span: range
    advance: Callable[[int], None]
    regions: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    unreadable: dict[int, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Running:
    """A batch of a part, and its columns in the future."""

    part: _Part
    batch: list[Decoded]
    result: Future


class BatchRunner:
    """Runs the images of a list through the detector in batches, and selects their regions.

    Args:
        detector: gives proposals with their predictions.
        selection: selects regions among them, or recovers the boxes of published ones; a `Grid` takes its cells.
        sources: the list of images.
        options: see `RunOptions`; here `batch_size`, `workers` and `on_error` count.
        boxes: for each id the given boxes to predict for instead of proposals; None for proposals.
        dtype: of the stored features; None to store none.

    Attributes:
        seconds: spent so far, by stage.
        batch_size: of the options, or less after a batch did not fit the device's memory.
    """

    def __init__(
        self,
        detector: Detector,
        selection: Selection | Recovery,
        sources: Sources,
        options: RunOptions,
        boxes: Boxes | None = None,
        dtype: Dtype | None = Dtype.FLOAT32,
    ) -> None:
        self.detector, self.selection = detector, selection
        self.folder, self.images = sources.folder, sources.images
        self.options, self.boxes, self.dtype = options, boxes, dtype
        self.batch_size = options.batch_size
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def blocks(self, spans: Sequence[range], advance: Callable[[int], None]) -> Iterator[Block]:
        """One block for each span of the list; `advance` is called with the number of images that were done.

        A batch holds images of one span and of exactly one resized shape. For a GPU, which computes a batch
        together, the images of a span are read in order of their shapes, and the network goes on to the next span
        while the last regions of one are selected.

        Raises:
            InputError: an image cannot be read and `options.on_error` is FAIL, or a process of the loader died.
        """
        order: Iterable[int] = [position for span in spans for position in span]
        if self.detector.device.type == "cuda":
            order = reading_order(self.folder, self.images, spans, self.detector.resizing)
        requested: deque[int] = deque()
        loaded = load(
            self.folder,
            self.images,
            _noting(order, requested),
            self.detector.resizing,
            self.options.workers,
            self.options.max_pixels,
        )
        decoded = self._next(loaded, requested)
        with AsyncStage(self.detector.device) as stage:
            yield from self._blocks([_Part(span, advance) for span in spans], decoded, stage)

    def _blocks(self, parts: Sequence[_Part], decoded: Iterator[Decoded], stage: AsyncStage) -> Iterator[Block]:
        """While the network computes a batch, the regions of the one before it are selected."""
        goes_on = self.detector.device.type == "cuda"  # on a CPU the next part's first batch may take minutes
        before: _Running | None = None
        started: list[_Part] = []  # whose last batch may be running
        for part in parts:
            for batch in self._batches(part, decoded):
                running = _Running(part, batch, self._start(batch, stage))
                if before is not None:
                    self._finish(before, stage, running.result)
                before = running
                yield from map(self._as_block, started)
                started.clear()
            started.append(part)
            if goes_on and part is not parts[-1]:
                continue
            if before is not None:
                self._finish(before, stage)
                before = None
            yield from map(self._as_block, started)
            started.clear()

    def _batches(self, part: _Part, decoded: Iterator[Decoded]) -> Iterator[list[Decoded]]:
        """The images of a part in batches of one shape; fills in `sizes` of the originals."""
        waiting: defaultdict[tuple[int, ...], list[Decoded]] = defaultdict(list)
        for item in islice(decoded, len(part.span)):
            self.seconds["decode"] += item.seconds
            problem = item.problem or self._wrong_boxes(item)
            if problem or item.pixels is None or item.geometry is None:
                part.unreadable[item.position] = self._failure(item.position, problem)
                part.advance(1)
                continue
            part.sizes[item.position] = item.geometry.original
            shape = item.pixels.shape
            waiting[shape].append(item)
            if len(waiting[shape]) >= self.batch_size:
                yield waiting.pop(shape)
            elif sum(map(len, waiting.values())) >= WAITING * self.options.batch_size:
                yield waiting.pop(
                    next(iter(waiting))
                )  # the shape that waits longest: others may still meet theirs
        yield from waiting.values()

    def _next(self, loaded: Iterator[Decoded], requested: deque[int]) -> Iterator[Decoded]:
        """The images that are loaded, in the order in which they were requested."""
        while True:
            try:
                item = next(loaded)
            except StopIteration:
                return
            except RuntimeError as error:  # of PyTorch, where a process of the loader was killed
                image = self.images[requested[0]]
                raise InputError(
                    f"{self.folder / image.file}: a process that reads images died at this image or one of the "
                    f"next, perhaps for lack of memory ({one_line(error, 120)}); fix: run the same command again, "
                    "which resumes, with fewer --workers"
                ) from None
            requested.popleft()
            yield item

    def _wrong_boxes(self, item: Decoded) -> str:
        """What is wrong with the given boxes of an image; empty where they are correct or proposals are used."""
        if self.boxes is None or item.geometry is None:
            return ""
        boxes = self.boxes.get(self.images[item.position].image_id)
        if boxes is None:
            return "no boxes are given for this image"
        height, width = item.geometry.original
        outside = (boxes[:, 2:] < 0).any(axis=1) | (boxes[:, 0] > width) | (boxes[:, 1] > height)
        margin = FAR * max(height, width)  # RoIAlign takes memory in proportion to a box, wherever it lies
        outside |= (boxes[:, :2] < -margin).any(axis=1)
        outside |= (boxes[:, 2] > width + margin) | (boxes[:, 3] > height + margin)
        return f"given box {int(outside.argmax())} is outside the image" if outside.any() else ""

    def _failure(self, position: int, reason: str) -> dict[str, str]:
        image = self.images[position]
        if self.options.on_error is OnError.FAIL:
            raise InputError(f"{self.folder / image.file}: image {image.image_id} cannot be read: {reason}")
        return {"id": image.image_id, "file": image.file, "reason": reason}

    def _start(self, batch: list[Decoded], stage: AsyncStage) -> Future:
        """Run the network on a batch and submit the selection of its regions: a future of `_columns`."""
        start = stage.record()
        try:
            proposals = self._proposals(batch)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            failed: Future = Future()
            failed.set_exception(error.with_traceback(None))  # its frames would keep the batch in memory
            return failed
        ready = stage.record()
        return stage.submit(partial(self._columns, batch, proposals, start, ready), ready)

    def _finish(self, running: _Running, stage: AsyncStage, following: Future | None = None) -> None:
        """Add a batch's columns to its part; `following` is the batch that was started after it."""
        try:
            found = _result(running.result)
        except MemoryError:
            wait([] if following is None else [following])  # one batch may fit where two do not
            found = self._retry(running.batch, stage)
        running.part.regions.update(found)
        running.part.advance(len(running.batch))

    def _retry(self, batch: list[Decoded], stage: AsyncStage) -> dict[int, dict[str, np.ndarray]]:
        """The same with no other batch in memory, and in halves where the batch does not fit even then."""
        if self.detector.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return _result(self._start(batch, stage))
        except MemoryError:
            if len(batch) == 1:
                return {}  # `_as_block` reports it as a failure
        half = (len(batch) + 1) // 2
        self.batch_size = min(self.batch_size, half)
        return self._retry(batch[:half], stage) | self._retry(batch[half:], stage)

    def _columns(
        self, batch: list[Decoded], proposals: list[Proposals], start: TimedEvent, ready: TimedEvent
    ) -> dict[int, dict[str, np.ndarray]]:
        begin = time.perf_counter()
        if isinstance(self.selection, Recovery):
            columns = self._recovered(batch, proposals, self.selection)
        else:
            columns = select_batch(proposals, self.selection, self.dtype)
        self.seconds["network"] += start.seconds_to(ready)
        self.seconds["selection"] += time.perf_counter() - begin
        return {item.position: of_image for item, of_image in zip(batch, columns, strict=True)}

    def _recovered(
        self, batch: list[Decoded], proposals: list[Proposals], recovery: Recovery
    ) -> list[dict[str, np.ndarray]]:
        return [
            recovery.columns(self.images[item.position].image_id, item.geometry.original, found, self.detector)
            for item, found in zip(batch, without_padding(proposals), strict=True)
            if item.geometry is not None
        ]

    def _proposals(self, batch: list[Decoded]) -> list[Proposals]:
        tensors = [torch.from_numpy(item.pixels) for item in batch if item.pixels is not None]
        geometries = [item.geometry for item in batch if item.geometry is not None]
        if isinstance(self.selection, Grid):
            return self.detector.pool_grid(tensors, geometries, self.selection.cells)
        if self.boxes is None:
            return self.detector(tensors, geometries)
        given = [self.boxes[self.images[item.position].image_id] for item in batch]
        return self.detector.predict_boxes(tensors, geometries, [torch.from_numpy(boxes) for boxes in given])

    def _as_block(self, part: _Part) -> Block:
        regions, sizes = part.regions, part.sizes
        failures = [part.unreadable[position] for position in sorted(part.unreadable)]
        for position in [position for position in sorted(regions) if not _is_finite(regions[position])]:
            del regions[position], sizes[position]
            failures.append(self._failure(position, f"its features are no finite numbers in {self.dtype}"))
        too_large = sorted(sizes.keys() - regions.keys())
        failures += [self._failure(position, "too large for the memory of the device") for position in too_large]
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
            failures=tuple(failures),
        )

    def _no_regions(self) -> dict[str, np.ndarray]:
        """Columns without rows, which give an empty part its shapes and types."""
        scores, ids = np.empty(0, np.float32), np.empty(0, np.int32)
        dim = 0 if self.dtype is None else self.detector.dim
        confidence = {"box_confidence": scores} if isinstance(self.selection, Recovery) else {}
        columns: dict[str, np.ndarray] = {
            "features": np.empty((0, dim), self.dtype or Dtype.FLOAT32),
            "boxes": np.empty((0, 4), np.float32),
        }
        if isinstance(self.selection, Grid):
            return columns
        kinds = ("class", "attribute") if self.detector.num_attributes else ("class",)
        for kind in kinds:
            columns = {**columns, f"{kind}_ids": ids, f"{kind}_scores": scores}
        return {**columns, **confidence}


def _noting(order: Iterable[int], requested: deque[int]) -> Iterator[int]:
    for position in order:
        requested.append(position)
        yield position


def _result(started: Future) -> dict[int, dict[str, np.ndarray]]:
    """The result of a batch; `MemoryError`, which keeps no tensor alive, where the memory was too small."""
    try:
        return started.result()
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        error.__traceback__ = error.__context__ = None  # their frames would keep the batch in memory
    raise MemoryError


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of PyTorch, of the CPU's allocator or of a CUDA library means that memory is full."""
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def _is_finite(columns: dict[str, np.ndarray]) -> bool:
    """Whether all numbers of an image's columns are finite: half precision ends at 65504."""
    return all(bool(np.isfinite(values).all()) for values in columns.values())


def select_regions(
    proposals: Proposals, selection: Selection, dtype: Dtype | None = Dtype.FLOAT32
) -> dict[str, np.ndarray]:
    """The store's columns for one image, k rows each: the proposals that `selection` selects.

    `features` are of type `dtype` and (k, D), or (k, 0) where that is None. The cells of a grid have neither
    classes nor attributes.
    """
    return select_batch([proposals], selection, dtype)[0]


def select_batch(
    batch: Sequence[Proposals], selection: Selection, dtype: Dtype | None
) -> list[dict[str, np.ndarray]]:
    """As `select_regions`, for several images, whose columns are copied from the device together.

    A GPU is waited for three times: for the number of proposals, which is known where their boxes were given, for
    what decides which are selected, and for the columns. There are at most 26 operations for a batch, which
    move 28 MB per image of 300 proposals, 1,600 classes and 2,048 numbers.
    """
    batch = without_padding(batch)
    chosen = selection.of_batch(batch)
    lengths, device = [len(proposals.boxes) for proposals in batch], batch[0].boxes.device
    positions = joint_rows(lengths, [regions.rows for regions in chosen], device)
    features, scores, attribute_scores = (
        torch.cat([getattr(proposals, name) for proposals in batch])[positions]
        for name in ("features", "class_probabilities", "attribute_probabilities")
    )
    columns = {
        "features": features[:, :0] if dtype is None else features.to(getattr(torch, dtype)),
        "boxes": torch.cat([regions.boxes for regions in chosen]).float(),
    }
    for kind, probabilities in (("class", scores), ("attribute", attribute_scores)):
        if probabilities.shape[1]:  # of a grid nothing is predicted
            best_scores, best = probabilities.max(dim=1)
            columns |= {f"{kind}_ids": best.int(), f"{kind}_scores": best_scores.float()}
    ends = np.cumsum([len(regions.rows) for regions in chosen])[:-1]
    on_host = zip(columns, to_host(*columns.values()), strict=True)
    pieces = {name: np.split(column.numpy(), ends) for name, column in on_host}
    return [{name: of_image[row] for name, of_image in pieces.items()} for row in range(len(batch))]
