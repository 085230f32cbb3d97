"""The same run on a Ray cluster: an actor for each GPU (or CPU slot), each with its own network.

Actors write part files where every machine sees them. One that dies is started again, elsewhere if need be,
and its part with it; a part is complete or absent, so nothing else is lost.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data_tools.errors import InputError, UsageError
from data_tools.parts import Parts

if TYPE_CHECKING:
    from extract.folders import Worker

RESTARTS = 8  # of one actor; one that dies each time would otherwise do so forever
POLL = 1.0  # seconds between looks at the actors


class _PartWriter:
    """The actor."""

    def __init__(self, worker: "Worker", device: str) -> None:
        self.describer = worker.describer(device)

    def write(self, parts: Parts, part: int) -> dict[str, float]:
        """Describe and write one part; seconds by stage."""
        before = dict(self.describer.seconds)
        [block] = self.describer.blocks([parts.span(part)], lambda count: None)
        start = time.perf_counter()
        parts.write(part, block)
        self.describer.seconds["writing"] += time.perf_counter() - start
        return {stage: value - before.get(stage, 0.0) for stage, value in self.describer.seconds.items()}


def _with_absolute_paths(worker: "Worker") -> "Worker":
    """Actors do not share this process's working folder."""
    sources = replace(worker.sources, folder=worker.sources.folder.resolve())
    weights = worker.weights.resolve() if worker.weights else None
    return replace(worker, sources=sources, weights=weights)


class RayEngine:
    """Writes parts on a Ray cluster.

    Args:
        worker: what each actor needs.
        device: the type of device that each has.
        address: of the cluster; empty for one on this machine alone.

    Raises:
        UsageError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """

    def __init__(self, worker: "Worker", device: str, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs the extra: pip install 'pixels-to-recall[ray]'") from None
        self._ray = ray
        self.worker, self.device = _with_absolute_paths(worker), device.split(":")[0]
        if not ray.is_initialized():
            try:
                ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"--ray-address {address}: {' '.join(str(error).split())[:200]}") from None

    def __call__(self, parts: Parts, missing: Sequence[int], advance: Callable[[int], None]) -> dict[str, float]:
        """See `Engine`."""
        ray = self._ray
        actors = self._start(len(missing))
        shared = ray.put(replace(parts, file=parts.file.resolve()))
        queue, running, seconds = list(reversed(missing)), {}, {}  # type: ignore[var-annotated]
        for actor in actors:
            part = queue.pop()
            running[actor.write.remote(shared, part)] = (actor, part)
        try:
            while running:
                done, _ = ray.wait(list(running), timeout=POLL)
                for task in done:
                    actor, part = running.pop(task)
                    for stage, value in self._result(task).items():
                        seconds[stage] = seconds.get(stage, 0.0) + value
                    advance(len(parts.span(part)))
                    if queue:
                        part = queue.pop()
                        running[actor.write.remote(shared, part)] = (actor, part)
        finally:
            for actor in actors:
                ray.kill(actor)
        return seconds

    def _start(self, parts: int) -> list[Any]:
        """As many actors as the cluster has room for, and no more than there are parts."""
        gpu = self.device == "cuda"
        slots = int(self._ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
        if slots == 0:
            raise InputError(f"the Ray cluster has no {'GPU' if gpu else 'CPU'} to give")
        resources = {"num_cpus": 1, "num_gpus": 1 if gpu else 0}
        writer = self._ray.remote(_PartWriter).options(
            **resources, max_restarts=RESTARTS, max_task_retries=RESTARTS
        )
        worker = self._ray.put(self.worker)
        return [writer.remote(worker, self.device) for _ in range(min(slots, parts))]

    def _result(self, task: Any) -> dict[str, float]:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError | UsageError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"a worker of the Ray cluster died {RESTARTS} times: {reason}") from None
