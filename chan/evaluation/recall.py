"""Recall at K, median and mean rank in both directions, by counting.

A rank is the number of wrong candidates whose score is not strictly below that of the right one: a tie or a
NaN counts against the model, so that a constant score never looks good. It is 0 for a perfect answer.

Scores are computed in blocks of images x captions and counted at once, so that a hundred thousand captions need no
score matrix. (Inside a block, `chan.scoring.pairwise` computes tiles.)

Shapes: N images, C captions; n images and c captions of a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from data_tools.devices import to_device

CUTOFFS = (1, 5, 10)
BLOCK_IMAGES = 1024  # a block has at most so many images, and the captions of at most so many

BlockScorer = Callable[[range, Tensor], Tensor]
"""Computes a block: from consecutive images and the positions (c,) int64 of captions to their (n, c) scores."""


@dataclass(frozen=True)
class Recall:
    """One direction: the percentage of queries answered within 1, 5 and 10, median and mean rank from 1."""

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float

    @classmethod
    def from_ranks(cls, ranks: Tensor) -> "Recall":
        """From 0-based ranks (queries,); MedR is floor(median) + 1 and MeanR mean + 1, as SCAN reports.

        >>> Recall.from_ranks(torch.tensor([0, 0, 6, 30]))
        Recall(r1=50.0, r5=50.0, r10=75.0, medr=4.0, meanr=10.0)
        """
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
        return RetrievalRecall(Recall.from_ranks(self.i2t), Recall.from_ranks(self.t2i))

    @classmethod
    def joined(cls, folds: Sequence["Ranking"], size: int) -> "Ranking":
        """The queries of consecutive folds of `size` images, each ranked within its fold."""
        return cls(
            torch.cat([fold.i2t for fold in folds]),
            torch.cat([fold.images + number * size for number, fold in enumerate(folds)]),
            torch.cat([fold.t2i for fold in folds]),
            torch.cat([fold.caption_images + number * size for number, fold in enumerate(folds)]),
        )


def matrix_blocks(scores: Tensor) -> BlockScorer:
    """Blocks cut from a score matrix (N, C)."""
    return lambda images, captions: scores[images.start : images.stop, captions.to(scores.device)]


@dataclass(frozen=True)
class _OwnBlock:
    """A block of images with all of their captions.

    Attributes:
        scores: (n, c).
        image: (c,) int64, the place of each caption's image in the block.
    """

    scores: Tensor
    image: Tensor

    @classmethod
    def compute(cls, scorer: BlockScorer, images: range, captions: Tensor, owners: Tensor) -> "_OwnBlock":
        """The block of `images` and `captions` (c,), which belong to the images `owners` (c,)."""
        scores = scorer(images, captions) if len(captions) else torch.empty(len(images), 0)
        return cls(scores, to_device(owners - images.start, scores.device))

    def right(self) -> Tensor:
        """(c,): the score of each caption with its image."""
        return self.scores.gather(0, self.image[None])[0]

    def own(self) -> Tensor:
        """(n, c) bool: which are pairs."""
        return torch.arange(len(self.scores), device=self.image.device)[:, None] == self.image

    def best(self) -> Tensor:
        """(n, 1): each image's best score with its own captions; NaN where all are NaN or it has no caption."""
        right = self.own() & ~self.scores.isnan()
        lowest = self.scores.new_full((len(self.scores), 1), -torch.inf)
        best = torch.cat([self.scores.masked_fill(~right, -torch.inf), lowest], 1).amax(1, keepdim=True)
        return best.masked_fill(~right.any(1, keepdim=True), torch.nan)


def rank(scorer: BlockScorer, images: int, caption_images: Tensor) -> Ranking:
    """The ranks of all images and captions; every score is computed once.

    The blocks of images with their own captions are computed first, and kept: they contain the scores of the right
    answers, with which those of all blocks are compared. Memory grows with C, not with N x C. A GPU is waited for
    once, at the end.

    >>> scores = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]])  # the third caption is ranked second
    >>> ranking = rank(matrix_blocks(scores), 2, torch.tensor([0, 1, 0]))
    >>> ranking.i2t.tolist(), ranking.t2i.tolist()
    ([0, 0], [0, 0, 1])

    Args:
        scorer: computes the scores of a block, on any device.
        images: N.
        caption_images: (C,) int64, the image of each caption; images may have any number of captions.
    """
    owners, order = caption_images.cpu().sort(stable=True)
    starts = torch.tensor([*range(0, images, BLOCK_IMAGES), images])
    rows = [range(a, b) for a, b in pairwise(starts.tolist())]
    columns = [slice(a, b) for a, b in pairwise(torch.searchsorted(owners, starts).tolist())]
    pairs = list(zip(rows, columns, strict=True))
    own_blocks = [_OwnBlock.compute(scorer, row, order[column], owners[column]) for row, column in pairs]
    right, best = [block.right() for block in own_blocks], [block.best() for block in own_blocks]
    i2t, t2i = _Sums(len(rows)), _Sums(len(columns))
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            if column.start == column.stop:
                continue
            scores = own_blocks[r].scores if r == c else scorer(row, order[column])
            t2i.add(c, (~(scores < right[c])).sum(0))
            # Where no right caption has a score, comparing with NaN puts every wrong one before it.
            ahead = ~(scores < best[r].to(scores.device))
            i2t.add(r, (ahead & ~own_blocks[r].own() if r == c else ahead).sum(1))
    found = torch.cat([*t2i.sums(), *i2t.sums()]).cpu() if len(owners) else owners
    answered, of_captions = owners.unique(), torch.empty_like(owners)
    of_captions[order] = found[: len(owners)] - 1  # the right image is never below itself
    return Ranking(found[len(owners) :][answered], answered, of_captions, caption_images.cpu())


class _Sums:
    """Sums of counts for consecutive blocks; they stay on their device."""

    def __init__(self, blocks: int) -> None:
        self._of_block: list[Tensor | None] = [None] * blocks

    def add(self, block: int, counts: Tensor) -> None:
        """Add the counts (n,) int64 of a block."""
        known = self._of_block[block]
        self._of_block[block] = counts if known is None else known + counts

    def sums(self) -> list[Tensor]:
        """Of the blocks that have counts, in order."""
        return [sums for sums in self._of_block if sums is not None]


def measure(scores: Tensor, caption_images: Tensor) -> RetrievalRecall:
    """Recall of a score matrix (N, C); `caption_images` as for `rank`.

    >>> measure(torch.eye(20), torch.arange(20)).rsum
    600.0
    """
    return rank(matrix_blocks(scores), len(scores), caption_images).recall()


def average(parts: Sequence[RetrievalRecall]) -> RetrievalRecall:
    """Every number averaged over folds, as in COCO's 1K protocol."""

    def side(recalls: list[Recall]) -> Recall:
        return Recall(*(sum(values) / len(values) for values in zip(*map(astuple, recalls), strict=True)))

    return RetrievalRecall(side([part.i2t for part in parts]), side([part.t2i for part in parts]))
