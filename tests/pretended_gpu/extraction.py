"""The detector and the selection of regions on the pretended GPU, from decoded images to columns of a store."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from benchmarks.extraction import flops_of
from extract.build import build_detector
from extract.choices import Dtype, Precision, Rule
from extract.config import load_config
from extract.detector import region_pooling
from extract.detector.detector import Detector
from extract.detector.resizing import Geometry
from extract.regions.selection import build_selection
from extract.run.batches import select_batch
from tests.pretended_gpu.device import CUDA, PretendedGPU

SIZE, IMAGES, PROPOSALS = (96, 128), 3, 40
GEOMETRIES = [Geometry(SIZE, SIZE, (1.0, 1.0))] * IMAGES
GRID = 2  # waits of the first batch of a shape: Detectron2 copies both axes of the grid of anchors
OF_AN_IMAGE = {  # waits: Caffe's two are for how many boxes are large and survive; the others are Detectron2's
    "butd_r101_caffe": 2,
    "butd_r101_airsplay": 8,
    "scenes": 8,
}


def detector_on(gpu: PretendedGPU, config: str, precision: str = "fp32") -> Detector:
    built = build_detector(load_config(config), None, torch.device("cpu"))
    network = built.model.to(memory_format=torch.channels_last)
    gpu.move(network)
    detector = Detector(network, built.resizing, built.inclusive, Precision(precision))
    gpu.forget()
    return detector


def images_of(detector: Detector, size: tuple[int, int] = SIZE, count: int = IMAGES) -> list[torch.Tensor]:
    kind = torch.uint8 if detector.resizing.method in ("pillow", "maskrcnn") else torch.float32
    return [torch.zeros(3, *size, dtype=kind) for _ in range(count)]


@contextmanager
def pooling_kernel(gpu: PretendedGPU, runs: bool = True) -> Iterator[None]:
    """Whether RoIPool has its kernel, which is not started: what it is given is looked at and counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_pooling, "_kernel_runs", lambda device: runs)
        if runs:
            triton = pytest.importorskip("extract.detector.region_pooling_triton", exc_type=ImportError)
            patch.setattr(triton, "_roi_pool", _Unstarted(gpu))
        yield


class _Unstarted:
    """A kernel of Triton that only looks at its arguments: maps, regions, what they are pooled to, and numbers."""

    def __init__(self, gpu: PretendedGPU) -> None:
        self._gpu = gpu

    def __getitem__(self, programs: tuple[int, int]) -> Callable[..., None]:
        assert min(programs) > 0
        return self._check

    def _check(self, *arguments: object, **settings: int) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        assert len(tensors) == 3
        assert all(tensor.is_cuda for tensor in tensors)
        self._gpu.launched("roi_pool", *tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", OF_AN_IMAGE)
def test_proposals_are_made_on_the_gpu_in_as_few_waits_as_are_known(config: str, precision: str) -> None:
    waits = []
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu):
        detector = detector_on(gpu, config, precision)
        for _ in range(2):
            gpu.forget()
            found = detector(images_of(detector), GEOMETRIES)
            waits.append(gpu.waits.total())
    for proposals in found:
        assert proposals.features.shape == (PROPOSALS, detector.dim)
        for column in vars(proposals).values():
            assert column.device == CUDA
            assert column.dtype == torch.float32
    assert waits == [GRID + IMAGES * OF_AN_IMAGE[config], IMAGES * OF_AN_IMAGE[config]], gpu.waits


@pytest.mark.parametrize("config", OF_AN_IMAGE)
def test_given_boxes_are_described_without_a_wait(config: str) -> None:
    with PretendedGPU() as gpu, pooling_kernel(gpu):
        detector = detector_on(gpu, config)
        boxes = [torch.tensor([[0.0, 0.0, 50.0, 60.0]], dtype=torch.double).repeat(n, 1) for n in (1, 4, 7)]
        found = detector.predict_boxes(images_of(detector), GEOMETRIES, boxes)
    assert [proposals.boxes.shape for proposals in found] == [(1, 4), (4, 4), (7, 4)]
    assert not gpu.waits


@pytest.mark.parametrize("config", ["grid_r50", "scenes"])
def test_a_grid_is_pooled_without_a_wait(config: str) -> None:
    with PretendedGPU() as gpu:
        detector = detector_on(gpu, config, "bf16")
        found = detector.pool_grid(images_of(detector), GEOMETRIES, 4)
    assert [cells.features.shape for cells in found] == [(16, detector.dim)] * IMAGES
    assert all(cells.features.device == cells.boxes.device == CUDA for cells in found)
    assert not gpu.waits


