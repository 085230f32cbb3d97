"""Recall at K, median and mean rank in both directions, by counting.

A rank is the number of wrong candidates whose score is not strictly below that of the right one: a tie or a
NaN counts against the model, so that a constant score never looks good. It is 0 for a perfect answer.

Shapes: N images, C captions; `scores` is (N, C).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)
QUERIES = 1024  # ranked at a time


@dataclass(frozen=True)
class Recall:
    """One direction: the percentage of queries answered within 1, 5 and 10, median and mean rank from 1."""

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float

    @classmethod
    def of_ranks(cls, ranks: Tensor) -> "Recall":
        """From 0-based ranks (queries,); MedR is floor(median) + 1 and MeanR mean + 1, as SCAN reports."""
        r1, r5, r10 = (100.0 * (ranks < cutoff).double().mean().item() for cutoff in CUTOFFS)
        median = torch.quantile(ranks.double(), 0.5).floor().item()
        return cls(r1, r5, r10, medr=median + 1, meanr=ranks.double().mean().item() + 1)


@dataclass(frozen=True)
class RetrievalRecall:
    """Both directions: captions for an image (`i2t`) and images for a caption (`t2i`)."""

    i2t: Recall
    t2i: Recall

    @property
    def rsum(self) -> float:
        """The sum of the six recalls."""
        return sum(side.r1 + side.r5 + side.r10 for side in (self.i2t, self.t2i))


@dataclass(frozen=True)
class Ranking:
    """0-based ranks of all queries of a split.

    Attributes:
        i2t: (images with captions,) int64.
        images: the image of each of them, int64.
        t2i: (C,) int64.
        caption_images: (C,) int64, the image of each caption.
    """

    i2t: Tensor
    images: Tensor
    t2i: Tensor
    caption_images: Tensor

    def recall(self) -> RetrievalRecall:
        """Recall in both directions."""
        return RetrievalRecall(Recall.of_ranks(self.i2t), Recall.of_ranks(self.t2i))

    @classmethod
    def joined(cls, folds: Sequence["Ranking"], size: int) -> "Ranking":
        """The queries of consecutive folds of `size` images, each ranked within its fold."""
        return cls(
            torch.cat([fold.i2t for fold in folds]),
            torch.cat([fold.images + number * size for number, fold in enumerate(folds)]),
            torch.cat([fold.t2i for fold in folds]),
            torch.cat([fold.caption_images + number * size for number, fold in enumerate(folds)]),
        )


def rank(scores: Tensor, caption_images: Tensor) -> Ranking:
    """The ranks in a score matrix.

    Args:
        scores: (N, C) on any device.
        caption_images: (C,) int64, the image of each caption; images may have any number of captions.
    """
    caption_images = caption_images.to(scores.device)
    i2t, t2i = caption_ranks(scores, caption_images), image_ranks(scores, caption_images)
    return Ranking(i2t, caption_images.unique(), t2i, caption_images)


def measure(scores: Tensor, caption_images: Tensor) -> RetrievalRecall:
    """Recall of a score matrix; arguments as for `rank`."""
    return rank(scores, caption_images).recall()


def average(parts: Sequence[RetrievalRecall]) -> RetrievalRecall:
    """Every number averaged over folds, as in COCO's 1K protocol."""

    def side(recalls: list[Recall]) -> Recall:
        return Recall(*(sum(values) / len(values) for values in zip(*map(astuple, recalls), strict=True)))

    return RetrievalRecall(side([part.i2t for part in parts]), side([part.t2i for part in parts]))


def image_ranks(scores: Tensor, caption_images: Tensor) -> Tensor:
    """(C,) int64: how many wrong images are not strictly below each caption's own."""
    ranks = []
    for first in range(0, scores.shape[1], QUERIES):
        block, own = scores[:, first : first + QUERIES], caption_images[first : first + QUERIES]
        positive = block.gather(0, own[None])
        ranks.append((~(block < positive)).sum(0) - 1)  # the right image is never below itself
    return torch.cat(ranks)


def caption_ranks(scores: Tensor, caption_images: Tensor) -> Tensor:
    """(images with captions,) int64: how many wrong captions are not strictly below the best right one.

    That is the best rank among the image's own captions, which are no wrong answers to one another.
    """
    ranks = []
    for first in range(0, len(scores), QUERIES):
        block = scores[first : first + QUERIES]
        images = torch.arange(first, first + len(block), device=scores.device)
        own = caption_images[None] == images[:, None]
        right = own & ~block.isnan()
        best = block.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        # Where no right caption has a score, comparing with NaN puts every wrong one before it.
        best = best.masked_fill(~right.any(1, keepdim=True), torch.nan)
        ranks.append((~(block < best) & ~own).sum(1)[own.any(1)])
    return torch.cat(ranks)
