"""The command `chan`: parses, calls, prints.

Each command imports what it needs in its body, so that `--help` and a usage error import no library of arithmetic.
"""

import inspect
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from chan.choices import PrecisionName, SearchEngine
from data_tools.console import entry_point, print_json
from data_tools.errors import UsageError
from data_tools.options import (
    INPUT,
    OUTPUT,
    RUN,
    Device,
    Json,
    Resume,
    argument,
    command,
    config_option,
    flag,
    make_group,
    option,
    seed_option,
)

if TYPE_CHECKING:
    from chan.config import Config
    from chan.evaluation.evaluate import Evaluation
    from data_tools.captions.splits import Split

METRICS = "Metrics"  # a group of the help

app = make_group("chan", "Train CHAN on region features and captions, and measure and explain its retrieval.")

RunFolder = Annotated[
    Path, argument("RUN", "Run folder, written by chan train or chan import, or hf://OWNER/NAME@REVISION.")
]
_DATA = option(INPUT, "Data folder, with splits and features in its precomp/ folder.", metavar="DIR")
Data = Annotated[Path, _DATA]
DataOrNone = Annotated[Path | None, _DATA]
Features = Annotated[
    Path | None,
    option(
        INPUT,
        "Features: an HDF5 store, a .npy file of SCAN, or a folder that holds one of them.",
        metavar="FILE|DIR",
        show_default="the features in --data",
    ),
]
SplitName = Annotated[str, option(INPUT, "Name of the split, for instance dev, test or testall.", metavar="NAME")]
Folds = Annotated[
    int,
    option(
        METRICS,
        "Average the metrics over this many consecutive parts of the images; 5 on testall is COCO's 1K protocol.",
        metavar="N",
        min=1,
    ),
]
Eccv = Annotated[bool, flag(METRICS, "Add the metrics of CxC and ECCV Caption (COCO's testall only).", "--eccv")]
BootstrapSeed = Annotated[int, seed_option("the bootstrap resampling behind the 95 % intervals")]


