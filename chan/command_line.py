"""The command `chan`: parses, calls, prints."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from chan.config import Config, PrecisionName, load_config
from chan.data.splits import check_dim, open_split
from chan.evaluation import coco_metrics, recall
from chan.evaluation import evaluate as evaluation
from chan.retrieval import drawing as pictures
from chan.retrieval import explanation
from chan.runs import folder as runs
from chan.runs import importing
from chan.runs.provenance import check_provenance
from chan.runs.train import resumed_config
from chan.runs.train import train as train_run
from chan.training import checkpoints, distributed
from chan.training.step import PRODUCTS
from data_tools.captions.splits import Split, load_split
from data_tools.console import entry_point, print_json
from data_tools.devices import resolve_device
from data_tools.errors import UsageError
from data_tools.files import replacing
from data_tools.layout import precomp_folder

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
Folds = Annotated[int, typer.Option(min=1, help="Consecutive parts of the images to average over.")]
Eccv = Annotated[bool, typer.Option("--eccv", help="Add CxC and ECCV Caption metrics (COCO's testall).")]
BootstrapSeed = Annotated[int, typer.Option(min=0, help="Of the resampling behind the 95 % intervals.")]
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

    On several GPUs: torchrun --nproc-per-node 4 -m chan train ...

    Example: chan train --config scenes --data runs/scenes --out runs/chan train.epochs=10
    """
    changes = [*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])]
    chosen = resumed_config(out, config, changes) if resume else _new_config(config, changes)
    done = train_run(out, chosen, data, features, resolve_device(device), resume)
    if not distributed.is_main_process():
        return
    if as_json:
        document = {"run": str(out), "epochs": done.epoch, "steps": done.step}
        print_json({**document, "best_rsum": done.best_rsum, "best_epoch": done.best_epoch + 1})
    else:
        best = done.best_epoch + 1
        print(f"best dev rsum {done.best_rsum:.1f} after epoch {best} of {done.epoch}: {out / checkpoints.BEST}")


@app.command("evaluate")
def evaluate(
    run: RunFolder,
    data: Data,
    split: Annotated[str, ANY_SPLIT],
    features: Features = None,
    folds: Folds = 1,
    scores: Annotated[
        Path | None, typer.Option(help="Write the (images, captions) scores here.", show_default=False)
    ] = None,
    eccv: Eccv = False,
    precision: Annotated[
        PrecisionName, typer.Option(help="Of the products of regions and words.")
    ] = PrecisionName.fp32,
    device: Device = "auto",
    seed: BootstrapSeed = 0,
    as_json: Json = False,
) -> None:
    """Measure recall of a run's best weights on a split.

    Example: chan evaluate runs/chan --data runs/scenes --split test
    """
    where = resolve_device(device)
    model, dim, tokenizer = runs.load_best_model(run, where)
    opened = open_split(data, split, features)
    check_dim(opened, dim)
    check_provenance(run, opened)
    coco = coco_metrics.CocoTest.of(opened.split) if eccv else None
    regions, words = evaluation.encode(model, opened, tokenizer, where)
    products, more = PRODUCTS[precision.value], {}
    scorer = evaluation.of_embeddings(model, regions, words, products)
    if scores is not None or coco is not None:
        matrix = evaluation.score(model, regions, words, products)
        scorer = recall.of_matrix(matrix)
        if scores is not None:
            with replacing(scores) as temporary, temporary.open("wb") as file:
                np.save(file, matrix.cpu().numpy())
        if coco is not None:
            more = coco.measure(matrix)
    _report(opened.split, evaluation.evaluate(opened.split, folds, scorer, seed), more, as_json)


@app.command("ensemble")
def ensemble(
    scores: Annotated[
        list[Path], typer.Argument(metavar="A.npy B.npy ...", help="Scores that `evaluate --scores` wrote.")
    ],
    data: Data,
    split: Annotated[str, ANY_SPLIT],
    folds: Folds = 1,
    eccv: Eccv = False,
    seed: BootstrapSeed = 0,
    as_json: Json = False,
) -> None:
    """Measure recall of the average of several models' scores.

    Example: chan ensemble gru.npy bert.npy --data data/f30k --split test
    """
    if len(scores) < 2:
        raise UsageError("an ensemble needs the scores of two models or more")
    loaded = load_split(precomp_folder(data), split)
    coco = coco_metrics.CocoTest.of(loaded) if eccv else None
    matrix = evaluation.load_scores(scores[0], loaded)
    for path in scores[1:]:
        matrix += evaluation.load_scores(path, loaded)
    matrix /= len(scores)
    result = evaluation.evaluate(loaded, folds, recall.of_matrix(matrix), seed)
    _report(loaded, result, {} if coco is None else coco.measure(matrix), as_json)


@app.command("import")
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT.pth", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run to make.", show_default=False)],
    vocab: Annotated[
        Path | None, typer.Option(help="SCAN's vocabulary that it was trained with (bigru).", show_default=False)
    ] = None,
    bert: Annotated[
        str | None, typer.Option(help="Name or folder of the BERT it began with (bert).", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the public CHAN code into a run folder.

    Example: chan import model_best.pth --vocab data/vocab/f30k_precomp_vocab.json --out runs/published
    """
    imported = importing.import_checkpoint(checkpoint, vocab, bert, out)
    if as_json:
        print_json({"run": str(out), "epoch": imported.epoch, "best_rsum": imported.best_rsum})
    else:
        print(f"checkpoint of epoch {imported.epoch}, best rsum {imported.best_rsum:.1f}: {out}")


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
    model, dim, tokenizer = runs.load_best_model(run, where)
    opened = open_split(data, split, features)
    check_dim(opened, dim)
    check_provenance(run, opened)
    rows = explanation.explain(model, opened, tokenizer, explanation.image_files(data, opened), where)
    pictures.save(pictures.draw(rows), out)
    print(f"{len(rows)} captions: {out}")


def _new_config(spec: str | None, changes: list[str]) -> Config:
    if spec is None:
        raise UsageError("--config is needed for a new run")
    return load_config(spec, changes)


def _report(split: Split, result: evaluation.Evaluation, more: dict[str, Any], as_json: bool) -> None:
    if as_json:
        document = {"split": split.name, "folds": result.folds, **evaluation.as_document(result.recall)}
        print_json({**document, "intervals": asdict(result.intervals), **({"eccv_caption": more} if more else {})})
        return
    if result.folds > 1:
        print(f"average of {result.folds} folds of {len(split.image_ids) // result.folds} images")
    print(evaluation.as_table(result.recall, result.intervals))
    for name, sides in more.items():
        print(f"{name:16}" + "".join(f"{side:>6} {value:5.1f}" for side, value in sides.items()))


chan = entry_point(app)
