"""95 % intervals of recall by the bootstrap over images (Efron and Tibshirani 1993, percentile method).

Images are drawn with replacement, each with its captions; the candidates stay those of the split, so that the
ranks need not be computed again. The interval shows how much the recall depends on the choice of test images.

Shapes: N images, S resamples.
"""

from dataclasses import dataclass

import numpy as np

from chan.evaluation.recall import CUTOFFS, Ranking

RESAMPLES = 1000
BOUNDS = (2.5, 97.5)  # percent

Interval = tuple[float, float]


@dataclass(frozen=True)
class SideIntervals:
    """The intervals of one direction, in percent."""

    r1: Interval
    r5: Interval
    r10: Interval


@dataclass(frozen=True)
class Intervals:
    """Both directions and the sum of the six recalls."""

    rsum: Interval
    i2t: SideIntervals
    t2i: SideIntervals


def bootstrap(ranking: Ranking, seed: int) -> Intervals:
    """The intervals of a ranking; the same `seed` gives the same intervals.

    >>> import torch
    >>> images = torch.arange(4)
    >>> perfect = Ranking(torch.zeros(4), images, torch.zeros(4), images)
    >>> bootstrap(perfect, seed=0).rsum
    (600.0, 600.0)
    """
    recalls = _recalls(ranking, seed)
    found = [SideIntervals(*(_interval(recall) for recall in side)) for side in recalls]
    return Intervals(_interval(recalls.sum((0, 1))), *found)


def paired_bootstrap(first: Ranking, second: Ranking, seed: int) -> np.ndarray:
    """(S,): the rsum of the second ranking minus that of the first, each draw of images being used for both.

    Raises:
        ValueError: the rankings are not of the same queries.
    """
    if not (first.images.equal(second.images) and first.caption_images.equal(second.caption_images)):
        raise ValueError("the rankings are not of the same queries")
    return _recalls(second, seed).sum((0, 1)) - _recalls(first, seed).sum((0, 1))


def _recalls(ranking: Ranking, seed: int) -> np.ndarray:
    """(2, 3, S): image to text and text to image, R@1, R@5 and R@10, in percent, of each draw of images.

    The columns of one product count, for each draw, the queries of a side and those answered within each cutoff.
    """
    sides = [
        (ranking.i2t.cpu().numpy(), ranking.images.cpu().numpy()),
        (ranking.t2i.cpu().numpy(), ranking.caption_images.cpu().numpy()),
    ]
    count = 1 + max(int(images.max()) for _, images in sides)
    columns = [
        np.bincount(images, weights=weights, minlength=count)
        for ranks, images in sides
        for weights in (None, *(ranks < cutoff for cutoff in CUTOFFS))
    ]
    sums = draw_images(count, seed).astype(np.float64) @ np.stack(
        columns, axis=1
    )  # of whole numbers: exact in any order
    counts = sums.T.reshape(len(sides), 1 + len(CUTOFFS), RESAMPLES)
    return 100.0 * counts[:, 1:] / np.maximum(counts[:, :1], 1)


def draw_images(count: int, seed: int) -> np.ndarray:
    """(S, N) int64: how often each of `count` images is among as many that are drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    drawn += count * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, BOUNDS)
    return float(low), float(high)
