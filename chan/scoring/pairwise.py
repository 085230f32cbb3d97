"""Scores of all images against all captions: a coding of similarities, then a pooling (CHAN, section 3).

Images and captions are sorted by length once, here, and the scores are put back into their order at the end. All
that is called from here (`codings`, `hard_assignment`, `soft_assignment`, `pooling`) receives sequences in order
of length, where those of one length are neighbours and are computed together without padding.

No tensor of images x captions x regions x words is kept. Three divisions of the work lie inside one another:

block   images x captions of a split, whose scores are ranked at once (`chan.evaluation.recall`)
tile    images x captions whose values are coded and pooled at once (this module); with a gradient, hard assignment
        takes all at once and keeps only winners, and soft codings compute each tile again in the backward pass
panel   queries x keys of one matrix product (`chan.scoring.hard_assignment`, where its GPU kernel does not run)

Shapes: B_i images, B_t captions, M regions of all images, T words of all captions, D joint dimension.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chan.packing import Packed, bounded_slices, offsets_of
from chan.scoring.codings import Coding, make_coding
from chan.scoring.pooling import Pooling, make_pooling, pool
from data_tools.arithmetic import float32_products
from data_tools.devices import to_device

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of the products of regions and words, by name; None keeps that of the rows, float64 too."""
TILE_REGIONS = 1 << 12  # enough for an efficient matrix product
TILE_WORDS = 1 << 13
GPU_TILE_SCALE = 8  # both are larger by this on a GPU, to keep it busy: 910 images of 36 regions, 65536 words
SOFT_TILE_WORDS = 1 << 11
SOFT_TILE_SIMILARITIES = 1 << 22  # regions x words of a soft coding's tile: 16 MiB, of which it holds about eight


