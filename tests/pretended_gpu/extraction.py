"""The detector and the selection of regions on the pretended GPU, from decoded images to columns of a store."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.extraction import flops_of
from extract.build import build_detector
from extract.choices import Dtype, Precision, Rule, RunOptions
from extract.config import load_config
from extract.detector import region_pooling, rpn, suppression
from extract.detector.detector import Detector
from extract.detector.proposals import Proposals
from extract.detector.resizing import Geometry
from extract.regions.selection import GivenBoxes, build_selection
from extract.run import overlap
from extract.run.batches import BatchRunner, select_batch
from extract.run.sources import find_sources
from tests.pretended_gpu.device import CUDA, PretendedGPU

SIZE, IMAGES, PROPOSALS = (96, 128), 3, 40
GEOMETRIES = [Geometry(SIZE, SIZE, (1.0, 1.0))] * IMAGES
CONFIGS = {"butd_r101_caffe": 300, "butd_r101_airsplay": 300, "scenes": 100}  # places per image
GRID = 2  # waits of the first batch of a shape: Detectron2 copies both axes of the grid of anchors
WITHOUT_KERNEL = 2  # waits of an image then: for how many boxes are valid, and how many survive
PROPOSING = 76  # launches from the feature maps of a batch to its proposals
SELECTING = {"waits": 3, "launches": 26, "megabytes_per_image": 28}  # of a batch; C 1600, D 2048, 300 proposals


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


@contextmanager
def suppression_kernel(gpu: PretendedGPU, runs: bool = True) -> Iterator["_UnstartedSuppression"]:
    """The same for non-maximum suppression."""
    kernel = _UnstartedSuppression(gpu)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suppression, "_runs", lambda device: runs)
        if runs:
            triton = pytest.importorskip("extract.detector.suppression_triton", exc_type=ImportError)
            patch.setattr(triton, "_greedy", kernel)
        yield kernel


class _UnstartedSuppression:
    """It keeps the numbers of programs; boxes, scores, offsets, limits, survivors and their numbers are given."""

    def __init__(self, gpu: PretendedGPU) -> None:
        self.programs: list[tuple[int, int]] = []
        self._gpu = gpu

    def __getitem__(self, programs: tuple[int, int]) -> Callable[..., None]:
        self.programs.append(programs)
        return self._check

    def _check(self, *arguments: object, **settings: int) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        assert len(tensors) == 6
        assert all(tensor.is_cuda and tensor.is_contiguous() for tensor in tensors)
        self._gpu.launched("greedy", *tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", CONFIGS)
def test_proposals_are_made_on_the_gpu_without_a_wait(config: str, precision: str) -> None:
    """Each image has all its places, whatever the number of its proposals, which stays on the GPU."""
    waits = []
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu), suppression_kernel(gpu) as kernel:
        detector = detector_on(gpu, config, precision)
        for _ in range(2):
            gpu.forget()
            found = detector(images_of(detector), GEOMETRIES)
            waits.append(gpu.waits.total())
    for proposals in found:
        assert proposals.features.shape == (CONFIGS[config], detector.dim)
        assert proposals.count is not None
        assert proposals.count.shape == ()
        for name, column in vars(proposals).items():
            assert column.device == CUDA
            assert column.dtype == (torch.int64 if name == "count" else torch.float32)
    assert waits == [GRID, 0], gpu.waits
    assert kernel.programs == [(IMAGES, 1)] * 2


@pytest.mark.parametrize("config", CONFIGS)
def test_without_the_kernel_suppression_waits_twice_per_image(config: str) -> None:
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu), suppression_kernel(gpu, runs=False):
        detector = detector_on(gpu, config)
        found = detector(images_of(detector), GEOMETRIES)
    assert {proposals.features.shape for proposals in found} == {(CONFIGS[config], detector.dim)}
    assert sum(gpu.waits.values()) == GRID + WITHOUT_KERNEL * IMAGES, gpu.waits


@pytest.mark.parametrize("config", CONFIGS)
def test_proposals_of_more_images_take_no_more_operations(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the feature map to the proposals; the pooling and the boxes' corrections do take some per image."""
    counts = []

    def counted(*arguments: Any) -> rpn.ProposalBatch:
        before = gpu.launches.total()
        found = rpn.propose(*arguments)
        counts.append(gpu.launches.total() - before)
        return found

    monkeypatch.setattr("extract.detector.detector.propose", counted)
    for images in (2, 5):
        with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu), suppression_kernel(gpu):
            detector = detector_on(gpu, config)
            detector(images_of(detector, count=images), GEOMETRIES[:1] * images)
    assert counts[0] == counts[1] <= PROPOSING


