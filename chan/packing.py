"""Sequences of different lengths in one tensor, row behind row, without padding.

Shapes: B sequences, N rows of all sequences together, L rows of the longest one, D numbers a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """B sequences: sequence b is `rows[offsets[b]:offsets[b + 1]]`, and none is empty.

    `rows` is (N, D), or (N,) for ids. `offsets` is (B + 1,) int64 and stays on the CPU wherever the rows
    are, because lengths decide the shapes of what is computed and must not wait for a device.
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
        """The same sequences with their rows on `device`."""
        return Packed(self.rows.to(device, non_blocking=True), self.offsets)

    def with_rows(self, rows: Tensor) -> "Packed":
        """Other rows, (N, anything), in these sequences' places."""
        return Packed(rows, self.offsets)

    def slice(self, first: int, last: int) -> "Packed":
        """Sequences `first` to `last`, the latter excluded; rows are shared, not copied."""
        offsets = self.offsets[first : last + 1]
        return Packed(self.rows[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0])

    def sorted_by_length(self) -> tuple["Packed", Tensor]:
        """The sequences from short to long, and (B,) int64: which one now stands in each place."""
        order = self.lengths.argsort(stable=True)
        return self.take(order), order

    def take(self, order: Tensor) -> "Packed":
        """The sequences at the positions `order` (n,) int64, in that order, copied."""
        source = rows_of(self.offsets, order)
        return Packed(
            self.rows.index_select(0, to_device(source, self.rows.device)), offsets_of(self.lengths[order])
        )

    def padded_places(self) -> Tensor:
        """(N,) int64: where each row stands in a padded (B * L) layout."""
        longest = int(self.lengths.max())
        shifts = torch.arange(len(self)) * longest - self.offsets[:-1]
        return torch.arange(int(self.offsets[-1])) + shifts.repeat_interleave(self.lengths)

    def is_even(self) -> bool:
        """Whether all sequences are equally long, so that (B, L, D) is only a view of the rows."""
        return bool((self.lengths == self.lengths[0]).all())


def offsets_of(lengths: Tensor) -> Tensor:
    """(B + 1,) int64 offsets of sequences with these (B,) lengths."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def rows_of(offsets: Tensor, order: Tensor) -> Tensor:
    """(n,) int64: the rows of the sequences at the positions `order`, one sequence behind the other."""
    lengths = offsets.diff()[order]
    shifts = offsets[order] - (lengths.cumsum(0) - lengths)
    shifts = shifts.repeat_interleave(lengths)
    return torch.arange(len(shifts)) + shifts


def to_device(index: Tensor, device: torch.device) -> Tensor:
    """A small tensor, made here, on `device`.

    A GPU's copy from ordinary memory would wait for all that the GPU has still to do; from pinned memory it does
    not.
    """
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


def pack(sequences: Sequence[Tensor]) -> Packed:
    """Put sequences, (length, D) or (length,) each, behind one another."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    return Packed(torch.cat(list(sequences)), offsets_of(lengths))


def join(parts: Sequence[Packed]) -> Packed:
    """All sequences of the parts, in order."""
    lengths = torch.cat([part.lengths for part in parts])
    return Packed(torch.cat([part.rows for part in parts]), offsets_of(lengths))


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
        """Their places among the sequences."""
        return slice(self.first, self.first + self.count)


def equal_length_runs(offsets: Tensor) -> list[EqualLengthRun]:
    """Cut sequences into runs of equal length; sorted by length there is one run for each length."""
    runs, first, first_row = [], 0, 0
    for length, group in groupby(offsets.diff().tolist()):
        count = len(list(group))
        runs.append(EqualLengthRun(length, count, first, first_row))
        first, first_row = first + count, first_row + count * length
    return runs
