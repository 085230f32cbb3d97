"""How often does the detector wait for a GPU, and how many launches and bytes does it take besides convolutions?

    python -m benchmarks.gpu_counts                                      # bf16, eight images of 600 x 1000
    python -m benchmarks.gpu_counts --configs scenes --size 160 160 --operators 20

No GPU is needed and none is used: operators run on the pretended GPU of the tests, as shapes. Weights are random,
and every image has as many proposals as the configuration allows. What is counted is the network with its
proposals, from images in memory to predictions on the GPU, and by itself the selection of regions. Some operators
start more than one kernel, and the bytes are those of arguments and results: a cache may hold some of them.
"""

import argparse

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


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--precision", type=Precision, default=Precision.BF16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=[600, 1000], help="height and width in the network")
    parser.add_argument("--operators", type=int, default=0, help="also the operators that move most")
    arguments = parser.parse_args()
    print(f"{'':20} {'waits':>6} {'launches':>9} {'GB per image':>13} {'outside convolutions':>21}")
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
            moved = gpu.moved.total() / arguments.batch / 1e6
            print(f"{name:20} {gpu.waits.total():6} {gpu.launches.total():9} {moved:34.1f}")


if __name__ == "__main__":
    main()
