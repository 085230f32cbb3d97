"""The run: a list of images to a feature store, by part files that this process or others write."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from data_tools.console import Progress
from data_tools.store.parts import Parts, check_same_provenance
from data_tools.store.reading import FeatureStore
from data_tools.store.report import write_report
from data_tools.store.schema import Block
from extract.run.batches import BatchRunner
from extract.run.summary import Summary


class Engine(Protocol):
    """Who writes parts."""

    def __call__(self, parts: Parts, missing: Sequence[int], advance: Callable[[int], None]) -> dict[str, float]:
        """Write the missing parts, tell `advance` how many images are done, return seconds by stage."""


class Extraction:
    """One run over one list of images.

    Args:
        output: the store.
        provenance: how features are made, by name; part of every file and compared on resuming.
        conditions: what else must stay while a store is made.
        images: how many images the list has.
        part_size: images of a part.
        min_boxes: regions below which an image counts as short.
        shard: (i, n) to write every n-th part only and leave joining to `data-tools join`.
    """

    def __init__(
        self,
        output: Path,
        provenance: dict[str, str],
        conditions: dict[str, str],
        images: int,
        part_size: int,
        min_boxes: int,
        shard: tuple[int, int] | None = None,
    ) -> None:
        self.parts = Parts(output, provenance, images, part_size, conditions)
        self.min_boxes, self.shard = min_boxes, shard
        self.summary = Summary(output, images)

    def run(self, engine: Engine) -> Summary:
        """Write what is missing of the store, join it, and write the report beside it.

        Raises:
            InputError: existing files were made otherwise, the disk is full, or the engine cannot go on.
        """
        start = time.perf_counter()
        if self.parts.file.is_file():
            with FeatureStore(self.parts.file) as store:
                check_same_provenance(store.path, store.provenance, self.parts.provenance)
            self.parts.discard()
        else:
            self._write_parts(engine)
        if self.parts.file.is_file():
            with FeatureStore(self.parts.file) as store:
                self._count(store)
            write_report(self.parts.file, self.summary.stored, self.summary.failures)
        self.summary.seconds["total"] = time.perf_counter() - start
        return self.summary

    def _write_parts(self, engine: Engine) -> None:
        missing = self.parts.missing()
        mine = [part for part in missing if self._is_mine(part)]
        self.summary.processed = sum(len(self.parts.span(part)) for part in mine)
        asked = sum(len(self.parts.span(part)) for part in range(self.parts.count) if self._is_mine(part))
        with Progress("extract", asked, "images", asked - self.summary.processed) as bar:
            self.summary.add_seconds(engine(self.parts, mine, bar.advance))
        if self.shard is not None:
            self._count_parts()
            return
        joining = time.perf_counter()
        self.parts.join()
        self.summary.seconds["writing"] += time.perf_counter() - joining

    def _is_mine(self, part: int) -> bool:
        return self.shard is None or part % self.shard[1] == self.shard[0] - 1

    def _count_parts(self) -> None:
        """Sum up a shard: its own parts, and how many of the others' are still to come."""
        missing = self.parts.missing()
        self.summary.parts_missing = len(missing)
        for part in range(self.parts.count):
            if self._is_mine(part) and part not in missing:
                with FeatureStore(self.parts.path(part)) as store:
                    self._count(store)

    def _count(self, store: FeatureStore) -> None:
        self.summary.stored += len(store.image_ids)
        self.summary.regions += int(store.counts.sum())
        self.summary.short += int((store.counts < self.min_boxes).sum())
        self.summary.failures += store.failures


class LocalEngine:
    """This process, with one network: it describes a part while a thread writes the one before."""

    def __init__(self, runner: BatchRunner) -> None:
        self.runner = runner

    def __call__(self, parts: Parts, missing: Sequence[int], advance: Callable[[int], None]) -> dict[str, float]:
        """See `Engine`."""
        seconds = self.runner.seconds
        pending: Future[None] | None = None

        def write(part: int, block: Block) -> None:
            start = time.perf_counter()
            parts.write(part, block)
            seconds["writing"] += time.perf_counter() - start

        blocks = self.runner.blocks([parts.span(part) for part in missing], advance)
        with ThreadPoolExecutor(1) as writer:
            for part, block in zip(missing, blocks, strict=True):
                if pending is not None:
                    pending.result()  # at most one part waits in memory, and its errors are heard
                pending = writer.submit(write, part, block)
            if pending is not None:
                pending.result()
        return seconds