@pytest.mark.parametrize("config", CONFIGS)
def test_given_boxes_are_described_without_a_wait(config: str) -> None:
    with PretendedGPU() as gpu, pooling_kernel(gpu), suppression_kernel(gpu):
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
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu, kernel), suppression_kernel(gpu):
        detector = detector_on(gpu, config, "bf16")
        places = min(detector.model.proposal_generator.post_nms_topk[False], 6 * 8 * 15)  # of the map's anchors
        detector(images_of(detector), GEOMETRIES)
    pooled = IMAGES * places * 1024 * 14 * 14
    rounded = (torch.float32, torch.bfloat16, pooled)
    assert [found for found in gpu.conversions if found[2] >= pooled] == [rounded] * conversions


def test_half_precision_converts_no_weight() -> None:
    """The images and what three linear layers take, of which two take the same; then scores, deltas, outputs."""
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu), suppression_kernel(gpu):
        detector = detector_on(gpu, "butd_r101_caffe", "bf16")
        detector(images_of(detector), GEOMETRIES)
    regions, pixels = IMAGES * CONFIGS["butd_r101_caffe"], IMAGES * 3 * SIZE[0] * SIZE[1]
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

    options = "detector --configs scenes --precision fp32 --batch 2 --size 64 96 --operators 3"
    monkeypatch.setattr(sys, "argv", ["gpu_counts", *options.split()])
    gpu_counts.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    gpu = gpu_counts.counted("scenes", Precision.FP32, 2, (64, 96))
    assert lines[0][:3] == ["scenes", str(gpu.waits.total()), str(gpu.launches.total())]
    assert [line[0] for line in lines[1:4]] == [name for name, _ in gpu.moved.most_common(3)]


def test_half_precision_has_the_same_products_in_fused_operators() -> None:
    counts = []
    for precision in ("fp32", "fp16"):
        with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu), suppression_kernel(gpu):
            detector = detector_on(gpu, "butd_r101_caffe", precision)
            counts.append(flops_of(partial(detector, images_of(detector), GEOMETRIES)))
    assert counts[0] == counts[1]
    assert gpu.launches["convolution"] == 7  # the stem, a shortcut in each of four stages, two layers of proposals
    assert gpu.launches["cudnn_convolution_add_relu"] == 33  # the residual blocks
    assert gpu.launches["cudnn_convolution_relu"] == 2 * 33 + 1
    assert not {"native_batch_norm", "cudnn_batch_norm"} & {*gpu.launches}
    assert gpu.launches["relu_"] == gpu.launches["add_"] == 1  # the stem's


@pytest.mark.parametrize("images", [1, 3, 8])
@pytest.mark.parametrize("rule", Rule)
def test_regions_are_selected_on_the_gpu_within_budget(rule: Rule, images: int) -> None:
    """Waits for the numbers of proposals, for what decides, and for all six columns; one kernel suppresses."""
    with PretendedGPU(suppressed_to=300) as gpu, suppression_kernel(gpu) as kernel:
        found = [of_published_size(gpu) for _ in range(images)]
        gpu.forget()
        selection = build_selection(rule, (10, 10), inclusive=False)
        with torch.inference_mode():
            columns = select_batch(found, selection, Dtype.FLOAT16)
    assert [column["features"].shape for column in columns] == [(10, 2048)] * images
    assert gpu.waits.total() == SELECTING["waits"], gpu.waits
    assert gpu.launches.total() <= SELECTING["launches"], gpu.launches
    assert gpu.moved.total() <= SELECTING["megabytes_per_image"] * 1e6 * images
    assert kernel.programs == [(images, 1600 if rule is Rule.CAFFE else 5)]


