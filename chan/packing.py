"""Sequences of different lengths in one tensor, one behind the other, without padding.

Shapes: B sequences, N rows of all sequences together, L rows of the longest one, D numbers per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from data_tools.devices import to_device


@dataclass(frozen=True)
class Packed:
    """B sequences: sequence b is `rows[offsets[b]:offsets[b + 1]]`, and none is empty.

    `rows` is (N, D), or (N,) for ids. `offsets` is (B + 1,) int64 and stays on the CPU whatever the device of the
    rows, because lengths decide the shapes of what is computed and reading them must not wait for a device.

    >>> packed = pack([torch.tensor([1, 2, 3]), torch.tensor([4])])
    >>> packed.rows, packed.offsets
    (tensor([1, 2, 3, 4]), tensor([0, 3, 4]))
    """

    rows: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: rows of each sequence."""
        return self.offsets.diff()

    def to(self, device: torch.device) -> "Packed":
        """The same sequences with their rows on `device`.

        Rows go to a GPU through pinned memory, so that nothing waits for it, and are there before they are used;
        those that come to the CPU are waited for.
        """
        return self.with_rows(to_device(self.rows, device))

    def with_rows(self, rows: Tensor) -> "Packed":
        """Sequences of the same lengths with other rows, (N, ...)."""
        return Packed(rows, self.offsets)

    def slice(self, first: int, last: int) -> "Packed":
        """Sequences `first` to `last`, the latter excluded; rows are shared, not copied."""
        offsets = self.offsets[first : last + 1]
        return Packed(self.rows[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0])

    def take(self, order: Tensor) -> "Packed":
        """The sequences at the positions `order` (n,) int64, in that order, copied.

        >>> pack([torch.tensor([1, 2, 3]), torch.tensor([4])]).take(torch.tensor([1, 0])).rows
        tensor([4, 1, 2, 3])
        """
        source = gather_index(self.offsets, order)
        return Packed(
            self.rows.index_select(0, to_device(source, self.rows.device)), offsets_of(self.lengths[order])
        )

    def length_order(self) -> Tensor | None:
        """(B,) int64: the positions of the sequences from short to long, equal lengths in their present order.

        None where the sequences are in that order already, as those of one length are: nothing has to be copied.
        """
        lengths = self.lengths
        if bool((lengths[1:] >= lengths[:-1]).all()):
            return None
        return lengths.argsort(stable=True)

    def padded_places(self) -> Tensor:
        """(N,) int64: the position of each row in a padded (B * L) layout."""
        longest = int(self.lengths.max())
        shifts = torch.arange(len(self)) * longest - self.offsets[:-1]
        return torch.arange(int(self.offsets[-1])) + shifts.repeat_interleave(self.lengths)

    def is_even(self) -> bool:
        """Whether all sequences are equally long, so that (B, L, D) is only a view of the rows."""
        return bool((self.lengths == self.lengths[0]).all())


def offsets_of(lengths: Tensor) -> Tensor:
    """(B + 1,) int64 offsets of sequences with these (B,) lengths.

    >>> offsets_of(torch.tensor([3, 1]))
    tensor([0, 3, 4])
    """
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def gather_index(offsets: Tensor, order: Tensor) -> Tensor:
    """(n,) int64: the rows of the sequences at the positions `order`, one sequence behind the other.

    >>> gather_index(torch.tensor([0, 3, 4]), torch.tensor([1, 0]))
    tensor([3, 0, 1, 2])
    """
    lengths = offsets.diff()[order]
    shifts = offsets[order] - (lengths.cumsum(0) - lengths)
    shifts = shifts.repeat_interleave(lengths)
    return torch.arange(len(shifts)) + shifts


def step_order(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The order in which a recurrent network processes packed words: all first words, all second ones, ...

    >>> order, sizes = step_order(torch.tensor([0, 2, 5]))  # a caption of two words, then one of three
    >>> order.tolist(), sizes.tolist()
    ([2, 0, 3, 1, 4], [2, 2, 1])

    Args:
        offsets: (B + 1,) int64 offsets of the captions.

    Returns:
        (W,) int64 order, captions from long to short within a step, and (L,) int64 words in each step, as a
        `PackedSequence` needs them.
    """
    lengths = offsets.diff()
    rank = lengths.argsort(descending=True, stable=True).argsort()
    step = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
    order = (step * len(lengths) + rank.repeat_interleave(lengths)).argsort()
    return order, step.bincount()


def pack(sequences: Sequence[Tensor]) -> Packed:
    """Put sequences, (length, D) or (length,) each, behind one another."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    return Packed(torch.cat(list(sequences)), offsets_of(lengths))


def join(parts: Sequence[Packed]) -> Packed:
    """All sequences of the parts, in order."""
    lengths = torch.cat([part.lengths for part in parts])
    return Packed(torch.cat([part.rows for part in parts]), offsets_of(lengths))


def bounded_slices(offsets: Tensor, max_rows: int) -> list[slice]:
    """Cut sequences into consecutive groups of at most `max_rows` rows; a longer sequence is a group by itself.

    >>> bounded_slices(torch.tensor([0, 2, 3, 9, 10]), 4)
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    slices, first, count = [], 0, len(offsets) - 1
    while first < count:
        full = int(torch.searchsorted(offsets, offsets[first] + max_rows, right=True)) - 1
        last = max(first + 1, full)
        slices.append(slice(first, last))
        first = last
    return slices


@dataclass(frozen=True)
class EqualLengthRun:
    """Consecutive sequences of one length: `count` of them from sequence `first` and row `first_row`."""

    length: int
    count: int
    first: int
    first_row: int

    @property
    def rows(self) -> slice:
        """Their rows, which can be viewed as (count, length)."""
        return slice(self.first_row, self.first_row + self.count * self.length)

    @property
    def sequences(self) -> slice:
        """Their positions among the sequences."""
        return slice(self.first, self.first + self.count)


def equal_length_runs(offsets: Tensor) -> list[EqualLengthRun]:
    """Cut sequences into runs of equal length; sorted by length there is one run per length."""
    runs, first, first_row = [], 0, 0
    for length, group in groupby(offsets.diff().tolist()):
        count = len(list(group))
        runs.append(EqualLengthRun(length, count, first, first_row))
        first, first_row = first + count, first_row + count * length
    return runs
