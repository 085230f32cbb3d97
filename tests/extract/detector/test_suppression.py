"""The kernel of non-maximum suppression: interpreted on the CPU, compiled without a GPU, and run on one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.detector.boxes import nms
from extract.detector.suppression import greedy, limit_below

HERE = Path(__file__).parent
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
RPN = 6000  # boxes of an image in the region proposals


def test_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE / "interpreted_suppression.py"),
    ]
    done = subprocess.run(line, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("boxes", "ordered"), [(RPN, True), (300, True), (300, False)])
@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_compiles_without_spilling(capability, boxes, ordered, tmp_path, monkeypatch) -> None:
    """From an A100 to Blackwell: the boxes of a problem stay in registers."""
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_kernel(capability, boxes, ordered)
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage
    assert "fma" not in compiled.asm["ptx"]  # rounds once where a CPU rounds twice
    assert "div.rn.f32" in compiled.asm["ptx"]


def compile_kernel(capability: int, boxes: int, ordered: bool):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from extract.detector.suppression_triton import _greedy, block_of, warps_of

    block = block_of(boxes, presorted=boxes == RPN)
    kinds = {"boxes": "*fp32", "scores": "*fp32", "offsets": "*i64", "limits": "*fp32"}
    kinds |= {"kept": "*i32" if ordered else "*u8", "counts": "*i32"}
    kinds |= {**dict.fromkeys(["total", "variants", "most"], "i32"), "one": "fp32"}
    constants = {"own_scores": not ordered, "own_limits": False, "ordered": ordered, "block": block}
    source = ASTSource(
        fn=_greedy,
        signature=kinds | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in range(6)},
    )
    options = {"num_warps": warps_of(block), "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("threshold", np.linspace(0.05, 0.95, 19).tolist())
@pytest.mark.parametrize("inclusive", [True, False])
def test_the_limit_is_that_of_torchvision(threshold: float, inclusive: bool) -> None:
    """A box of IoU just at the limit stays, and one of the next larger float32 is dropped."""
    limit = limit_below(threshold, inclusive)
    assert (np.float32(limit) < threshold) if inclusive else (np.float32(limit) <= threshold)
    above = float(np.nextafter(np.float32(limit), np.float32(2)))
    assert (np.float32(above) >= np.float32(threshold)) if inclusive else (above > threshold)


@pytest.mark.gpu
@pytest.mark.parametrize("inclusive", [True, False])
def test_on_a_gpu_the_same_boxes_survive(inclusive: bool) -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 500, (2, RPN, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + rng.uniform(10, 200, (2, RPN, 2))], axis=2)).float()
    scores = torch.from_numpy(rng.choice(np.linspace(0, 1, 900), (2, RPN))).float()
    ends = boxes + torch.tensor([0.0, 0, 1, 1]) if inclusive else boxes
    limit = limit_below(0.7, inclusive)
    rows, counts = greedy(ends.view(-1, 4).cuda(), scores.view(1, -1).cuda(), [RPN] * 2, [limit], False, 300)
    for own, score, found, count in zip(boxes, scores, rows[:, 0].cpu(), counts[:, 0].tolist(), strict=True):
        assert found[:count].tolist() == nms(own, score, 0.7, inclusive)[:300].tolist()
