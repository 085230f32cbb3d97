"""Do processes on the same cores slow one another in proportion, or do their threads fight?

    python -m benchmarks.neighbours                       # two cores: some twenty minutes; nothing else may run
    python -m benchmarks.neighbours --work scoring --seconds 5

Each piece of work runs alone and then beside two others like it, once for each of `SETTINGS`, which are variables
that OpenMP's runtime reads when it is loaded. The rates beside others are means of the three processes. A fair
share is a third of the rate alone; idle threads that spin take part of it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import record
from data_tools.environment import SPINS

NEIGHBOURS = 3  # processes that run at once
SETTINGS: dict[str, dict[str, str]] = {
    "as shipped": {"GOMP_SPINCOUNT": str(SPINS)},  # what data_tools sets, if it is imported before PyTorch
    "runtime's default": {"GOMP_SPINCOUNT": "300000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def detector_training() -> Callable[[], Any]:
    """Iterations of the demonstration's detector, with the data loader."""
    from detectron2.utils.events import EventStorage

    from data_tools.scenes.dataset import write_scenes
    from extract.config import load_config, with_values
    from extract.training.data import load_detection_split
    from extract.training.trainer import DetectorTrainer

    folder = tempfile.TemporaryDirectory()
    write_scenes(Path(folder.name), train=40, dev=1, test=1)
    cfg = with_values(load_config("scenes"), device="cpu", output=folder.name)
    trainer = DetectorTrainer(cfg, load_detection_split(Path(folder.name), "train").records)
    trainer.storage = EventStorage()

    def work(kept: Any = folder) -> None:
        with trainer.storage:
            trainer.run_step()

    return work


def extraction() -> Callable[[], Any]:
    """Passes of the published detector with random weights, on a small image and few proposals."""
    from benchmarks.convolutions import random_detector
    from extract.choices import Precision
    from extract.detector.resizing import Geometry

    size = (192, 256)
    detector = random_detector("butd_r101_caffe", torch.device("cpu"), Precision.FP32, 20)
    image = torch.randn(3, *size) * 50
    return lambda: detector([image], [Geometry(size, size, (1.0, 1.0))])


def training() -> Callable[[], Any]:
    """Steps of a BiGRU recipe with 64 pairs."""
    from benchmarks.training import build_step, hardest, make_batch

    sizes = Namespace(pairs=64, regions=36, features=2048, dim=512, precision="fp32")
    step, batch = build_step(sizes, torch.device("cpu")), make_batch(sizes)
    return lambda: step(batch, hardest, seed=0)


def scoring() -> Callable[[], Any]:
    """Scores of 64 images and 64 captions, 1,024 numbers per region and word."""
    from benchmarks.scoring import make_problem

    problem = make_problem(Namespace(images=64, captions=64, regions=36, dim=1024), torch.device("cpu"))
    return lambda: problem.scores()


WORKS = {
    "detector training": detector_training,
    "extraction": extraction,
    "training": training,
    "scoring": scoring,
}


def child(name: str, seconds: float) -> None:
    """Prepare, say so, wait for a line, and print how often per second the work was done."""
    work = WORKS[name]()
    for _ in range(3):
        work()
    print("ready", flush=True)
    sys.stdin.readline()
    start, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds:
        work()
        count += 1
    print(count / taken, flush=True)
    sys.stdin.readline()  # the others go on until all have counted


def rates(name: str, setting: dict[str, str], processes: int, seconds: float) -> list[float]:
    """Times per second that each of `processes` did the work, all at once."""
    environment = {key: value for key, value in os.environ.items() if key not in _variables()} | setting
    command = [sys.executable, "-m", "benchmarks.neighbours", "--child", name, "--seconds", str(seconds)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    children = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    try:
        for process in children:
            while (line := process.stdout.readline()) != "ready\n":  # type: ignore[union-attr]
                if not line:
                    raise SystemExit(f"{name}: a process ended before it was ready")
        for process in children:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        return [float(process.stdout.readline()) for process in children]  # type: ignore[union-attr]
    finally:
        for process in children:
            process.kill()
            process.wait()


def _variables() -> set[str]:
    return {key for setting in SETTINGS.values() for key in setting}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each rate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="another results file than this machine's")
    parser.add_argument("--child", choices=WORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, arguments.seconds)
    results: dict[str, Any] = {}
    print(f"{'':20}{'':20}{'alone':>8}{'beside':>8}{'of a fair share':>18}")
    for name in arguments.work:
        found = measured(name, arguments)
        results[name] = {}
        for setting, (alone, beside) in found.items():
            single, shared = statistics.median(alone), statistics.median(beside)
            share = NEIGHBOURS * shared / single
            results[name][setting] = {"alone": single, "beside": shared, "share": share}
            print(f"{name:20}{setting:20}{single:8.2f}{shared:8.2f}{share:18.0%}", flush=True)
    document = {"per_second": results, "processes": NEIGHBOURS, "repeats": arguments.repeats}
    print(record("neighbours", document, arguments.out))


def measured(name: str, arguments: Namespace) -> dict[str, tuple[list[float], list[float]]]:
    """For each setting, the rates alone and the mean rates beside others; the settings take turns."""
    found: dict[str, tuple[list[float], list[float]]] = {setting: ([], []) for setting in arguments.settings}
    for _ in range(arguments.repeats):
        for setting, (alone, beside) in found.items():
            alone += rates(name, SETTINGS[setting], 1, arguments.seconds)
            beside.append(statistics.mean(rates(name, SETTINGS[setting], NEIGHBOURS, arguments.seconds)))
    return found


if __name__ == "__main__":
    main()
