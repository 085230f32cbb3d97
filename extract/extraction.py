"""The run: a list of images to a feature store, through workers that decode and one network that describes."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_tools.console import Progress
from data_tools.errors import InputError
from data_tools.files import replace_file
from data_tools.parts import Parts, refuse_difference
from data_tools.store import Block, FeatureStore
from extract.detector import Detector, Proposals
from extract.images import UnreadableImageError, read_image
from extract.resizing import Resizing
from extract.selection import CaffeSelection
from extract.sources import SourceImage


@dataclass(frozen=True)
class Options:
    """How a run works; none of it changes a feature but `dtype`."""

    batch_size: int = 8  # images that go through the network together
    workers: int = 2  # processes that decode
    part_size: int = 256  # images of a part file: what a kill can cost
    dtype: str = "float32"  # of the stored features, or float16
    fail_on_error: bool = False  # stop at the first image that cannot be read


@dataclass
class Summary:
    """What a run did and what its store holds."""

    output: Path
    images: int
    processed: int = 0  # by this run; the others were there
    stored: int = 0
    regions: int = 0
    short: int = 0  # images with fewer regions than the least asked for
    failures: tuple[dict[str, str], ...] = ()
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            **{name: getattr(self, name) for name in ("images", "processed", "stored", "regions", "short")},
            "output": str(self.output),
            "bytes": self.output.stat().st_size,
            "failures": list(self.failures),
            "images_per_second": self.images_per_second,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }

    def as_text(self) -> str:
        """A few lines for the console."""
        stages = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items() if name != "total")
        lines = [
            f"{self.output}: {self.stored} of {self.images} images, {self.regions} regions, "
            f"{self.output.stat().st_size / 1e6:.1f} MB",
            f"  this run: {self.processed} images in {self.seconds['total']:.1f} s, "
            f"{self.images_per_second:.1f} images/s (seconds: {stages})",
        ]
        if self.short:
            lines.append(f"  {self.short} images had fewer proposals than the regions asked for")
        if self.failures:
            first = self.failures[0]
            lines.append(
                f"  {len(self.failures)} images could not be read, for instance {first['file']} "
                f"({first['reason']}); all are in {report_path(self.output)}"
            )
        return "\n".join(lines)

    @property
    def images_per_second(self) -> float:
        """Images of this run by its whole duration."""
        return self.processed / self.seconds["total"] if self.processed else 0.0


@dataclass(frozen=True)
class _Decoded:
    position: int
    seconds: float
    pixels: np.ndarray | None = None  # (3, h, w), resized
    size: tuple[int, int] = (0, 0)  # height and width of the upright original
    problem: str = ""


class _Images(Dataset):
    """Positions of a list of images, read and resized. NumPy arrays travel by pipe: no shared memory to fill."""

    def __init__(self, folder: Path, images: Sequence[SourceImage], order: list[int], resizing: Resizing) -> None:
        self.folder, self.images, self.order, self.resizing = folder, images, order, resizing

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> _Decoded:
        start, position = time.perf_counter(), self.order[index]
        source = self.images[position]
        try:
            if source.problem:
                raise UnreadableImageError(source.problem)
            image = read_image(self.folder / source.file)
        except UnreadableImageError as error:
            return _Decoded(position, time.perf_counter() - start, problem=str(error))
        pixels = self.resizing(image).numpy()
        return _Decoded(position, time.perf_counter() - start, pixels, (image.shape[0], image.shape[1]))


def _itself(item: Any) -> Any:
    return item


class Extraction:
    """One run over one list of images.

    Args:
        detector: describes proposals.
        selection: chooses regions among them.
        folder: where the images' files are.
        images: the list; its order is that of the store.
        output: the store.
        provenance: how features are made, by name; part of every file and compared on resuming.
        options: see `Options`.
    """

    def __init__(
        self,
        detector: Detector,
        selection: CaffeSelection,
        folder: Path,
        images: Sequence[SourceImage],
        output: Path,
        provenance: dict[str, str],
        options: Options,
    ) -> None:
        self.detector, self.selection, self.folder, self.images = detector, selection, folder, images
        self.options = options
        # Another batch size or device sums in another order: in one store that would show in the last bits.
        conditions = {"batch_size": str(options.batch_size), "device": detector.model.device.type}
        self.parts = Parts(output, provenance, len(images), options.part_size, conditions)
        self.summary = Summary(output, len(images))

    def run(self) -> Summary:
        """Write what is missing of the store, join it, and write the report beside it.

        Raises:
            InputError: existing files were made otherwise, the disk is full, or, with `fail_on_error`, an
                image cannot be read.
        """
        start = time.perf_counter()
        output = self.parts.file
        if output.is_file():
            with FeatureStore(output) as store:
                refuse_difference(output, store.provenance, self.parts.provenance)
            self.parts.discard()
        else:
            self._write_parts(self.parts.missing())
            joining = time.perf_counter()
            self.parts.join()
            self.summary.seconds["writing"] += time.perf_counter() - joining
        with FeatureStore(output) as store:
            self.summary.stored = len(store.image_ids)
            self.summary.regions = int(store.counts.sum())
            self.summary.short = int((store.counts < self.selection.min_boxes).sum())
            self.summary.failures = store.failures
        self.summary.seconds["total"] = time.perf_counter() - start
        write_report(self.summary)
        return self.summary

    def _write_parts(self, missing: list[int]) -> None:
        order = [position for part in missing for position in self.parts.span(part)]
        decoded = iter(self._loader(order))
        done = len(self.images) - len(order)
        pending: Future[None] | None = None
        with Progress("extract", len(self.images), "images", done) as bar, ThreadPoolExecutor(1) as writer:
            for part in missing:
                block = self._describe_part(self.parts.span(part), decoded, bar)
                if pending is not None:
                    pending.result()  # at most one part waits in memory, and its errors are heard
                pending = writer.submit(self._write_part, part, block)
            if pending is not None:
                pending.result()
        self.summary.processed = len(order)

    def _write_part(self, part: int, block: Block) -> None:
        start = time.perf_counter()
        self.parts.write(part, block)
        self.summary.seconds["writing"] += time.perf_counter() - start

    def _loader(self, order: list[int]) -> DataLoader:
        images = _Images(self.folder, self.images, order, self.detector.resizing)
        workers = min(self.options.workers, len(order))
        return DataLoader(images, batch_size=None, num_workers=workers, collate_fn=_itself)

    def _describe_part(self, span: range, decoded: Iterator[_Decoded], bar: Progress) -> Block:
        """Describe the images of a part; only those of exactly one resized shape share a batch."""
        waiting: defaultdict[tuple[int, ...], list[_Decoded]] = defaultdict(list)
        regions: dict[int, dict[str, np.ndarray]] = {}
        sizes: dict[int, tuple[int, int]] = {}
        failures = []
        for position in span:
            item = next(decoded)
            self.summary.seconds["decode"] += item.seconds
            if item.pixels is None:
                failures.append(self._failure(position, item.problem))
                bar.advance()
                continue
            sizes[position] = item.size
            batch = waiting[item.pixels.shape]
            batch.append(item)
            if len(batch) == self.options.batch_size:
                regions.update(self._describe(waiting.pop(item.pixels.shape)))
                bar.advance(len(batch))
        for batch in waiting.values():
            regions.update(self._describe(batch))
            bar.advance(len(batch))
        return self._block(regions, sizes, tuple(failures))

    def _failure(self, position: int, reason: str) -> dict[str, str]:
        image = self.images[position]
        if self.options.fail_on_error:
            raise InputError(f"{self.folder / image.file}: image {image.image_id} cannot be read: {reason}")
        return {"id": image.image_id, "file": image.file, "reason": reason}

    def _describe(self, batch: list[_Decoded]) -> dict[int, dict[str, np.ndarray]]:
        start = time.perf_counter()
        tensors = [torch.from_numpy(item.pixels) for item in batch]
        proposals = self.detector(tensors, [item.size for item in batch])
        self._synchronise()
        described = time.perf_counter()
        self.summary.seconds["network"] += described - start
        regions = {
            item.position: select_regions(found, self.selection, self.options.dtype)
            for item, found in zip(batch, proposals, strict=True)
        }
        self.summary.seconds["selection"] += time.perf_counter() - described
        return regions

    def _synchronise(self) -> None:
        if self.detector.model.device.type == "cuda":
            # so that the seconds are charged to the stage that spends them
            torch.cuda.synchronize(self.detector.model.device)

    def _block(
        self,
        regions: dict[int, dict[str, np.ndarray]],
        sizes: dict[int, tuple[int, int]],
        failures: tuple[dict[str, str], ...],
    ) -> Block:
        positions = sorted(regions)
        nothing = self._no_regions()
        columns = {
            name: np.concatenate([empty, *(regions[position][name] for position in positions)])
            for name, empty in nothing.items()
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
        return {
            "features": np.empty((0, self.detector.dim), self.options.dtype),
            "boxes": np.empty((0, 4), np.float32),
            "class_ids": ids,
            "class_scores": scores,
            "attribute_ids": ids,
            "attribute_scores": scores,
        }


def select_regions(proposals: Proposals, selection: CaffeSelection, dtype: str) -> dict[str, np.ndarray]:
    """The columns of the store for one image, k rows each, of the proposals that `selection` chooses."""
    chosen = selection(proposals.boxes, proposals.class_probabilities)
    class_scores, class_ids = proposals.class_probabilities[chosen].max(dim=1)
    attribute_scores, attribute_ids = proposals.attribute_probabilities[chosen].max(dim=1)
    columns = {
        "features": proposals.features[chosen].to(getattr(torch, dtype)),
        "boxes": proposals.boxes[chosen].float(),
        "class_ids": class_ids.int(),
        "class_scores": class_scores.float(),
        "attribute_ids": attribute_ids.int(),
        "attribute_scores": attribute_scores.float(),
    }
    return {name: column.cpu().numpy() for name, column in columns.items()}


def report_path(store: Path) -> Path:
    """Where the report of a store lies: beside it."""
    return store.with_name(store.name.removesuffix(".h5") + ".report.json")


def write_report(summary: Summary) -> Path:
    """Write `STORE.report.json`: how many images were asked for and stored, and each failure."""
    path = report_path(summary.output)
    report = {"images": summary.images, "stored": summary.stored, "failures": list(summary.failures)}
    replace_file(path, json.dumps(report, indent=2, ensure_ascii=False).encode())
    return path
