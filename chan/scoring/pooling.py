"""Poolings: one number from the values of a caption's words, or of an image's regions (CHAN, section 3.3).

Shapes: B sequences, N values of all sequences together, C columns (one for each candidate), L values of one
sequence.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from chan.packing import Packed, equal_length_runs

Pooling = Callable[[Tensor], Tensor]
"""Reduces (B, L, C) to (B, C); every value counts, since sequences of one length come together."""


def maximum(values: Tensor) -> Tensor:
    """The largest value."""
    return values.amax(1)


def mean(values: Tensor) -> Tensor:
    """The average."""
    return values.mean(1)


def total(values: Tensor) -> Tensor:
    """The sum."""
    return values.sum(1)


def softmax_weighted(values: Tensor, beta: float) -> Tensor:
    """The average with weights softmax(value / beta)."""
    return ((values / beta).softmax(1) * values).sum(1)


def log_sum_exp(values: Tensor, beta: float) -> Tensor:
    """log sum exp(value / beta), without the factor beta that would make it a smooth maximum (as CHAN)."""
    return torch.logsumexp(values / beta, 1)


def make_pooling(name: str, beta: float) -> Pooling:
    """The pooling called `name` (max, mean, sum, softmax or lse) at temperature `beta`.

    Raises:
        ValueError: there is no pooling of that name.
    """
    poolings: dict[str, Pooling] = {
        "max": maximum,
        "mean": mean,
        "sum": total,
        "softmax": partial(softmax_weighted, beta=beta),
        "lse": partial(log_sum_exp, beta=beta),
    }
    if name not in poolings:
        raise ValueError(f"pooling {name!r}: expected one of {', '.join(poolings)}")
    return poolings[name]


def pool(values: Tensor, offsets: Tensor, pooling: Pooling) -> Tensor:
    """(B, C): `pooling` of packed values (N, C), sequence by sequence, those of one length at a time."""
    packed, order = Packed(values, offsets).sorted_by_length()
    pooled = [
        pooling(packed.rows[run.rows].unflatten(0, (run.count, run.length)))
        for run in equal_length_runs(packed.offsets)
    ]
    return torch.cat(pooled).index_select(0, order.argsort().to(values.device))
