"""What a stage may ask of a GPU: how often the host waits, how much is launched, copied and written.

A stage is counted at the size of a recipe, on shapes alone. Each module of this folder lists its stages with their
budgets and asserts them; `python -m benchmarks.gpu_counts` prints what is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.pretended_gpu.device import PretendedGPU, pretend_kernel


@dataclass(frozen=True)
class Counts:
    """What a stage asks of the GPU, see `PretendedGPU`.

    Attributes:
        waits: of the host for the GPU.
        launches: of operators, and copies.
        copied: megabytes between host and GPU.
        written: megabytes that operators write on the GPU.
    """

    waits: int
    launches: int
    copied: float
    written: float


@dataclass(frozen=True)
class Stage:
    """A piece of work with its budget.

    Attributes:
        name: of the work, with its size.
        prepare: from a pretended GPU to the work, which is not counted itself.
        budget: exactly so many waits, and at most so much of the rest.
    """

    name: str
    prepare: Callable[[PretendedGPU], Callable[[], Any]]
    budget: Counts

    def count(self) -> Counts:
        """Do the work on a pretended GPU, where hard assignment has its kernel."""
        with pytest.MonkeyPatch.context() as patch:
            pretend_kernel(patch)
            with PretendedGPU() as gpu:
                work = self.prepare(gpu)
                gpu.forget()
                work()
            launches = gpu.launches.total() + gpu.copies
            return Counts(gpu.waits.total(), launches, gpu.copied / 1e6, gpu.written / 1e6)

    def check(self) -> None:
        """Assert that the budget is kept."""
        found, budget = self.count(), self.budget
        assert found.waits == budget.waits, found
        assert found.launches <= budget.launches, found
        assert found.copied <= budget.copied, found
        assert found.written <= budget.written, found
