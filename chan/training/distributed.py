"""Training in several processes, one for each GPU, that together take the step of one.

Every process encodes its share of a step's pairs and scores its images against the captions of all, so that
negatives come from the whole batch. Each then has all the scores and so the same loss; its gradient is split
the way the work was. `torchrun` starts the processes.

Shapes: b pairs of this process, B pairs of all; n rows of this process, N rows of all; D numbers a row.
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
    """This process among the others: `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def share(self, items: list[Value]) -> list[Value]:
        """This process' consecutive part of a step's items; parts differ by one item at most."""
        size, longer = divmod(len(items), self.count)
        start = self.rank * size + min(self.rank, longer)
        return items[start : start + size + (self.rank < longer)]

    def broadcast(self, value: Value) -> Value:
        """What the first process has, for all of them."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def is_main_process() -> bool:
    """Whether this is the process that talks, of those that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """This process' place among those that `torchrun` started, and its device; alone without torchrun."""
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
    """The sequences of all processes in the order of their ranks; differentiable, see `_Gathered`."""
    if ranks.count == 1:
        return packed
    lengths = gather_values(packed.lengths.to(packed.rows.device), ranks)
    return Packed(_Gathered.apply(packed.rows, ranks, True), offsets_of(lengths.cpu()))


def gather_scores(scores: Tensor, ranks: Ranks) -> Tensor:
    """(B, B): the rows (b, B) of all processes, for a loss that each of them computes alike."""
    return scores if ranks.count == 1 else _Gathered.apply(scores, ranks, False)


def gather_values(values: Tensor, ranks: Ranks) -> Tensor:
    """(N,) or (N, D): the values of all processes, (n,) or (n, D), without a gradient."""
    return values if ranks.count == 1 else torch.cat(_gathered_parts(values, ranks))


class _Gathered(torch.autograd.Function):
    """Rows of all processes.

    The backward pass gives this process the gradient of its own rows: summed over the processes where each
    made another use of the rows (`summed`), this process' own where all made the same.
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
            gradient = gradient.clone()  # it may be another operation's, and the sum is taken in place
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
