"""Soft assignment: a query is compared with a weighted average of keys.

The average itself, D numbers per query and sequence, is never formed. With weights p and keys k, its product
with a query q is sum_j p_j (q . k_j), and its squared norm is p' G p with the Gram matrix G of the sequence's
keys: both need only similarities.

Images and captions are expected in order of length: each run of sequences of one length costs a few operations.
The results are the same in any order.

Shapes: B_i images, B_t captions, R regions and W words of all of them, K regions of an image, L words of a
caption, D joint dimension. These functions hold a few (R, W) tensors; `chan.scoring.pairwise` calls them per tile.
"""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from chan.packing import Packed, equal_length_runs

EPSILON = 1e-8
LEAKY_SLOPE = 0.1  # of the leaky ReLU in SCAN's cross-attention
INVERSE_TEMPERATURE = 9.0  # of its softmax over regions


def attended_words(images: Packed, captions: Packed, alpha: float, precision: torch.dtype | None) -> Tensor:
    """(R, B_t): each region's cosine with its attended word vector (visual soft assignment, `VSACoding`).

    A region attends to the words of a caption with softmax(similarity / alpha).

    Args:
        images: (R, D) regions of unit length.
        captions: (W, D) words of unit length.
        alpha: temperature of the attention.
        precision: the type of the products of regions and words; None takes the rows' own.
    """
    similarity = _products(images.rows, captions.rows, precision)
    columns = []
    for run in equal_length_runs(captions.offsets):
        block = similarity[:, run.rows].unflatten(1, (run.count, run.length))  # (R, captions, L)
        weight = (block / alpha).softmax(2)
        words = captions.rows[run.rows].unflatten(0, (run.count, run.length))
        gram = words @ words.transpose(1, 2)
        spread = (weight.transpose(0, 1) @ gram).transpose(0, 1)
        columns.append((weight * block).sum(2) / _root((weight * spread).sum(2)))
    return torch.cat(columns, 1)


def attended_regions(images: Packed, captions: Packed, precision: torch.dtype | None) -> Tensor:
    """(W, B_i): each word's cosine with its attended region (SCAN's text-to-image cross-attention).

    Lee et al. 2018, equations 4 to 6 with roles as in "t2i": similarities pass a leaky ReLU, are divided for
    each region by their norm over the caption's words, and a word attends to the regions of an image with
    softmax(9 * that). Arguments as for `attended_words`.
    """
    similarity = _products(images.rows, captions.rows, precision)
    positive = leaky_relu(similarity, LEAKY_SLOPE)
    scaled = []
    for run in equal_length_runs(captions.offsets):
        block = positive[:, run.rows].unflatten(1, (run.count, run.length))
        norm = _root(block.square().sum(2, keepdim=True))
        scaled.append((block / norm).flatten(1))
    logits = INVERSE_TEMPERATURE * torch.cat(scaled, 1)
    rows = []
    for run in equal_length_runs(images.offsets):
        weight = logits[run.rows].unflatten(0, (run.count, run.length)).softmax(1)  # (images, K, W)
        regions = images.rows[run.rows].unflatten(0, (run.count, run.length))
        spread = (regions @ regions.transpose(1, 2)) @ weight
        block = similarity[run.rows].unflatten(0, (run.count, run.length))
        rows.append((weight * block).sum(1) / _root((weight * spread).sum(1)))
    lengths = _root(captions.rows.square().sum(1))
    return torch.cat(rows).T / lengths[:, None]


def _products(regions: Tensor, words: Tensor, precision: torch.dtype | None) -> Tensor:
    kind = precision or regions.dtype
    return (regions.to(kind) @ words.to(kind).T).to(regions.dtype)


def _root(square: Tensor) -> Tensor:
    """A square root with a finite slope at zero and below it, where rounding can put a square."""
    return square.clamp(min=EPSILON**2).sqrt()