@dataclass(frozen=True)
class Scorer:
    """Scores all images against all captions.

    >>> from chan.packing import pack
    >>> images = pack([torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8]])])
    >>> captions = pack([torch.tensor([[1.0, 0.0]])])
    >>> Scorer.from_names(pooling="mean")(images, captions)
    tensor([[1.0000],
            [0.6000]])

    Attributes:
        coding: from similarities to values per word or region.
        pooling: from the values of a caption's words, or of an image's regions, to a score.
        precision: the type of the products of regions and words; None keeps the rows' type.
    """

    coding: Coding
    pooling: Pooling
    precision: torch.dtype | None = None

    @classmethod
    def from_names(
        cls,
        coding: str = "vha",
        pooling: str = "lse",
        alpha: float = 0.1,
        beta: float = 0.1,
        precision: str = "fp32",
        *,
        similarity_norm: str = "clipped_l2norm",
        lambda_softmax: float = 9.0,
        lambda_lse: float = 6.0,
    ) -> "Scorer":
        """A scorer by the names of its parts; see `pairwise_scores`.

        Raises:
            ValueError: a name is unknown.
        """
        made = make_coding(coding, alpha, similarity_norm, lambda_softmax)
        return cls(made, make_pooling(pooling, beta, lambda_lse), product_type(precision))

    def with_precision(self, precision: str) -> "Scorer":
        """The same scorer with products in `precision`: fp32, bf16 or fp16."""
        return replace(self, precision=product_type(precision))

    @float32_products("ieee")
    def __call__(self, images: Packed, captions: Packed) -> Tensor:
        """(B_i, B_t) scores of regions (M, D) and words (T, D) of unit length, differentiable by both.

        Rows in half precision are raised to float32; the scores have the type of the rows.
        """
        sides = _ByLength.of(images), _ByLength.of(captions)
        if torch.is_grad_enabled() and (images.rows.requires_grad or captions.rows.requires_grad):
            return self._with_gradient(*sides)
        return self._without_gradient(*sides)

    def _tile_scores(self, images: Packed, captions: Packed) -> Tensor:
        """(B_i, B_t) scores of one tile."""
        values = self.coding.values(images, captions, self.precision)
        pooled = pool(values, (captions if self.coding.of_words else images).offsets, self.pooling)
        return pooled.T if self.coding.of_words else pooled

    def _without_gradient(self, images: "_ByLength", captions: "_ByLength") -> Tensor:
        """Tile by tile, so that memory grows only with the result."""
        scores = images.packed.rows.new_empty(len(images.packed), len(captions.packed))
        image_tiles, caption_tiles = _tiles(images, captions, self.coding.soft)
        for places in caption_tiles:
            some_captions = captions.sequences(places)
            strip = [self._tile_scores(images.sequences(tile), some_captions) for tile in image_tiles]
            scores[:, captions.positions(places)] = images.unsorted(torch.cat(strip), 0)
        return scores

    def _with_gradient(self, images: "_ByLength", captions: "_ByLength") -> Tensor:
        """All at once, or for the soft codings in tiles that the backward pass computes again."""
        all_images, all_captions = images.sequences(), captions.sequences()
        if not self.coding.soft:
            scores = self._tile_scores(all_images, all_captions)
        else:
            image_tiles, caption_tiles = _tiles(images, captions, soft=True)
            parts = [all_images.slice(tile.start, tile.stop) for tile in image_tiles]
            strips = []
            for places in caption_tiles:
                some_captions = all_captions.slice(places.start, places.stop)
                strips.append(torch.cat([self._recomputed(part, some_captions) for part in parts]))
            scores = torch.cat(strips, 1)
        return captions.unsorted(images.unsorted(scores, 0), 1)

    def _recomputed(self, images: Packed, captions: Packed) -> Tensor:
        """The scores of a tile, of which autograd keeps only the rows."""

        def from_rows(regions: Tensor, words: Tensor) -> Tensor:
            return self._tile_scores(images.with_rows(regions), captions.with_rows(words))

        return checkpoint(from_rows, images.rows, captions.rows, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class _ByLength:
    """B sequences from short to long; where they have to be moved for it, tiles are copied when they are needed.

    Attributes:
        packed: the sequences in the caller's order.
        offsets: (B + 1,) int64, of the sequences from short to long.
        order: (B,) int64, the sequences' positions from short to long; None: they are in that order.
        inverse: (B,) int64, the place of each sequence in that order; None likewise.
    """

    packed: Packed
    offsets: Tensor
    order: Tensor | None = None
    inverse: Tensor | None = None

    @classmethod
    def of(cls, packed: Packed) -> "_ByLength":
        """Sort; half precision is raised to float32."""
        if packed.rows.dtype in (torch.bfloat16, torch.float16):
            packed = packed.with_rows(packed.rows.float())
        order = packed.length_order()
        if order is None:
            return cls(packed, packed.offsets)
        return cls(packed, offsets_of(packed.lengths[order]), order, order.argsort())

    def sequences(self, places: slice | None = None) -> Packed:
        """Those at consecutive places of the sorted order, or all."""
        if self.order is None:
            return self.packed if places is None else self.packed.slice(places.start, places.stop)
        return self.packed.take(self.order if places is None else self.order[places])

    def positions(self, places: slice) -> slice | Tensor:
        """The caller's positions of the sequences at these places of the sorted order."""
        return places if self.order is None else to_device(self.order[places], self.packed.rows.device)

    def unsorted(self, scores: Tensor, dim: int) -> Tensor:
        """Scores whose dimension `dim` is in sorted order, put into the caller's order."""
        return scores if self.inverse is None else scores.index_select(dim, to_device(self.inverse, scores.device))


def _tiles(images: _ByLength, captions: _ByLength, soft: bool) -> tuple[list[slice], list[slice]]:
    """Consecutive places of images, and of captions, that make a tile with one another."""
    scale = GPU_TILE_SCALE if images.packed.rows.is_cuda and not soft else 1
    regions, words = TILE_REGIONS * scale, TILE_WORDS * scale
    if soft:
        words = min(int(captions.offsets[-1]), SOFT_TILE_WORDS)
        regions = SOFT_TILE_SIMILARITIES // words
    return bounded_slices(images.offsets, regions), bounded_slices(captions.offsets, words)


def product_type(precision: str) -> torch.dtype | None:
    """The type of the products of regions and words, from a name in `PRECISIONS`; None: that of the rows.

    Raises:
        ValueError: the name is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


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
    similarity_norm: str = "clipped_l2norm",
    lambda_softmax: float = 9.0,
    lambda_lse: float = 6.0,
    precision: str = "fp32",
) -> Tensor:
    """(B_i, B_t) scores of all images against all captions, differentiable by regions and words.

    >>> regions, words = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    >>> region_offsets = torch.tensor([0, 1, 3])  # an image of one region, then one of two
    >>> word_offsets = torch.tensor([0, 1, 2])  # two captions of one word
    >>> pairwise_scores(regions, region_offsets, words, word_offsets, pooling="mean")
    tensor([[1.0000, 0.0000],
            [0.0000, 0.8000]])

    Args:
        regions: (M, D) of unit length; image i has the rows `region_offsets[i]:region_offsets[i + 1]`.
        region_offsets: (B_i + 1,) int64, rising from 0 to M: every image has a region.
        words: (T, D) of unit length, likewise.
        word_offsets: (B_t + 1,) int64.
        coding: vha, tha, vsa, t2i or i2t, or global for rows of whole images and captions: see
            `chan.scoring.codings`.
        pooling: max, mean, sum, softmax, lse or scan_lse, over words (vha, t2i) or regions (tha, vsa, i2t).
        alpha: temperature of vsa's attention.
        beta: temperature of the softmax and lse poolings.
        similarity_norm: of t2i and i2t, see `chan.scoring.soft_assignment`.
        lambda_softmax: inverse temperature of the attention of t2i and i2t.
        lambda_lse: sharpness of the pooling scan_lse.
        precision: of the products of regions and words: fp32 (rows in float64 stay so), bf16 or fp16. All else
            is computed, and returned, in the rows' type, half precision raised to float32.

    Raises:
        ValueError: an unknown name, offsets that do not fit the rows, or rows of different widths.
    """
    scorer = Scorer.from_names(
        coding,
        pooling,
        alpha,
        beta,
        precision,
        similarity_norm=similarity_norm,
        lambda_softmax=lambda_softmax,
        lambda_lse=lambda_lse,
    )
    if regions.shape[1:] != words.shape[1:]:
        raise ValueError(
            f"regions {tuple(regions.shape)} and words {tuple(words.shape)} differ in width: "
            "both must be embeddings of one joint space"
        )
    return scorer(_packed(regions, region_offsets, "region"), _packed(words, word_offsets, "word"))


def _packed(rows: Tensor, offsets: Tensor, what: str) -> Packed:
    """Rows with offsets on the CPU, after checking that they fit one another."""
    offsets = offsets.cpu()
    lengths = offsets.diff()
    if not len(lengths) or offsets[0] != 0 or offsets[-1] != len(rows) or bool((lengths < 1).any()):
        raise ValueError(f"{what}_offsets must rise from 0 to {len(rows)}, by at least 1 per step")
    return Packed(rows, offsets)
