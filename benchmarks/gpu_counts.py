"""What do the stages ask of a GPU: how often does the host wait, how much is launched, copied and moved?

    python -m benchmarks.gpu_counts                        # all parts, on any machine: about a minute
    python -m benchmarks.gpu_counts scoring evaluation
    python -m benchmarks.gpu_counts detector --configs scenes --size 160 160 --operators 20

No GPU is needed and none is used: operators run on the pretended GPU of `tests/pretended_gpu`, as shapes. An
operator counts once, however many kernels it starts; cuDNN's recurrent network is a few operators there. Of the
stages of `chan`, at the sizes of the recipes: megabytes copied between host and GPU, and written by operators.
Of the detector, from images in memory to predictions on the GPU, in bf16, and of the selection of regions: the
bytes of arguments and results, of which a cache may hold some; weights are random and every image has as many
proposals as the configuration allows. Tests hold each stage to a budget.
"""

import argparse
from importlib import import_module

from extract.choices import Dtype, Precision, Rule
from extract.config import load_config
from extract.detector.resizing import Geometry
from extract.regions.selection import build_selection
from extract.run.batches import select_batch
from tests.pretended_gpu.device import PretendedGPU
from tests.pretended_gpu.extraction import (
    detector_on,
    images_of,
    of_published_size,
    pooling_kernel,
    suppression_kernel,
)

STAGES = ("scoring", "training", "evaluation")
PARTS = (*STAGES, "detector")
CONFIGS = ["butd_r101_caffe", "butd_r101_airsplay", "vg_r101", "vinvl_x152"]


def counted(config: str, precision: Precision, batch: int, size: tuple[int, int]) -> PretendedGPU:
    """The pretended GPU after one batch; the first one of its shape, which makes the anchors, does not count."""
    proposals = load_config(config).MODEL.RPN.POST_NMS_TOPK_TEST
    with PretendedGPU(suppressed_to=proposals) as gpu, pooling_kernel(gpu), suppression_kernel(gpu):
        detector = detector_on(gpu, config, precision)
        images, geometries = images_of(detector, size, batch), [Geometry(size, size, (1.0, 1.0))] * batch
        detector(images, geometries)
        gpu.forget()
        detector(images, geometries)
    return gpu


def counted_selection(rule: Rule, batch: int, kernel: bool) -> PretendedGPU:
    """The pretended GPU after the selection of a batch of images with 300 proposals and 1,600 classes each."""
    with PretendedGPU(suppressed_to=300) as gpu, suppression_kernel(gpu, kernel):
        found = [of_published_size(gpu) for _ in range(batch)]
        gpu.forget()
        select_batch(found, build_selection(rule, (36, 36)), Dtype.FLOAT32)
    return gpu


def outside_convolutions(gpu: PretendedGPU) -> int:
    """Bytes that operators other than convolutions moved."""
    return sum(moved for name, moved in gpu.moved.items() if "convolution" not in name)


def print_stages(module: str) -> None:
    """A line for each stage of a module of the pretended GPU's tests."""
    print(f"{module:52}{'waits':>6}{'launches':>10}{'copied MB':>11}{'written MB':>12}")
    for stage in import_module(f"tests.pretended_gpu.{module}").STAGES:
        found = stage.count()
        numbers = f"{found.waits:>6}{found.launches:>10}{found.copied:>11.2f}{found.written:>12.1f}"
        print(f"{stage.name:52}{numbers}", flush=True)
    print()


def print_detector(arguments: argparse.Namespace) -> None:
    """A line for each configuration, and for each rule of selection with its kernel and without."""
    print(f"{'detector':20} {'waits':>6} {'launches':>9} {'GB per image':>13} {'outside convolutions':>21}")
    for config in arguments.configs:
        gpu = counted(config, arguments.precision, arguments.batch, tuple(arguments.size))
        moved = [bytes_ / arguments.batch / 1e9 for bytes_ in (gpu.moved.total(), outside_convolutions(gpu))]
        print(f"{config:20} {gpu.waits.total():6} {gpu.launches.total():9} {moved[0]:13.2f} {moved[1]:21.2f}")
        for name, own in gpu.moved.most_common(arguments.operators):
            print(f"  {name:36} {gpu.launches[name]:6} {own / arguments.batch / 1e9:18.3f}")
    print(f"\n{'selection':20} {'waits':>6} {'launches':>9} {'MB per image':>34}")
    for rule in Rule:
        for kernel in (True, False):
            gpu = counted_selection(rule, arguments.batch, kernel)
            name = f"{rule}{'' if kernel else ', no kernel'}"
            moved_mb = gpu.moved.total() / arguments.batch / 1e6
            print(f"{name:20} {gpu.waits.total():6} {gpu.launches.total():9} {moved_mb:34.1f}")


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    of_detector = parser.add_argument_group("detector")
    of_detector.add_argument("--configs", nargs="+", default=CONFIGS)
    of_detector.add_argument("--precision", type=Precision, default=Precision.BF16)
    of_detector.add_argument("--batch", type=int, default=8)
    of_detector.add_argument(
        "--size", type=int, nargs=2, default=[600, 1000], help="height and width of the input"
    )
    of_detector.add_argument("--operators", type=int, default=0, help="also the operators that move most")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if not set(parts) <= set(PARTS):
        parser.error(f"expected parts of {', '.join(PARTS)}")
    for part in parts:
        if part == "detector":
            print_detector(arguments)
        else:
            print_stages(part)


if __name__ == "__main__":
    main()
