"""The detector and the selection of regions on the pretended GPU, from decoded images to columns of a store."""

from functools import partial

import pytest
import torch

from benchmarks.extraction import flops_of
from extract.build import build_detector
from extract.choices import Dtype, Precision, Rule
from extract.config import load_config
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("config", OF_AN_IMAGE)
def test_proposals_are_made_on_the_gpu_in_as_few_waits_as_are_known(config: str, precision: str) -> None:
    waits = []
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu:
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
    with PretendedGPU() as gpu:
        detector = detector_on(gpu, config)
        boxes = [torch.tensor([[0.0, 0.0, 50.0, 60.0]], dtype=torch.double).repeat(n, 1) for n in (1, 4, 7)]
        found = detector.predict_boxes(images_of(detector), GEOMETRIES, boxes)
    assert [proposals.boxes.shape for proposals in found] == [(1, 4), (4, 4), (7, 4)]
    assert not gpu.waits


@pytest.mark.parametrize("config", ["butd_r101_caffe", "vg_r101"])
def test_half_precision_rounds_pooled_maps_once(config: str) -> None:
    """With RoIPool and RoIAlign, whose wrappers would convert under autocast, as two convolutions would."""
    with PretendedGPU(suppressed_to=PROPOSALS) as gpu:
        detector = detector_on(gpu, config, "bf16")
        detector(images_of(detector), GEOMETRIES)
    pooled = IMAGES * PROPOSALS * 1024 * 14 * 14
    assert [found for found in gpu.conversions if found[2] >= pooled] == [(torch.float32, torch.bfloat16, pooled)]


@pytest.mark.parametrize("config", ["butd_r101_caffe", "vinvl_x152"])
def test_half_precision_has_the_same_products_in_fused_operators(config: str) -> None:
    counts = []
    for precision in ("fp32", "fp16"):
        with PretendedGPU(suppressed_to=PROPOSALS) as gpu:
            detector = detector_on(gpu, config, precision)
            counts.append(flops_of(partial(detector, images_of(detector), GEOMETRIES)))
    assert counts[0] == counts[1]
    assert gpu.launches["convolution"] == 7  # the stem, a shortcut in each of four stages, two layers of proposals
    residual_blocks = {"butd_r101_caffe": 33, "vinvl_x152": 50}[config]
    assert gpu.launches["cudnn_convolution_add_relu"] == residual_blocks
    assert gpu.launches["cudnn_convolution_relu"] == 2 * residual_blocks + 1
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
