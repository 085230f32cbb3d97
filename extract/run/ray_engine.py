"""The same run on a Ray cluster: an actor for each GPU (or CPU slot), each with its own network.

Actors write part files where every machine sees them. The part of one that dies is given to a new one, elsewhere
if need be; a part is complete or absent, so nothing else is lost.
"""

import logging
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data_tools.errors import InputError, UsageError
from data_tools.store.parts import Parts

if TYPE_CHECKING:
    from extract.run.batches import BatchRunner
    from extract.run.plan import Worker

DEATHS = 3  # of actors at one part, which then is what kills them
CONNECT = 5.0  # seconds to wait for an answer of the cluster's address


class _PartWriter:
    """The actor."""

    def __init__(self, worker: "Worker", device: str) -> None:
        self.worker, self.device = worker, device
        self.runner: BatchRunner | None = None

    def write(self, parts: Parts, part: int) -> dict[str, float]:
        """Describe and write one part; seconds by stage."""
        # built here and not above, since Ray passes on the errors of calls alone as they are
        runner = self.runner = self.runner or self.worker.runner(self.device)
        before = dict(runner.seconds)
        [block] = runner.blocks([parts.span(part)], lambda count: None)
        start = time.perf_counter()
        parts.write(part, block)
        runner.seconds["writing"] += time.perf_counter() - start
        return {stage: value - before.get(stage, 0.0) for stage, value in runner.seconds.items()}


def _with_absolute_paths(worker: "Worker") -> "Worker":
    """Actors do not share this process's working folder."""
    sources = replace(worker.sources, folder=worker.sources.folder.resolve())
    weights = worker.weights.resolve() if worker.weights else None
    return replace(worker, sources=sources, weights=weights)


def _require_answer(address: str) -> None:
    """Raise `InputError` where nobody listens at HOST:PORT; Ray would try for minutes and then end the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--ray-address {address}: nobody answers there ({error})") from None


class RayEngine:
    """Writes parts on a Ray cluster.

    Args:
        worker: what each actor needs.
        device: the type of device that each has.
        address: of the cluster, HOST:PORT or auto; empty for one on this machine alone.

    Raises:
        UsageError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """

    def __init__(self, worker: "Worker", device: str, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray, the extra ray: pip install ray") from None
        self._ray = ray
        self.worker, self.device = _with_absolute_paths(worker), device.split(":")[0]
        if not ray.is_initialized():
            _require_answer(address)
            try:
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"--ray-address {address or '(none)'}: no Ray cluster: {reason}") from None

    def __call__(self, parts: Parts, missing: Sequence[int], advance: Callable[[int], None]) -> dict[str, float]:
        """See `Engine`."""
        waiting = list(reversed(missing))
        shared = self._ray.put(replace(parts, file=parts.file.resolve()))
        running: dict[Any, tuple[Any, int]] = {}  # task -> actor and the part it writes
        seconds: dict[str, float] = defaultdict(float)
        deaths: Counter[int] = Counter()  # by part

        def start(actor: Any, part: int) -> None:
            running[actor.write.remote(shared, part)] = (actor, part)

        try:
            for _ in range(min(self._slots(), len(missing))):
                start(self._new_actor(), waiting.pop())
            while running:
                [task], _ = self._ray.wait(list(running), num_returns=1)
                actor, part = running.pop(task)
                spent = self._result(task)
                if spent is None:
                    deaths[part] += 1
                    if deaths[part] == DEATHS:
                        died = f"{DEATHS} workers of the Ray cluster died at it; Ray's log says why"
                        raise InputError(f"{parts.path(part)}: {died}")
                    start(self._new_actor(), part)
                    continue
                for stage, value in spent.items():
                    seconds[stage] += value
                advance(len(parts.span(part)))
                if waiting:
                    start(actor, waiting.pop())
                else:
                    self._ray.kill(actor)
        finally:
            for actor, _ in running.values():
                self._ray.kill(actor)
        return seconds

    def _slots(self) -> int:
        """How many actors the cluster has room for."""
        resource = "GPU" if self.device == "cuda" else "CPU"
        slots = int(self._ray.cluster_resources().get(resource, 0))
        if slots == 0:
            raise InputError(f"the Ray cluster has no {resource} to give")
        return slots

    def _new_actor(self) -> Any:
        resources = {"num_gpus": 1, "num_cpus": 0} if self.device == "cuda" else {"num_cpus": 1}
        writer = self._ray.remote(_PartWriter).options(**resources)
        return writer.remote(self.worker, self.device)

    def _result(self, task: Any) -> dict[str, float] | None:
        """Seconds by stage of a written part, or None where its actor died."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError | UsageError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError:
            return None
