"""How well do the recipes retrieve on 1,000 photographs, and how much does a seed matter?

    python -m benchmarks.flickr8k --data flickr8k_1k --bert FOLDER --out benchmarks/results/flickr8k.json

Trains each recipe with each seed, evaluates the best weights on dev and test, and prints mean and spread. Figures
that the output file already has for a recipe, seed and number of epochs are not measured again, and an interrupted
run is resumed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from data_tools.machine import machine
from examples.scenes import program

SUM = ("loss.warmup_epochs=15", "train.epochs=15", "train.lr_decay_epoch=10")
HARDEST = ("loss.warmup_epochs=8", "train.epochs=14", "train.lr_decay_epoch=11")
RECIPES: dict[str, tuple[str, ...]] = {
    "sum": SUM,
    "hardest": HARDEST,
    "hardest_unmasked": (*HARDEST, "loss.mask_duplicates=false"),
    "bert": (
        "loss.warmup_epochs=6",
        "train.epochs=6",
        "train.lr_decay_epoch=4",
        "model.text.encoder=bert",
        "model.image.encoder=basic",
        "model.pooling=mean",
        "train.weight_decay=1e-4",
    ),
}
MEASURES = (
    *("dev rsum", "test rsum", "test i2t r1", "test i2t r5", "test i2t r10"),
    *("test t2i r1", "test t2i r5", "test t2i r10"),
)


def chan(*arguments: str) -> Any:
    """What a `chan` command printed as JSON; one that fails ends the benchmark."""
    done = subprocess.run([*program("chan"), *arguments, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def measure(run: Path, data: str, changes: list[str]) -> dict[str, Any]:
    """Train in the folder `run`, or resume the run in it, and evaluate."""
    start = ["--resume"] if (run / "config.yaml").is_file() else ["--config", "flickr8k"]
    trained = chan("train", "--data", data, "--out", str(run), *start, *changes)
    found: dict[str, Any] = {"best_epoch": trained["best_epoch"], "dev rsum": trained["best_rsum"]}
    test = chan("evaluate", str(run), "--data", data, "--split", "test")
    found["test rsum"] = test["rsum"]
    for side in ("i2t", "t2i"):
        found |= {f"test {side} {at}": test[side][at] for at in ("r1", "r5", "r10")}
    return found


def table(runs: dict[str, dict[str, Any]], recipes: list[str]) -> str:
    """Mean of every measure and, for two seeds or more, the standard deviation."""
    lines = [f"{'recipe':18}{'seeds':>6}" + "".join(f"{name:>16}" for name in MEASURES)]
    for recipe in recipes:
        found = [run for run in runs.values() if run["recipe"] == recipe]
        if not found:
            continue
        cells = []
        for name in MEASURES:
            values = [run[name] for run in found]
            spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"{recipe:18}{len(found):>6}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flickr8k", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", required=True, help="the folder flickr8k_1k")
    parser.add_argument("--bert", help="name or folder of the BERT of the recipe `bert`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2022, 2023, 2024])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--epochs", type=int, help="instead of the recipe's, to try the script")
    parser.add_argument("--runs", type=Path, default=Path("runs/flickr8k"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the figures, added to")
    arguments = parser.parse_args()
    if "bert" in arguments.recipes and not arguments.bert:
        parser.error("the recipe bert needs --bert NAME|FOLDER")
    document = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"runs": {}}
    for recipe in arguments.recipes:
        for seed in arguments.seeds:
            changes = [*RECIPES[recipe], f"train.seed={seed}"]
            changes += [f"model.text.bert={arguments.bert}"] if recipe == "bert" else []
            changes += [f"train.epochs={arguments.epochs}"] if arguments.epochs else []
            name = f"{recipe} {seed}" + (f" {arguments.epochs}" if arguments.epochs else "")
            if name in document["runs"]:
                continue
            found = measure(arguments.runs / name.replace(" ", "_"), arguments.data, changes)
            document["runs"][name] = {"recipe": recipe, "seed": seed, **found}
            document["machine"] = machine()
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(document, indent=2) + "\n")
    print(table(document["runs"], arguments.recipes))


if __name__ == "__main__":
    main()
