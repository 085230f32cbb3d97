"""Poolings: one number from the values of a caption's words, or of an image's regions (CHAN, section 3.3).

Shapes: B sequences, N values of all sequences together, C columns (one per candidate), L values of one sequence.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from chan.packing import equal_length_runs

Pooling = Callable[[Tensor], Tensor]
"""Reduces (B, L, C) to (B, C). Sequences of one length are reduced together, without padding."""


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


def smooth_maximum(values: Tensor, sharpness: float) -> Tensor:
    """log sum exp(sharpness * value) / sharpness: SCAN's LogSumExp."""
    return torch.logsumexp(sharpness * values, 1) / sharpness


def make_pooling(name: str, beta: float, lambda_lse: float = 6.0) -> Pooling:
    """The pooling called `name`.

    Args:
        name: max, mean, sum, softmax, lse or scan_lse.
        beta: temperature of softmax and lse.
        lambda_lse: sharpness of scan_lse.

    Raises:
        ValueError: the name is unknown.
    """
    poolings: dict[str, Pooling] = {
        "max": maximum,
        "mean": mean,
        "sum": total,
        "softmax": partial(softmax_weighted, beta=beta),
        "lse": partial(log_sum_exp, beta=beta),
        "scan_lse": partial(smooth_maximum, sharpness=lambda_lse),
    }
    if name not in poolings:
        raise ValueError(f"pooling {name!r}: expected one of {', '.join(poolings)}")
    return poolings[name]


def rises_in_every_value(pooling: Pooling) -> bool:
    """Whether a larger value never makes the result smaller: of all but softmax.

    >>> rises_in_every_value(make_pooling("lse", 0.1)), rises_in_every_value(make_pooling("softmax", 0.1))
    (True, False)
    """
    return not (isinstance(pooling, partial) and pooling.func is softmax_weighted)


def pool(values: Tensor, offsets: Tensor, pooling: Pooling) -> Tensor:
    """(B, C): `pooling` of packed values (N, C), sequence by sequence.

    Neighbours of one length are reduced in one call, so sequences should be sorted by length; the result is the
    same in any order.

    >>> values, offsets = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([0, 1, 3])
    >>> pool(values, offsets, mean)
    tensor([[1.],
            [4.]])
    """
    values = values.contiguous()  # reductions along dim 1 then run over whole rows of columns
    return torch.cat(
        [pooling(values[run.rows].unflatten(0, (run.count, run.length))) for run in equal_length_runs(offsets)]
    )
