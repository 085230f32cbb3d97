"""Region or word vectors to one vector per image or caption, for models that compare single vectors.

GPO, the generalised pooling operator (Chen et al. 2021, "Learning the best pooling strategy for visual semantic
embedding"), sorts each dimension of a sequence's rows from large to small and sums them with weights that depend
on nothing but the length of the sequence. A small recurrent network gives the weights of every length.

Shapes: B sequences, N rows of all sequences, D joint dimension, L rows of one sequence, C distinct lengths.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from chan.packing import Packed, equal_length_runs, offsets_of, step_order
from chan.scoring.pooling import maximum, mean
from data_tools.devices import to_device

AGGREGATIONS = ("gpo", "mean", "max")
SIZE = 32  # numbers of a position's encoding, and hidden units per direction
TEMPERATURE = 0.1  # of the softmax over positions


class Aggregation(nn.Module):
    """One vector per sequence: the mean or the maximum of its rows in each dimension, or GPO.

    >>> from chan.packing import pack
    >>> Aggregation("max")(pack([torch.tensor([[1.0, 4.0], [3.0, 2.0]]), torch.tensor([[5.0, 6.0]])])).rows
    tensor([[3., 4.],
            [5., 6.]])

    Args:
        name: one of `AGGREGATIONS`.

    Raises:
        ValueError: the name is unknown.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in AGGREGATIONS:
            raise ValueError(f"aggregation {name!r}: expected one of {', '.join(AGGREGATIONS)}")
        self.name = name
        self.gpo = PositionWeights() if name == "gpo" else None

    def forward(self, sequences: Packed) -> Packed:
        """Rows (N, D) of any lengths to B sequences of one row, (B, D)."""
        order = sequences.length_order()  # rows of equal lengths then are neighbours
        ordered = sequences if order is None else sequences.take(order)
        vectors = torch.cat(self._by_length(ordered))
        if order is not None:
            vectors = vectors.index_select(0, to_device(order.argsort(), vectors.device))
        return Packed(vectors, torch.arange(len(sequences) + 1))

    def _by_length(self, sequences: Packed) -> list[Tensor]:
        """(n, D) for the n sequences of each length."""
        runs = equal_length_runs(sequences.offsets)
        blocks = [sequences.rows[run.rows].unflatten(0, (run.count, run.length)) for run in runs]
        if self.gpo is None:
            pooling = mean if self.name == "mean" else maximum
            return [pooling(block) for block in blocks]
        weights = self.gpo([run.length for run in runs])
        return [weighted_order(block, weight) for block, weight in zip(blocks, weights, strict=True)]


def weighted_order(rows: Tensor, weights: Tensor) -> Tensor:
    """(n, D): the values of each dimension of (n, L, D) rows, from large to small, summed with (L,) weights."""
    by_dimension = rows.transpose(1, 2).contiguous()  # sorting neighbours takes half the time
    return by_dimension.sort(dim=2, descending=True)[0] @ weights


class PositionWeights(nn.Module):
    """GPO's weights: position encodings, a bidirectional GRU, one number per position, softmax over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SIZE, SIZE, bidirectional=True)
        self.linear = nn.Linear(SIZE, 1, bias=False)
        self._known: dict[int, Tensor] = {}
        self._known_for: tuple[object, ...] = ()

    def forward(self, lengths: list[int]) -> list[Tensor]:
        """For each of C distinct lengths its (L,) weights, which sum to 1.

        Without a gradient, those of a length are computed once, and again only when the parameters have changed.
        """
        if torch.is_grad_enabled() or any(value.is_inference() for value in self.parameters()):
            return self._compute(lengths)  # tensors made in inference mode do not tell whether they have changed
        state = tuple((value.data_ptr(), value._version) for value in self.parameters())
        if state != self._known_for:
            self._known, self._known_for = {}, state
        missing = [length for length in lengths if length not in self._known]
        if missing:
            self._known |= dict(zip(missing, self._compute(missing), strict=True))
        return [self._known[length] for length in lengths]

    def _compute(self, lengths: list[int]) -> list[Tensor]:
        like = self.linear.weight
        offsets = offsets_of(torch.tensor(lengths))
        order, sizes = step_order(offsets)
        order = to_device(order, like.device)
        encodings = torch.cat([position_encodings(length) for length in lengths]).to(like.dtype)
        encodings = to_device(encodings, like.device)
        with torch.autocast(like.device.type, enabled=False):  # rounding errors accumulate in a recurrence
            out = self.gru(PackedSequence(encodings.index_select(0, order), sizes))[0].data
            forwards, backwards = out.chunk(2, dim=1)
            scores = self.linear((forwards + backwards) / 2)[:, 0].index_select(0, order.argsort())
            return [(part / TEMPERATURE).softmax(0) for part in scores.split(lengths)]


def position_encodings(length: int) -> Tensor:
    """(L, 32) float64: sine and cosine, in turns, of the positions 0 to L - 1 times the Transformer's frequencies.

    The frequencies are 10000^(-2i / 32), i = 0 to 15 (Vaswani et al. 2017, section 3.5).
    """
    frequencies = torch.exp(torch.arange(0, SIZE, 2, dtype=torch.float64) * (-math.log(10000.0) / SIZE))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
