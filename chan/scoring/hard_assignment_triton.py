"""The kernel of hard assignment on an NVIDIA GPU: products, maximum and winner in one pass over the keys.

A program of the kernel computes some queries against some sequences (`ProgramTile`). It iterates over the
sequences four keys at a time: the columns of one matrix product are the next four keys of each sequence, ordered
so that the four are a fixed distance apart. Their maximum then needs no exchange between threads, only comparisons
of registers, and the running maximum is a quarter as large as the product. Only that maximum, and optionally which
key has it, is written.

The keys are copied once into that order (`_key_order`), their rows padded with zeros to whole steps of the
kernel: the next columns are then the next rows, read as a block without an index or a mask. All sequences of a
program get as many keys as the longest of them, so sequences should be sorted by length. The results are the same
in any order.

Why four: the length of a sequence is rounded up to a multiple of four (36 regions stay 36; otherwise the last key
is repeated). Padding to the next power of two, 64, would waste 44 % of the products; a maximum over seven
sequences of 36 in 252 of 256 columns would take seven masked passes over a product's registers, about a fifth of
the time of the product itself at D 1024, where this takes 5 % (7 % with winners).

Float32 on tensor cores ("tf32x3"): a number is the sum of two of TF32, and a product that of three of their
products; the fourth is below float32's precision. Tensor cores round sums towards zero; over a whole row that is
up to 35 times the error of float32's own sums. Therefore they sum only the products of one step, and the steps are
summed in float32: the error is then below float32's (`benchmarks.kernel_code`). Where products of TF32 are not
several times as fast as those of float32, the latter are computed.

Shapes: Q queries, N sequences of keys, M keys in all, D joint dimension.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from chan.packing import Packed, offsets_of
from data_tools.devices import to_device

GROUP_SIZE = 16  # query tiles whose programs run side by side, so that they read the same keys from the L2 cache
MEMBERS = tl.constexpr(4)  # keys of each sequence in one product


class ProgramTile(NamedTuple):
    """What one program computes: `queries` by `sequences`, in steps of `depth` of the D numbers of a row."""

    queries: int
    sequences: int
    depth: int
    warps: int
    stages: int
    products: str = "ieee"  # of float32: "ieee", or "tf32x3" on tensor cores


WIDE = ProgramTile(128, 64, 64, warps=8, stages=3)  # half precision on an H100: 144 KiB of shared memory
MIDDLE = ProgramTile(128, 32, 64, warps=8, stages=3)  # half precision with at most 96 KiB
WIDE_SINGLE = ProgramTile(128, 32, 32, warps=8, stages=3, products="tf32x3")  # float32 on an H100: 112 KiB
MIDDLE_SINGLE = ProgramTile(64, 32, 32, warps=8, stages=3, products="tf32x3")  # float32 on an A100: 72 KiB
SINGLE = ProgramTile(64, 16, 16, warps=4, stages=2)  # float32 without tensor cores: bound by its multiplications
WIDE_MEMORY = 200 << 10  # bytes of shared memory per multiprocessor that the wide tiles need
FAST_TF32_MEMORY = 160 << 10  # only GPUs with so much compute three products of TF32 faster than one of float32


def best_products(
    queries: Tensor, keys: Packed, winner: Tensor | None = None, tile: ProgramTile | None = None
) -> Tensor:
    """(Q, N) float32: for each query the largest product with a key of each sequence.

    Products are summed in float32. Those of float32 rows have float32's precision; on tensor cores each is the sum
    of three of TF32. Where a product is NaN so is the maximum, and its winner is any key of the sequence.

    Args:
        queries: (Q, D) contiguous, float32, bfloat16 or float16.
        keys: (M, D) rows of the same type, on the same device.
        winner: (Q, N) int32, contiguous: filled with the row of the key that has the maximum, any one of equal
            keys.
        tile: sizes to use instead of those chosen for the device.
    """
    assert queries.is_contiguous()
    assert queries.dtype == keys.rows.dtype
    best = queries.new_empty(len(queries), len(keys), dtype=torch.float32)
    assert winner is None or (winner.is_contiguous() and winner.shape == best.shape)
    tile = tile or _tile(queries, len(keys))
    programs = _programs(tile, len(queries), len(keys))
    if programs:
        order, table = _key_order(keys.offsets, tile.sequences)
        rows = _whole_steps(keys.rows, tile.depth).index_select(0, to_device(order, queries.device))
        with torch.cuda.device_of(queries):
            _best_products[(programs,)](
                _whole_steps(queries, tile.depth),
                rows,
                to_device(table, queries.device),
                best,
                best if winner is None else winner,
                len(queries),
                len(keys),
                rows.shape[1],
                with_winner=winner is not None,
                products_of=tile.products,
                block_q=tile.queries,
                sequences=tile.sequences,
                block_d=tile.depth,
                group=GROUP_SIZE,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )
    return best


def _whole_steps(rows: Tensor, depth: int) -> Tensor:
    """Rows padded with zeros to a multiple of `depth` numbers; not copied where they are one."""
    return pad(rows, (0, -rows.shape[1] % depth)) if rows.shape[1] % depth else rows


def _key_order(offsets: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
    """(R,) int64, the keys in the kernel's order; (N + 1 + T + 1,) int64, offsets of the N sequences and T tiles.

    A tile of `sequences` sequences has the first key of each, the second of each, ..., up to the length of the
    longest rounded up to four; shorter ones repeat their last key, and the last tile the last sequence. The tiles'
    offsets count keys of one sequence.

    >>> _key_order(torch.tensor([0, 1, 6, 8]), 2)[0].view(-1, 2).T.tolist()  # lengths 1 and 5; 2, twice
    [[0, 0, 0, 0, 0, 0, 0, 0, 6, 7, 7, 7], [1, 2, 3, 4, 5, 5, 5, 5, 6, 7, 7, 7]]
    """
    count = len(offsets) - 1
    tiles = torch.arange(-(-count // sequences) * sequences).clamp(max=count - 1).view(-1, sequences)
    lengths = offsets.diff()[tiles]
    columns = -(-lengths.amax(1) // MEMBERS.value) * MEMBERS.value
    tile_offsets = offsets_of(columns)
    tile = torch.arange(len(tiles)).repeat_interleave(columns)
    key = torch.arange(len(tile)) - tile_offsets[tile]
    order = offsets[tiles][tile] + torch.minimum(key[:, None], lengths[tile] - 1)
    return order.flatten(), torch.cat([offsets, tile_offsets])


def _programs(tile: ProgramTile, queries: int, sequences: int) -> int:
    return -(-queries // tile.queries) * -(-sequences // tile.sequences)


def _tile(queries: Tensor, sequences: int) -> ProgramTile:
    device = torch.cuda.get_device_properties(queries.device)
    memory = device.shared_memory_per_multiprocessor
    if queries.dtype == torch.float32 and memory < FAST_TF32_MEMORY:
        return SINGLE
    wide, middle = (WIDE_SINGLE, MIDDLE_SINGLE) if queries.dtype == torch.float32 else (WIDE, MIDDLE)
    fills = _programs(wide, len(queries), sequences) >= device.multi_processor_count
    return wide if fills and memory >= WIDE_MEMORY else middle


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
    table: tl.tensor,
    best: tl.tensor,
    winner: tl.tensor,
    query_count: tl.tensor,
    sequence_count: tl.tensor,
    dim: tl.tensor,
    with_winner: tl.constexpr,
    products_of: tl.constexpr,
    block_q: tl.constexpr,
    sequences: tl.constexpr,
    block_d: tl.constexpr,
    group: tl.constexpr,
) -> None:
    """Fill this program's tile of `best` and `winner`; indices are clamped, so that every row read exists."""
    columns: tl.constexpr = MEMBERS * sequences
    # Programs side by side: `group` tiles of queries, then the next tile of sequences for the same.
    program = tl.program_id(0)
    sequence_tiles = tl.cdiv(sequence_count, sequences)
    first_tile = program // (group * sequence_tiles) * group
    height = tl.minimum(tl.cdiv(query_count, block_q) - first_tile, group)
    within = program % (group * sequence_tiles)
    query = (first_tile + within % height).to(tl.int64) * block_q + tl.arange(0, block_q)
    sequence_tile = within // height

    # Column c of a product: key c // sequences of the next four of sequence c % sequences.
    tile_offset = table + sequence_count + 1 + sequence_tile
    first_key = tl.load(tile_offset)
    key_count = (tl.load(tile_offset + 1) - first_key).to(tl.int32)
    depth = tl.arange(0, block_d)
    query_rows = queries + tl.minimum(query, query_count - 1)[:, None] * dim + depth[None, :]
    key_rows = keys + tl.arange(0, columns)[None, :] * dim + depth[:, None]
    first_row = first_key * sequences

    # One loop over keys and depth, not two, so that the next keys are on their way while the maximum is taken.
    # Pointers must not change within the condition, or the rows would not be loaded ahead.
    steps = dim // block_d
    products = tl.zeros((block_q, columns), tl.float32)
    largest = tl.full((block_q, sequences), float("-inf"), tl.float32)
    number = tl.zeros((block_q, sequences), tl.int32)
    zero = tl.zeros((block_q, 2 * sequences), tl.int32)
    step = 0
    key = 0
    for _ in range(0, key_count // MEMBERS * steps):
        done = step * block_d
        left = tl.load(query_rows + done)
        right = tl.load(key_rows + ((first_row + key * sequences) * dim + done))
        products = tl.dot(left, right, products, input_precision=products_of)
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
            products = tl.zeros((block_q, columns), tl.float32)
        key += tl.where(step == steps - 1, MEMBERS, 0)
        step = tl.where(step == steps - 1, 0, step + 1)

    sequence = sequence_tile * sequences + tl.arange(0, sequences)
    place = query[:, None] * sequence_count + sequence[None, :]
    inside = (query < query_count)[:, None] & (sequence < sequence_count)[None, :]
    tl.store(best + place, largest, mask=inside)
    if with_winner:
        offset = table + tl.minimum(sequence, sequence_count - 1)
        first = tl.load(offset)[None, :]
        row = first + tl.minimum(number, tl.load(offset + 1)[None, :] - first - 1)
        tl.store(winner + place, row.to(tl.int32), mask=inside)
