"""The scan on a Ray cluster: actors share the images of an index, and their best ones are merged.

Every machine of the cluster sees the index's folder. When an actor dies, a new one is asked for the same share, so
an answer comes later but lacks nothing.

Shapes: Q queries, T words of all queries, D joint dimension.
"""

from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chan.packing import Packed
from chan.retrieval.index import ImageIndex
from chan.retrieval.manifest import Manifest
from chan.retrieval.scan import CHUNK_REGIONS, Ranking, ranking, scan_chunks
from chan.scoring.pairwise import Scorer
from data_tools.clusters import actor_resources, connect_to_ray, ray_slots
from data_tools.devices import resolve_device
from data_tools.errors import InputError, UsageError

MAX_DEATHS = 3  # actors that may die at one share of one search before it stops: the share then is the cause

Best = list[tuple[np.ndarray, np.ndarray]]
"""For each query the positions (n,) of its best images in a share, and their scores (n,)."""


class ScanWorker:
    """Scans every n-th chunk of an index: the actor.

    Args:
        folder: the index.
        manifest: which the actors share, so that a change of the index does not mix two states.
        share: this actor's, 0 to n - 1.
        shares: n.
        device: type of the device, `cpu` or `cuda`.
    """

    def __init__(self, folder: Path, manifest: Manifest, share: int, shares: int, device: str) -> None:
        self.folder, self.manifest, self.share, self.shares = folder, manifest, share, shares
        self.device = resolve_device(device)

    @cached_property
    def index(self) -> ImageIndex:
        """Opened at the first search, where an error reaches the caller; Ray takes one before that for a death."""
        return ImageIndex(self.folder, self.manifest)

    def best(self, scorer: Scorer, rows: np.ndarray, offsets: np.ndarray, k: int) -> Best:
        """The k best images of the share for queries with rows (T, D) and offsets (Q + 1,)."""
        queries = Packed(torch.tensor(rows, device=self.device), torch.tensor(offsets))
        chunks = islice(self.index.chunks(CHUNK_REGIONS), self.share, None, self.shares)
        positions, scores = scan_chunks(chunks, scorer, queries)
        found = [ranking(positions, own, k) for own in scores]
        return [(own.positions, own.scores) for own in found]


class RaySearch:
    """Searches an index by a scan on a Ray cluster.

    Args:
        index: the images.
        device: type of the device that each actor has, `cpu` or `cuda`.
        address: of the cluster, HOST:PORT or auto; empty for one on this machine alone.

    Raises:
        UsageError: Ray is not installed.
        InputError: the cluster cannot be reached, or has no such device.
    """

    def __init__(self, index: ImageIndex, device: str, address: str = "") -> None:
        self._ray = connect_to_ray(address)
        self.index, self.device = index, device
        shares = ray_slots(self._ray, device)
        self._actors = [self._new_actor(share, shares) for share in range(shares)]

    def __call__(self, scorer: Scorer, queries: Packed, k: int) -> list[Ranking]:
        """The k best images for each query, whose token embeddings are (T, D)."""
        asked = self._ray.put(scorer), queries.rows.cpu().numpy(), queries.offsets.numpy(), k
        tasks = [actor.best.remote(*asked) for actor in self._actors]
        parts = [self._result(share, task, asked) for share, task in enumerate(tasks)]
        merged = []
        for own in zip(*parts, strict=True):
            positions, scores = (np.concatenate(side) for side in zip(*own, strict=True))
            merged.append(replace(ranking(positions, scores, k, "ray"), scored=len(self.index)))
        return merged

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            self._ray.kill(actor)

    def _result(self, share: int, task: Any, asked: tuple[Any, ...]) -> Best:
        """What the actor of a share found; where it died, what a new one finds."""
        for _ in range(MAX_DEATHS):
            try:
                return self._ray.get(task)
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, InputError | UsageError):
                    raise error.cause from None
                raise
            except self._ray.exceptions.RayError:
                self._actors[share] = self._new_actor(share, len(self._actors))
                task = self._actors[share].best.remote(*asked)
        raise InputError(
            f"{self.index.folder}: {MAX_DEATHS} workers of the Ray cluster died at one search; "
            "see Ray's log for the reason"
        )

    def _new_actor(self, share: int, shares: int) -> Any:
        worker = self._ray.remote(ScanWorker).options(**actor_resources(self.device))
        return worker.remote(self.index.folder.resolve(), self.index.manifest, share, shares, self.device)
