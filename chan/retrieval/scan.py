"""The exhaustive search: every image of an index is scored by the model's own scorer.

Shapes: N images, Q queries, D joint dimension.
"""

import numpy as np
import torch

from chan.packing import Packed
from chan.retrieval.index import ImageIndex
from chan.scoring.pairwise import Scorer

CHUNK_REGIONS = 1 << 12  # scored at a time: 16 MiB in float32 at D 1024


@torch.inference_mode()
def scan(index: ImageIndex, scorer: Scorer, queries: Packed) -> np.ndarray:
    """(Q, N) float32: the score of every image of the index; NaN becomes -inf.

    Args:
        index: the images, read in place.
        scorer: of regions and words.
        queries: (T, D) token embeddings of the queries; where they are, it is computed.
    """
    scores = np.empty((len(queries), len(index)), np.float32)
    for positions, regions in index.chunks(CHUNK_REGIONS):
        found = scorer(regions.to(queries.rows.device), queries).T.cpu().numpy()
        alive = positions >= 0
        if alive.all():
            scores[:, positions[0] : positions[-1] + 1] = found
        else:
            scores[:, positions[alive]] = found[:, alive]
    np.nan_to_num(scores, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    return scores


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
