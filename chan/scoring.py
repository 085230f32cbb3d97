"""Scores of images against captions: code the similarities of regions and words, then pool what remains.

A score is a coding followed by a pooling (CHAN, section 3). Visual hard assignment, the paper's coding,
keeps for each word its best region of the image; another coding would yield other packed values and share
the poolings and the tiles.

Shapes: B_i images, B_t captions, R regions of all images, W words of all captions, D joint dimension.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from chan.packing import EqualRun, Packed, equal_runs, offsets_of
from chan.pooling import Pooling, pool

Scorer = Callable[[Packed, Packed], Tensor]
SIMILARITIES = 1 << 20  # in one tile of words x regions: 4 MiB, so that the maximum is taken in the cache
REGIONS = 1 << 12  # of an image tile: wide enough for an efficient matrix product
CAPTIONS = 512  # of a caption tile in `score_matrix`


def visual_hard_assignment(images: Packed, captions: Packed, pooling: Pooling) -> Tensor:
    """(B_i, B_t) scores: each word's best cosine over the image's regions, pooled over the words.

    Args:
        images: (R, D) regions, normalised.
        captions: (W, D) words, normalised.
        pooling: reduces the word scores of one caption.
    """
    return pool(best_regions(images, captions)[0], captions.offsets, pooling).T


def best_regions(images: Packed, captions: Packed) -> tuple[Tensor, Tensor]:
    """For each word and image the best similarity and the region that has it (VHA, CHAN section 3.2).

    Returns:
        (W, B_i) similarities, differentiable, and (W, B_i) int64 positions of regions within their image.
        Of equal regions any one may be named; the gradient goes to that one.
    """
    if images.is_even():
        ordered, place = images, None
    else:
        ordered, order = images.sorted_by_length()
        place = order.argsort().to(images.rows.device)
    best, winner = _BestRegion.apply(captions.rows, ordered.rows, equal_runs(ordered.offsets))
    winner = winner - ordered.offsets[:-1].to(winner.device)
    if place is None:
        return best, winner
    return best.index_select(1, place), winner.index_select(1, place)


class _BestRegion(torch.autograd.Function):
    """Maximum over each image's regions, remembering only which one won.

    The similarities themselves, (W, R), live one tile at a time. In the backward pass each pair of word and
    image whose gradient is not zero adds one region to the word and one word to the region: weighted sums
    over bags of rows, where autograd of a dense maximum would multiply by a (W, R) matrix of mostly zeros.
    """

    @staticmethod
    def forward(ctx: Any, words: Tensor, regions: Tensor, runs: list[EqualRun]) -> tuple[Tensor, Tensor]:
        images = runs[-1].first + runs[-1].count
        best = words.new_empty(len(words), images)
        winner = torch.empty(len(words), images, dtype=torch.int64, device=words.device)
        step = max(1, SIMILARITIES // len(regions))
        for first in range(0, len(words), step):
            tile = slice(first, first + step)
            similarity = words[tile] @ regions.T  # in this order the regions of an image are contiguous
            for run in runs:
                block = similarity[:, run.rows].unflatten(1, (run.count, run.length))
                value, index = block.max(2)
                starts = torch.arange(run.count, device=index.device) * run.length + run.first_row
                best[tile, run.sequences] = value
                winner[tile, run.sequences] = index + starts
        ctx.save_for_backward(words, regions, winner.int())
        ctx.mark_non_differentiable(winner)
        return best, winner

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        words, regions, winner = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        pairs = gradient.flatten().nonzero().squeeze(1)  # ordered by word, as the bags of words must be
        weight = gradient.flatten()[pairs]
        region, word = winner.flatten()[pairs].long(), pairs // gradient.shape[1]
        by_region = region.argsort(stable=True)
        of_words = _weighted_bags(regions, region, weight, word.bincount(minlength=len(words)))
        of_regions = _weighted_bags(
            words, word[by_region], weight[by_region], region.bincount(minlength=len(regions))
        )
        return of_words, of_regions, None


def _weighted_bags(rows: Tensor, index: Tensor, weight: Tensor, sizes: Tensor) -> Tensor:
    """(bags, D): sums of weight * rows[index], over consecutive bags of these sizes."""
    return embedding_bag(index, rows, offsets_of(sizes)[:-1], mode="sum", per_sample_weights=weight)


def score_matrix(images: Packed, captions: Packed, scorer: Scorer) -> Tensor:
    """(B_i, B_t) scores, computed tile by tile so that memory grows only with the result.

    Args:
        images: (R, D) regions.
        captions: (W, D) words on the same device.
        scorer: gives the scores of the images and captions of a tile.
    """
    scores = images.rows.new_empty(len(images), len(captions))
    step = max(1, REGIONS // int(images.lengths.max()))
    for first in range(0, len(images), step):
        tile = images.slice(first, min(first + step, len(images)))
        for start in range(0, len(captions), CAPTIONS):
            stop = min(start + CAPTIONS, len(captions))
            scores[first : first + step, start:stop] = scorer(tile, captions.slice(start, stop))
    return scores
