"""Training in several processes, one per GPU, whose step equals that of one process with the whole batch.

Every process encodes its shard of a step's pairs and scores its images against the captions of all processes, so
that negatives come from the whole batch. The scores are gathered, so that every process computes the same loss,
and each then computes the gradient of its shard. `torchrun` starts the processes.

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
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), count), device
    finally:
        dist.destroy_process_group()


def gather(packed: Packed, ranks: Ranks) -> Packed:
    """The sequences of all processes in the order of their ranks, differentiable: see `_Gathered`."""
    if ranks.count == 1:
        return packed
    lengths = gather_values(packed.lengths.to(packed.rows.device), ranks)
    return Packed(_Gathered.apply(packed.rows, ranks, True), offsets_of(lengths.cpu()))


def gather_scores(scores: Tensor, ranks: Ranks) -> Tensor:
    """(B, B): the scores (b, B) of all processes, for a loss that each process computes from all of them."""
    return scores if ranks.count == 1 else _Gathered.apply(scores, ranks, False)


def gather_values(values: Tensor, ranks: Ranks) -> Tensor:
    """(N,) or (N, D): the values of all processes, (n,) or (n, D), without a gradient."""
    return values if ranks.count == 1 else torch.cat(_gathered_parts(values, ranks))


class _Gathered(torch.autograd.Function):
    """The rows of all processes, gathered.

    The backward pass returns the gradient of this process's rows. With `summed` it is summed over the processes,
    each of which used the rows differently; without, all of them computed the same loss and so the same gradient.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, summed: bool) -> Tensor:
        parts = _gathered_parts(rows, ranks)
        ctx.first, ctx.summed = sum(len(part) for part in parts[: ranks.rank]), summed
        ctx.count = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        if ctx.summed:
            gradient = gradient.clone()  # all_reduce works in place, and autograd may use the tensor elsewhere
            dist.all_reduce(gradient)
        return gradient[ctx.first : ctx.first + ctx.count], None, None


def _gathered_parts(rows: Tensor, ranks: Ranks) -> list[Tensor]:
    """The rows of each process, which may differ in number."""
    own = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(own) for _ in range(ranks.count)]
    dist.all_gather(sizes, own)
    counts = [int(size) for size in sizes]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(ranks.count)]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]
