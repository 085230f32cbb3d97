"""How do CHAN, VSE-infinity and SCAN compare on the same features, captions and protocol?

    python -m benchmarks.models --data flickr8k_1k --page docs/results.md

Trains each model with each seed for 24 epochs, the last nine at a tenth of the learning rate, evaluates the
weights of its best epoch on dev and test, and the averages of SCAN's two directions; then times a training step of
all of them in turn. Only the models differ: data, augmentation, batches, learning rate, optimizer and loss are
those of the configuration `flickr8k`, the margin and what belongs to the model those of its authors. What the
results file has is not measured again, and an interrupted training is resumed. `--page` writes the table into the
page.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.flickr8k import chan
from benchmarks.recording import RESULTS
from chan.build import build_schedule, build_step, build_tokenizer, build_training_pairs
from chan.config import load_config
from chan.data.batches import epoch_order, training_batches
from chan.data.splits import open_split
from chan.keys import with_value
from chan.runs.record import TRAINING, load_record
from chan.training.distributed import Ranks
from chan.training.log import load_metrics
from data_tools.files import replace_file
from data_tools.machine import machine

SCHEDULE = ("loss.warmup_epochs=null", "train.epochs=24", "train.lr_decay_epoch=15", "train.patience=null")
ENCODERS_OF_SCAN = ("model.image.encoder=basic", "model.text.initial_range=0.1", "loss.margin=0.2")
SCAN = (*ENCODERS_OF_SCAN, "model.pooling=scan_lse")
MODELS: dict[str, tuple[str, ...]] = {
    "CHAN": (),
    "VSE-infinity": (
        *("model.coding=global", "model.pooling=gpo", "model.image.encoder=mlp"),
        *("model.text.initial_range=0.1", "loss.margin=0.2"),
    ),
    "SCAN t2i": (*SCAN, "model.coding=t2i", "model.lambda_lse=6", "model.lambda_softmax=9"),
    "SCAN i2t": (*SCAN, "model.coding=i2t", "model.lambda_lse=5", "model.lambda_softmax=4"),
    "CHAN with SCAN's encoders": ENCODERS_OF_SCAN,
}
PAIR = ("SCAN t2i", "SCAN i2t")
ENSEMBLE = "SCAN, average of both"
BEGIN, END = "<!-- written by `python -m benchmarks.models` -->\n", "\n<!-- end -->"


def scores_file(runs: Path, model: str, seed: int) -> Path:
    """Where the scores on test are kept."""
    return run_folder(runs, model, seed) / "test.npy"


def run_folder(runs: Path, model: str, seed: int) -> Path:
    """The run of a model and a seed."""
    return runs / f"{model.replace(' ', '_')}_{seed}"


def measure(runs: Path, model: str, seed: int, data: str) -> dict[str, Any]:
    """Train a model, or resume its run, and evaluate it."""
    run = run_folder(runs, model, seed)
    start = ["--resume"] if (run / "config.yaml").is_file() else ["--config", "flickr8k"]
    changes = [*SCHEDULE, *MODELS[model], f"train.seed={seed}"]
    trained = chan("train", "--data", data, "--out", str(run), *start, *changes)
    test = chan(
        *("evaluate", str(run), "--data", data, "--split", "test"),
        *("--scores", str(scores_file(runs, model, seed))),
    )
    return {
        "epochs": trained["epochs"],
        "best epoch": trained["best_epoch"],
        "dev rsum": trained["best_rsum"],
        "dev": [line["rsum"] for line in load_metrics(run) if line["kind"] == "dev"],
        "parameters": load_record(run, TRAINING)["parameters"],
        **recalls(test),
    }


def ensemble(runs: Path, seed: int, data: str) -> dict[str, Any]:
    """The recall of SCAN's two directions together."""
    files = [str(scores_file(runs, model, seed)) for model in PAIR]
    return recalls(chan("ensemble", *files, "--data", data, "--split", "test"))


def recalls(test: dict[str, Any]) -> dict[str, Any]:
    """The figures on test that are kept."""
    sides = {f"test {side} {at}": test[side][at] for side in ("i2t", "t2i") for at in ("r1", "r5", "r10")}
    return {"test rsum": test["rsum"], "chance": test["chance"]["rsum"], **sides}


