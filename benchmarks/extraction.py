"""How fast is the published detector, at what share of the machine's own limit, and what does precision cost?

    python -m benchmarks.extraction --images FOLDER                 # two cores: some ten minutes
    python -m benchmarks.extraction --images FOLDER --batch-sizes 1 8 36 --precisions fp32 tf32 bf16 fp16 \\
        --error-precisions tf32 bf16 fp16                                # a GPU

Measures, with random weights (arithmetic does not depend on them):
- seconds and images per second of the network by precision and batch size, at 600 x 800, on one photograph of the
  folder or, without a folder, a drawn scene; and the achieved FLOP/s beside those of a plain matrix product of the
  same type in the same run;
- the relative error of features against fp32, over nine boxes of each photograph, resized to 224 pixels;
- the selection of 300 proposals over 1,600 classes beside a loop over the classes with torchvision's NMS, in both
  dialects of box arithmetic, after checking that both select the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.recording import record
from data_tools.devices import resolve_device
from data_tools.images.decoding import decode_bgr
from data_tools.scenes.drawing import paint, sample_scene
from extract.build import build_detector
from extract.choices import Precision
from extract.config import load_config
from extract.detector.boxes import ending_one_later
from extract.detector.detector import Detector
from extract.detector.precision import HALF_TYPES, precision_context
from extract.detector.resizing import Geometry
from extract.regions.nms import per_class_nms
from extract.run.sources import find_sources

ERROR_SIDE = 224  # pixels: CPUs without such arithmetic take minutes for one large photograph
PRODUCT = 2048  # rows and columns of the matrix product


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `work`, after one run that does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(precision: Precision, device: torch.device, repeats: int) -> float:
    """FLOP/s of a square matrix product in a precision."""
    one = torch.randn(PRODUCT, PRODUCT, device=device).to(HALF_TYPES.get(precision, torch.float32))
    with precision_context(precision, device.type):
        return 2 * PRODUCT**3 / seconds_of(lambda: one @ one, device, repeats)


def flops_of(work: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products in `work`."""

    def convolution(maps: torch.Size, weight: torch.Size, *others: Any, out_shape: torch.Size, **_: Any) -> int:
        return conv_flop_count([*maps], [*weight], [*out_shape])

    fused = torch.ops.aten.cudnn_convolution_relu, torch.ops.aten.cudnn_convolution_add_relu
    with FlopCounterMode(display=False, custom_mapping=dict.fromkeys(fused, convolution)) as counter:
        work()
    return int(counter.get_total_flops())


def make_plausible(detector: Detector) -> None:
    """Give a random network what a trained one has: activations that do not grow, and many proposals.

    Residual branches add little, so that half precision does not overflow; anchors are proposed, at random scores.
    """
    for block in detector.model.modules():
        if isinstance(block, BottleneckBlock):
            block.conv3.norm.weight.fill_(0.2)
    head = detector.model.proposal_generator.rpn_head
    torch.nn.init.zeros_(head.anchor_deltas.weight)
    torch.nn.init.zeros_(head.anchor_deltas.bias)
    torch.nn.init.normal_(head.objectness_logits.weight)


def network_times(
    detector: Detector, image: torch.Tensor, proposals: int, batches: list[int], repeats: int
) -> list[dict[str, Any]]:
    """A row for each batch size."""
    size = (image.shape[1], image.shape[2])
    geometry = Geometry(size, size, (1.0, 1.0))
    [found] = detector([image], [geometry])
    if len(found.boxes) != proposals:
        raise SystemExit(f"the network proposed {len(found.boxes)} boxes, not {proposals}")
    flops = flops_of(partial(detector, [image], [geometry]))
    limit = product_rate(detector.precision, detector.device, 5)
    rows = []
    for batch in batches:
        images, geometries = [image] * batch, [geometry] * batch
        seconds = seconds_of(partial(detector, images, geometries), detector.device, repeats)
        rate = flops * batch / seconds
        rows.append(
            {
                "precision": detector.precision.value,
                "batch": batch,
                "seconds_per_image": round(seconds / batch, 4),
                "images_per_second": round(batch / seconds, 3),
                "tflop_per_image": round(flops / 1e12, 3),
                "tflops": round(rate / 1e12, 4),
                "product_tflops": round(limit / 1e12, 4),
                "share_of_product": round(rate / limit, 3),
                "repeats": repeats,
            }
        )
        print(
            f"{detector.precision.value:5} batch {batch:3}  {seconds / batch:8.3f} s/image  "
            f"{rate / 1e12:7.3f} TFLOP/s, {rate / limit:5.1%} of a matrix product's",
            flush=True,
        )
    return rows


def some_pictures(folder: Path | None, count: int) -> list[np.ndarray]:
    """The first `count` photographs of a folder, or as many drawn scenes: (H, W, 3) uint8, BGR."""
    if folder is None:
        random = np.random.default_rng(0)
        scenes = [sample_scene(random) for _ in range(count)]
        return [np.asarray(paint(scene.background, scene.objects))[:, :, ::-1].copy() for scene in scenes]
    sources = find_sources(folder)
    return [decode_bgr(sources.folder / image.file) for image in sources.images[:count]]


