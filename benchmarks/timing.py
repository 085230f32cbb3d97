"""Seconds of several pieces of work, side by side."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved(works: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each piece of work: all run once in every round, so that all see the same machine.

    The first round does not count. A GPU is waited for.
    """
    rounds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            synchronise()
            start = time.perf_counter()
            work()
            synchronise()
            rounds[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in rounds.items()}


def synchronise() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
