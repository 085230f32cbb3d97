"""Imports checkpoints of the public CHAN code (github.com/ppanzx/CHAN) as run folders.

Such a file is a pickle of `epoch`, `model` (the state dicts of image encoder, text encoder, similarity and
criterion), `best_rsum`, `opt` (an argparse.Namespace) and `Eiters`. It is read with torch's list of allowed types
and `Namespace`: a file that holds anything else is refused, and no code in it is run.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from chan.build import build_model
from chan.config import Config, TextEncoderName, override
from chan.keys import with_value
from chan.runs import folder as runs
from chan.text.tokenizers import BertTokenizer, CaptionTokenizer, VocabularyTokenizer
from chan.training.checkpoints import BEST, save_weights, shapes
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError, UsageError
from data_tools.weights.pickles import read_pickle
from data_tools.weights.tensor_names import tensor_differences

CODINGS = {"VHACoding": "vha", "THACoding": "tha", "VSACoding": "vsa"}
POOLINGS = {f"{name}Pooling": name.lower() for name in ("Max", "Mean", "Sum", "Softmax", "LSE")}
LOSSES = {"ContrastiveLoss": "contrastive", "InfoNCELoss": "infonce"}
OPTIONS = {  # names in `opt` whose values need no translation
    "embed_size": "model.dim",
    "alpha": "model.alpha",
    "belta": "model.beta",
    "img_dim": "model.image.dim",
    "precomp_enc_type": "model.image.encoder",
    "text_enc_type": "model.text.encoder",
    "word_dim": "model.text.word_dim",
    "margin": "loss.margin",
    "temperature": "loss.temperature",
    "vse_mean_warmup_epochs": "loss.warmup_epochs",
    "num_epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "learning_rate": "train.lr",
    "lr_update": "train.lr_decay_epoch",
    "grad_clip": "train.clip",
    "seed": "train.seed",
}
UNUSED = ("text_encoder.fc.", "text_encoder.bert.pooler.")  # weights that no embedding depends on
COUNTERS = ("text_encoder.bert.embeddings.position_ids",)  # 0, 1, 2, ..., stored by older versions of transformers


@dataclass(frozen=True)
class Imported:
    """What the checkpoint records about its training."""

    epoch: int
    best_rsum: float


def import_checkpoint(path: Path, vocab: Path | None, bert: str | None, folder: Path) -> Imported:
    """Write a checkpoint as the run folder `folder`, which can be evaluated and explained, but not resumed.

    Args:
        path: the checkpoint.
        vocab: the vocabulary that a BiGRU was trained with, as published; `<mask>` is appended.
        bert: name or folder of the BERT that a BERT's training started from, for its tokenizer and architecture.
        folder: the run folder to write.

    Raises:
        InputError: the file is no such checkpoint, holds types that are not allowed, or its parts do not fit.
        UsageError: `vocab` or `bert` is missing or does not apply, or the folder holds a run.
    """
    runs.check_new_run(folder)
    checkpoint = read_checkpoint(path)
    config = config_of(path, checkpoint["opt"])
    tokenizer = _tokenizer(path, config, vocab, bert)
    if bert is not None:
        config = with_value(config, "model.text.bert", bert)
    assert config.model.image.dim is not None
    model = build_model(config.model, config.model.image.dim, tokenizer, pretrained=False)
    weights = weights_of(checkpoint["model"])
    _check_weights(path, shapes(weights), shapes(model.state_dict()))
    runs.start_run(folder, config, tokenizer, {})
    save_weights(weights, folder / BEST)
    return Imported(int(checkpoint.get("epoch", 0)), float(checkpoint.get("best_rsum", 0.0)))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's dictionary; `InputError` where the file is none or holds types that are not allowed."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    loaded = read_pickle(path, [argparse.Namespace], "checkpoint")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("opt"), argparse.Namespace):
        raise InputError(f"{path}: expected a checkpoint of the public CHAN code, with model and opt in it")
    parts = loaded.get("model")
    if not isinstance(parts, list) or len(parts) != 4 or not all(_is_state(part) for part in parts):
        raise InputError(f"{path}: model: expected four state dicts, tensors by name")
    for name, kind in (("epoch", int), ("best_rsum", int | float)):
        if not isinstance(loaded.get(name, 0), kind):
            raise InputError(f"{path}: {name}: expected a number, found {loaded[name]!r}")
    return loaded


def _is_state(part: Any) -> bool:
    return isinstance(part, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in part.items()
    )


def config_of(path: Path, opt: argparse.Namespace) -> Config:
    """The configuration that is equivalent to a checkpoint's `opt`.

    Raises:
        InputError: a value is unknown, or what it asks for cannot be reproduced.
    """
    given: dict[str, Any] = {name: value for name, value in vars(opt).items() if value is not None}
    if given.get("precomp_enc_type") == "transformer":
        raise InputError(
            f"{path}: its image encoder is `transformer`, which in the public code mixes the images of a batch; "
            "its embeddings cannot be reproduced"
        )
    if given.get("num_layers", 1) != 1:
        raise InputError(f"{path}: num_layers: expected a GRU of one layer, found {given['num_layers']}")
    changes = [f"{ours}={given[theirs]}" for theirs, ours in OPTIONS.items() if theirs in given]
    changes += _translated(path, given)
    augmented = given.get("drop", False)
    changes += [
        f"model.image.normalise={not given.get('no_imgnorm', False)}",
        f"model.text.normalise={not given.get('no_txtnorm', False)}",
        "loss.mask_duplicates=false",
        f"data.region_keep_prob={1 - given.get('obj_drop_rate', 0.2) if augmented else 1.0}",
        f"data.token_change_prob={0.2 if augmented else 0.0}",
    ]
    if given.get("text_enc_type") == "bert":
        changes += ["train.weight_decay=1e-4", "train.text_lr_factor=0.1"]
    try:
        return override(Config(), changes)
    except UsageError as error:
        raise InputError(f"{path}: opt: {error}") from None


def _translated(path: Path, given: dict[str, Any]) -> list[str]:
    """The `key=value` of the options whose values have other names here."""
    changes = []
    for theirs, ours, names in (
        ("coding_type", "model.coding", CODINGS),
        ("pooling_type", "model.pooling", POOLINGS),
        ("criterion", "loss.name", LOSSES),
    ):
        value = given.get(theirs)
        if value is None:
            continue
        if value not in names:
            raise InputError(f"{path}: {theirs}: {value!r}: expected one of {', '.join(names)}")
        changes.append(f"{ours}={names[value]}")
    return changes


def weights_of(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights by their names here, without those that no embedding depends on."""
    found = {}
    for prefix, part in zip(("image_encoder.", "text_encoder.", "scoring.", "loss."), parts, strict=True):
        for name, value in part.items():
            full = prefix + name.removeprefix("module.")
            if full not in COUNTERS and not full.startswith(UNUSED):
                found[full] = value.float().contiguous()
    return found


def _tokenizer(path: Path, config: Config, vocab: Path | None, bert: str | None) -> CaptionTokenizer:
    if config.model.text.encoder is TextEncoderName.bert:
        if bert is None or vocab is not None:
            raise UsageError(f"{path}: its text encoder is a BERT: --bert NAME|FOLDER is needed, --vocab is not")
        return BertTokenizer(bert)
    if vocab is None or bert is not None:
        raise UsageError(f"{path}: its text encoder is a BiGRU: --vocab FILE is needed, --bert is not")
    return VocabularyTokenizer(Vocabulary.load(vocab))


def _check_weights(path: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """`InputError` where the weights are not those of the model that the checkpoint's options describe."""
    differences = tensor_differences(found, expected)
    if not differences:
        return
    embed = "text_encoder.embed.weight"
    wrong_vocab = embed in found and embed in expected and found[embed] != expected[embed]
    hint = "; is --vocab the vocabulary that it was trained with?" if wrong_vocab else ""
    raise InputError(f"{path}: its weights do not fit the model of its options: {differences}{hint}")