def feature_errors(
    exact: Detector, others: list[Detector], pictures: list[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Relative error of each precision's features against fp32's, on boxes spread over small photographs."""
    errors: dict[str, list[torch.Tensor]] = {other.precision.value: [] for other in others}
    resizing = replace(exact.resizing, min_side=ERROR_SIDE, max_side=2 * ERROR_SIDE)
    for picture in pictures:
        image, geometry = resizing(picture)
        height, width = geometry.original
        corners = torch.tensor([[x, y] for x in (0.0, 0.2, 0.4) for y in (0.0, 0.25, 0.5)])
        boxes = torch.cat([corners, corners + 0.5], dim=1) * torch.tensor([width, height] * 2)
        [reference] = exact.predict_boxes([image], [geometry], [boxes])
        for other in others:
            [rough] = other.predict_boxes([image], [geometry], [boxes])
            difference = (rough.features - reference.features).norm(dim=1)
            errors[other.precision.value].append(difference / reference.features.norm(dim=1))
    return {
        name: {"mean": float(torch.cat(values).mean()), "most": float(torch.cat(values).max())}
        for name, values in errors.items()
        if values
    }


def selection_times(repeats: int) -> list[dict[str, Any]]:
    """The selection beside a loop over classes, in both dialects, on the CPU."""
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=rng) * 500
    boxes = torch.cat([corner, corner + 16 + torch.rand(300, 2, generator=rng) * 200], dim=1)
    probabilities = (torch.randn(300, 1601, generator=rng) * 2).softmax(dim=1)[:, :-1].contiguous()
    rows = []
    for inclusive in (True, False):

        def loop(inclusive: bool = inclusive) -> torch.Tensor:
            survives = torch.zeros(probabilities.shape, dtype=torch.bool)
            continuous = ending_one_later(boxes) if inclusive else boxes
            overlap = np.nextafter(np.float32(0.3), np.float32(0)) if inclusive else 0.3  # >= is > the float below
            for label in range(probabilities.shape[1]):
                survives[torchvision.ops.nms(continuous, probabilities[:, label], float(overlap)), label] = True
            return survives

        def fast(inclusive: bool = inclusive) -> torch.Tensor:
            return per_class_nms([boxes], [probabilities], 0.3, inclusive)[0]

        if not torch.equal(loop(), fast()):
            raise SystemExit("the selection differs from the loop over classes")
        cpu = torch.device("cpu")
        slow, quick = seconds_of(loop, cpu, repeats), seconds_of(fast, cpu, repeats)
        dialect = "caffe" if inclusive else "detectron2"
        print(f"selection, {dialect:10}  loop {slow:.3f} s, here {quick:.4f} s: {slow / quick:.1f} times faster")
        rows.append(
            {
                "dialect": dialect,
                "loop_seconds": round(slow, 4),
                "seconds": round(quick, 5),
                "times_faster": round(slow / quick, 2),
                "repeats": repeats,
            }
        )
    return rows


def in_precision(exact: Detector, precision: Precision) -> Detector:
    """The same network in another precision."""
    return Detector(exact.model, exact.resizing, exact.inclusive, precision)


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs; without it scenes are drawn")
    parser.add_argument("--config", default="butd_r101_caffe")
    parser.add_argument("--size", type=int, nargs=2, default=[600, 800], help="height and width in the network")
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--precisions", type=Precision, nargs="+", default=[Precision.FP32], help="to be timed")
    parser.add_argument(
        "--error-precisions",
        type=Precision,
        nargs="+",
        default=[Precision.BF16, Precision.FP16],
        help="to be compared",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--error-images", type=int, default=2, help="photographs over which errors are taken")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    arguments = parser.parse_args()

    device = resolve_device(arguments.device)
    selection = selection_times(max(arguments.repeats, 5))
    pictures = some_pictures(arguments.images, max(1, arguments.error_images))
    cfg = load_config(arguments.config).clone()
    cfg.defrost()
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = arguments.proposals
    exact = build_detector(cfg, None, device)
    make_plausible(exact)
    photograph = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None].float()
    photograph = torch.nn.functional.interpolate(photograph, arguments.size, mode="bilinear")[0]
    image = photograph - torch.tensor(cfg.MODEL.PIXEL_MEAN)[:, None, None]
    rows = []
    for precision in arguments.precisions:
        detector = in_precision(exact, precision)
        rows += network_times(detector, image, arguments.proposals, arguments.batch_sizes, arguments.repeats)
    others = [in_precision(exact, precision) for precision in arguments.error_precisions]
    errors = feature_errors(exact, others, pictures[: arguments.error_images])
    for name, error in errors.items():
        print(
            f"{name:5} features differ from fp32's by {error['mean']:.2e} on average, {error['most']:.2e} at most"
        )
    results = {
        "config": arguments.config,
        "weights": "random",
        "size": arguments.size,
        "proposals": arguments.proposals,
        "network": rows,
        "feature_error_against_fp32": errors,
        "selection": selection,
    }
    print(record("extraction", results, arguments.out))


if __name__ == "__main__":
    main()
