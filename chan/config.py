"""The configuration of a run: typed defaults, over them a YAML file, over that `key=value` arguments.

`python -m chan.config docs/chan.md` renews the table of keys in the documentation.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from chan.choices import PrecisionName
from chan.keys import above, at_least, between, check_ranges, key, keys_of, markdown_table, multiple_of, null_or
from data_tools.configs import check_yaml, find_base, find_config
from data_tools.errors import InputError, UsageError, reading
from data_tools.files import read_text, replace_file

CodingName = StrEnum("CodingName", ["vha", "tha", "vsa", "t2i", "i2t", "global"])
PoolingName = StrEnum("PoolingName", ["max", "mean", "sum", "softmax", "lse", "scan_lse", "gpo"])
SimilarityNormName = StrEnum(
    "SimilarityNormName",
    ["clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "clipped", "softmax", "no_norm"],
)
GLOBAL_POOLINGS = (PoolingName.gpo, PoolingName.mean, PoolingName.max)
ImageEncoderName = StrEnum("ImageEncoderName", ["basic", "selfattention", "transformer", "mlp"])
TextEncoderName = StrEnum("TextEncoderName", ["bigru", "bert"])
LossName = StrEnum("LossName", ["contrastive", "infonce"])
CacheName = StrEnum("CacheName", ["auto", "mmap", "memory", "device"])
ScheduleName = StrEnum("ScheduleName", ["step", "cosine"])


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """The image encoder."""

    dim: int | None = key(
        None,
        "feature dimension: numbers per region; null takes it from the features file",
        null_or(above(0)),
    )
    encoder: ImageEncoderName = key(
        ImageEncoderName.selfattention,
        "`basic` (a linear projection), `selfattention` or `transformer` on top of it, "
        "or VSE-infinity's `mlp` (a perceptron with batch normalisation) added to it",
    )
    normalise: bool = key(
        True, "region embeddings of unit length; false only for imported checkpoints that were trained so"
    )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder."""

    encoder: TextEncoderName = key(
        TextEncoderName.bigru, "`bigru` (word vectors and a bidirectional GRU) or `bert`"
    )
    word_dim: int = key(300, "dimension of the word vectors (bigru)", above(0))
    layers: int = key(1, "layers of the GRU (bigru)", between(1, 8))
    initial_range: float | None = key(
        None,
        "word vectors that no file initialises are uniform between -this and this (bigru; VSE-infinity, SCAN: 0.1)"
        "; null: Xavier uniform",
        null_or(above(0)),
    )
    word_vectors: str | None = key(
        None,
        "GloVe or fastText file, `.txt`, `.vec`, `.gz` or `.zip`, that initialises the word vectors (bigru); "
        "null initialises them at random",
    )
    bert: str = key(
        "bert-base-uncased", "name at Hugging Face, or folder, of a pretrained encoder of BERT's family (bert)"
    )
    normalise: bool = key(
        True, "word embeddings of unit length; false only for imported checkpoints that were trained so"
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model."""

    dim: int = key(
        1024,
        "dimension of the joint embedding space of regions and words; a multiple of 8",
        multiple_of(8),
    )
    coding: CodingName = key(
        CodingName.vha,
        "`vha`: each word takes its most similar region; `tha`: each region its most similar word; "
        "`vsa`: each region attends to words; "
        "`t2i`, `i2t`: SCAN's cross-attention, each word attends to regions, or each region to words; "
        "`global`: no coding, but one vector per image and per caption, whose product is the score",
    )
    alpha: float = key(0.1, "temperature of `vsa`'s attention", above(0))
    similarity_norm: SimilarityNormName = key(
        SimilarityNormName.clipped_l2norm,
        "how `t2i` (`i2t`) normalises a region's similarities over words (a word's over regions): "
        "`clipped_l2norm`, `l2norm`, `clipped_l1norm`, `l1norm`, `clipped`, `softmax` or `no_norm`; "
        "clipped: after a leaky ReLU",
    )
    lambda_softmax: float = key(9.0, "inverse temperature of the attention of `t2i` and `i2t`", above(0))
    pooling: PoolingName = key(
        PoolingName.lse,
        "`max`, `mean`, `sum`, `softmax`, `lse` (log-sum-exp) or `scan_lse` (SCAN's, divided by `lambda_lse`): "
        "of a caption's word values (`tha`, `vsa`, `i2t`: an image's region values) to one score; with `global`: "
        "`gpo` (VSE-infinity's generalised pooling operator), `mean` or `max` of the regions, and of the words",
    )
    beta: float = key(0.1, "temperature of the poolings `softmax` and `lse`", above(0))
    lambda_lse: float = key(6.0, "inverse temperature of the pooling `scan_lse`", above(0))
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss."""

    name: LossName = key(LossName.contrastive, "`contrastive` (hinge loss) or `infonce`")
    margin: float = key(0.05, "by which a matching pair should score higher than the others", at_least(0))
    temperature: float = key(0.01, "temperature of `infonce`", above(0))
    warmup_epochs: int | None = key(
        1,
        "epochs that sum all violations before only the hardest negatives count (contrastive); null: all",
        null_or(at_least(0)),
    )
    mask_duplicates: bool = key(
        True, "other captions of the same image are not negatives; false is the published code"
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data and their augmentation."""

    vocab: str | None = key(
        None, "SCAN's vocabulary file (bigru); null looks for one beside the data, then builds one"
    )
    dev_images: int | None = key(
        None,
        "number of the first dev images on which the best epoch is chosen; null: all. The public code takes 1,000",
        null_or(above(0)),
    )
    cache: CacheName = key(
        CacheName.auto,
        "where training features are held: `mmap` (memory-mapped file), `memory`, `device`; "
        "`auto` takes the GPU if it has twice the memory that they need, else `mmap`",
    )
    region_keep_prob: float = key(0.8, "probability that a region is kept in a training step", between(0, 1))
    token_change_prob: float = key(
        0.2, "probability that a word is masked, replaced or removed in a training step", between(0, 1)
    )
    workers: int = key(0, "processes that read and augment; 0 does it in the training process", at_least(0))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation."""

    epochs: int | None = key(25, "passes over the training captions; null: from their number", null_or(above(0)))
    batch_size: int | None = key(
        128,
        "pairs per step, of all processes together; 2 or more, since negatives come from the batch; "
        "null: from the number of training captions",
        null_or(at_least(2)),
    )
    lr: float = key(5e-4, "learning rate of AdamW", above(0))
    schedule: ScheduleName = key(
        ScheduleName.step, "`step`: one step down; `cosine`: half a cosine from `lr` to 0, updated every step"
    )
    lr_decay: float = key(0.1, "factor on the learning rate from `lr_decay_epoch` on (step)", above(0))
    lr_decay_epoch: int | None = key(
        15,
        "epochs before the smaller learning rate (step); null: two thirds of `epochs`",
        null_or(at_least(0)),
    )
    text_lr_factor: float = key(0.1, "factor on the learning rate of the pretrained weights of BERT", at_least(0))
    weight_decay: float = key(0.01, "weight decay of AdamW", at_least(0))
    clip: float = key(2.0, "maximum norm of the gradient", above(0))
    precision: PrecisionName = key(
        PrecisionName.fp32,
        "precision of matrix products: `fp32`, `bf16`, or `fp16` with gradient scaling; "
        "weights and the GRU stay in fp32",
    )
    grad_cache_chunks: int = key(
        1,
        "gradient caching (GradCache, Gao et al. 2021): chunks in which the encoders process a step's pairs; "
        "less memory, a second forward pass of the encoders, the same step",
        above(0),
    )
    patience: int | None = key(
        None, "epochs without a better dev rsum after which training stops; null: never", null_or(above(0))
    )
    seed: int = key(2022, "seed of the initial weights, the order of the pairs and the augmentation", at_least(0))


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of a run's configuration."""

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file `spec` (or the shipped one of that name), then `overrides`.

    The file may name another one by its key `base`, a shipped one or one beside it, and then states only
    what differs from that.

    Raises:
        InputError: no such file, or a key or value in it is wrong.
        UsageError: a key or value among the `key=value` arguments is wrong.
    """
    path = find_config("chan", spec)
    changes = _read_yaml(path)
    base = changes.pop("base", None)
    config = Config() if base is None else _read_base(path, find_base("chan", path, base))
    return override(_merge_file(config, path, changes), overrides)


def read_config(path: Path) -> Config:
    """The defaults with the YAML file at `path`, which names no base, over them.

    Raises:
        InputError: the file cannot be read, or a key or value in it is wrong.
    """
    config = _merge_file(Config(), path, _read_yaml(path))
    try:
        _check_together(config)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return config


def override(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `key=value` arguments over it.

    >>> override(Config(), ["train.lr=1e-3", "model.pooling=mean"]).train.lr
    0.001

    Raises:
        UsageError: an argument is not of that form, its key or value is wrong, or values do not fit one another.
    """
    for argument in overrides:
        name, equals, _ = argument.partition("=")
        if not (name and equals) or "${" in argument:
            raise UsageError(f"{argument}: expected key=value, and a plain value")
        try:
            config = _merge(config, OmegaConf.from_dotlist([argument]))
        except ValueError as error:
            raise UsageError(str(error)) from None
        except Exception:  # libraries raise many types on text that is no value
            raise UsageError(f"{argument}: the value is not YAML") from None
    try:
        _check_together(config)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return config


def save_config(config: Config, path: Path) -> None:
    """Write every key with its value as YAML."""
    replace_file(path, OmegaConf.to_yaml(OmegaConf.structured(config)).encode())


def differing_keys(first: Config, second: Config) -> list[str]:
    """The full names of the keys in which two configurations differ.

    >>> differing_keys(Config(), override(Config(), ["train.seed=1"]))
    ['train.seed']
    """
    pairs = zip(keys_of(first), keys_of(second), strict=True)
    return [one.name for one, other in pairs if one.value != other.value]


def _read_base(path: Path, base: Path) -> Config:
    if "base" in _read_yaml(base):
        raise InputError(f"{path}: base: {base} has a base itself; only one level is allowed")
    return read_config(base)


def _read_yaml(path: Path) -> DictConfig:
    check_yaml(path)
    with reading(path, "not YAML"):
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise InputError(f"{path}: expected keys and values")
        found = _interpolation(OmegaConf.to_container(loaded, resolve=False))
    if found is not None:
        raise InputError(f"{path}: {found}: values that refer to others (${{...}}) are not supported")
    return loaded


def _interpolation(value: Any, name: str = "") -> str | None:
    """The full name of the first key whose value refers to another, or to the environment."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        found = (_interpolation(inner, f"{name}.{key}".removeprefix(".")) for key, inner in entries)
        return next((place for place in found if place is not None), None)
    return name if isinstance(value, str) and "${" in value else None


def _merge_file(config: Config, path: Path, changes: DictConfig) -> Config:
    try:
        return _merge(config, changes)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _merge(config: Config, changes: DictConfig) -> Config:
    """`config` with `changes`; a ValueError of one line says which key is wrong."""
    try:
        merged = OmegaConf.to_object(OmegaConf.merge(_writable(OmegaConf.structured(config)), changes))
    except OmegaConfBaseException as error:
        name = error.full_key or "configuration"
        if not isinstance(error, ConfigKeyError):
            raise ValueError(f"{name}: {(error.msg or str(error)).splitlines()[0]}") from None
        nearest = get_close_matches(name, [found.name for found in keys_of(config)], 1)
        raise ValueError(f"{name}: no such key" + "".join(f"; did you mean {near}?" for near in nearest)) from None
    assert isinstance(merged, Config)
    check_ranges(merged)
    return merged


def _check_together(config: Config) -> None:
    """`ValueError`, of one line, where the values of two keys do not fit one another."""
    model, one_vector = config.model, config.model.coding is CodingName["global"]
    if one_vector and model.pooling not in GLOBAL_POOLINGS:
        allowed = ", ".join(GLOBAL_POOLINGS)
        raise ValueError(
            f"model.pooling: expected one of {allowed} with model.coding=global, found {model.pooling}"
        )
    if model.pooling is PoolingName.gpo and not one_vector:
        raise ValueError(f"model.pooling: gpo goes with model.coding=global, found {model.coding}")
    if model.image.encoder is ImageEncoderName.mlp and config.train.grad_cache_chunks > 1:
        raise ValueError(
            "train.grad_cache_chunks: expected 1 with model.image.encoder=mlp, whose batch normalisation needs "
            f"the whole batch, found {config.train.grad_cache_chunks}"
        )


def _writable(node: DictConfig) -> DictConfig:
    """OmegaConf makes read-only nodes of frozen dataclasses, which it then refuses to merge into."""
    OmegaConf.set_readonly(node, False)
    for child in node.values():
        if isinstance(child, DictConfig):
            _writable(child)
    return node


BEGIN, END = "<!-- keys, written by `python -m chan.config FILE` -->\n", "\n<!-- end of keys -->"
"""Between these a Markdown document has the table of keys."""


def with_table(document: str) -> str:
    """A Markdown document with the current table of keys between its markers.

    Raises:
        ValueError: the document lacks the markers.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + markdown_table(Config()) + end + after


if __name__ == "__main__":
    for name in sys.argv[1:]:
        replace_file(Path(name), with_table(read_text(Path(name))).encode())
