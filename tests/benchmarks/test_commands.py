"""Every measurement of `make bench` runs, at a tiny size, and records its figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = {
    "scoring": "--images 5 --captions 5 --regions 4 --dim 32 --repeats 1",
    "peers": "--images 5 --captions 5 --regions 4 --dim 32 --repeats 1",
    "evaluation": "--images 8 --regions 3",
    "training": "--pairs 6 --regions 4 --features 16 --dim 32 --steps 1",
    "training_shares": "--recipes coco_bigru --pairs 6 --dim 32 --images 20 --workers 0 --steps 1",
    "convolutions": "--size 64 96 --proposals 12 --repeats 1",
    "loading": "--workers 0 1 --count 4 --repeats 1",
    "reading": "--images 50 --batch 8 --workers 0 --seconds 0.05 --turns 1",
    "joining": "--images 20 --part 10",
    "recovery": "--weights random --count 2",
}
SECTIONS = {
    "evaluation": "evaluation 8 fp32",
    "training": "training fp32",
    "training_shares": "training shares fp32",
}


def test_all_of_make_bench_are_here() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    recipe = makefile.split("\nbench: setup\n")[1].split("\n\n")[0]
    assert {line.split("benchmarks.")[1].split()[0] for line in recipe.splitlines()} <= set(TINY)


SLOW = ("training", "training_shares", "convolutions", "loading", "evaluation", "recovery")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TINY]
)
def test_runs(name: str, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    line = [sys.executable, "-m", f"benchmarks.{name}", *TINY[name].split(), "--out", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    assert done.stdout.rstrip().endswith(str(out)) or name == "reading"  # which says when it is below its target
    [section] = json.loads(out.read_text())
    assert section == SECTIONS.get(name, name)