@pytest.mark.parametrize(
    ("config", "kernel", "conversions"),
    [("butd_r101_caffe", True, 0), ("butd_r101_caffe", False, 1), ("vg_r101", True, 1)],
)
def test_half_precision_rounds_pooled_maps_once_at_most(config: str, kernel: bool, conversions: int) -> None:
    """With RoIPool and RoIAlign, whose wrappers would convert under autocast, as two convolutions would."""
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu, kernel):
        detector = detector_on(gpu, config, "bf16")
        detector(images_of(detector), GEOMETRIES)
    pooled = IMAGES * PROPOSALS * 1024 * 14 * 14
    rounded = (torch.float32, torch.bfloat16, pooled)
    assert [found for found in gpu.conversions if found[2] >= pooled] == [rounded] * conversions


def test_half_precision_converts_no_weight() -> None:
    """The images and what three linear layers take, of which two take the same; then scores, deltas, outputs."""
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu):
        detector = detector_on(gpu, "butd_r101_caffe", "bf16")
        detector(images_of(detector), GEOMETRIES)
    regions, pixels = IMAGES * PROPOSALS, IMAGES * 3 * SIZE[0] * SIZE[1]
    to_half = sorted(count for before, after, count in gpu.conversions if after == torch.bfloat16)
    assert to_half == sorted([pixels, regions * 2048, regions * 2048, regions * (2048 + 256)])


@pytest.mark.parametrize(
    ("config", "gigabytes", "launches"), [("butd_r101_caffe", 0.7, 680), ("butd_r101_airsplay", 0.7, 620)]
)
def test_the_budget_of_a_batch(config: str, gigabytes: float, launches: int) -> None:
    """What docs/performance.md reports, with nothing on top; before, it was 10.4 GB and 969 to 1025 launches."""
    from benchmarks.gpu_counts import counted, outside_convolutions

    gpu = counted(config, Precision.BF16, 8, (600, 1000))
    assert outside_convolutions(gpu) / 8 < gigabytes * 1e9
    assert gpu.launches.total() < launches


def test_the_counts_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import gpu_counts

    options = "--configs scenes --precision fp32 --batch 2 --size 64 96 --operators 3"
    monkeypatch.setattr(sys, "argv", ["gpu_counts", *options.split()])
    gpu_counts.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    gpu = gpu_counts.counted("scenes", Precision.FP32, 2, (64, 96))
    assert lines[0][:3] == ["scenes", str(gpu.waits.total()), str(gpu.launches.total())]
    assert [line[0] for line in lines[1:]] == [name for name, _ in gpu.moved.most_common(3)]


def test_half_precision_has_the_same_products_in_fused_operators() -> None:
    counts = []
    for precision in ("fp32", "fp16"):
        with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu):
            detector = detector_on(gpu, "butd_r101_caffe", precision)
            counts.append(flops_of(partial(detector, images_of(detector), GEOMETRIES)))
    assert counts[0] == counts[1]
    assert gpu.launches["convolution"] == 7  # the stem, a shortcut in each of four stages, two layers of proposals
    assert gpu.launches["cudnn_convolution_add_relu"] == 33  # the residual blocks
    assert gpu.launches["cudnn_convolution_relu"] == 2 * 33 + 1
    assert not {"native_batch_norm", "cudnn_batch_norm"} & {*gpu.launches}
    assert gpu.launches["relu_"] == gpu.launches["add_"] == 1  # the stem's


@pytest.mark.parametrize("rule", Rule)
def test_regions_are_selected_on_the_gpu(rule: Rule) -> None:
    """Each of six columns is copied to the host once, for all images together."""
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu:
        detector = detector_on(gpu, "scenes")
        found = detector(images_of(detector), GEOMETRIES)
        gpu.waits.clear()
        selection = build_selection(rule, (10, 10), inclusive=False)
        with torch.inference_mode():
            columns = select_batch(found, selection, Dtype.FLOAT16)
    assert [column["features"].shape for column in columns] == [(10, detector.dim)] * IMAGES
    copies = [count for wait, count in gpu.waits.items() if wait.startswith("a copy to the host")]
    assert sum(copies) == 6
