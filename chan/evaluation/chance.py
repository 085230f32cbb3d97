"""Recall by chance: what a random ranking is expected to reach, beside which any recall should be read.

Shapes: N images, C captions.
"""

from dataclasses import dataclass
from math import comb, nan

import numpy as np

from chan.evaluation.recall import CUTOFFS


@dataclass(frozen=True)
class Chance:
    """The expected recalls within 1, 5 and 10 of each direction, in percent."""

    i2t: tuple[float, ...]
    t2i: tuple[float, ...]

    @property
    def rsum(self) -> float:
        """The sum of the six recalls."""
        return sum(self.i2t) + sum(self.t2i)


def chance(images: int, caption_images: np.ndarray) -> Chance:
    """The expected recalls of a random ranking.

    An image with c of the C captions is answered within K with probability 1 - (C-c choose K) / (C choose K), a
    caption with probability K / N. Images without captions are candidates and no queries, as in `recall.rank`.

    >>> round(chance(1000, np.repeat(np.arange(1000), 5)).rsum, 1)
    3.2

    Args:
        images: N.
        caption_images: (C,) integers, the image of each caption; without any, all recalls are NaN.
    """
    captions = len(caption_images)
    if not captions:
        return Chance(*(2 * [len(CUTOFFS) * (nan,)]))
    sizes, queries = np.unique(np.unique(caption_images, return_counts=True)[1], return_counts=True)
    i2t = [
        np.average([_found(captions, size, cutoff) for size in sizes.tolist()], weights=queries)
        for cutoff in CUTOFFS
    ]
    t2i = [min(1.0, cutoff / images) for cutoff in CUTOFFS]
    return Chance(*(tuple(100.0 * float(share) for share in side) for side in (i2t, t2i)))


def _found(captions: int, own: int, cutoff: int) -> float:
    """The probability that one of an image's `own` captions is among the first `cutoff` of all."""
    return 1 - comb(captions - own, cutoff) / comb(captions, cutoff) if cutoff <= captions else 1.0
