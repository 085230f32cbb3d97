"""Soft assignment: a query is compared with a weighted average of keys.

The average itself, D numbers per query and sequence, is never formed. With weights p and keys k, its product
with a query q is sum_j p_j (q . k_j), and its squared norm is p' G p with the Gram matrix G of the sequence's
keys: both need only similarities.

Images and captions are expected in order of length: each run of sequences of one length costs a few operations.
The results are the same in any order.

Shapes: B_i images, B_t captions, R regions and W words of all of them, K regions of an image, L words of a
caption, D joint dimension; in SCAN's attention, Q queries and M keys. These functions hold a few
(R, W) tensors; `chan.scoring.pairwise` calls them per tile.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from chan.packing import Packed, equal_length_runs

EPSILON = 1e-8
LEAKY_SLOPE = 0.1  # of the leaky ReLU in SCAN's cross-attention
NORMS = ("clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "softmax", "no_norm")
"""How SCAN normalises similarities."""


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


@dataclass(frozen=True)
class CrossAttention:
    """SCAN's attention (Lee et al. 2018, section 3): each query is compared with the keys that it attends to.

    The similarities of each key with the queries of a sequence are normalised over these queries, then each query
    attends to the keys of a sequence with softmax(lambda_softmax * that). Words as queries and regions as keys are
    "text to image" (t2i), the roles exchanged "image to text" (i2t).

    Attributes:
        norm: one of `NORMS`, by the names of SCAN's code: `clipped` is a leaky ReLU with slope 0.1 before the
            rest, `l2norm` and `l1norm` divide by that norm, `softmax` is one.
        lambda_softmax: inverse temperature of the attention.
    """

    norm: str = "clipped_l2norm"
    lambda_softmax: float = 9.0

    def cosines(self, queries: Packed, keys: Packed, precision: torch.dtype | None) -> Tensor:
        """(Q, N): each query's cosine with its attended key in each of N sequences of keys.

        Args:
            queries: (Q, D) rows.
            keys: (M, D) rows.
            precision: the type of the products of queries and keys; None takes the rows' own.
        """
        similarity = _products(keys.rows, queries.rows, precision)
        logits = self._logits(similarity, queries.offsets)
        rows = []
        for run in equal_length_runs(keys.offsets):
            weight = logits[run.rows].unflatten(0, (run.count, run.length)).softmax(1)  # (sequences, keys, Q)
            own = keys.rows[run.rows].unflatten(0, (run.count, run.length))
            spread = (own @ own.transpose(1, 2)) @ weight
            block = similarity[run.rows].unflatten(0, (run.count, run.length))
            rows.append((weight * block).sum(1) / _root((weight * spread).sum(1)))
        lengths = _root(queries.rows.square().sum(1))
        return torch.cat(rows).T / lengths[:, None]

    def weights(self, queries: Packed, keys: Packed) -> Tensor:
        """(Q, K): how much each query of one sequence attends to each key of another; each row sums to 1."""
        similarity = _products(keys.rows, queries.rows, None)
        return self._logits(similarity, queries.offsets).softmax(0).T

    def _logits(self, similarity: Tensor, query_offsets: Tensor) -> Tensor:
        """(M, Q): similarities (M, Q), normalised over the queries of each sequence, times `lambda_softmax`."""
        if self.norm.startswith("clipped"):
            similarity = leaky_relu(similarity, LEAKY_SLOPE)
        normalise = _NORMALISE[self.norm.removeprefix("clipped_")]
        if normalise is None:
            return self.lambda_softmax * similarity
        columns = []
        for run in equal_length_runs(query_offsets):
            block = similarity[:, run.rows].unflatten(1, (run.count, run.length))
            columns.append(normalise(block).flatten(1))
        return self.lambda_softmax * torch.cat(columns, 1)


_NORMALISE: dict[str, Callable[[Tensor], Tensor] | None] = {  # of (M, sequences, queries) along the last
    "l2norm": lambda block: block / _root(block.square().sum(2, keepdim=True)),
    "l1norm": lambda block: block / (block.abs().sum(2, keepdim=True) + EPSILON),
    "softmax": lambda block: block.softmax(2),
    "clipped": None,
    "no_norm": None,
}


def _products(regions: Tensor, words: Tensor, precision: torch.dtype | None) -> Tensor:
    kind = precision or regions.dtype
    return (regions.to(kind) @ words.to(kind).T).to(regions.dtype)


def _root(square: Tensor) -> Tensor:
    """A square root with a finite slope at zero and below it, where rounding can put a square."""
    return square.clamp(min=EPSILON**2).sqrt()
