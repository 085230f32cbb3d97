"""The last steps of both encoders: aggregation, if the model has one, precision and length of the embeddings.

Shapes: B sequences, N rows of all of them, D joint dimension.
"""

import torch
from torch import Tensor

from chan.model.aggregation import Aggregation
from chan.packing import Packed


def finished(sequences: Packed, aggregation: Aggregation | None, normalise: bool) -> Packed:
    """The embeddings of an encoder, from rows (N, D): (N, D), or (B, D) with an aggregation.

    Args:
        sequences: half precision is raised to float32.
        aggregation: makes one row of each sequence; None keeps the rows.
        normalise: whether embeddings are scaled to unit length.
    """
    if sequences.rows.dtype in (torch.bfloat16, torch.float16):
        sequences = sequences.with_rows(sequences.rows.float())
    if aggregation is not None:
        sequences = aggregation(sequences)
    return sequences.with_rows(l2_normalise(sequences.rows)) if normalise else sequences


def l2_normalise(rows: Tensor) -> Tensor:
    """Rows (..., D) divided by their Euclidean norm plus 1e-8, so that a zero row stays zero.

    >>> l2_normalise(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    return rows / (rows.norm(dim=-1, keepdim=True) + 1e-8)