def of_published_size(gpu: PretendedGPU) -> Proposals:
    boxes, regressed, features, classes, attributes = (gpu.empty(300, n) for n in (4, 4, 2048, 1600, 400))
    return Proposals(boxes, regressed, features, classes, attributes, gpu.empty(1, dtype=torch.int64)[0])


def test_given_boxes_are_selected_in_one_wait() -> None:
    with PretendedGPU() as gpu:
        columns = [gpu.empty(7, columns) for columns in (4, 4, 2048, 1600, 400)]
        select_batch([Proposals(*columns)] * IMAGES, GivenBoxes("0"), Dtype.FLOAT32)
    assert gpu.waits.total() == 1


class Later:
    """Stands for the thread of the selection: what is submitted runs when its result is asked for.

    Attributes:
        waits: of what has run.
        asked: numbers of what was submitted, in the order in which the results were asked for.
    """

    def __init__(self, gpu: PretendedGPU, log: list[str]) -> None:
        self.gpu, self.log, self.submitted, self.waits = gpu, log, 0, 0

    def submit(self, work: Callable[..., Any], *arguments: Any) -> SimpleNamespace:
        number, self.submitted = self.submitted, self.submitted + 1

        def result() -> Any:
            before = self.gpu.waits.total()
            found = work(*arguments)
            self.waits += self.gpu.waits.total() - before
            self.log.append(f"selected {number}")
            return found

        return SimpleNamespace(result=result)

    def shutdown(self, **_: Any) -> None: ...


def test_the_next_batch_is_on_its_way_before_a_batch_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from part to part. The thread of the network waits for nothing but finished selections."""
    for number, size in enumerate([(64, 48), (48, 64), (64, 48), (48, 64), (64, 48), (64, 48), (48, 64)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    log: list[str] = []
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu, pooling_kernel(gpu), suppression_kernel(gpu):
        detector = detector_on(gpu, "scenes")
        thread = Later(gpu, log)
        call = Detector.__call__
        network = 0

        def launched(self: Detector, *arguments: Any) -> list[Proposals]:
            nonlocal network
            log.append(f"launched {sum(entry.startswith('launched') for entry in log) + 1}")
            before = gpu.waits.total()
            found = call(self, *arguments)
            network += gpu.waits.total() - before
            return found

        monkeypatch.setattr(Detector, "__call__", launched)
        monkeypatch.setattr(overlap, "ThreadPoolExecutor", lambda _: thread)
        selection = build_selection(Rule.CAFFE, (10, 10), inclusive=False)
        runner = BatchRunner(detector, selection, find_sources(tmp_path), RunOptions(batch_size=2, workers=0))
        blocks = list(runner.blocks([range(4), range(4, 7)], lambda count: None))
    assert [block.counts.tolist() for block in blocks] == [[10] * 4, [10] * 3]
    assert [block.image_ids for block in blocks] == [["0", "1", "2", "3"], ["4", "5", "6"]]
    steps = [step for step in log if step != "selected 0"]  # the first that is submitted is no batch
    assert steps == [
        "launched 1",
        *[step for n in range(2, 5) for step in (f"launched {n}", f"selected {n - 1}")],
        "selected 4",
    ]
    assert network == GRID * 2  # for two shapes
    assert thread.waits == 4 * (SELECTING["waits"] + 2)  # for the network before it, and for the stream at its end
    assert gpu.waits.total() == network + thread.waits
