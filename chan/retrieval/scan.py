"""The exhaustive search: every image of an index is scored by the model's own scorer.

Shapes: N images, Q queries, D joint dimension.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from chan.packing import Packed
from chan.retrieval.index import ImageIndex
from chan.scoring.pairwise import Scorer

CHUNK_REGIONS = 1 << 12  # scored at a time: 16 MiB in float32 at D 1024


@dataclass(frozen=True)
class Ranking:
    """The best images for a query, best first; equal scores are in the order of the index.

    Attributes:
        positions: (n,) int64, of the images.
        scores: (n,) float32.
        exact: whether no other image of the index scores as much as the last of n.
        way: how they were found: scan, candidates or ray.
        bound: the most that an image which was not scored can have, as far as its lists are exact; None: all were.
        scored: how many images were.
    """

    positions: np.ndarray
    scores: np.ndarray
    exact: bool
    way: str
    bound: float | None
    scored: int


def ranking(positions: np.ndarray, scores: np.ndarray, k: int, way: str = "scan") -> Ranking:
    """The k best of all images of an index, with their positions (n,) in any order and their scores (n,).

    >>> ranking(np.array([4, 2, 7]), np.array([0.5, 0.5, 0.9]), 2).positions
    array([7, 2])
    """
    order = np.argsort(positions)
    chosen = order[best(scores[order], k)]
    return Ranking(positions[chosen], scores[chosen], True, way, None, len(scores))


@dataclass(frozen=True)
class ScanSearch:
    """Searches an index by a scan."""

    index: ImageIndex

    def __call__(self, scorer: Scorer, queries: Packed, k: int) -> list[Ranking]:
        """The k best images for each query, whose token embeddings are (T, D)."""
        positions = np.arange(len(self.index))
        return [ranking(positions, scores, k) for scores in scan(self.index, scorer, queries)]


def scan(index: ImageIndex, scorer: Scorer, queries: Packed) -> np.ndarray:
    """(Q, N) float32: the score of every image of the index; NaN becomes -inf.

    Args:
        index: the images, read in place.
        scorer: of regions and words.
        queries: (T, D) token embeddings of the queries; where they are, it is computed.
    """
    return scan_chunks(index.chunks(CHUNK_REGIONS), scorer, queries)[1]


@torch.inference_mode()
def scan_chunks(
    chunks: Iterable[tuple[np.ndarray, Packed]], scorer: Scorer, queries: Packed
) -> tuple[np.ndarray, np.ndarray]:
    """The images in some chunks of an index: their positions (n,) int64, and as `scan` their scores (Q, n).

    Args:
        chunks: of `ImageIndex.chunks`; images at position -1 are left out.
        scorer: see `scan`.
        queries: see `scan`.
    """
    places, scores = [np.empty(0, np.int64)], [queries.rows.new_empty(0, len(queries), dtype=torch.float32)]
    for positions, regions in chunks:
        places.append(positions)
        scores.append(scorer(regions.to(queries.rows.device), queries).float())
    positions, found = np.concatenate(places), torch.cat(scores).cpu().numpy().T  # the only wait for a GPU
    alive = positions >= 0
    return positions[alive], finite(np.ascontiguousarray(found[:, alive]))


def finite(scores: np.ndarray) -> np.ndarray:
    """Scores, changed in place: NaN, which would compare as neither larger nor smaller, becomes -inf."""
    return np.nan_to_num(scores, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """(min(k, n),) int64: where the largest of (n,) scores are, from large to small, equal ones in their order.

    >>> best(np.array([0.5, 0.9, 0.5, 0.1]), 3)
    array([1, 0, 2])
    """
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores >= limit)
    return above[np.argsort(-scores[above], kind="stable")[:k]]
