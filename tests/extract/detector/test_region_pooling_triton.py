"""The kernel of RoIPool: interpreted on the CPU, compiled without a GPU, and run on one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torchvision.ops import roi_pool as torchvisions

from extract.detector import region_pooling
from extract.detector.region_pooling import pooled_groups

HERE = Path(__file__).parent
triton = pytest.importorskip("triton")


def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / "interpreted_region_pooling.py")]
    done = subprocess.run(line, env=environment, cwd=HERE.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize(("kind", "block"), [("bf16", 1024), ("fp16", 256)])
def test_compiles_without_spilling(capability, kind, block, tmp_path, monkeypatch):
    """Each thread reads and writes 16 bytes at once, and all of its numbers stay in registers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_kernel(capability, kind, block)
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage
    assert re.search(r"ld\.global\S*\.v4\.b32", compiled.asm["ptx"])
    assert re.search(r"st\.global\S*\.v4\.b32", compiled.asm["ptx"])
    assert "div.rn.f32" in compiled.asm["ptx"]  # as torchvision divides; Triton's own operator is approximate


def compile_kernel(capability, kind, block):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from extract.detector.region_pooling_triton import PER_WARP, _roi_pool

    kinds = {"maps": f"*{kind}", "regions": "*fp32", "pooled": f"*{kind}"}
    kinds |= {**dict.fromkeys(["height", "width", "channels"], "i32"), "scale": "fp32"}
    constants = {"rows": 14, "columns": 14, "block": block}
    source = ASTSource(
        fn=_roi_pool,
        signature=kinds | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={
            (list(kinds).index(name),): [["tt.divisibility", 16]]
            for name in ("maps", "regions", "pooled", "channels")
        },
    )
    options = {"num_warps": block // PER_WARP, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize(
    ("cuda", "capability", "error", "runs"),
    [
        ("13.0", (9, 0), None, True),
        ("13.0", (7, 5), None, False),
        (None, (9, 0), None, False),
        ("13.0", (9, 0), RuntimeError("Failed to find C compiler"), False),
    ],
)
def test_where_the_kernel_runs(cuda, capability, error, runs, monkeypatch, recwarn):
    """Where it cannot be started torchvision pools all the same, after one warning."""
    tried, zeros = [], torch.zeros

    def started(*arguments):
        tried.append(arguments)
        if error:
            raise error

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: zeros(*sizes))
    monkeypatch.setattr(region_pooling, "_by_kernel", started)
    assert region_pooling._kernel_runs.__wrapped__(torch.device("cuda")) == runs
    assert len(tried) == (runs or error is not None)
    messages = [str(warning.message) for warning in recwarn]
    complaint = "RoIPool runs without its GPU kernel and is slower: Failed to find C compiler"
    assert messages == ([complaint] if error else [])
    assert not region_pooling._kernel_runs.__wrapped__(torch.device("cpu"))


@pytest.fixture
def pooled_by(monkeypatch):
    """Which regions went to the kernel; it is torchvision's operator here, and it is asked for without a GPU."""
    calls = []

    def pool(maps, regions, size, scale):
        calls.append((maps.dtype, maps.is_contiguous(memory_format=torch.channels_last), len(regions)))
        return torchvisions(maps.float(), regions, size, scale).to(maps.dtype)

    monkeypatch.setattr(region_pooling, "_by_kernel", pool)
    monkeypatch.setattr(region_pooling, "_has_kernel", lambda maps: maps.dtype == torch.bfloat16)
    return calls


@pytest.mark.parametrize(
    ("pooler", "kind", "gradient", "by_kernel"),
    [
        ("ROIPool", torch.bfloat16, False, True),
        ("ROIPool", torch.bfloat16, True, False),
        ("ROIPool", torch.float32, False, False),
        ("ROIAlign", torch.bfloat16, False, False),
    ],
)
def test_the_kernel_pools_half_precision_in_inference(pooler, kind, gradient, by_kernel, pooled_by):
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 5, 9, 12, generator=rng).to(kind).requires_grad_(gradient)
    boxes = [Boxes(torch.tensor([[0.0, 3.0, 90.0, 70.0], [20.0, 30.0, 50.0, 130.0], [0.0, 0.0, 9.0, 9.0]]))]
    layer = ROIPooler((7, 7), scales=(1 / 16,), sampling_ratio=0, pooler_type=pooler).level_poolers[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        groups = list(pooled_groups(layer, maps, boxes, 2))
    assert pooled_by == ([(kind, True, 2), (kind, True, 1)] if by_kernel else [])
    expected = layer(maps.float(), region_pooling.numbered(boxes)).to(kind)
    assert torch.equal(torch.cat(groups), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1024, 256, 40])
def test_a_gpu_pools_what_torchvision_pools(kind, channels):
    from extract.detector.region_pooling_triton import roi_pool

    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(3, channels, 38, 63, generator=rng).to(kind).contiguous(memory_format=torch.channels_last)
    corners = torch.rand(200, 2, generator=rng) * 600
    sides = torch.rand(200, 2, generator=rng) * 500 - 10
    image = torch.randint(0, 3, (200, 1), generator=rng).float()
    regions = torch.cat([image, corners, corners + sides], dim=1)
    found = roi_pool(maps.cuda(), regions.cuda(), (14, 14), 1 / 16)
    assert torch.equal(found.cpu(), torchvisions(maps.float(), regions, (14, 14), 1 / 16).to(kind))


@pytest.mark.gpu
def test_more_numbers_than_32_bits_count():
    from extract.detector.region_pooling_triton import roi_pool

    maps = torch.randn(1, 1024, 20, 30, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    regions = torch.tensor([[0.0, 16.0, 32.0, 300.0, 250.0]], device="cuda").repeat(11000, 1)
    found = roi_pool(maps, regions, (14, 14), 1 / 16)
    assert found.numel() > 2**31
    assert torch.equal(found[-1], found[0])
    assert found[0].abs().max() > 0
