"""Hard assignment: each query is matched with the one key of a sequence that is most similar to it.

With words as queries and regions as keys this is CHAN's visual hard assignment (section 3.2); with the roles
exchanged, its textual counterpart. On an NVIDIA GPU a kernel computes it that writes nothing but the result
(`chan.scoring.hard_assignment_triton`); elsewhere the products are computed in panels, each of some queries by the
keys of some sequences, and reduced at once.

Sequences of keys are expected in order of length, as `chan.scoring.pairwise` gives them: a panel then has few runs
of equal length, each of which costs a few operations. The results are the same in any order.

Shapes: Q queries in all, N sequences of keys, M keys in all, D joint dimension.
"""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from chan.packing import EqualLengthRun, Packed, bounded_slices, equal_length_runs
from data_tools.devices import runs_triton, to_device

PANEL_SIMILARITIES = 1 << 22  # keys x queries: 16 MiB, enough rows for an efficient matrix product
PANEL_QUERIES = 1 << 10  # at most: 4 MiB at D 1024, which stay in the cache while all keys pass by
GPU_PANEL_SCALE = 16  # both are larger by this on a GPU without the kernel: 256 MiB, few launches
CACHE_LINE = 32  # numbers: 64 bytes in half precision
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def max_similarities(queries: Tensor, keys: Packed, precision: torch.dtype | None = None) -> Tensor:
    """(Q, N): for each query the largest product with a key of each sequence; differentiable.

    >>> queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> keys = Packed(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1, 3]))
    >>> max_similarities(queries, keys)
    tensor([[0.5000, 1.0000],
            [0.5000, 2.0000]])

    Args:
        queries: (Q, D).
        keys: (M, D) rows in N sequences.
        precision: the type of the products; None takes the rows' own. The gradient is always in the rows' type.
    """
    if torch.is_grad_enabled() and (queries.requires_grad or keys.rows.requires_grad):
        best: Tensor = _BestKey.apply(queries, keys.rows, keys.offsets, precision)[0]
        return best
    return _best(queries, keys, precision)


def best_keys(queries: Tensor, keys: Packed) -> tuple[Tensor, Tensor]:
    """The largest products (Q, N), and (Q, N) int64: the positions in their sequences of the keys that have them.

    Where keys are equal, the position is that of any one of them. Not differentiable.

    >>> keys = Packed(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1, 3]))
    >>> best_keys(torch.tensor([[0.0, 1.0]]), keys)
    (tensor([[0.5000, 2.0000]]), tensor([[0, 1]]))
    """
    best, winner = _best_and_winner(queries, keys)
    return best, winner.long() - to_device(keys.offsets[:-1], winner.device)


def has_kernel(rows: Tensor, precision: torch.dtype | None = None) -> bool:
    """Whether the kernel computes the products of such rows in this precision."""
    return rows.is_cuda and (precision or rows.dtype) in KERNEL_TYPES and _triton_runs(rows.device)


@cache
def _triton_runs(device: torch.device) -> bool:
    """Whether the kernel compiles and runs, tried once per device."""

    def trial() -> None:
        key = Packed(torch.zeros(1, 16, device=device), torch.tensor([0, 1]))
        _by_kernel(key.rows, key, None)

    return runs_triton(device, trial, "hard assignment")


def _by_kernel(
    queries: Tensor, keys: Packed, precision: torch.dtype | None, winner: Tensor | None = None
) -> Tensor:
    from chan.scoring.hard_assignment_triton import best_products  # Triton is not installed everywhere

    left, right = (rows.to(precision or rows.dtype).contiguous() for rows in (queries, keys.rows))
    return best_products(left, keys.with_rows(right), winner).to(queries.dtype)


