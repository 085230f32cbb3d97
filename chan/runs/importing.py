"""Checkpoints of the public CHAN code (github.com/ppanzx/CHAN), turned into run folders.

Such a file is a pickle of `epoch`, `model` (the state dicts of image encoder, text encoder, similarity and
criterion), `best_rsum`, `opt` (an argparse.Namespace) and `Eiters`. It is read through torch's list of allowed
types with `Namespace` added: anything else in it is refused, and nothing of it is run.
"""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chan.config import Config, TextEncoderName, override
from chan.model.chan import build_model
from chan.runs import folder as runs
from chan.text.tokenizers import BertTokenizer, CaptionTokenizer, VocabularyTokenizer
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError, UsageError

CODINGS = {"VHACoding": "vha", "THACoding": "tha", "VSACoding": "vsa"}
POOLINGS = {f"{name}Pooling": name.lower() for name in ("Max", "Mean", "Sum", "Softmax", "LSE")}
LOSSES = {"ContrastiveLoss": "contrastive", "InfoNCELoss": "infonce"}
PLAIN = {  # names in `opt` whose values are taken as they are
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
COUNTERS = ("text_encoder.bert.embeddings.position_ids",)  # older transformers stored 0, 1, 2, ...


@dataclass(frozen=True)
class Imported:
    """What the checkpoint says of itself."""

    epoch: int
    best_rsum: float


def import_checkpoint(path: Path, vocab: Path | None, bert: str | None, folder: Path) -> Imported:
    """Make the run `folder` of a checkpoint; it can be evaluated and explained, but not resumed.

    Args:
        path: the checkpoint.
        vocab: the vocabulary that a BiGRU was trained with, as published; `<mask>` is appended.
        bert: name or folder of the BERT that a BERT began with: its tokenizer and architecture are needed.
        folder: where the run goes.

    Raises:
        InputError: the file is no such checkpoint, holds what it should not, or its parts do not fit.
        UsageError: `vocab` or `bert` is missing or out of place, or the folder holds a run.
    """
    runs.check_new_run(folder)
    checkpoint = read_checkpoint(path)
    config = config_of(path, checkpoint["opt"])
    reader = _reader(path, config, vocab, bert)
    assert config.model.image.dim is not None
    model = build_model(config.model, config.model.image.dim, reader, pretrained=False)
    weights = weights_of(checkpoint["model"])
    _check(path, weights, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    runs.start_run(folder, config, reader, {})
    runs.save_weights(weights, folder / runs.BEST)
    return Imported(int(checkpoint.get("epoch", 0)), float(checkpoint.get("best_rsum", 0.0)))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's dictionary; `InputError` where it is none or holds other types than it may."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        named = reason.split("GLOBAL ")[1].split()[0] if "GLOBAL " in reason else None
        raise InputError(
            f"{path}: holds {named}, which is no part of a checkpoint, and was not loaded"
            if named
            else f"{path}: not a checkpoint: {reason[:150]}"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path}: not a checkpoint: {' '.join(str(error).split())[:150]}") from None
    if not isinstance(loaded, dict) or not isinstance(loaded.get("opt"), argparse.Namespace):
        raise InputError(f"{path}: expected a checkpoint of the public CHAN code, with model and opt in it")
    parts = loaded.get("model")
    if not isinstance(parts, list) or len(parts) != 4 or not all(isinstance(part, Mapping) for part in parts):
        raise InputError(f"{path}: model: expected four state dicts")
    return loaded


def config_of(path: Path, opt: argparse.Namespace) -> Config:
    """The configuration that a checkpoint's `opt` means.

    Raises:
        InputError: it asks for what cannot be reproduced, or has an unknown value.
    """
    if opt.__dict__.get("precomp_enc_type") == "transformer":
        raise InputError(
            f"{path}: its image encoder is `transformer`, which in the public code mixes the images of a batch; "
            "what it computes cannot be reproduced"
        )
    if opt.__dict__.get("num_layers", 1) != 1:
        raise InputError(f"{path}: num_layers: expected a GRU of one layer, found {opt.num_layers}")
    changes = [f"{ours}={opt.__dict__[theirs]}" for theirs, ours in PLAIN.items() if _given(opt, theirs)]
    for theirs, ours, names in (
        ("coding_type", "model.coding", CODINGS),
        ("pooling_type", "model.pooling", POOLINGS),
        ("criterion", "loss.name", LOSSES),
    ):
        if _given(opt, theirs):
            if opt.__dict__[theirs] not in names:
                raise InputError(f"{path}: {theirs}: {opt.__dict__[theirs]!r}: expected one of {', '.join(names)}")
            changes.append(f"{ours}={names[opt.__dict__[theirs]]}")
    changes += [
        f"model.image.normalise={not opt.__dict__.get('no_imgnorm', False)}",
        f"model.text.normalise={not opt.__dict__.get('no_txtnorm', False)}",
        "loss.mask_duplicates=false",
    ]
    augmented = opt.__dict__.get("drop", False)
    changes.append(f"data.region_keep_prob={1 - opt.__dict__.get('obj_drop_rate', 0.2) if augmented else 1.0}")
    changes.append(f"data.token_change_prob={0.2 if augmented else 0.0}")
    if opt.__dict__.get("text_enc_type") == "bert":
        changes += ["train.weight_decay=1e-4", "train.text_lr_factor=0.1"]
    try:
        return override(Config(), changes)
    except UsageError as error:
        raise InputError(f"{path}: opt: {error}") from None


def weights_of(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights by their names here, without those that no embedding depends on."""
    found = {}
    for prefix, part in zip(("image_encoder.", "text_encoder.", "scoring.", "loss."), parts, strict=True):
        for name, value in part.items():
            full = prefix + name.removeprefix("module.")
            if full not in COUNTERS and not full.startswith(UNUSED):
                found[full] = value.float().contiguous()
    return found


def _given(opt: argparse.Namespace, name: str) -> bool:
    return opt.__dict__.get(name) is not None


def _reader(path: Path, config: Config, vocab: Path | None, bert: str | None) -> CaptionTokenizer:
    if config.model.text.encoder is TextEncoderName.bert:
        if bert is None or vocab is not None:
            raise UsageError(f"{path}: its text encoder is a BERT: --bert NAME|FOLDER is needed, --vocab is not")
        config.model.text.bert = bert
        return BertTokenizer(bert)
    if vocab is None or bert is not None:
        raise UsageError(f"{path}: its text encoder is a BiGRU: --vocab FILE is needed, --bert is not")
    return VocabularyTokenizer(Vocabulary.load(vocab))


def _check(path: Path, weights: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """`InputError` that names the first weight that is missing, too many or of another shape."""
    for name in sorted(weights.keys() | expected.keys()):
        if name not in weights:
            raise InputError(f"{path}: lacks the weight {name}")
        if name not in expected:
            raise InputError(f"{path}: has a weight {name}, which the model of its options does not have")
        if tuple(weights[name].shape) != expected[name]:
            found, wanted = tuple(weights[name].shape), expected[name]
            hint = "; is --vocab the file that it was trained with?" if name.endswith("embed.weight") else ""
            raise InputError(f"{path}: {name}: of shape {found}, expected {wanted}{hint}")
