"""From pixels to recall: the whole pipeline on the drawn data set, every stage by its own command.

    python -m benchmarks.demo --out runs/demo               # what `make demo` runs
    python -m benchmarks.demo --out runs/untrained --untrained   # the same with a random detector

Writes OUT/summary.json and OUT/retrieval.png, and with `--record` the figures into those of this machine. Question
answered: how well and how fast does retrieval work from pixels on a small machine, and what of it is due to the
detector?
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.recording import record

BIN = Path(sys.executable).parent


class Demo:
    """Runs the stages one after the other and keeps their seconds and results."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, *command: str, as_json: bool = True) -> Any:
        """Run a command of the project and return what it printed, parsed where it is JSON.

        A command that fails ends the demonstration with its exit code; its own error line is on the screen.
        """
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        start = time.perf_counter()
        line = [str(BIN / command[0]), *command[1:], *(["--json"] if as_json else [])]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(done.returncode)
        self.seconds[name] = round(time.perf_counter() - start, 1)
        if not as_json:
            print(done.stdout, end="")
            return None
        return json.loads(done.stdout)


def run(out: Path, untrained: bool) -> dict[str, Any]:
    """All stages; the summary that is written to OUT/summary.json."""
    demo = Demo(out)
    data, store = out / "data", out / "data" / "precomp" / "features.h5"
    detector, model = out / "detector", out / "chan"
    demo.stage("scenes", "data-tools", "scenes", "--out", str(data), as_json=False)
    scores: dict[str, Any] = {}
    weights = "random"
    if not untrained:
        weights = demo.stage(
            "train detector", "butd", "train", "--config", "scenes", "--data", str(data), "--out", str(detector)
        )["weights"]
        scores = demo.stage(
            "evaluate detector",
            "butd",
            "evaluate",
            "--config",
            "scenes",
            "--data",
            str(data),
            "--weights",
            weights,
        )
    extraction = demo.stage(
        "extract", "extract-features", str(data / "images"), "--config", "scenes", "--weights", weights
    )
    training = demo.stage(
        "train chan", "chan", "train", "--config", "scenes", "--data", str(data), "--out", str(model)
    )
    test = demo.stage("evaluate chan", "chan", "evaluate", str(model), "--data", str(data), "--split", "test")
    picture = out / "retrieval.png"
    demo.stage(
        "explain", "chan", "explain", str(model), "--data", str(data), "--split", "test", "--out", str(picture),
        as_json=False,
    )  # fmt: skip
    return {
        "detector": scores or "untrained",
        "extraction": {
            "images": extraction["stored"],
            "images_per_second": round(extraction["images_per_second"], 2),
            "regions": extraction["regions"],
            "store_bytes": store.stat().st_size,
        },
        "dev": {"rsum": training["best_rsum"], "epoch": training["best_epoch"]},
        "test": test,
        "seconds": {**demo.seconds, "total": round(sum(demo.seconds.values()), 1)},
    }


def as_text(summary: dict[str, Any], out: Path) -> str:
    """The summary for the console."""
    lines = ["", "stage                seconds"]
    lines += [f"{name:<20} {value:>7.1f}" for name, value in summary["seconds"].items()]
    extraction, test, detector = summary["extraction"], summary["test"], summary["detector"]
    lines.append("")
    if isinstance(detector, dict):
        lines.append(
            f"detector: box AP50 {detector['ap50']:.3f}, attribute accuracy {detector['attribute_accuracy']:.3f}"
        )
    lines += [
        f"features: {extraction['images']} images, {extraction['regions']} regions, "
        f"{extraction['store_bytes'] / 1e6:.1f} MB, {extraction['images_per_second']:.1f} images/s",
        "",
        f"{'test':14}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}{'MeanR':>8}",
    ]
    for name, key in (("image to text", "i2t"), ("text to image", "t2i")):
        side = test[key]
        recalls = "".join(f"{side[metric]:7.1f}" for metric in ("r1", "r5", "r10"))
        lines.append(f"{name:14}{recalls}{side['medr']:7.0f}{side['meanr']:8.1f}")
    lines += [
        f"rsum {test['rsum']:.1f} of 600 (chance: about 32)",
        "",
        f"{out / 'summary.json'}   these figures",
        f"{out / 'retrieval.png'}  which region each word picked",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="an empty or absent folder")
    parser.add_argument("--untrained", action="store_true", help="use a random detector, for comparison")
    parser.add_argument("--record", action="store_true", help="add the figures to this machine's results")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.exists() and any(out.iterdir()):
        sys.exit(f"error: {out} is not empty; remove it or name another folder")
    summary = run(out, arguments.untrained)
    (out / "summary.json").write_text(json.dumps({**summary, "machine": machine()}, indent=2) + "\n")
    print(as_text(summary, out))
    if arguments.record:
        print(record("demo untrained" if arguments.untrained else "demo", summary))


if __name__ == "__main__":
    main()
