"""An asynchronous stage behind the network: regions of one batch are selected while a GPU computes the next."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class TimedEvent:
    """A point in the host's time, and on a GPU also in its stream, which runs behind the host.

    Attributes:
        host: seconds of `time.perf_counter`.
        event: of the stream; None on a CPU.
    """

    host: float
    event: torch.cuda.Event | None

    def seconds_to(self, later: "TimedEvent") -> float:
        """Seconds to a later event; on a GPU the stream must have passed both."""
        if self.event is None or later.event is None:
            return later.host - self.host
        return self.event.elapsed_time(later.event) / 1000


class AsyncStage:
    """A thread that processes the network's outputs, in the order in which they are submitted.

    On a GPU the thread has its own stream, so that only this thread waits when it needs a result on the host. The
    stream has a higher priority than the network's, whose long kernels would otherwise delay its short ones.

    Args:
        device: of the network.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1)
        # PyTorch fixes a thread's number of threads when that thread first asks: now, and not while a resize has
        # set it to one.
        self._thread.submit(torch.get_num_threads).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def record(self) -> TimedEvent:
        """The present point in time; on a GPU the stream passes it after all work that was queued so far."""
        event = None
        if self._stream is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._stream.device))
        return TimedEvent(time.perf_counter(), event)

    def submit(self, work: Callable[[], Result], ready: TimedEvent) -> Future[Result]:
        """Run `work` in the thread, on a GPU once the network's stream has passed `ready`.

        GPU memory that `work` refers to is not reused before the stage's stream has finished with it.
        """
        return self._thread.submit(self._run, work, ready)

    def _run(self, work: Callable[[], Result], ready: TimedEvent) -> Result:
        if self._stream is None or ready.event is None:
            return work()
        ready.event.synchronize()
        with torch.cuda.stream(self._stream):
            try:
                return work()
            finally:
                self._stream.synchronize()
