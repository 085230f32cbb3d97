"""Commands that make runs, and publish them: `chan train`, `import` and `push`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chan.options import Data, Features, app
from data_tools.console import print_json
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
    option,
    seed_option,
)

if TYPE_CHECKING:
    from chan.config import Config


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


@command(
    app,
    "chan import hf://cccjc/vse-infty/f30k_butd_region_bert --out runs/vse_infty",
    name="import",
)
def import_checkpoint(
    checkpoint: Annotated[
        str,
        argument(
            "CHECKPOINT",
            "Checkpoint of CHAN, VSE-infinity or SCAN: a file, a URL or hf://OWNER/NAME/FILE.",
        ),
    ],
    *,
    vocab: Annotated[
        Path | None,
        option(INPUT, "SCAN's vocabulary file of the training; required for a BiGRU.", metavar="FILE"),
    ] = None,
    bert: Annotated[
        str | None,
        option(
            INPUT,
            "Name at Hugging Face, or folder, of the pretrained BERT; required for a BERT of CHAN.",
            metavar="NAME|DIR",
            show_default="bert-base-uncased for VSE-infinity",
        ),
    ] = None,
    out: Annotated[Path, option(OUTPUT, "Run folder to write.", metavar="RUN")],
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the public code of CHAN, VSE-infinity or SCAN into a run folder."""
    from chan.runs import importing

    imported = importing.import_checkpoint(checkpoint, vocab, bert, out)
    if as_json:
        print_json({"run": str(out), **asdict(imported)})
    else:
        print(f"{imported.code}, checkpoint of epoch {imported.epoch}, best rsum {imported.best_rsum:.1f}: {out}")


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
