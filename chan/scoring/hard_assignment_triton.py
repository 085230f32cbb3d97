"""The kernel of hard assignment on an NVIDIA GPU: products, maximum and winner in one pass over the keys.

A program of the kernel computes some queries against some sequences (`ProgramTile`). It iterates over the
sequences four keys at a time: the columns of one matrix product are the next four keys of each sequence, ordered
so that the four are a fixed distance apart. Their maximum then needs no exchange between threads, only comparisons
of registers, and the running maximum is a quarter as large as the product. Only that maximum, and optionally which
key has it, is written.

A program iterates as far as its longest sequence, so sequences should be sorted by length: neighbours then need
about the same number of steps. The results are the same in any order.

Why four: the length of a sequence is rounded up to a multiple of four (36 regions stay 36; otherwise the last key
is repeated). Padding to the next power of two, 64, would waste 44 % of the products; a maximum over seven
sequences of 36 in 252 of 256 columns would take seven masked passes over a product's registers, about a fifth of
the time of the product itself at D 1024, where this takes 5 % (8 % with winners).

Shapes: Q queries, N sequences of keys, M keys in all, D joint dimension.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from chan.packing import Packed
from data_tools.devices import to_device

GROUP_SIZE = 16  # query tiles whose programs run side by side, so that they read the same keys from the L2 cache


class ProgramTile(NamedTuple):
    """What one program computes: `queries` by `sequences`, in steps of `depth` of the D numbers of a row."""

    queries: int
    sequences: int
    depth: int
    warps: int
    stages: int


WIDE = ProgramTile(128, 64, 64, warps=8, stages=3)  # half precision on an H100: 146 KiB of shared memory
MIDDLE = ProgramTile(128, 32, 64, warps=8, stages=3)  # half precision with at most 96 KiB
SINGLE = ProgramTile(64, 16, 16, warps=4, stages=2)  # float32, without tensor cores: bound by its multiplications
WIDE_MEMORY = 200 << 10  # bytes of shared memory per multiprocessor that the wide tile needs


def best_products(
    queries: Tensor, keys: Packed, winner: Tensor | None = None, tile: ProgramTile | None = None
) -> Tensor:
    """(Q, N) float32: for each query the largest product with a key of each sequence.

    Products are summed in float32, and those of float32 rows are not rounded to TF32. Where a product is NaN so is
    the maximum, and its winner is any key of the sequence.

    Args:
        queries: (Q, D) contiguous, float32, bfloat16 or float16.
        keys: (M, D) rows of the same type, contiguous, on the same device.
        winner: (Q, N) int32, contiguous: filled with the row of the key that has the maximum, any one of equal
            keys.
        tile: sizes to use instead of those chosen for the device.
    """
    rows = keys.rows
    assert queries.is_contiguous()
    assert rows.is_contiguous()
    assert queries.dtype == rows.dtype
    best = queries.new_empty(len(queries), len(keys), dtype=torch.float32)
    assert winner is None or (winner.is_contiguous() and winner.shape == best.shape)
    tile = tile or _tile(queries, len(keys))
    if len(queries):
        programs = _programs(tile, len(queries), len(keys))
        with torch.cuda.device_of(queries):
            _best_products[(programs,)](
                queries,
                rows,
                to_device(keys.offsets, rows.device),
                best,
                best if winner is None else winner,
                len(queries),
                len(keys),
                rows.shape[1],
                with_winner=winner is not None,
                even=rows.shape[1] % tile.depth == 0,
                block_q=tile.queries,
                sequences=tile.sequences,
                block_d=tile.depth,
                group=GROUP_SIZE,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
    return best


def _programs(tile: ProgramTile, queries: int, sequences: int) -> int:
    return -(-queries // tile.queries) * -(-sequences // tile.sequences)


def _tile(queries: Tensor, sequences: int) -> ProgramTile:
    if queries.dtype == torch.float32:
        return SINGLE
    device = torch.cuda.get_device_properties(queries.device)
    fills = _programs(WIDE, len(queries), sequences) >= device.multi_processor_count
    return WIDE if fills and device.shared_memory_per_multiprocessor >= WIDE_MEMORY else MIDDLE


@triton.jit
def _larger(value: tl.tensor, number: tl.tensor, other: tl.tensor, other_number: tl.tensor) -> tl.tensor:
    """The larger values, NaN where either is NaN, and their numbers."""
    number = tl.where(value >= other, number, other_number)
    return tl.maximum(value, other, propagate_nan=tl.PropagateNan.ALL), number


@triton.jit
def _halves(values: tl.tensor, rows: tl.constexpr, width: tl.constexpr) -> tl.tensor:
    """The first and the last `width` columns of (rows, 2 * width)."""
    return tl.split(tl.permute(tl.reshape(values, (rows, 2, width)), (0, 2, 1)))


@triton.jit(do_not_specialize=["query_count", "sequence_count"])
def _best_products(
    queries: tl.tensor,
    keys: tl.tensor,
    offsets: tl.tensor,
    best: tl.tensor,
    winner: tl.tensor,
    query_count: tl.tensor,
    sequence_count: tl.tensor,
    dim: tl.tensor,
    with_winner: tl.constexpr,
    even: tl.constexpr,
    block_q: tl.constexpr,
    sequences: tl.constexpr,
    block_d: tl.constexpr,
    group: tl.constexpr,
) -> None:
    """Fill this program's tile of `best` and `winner`; indices are clamped, so that every row read exists."""
    members: tl.constexpr = 4
    # Programs side by side: `group` tiles of queries, then the next tile of sequences for the same.
    program = tl.program_id(0)
    sequence_tiles = tl.cdiv(sequence_count, sequences)
    first_tile = program // (group * sequence_tiles) * group
    height = tl.minimum(tl.cdiv(query_count, block_q) - first_tile, group)
    within = program % (group * sequence_tiles)
    query = (first_tile + within % height).to(tl.int64) * block_q + tl.arange(0, block_q)
    first_sequence = within // height * sequences

    # Column c of a product: key c // sequences of the next four of sequence c % sequences.
    column = tl.arange(0, members * sequences)
    member = (column // sequences)[None, :]
    of_column = tl.minimum(first_sequence + column % sequences, sequence_count - 1)
    start = tl.load(offsets + of_column)[None, :]
    last = (tl.load(offsets + of_column + 1)[None, :] - start - 1).to(tl.int32)
    depth = tl.arange(0, block_d)
    query_rows = queries + tl.minimum(query, query_count - 1)[:, None] * dim + depth[None, :]
    sequence = first_sequence + tl.arange(0, sequences)
    known = tl.minimum(sequence, sequence_count - 1)
    first_row = tl.load(offsets + known)
    lengths = tl.load(offsets + known + 1) - first_row
    longest = tl.max(lengths).to(tl.int32)

    # One loop over keys and depth, not two, so that the next keys are on their way while the maximum is taken.
    steps = tl.cdiv(dim, block_d)
    products = tl.zeros((block_q, members * sequences), tl.float32)
    largest = tl.full((block_q, sequences), float("-inf"), tl.float32)
    number = tl.zeros((block_q, sequences), tl.int32)
    zero = tl.zeros((block_q, 2 * sequences), tl.int32)
    step = 0
    key = 0
    for _ in range(0, tl.cdiv(longest, members) * steps):
        done = step * block_d
        key_rows = keys + (start + tl.minimum(key + member, last)) * dim + depth[:, None]
        if even:
            left = tl.load(query_rows + done)
            right = tl.load(key_rows + done)
        else:
            left = tl.load(query_rows + done, mask=depth[None, :] < dim - done, other=0.0)
            right = tl.load(key_rows + done, mask=depth[:, None] < dim - done, other=0.0)
        products = tl.dot(left, right, products, input_precision="ieee")
        if step == steps - 1:
            low, high = _halves(products, block_q, 2 * sequences)
            if with_winner:
                two, of_two = _larger(low, zero, high, zero + 2)
                low, high = _halves(two, block_q, sequences)
                of_low, of_high = _halves(of_two, block_q, sequences)
                value, place = _larger(low, of_low, high, of_high + 1)
                largest, number = _larger(largest, number, value, place + key)
            else:
                two = tl.maximum(low, high, propagate_nan=tl.PropagateNan.ALL)
                low, high = _halves(two, block_q, sequences)
                value = tl.maximum(low, high, propagate_nan=tl.PropagateNan.ALL)
                largest = tl.maximum(largest, value, propagate_nan=tl.PropagateNan.ALL)
            products = tl.zeros((block_q, members * sequences), tl.float32)
        key += tl.where(step == steps - 1, members, 0)
        step = tl.where(step == steps - 1, 0, step + 1)

    place = query[:, None] * sequence_count + sequence[None, :]
    inside = (query < query_count)[:, None] & (sequence < sequence_count)[None, :]
    tl.store(best + place, largest, mask=inside)
    if with_winner:
        row = first_row[None, :] + tl.minimum(number, lengths[None, :] - 1)
        tl.store(winner + place, row.to(tl.int32), mask=inside)
