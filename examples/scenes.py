"""From pixels to recall on drawn scenes: the whole pipeline, each stage by its own command.

    python -m examples.scenes --out runs/demo                     # what `make demo` runs
    python -m examples.scenes --out runs/untrained --untrained    # the same with a detector of random weights
    python -m examples.scenes --out runs/quick --untrained --quick    # whether all commands run: a minute

It ends with OUT/summary.json (recall, scores of the detector, seconds of each stage), OUT/retrieval.png (the
region that each word of eight captions picked), and OUT/scenes.index, an index of the test scenes in which three
sentences are searched.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
PACKAGES = {"data-tools": "data_tools", "butd": "extract", "extract-features": "extract", "chan": "chan"}
QUERIES = ("a large red circle", "two small green squares", "a blue triangle to the left of a yellow star")


def program(command: str) -> list[str]:
    """The beginning of a command line: the installed command, or this checkout's where nothing is installed."""
    if (BIN / command).is_file():
        return [str(BIN / command)]
    name = command.replace("-", "_")
    return [sys.executable, "-c", f"from {PACKAGES[command]}.command_line import {name}; {name}()"]


class Pipeline:
    """Runs commands of the project and keeps the seconds of each stage.

    Attributes:
        seconds: wall time by stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, *command: str) -> Any:
        """Run a command and return what it printed: the document where `--json` is among its arguments, else text.

        A command that fails ends this program with its exit code; its error line is on the screen by then.
        """
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        start = time.perf_counter()
        done = subprocess.run([*program(command[0]), *command[1:]], stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(done.returncode)
        self.seconds[name] = round(time.perf_counter() - start, 1)
        if "--json" in command:
            return json.loads(done.stdout)
        print(done.stdout, end="")
        return done.stdout


def run(out: Path, untrained: bool, quick: bool = False) -> dict[str, Any]:
    """All stages, in the folder `out`; returns the figures that come to OUT/summary.json."""
    pipeline = Pipeline()
    data, detector, model = str(out / "data"), str(out / "detector"), str(out / "chan")
    picture = str(out / "retrieval.png")

    def stage(name: str, *command: str) -> Any:
        return pipeline.stage(name, *command, "--json")

    scenes = ("--config", "scenes", "--data", data)
    few, one = (("--train", "24", "--dev", "8", "--test", "8"), ("train.epochs=1",)) if quick else ((), ())
    pipeline.stage("scenes", "data-tools", "scenes", "--out", data, *few)
    weights, scores = "random", {}
    if not untrained:
        weights = stage("train detector", "butd", "train", *scenes, "--out", detector)["weights"]
        scores = stage("evaluate detector", "butd", "evaluate", *scenes, "--weights", weights)
    images = f"{data}/images"
    extraction = stage("extract", "extract-features", images, "--config", "scenes", "--weights", weights)
    training = stage("train chan", "chan", "train", *scenes, "--out", model, *one)
    test = stage("evaluate chan", "chan", "evaluate", model, "--data", data, "--split", "test")
    pipeline.stage("explain", "chan", "explain", model, "--data", data, "--split", "test", "--out", picture)
    index, ids = str(out / "scenes.index"), f"{data}/precomp/test_ids.txt"
    pipeline.stage("index", "chan", "index", model, "--data", data, "--ids", ids, "--out", index)
    pipeline.stage("search", "chan", "search", index, *QUERIES, "-k", "3", "--out", str(out / "found.html"))
    return {
        "detector": scores or "untrained",
        "extraction": {
            "images": extraction["stored"],
            "images_per_second": round(extraction["images_per_second"], 2),
            "regions": extraction["regions"],
            "store_bytes": extraction["bytes"],
        },
        "dev": {"rsum": training["best_rsum"], "epoch": training["best_epoch"]},
        "test": test,
        "seconds": {**pipeline.seconds, "total": round(sum(pipeline.seconds.values()), 1)},
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
        f"rsum {test['rsum']:.1f} of 600 (chance: {test['chance']['rsum']:.1f})",
        "",
        f"{out / 'summary.json'}   these figures",
        f"{out / 'retrieval.png'}  the region that each word picked",
        f"{out / 'found.html'}     three sentences and the scenes that they found",
        "",
        f"To search these scenes in the browser: chan serve {out / 'scenes.index'}",
    ]
    return "\n".join(lines)


def run_to_summary(out: Path, untrained: bool, quick: bool = False) -> dict[str, Any]:
    """Run the pipeline in a new folder, write OUT/summary.json and print the summary; returns the figures.

    Raises:
        SystemExit: the folder is not empty, or a stage failed.
    """
    if out.exists() and any(out.iterdir()):
        sys.exit(f"error: {out} is not empty; remove it or name another folder")
    summary = run(out, untrained, quick)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(as_text(summary, out))
    return summary


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this example; the benchmark of the same pipeline adds one."""
    options = argparse.ArgumentParser(prog=program, description=(__doc__ or "").split("\n")[0])
    options.add_argument("--out", type=Path, required=True, help="an empty or absent folder")
    options.add_argument("--untrained", action="store_true", help="use a random detector, for comparison")
    options.add_argument("--quick", action="store_true", help="few scenes, one epoch: to see that everything runs")
    return options


if __name__ == "__main__":
    arguments = parser("python -m examples.scenes").parse_args()
    run_to_summary(arguments.out, arguments.untrained, arguments.quick)
