"""The command `chan`: parses, calls, prints."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from chan import evaluation, explanation, pictures, runs, training
from chan.config import Config, differing_keys, load_config, override
from chan.recall import RetrievalRecall
from chan.splits import check_dim, open_split
from data_tools.console import entry_point, print_json
from data_tools.devices import resolve_device
from data_tools.errors import UsageError
from data_tools.files import replacing

app = typer.Typer(
    help="Train CHAN on region features and captions, and measure retrieval.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[Path, typer.Option(help="Folder of the data set, with precomp/ in it.", show_default=False)]
Features = Annotated[
    Path | None, typer.Option(help="Features file, or a folder that holds it.", show_default="in DATA")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a summary.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
ANY_SPLIT = typer.Option(help="Split: dev, test, testall, ...", show_default=False)


@app.command("train")
def train(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.", show_default=False)],
    config: Annotated[
        str | None, typer.Option(help="A shipped configuration or a YAML file.", show_default=False)
    ] = None,
    features: Features = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in RUN.")] = False,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="The same as train.seed=N.", show_default=False)] = None,
    as_json: Json = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Configuration keys.")
    ] = None,
) -> None:
    """Train a model; validates on the split dev after every epoch.

    Example: chan train --config scenes --data runs/scenes --out runs/chan train.epochs=10
    """
    changes = [*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])]
    chosen = _resumed_config(out, config, changes) if resume else _new_config(config, changes)
    done = training.train(out, chosen, data, features, resolve_device(device), resume)
    if as_json:
        document = {"run": str(out), "epochs": done.epoch, "steps": done.step}
        print_json({**document, "best_rsum": done.best_rsum, "best_epoch": done.best_epoch + 1})
    else:
        print(f"best dev rsum {done.best_rsum:.1f} after epoch {done.best_epoch + 1} of {done.epoch}: {out}")


@app.command("evaluate")
def evaluate(
    run: RunFolder,
    data: Data,
    split: Annotated[str, ANY_SPLIT],
    features: Features = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write the (images, captions) scores here.", show_default=False)
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure recall of a run's best weights on a split.

    Example: chan evaluate runs/chan --data runs/scenes --split test
    """
    where = resolve_device(device)
    model, dim, reader = runs.load_best_model(run, where)
    opened = open_split(data, split, features)
    check_dim(opened, dim)
    matrix = evaluation.score_split(model, opened, reader, where)
    result = evaluation.recall_of(matrix, opened)
    if scores is not None:
        with replacing(scores) as temporary, temporary.open("wb") as file:
            np.save(file, matrix.cpu().numpy())
    if as_json:
        print_json({"split": split, **evaluation.as_document(result)})
    else:
        print(_table(result))


@app.command("explain")
def explain(
    run: RunFolder,
    data: Data,
    split: Annotated[str, ANY_SPLIT],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Picture to write.", show_default=False)],
    features: Features = None,
    device: Device = "auto",
) -> None:
    """Draw, for eight captions, the best three images and the region that each content word picked.

    Example: chan explain runs/chan --data runs/scenes --split test --out explained.png
    """
    where = resolve_device(device)
    model, dim, reader = runs.load_best_model(run, where)
    opened = open_split(data, split, features)
    check_dim(opened, dim)
    rows = explanation.explain(model, opened, reader, explanation.image_files(data, opened), where)
    pictures.save(pictures.draw(rows), out)
    print(f"{len(rows)} captions: {out}")


def _new_config(spec: str | None, changes: list[str]) -> Config:
    if spec is None:
        raise UsageError("--config is needed for a new run")
    return load_config(spec, changes)


def _resumed_config(folder: Path, spec: str | None, changes: list[str]) -> Config:
    """The run's configuration; what else is asked for may differ only in what leaves its epochs alike."""
    stored = runs.load_run_config(folder)
    asked = override(stored if spec is None else load_config(spec), changes)
    if asked.model.image.dim is None:
        asked.model.image.dim = stored.model.image.dim
    free = {"train.epochs", "data.workers"}
    changed = [key for key in differing_keys(stored, asked) if key not in free]
    if changed:
        raise UsageError(f"{folder}: a resumed run keeps its configuration, but {changed[0]} differs")
    return asked


def _table(result: RetrievalRecall) -> str:
    lines = [f"{'':14}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}{'MeanR':>8}"]
    for name, side in (("image to text", result.i2t), ("text to image", result.t2i)):
        recalls = f"{side.r1:7.1f}{side.r5:7.1f}{side.r10:7.1f}"
        lines.append(f"{name:14}{recalls}{side.medr:7.0f}{side.meanr:8.1f}")
    return "\n".join([*lines, f"rsum {result.rsum:.1f}"])


chan = entry_point(app)