def step_seconds(data: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of a training step of each model on one thread, one of each in turn; the first is not counted."""
    torch.set_num_threads(1)
    training, device = open_split(data, "train", None), torch.device("cpu")
    steps = {}
    for model, changes in MODELS.items():
        config = load_config("flickr8k", [*SCHEDULE, *changes])
        config = with_value(config, "model.image.dim", training.features.dim)
        tokenizer = build_tokenizer(config, data, training.split.captions)
        pairs, cache = build_training_pairs(config, training, tokenizer, device)
        order = epoch_order(len(pairs), config.train.batch_size or 0, config.train.seed, 0)
        batches = list(islice(training_batches(pairs, 0, order, 0, device, cache), repeats + 1))
        step = build_step(config, tokenizer, device, Ranks(), pretrained=True)
        step.model.train()
        steps[model] = (step, build_schedule(config).criterion(0), batches)
    seconds: dict[str, list[float]] = {model: [] for model in MODELS}
    for turn in range(repeats + 1):
        for model, (step, criterion, batches) in steps.items():
            begun = time.perf_counter()
            step(batches[turn], criterion, turn)
            seconds[model].append(time.perf_counter() - begun)
    return {model: found[1:] for model, found in seconds.items()}


def table(document: dict[str, Any]) -> str:
    """The figures as Markdown: mean and standard deviation over seeds."""
    runs = list(document["runs"].values())
    step = {model: statistics.median(found) for model, found in document.get("step seconds", {}).items()}
    head = "| model | seeds | dev rsum | test rsum | test i2t R@1 | test t2i R@1 | epochs | parameters | step |"
    lines = [head, f"|{' --- |' * 9}"]
    for model in (*MODELS, ENSEMBLE):
        found = [run for run in runs if run["model"] == model]
        if not found:
            continue
        best = ", ".join(str(run["best epoch"]) for run in found) if "best epoch" in found[0] else ""
        dev = spread(found, "dev rsum") if "dev rsum" in found[0] else ""
        parameters = f"{found[0]['parameters'] / 1e6:.2f} M" if "parameters" in found[0] else ""
        ratio = f"{step[model]:.2f} s, {step[model] / step['CHAN']:.2f}" if model in step else ""
        cells = [model, str(len(found)), dev, *(spread(found, name) for name in ON_TEST), best, parameters, ratio]
        lines.append(f"| {' | '.join(cells)} |")
    chance = sorted({run["chance"] for run in runs})
    return "\n".join([*lines, "", f"A random ranking comes to an rsum of {chance[0]:.1f}."])


ON_TEST = ("test rsum", "test i2t r1", "test t2i r1")


def spread(runs: Sequence[dict[str, Any]], name: str) -> str:
    """Mean, and for two or more the standard deviation."""
    values = [run[name] for run in runs]
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def with_table(page: str, document: dict[str, Any]) -> str:
    """A page with the current table between its markers; `ValueError` where it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + table(document) + end + after


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", required=True, help="the folder flickr8k_1k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2022, 2023, 2024])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each model; 0 times none")
    parser.add_argument("--runs", type=Path, default=Path("runs/models"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "models.json", help="JSON file, added to")
    parser.add_argument("--page", type=Path, help="Markdown page whose table is written")
    arguments = parser.parse_args()
    document = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"runs": {}}

    def keep(name: str, value: Any) -> None:
        document["runs"][name] = value
        document["machine"] = machine()
        replace_file(arguments.out, (json.dumps(document, indent=2) + "\n").encode())

    for seed in arguments.seeds:
        for model in arguments.models:
            if f"{model} {seed}" not in document["runs"]:
                found = measure(arguments.runs, model, seed, arguments.data)
                keep(f"{model} {seed}", {"model": model, "seed": seed, **found})
        both = all(f"{model} {seed}" in document["runs"] for model in PAIR)
        if both and f"{ENSEMBLE} {seed}" not in document["runs"]:
            found = ensemble(arguments.runs, seed, arguments.data)
            keep(f"{ENSEMBLE} {seed}", {"model": ENSEMBLE, "seed": seed, **found})
    if arguments.repeats:
        document["step seconds"] = step_seconds(Path(arguments.data), arguments.repeats)
        replace_file(arguments.out, (json.dumps(document, indent=2) + "\n").encode())
    print(table(document))
    if arguments.page is not None:
        replace_file(arguments.page, with_table(arguments.page.read_text(), document).encode())


if __name__ == "__main__":
    main()
