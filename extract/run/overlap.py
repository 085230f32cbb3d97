"""A thread for what follows the network: a GPU has its next batch before regions of the last are chosen."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Mark:
    """A moment: of the host, and on a GPU of its stream, which is behind."""

    host: float
    event: torch.cuda.Event | None

    def until(self, later: "Mark") -> float:
        """Seconds to a later mark, which a GPU has passed."""
        if self.event is None or later.event is None:
            return later.host - self.host
        return self.event.elapsed_time(later.event) / 1000


class AsyncStage:
    """A thread that works with what the network leaves, in the order in which it is told to.

    On a GPU the thread has a stream of its own: its waiting for results keeps nobody. That stream goes first, for
    its operations are short and would otherwise wait for the network's.

    Args:
        device: of the network.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1)
        # PyTorch gives a thread as many of its own as are set when it asks first: now, not in a resize.
        self._thread.submit(torch.get_num_threads).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def mark(self) -> Mark:
        """This moment, and on a GPU the moment when all that was asked of it so far is done."""
        event = None
        if self._stream is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._stream.device))
        return Mark(time.perf_counter(), event)

    def submit(self, work: Callable[[], Result], ready: Mark) -> Future[Result]:
        """Do `work` in the thread, on a GPU when its mark `ready` is passed.

        What `work` holds of the network's memory is kept until the GPU has finished with it.
        """
        return self._thread.submit(self._follow, work, ready)

    def _follow(self, work: Callable[[], Result], ready: Mark) -> Result:
        if self._stream is None or ready.event is None:
            return work()
        ready.event.synchronize()
        with torch.cuda.stream(self._stream):
            try:
                return work()
            finally:
                self._stream.synchronize()