def _panels(keys: Packed, queries: int) -> Iterator[tuple[slice, slice]]:
    """Consecutive queries and, for them in turn, sequences with about `PANEL_SIMILARITIES` products."""
    scale = GPU_PANEL_SCALE if keys.rows.is_cuda else 1
    parts = -(-queries // (PANEL_QUERIES * scale))
    edges = [queries * part // parts for part in range(parts + 1)]
    for first, last in pairwise(edges):
        for sequences in bounded_slices(keys.offsets, PANEL_SIMILARITIES * scale // (last - first)):
            yield slice(first, last), sequences


def _panel_products(
    queries: Tensor, keys: Packed, precision: torch.dtype | None
) -> Iterator[tuple[slice, EqualLengthRun, Tensor]]:
    """For consecutive queries (q) and each run of sequences of one length their products (count, length, q).

    A tensor is valid only until the next one is requested: all panels share one buffer, since fresh memory costs a
    tenth of the product. Its rows begin at cache lines, without which a product takes a third longer.
    """
    rows, queries = keys.rows.to(precision or keys.rows.dtype), queries.to(precision or queries.dtype)
    buffer = rows.new_empty(0)
    for some, sequences in _panels(keys, len(queries)):
        part, first_row = keys.slice(sequences.start, sequences.stop), int(keys.offsets[sequences.start])
        own_rows, own_queries = rows[first_row : first_row + len(part.rows)], queries[some]
        width = -(-len(own_queries) // CACHE_LINE) * CACHE_LINE
        if len(buffer) < len(own_rows) * width:
            buffer = rows.new_empty(len(own_rows) * width)
        out = buffer[: len(own_rows) * width].view(-1, width)[:, : len(own_queries)]
        products = torch.mm(own_rows, own_queries.T, out=out)
        for run in equal_length_runs(part.offsets):
            placed = EqualLengthRun(run.length, run.count, run.first + sequences.start, run.first_row + first_row)
            yield some, placed, products[run.rows].unflatten(0, (run.count, run.length))


@torch.no_grad()
def _best(queries: Tensor, keys: Packed, precision: torch.dtype | None) -> Tensor:
    if has_kernel(queries, precision):
        return _by_kernel(queries, keys, precision)
    best = queries.new_empty(len(keys), len(queries))
    for some, run, products in _panel_products(queries, keys, precision):
        best[run.sequences, some] = products.amax(1)
    return best.T


@torch.no_grad()
def _best_and_winner(queries: Tensor, keys: Packed, precision: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(Q, N) products in the queries' type, and (Q, N) int32: the rows of the winning keys."""
    if has_kernel(queries, precision):
        winner = queries.new_empty(len(queries), len(keys), dtype=torch.int32)
        return _by_kernel(queries, keys, precision, winner), winner
    best = queries.new_empty(len(keys), len(queries))
    winner = torch.empty_like(best, dtype=torch.int32)
    for some, run, products in _panel_products(queries, keys, precision):
        value, index = products.max(1)
        starts = torch.arange(run.count, device=index.device) * run.length + run.first_row
        best[run.sequences, some] = value.to(best.dtype)
        winner[run.sequences, some] = (index + starts[:, None]).int()
    return best.T, winner.T


class _BestKey(torch.autograd.Function):
    """Maximum over each sequence's keys, remembering only which one won.

    The products themselves, (Q, M), exist one panel at a time. In the backward pass each pair of query and
    sequence whose gradient is not zero adds one key to the query and one query to the key: weighted sums over
    bags of rows, where autograd of a dense maximum would multiply by a (Q, M) matrix of mostly zeros.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, offsets: Tensor, precision: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        best, winner = _best_and_winner(queries, Packed(keys, offsets), precision)
        ctx.save_for_backward(queries, keys, winner)
        ctx.mark_non_differentiable(winner)
        return best, winner

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        queries, keys, winner = ctx.saved_tensors
        gradient, winner = gradients[0].contiguous().flatten(), winner.contiguous().flatten()
        pairs = gradient.nonzero().squeeze(1)  # ordered by query; the only place that waits for a GPU
        weight, key, query = gradient[pairs], winner[pairs], pairs // (len(gradient) // len(queries))
        by_key = key.argsort(stable=True)
        of_queries = _weighted_bags(keys, key, weight, query, len(queries))
        of_keys = _weighted_bags(queries, query[by_key], weight[by_key], key[by_key], len(keys))
        return of_queries, of_keys, None, None


def _weighted_bags(rows: Tensor, index: Tensor, weight: Tensor, bag: Tensor, bags: int) -> Tensor:
    """(bags, D): sums of weight * rows[index] over the entries of each `bag`, which must be in rising order."""
    first = torch.searchsorted(bag, torch.arange(bags, device=bag.device, dtype=bag.dtype))
    return embedding_bag(index.long(), rows, first, mode="sum", per_sample_weights=weight)
