"""What to run in the first hour on a GPU, in order, within ten minutes: `make gpu-check`.

    python -m benchmarks.gpu_check                          # or: make gpu-check PYTHON=python
    python -m benchmarks.gpu_check --device cpu --quick     # the same order at tiny sizes, some two minutes

Nothing is installed or fetched: it runs in the checkout with this Python, on data that it draws. Each step is a
process with a limit of time. One that fails or runs out of time is recorded and the next one goes on; the last
takes what is left. The results are written after every step, so that a cut loses nothing: the figures of each
benchmark in its own section, and what became of each step, with the end of its output, in `gpu check`.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.recording import record, results_file

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 585.0  # seconds in all, this program's own start not counted
GRACE = 4.0  # seconds for a step that was interrupted to say where it was
LEAST = 5.0  # seconds: with less left no step is begun
TAIL = 40  # lines of a step's output that are kept


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: of the step.
        line: what follows `python -m`; `{out}` is the results file, `{device}` the device, `{work}` an empty
            folder, and `{tests}` the files with tests for a GPU.
        quick: the same at a tiny size.
        seconds: its limit; the last step's is what is left.
        needs: what it cannot do without, of `NEEDS`.
    """

    name: str
    line: str
    quick: str
    seconds: float
    needs: tuple[str, ...] = ()


STEPS = (
    Step(
        "tests",
        "pytest -m gpu -v -p no:cacheprovider --tb=short {tests}",
        "pytest -m gpu --collect-only -p no:cacheprovider {tests}",
        130,
        ("pytest", "detectron2"),
    ),
    Step(
        "kernel",
        "benchmarks.kernel --images 1000 --captions 5000 --repeats 3 --precisions bf16 --out {out}",
        "benchmarks.kernel --images 6 --captions 6 --repeats 1 --out {out}",
        90,
        ("cuda", "triton", "gcc", "headers"),
    ),
    Step(
        "convolutions",
        "benchmarks.convolutions --precision bf16 --device {device} --out {out}",
        "benchmarks.convolutions --size 64 96 --proposals 12 --repeats 1 --device {device} --out {out}",
        45,
        ("detectron2",),
    ),
    Step(
        "extraction",
        "benchmarks.extraction --batch-sizes 1 8 36 --precisions bf16 fp32 --error-precisions bf16 --repeats 2 "
        "--device {device} --out {out}",
        "benchmarks.extraction --batch-sizes 1 8 --size 64 96 --proposals 12 --error-images 0 --repeats 1 "
        "--device {device} --out {out}",
        75,
        ("detectron2",),
    ),
    Step(
        "first calls",
        "benchmarks.first_calls --precision bf16 --device {device} --out {out}",
        "benchmarks.first_calls --quick --repeats 1 --device {device} --out {out}",
        40,
        ("detectron2",),
    ),
    Step(
        "evaluation",
        "benchmarks.evaluation --images 5000 --precision bf16 --device {device} --out {out}",
        "benchmarks.evaluation --images 8 --regions 3 --device {device} --out {out}",
        75,
    ),
    Step(
        "demonstration",
        "benchmarks.pipeline --out {work}/demo --record --results {out}",
        "benchmarks.pipeline --out {work}/demo --untrained --quick --record --results {out}",
        LIMIT,
        ("detectron2",),
    ),
)

NEEDS = {
    "cuda": "a CUDA device",
    "triton": "the package triton, which PyTorch's builds for CUDA bring along",
    "gcc": "a C compiler (gcc), with which Triton builds what starts a kernel",
    "headers": "Python's headers (Python.h, the package python3-dev)",
    "detectron2": "Detectron2: python -m extract.install_detectron2 --source PATH",
    "pytest": "the package pytest",
}


def missing(device: str) -> set[str]:
    """Those of `NEEDS` that this machine and this Python have not."""
    present = {
        "cuda": device == "cuda",
        "gcc": any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))),
        "headers": (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        **{package: find_spec(package) is not None for package in ("triton", "detectron2", "pytest")},
    }
    return {need for need, found in present.items() if not found}


def no_gpu() -> str | None:
    """Why PyTorch has no GPU here; None where it has one."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no PyTorch; fix: make gpu-check PYTHON=..., one that has it"
    if torch.version.cuda is None:
        return (
            f"PyTorch {torch.__version__} is built without CUDA; fix: make gpu-check PYTHON=..., one that has it"
        )
    return None if torch.cuda.is_available() else "needs a CUDA device, and there is none here"


def gpu_tests() -> list[str]:
    """The files with tests that are marked `gpu`."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if "mark.gpu" in file.read_text()]


def run(steps: Iterable[Step], values: dict[str, str], lacking: set[str], quick: bool) -> list[dict[str, Any]]:
    """Run the steps in order against the clock; writes the results after each, and returns what became of them.

    Args:
        steps: in order.
        values: of what stands in braces in their lines.
        lacking: of `missing`.
        quick: whether to run them at a tiny size.
    """
    end, rows = time.monotonic() + LIMIT, []
    for step in steps:
        line = (step.quick if quick else step.line).format(**values)
        row: dict[str, Any] = {"step": step.name, "command": f"python -m {line}", "seconds": 0.0}
        wanting = [NEEDS[need] for need in step.needs if need in lacking]
        seconds = min(step.seconds, end - time.monotonic())
        if wanting:
            row["outcome"] = f"left out: needs {', '.join(wanting)}"
        elif seconds < LEAST:
            row["outcome"] = "left out: no time left"
        else:
            row |= {"limit": round(seconds, 1), **run_one([sys.executable, "-m", *line.split()], seconds)}
        rows.append(row)
        record("gpu check", {"quick": quick, "steps": rows}, Path(values["out"]))
        print(f"{step.name:16}{row['seconds']:8.1f} s  {row['outcome']}", flush=True)
        if row["outcome"] != "passed":
            print("".join(f"    {text}\n" for text in row.get("output", [])[-12:]), end="", flush=True)
    return rows


def run_one(line: list[str], limit: float) -> dict[str, Any]:
    """Run a process and those that it starts for at most `limit` seconds; its outcome, seconds and last lines."""
    start = time.monotonic()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]),
        "PYTHONUNBUFFERED": "1",
    }
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            line,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(max(limit - GRACE, 0.1))
            outcome = "passed" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = "ran out of time"
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:  # whatever it left running, also where this program is ended
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    return {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "output": lines[-TAIL:]}


def main() -> None:
    """Run from the command line; exit code 0 where every step passed, 1 where one did not, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether everything runs")
    parser.add_argument(
        "--out", type=Path, help="the results file; default: gpu_check_MACHINE.json in the results"
    )
    options = parser.parse_args()
    reason = no_gpu() if options.device == "cuda" else None
    if reason is not None:
        print(f"gpu-check: {reason}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = options.out or results_file().with_name(f"gpu_check_{results_file().name}")
    lacking = missing(options.device)
    for need in sorted(lacking):
        print(f"gpu-check: missing: {NEEDS[need]}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        values = {
            "out": str(out.resolve()),
            "device": options.device,
            "work": work,
            "tests": " ".join(gpu_tests()),
        }
        rows = run(STEPS, values, lacking, options.quick)
    print(out)
    sys.exit(any(row["outcome"] != "passed" for row in rows))


if __name__ == "__main__":
    main()
