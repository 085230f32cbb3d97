"""The same run on a Ray cluster: one actor for each GPU (or CPU slot), each with its own network.

Actors write part files to a folder that every machine shares. When an actor dies, its part is given to a new one,
on another machine if necessary; a part is complete or absent, so nothing else is lost.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from data_tools.clusters import actor_resources, connect_to_ray, ray_slots
from data_tools.errors import InputError, UsageError
from data_tools.store.parts import Parts, StoreContents
from extract.run.plan import ExtractionPlan
from extract.run.worker import PartWorker, WrittenParts

MAX_DEATHS = 3  # actors that may die at one part before the run stops: the part then is the cause


def _with_absolute_paths(plan: ExtractionPlan) -> ExtractionPlan:
    """The plan for actors, which have another working folder than this process."""
    sources = replace(plan.sources, folder=plan.sources.folder.resolve())
    weights = plan.weights.resolve() if plan.weights else None
    return replace(plan, sources=sources, weights=weights)


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
        self._ray = connect_to_ray(address)
        self.plan, self.device = _with_absolute_paths(plan), device

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
            for _ in range(min(ray_slots(self._ray, self.device), len(missing))):
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

    def _new_actor(self) -> Any:
        worker = self._ray.remote(PartWorker).options(**actor_resources(self.device))
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
