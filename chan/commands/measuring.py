"""Commands that measure and explain: `chan evaluate`, `ensemble`, `compare` and `explain`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from chan.choices import PrecisionName
from chan.options import BootstrapSeed, Cxc, Data, Eccv, Features, Folds, RunFolder, SplitName, app
from data_tools.console import print_json
from data_tools.errors import UsageError
from data_tools.options import (
    INPUT,
    OUTPUT,
    RUN,
    Device,
    Json,
    argument,
    command,
    option,
)

if TYPE_CHECKING:
    from chan.evaluation.evaluate import Evaluation
    from data_tools.captions.splits import Split


@command(app, "chan evaluate runs/chan --data data/scenes --split test")
def evaluate(
    run: RunFolder,
    *,
    data: Data,
    split: SplitName,
    features: Features = None,
    folds: Folds = 1,
    eccv: Eccv = False,
    cxc: Cxc = None,
    precision: Annotated[
        PrecisionName, option(RUN, "Arithmetic of the products of regions and words.")
    ] = PrecisionName.fp32,
    device: Device = "auto",
    seed: BootstrapSeed = 0,
    scores: Annotated[
        Path | None,
        option(
            OUTPUT, "Also write the scores, a float32 array (images, captions), to this .npy file.", metavar="FILE"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            OUTPUT,
            "Also write a report into this folder: recall, ranks, the best and the worst queries as pictures.",
            metavar="DIR",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the recall of a run's best weights on a split."""
    import numpy as np

    from chan.evaluation import coco_metrics, recall
    from chan.evaluation import evaluate as evaluation
    from chan.evaluation.cxc import SimilarItems
    from chan.runs.card import record_recall
    from chan.runs.folder import open_run
    from data_tools.devices import resolve_device
    from data_tools.files import replacing
    from data_tools.weights.hub import is_hub

    where = resolve_device(device)
    model, tokenizer, opened = open_run(run, where, data, split, features)
    coco = coco_metrics.CocoTest.from_split(opened.split) if eccv or cxc is not None else None
    similar = None if cxc is None or coco is None else SimilarItems.read(cxc, opened.split, coco)
    regions, words = evaluation.encode(model, opened, tokenizer, where)
    more: dict[str, Any] = {}
    scorer = evaluation.embedding_blocks(model, regions, words, precision.value)
    if scores is not None or coco is not None:
        matrix = evaluation.score(model, regions, words, precision.value)
        scorer = recall.matrix_blocks(matrix)
        if scores is not None:
            with replacing(scores) as temporary, temporary.open("wb") as file:
                np.save(file, matrix.cpu().numpy())
        if coco is not None:
            more = coco.measure(matrix)
    if similar is not None:
        for name, sides in similar.measure(model, regions, words, precision.value).items():
            more[name] |= sides
    result = evaluation.evaluate(opened.split, folds, scorer, seed)
    if out is not None:
        from chan.retrieval import report
        from chan.retrieval.explanation import explainer_or_reason
        from chan.retrieval.retriever import Retriever

        retriever = Retriever(model, tokenizer, opened.features.dim, where)
        explainer = explainer_or_reason(retriever, opened, data, regions)
        title = f"{run.name} on {data.name}, {split}"
        report.write_report(out, title, result, evaluation_document(split, result, more), explainer)
    _report(opened.split, result, more, as_json)
    if not is_hub(run):
        record_recall(run, data, evaluation_document(split, result, more))


@command(app, "chan ensemble gru.npy bert.npy --data data/f30k --split test")
def ensemble(
    scores: Annotated[list[Path], argument("SCORES", "Two or more files that chan evaluate --scores wrote.")],
    *,
    data: Data,
    split: SplitName,
    folds: Folds = 1,
    eccv: Eccv = False,
    seed: BootstrapSeed = 0,
    as_json: Json = False,
) -> None:
    """Measure the recall of the average of several models' scores."""
    if len(scores) < 2:
        raise UsageError("an ensemble needs the scores of two models or more")
    from chan.evaluation import coco_metrics, recall
    from chan.evaluation import evaluate as evaluation
    from data_tools.captions.splits import load_split
    from data_tools.layout import precomp_folder

    loaded = load_split(precomp_folder(data), split)
    coco = coco_metrics.CocoTest.from_split(loaded) if eccv else None
    matrix = evaluation.load_scores(scores[0], loaded)
    for path in scores[1:]:
        matrix += evaluation.load_scores(path, loaded)
    matrix /= len(scores)
    result = evaluation.evaluate(loaded, folds, recall.matrix_blocks(matrix), seed)
    _report(loaded, result, {} if coco is None else coco.measure(matrix), as_json)


