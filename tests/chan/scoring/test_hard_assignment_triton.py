"""The kernel of hard assignment: interpreted on the CPU, compiled without a GPU, and run on one.

Bounds of the comparisons: rows are exact in the type of the products, so that what a GPU sums in float32 is within
1e-5 of the sum in float64.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chan.packing import Packed, pack
from chan.scoring import hard_assignment
from chan.scoring.hard_assignment import max_similarities
from chan.scoring.pairwise import PRECISIONS, pairwise_scores

HERE = Path(__file__).parent
triton = pytest.importorskip("triton")
from benchmarks import kernel_code  # noqa: E402
from benchmarks.kernel_code import ARCHITECTURES, compiled, launched  # noqa: E402
from chan.scoring.hard_assignment_triton import (  # noqa: E402
    MIDDLE,
    MIDDLE_SINGLE,
    SINGLE,
    WIDE,
    WIDE_MEMORY,
    WIDE_SINGLE,
    ProgramTile,
    best_products,
)

RAGGED = (list(range(10, 60, 2)), [8, 20, 11, 3, 1, 14, 9] * 5)
EVEN = ([36] * 30, [12] * 40)


def test_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / "interpreted_kernel.py")]
    done = subprocess.run(line, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imported_only_where_it_runs() -> None:
    """Scoring on a CPU neither needs nor pays for Triton."""
    code = (
        "import sys, torch; sys.modules['triton'] = None;"
        "from chan.scoring.pairwise import pairwise_scores as score;"
        "rows, ends = torch.eye(3), torch.tensor([0, 1, 3]); print(score(rows, ends, rows, ends).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[2], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([2, 2])", done.stderr


TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}  # their instruction
FLOAT32_UNITS = (86, 89, 120)  # whose products of TF32 are no faster than those of float32
FEW = 64  # queries, too few to fill a GPU with the wide tiles


@pytest.mark.parametrize(
    ("kind", "with_winner", "queries"),
    [
        pytest.param(kind, with_winner, queries, marks=() if every_time else pytest.mark.slow)
        for kind in (torch.bfloat16, torch.float32, torch.float16)
        for with_winner in (True, False)
        for queries in (kernel_code.QUERIES, FEW)
        for every_time in [with_winner and queries != FEW and kind != torch.float16]
    ],
)
@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_compiles_without_spilling(
    capability: int,
    kind: torch.dtype,
    with_winner: bool,
    queries: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what the launcher compiles: all stays in registers, the tiles fit, and rows are copied ahead."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled(capability, kind, 1024, with_winner, queries)
    assert code.stack == 0
    assert code.shared <= ARCHITECTURES[capability].block_memory
    assert code.copies >= 2 * code.step_copies > 0
    assert code.loads == (4 if with_winner else 2)  # offsets: of the tile and of the sequences
    if kind == torch.float32 and capability in FLOAT32_UNITS:
        assert code.products.endswith("FFMA")
        return
    assert code.products.split()[1] == TENSOR_CORES[capability]
    if kind == torch.float32:
        assert re.search(r"arith\.addf .*: tensor<\d+x128xf32", code.stages["ttgir"])  # the sum of steps
    elif capability == 90:
        assert (
            "wgmma.wait_group.sync.aligned 1" in code.stages["ptx"]
        )  # a product goes on while rows are asked for


@pytest.mark.parametrize("with_winner", [True, False])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_every_dimension_has_the_same_code(capability: int, kind: torch.dtype, with_winner: bool) -> None:
    """Rows are padded to whole steps, so that the launcher finds everything aligned."""
    source, options, _ = launched(capability, kind, 1024, with_winner)
    aligned = {source.fn.arg_names[place] for (place,), found in source.attrs.items() if found}
    assert aligned == {"queries", "keys", "table", "best", "winner", "dim"}
    for dim in (33, 64, 128, 200, 256, 512, 768, 1000):
        other, other_options, _ = launched(capability, kind, dim, with_winner)
        assert (other.signature, other.constants, other.attrs) == (
            source.signature,
            source.constants,
            source.attrs,
        )
        assert other_options == options


def rounded_rows(lengths: list[int], seed: int, dim: int, kind: torch.dtype) -> Packed:
    """Unit rows that `kind` holds exactly, as float32."""
    random = np.random.default_rng(seed)
    rows = [random.standard_normal((length, dim)) for length in lengths]
    return pack([torch.from_numpy(row / np.linalg.norm(row, axis=1)[:, None]).to(kind).float() for row in rows])


@pytest.mark.gpu
@pytest.mark.parametrize("tile", [WIDE, MIDDLE, WIDE_SINGLE, MIDDLE_SINGLE, SINGLE])
@pytest.mark.parametrize("dim", [1024, 200, 33])
@pytest.mark.parametrize("lengths", [*RAGGED, *EVEN, [1, 100, 37], [5]], ids=str)
def test_maxima_and_winners(tile: ProgramTile, dim: int, lengths: list[int]) -> None:
    kind = torch.bfloat16 if tile in (WIDE, MIDDLE) else torch.float32
    if (
        tile in (WIDE, WIDE_SINGLE)
        and torch.cuda.get_device_properties(0).shared_memory_per_multiprocessor < WIDE_MEMORY
    ):
        pytest.skip("the wide tiles need the shared memory of an H100")
    queries, keys = rounded_rows([301], 0, dim, kind).rows, rounded_rows(lengths, 1, dim, kind)
    winner = torch.full((301, len(keys)), -1, dtype=torch.int32, device="cuda")
    on_gpu = keys.with_rows(keys.rows.to("cuda", kind))
    best = best_products(queries.to("cuda", kind), on_gpu, winner, tile)
    alone = best_products(queries.to("cuda", kind), on_gpu, tile=tile)
    torch.testing.assert_close(alone, best, rtol=0, atol=1e-6)
    products = queries.double() @ keys.rows.double().T
    largest = torch.stack([part.amax(1) for part in products.split(lengths, 1)], 1)
    torch.testing.assert_close(best.cpu().double(), largest, rtol=0, atol=1e-5)
    named = winner.cpu().long()
    assert ((named >= keys.offsets[:-1]) & (named < keys.offsets[1:])).all()
    torch.testing.assert_close(products.gather(1, named), largest, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("place", range(6))
def test_nan_does_not_vanish(place: int) -> None:
    keys = rounded_rows([6, 6], 1, 64, torch.bfloat16)
    keys.rows[place, 3] = torch.nan
    on_gpu = keys.with_rows(keys.rows.to("cuda", torch.bfloat16))
    for winner in (None, torch.empty(6, 2, dtype=torch.int32, device="cuda")):
        best = best_products(on_gpu.rows[6:].contiguous(), on_gpu, winner)
        assert best[:, 0].isnan().all()
        assert not best[:, 1].isnan().any()


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("coding", ["vha", "tha"])
def test_scores_and_gradients(coding: str, precision: str, lengths: tuple[list[int], list[int]]) -> None:
    """As on the CPU in float64; where two keys are equal but for rounding another may win, which moves 2 rows."""
    kind = PRECISIONS[precision] or torch.float32
    images, captions = (rounded_rows(some, seed, 256, kind) for seed, some in enumerate(lengths))
    upstream = torch.from_numpy(np.random.default_rng(2).standard_normal((len(images), len(captions))))
    upstream[upstream < 0.5] = 0
    results = []
    for device, exact, how in (("cpu", torch.float64, "fp32"), ("cuda", torch.float32, precision)):
        rows = [side.rows.to(device, exact).requires_grad_() for side in (images, captions)]
        ends = images.offsets, captions.offsets
        scores = pairwise_scores(rows[0], ends[0], rows[1], ends[1], coding=coding, precision=how)
        scores.backward(upstream.to(device, exact))
        with torch.no_grad():
            alone = pairwise_scores(rows[0], ends[0], rows[1], ends[1], coding=coding, precision=how)
        torch.testing.assert_close(alone, scores.detach(), rtol=1e-5, atol=1e-5)
        results.append([scores.detach().cpu().double(), *(side.grad.cpu().double() for side in rows)])
    (expected, *gradients), (found, *others) = results
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    for gradient, other in zip(gradients, others, strict=True):
        assert (other - gradient).norm() < 0.02 * gradient.norm()


@pytest.mark.gpu
def test_memory_grows_with_winners() -> None:
    """Four times the regions of an image leave the peak where it was, but for their rows."""
    peaks = []
    for regions in (36, 144):
        sides = [rounded_rows([n] * 384, seed, 64, torch.bfloat16) for seed, n in enumerate((regions, 12))]
        rows = [side.rows.cuda().requires_grad_() for side in sides]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pairwise_scores(rows[0], sides[0].offsets, rows[1], sides[1].offsets, precision="bf16").sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    products = 384 * 108 * 384 * 12 * 2  # bytes of the products with the additional regions, in bfloat16
    assert peaks[1] - peaks[0] < products / 4


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [RAGGED, EVEN], ids=["ragged", "even"])
def test_the_forward_pass_waits_for_nothing(lengths: tuple[list[int], list[int]]) -> None:
    images, captions = (rounded_rows(some, seed, 64, torch.float32) for seed, some in enumerate(lengths))
    regions, words = images.with_rows(images.rows.cuda()), captions.rows.cuda().requires_grad_()
    max_similarities(words, regions, torch.bfloat16)  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        max_similarities(words, regions, torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_double_precision_goes_without_the_kernel() -> None:
    rows, ends = torch.eye(3, dtype=torch.float64, device="cuda"), torch.tensor([0, 1, 3])
    assert not hard_assignment.has_kernel(rows, None)
    assert hard_assignment.has_kernel(rows, torch.bfloat16)
    for precision in (None, torch.bfloat16):
        best = max_similarities(rows, Packed(rows, ends), precision)
        assert best.tolist() == [[1, 0], [0, 1], [0, 1]]
        assert best.dtype == torch.float64
