"""Hard assignment: each query is matched with the one key of a sequence that is most similar to it.

With words as queries and regions as keys this is CHAN's visual hard assignment (section 3.2); with the roles
exchanged, its textual counterpart. Products are computed tile by tile; on an NVIDIA GPU a kernel does it that
writes nothing but the result (`chan.scoring.hard_assignment_triton`).

Shapes: Q queries in all, N sequences of keys, M keys in all, D joint dimension.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from chan.packing import EqualLengthRun, Packed, equal_length_runs

SIMILARITIES = 1 << 22  # in one tile of keys x queries: 16 MiB, enough rows for an efficient matrix product
QUERIES = 1 << 10  # of a tile at most: 4 MiB at D 1024, which stay in the cache while all keys pass by
ON_DEVICE = 16  # times as many on a GPU without the kernel: 256 MiB, few launches
CACHE_LINE = 32  # numbers: 64 bytes in half precision
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def max_similarities(queries: Tensor, keys: Packed, precision: torch.dtype | None = None) -> Tensor:
    """(Q, N): for each query the largest product with a key of each sequence.

    Args:
        queries: (Q, D).
        keys: (M, D) rows in N sequences.
        precision: the type of the products; None takes the rows' own. The gradient is always in theirs.
    """
    ordered, place = _by_length(keys, precision)
    if torch.is_grad_enabled() and (queries.requires_grad or keys.rows.requires_grad):
        best = _BestKey.apply(queries, ordered.rows, ordered.offsets, precision)[0]
    else:
        best = _best(queries, ordered, precision)
    return best if place is None else best.index_select(1, place)


def best_keys(queries: Tensor, keys: Packed) -> tuple[Tensor, Tensor]:
    """The largest products (Q, N), and (Q, N) int64: the position in its sequence of the key that has each.

    Of equal keys any one may be named. Not differentiable.
    """
    ordered, place = _by_length(keys)
    best, winner = _best_and_winner(queries, ordered)
    position = winner.long() - ordered.offsets[:-1].to(winner.device)
    if place is None:
        return best, position
    return best.index_select(1, place), position.index_select(1, place)


def _by_length(keys: Packed, precision: torch.dtype | None = None) -> tuple[Packed, Tensor | None]:
    """The sequences in an order with few runs of equal length, and where each now stands (None: as before)."""
    if keys.is_even() or has_kernel(keys.rows, precision):
        return keys, None
    ordered, order = keys.sorted_by_length()
    return ordered, order.argsort().to(keys.rows.device)


def has_kernel(rows: Tensor, precision: torch.dtype | None = None) -> bool:
    """Whether products of such rows, in this precision, are for the kernel."""
    return rows.is_cuda and (precision or rows.dtype) in KERNEL_TYPES and _triton_runs(rows.device)


@cache
def _triton_runs(device: torch.device) -> bool:
    """Whether the kernel can be compiled and started, found out once: Triton needs a C compiler for that."""
    if torch.version.cuda is None or find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):  # bfloat16 and asynchronous copies
        return False
    key = Packed(torch.zeros(1, 16, device=device), torch.tensor([0, 1]))
    try:
        _by_kernel(key.rows, key, None)
    except Exception as error:
        warnings.warn(f"hard assignment goes without its kernel, and slower: {error}", stacklevel=2)
        return False
    return True


def _by_kernel(
    queries: Tensor, keys: Packed, precision: torch.dtype | None, winner: Tensor | None = None
) -> Tensor:
    from chan.scoring.hard_assignment_triton import best_products  # not everywhere is there a Triton to import

    left, right = (rows.to(precision or rows.dtype).contiguous() for rows in (queries, keys.rows))
    return best_products(left, keys.with_rows(right), winner).to(queries.dtype)


def _tiles(keys: Packed, queries: int) -> Iterator[tuple[slice, slice]]:
    """Some consecutive queries, and for them in turn sequences with about `SIMILARITIES` products."""
    scale = ON_DEVICE if keys.rows.is_cuda else 1
    parts = -(-queries // (QUERIES * scale))
    edges = [queries * part // parts for part in range(parts + 1)]
    for first_query, last_query in pairwise(edges):
        rows = SIMILARITIES * scale // (last_query - first_query)
        first = 0
        while first < len(keys):
            full = int(torch.searchsorted(keys.offsets, keys.offsets[first] + rows, right=True)) - 1
            last = max(first + 1, full)
            yield slice(first_query, last_query), slice(first, last)
            first = last


def _tile_products(
    queries: Tensor, keys: Packed, precision: torch.dtype | None
) -> Iterator[tuple[slice, EqualLengthRun, Tensor]]:
    """For consecutive queries (q) and each run of sequences of one length their products (count, length, q).

    A tensor is good only until the next one is asked for: all tiles share one piece of memory, since fresh memory
    costs a tenth of the product. Its rows begin at cache lines, without which a product takes a third longer.
    """
    rows, queries = keys.rows.to(precision or keys.rows.dtype), queries.to(precision or queries.dtype)
    memory = rows.new_empty(0)
    for some, tile in _tiles(keys, len(queries)):
        part, first_row = keys.slice(tile.start, tile.stop), int(keys.offsets[tile.start])
        own_rows, own_queries = rows[first_row : first_row + len(part.rows)], queries[some]
        width = -(-len(own_queries) // CACHE_LINE) * CACHE_LINE
        if len(memory) < len(own_rows) * width:
            memory = rows.new_empty(len(own_rows) * width)
        out = memory[: len(own_rows) * width].view(-1, width)[:, : len(own_queries)]
        products = torch.mm(own_rows, own_queries.T, out=out)
        for run in equal_length_runs(part.offsets):
            placed = EqualLengthRun(run.length, run.count, run.first + tile.start, run.first_row + first_row)
            yield some, placed, products[run.rows].unflatten(0, (run.count, run.length))


@torch.no_grad()
def _best(queries: Tensor, keys: Packed, precision: torch.dtype | None) -> Tensor:
    if has_kernel(queries, precision):
        return _by_kernel(queries, keys, precision)
    best = queries.new_empty(len(keys), len(queries))
    for some, run, products in _tile_products(queries, keys, precision):
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
    for some, run, products in _tile_products(queries, keys, precision):
        value, index = products.max(1)
        starts = torch.arange(run.count, device=index.device) * run.length + run.first_row
        best[run.sequences, some] = value.to(best.dtype)
        winner[run.sequences, some] = (index + starts[:, None]).int()
    return best.T, winner.T


class _BestKey(torch.autograd.Function):
    """Maximum over each sequence's keys, remembering only which one won.

    The products themselves, (Q, M), live one tile at a time. In the backward pass each pair of query and
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
        pairs = gradient.nonzero().squeeze(1)  # ordered by query; a GPU is waited for here, and only here
        weight, key, query = gradient[pairs], winner[pairs], pairs // (len(gradient) // len(queries))
        by_key = key.argsort(stable=True)
        of_queries = _weighted_bags(keys, key, weight, query, len(queries))
        of_keys = _weighted_bags(queries, query[by_key], weight[by_key], key[by_key], len(keys))
        return of_queries, of_keys, None, None


def _weighted_bags(rows: Tensor, index: Tensor, weight: Tensor, bag: Tensor, bags: int) -> Tensor:
    """(bags, D): sums of weight * rows[index] over the places of each `bag`, which must rise."""
    first = torch.searchsorted(bag, torch.arange(bags, device=bag.device, dtype=bag.dtype))
    return embedding_bag(index.long(), rows, first, mode="sum", per_sample_weights=weight)
