"""The same run on a Ray cluster: one actor for each GPU (or CPU slot), each with its own network.

Actors write part files to a folder that every machine shares. When an actor dies, its part is given to a new one,
on another machine if necessary; a part is complete or absent, so nothing else is lost.
"""

import logging
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from data_tools.errors import InputError, UsageError, one_line
from data_tools.store.parts import Parts, StoreContents
from extract.run.plan import ExtractionPlan
from extract.run.worker import PartWorker, WrittenParts

MAX_DEATHS = 3  # actors that may die at one part before the run stops: the part then is the cause
CONNECT = 5.0  # seconds to wait for a connection to the cluster's address
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""The environment, when Ray is imported, of a cluster that no other machine reaches: whoever does can run code in
it. Ray has the setting for the firewalls of two other systems; on Linux it does the same."""


def _with_absolute_paths(plan: ExtractionPlan) -> ExtractionPlan:
    """The plan for actors, which have another working folder than this process."""
    sources = replace(plan.sources, folder=plan.sources.folder.resolve())
    weights = plan.weights.resolve() if plan.weights else None
    return replace(plan, sources=sources, weights=weights)


def _check_connection(address: str) -> None:
    """Raise `InputError` where no program listens at HOST:PORT; Ray itself would retry for minutes, then exit."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"--ray-address {address}: no connection ({one_line(error)})") from None


class RayPartWriter:
    """Writes parts on a Ray cluster; a `PartWriter`.

    Args:
        plan: what to extract.
        device: type of the device that each actor has, `cpu` or `cuda`.
        address: of the cluster, HOST:PORT or auto; empty for one on this machine alone.

    Raises:
        UsageError: Ray is not installed.
        InputError: the cluster cannot be reached.
    """

    def __init__(self, plan: ExtractionPlan, device: str, address: str) -> None:
        if not address:
            os.environ.update(LOOPBACK)
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray, the extra ray: pip install ray") from None
        self._ray = ray
        self.plan, self.device = _with_absolute_paths(plan), device
        if not ray.is_initialized():
            _check_connection(address)
            try:
                own: dict[str, Any] = {} if address else {"include_dashboard": False}
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
            except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
                reason = one_line(error)
                raise InputError(f"--ray-address {address or '(none)'}: no Ray cluster: {reason}") from None

    def __call__(self, parts: Parts, missing: Sequence[int], advance: Callable[[int], None]) -> WrittenParts:
        """See `PartWriter`."""
        waiting = list(reversed(missing))
        shared = self._ray.put(replace(parts, file=parts.file.resolve()))
        running: dict[Any, tuple[Any, int]] = {}  # task -> actor and the part that it writes
        written, seconds = WrittenParts(), defaultdict[str, float](float)
        deaths: Counter[int] = Counter()  # by part

        def start(actor: Any, part: int) -> None:
            running[actor.write.remote(shared, part)] = (actor, part)

        try:
            for _ in range(min(self._slots(), len(missing))):
                start(self._new_actor(), waiting.pop())
            while running:
                [task], _ = self._ray.wait(list(running), num_returns=1)
                actor, part = running.pop(task)
                result = self._result(task)
                if result is None:
                    deaths[part] += 1
                    if deaths[part] == MAX_DEATHS:
                        died = f"{MAX_DEATHS} workers of the Ray cluster died at it; see Ray's log for the reason"
                        raise InputError(f"{parts.path(part)}: {died}")
                    start(self._new_actor(), part)
                    continue
                written.contents[part], spent = result
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
        written.seconds = seconds
        return written

    def _slots(self) -> int:
        """How many actors the cluster has room for."""
        resource = "GPU" if self.device == "cuda" else "CPU"
        slots = int(self._ray.cluster_resources().get(resource, 0))
        if slots == 0:
            raise InputError(f"the Ray cluster has no {resource}s")
        return slots

    def _new_actor(self) -> Any:
        resources = {"num_gpus": 1, "num_cpus": 0} if self.device == "cuda" else {"num_cpus": 1}
        worker = self._ray.remote(PartWorker).options(**resources)
        return worker.remote(self.plan, self.device)

    def _result(self, task: Any) -> tuple[StoreContents, dict[str, float]] | None:
        """See `PartWorker.write`; None where the actor died."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError | UsageError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError:
            return None