@command(app, "chan compare runs/chan runs/scan --data data/f30k --split test")
def compare(
    runs: Annotated[list[Path], argument("RUN", "Two or more run folders.")],
    *,
    data: Data,
    split: SplitName,
    features: Features = None,
    folds: Folds = 1,
    device: Device = "auto",
    seed: BootstrapSeed = 0,
    out: Annotated[
        Path | None,
        option(
            OUTPUT,
            "Also write this picture (FILE.png): captions that the first two models rank most differently.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare models on one split: recall with intervals, and the difference of each from the first."""
    if len(runs) < 2:
        raise UsageError("a comparison needs two runs or more")
    if out is not None and out.suffix != ".png":
        raise UsageError(f"--out {out}: expected a picture, FILE.png")
    from chan.evaluation import comparison
    from chan.retrieval.comparing import Comparison
    from data_tools.devices import resolve_device

    compared = Comparison(runs, data, split, features, resolve_device(device))
    results, names = compared.evaluate(folds, seed), compared.names
    if out is not None:
        compared.draw_differences(results, out)
    differences = [comparison.difference(results[0], other, seed) for other in results[1:]]
    if as_json:
        models = {
            name: evaluation_document(split, result, {}) for name, result in zip(names, results, strict=True)
        }
        others = dict(zip(names[1:], map(asdict, differences), strict=True))
        print_json({"models": models, "difference_from": names[0], "differences": others})
        return
    print(comparison.as_table(names, results))
    for name, found in zip(names[1:], differences, strict=True):
        low, high = found.interval
        print(f"{name} - {names[0]}: rsum {found.rsum:+.1f} (95 %: {low:+.1f} to {high:+.1f}; p {found.p:.3f})")


@command(app, "chan explain runs/chan --data data/scenes --split test --out explained.png")
def explain(
    run: RunFolder,
    *,
    data: Data,
    split: SplitName,
    features: Features = None,
    caption: Annotated[
        list[str] | None,
        option(
            INPUT, "Explain this sentence; may be repeated.", metavar="TEXT", show_default="captions of the split"
        ),
    ] = None,
    image: Annotated[
        str | None,
        option(
            INPUT,
            "Show this image of the split, and explain its captions unless --caption is given.",
            metavar="ID",
        ),
    ] = None,
    captions: Annotated[
        int, option(OUTPUT, "Number of captions, evenly spaced over the split.", metavar="N", min=1)
    ] = 8,
    images: Annotated[int, option(OUTPUT, "Number of best images per caption.", metavar="N", min=1)] = 3,
    device: Device = "auto",
    out: Annotated[Path, option(OUTPUT, "Picture to write, FILE.png.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Draw the best images for captions, and the region that each content word picked in them."""
    if out.suffix != ".png":
        raise UsageError(f"--out {out}: expected a picture, FILE.png")
    from chan.evaluation import evaluate as evaluation
    from chan.retrieval import drawing as pictures
    from chan.retrieval import explanation
    from chan.retrieval.retriever import Retriever
    from chan.runs.folder import open_run
    from data_tools.devices import resolve_device

    where = resolve_device(device)
    model, tokenizer, opened = open_run(run, where, data, split, features)
    own = None if image is None else explanation.position_of(opened.split, image)
    files = explanation.image_files(data, opened)
    regions, _ = evaluation.encode(model, opened, tokenizer, where)
    retriever = Retriever(model, tokenizer, opened.features.dim, where)
    explainer = explanation.Explainer(retriever, opened, files, regions)
    shown = images if own is None else [own]
    if caption:
        rows = [explainer.explain(text, own, shown) for text in caption]
    else:
        rows = explainer.of_captions(explanation.chosen_captions(opened.split, own, captions), shown)
    pictures.save(pictures.draw(rows), out)
    if as_json:
        print_json({"file": str(out), "captions": len(rows)})
    else:
        print(f"{len(rows)} captions: {out}")


def evaluation_document(split: str, result: "Evaluation", more: dict[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation as plain data; `more` are those of ECCV Caption."""
    from chan.evaluation import evaluate as evaluation

    document = {"split": split, "folds": result.folds, **evaluation.as_document(result.recall)}
    by_chance = {"rsum": result.chance.rsum, **asdict(result.chance)}
    document |= {"intervals": asdict(result.intervals), "chance": by_chance}
    return {**document, **({"eccv_caption": more} if more else {})}


def _report(split: "Split", result: "Evaluation", more: dict[str, Any], as_json: bool) -> None:
    from chan.evaluation import evaluate as evaluation

    if as_json:
        print_json(evaluation_document(split.name, result, more))
        return
    if result.folds > 1:
        print(f"average of {result.folds} folds of {len(split.image_ids) // result.folds} images")
    print(evaluation.as_table(result.recall, result.chance, result.intervals))
    for name, sides in more.items():
        print(f"{name:16}" + "".join(f"{side:>6} {value:5.1f}" for side, value in sides.items()))
