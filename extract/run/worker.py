"""A process that extracts parts of a list with one network: this one, or an actor on a Ray cluster."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from data_tools.devices import resolve_device
from data_tools.store.parts import Parts, StoreContents
from data_tools.store.schema import Block
from extract.run.batches import BatchRunner
from extract.run.plan import ExtractionPlan


@dataclass
class WrittenParts:
    """What was written: contents by part, and the seconds spent by stage."""

    contents: dict[int, StoreContents] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class PartWriter(Protocol):
    """Writes parts of a list, in this process or in others."""

    def __call__(self, parts: Parts, missing: Sequence[int], advance: Callable[[int], None]) -> WrittenParts:
        """Write the missing parts; `advance` is called with the number of images that were done.

        Raises:
            InputError: an image cannot be read and the run is to stop then, or the disk is full.
        """


class LocalPartWriter:
    """Writes parts in this process: one thread writes a part while the next is extracted."""

    def __init__(self, runner: BatchRunner) -> None:
        self.runner = runner

    def __call__(self, parts: Parts, missing: Sequence[int], advance: Callable[[int], None]) -> WrittenParts:
        """See `PartWriter`."""
        written: dict[int, StoreContents] = {}
        seconds = self.runner.seconds
        pending: Future[None] | None = None

        def write(part: int, block: Block) -> None:
            start = time.perf_counter()
            written[part] = parts.write(part, block)
            seconds["writing"] += time.perf_counter() - start

        blocks = self.runner.blocks([parts.span(part) for part in missing], advance)
        with ThreadPoolExecutor(1) as writer:
            for part, block in zip(missing, blocks, strict=True):
                if pending is not None:
                    pending.result()  # at most one part waits in memory, and an error of the writer is raised here
                pending = writer.submit(write, part, block)
            if pending is not None:
                pending.result()
        return WrittenParts(written, seconds)


class PartWorker:
    """Writes one part per call with a network that is built at the first: an actor of Ray.

    Args:
        plan: what to extract.
        device: type of the worker's device, `cpu` or `cuda`.
    """

    def __init__(self, plan: ExtractionPlan, device: str) -> None:
        self.plan, self.device = plan, device
        self.runner: BatchRunner | None = None

    def write(self, parts: Parts, part: int) -> tuple[StoreContents, dict[str, float]]:
        """Extract and write one part: its contents, and the seconds spent by stage."""
        # built here and not in __init__, since Ray passes on the exceptions of method calls only
        runner = self.runner = self.runner or self.plan.runner(resolve_device(self.device))
        before = dict(runner.seconds)
        [block] = runner.blocks([parts.span(part)], lambda count: None)
        start = time.perf_counter()
        contents = parts.write(part, block)
        runner.seconds["writing"] += time.perf_counter() - start
        return contents, {stage: value - before.get(stage, 0.0) for stage, value in runner.seconds.items()}
