"""The public codes whose checkpoints can be imported, told apart by what their files hold.

CHAN           github.com/ppanzx/CHAN         four state dicts: image encoder, text encoder, similarity, criterion
VSE-infinity   github.com/woodfrog/vse_infty  two; each encoder has a pooling operator, `gpool`
SCAN           github.com/kuanghuei/SCAN      two; the options say `cross_attn`

Their options become `key=value` of a configuration, and their weights get the names that they have here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Options = Mapping[str, Any]

CODINGS = {"VHACoding": "vha", "THACoding": "tha", "VSACoding": "vsa"}
POOLINGS = {f"{name}Pooling": name.lower() for name in ("Max", "Mean", "Sum", "Softmax", "LSE")}
LOSSES = {"ContrastiveLoss": "contrastive", "InfoNCELoss": "infonce"}
DIRECTIONS = {"t2i": "t2i", "i2t": "i2t"}
AGGREGATIONS = {"LogSumExp": "scan_lse", "Max": "max", "Sum": "sum", "Mean": "mean"}
SAME = {  # options of all three whose values need no translation
    "embed_size": "model.dim",
    "img_dim": "model.image.dim",
    "word_dim": "model.text.word_dim",
    "num_layers": "model.text.layers",
    "margin": "loss.margin",
    "num_epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "learning_rate": "train.lr",
    "lr_update": "train.lr_decay_epoch",
    "grad_clip": "train.clip",
}
OF_CHAN = {
    "alpha": "model.alpha",
    "belta": "model.beta",
    "precomp_enc_type": "model.image.encoder",
    "temperature": "loss.temperature",
    "vse_mean_warmup_epochs": "loss.warmup_epochs",
    "seed": "train.seed",
}
OF_SCAN = {
    "raw_feature_norm": "model.similarity_norm",
    "lambda_softmax": "model.lambda_softmax",
    "lambda_lse": "model.lambda_lse",
}
READ = {  # all options that are read
    *(
        *SAME,
        *OF_CHAN,
        *OF_SCAN,
        "text_enc_type",
        "coding_type",
        "pooling_type",
        "criterion",
        "drop",
        "obj_drop_rate",
    ),
    *("cross_attn", "agg_func", "bi_gru", "max_violation", "no_imgnorm", "no_txtnorm"),
}
MAX_WORD = 100  # characters of an option's value
RENAMED = {
    "gpool.": "aggregation.gpo.",
    "mlp.layers.0.": "mlp.0.",
    "mlp.bns.0.": "mlp.1.",
    "mlp.layers.1.": "mlp.3.",
}
UNUSED = ("image_encoder.mlp.bns.1.", "text_encoder.fc.", "text_encoder.bert.pooler.")  # no embedding needs them
COUNTERS = ("text_encoder.bert.embeddings.position_ids",)  # 0, 1, 2, ..., stored by older versions of transformers


@dataclass(frozen=True)
class PublicCode:
    """One of the public codes.

    Attributes:
        name: for people.
        changes: from a checkpoint's options and its text encoder (`bigru` or `bert`) to the `key=value` of the
            equivalent configuration; `ValueError` where one asks for what this program lacks.
        bert: the pretrained BERT that the code names; None where it leaves that to its users.
        has_mask_word: whether its vocabularies hold `<mask>`.
    """

    name: str
    changes: Callable[[Options, str], list[str]]
    bert: str | None
    has_mask_word: bool


def read_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a checkpoint's options those that are read here; None stands for one that was not given.

    Raises:
        ValueError: one is neither a number nor a word.
    """
    read = {name: value for name, value in given.items() if name in READ and value is not None}
    for name, value in read.items():
        is_word = isinstance(value, str) and value.isprintable() and len(value) <= MAX_WORD
        if not (is_word or isinstance(value, bool | int | float)):
            raise ValueError(f"{name}: expected a number or a word, found {_kind(value)}")
    return read


def _kind(value: Any) -> str:
    return f"{len(value)} characters" if isinstance(value, str) else f"a {type(value).__name__}"


def code_of(states: Sequence[State], options: Options) -> PublicCode:
    """The code that wrote a checkpoint.

    Raises:
        ValueError: none of them.
    """
    if len(states) == 4:
        return CHAN
    if len(states) == 2 and any("gpool." in name for name in states[0]):
        return VSE_INFINITY
    if len(states) == 2 and "cross_attn" in options:
        return SCAN
    raise ValueError(
        "expected a checkpoint of the public code of CHAN, VSE-infinity or SCAN; it is of none of them"
    )


def text_encoder_of(states: Sequence[State], options: Options) -> str:
    """`bert` or `bigru`: what the options say, else whose weights the text encoder holds."""
    by_weights = "bert" if any(_bare(name).startswith("bert.") for name in states[1]) else "bigru"
    return str(options.get("text_enc_type") or by_weights)


def weights_of(states: Sequence[State]) -> dict[str, Tensor]:
    """The weights in float32 by their names here, without those that no embedding depends on.

    Raises:
        ValueError: a weight-normalised layer is malformed.
    """
    found = {}
    for prefix, state in zip(("image_encoder.", "text_encoder.", "scoring.", "loss."), states, strict=False):
        for name, value in _without_weight_norm({_bare(name): value for name, value in state.items()}).items():
            full = prefix + next(
                (new + name.removeprefix(old) for old, new in RENAMED.items() if name.startswith(old)), name
            )
            if full not in COUNTERS and not full.startswith(UNUSED):
                found[full] = (value.float() if value.is_floating_point() else value).contiguous()
    return found


