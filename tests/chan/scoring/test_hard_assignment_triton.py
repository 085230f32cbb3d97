"""The kernel of hard assignment: interpreted on the CPU, compiled without a GPU, and run on one.

Bounds of the comparisons: rows are exact in the type of the products, so that what a GPU sums in float32 is within
1e-5 of the sum in float64.
"""

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from chan.packing import Packed, pack
from chan.scoring import hard_assignment
from chan.scoring.hard_assignment import max_similarities
from chan.scoring.pairwise import PRECISIONS, pairwise_scores

HERE = Path(__file__).parent
triton = pytest.importorskip("triton")
from chan.scoring import hard_assignment_triton  # noqa: E402
from chan.scoring.hard_assignment_triton import (  # noqa: E402
    MIDDLE,
    SINGLE,
    WIDE,
    WIDE_MEMORY,
    ProgramTile,
    _best_products,
    best_products,
)

SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10}  # bytes that a block may have, by compute capability
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


@pytest.mark.parametrize(
    ("cuda", "capability", "error", "runs"),
    [
        ("13.0", (9, 0), None, True),
        ("13.0", (7, 0), None, False),
        (None, (9, 0), None, False),
        ("13.0", (9, 0), RuntimeError("Failed to find C compiler"), False),
    ],
)
def test_where_the_kernel_runs(
    cuda: str | None,
    capability: tuple[int, int],
    error: Exception | None,
    runs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it cannot be started scores are computed all the same, after one warning."""

    def started(queries: Tensor, keys: Packed, winner: Tensor | None) -> Tensor:
        if error:
            raise error
        return queries @ keys.rows.T

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(hard_assignment_triton, "best_products", started)
    expected = (
        pytest.warns(match="runs without its GPU kernel and is slower: Failed to find C")
        if error
        else nullcontext()
    )
    with expected:
        assert hard_assignment._triton_runs.__wrapped__(torch.device("cpu")) == runs


@pytest.mark.parametrize(
    ("capability", "kind", "tile", "with_winner", "even"),
    [
        (90, "bf16", WIDE, True, True),
        (90, "fp16", WIDE, False, False),
        (90, "bf16", MIDDLE, True, True),
        (90, "fp32", SINGLE, True, True),
        (80, "bf16", MIDDLE, True, False),
    ],
)
def test_compiles_without_spilling(
    capability: int,
    kind: str,
    tile: ProgramTile,
    with_winner: bool,
    even: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For an A100 and an H100: all that a program computes stays in registers, and its tiles fit."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_kernel(capability, kind, tile, with_winner, even)
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage
    if capability == 90 and kind != "fp32":
        code = compiled.asm["ptx"]
        assert f"wgmma.mma_async.sync.aligned.m64n{4 * tile.sequences}k16.f32" in code  # Hopper's tensor cores
        assert "wgmma.wait_group.sync.aligned 1" in code  # a product goes on while the next rows are asked for


def compile_kernel(capability: int, kind: str, tile: ProgramTile, with_winner: bool, even: bool):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"queries": f"*{kind}", "keys": f"*{kind}", "offsets": "*i64", "best": "*fp32", "winner": "*i32"}
    kinds |= dict.fromkeys(["query_count", "sequence_count", "dim"], "i32")
    constants = {"with_winner": with_winner, "even": even, "block_q": tile.queries, "sequences": tile.sequences}
    constants |= {"block_d": tile.depth, "group": 16}
    aligned = ["queries", "keys", "offsets", "best", "winner", "dim"]
    source = ASTSource(
        fn=_best_products,
        signature=kinds | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(list(kinds).index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def rounded_rows(lengths: list[int], seed: int, dim: int, kind: torch.dtype) -> Packed:
    """Unit rows that `kind` holds exactly, as float32."""
    random = np.random.default_rng(seed)
    rows = [random.standard_normal((length, dim)) for length in lengths]
    return pack([torch.from_numpy(row / np.linalg.norm(row, axis=1)[:, None]).to(kind).float() for row in rows])


@pytest.mark.gpu
@pytest.mark.parametrize("tile", [WIDE, MIDDLE, SINGLE])
@pytest.mark.parametrize("dim", [1024, 200, 33])
@pytest.mark.parametrize("lengths", [*RAGGED, *EVEN, [1, 100, 37], [5]], ids=str)
def test_maxima_and_winners(tile: ProgramTile, dim: int, lengths: list[int]) -> None:
    kind = torch.float32 if tile == SINGLE else torch.bfloat16
    if tile == WIDE and torch.cuda.get_device_properties(0).shared_memory_per_multiprocessor < WIDE_MEMORY:
        pytest.skip("the wide tile needs the shared memory of an H100")
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