@command(
    app,
    "chan train --config scenes --data data/scenes --out runs/chan train.epochs=10",
    resuming="--resume continues after the last complete epoch",
)
def train(
    overrides: Annotated[
        list[str] | None,
        argument("KEY=VALUE", "Values that replace those of the configuration, for instance train.lr=1e-4."),
    ] = None,
    *,
    data: Data,
    features: Features = None,
    config: Annotated[str | None, config_option("chan", INPUT, " Required for a new run.")] = None,
    weights: Annotated[
        Path | None, option(INPUT, "Start from the best weights and the vocabulary of this run.", metavar="RUN")
    ] = None,
    resume: Resume = False,
    device: Device = "auto",
    seed: Annotated[
        int | None,
        seed_option(
            "the initial weights, the order and the augmentation", show_default="train.seed of the configuration"
        ),
    ] = None,
    out: Annotated[Path, option(OUTPUT, "Run folder to write.", metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Train a model; the split dev is measured after every epoch and the best weights are kept.

    On several GPUs: torchrun --nproc-per-node 4 -m chan train ...
    """
    if resume and weights is not None:
        raise UsageError("--weights starts a new run; --resume continues one")
    changes = [*(overrides or []), *([] if seed is None else [f"train.seed={seed}"])]
    chosen = _chosen_config(out, config, changes, resume)
    from chan.runs.train import train as train_run
    from chan.training import checkpoints, distributed
    from data_tools.devices import resolve_device

    done = train_run(out, chosen, data, features, resolve_device(device), resume, weights)
    if not distributed.is_main_process():
        return
    if as_json:
        document = {"run": str(out), "epochs": done.epoch, "steps": done.step}
        print_json({**document, "best_rsum": done.best_rsum, "best_epoch": done.best_epoch + 1})
    else:
        best = done.best_epoch + 1
        print(f"best dev rsum {done.best_rsum:.1f} after epoch {best} of {done.epoch}: {out / checkpoints.BEST}")


@command(app, "chan evaluate runs/chan --data data/scenes --split test")
def evaluate(
    run: RunFolder,
    *,
    data: Data,
    split: SplitName,
    features: Features = None,
    folds: Folds = 1,
    eccv: Eccv = False,
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
    from chan.runs.card import record_recall
    from chan.runs.folder import open_run
    from chan.runs.hub import is_hub
    from data_tools.devices import resolve_device
    from data_tools.files import replacing

    where = resolve_device(device)
    model, tokenizer, opened = open_run(run, where, data, split, features)
    coco = coco_metrics.CocoTest.from_split(opened.split) if eccv else None
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


@command(
    app,
    "chan import model_best.pth --vocab data/vocab/f30k_precomp_vocab.json --out runs/published",
    name="import",
)
def import_checkpoint(
    checkpoint: Annotated[Path, argument("CHECKPOINT", "Checkpoint (.pth) of the public CHAN code.")],
    *,
    vocab: Annotated[
        Path | None,
        option(INPUT, "SCAN's vocabulary file of the training; required for a BiGRU.", metavar="FILE"),
    ] = None,
    bert: Annotated[
        str | None,
        option(
            INPUT,
            "Name at Hugging Face, or folder, of the pretrained BERT; required for a BERT.",
            metavar="NAME|DIR",
        ),
    ] = None,
    out: Annotated[Path, option(OUTPUT, "Run folder to write.", metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the public CHAN code into a run folder."""
    from chan.runs import importing

    imported = importing.import_checkpoint(checkpoint, vocab, bert, out)
    if as_json:
        print_json({"run": str(out), "epoch": imported.epoch, "best_rsum": imported.best_rsum})
    else:
        print(f"checkpoint of epoch {imported.epoch}, best rsum {imported.best_rsum:.1f}: {out}")


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


@command(app, "chan index runs/chan --data data/scenes --out runs/scenes.index")
def index(
    run: Annotated[
        Path | None, argument("[RUN]", "Run folder; needed for a new index, which keeps a copy of its model.")
    ] = None,
    *,
    data: DataOrNone = None,
    features: Features = None,
    ids: Annotated[
        Path | None,
        option(INPUT, "Index only the images with the ids in this file, one id per line.", metavar="FILE"),
    ] = None,
    images: Annotated[
        Path | None,
        option(INPUT, "Folder of the pictures.", metavar="DIR", show_default="the images folder in --data"),
    ] = None,
    add: Annotated[bool, flag(RUN, "Add the images that the index does not hold yet.", "--add")] = False,
    remove: Annotated[
        list[str] | None, option(RUN, "Remove the image with this id; may be repeated.", metavar="ID")
    ] = None,
    compact: Annotated[
        bool, flag(RUN, "Rewrite the index as one file without the removed images.", "--compact")
    ] = False,
    device: Device = "auto",
    out: Annotated[Path, option(OUTPUT, "Index to make or change.", metavar="INDEX")],
    as_json: Json = False,
) -> None:
    """Make an index of the images of a features file, to search in; captions are not needed.

    With --add, --remove or --compact an index is changed; killed at any moment it stays whole.
    """
    if data is None and not (remove or compact):
        raise UsageError("--data is needed: the folder with the features to index")
    if run is None and data is not None and not add:
        raise UsageError("RUN is needed for a new index; --add adds to the one in --out")
    from chan.retrieval import indexing

    done = None
    if data is not None:
        collection = indexing.open_collection(data, features, images, ids)
        if add:
            done = indexing.add_to_index(out, collection, device)
        else:
            assert run is not None
            done = indexing.create_index(out, run, collection, device)
    if remove:
        done = indexing.remove_from_index(out, remove)
    if compact:
        done = indexing.compact_index(out)
    assert done is not None
    if as_json:
        print_json({"index": str(out), **{k: v for k, v in asdict(done).items() if k != "folder"}})
    else:
        print(done)


@command(app, 'chan search runs/scenes.index "a red circle left of a blue square"')
def search(
    index: Annotated[Path, argument("INDEX", "Index, made by chan index.")],
    queries: Annotated[list[str] | None, argument("[QUERY]...", "Sentences to search for.")] = None,
    *,
    queries_file: Annotated[
        Path | None, option(INPUT, "Text file with one sentence per line.", "--queries", metavar="FILE")
    ] = None,
    image: Annotated[
        str | None,
        option(INPUT, "Search by this image: goes with --region, --at or --captions.", metavar="ID"),
    ] = None,
    region: Annotated[
        int | None, option(INPUT, "Find images that hold a region like this one of --image.", metavar="N", min=0)
    ] = None,
    at: Annotated[
        str | None,
        option(INPUT, "The same for the smallest region of --image at a point, in pixels.", metavar="X,Y"),
    ] = None,
    captions: Annotated[
        Path | None,
        option(INPUT, "Find the sentences that fit --image best in this file, one per line.", metavar="FILE"),
    ] = None,
    k: Annotated[int, option(OUTPUT, "Number of results.", "-k", metavar="N", min=1)] = 10,
    out: Annotated[
        Path | None,
        option(OUTPUT, "Also write the results to this page (FILE.html) or picture (FILE.png).", metavar="FILE"),
    ] = None,
    exact: Annotated[
        bool, flag(RUN, "Score every image, also where the search by candidates is faster.", "--exact")
    ] = False,
    engine: Annotated[
        SearchEngine, option(RUN, "Search in this process, or on a Ray cluster that shares the images.")
    ] = SearchEngine.local,
    ray_address: Annotated[
        str,
        option(
            RUN,
            "Address of a running Ray cluster, or auto; goes with --engine ray.",
            metavar="ADDRESS",
            show_default="a new cluster on this machine",
        ),
    ] = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the images that fit a sentence best, and the region that each word found in them."""
    from chan.retrieval import page, reporting
    from chan.retrieval.retriever import open_index
    from data_tools.files import check_writable

    asked = [*(queries or []), *([] if queries_file is None else reporting.read_lines(queries_file))]
    by_image = [option for option in (region, at, captions) if option is not None]
    if (image is None) == (not asked) or len(by_image) != (image is not None):
        raise UsageError("give sentences, or --image with one of --region, --at and --captions")
    if out is not None:
        if captions is not None or out.suffix not in ((".html", ".png") if image is None else (".html",)):
            expected = "a page, FILE.html" + (", or a picture, FILE.png" if image is None else "")
            raise UsageError(f"--out {out}: expected {expected}, of the images that a search finds")
        check_writable(out)
    if ray_address and engine is SearchEngine.local:
        raise UsageError("--ray-address goes with --engine ray")
    searched = open_index(index, device)
    if engine is SearchEngine.ray:
        from chan.retrieval.ray_engine import RaySearch

        searched.engine = RaySearch(searched.index, searched.retriever.device.type, ray_address)
    if captions is not None and image is not None:
        found = searched.captions_for(image, reporting.read_lines(captions), k)
        reporting.print_captions(image, found, as_json)
        return
    if image is not None:
        number = region if region is not None else searched.region_at(image, *reporting.parse_point(at or ""))
        results = searched.like(image, number, k, exact)
        reporting.print_like(image, number, results, as_json)
        if out is not None:
            page.save_like(searched, image, number, results, out)
        return
    encoded = [searched.query(text) for text in asked]
    answers = searched.search_all(encoded, k, exact)
    reporting.print_results(encoded, answers, as_json)
    if out is not None and out.suffix == ".png":
        from chan.retrieval import drawing, explanation

        rows = [explanation.from_results(*pair) for pair in zip(encoded, answers, strict=True)]
        drawing.save(drawing.draw(rows), out)
    elif out is not None:
        page.save_sentences(searched, encoded, answers, out)


@command(app, "chan serve runs/scenes.index")
def serve(
    index: Annotated[Path, argument("INDEX", "Index, made by chan index.")],
    *,
    host: Annotated[
        str,
        option(RUN, "Address to listen on; any but this machine's own asks visitors for a token.", metavar="HOST"),
    ] = "127.0.0.1",
    port: Annotated[
        int, option(RUN, "Port to listen on; 0 takes a free one.", metavar="N", min=0, max=65535)
    ] = 8000,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Serve a page to search an index: hover over a word to see its region in every picture."""
    from chan.retrieval.retriever import open_index
    from chan.retrieval.server.running import serve as serve_index

    def announce(address: str) -> None:
        if as_json:
            print_json({"index": str(index), "address": address})
        else:
            print(f"{index}: {address} (Ctrl-C ends it)", flush=True)

    serve_index(open_index(index, device), host, port, announce)


@command(app, "chan push runs/chan OWNER/NAME")
def push(
    what: Annotated[Path, argument("RUN|STORE|INDEX", "Run folder, feature store or index to push.")],
    repository: Annotated[str, argument("OWNER/NAME", "Repository on the Hugging Face hub; made if needed.")],
    *,
    private: Annotated[bool, flag(RUN, "Make a new repository private.", "--private")] = False,
    as_json: Json = False,
) -> None:
    """Push a run, a feature store or an index to the Hugging Face hub; log in with hf auth login before.

    A run is then read as hf://OWNER/NAME or hf://OWNER/NAME@REVISION, by --features a store likewise.
    """
    from chan.runs.hub import Upload

    upload = Upload.of(what)
    address = upload.push(repository, private)
    if as_json:
        print_json({"kind": upload.kind, "repository": repository, "address": address})
    else:
        print(f"{upload.kind}: {address}")


def _chosen_config(folder: Path, spec: str | None, changes: list[str], resume: bool) -> "Config":
    """The configuration of a new run, or of the resumed one in `folder`.

    Raises:
        UsageError: a new run has no configuration, or a resumed one is asked to change it.
    """
    if resume:
        from chan.runs.train import resumed_config

        return resumed_config(folder, spec, changes)
    if spec is None:
        raise UsageError(f"--config is needed for a new run; --resume continues the one in {folder}")
    from chan.config import load_config

    return load_config(spec, changes)


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


def _checked_app() -> None:
    """The application; `chan train --epochs 3` is told how a key of the configuration is given."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["train"]:
        known = {f"--{name.replace('_', '-')}" for name in [*inspect.signature(train).parameters, "help", "json"]}
        for option in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
            if option not in known:
                _suggest_key(option)
    app()


def _suggest_key(option: str) -> None:
    name = option.removeprefix("--").replace("-", "_")
    if f"    {name}: " not in Path(__file__).with_name("config.py").read_text("utf-8"):
        return  # a usage error imports no library, unless the option has the name of a key
    from chan.config import Config
    from chan.keys import keys_of

    keys = [key.name for key in keys_of(Config()) if key.name == name or key.name.endswith(f".{name}")]
    if keys:
        raise UsageError(f"{option}: no such option; a key of the configuration is given as {keys[0]}=VALUE")


chan = entry_point(_checked_app)
