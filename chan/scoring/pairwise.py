"""Scores of images against captions: code the similarities of regions and words, then pool what remains.

A score is a coding followed by a pooling (CHAN, section 3). The codings, by their names here:

vha   for each word its most similar region: visual hard assignment, the paper's
tha   for each region its most similar word: textual hard assignment
vsa   for each region its cosine with the words it attends to, softmax(similarity / alpha): soft assignment
t2i   for each word its cosine with the regions it attends to: SCAN's cross-attention (pooled by its mean there)

No tensor of images x captions x regions x words is kept by any of them. Hard assignment keeps the winners
(`chan.scoring.hard_assignment`); the soft codings are computed in tiles that the backward pass computes again.

Shapes: B_i images, B_t captions, M regions of all images, T words of all captions, D joint dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chan.packing import Packed
from chan.scoring.hard_assignment import max_similarities
from chan.scoring.pooling import Pooling, make_pooling, pool
from chan.scoring.soft_assignment import attended_regions, attended_words

Scorer = Callable[[Packed, Packed], Tensor]
CODINGS = ("vha", "tha", "vsa", "t2i")
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
REGIONS = 1 << 12  # of an image tile: wide enough for an efficient matrix product
CAPTIONS = 512  # of a caption tile
ON_DEVICE = 8  # times as many of both where a GPU has to be kept busy: 900 images of 36 regions, 4096 captions
SOFT_SIMILARITIES = 1 << 22  # in a tile of a soft coding: 16 MiB, of which it holds about eight


@dataclass(frozen=True)
class Scoring:
    """What makes a score of embeddings; for the meaning of the fields see `pairwise_scores`."""

    coding: str = "vha"
    pooling: str = "lse"
    alpha: float = 0.1
    beta: float = 0.1

    def __call__(self, images: Packed, captions: Packed, precision: str = "float32") -> Tensor:
        """(B_i, B_t) scores of regions (M, D) and words (T, D)."""
        return pairwise_scores(
            images.rows,
            images.offsets,
            captions.rows,
            captions.offsets,
            coding=self.coding,
            pooling=self.pooling,
            alpha=self.alpha,
            beta=self.beta,
            precision=precision,
        )


def pairwise_scores(
    regions: Tensor,
    region_offsets: Tensor,
    words: Tensor,
    word_offsets: Tensor,
    *,
    coding: str = "vha",
    pooling: str = "lse",
    alpha: float = 0.1,
    beta: float = 0.1,
    precision: str = "float32",
) -> Tensor:
    """(B_i, B_t) scores of all images against all captions, differentiable by regions and words.

    >>> regions, words = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    >>> ends = torch.tensor([0, 1, 3])  # one region, then two; one word, then one
    >>> pairwise_scores(regions, ends, words, torch.tensor([0, 1, 2]), pooling="mean")
    tensor([[1.0000, 0.0000],
            [0.0000, 0.8000]])

    Args:
        regions: (M, D) of unit length; image i has the rows `region_offsets[i]:region_offsets[i + 1]`.
        region_offsets: (B_i + 1,) int64, rising from 0 to M: every image has a region.
        words: (T, D) of unit length, likewise.
        word_offsets: (B_t + 1,) int64.
        coding: vha, tha, vsa or t2i, as above.
        pooling: max, mean, sum, softmax or lse, over words (vha, t2i) or regions (tha, vsa).
        alpha: temperature of vsa's attention.
        beta: temperature of the softmax and lse poolings.
        precision: of the products of regions and words: float32 (rows in float64 stay so), bfloat16 or
            float16. All else is computed, and returned, in the rows' type, half precision raised to float32.

    Raises:
        ValueError: an unknown name, offsets that do not fit the rows, or rows of two widths.
    """
    if coding not in CODINGS:
        raise ValueError(f"coding {coding!r}: expected one of {', '.join(CODINGS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if regions.shape[1:] != words.shape[1:]:
        raise ValueError(f"regions {tuple(regions.shape)}, words {tuple(words.shape)}: they must have one width")
    images, captions = _packed(regions, region_offsets, "region"), _packed(words, word_offsets, "word")
    kind, reduce = PRECISIONS[precision], make_pooling(pooling, beta)

    def tile_scores(some_images: Packed, some_captions: Packed) -> Tensor:
        return _scores(some_images, some_captions, coding, reduce, alpha, kind)

    wants_gradient = torch.is_grad_enabled() and (regions.requires_grad or words.requires_grad)
    soft = coding in ("vsa", "t2i")
    if not wants_gradient:
        return _by_tiles(images, captions, tile_scores, soft)
    if soft:
        return _by_recomputed_tiles(images, captions, tile_scores)
    return tile_scores(images, captions)


def _packed(rows: Tensor, offsets: Tensor, what: str) -> Packed:
    """Rows with offsets on the CPU, after checking that they fit one another."""
    offsets = offsets.cpu()
    lengths = offsets.diff()
    if offsets[0] != 0 or offsets[-1] != len(rows) or not len(lengths) or bool((lengths < 1).any()):
        raise ValueError(f"{what}_offsets must rise from 0 to {len(rows)}, by at least 1 a step")
    if rows.dtype in (torch.bfloat16, torch.float16):
        rows = rows.float()
    return Packed(rows, offsets)


def _scores(
    images: Packed,
    captions: Packed,
    coding: str,
    pooling: Pooling,
    alpha: float,
    precision: torch.dtype | None,
) -> Tensor:
    """(B_i, B_t) scores of one tile."""
    if coding == "vha":
        return pool(max_similarities(captions.rows, images, precision), captions.offsets, pooling).T
    if coding == "tha":
        return pool(max_similarities(images.rows, captions, precision), images.offsets, pooling)
    if coding == "vsa":
        ordered, order = captions.sorted_by_length()
        scores = pool(attended_words(images, ordered, alpha, precision), images.offsets, pooling)
        return scores.index_select(1, order.argsort().to(scores.device))
    ordered, order = captions.sorted_by_length()
    by_size, image_order = images.sorted_by_length()
    scores = pool(attended_regions(by_size, ordered, precision), ordered.offsets, pooling)
    scores = scores.index_select(0, order.argsort().to(scores.device))
    return scores.index_select(1, image_order.argsort().to(scores.device)).T


def _by_tiles(images: Packed, captions: Packed, scorer: Scorer, soft: bool) -> Tensor:
    """(B_i, B_t) scores, computed tile by tile so that memory grows only with the result."""
    scores = images.rows.new_empty(len(images), len(captions))
    step, width = _soft_tile(images, captions) if soft else _hard_tile(images)
    for first in range(0, len(images), step):
        tile = images.slice(first, min(first + step, len(images)))
        for start in range(0, len(captions), width):
            stop = min(start + width, len(captions))
            scores[first : first + step, start:stop] = scorer(tile, captions.slice(start, stop))
    return scores


def _by_recomputed_tiles(images: Packed, captions: Packed, scorer: Scorer) -> Tensor:
    """The same for the soft codings, differentiable: the backward pass computes each tile once more."""
    step, width = _soft_tile(images, captions)

    def recomputed(tile: Packed, part: Packed) -> Tensor:
        def from_rows(regions: Tensor, words: Tensor) -> Tensor:
            return scorer(tile.with_rows(regions), part.with_rows(words))

        return checkpoint(from_rows, tile.rows, part.rows, use_reentrant=False, preserve_rng_state=False)

    rows = []
    for first in range(0, len(images), step):
        tile = images.slice(first, min(first + step, len(images)))
        starts = range(0, len(captions), width)
        parts = [captions.slice(start, min(start + width, len(captions))) for start in starts]
        rows.append(torch.cat([recomputed(tile, part) for part in parts], 1))
    return torch.cat(rows)


def _hard_tile(images: Packed) -> tuple[int, int]:
    """Images and captions of a tile of hard assignment."""
    times = ON_DEVICE if images.rows.is_cuda else 1
    return _images_in(images, times * REGIONS), times * CAPTIONS


def _soft_tile(images: Packed, captions: Packed) -> tuple[int, int]:
    """Images and captions of a tile with about `SOFT_SIMILARITIES` products."""
    words = max(1, min(int(captions.offsets[-1]), CAPTIONS * int(captions.lengths.max())))
    step = _images_in(images, max(1, SOFT_SIMILARITIES // words))
    regions = step * int(images.lengths.max())
    return step, max(1, SOFT_SIMILARITIES // (regions * int(captions.lengths.max())))


def _images_in(images: Packed, regions: int) -> int:
    return max(1, regions // int(images.lengths.max()))
