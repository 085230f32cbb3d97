"""Training in several processes, one per GPU, whose step equals that of one process with the whole batch.

Every process encodes its shard of a step's pairs and scores its images against the captions of all processes, so
that negatives come from the whole batch. The scores are gathered, so that every process computes the same loss,
and each then computes the gradient of its shard. `torchrun` starts the processes.

The numbers of pairs and words of each process, which decide shapes, are exchanged once per step between the
processors: nothing waits for a GPU.

Shapes: b pairs of this process, B pairs of all; n rows of this process, N rows of all; D numbers per row.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from chan.packing import Packed, offsets_of

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among the `count` that train together.

    >>> [Ranks(rank, 3).shard([1, 2, 3, 4]) for rank in range(3)]
    [[1, 2], [3], [4]]
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only process that writes files and prints."""
        return self.rank == 0

    def shard(self, items: list[Value]) -> list[Value]:
        """This process's consecutive shard of a step's items; the sizes of shards differ by one at most."""
        size, longer = divmod(len(items), self.count)
        start = self.rank * size + min(self.rank, longer)
        return items[start : start + size + (self.rank < longer)]

    def broadcast(self, value: Value) -> Value:
        """The value of rank 0, in every process; each waits until rank 0 has called this."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def is_main_process() -> bool:
    """Whether this is rank 0 of the processes that torchrun started, or the only process."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that `torchrun` started, or, without torchrun, a group of this process alone.

    Args:
        device: where to train; on CUDA each of several processes takes the GPU of its local rank.

    Yields:
        This process's rank, and its device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), count), device
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Shards:
    """How the captions of a step are divided among the processes, and what is gathered of them.

    Attributes:
        ranks: this process among those that train together.
        lengths: of each process's captions, (b,) int64 on the CPU.
    """

    ranks: Ranks
    lengths: list[Tensor]

    @classmethod
    def exchange(cls, captions: Packed, ranks: Ranks) -> "Shards":
        """Tell all processes the lengths of the captions of this one, and learn theirs."""
        own = captions.lengths
        if ranks.count == 1:
            return cls(ranks, [own])
        sizes = _all_gathered(torch.tensor([len(own)]), [1] * ranks.count)
        return cls(ranks, _all_gathered(own, [int(size) for size in sizes]))

    def captions(self, captions: Packed) -> Packed:
        """The captions (n, D) of all processes in the order of their ranks, (N, D); differentiable."""
        if self.ranks.count == 1:
            return captions
        counts = [int(lengths.sum()) for lengths in self.lengths]
        rows = _Gathered.apply(captions.rows, self.ranks, counts, True)
        return Packed(rows, offsets_of(torch.cat(self.lengths)))

    def scores(self, scores: Tensor) -> Tensor:
        """(B, B): the scores (b, B) of all processes, for a loss that each process computes from all of them."""
        return scores if self.ranks.count == 1 else _Gathered.apply(scores, self.ranks, self._pairs, False)

    def values(self, values: Tensor) -> Tensor:
        """(B,): a number for each pair of all processes, from those (b,) of this one; without a gradient."""
        return values if self.ranks.count == 1 else torch.cat(_all_gathered(values, self._pairs))

    @property
    def _pairs(self) -> list[int]:
        return [len(lengths) for lengths in self.lengths]


class _Gathered(torch.autograd.Function):
    """The rows of all processes, gathered.

    The backward pass returns the gradient of this process's rows. With `summed` it is summed over the processes,
    each of which used the rows differently; without, all of them computed the same loss and so the same gradient.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, counts: list[int], summed: bool) -> Tensor:
        ctx.first, ctx.count, ctx.summed = sum(counts[: ranks.rank]), len(rows), summed
        return torch.cat(_all_gathered(rows, counts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].contiguous()
        if ctx.summed:
            gradient = gradient.clone()  # all_reduce works in place, and autograd may use the tensor elsewhere
            dist.all_reduce(gradient)
        return gradient[ctx.first : ctx.first + ctx.count], None, None, None


def _all_gathered(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of each process, of which each has its own of `counts`."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]
