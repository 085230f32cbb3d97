"""Imports checkpoints of the public codes of CHAN, VSE-infinity and SCAN as run folders.

Such a file is a pickle of `epoch`, `model` (a list of state dicts), `best_rsum`, `opt` (an argparse.Namespace)
and `Eiters`. It is read with torch's list of allowed types and `Namespace`: a file that holds anything else is
refused, and no code in it is run.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chan.build import build_model
from chan.config import Config, TextEncoderName, override
from chan.keys import with_value
from chan.runs import folder as runs
from chan.runs.hub import fetched_checkpoint
from chan.runs.published import PublicCode, code_of, read_options, text_encoder_of, weights_of, with_mask_row
from chan.text.bert import load_bert_config
from chan.text.tokenizers import BertTokenizer, CaptionTokenizer, VocabularyTokenizer
from chan.training.checkpoints import BEST, save_weights
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError, UsageError
from data_tools.weights.downloads import download
from data_tools.weights.hub import is_hub, pinned
from data_tools.weights.pickles import read_pickle
from data_tools.weights.states import check_tensors

EMBED = "text_encoder.embed.weight"


@dataclass(frozen=True)
class Imported:
    """What the checkpoint records about its training, and the name of the code that wrote it."""

    code: str
    epoch: int
    best_rsum: float


def import_checkpoint(source: str | Path, vocab: Path | None, bert: str | None, folder: Path) -> Imported:
    """Write a checkpoint as the run folder `folder`, which can be evaluated, explained and searched, not resumed.

    Args:
        source: the checkpoint: a path, an http or https URL, or `hf://OWNER/NAME[@REVISION]/FILE` (or the folder
            of the file).
        vocab: the vocabulary that a BiGRU was trained with, as published.
        bert: name or folder of the BERT that a BERT's training started from, for its tokenizer and architecture;
            None takes the one that the public code names, where it names one.
        folder: the run folder to write.

    Raises:
        InputError: the file is no such checkpoint, cannot be fetched, holds types that are not allowed, asks for
            what this program lacks, or its parts do not fit.
        UsageError: `vocab` or `bert` is missing or does not apply, or the folder holds a run.
    """
    runs.check_new_run(folder)
    path = _found(source)
    checkpoint = read_checkpoint(path)
    states = checkpoint["model"]
    try:
        options = read_options(vars(checkpoint["opt"]))
        code = code_of(states, options)
        config = config_of(path, code, options, text_encoder_of(states, options))
        weights = weights_of(states)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if config.model.text.encoder is TextEncoderName.bert:
        bert = bert or code.bert
        _check_bert(path, bert, weights)
    tokenizer = _tokenizer(path, config, vocab, bert)
    if bert is not None:
        config = with_value(config, "model.text.bert", bert)
    if isinstance(tokenizer, VocabularyTokenizer) and not code.has_mask_word:
        weights = with_mask_row(weights, tokenizer.unknown_id)
    assert config.model.image.dim is not None
    with torch.device("meta"):  # without memory: the options may claim any size
        model = build_model(config.model, config.model.image.dim, tokenizer, pretrained=False)
    _check_weights(path, weights, model.state_dict())
    origin = pinned(path)
    runs.start_run(folder, config, tokenizer, {} if origin is None else {"run": origin})
    save_weights(weights, folder / BEST)
    return Imported(code.name, int(checkpoint.get("epoch", 0)), float(checkpoint.get("best_rsum", 0.0)))


def _found(source: str | Path) -> Path:
    if is_hub(source):
        return fetched_checkpoint(str(source))
    if str(source).startswith(("http://", "https://")):
        return download(str(source))
    return Path(source)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint's dictionary; `InputError` where the file is none or holds types that are not allowed."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    loaded = read_pickle(path, [argparse.Namespace], "checkpoint")
    if not isinstance(loaded, dict) or not isinstance(loaded.get("opt"), argparse.Namespace):
        raise InputError(f"{path}: expected a checkpoint of CHAN, VSE-infinity or SCAN, with model and opt in it")
    parts = loaded.get("model")
    if not isinstance(parts, list | tuple) or len(parts) not in (2, 4) or not all(map(_is_state, parts)):
        raise InputError(f"{path}: model: expected two or four state dicts, tensors by name")
    for name, kind in (("epoch", int), ("best_rsum", int | float)):
        if not isinstance(loaded.get(name, 0), kind) or not math.isfinite(loaded.get(name, 0)):
            raise InputError(f"{path}: {name}: expected a number, found {repr(loaded[name])[:40]}")
    return loaded


def _is_state(part: Any) -> bool:
    return isinstance(part, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in part.items()
    )


def config_of(path: Path, code: PublicCode, options: Mapping[str, Any], encoder: str) -> Config:
    """The configuration that is equivalent to a checkpoint's options.

    Raises:
        InputError: a value is unknown.
        ValueError: what one asks for cannot be reproduced.
    """
    try:
        return override(Config(), code.changes(options, encoder))
    except UsageError as error:
        raise InputError(f"{path}: opt: {error}") from None


def _tokenizer(path: Path, config: Config, vocab: Path | None, bert: str | None) -> CaptionTokenizer:
    if config.model.text.encoder is TextEncoderName.bert:
        if bert is None or vocab is not None:
            raise UsageError(f"{path}: its text encoder is a BERT: --bert NAME|FOLDER is needed, --vocab is not")
        return BertTokenizer(bert)
    if vocab is None or bert is not None:
        raise UsageError(f"{path}: its text encoder is a BiGRU: --vocab FILE is needed, --bert is not")
    return VocabularyTokenizer(Vocabulary.load(vocab))


def _check_bert(path: Path, bert: str | None, weights: Mapping[str, Tensor]) -> None:
    """`InputError` where the checkpoint's BERT has another size than the one it is said to have started from."""
    words = weights.get("text_encoder.bert.embeddings.word_embeddings.weight")
    if bert is None or words is None or words.dim() != 2:
        return
    layers = {name.split(".")[4] for name in weights if name.startswith("text_encoder.bert.encoder.layer.")}
    config = load_bert_config(bert)
    found = {"tokens": words.shape[0], "hidden size": words.shape[1], "layers": len(layers)}
    expected = (config.vocab_size, config.hidden_size, config.num_hidden_layers)
    for (what, number), other in zip(found.items(), expected, strict=True):
        if number != other:
            raise InputError(f"{path}: {what} of its BERT: {number}; --bert {bert} has {other}")


def _check_weights(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """`InputError` where the weights are not those of the model that the checkpoint's options describe."""
    try:
        check_tensors(found, expected)
    except ValueError as error:
        wrong_vocab = EMBED in found and EMBED in expected and found[EMBED].shape != expected[EMBED].shape
        hint = "; is --vocab the vocabulary that it was trained with?" if wrong_vocab else ""
        raise InputError(f"{path}: its weights do not fit the model of its options: {error}{hint}") from None
