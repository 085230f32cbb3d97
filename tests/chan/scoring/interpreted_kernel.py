"""The kernel of hard assignment in Triton's interpreter, on the CPU, against loops in float64.

The interpreter must be chosen before Triton is imported, so `test_hard_assignment_triton.py` runs these in a
process of their own. It has no bfloat16 (it multiplies the bits as integers); that is compiled there, and run by
the tests marked `gpu`.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from chan.packing import Packed, pack
from chan.scoring import hard_assignment, hard_assignment_triton
from chan.scoring.hard_assignment_triton import ProgramTile, best_products
from chan.scoring.pairwise import pairwise_scores

SMALL = ProgramTile(16, 4, 16, warps=4, stages=2)
LENGTHS = {
    "ragged": [3, 1, 9, 4, 8, 2, 5, 21],
    "1 to 100": [1, 100],
    "even": [4] * 5,
    "one": [6],
    "one key": [1],
}


def unit_rows(count: int, dim: int, kind: torch.dtype, seed: int) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((count, dim))
    return torch.from_numpy(values / np.linalg.norm(values, axis=1, keepdims=True)).to(kind)


def keys_of(lengths: list[int], dim: int, kind: torch.dtype) -> Packed:
    return pack([unit_rows(length, dim, kind, seed) for seed, length in enumerate(lengths)])


def found(queries: Tensor, keys: Packed) -> tuple[Tensor, Tensor]:
    """Maxima and winners, after checking that the maxima are the same where no winner is asked for."""
    winner = torch.full((len(queries), len(keys)), -1, dtype=torch.int32)
    best = best_products(queries, keys, winner, SMALL)
    assert best.dtype == torch.float32
    torch.testing.assert_close(best_products(queries, keys, tile=SMALL), best, rtol=0, atol=0, equal_nan=True)
    return best, winner


def check(queries: Tensor, keys: Packed) -> None:
    """Each maximum is a loop's, and the named key lies in its sequence and has it."""
    best, winner = found(queries, keys)
    products = queries.double() @ keys.rows.double().T
    ends = keys.offsets.tolist()
    for query in range(len(queries)):
        for sequence in range(len(keys)):
            largest = max(products[query, row].item() for row in range(ends[sequence], ends[sequence + 1]))
            named = winner[query, sequence].item()
            assert abs(best[query, sequence] - largest) < 1e-6
            assert ends[sequence] <= named < ends[sequence + 1]
            assert abs(products[query, named] - largest) < 1e-6


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_maxima_and_winners(lengths: list[int]) -> None:
    check(unit_rows(17, 24, torch.float32, 99), keys_of(lengths, 24, torch.float32))


@pytest.mark.parametrize("dim", [8, 16, 40])
def test_half_precision(dim: int) -> None:
    check(unit_rows(1, dim, torch.float16, 99), keys_of([3, 1, 9], dim, torch.float16))


def test_every_tile_has_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tiles of queries, two side by side and a last one alone, by three of sequences."""
    monkeypatch.setattr(hard_assignment_triton, "GROUP_SIZE", 2)
    check(unit_rows(70, 16, torch.float32, 99), keys_of([2, 5, 1, 3, 2, 2, 1, 4, 3, 2], 16, torch.float32))


def test_no_queries() -> None:
    keys = keys_of([2, 1], 16, torch.float32)
    assert best_products(keys.rows[:0], keys, tile=SMALL).shape == (0, 2)


def test_all_products_negative() -> None:
    """What only fills a tile has no product."""
    keys = pack([torch.full((length, 16), -1.0) for length in (1, 3, 5)])
    best, _ = found(torch.ones(2, 16), keys)
    assert torch.equal(best, torch.full((2, 3), -16.0))


def test_of_equal_keys_one_is_named() -> None:
    keys = pack([torch.ones(7, 16)] * 2)
    _, winner = found(torch.ones(1, 16), keys)
    assert 0 <= winner[0, 0] < 7 <= winner[0, 1] < 14


@pytest.mark.parametrize("place", range(6))
def test_nan_does_not_vanish(place: int) -> None:
    keys = keys_of([6, 6], 16, torch.float32)
    keys.rows[place, 3] = torch.nan
    best, winner = found(unit_rows(3, 16, torch.float32, 99), keys)
    assert best[:, 0].isnan().all()
    assert not best[:, 1].isnan().any()
    assert ((winner[:, 0] >= 0) & (winner[:, 0] < 6)).all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinities(value: float) -> None:
    keys = pack([torch.full((length, 16), value) for length in (1, 5)])
    best, winner = found(torch.ones(1, 16), keys)
    assert torch.equal(best, torch.full((1, 2), value))
    assert winner[0, 0] == 0
    assert 1 <= winner[0, 1] < 6


@pytest.mark.parametrize("coding", ["vha", "tha"])
def test_scores_and_gradients_by_the_kernel(coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pairwise_scores` on the kernel, as where there is a GPU, and on tiles of PyTorch."""
    calls, results = [], []

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return best_products(*arguments)

    for kernel in (True, False):
        monkeypatch.setattr(hard_assignment, "has_kernel", lambda rows, kind=None, kernel=kernel: kernel)
        monkeypatch.setattr(hard_assignment_triton, "best_products", counted)
        monkeypatch.setattr(hard_assignment_triton, "_tile", lambda queries, sequences: SMALL)
        sides = [keys_of(lengths, 24, torch.float32) for lengths in ([3, 1, 5, 3], [2, 7, 1, 4, 2])]
        rows = [side.rows.requires_grad_() for side in sides]
        scores = pairwise_scores(rows[0], sides[0].offsets, rows[1], sides[1].offsets, coding=coding)
        (scores * unit_rows(4, 5, torch.float32, 7)).clamp(min=0).sum().backward()
        with torch.no_grad():
            alone = pairwise_scores(rows[0], sides[0].offsets, rows[1], sides[1].offsets, coding=coding)
        torch.testing.assert_close(alone, scores.detach())
        results.append([scores.detach(), *(side.grad for side in rows)])
    assert len(calls) == 2  # with a gradient and without
    for by_kernel, by_tiles in zip(*results, strict=True):
        torch.testing.assert_close(by_kernel, by_tiles, rtol=1e-5, atol=1e-6)
