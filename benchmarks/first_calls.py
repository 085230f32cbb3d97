"""How much longer does the first call for each new shape take than the calls after it?

    python -m benchmarks.first_calls                         # a GPU: less than a minute
    python -m benchmarks.first_calls --device cpu --quick    # a try

On a GPU the first call of all loads kernels, and the first for a shape may choose among them, compile one or ask
for memory. Extraction meets a new shape with nearly every resized size, scoring and training with every batch.
Each work is called with its shapes in turn: once, and then a few times more, of which the median is given.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.convolutions import random_detector
from benchmarks.extraction import synchronise
from benchmarks.recording import record
from benchmarks.scoring import make_problem
from benchmarks.training import build_step, hardest, make_batch
from data_tools.devices import resolve_device
from extract.choices import Precision
from extract.detector.resizing import Geometry

Calls = Iterator[tuple[str, Callable[[], Any]]]
"""Names of shapes, each with a call for it."""

SIZES = ((600, 800), (800, 600), (600, 904), (600, 1000), (448, 1000), (600, 800))  # resized photographs
BATCHES = (1, 1, 1, 1, 1, 8)
PAIRS = (384, 383, 380, 384)
QUICK = ((64, 96), (96, 64))


def detector_calls(options: argparse.Namespace, device: torch.device) -> Calls:
    """Proposals and features of images."""
    sizes, proposals = (QUICK, 12) if options.quick else (SIZES, 300)
    detector = random_detector("butd_r101_caffe", device, Precision(options.precision), proposals)
    for size, batch in zip(sizes, BATCHES, strict=False):
        images = [torch.randn(3, *size) * 50] * batch
        yield (
            f"{batch} x {size[0]} x {size[1]}",
            partial(detector, images, [Geometry(size, size, (1.0, 1.0))] * batch),
        )


def scoring_calls(options: argparse.Namespace, device: torch.device) -> Calls:
    """Scores of images and captions, as many of one as of the other."""
    for pairs in _pairs(options):
        sizes = argparse.Namespace(images=pairs, captions=pairs, regions=36, dim=_dim(options))
        yield f"{pairs} x {pairs}", partial(make_problem(sizes, device).scores, options.precision)


def training_calls(options: argparse.Namespace, device: torch.device) -> Calls:
    """Training steps of CHAN with a GRU."""
    sizes = argparse.Namespace(
        model="chan", regions=36, features=2048, dim=_dim(options), precision=options.precision
    )
    step = build_step(sizes, device)
    for pairs in _pairs(options):
        sizes.pairs = pairs
        yield f"{pairs} pairs", partial(step, make_batch(sizes).to(device), hardest, seed=0)


def _pairs(options: argparse.Namespace) -> tuple[int, ...]:
    return (6, 5) if options.quick else PAIRS


def _dim(options: argparse.Namespace) -> int:
    return 32 if options.quick else 1024


WORKS = {"detector": detector_calls, "scores": scoring_calls, "training step": training_calls}


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Of one call, the device being waited for before and after it."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=3, help="calls after the first")
    parser.add_argument("--quick", action="store_true", help="few and small shapes")
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    options = parser.parse_args()
    device, rows = resolve_device(options.device), []
    print(f"{'':30}{'first ms':>10}{'later ms':>10}")
    for name, calls in WORKS.items():
        for shape, work in calls(options, device):
            first = seconds_of(work, device)
            later = statistics.median(seconds_of(work, device) for _ in range(options.repeats))
            rows.append({"work": name, "shape": shape, "first_seconds": first, "later_seconds": later})
            print(f"{name:14}{shape:16}{1e3 * first:10.1f}{1e3 * later:10.1f}", flush=True)
    document = {"precision": options.precision, "device": device.type, "repeats": options.repeats, "calls": rows}
    print(record(f"first calls {options.precision}{' quick' * options.quick}", document, options.out))


if __name__ == "__main__":
    main()
