"""How much of the detector's time is not its convolutions'?

    python -m benchmarks.convolutions                                    # two cores: some four minutes
    python -m benchmarks.convolutions --size 320 416 --proposals 60      # half a minute

The limit is what the convolutions and linear layers of one image take alone. What each is called on is recorded
in a real pass, and the same calls are made on random tensors of the same shapes and memory formats, in turns with
whole passes (network and selection of 36 regions) in one process. In half precision these tensors and the weights
have that type before: converting them is work of the network, not of the limit. Before that, both must count the
same floating-point operations. Where the rest goes is what PyTorch's profiler says of one more pass. Weights are
random.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # public, and not in its stubs
from torch.profiler import ProfilerActivity, profile

from benchmarks.extraction import flops_of, in_precision, make_plausible, synchronise
from benchmarks.recording import record
from data_tools.devices import resolve_device
from extract.build import build_detector
from extract.choices import Precision, Rule
from extract.config import load_config, suppresses_inclusively
from extract.detector.detector import Detector
from extract.detector.half_precision import FoldedConvolution
from extract.detector.precision import HALF_TYPES, precision_context
from extract.detector.resizing import Geometry
from extract.regions.selection import build_selection
from extract.run.batches import select_regions

STAGES = {  # words in the names of PyTorch's operators, the first that fits
    "convolutions": ("convolution", "conv2d"),
    "linear layers": ("addmm", "linear", "::mm"),
    "batch norm": ("batch_norm",),
    "ReLU": ("clamp_min", "relu", "threshold"),
    "residual sums": ("add_",),
    "pooling": ("max_pool", "mean", "sum"),
    "RoI pooling": ("roi_pool", "roi_align"),
    "NMS": ("nms",),
    "softmax": ("softmax",),
}

Key = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # shape, strides and type of an input
Call = tuple[nn.Conv2d | nn.Linear, Key]


def recorded_calls(network: nn.Module, work: Callable[[], Any]) -> list[Call]:
    """Every convolution and linear layer that `work` calls, with what it is called on."""
    calls: list[Call] = []

    def note(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls.append((layer, (tuple(inputs[0].shape), inputs[0].stride(), inputs[0].dtype)))

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    work()
    for hook in hooks:
        hook.remove()
    return calls


def alone(calls: list[Call], precision: Precision, device: torch.device) -> Callable[[], None]:
    """The recorded calls on random tensors, and nothing between them: no conversion either."""
    half = HALF_TYPES.get(precision)
    inputs = {
        key: torch.empty_strided(*key[:2], dtype=half or key[2], device=device).normal_() for _, key in calls
    }
    layers = {layer: _parameters(layer, half) for layer, _ in calls}

    @torch.inference_mode()
    def run() -> None:
        with precision_context(precision, device.type):
            for layer, key in calls:
                weight, bias = layers[layer]
                if isinstance(layer, nn.Linear):
                    F.linear(inputs[key], weight, bias)
                else:
                    settings: Any = layer.stride, layer.padding, layer.dilation, layer.groups
                    F.conv2d(inputs[key], weight, bias, *settings)

    return run


def _parameters(
    layer: nn.Conv2d | nn.Linear, kind: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias in a type; None: as they are. A folded batch norm's bias is no part of the convolution."""
    bias = None if layer.bias is None or isinstance(layer, FoldedConvolution) else layer.bias.detach()
    return layer.weight.detach().to(kind), None if bias is None else bias.to(kind)


def in_turns(works: dict[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, `repeats` times in turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            synchronise(device)
            start = time.perf_counter()
            work()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


def stage_shares(work: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Share of each of `STAGES` in the operators' time, as the profiler sees it, and of `other` ones."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work()
        synchronise(device)
    totals = dict.fromkeys([*STAGES, "other"], 0.0)
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # kernels, which count with the operators that start them
        fits = (stage for stage, words in STAGES.items() if any(word in event.key for word in words))
        totals[next(fits, "other")] += event.self_device_time_total if cuda else event.self_cpu_time_total
    return {stage: round(total / sum(totals.values()), 4) for stage, total in totals.items()}


def random_detector(config: str, device: torch.device, precision: Precision, proposals: int) -> Detector:
    """A random detector of a configuration with this many proposals per image."""
    cfg = load_config(config).clone()
    cfg.defrost()
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = proposals
    cfg.freeze()
    exact = build_detector(cfg, None, device)
    make_plausible(exact)
    return exact if precision is Precision.FP32 else in_precision(exact, precision)


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="butd_r101_caffe")
    parser.add_argument("--size", type=int, nargs=2, default=[600, 800], help="height and width in the network")
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", type=Precision, default=Precision.FP32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    arguments = parser.parse_args()

    device, size = resolve_device(arguments.device), tuple(arguments.size)
    detector = random_detector(arguments.config, device, arguments.precision, arguments.proposals)
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(0)) * 50
    geometry = Geometry(size, size, (1.0, 1.0))
    inclusive = suppresses_inclusively(load_config(arguments.config))
    selection = build_selection(Rule.CAFFE, (36, 36), inclusive=inclusive)

    def network() -> Any:
        [found] = detector([image], [geometry])
        return found

    found = network()
    if len(found.boxes) != arguments.proposals:
        raise SystemExit(f"the network proposed {len(found.boxes)} boxes, not {arguments.proposals}")
    products = alone(recorded_calls(detector.model, network), arguments.precision, device)
    flops = flops_of(network)
    if flops_of(products) != flops:
        raise SystemExit("the recorded calls are not those of the network")
    works = {
        "network": network,
        "convolutions": products,
        "selection": lambda: select_regions(found, selection),
    }
    times = in_turns(works, device, arguments.repeats)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratio = (seconds["network"] + seconds["selection"]) / seconds["convolutions"]
    shares = stage_shares(network, device)
    for name, values in times.items():
        print(f"{name:13} {seconds[name]:8.4f} s  ({min(values):.4f} to {max(values):.4f})")
    print(f"network and selection take {ratio:.3f} times the convolutions' and linear layers' time")
    for stage, share in shares.items():
        print(f"  {stage:14} {share:6.1%} of the network")
    results = {
        "config": arguments.config,
        "size": arguments.size,
        "proposals": arguments.proposals,
        "precision": arguments.precision.value,
        "repeats": arguments.repeats,
        "tflop": round(flops / 1e12, 4),
        "seconds": {name: [round(value, 5) for value in values] for name, values in times.items()},
        "ratio": round(ratio, 4),
        "shares": shares,
    }
    print(record("convolutions", results, arguments.out))


if __name__ == "__main__":
    main()