def with_mask_row(weights: dict[str, Tensor], unknown: int) -> dict[str, Tensor]:
    """Word vectors with one more for `<mask>`, that of `<unk>`; no caption of an evaluation has that word."""
    embed = "text_encoder.embed.weight"
    if embed not in weights or weights[embed].dim() != 2 or len(weights[embed]) <= unknown:
        return weights
    return {**weights, embed: torch.cat([weights[embed], weights[embed][unknown : unknown + 1]])}


def _bare(name: str) -> str:
    return name.removeprefix("module.")  # which DataParallel adds


def _without_weight_norm(state: State) -> State:
    """A state in which `fc`, if it is weight-normalised, is a plain layer: w = g v / |v| (Salimans 2016)."""
    if not {"fc.weight_g", "fc.weight_v"} <= set(state):
        return state
    direction = state["fc.weight_v"].float()
    if state["fc.weight_g"].numel() != 1:
        raise ValueError(f"fc.weight_g: expected one number, found {state['fc.weight_g'].numel()}")
    weight = state["fc.weight_g"].float() * direction / direction.norm()
    return {**{n: v for n, v in state.items() if n not in ("fc.weight_g", "fc.weight_v")}, "fc.weight": weight}


def _common(options: Options, encoder: str, names: Mapping[str, str]) -> list[str]:
    return [
        *(f"{ours}={options[theirs]}" for theirs, ours in {**SAME, **names}.items() if theirs in options),
        f"model.text.encoder={encoder}",
        f"model.image.normalise={not options.get('no_imgnorm', False)}",
        f"model.text.normalise={not options.get('no_txtnorm', False)}",
        "loss.mask_duplicates=false",
    ]


def _translated(options: Options, name: str, key: str, values: Mapping[str, str]) -> list[str]:
    """The `key=value` of an option whose values have other names here; none where it is not given."""
    value = options.get(name)
    if value is None:
        return []
    if value not in values:
        raise ValueError(f"{name}: {value!r}: expected one of {', '.join(values)}")
    return [f"{key}={values[value]}"]


def _augmentation(regions: float, words: float) -> list[str]:
    return [f"data.region_keep_prob={regions}", f"data.token_change_prob={words}"]


def _of_chan(options: Options, encoder: str) -> list[str]:
    if options.get("precomp_enc_type") == "transformer":
        raise ValueError(
            "its image encoder is `transformer`, which in the public code mixes the images of a batch; its "
            "embeddings cannot be reproduced"
        )
    dropped = options.get("obj_drop_rate", 0.2) if encoder == "bigru" else 0.2  # its BERT branch has a fixed rate
    if isinstance(dropped, str):
        raise ValueError(f"obj_drop_rate: expected a number, found {dropped!r}")
    augmented = options.get("drop", False)
    return [
        *_common(options, encoder, OF_CHAN),
        *_translated(options, "coding_type", "model.coding", CODINGS),
        *_translated(options, "pooling_type", "model.pooling", POOLINGS),
        *_translated(options, "criterion", "loss.name", LOSSES),
        *(_augmentation(1 - dropped, 0.2) if augmented else _augmentation(1.0, 0.0)),
        *(["train.weight_decay=1e-4", "train.text_lr_factor=0.1"] if encoder == "bert" else []),
    ]


def _of_vse_infinity(options: Options, encoder: str) -> list[str]:
    if options.get("precomp_enc_type", "basic") != "basic":
        raise ValueError(
            f"precomp_enc_type: {options['precomp_enc_type']}: this model takes pixels, not region features; "
            "those whose names say `region` can be imported"
        )
    return [
        *_common(options, encoder, {"vse_mean_warmup_epochs": "loss.warmup_epochs"}),
        *("model.coding=global", "model.pooling=gpo", "model.image.encoder=mlp", "model.text.initial_range=0.1"),
        *_augmentation(0.8, 0.2),
        *(["train.weight_decay=1e-4", "train.text_lr_factor=0.1"] if encoder == "bert" else []),
    ]


def _of_scan(options: Options, encoder: str) -> list[str]:
    if not options.get("bi_gru", False):
        raise ValueError("bi_gru: expected a bidirectional GRU, found one of a single direction")
    if options.get("precomp_enc_type", "basic") not in ("basic", "weight_norm"):
        raise ValueError(f"precomp_enc_type: {options['precomp_enc_type']!r}: expected one of basic, weight_norm")
    return [
        *_common(options, encoder, OF_SCAN),
        *_translated(options, "cross_attn", "model.coding", DIRECTIONS),
        *_translated(options, "agg_func", "model.pooling", AGGREGATIONS),
        *("model.image.encoder=basic", "model.text.initial_range=0.1", "train.weight_decay=0"),
        f"loss.warmup_epochs={0 if options.get('max_violation', False) else 'null'}",
        *_augmentation(1.0, 0.0),
    ]


CHAN = PublicCode("CHAN", _of_chan, None, has_mask_word=True)
VSE_INFINITY = PublicCode("VSE-infinity", _of_vse_infinity, "bert-base-uncased", has_mask_word=True)
SCAN = PublicCode("SCAN", _of_scan, None, has_mask_word=False)
