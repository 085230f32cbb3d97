"""The configuration of a run: typed defaults, over them a YAML file, over that `key=value` arguments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chan.choices import PrecisionName
from data_tools.configs import find_config
from data_tools.errors import InputError, UsageError
from data_tools.files import replace_file

CodingName = StrEnum("CodingName", ["vha", "tha", "vsa", "t2i"])
PoolingName = StrEnum("PoolingName", ["max", "mean", "sum", "softmax", "lse"])
ImageEncoderName = StrEnum("ImageEncoderName", ["basic", "selfattention", "transformer"])
TextEncoderName = StrEnum("TextEncoderName", ["bigru", "bert"])
LossName = StrEnum("LossName", ["contrastive", "infonce"])
CacheName = StrEnum("CacheName", ["auto", "mmap", "memory", "device"])
ScheduleName = StrEnum("ScheduleName", ["step", "cosine"])


@dataclass
class ImageConfig:
    """The image encoder."""

    dim: int | None = None  # numbers in the features of a region; null takes them from the features file
    encoder: ImageEncoderName = ImageEncoderName.selfattention  # what relates the regions of an image
    normalise: bool = True  # region embeddings of unit length; false only for checkpoints that were made so


@dataclass
class TextConfig:
    """The text encoder."""

    encoder: TextEncoderName = TextEncoderName.bigru  # word vectors and a GRU, or BERT
    word_dim: int = 300  # numbers in a word vector (bigru)
    word_vectors: str | None = None  # GloVe or fastText file, .txt .vec .zip .gz, to begin with (bigru)
    bert: str = "bert-base-uncased"  # name at Hugging Face, or folder, of the pretrained BERT (bert)
    normalise: bool = True  # word embeddings of unit length; false only for checkpoints that were made so


@dataclass
class ModelConfig:
    """The model."""

    dim: int = 1024  # of the space that regions and words share; a multiple of 8
    coding: CodingName = CodingName.vha  # hard (vha, tha) or soft (vsa) assignment, or cross-attention (t2i)
    alpha: float = 0.1  # temperature of vsa's attention
    pooling: PoolingName = PoolingName.lse  # of a caption's word scores (tha, vsa: region scores) to one score
    beta: float = 0.1  # temperature of the softmax and lse poolings
    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)


@dataclass
class LossConfig:
    """The loss."""

    name: LossName = LossName.contrastive  # hinge loss, or InfoNCE
    margin: float = 0.05  # by which a matching pair should beat the others
    temperature: float = 0.01  # of infonce
    warmup_epochs: int = 1  # contrastive: epochs that sum all violations, before hardest negatives alone
    mask_duplicates: bool = True  # other captions of the same image are no negatives


@dataclass
class DataConfig:
    """The training data and its augmentation."""

    vocab: str | None = None  # SCAN's vocabulary file (bigru); null looks beside the data, then builds one
    cache: CacheName = CacheName.auto  # where training features lie: a mapped file, memory, or the device
    region_keep_prob: float = 0.8  # probability that a region stays in a training step
    token_change_prob: float = 0.2  # probability that a word is masked, replaced or removed in a training step
    workers: int = 0  # processes that read and augment; 0 reads in the training process


@dataclass
class TrainConfig:
    """The optimisation."""

    epochs: int = 25  # passes over the training captions
    batch_size: int = 128  # pairs in a step, of all processes together
    lr: float = 5e-4  # learning rate of AdamW
    schedule: ScheduleName = ScheduleName.step  # one step down, or half a cosine from lr to 0
    lr_decay: float = 0.1  # factor on the learning rate from lr_decay_epoch on (step)
    lr_decay_epoch: int = 15  # first epoch, counted from 0, with the smaller learning rate (step)
    text_lr_factor: float = 0.1  # factor on the learning rate of BERT's own weights
    weight_decay: float = 0.01  # of AdamW
    clip: float = 2.0  # largest norm of the gradient
    precision: PrecisionName = PrecisionName.fp32  # of matrix products; bf16 and fp16 keep weights in fp32
    grad_cache_chunks: int = (
        1  # parts in which the encoders take a step's pairs; negatives are those of the whole step
    )
    patience: int | None = None  # epochs without a better dev rsum after which training stops; null: never
    seed: int = 2022  # of the initial weights, the order and the augmentation


@dataclass
class Config:
    """All of a run's configuration."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: Rule = (lambda value: value > 0, "above 0")
_NOT_NEGATIVE: Rule = (lambda value: value >= 0, "0 or more")
_PROBABILITY: Rule = (lambda value: 0 <= value <= 1, "from 0 to 1")
_RANGES: dict[str, Rule] = {
    "model.dim": (lambda value: value > 0 and value % 8 == 0, "a positive multiple of 8"),
    "model.alpha": _POSITIVE,
    "model.beta": _POSITIVE,
    "model.image.dim": (lambda value: value is None or value > 0, "null or above 0"),
    "model.text.word_dim": _POSITIVE,
    "loss.margin": _NOT_NEGATIVE,
    "loss.temperature": _POSITIVE,
    "loss.warmup_epochs": _NOT_NEGATIVE,
    "data.region_keep_prob": _PROBABILITY,
    "data.token_change_prob": _PROBABILITY,
    "data.workers": _NOT_NEGATIVE,
    "train.epochs": _POSITIVE,
    "train.batch_size": (lambda value: value > 1, "2 or more, since a pair needs another for a negative"),
    "train.lr": _POSITIVE,
    "train.lr_decay": _POSITIVE,
    "train.lr_decay_epoch": _NOT_NEGATIVE,
    "train.text_lr_factor": _NOT_NEGATIVE,
    "train.weight_decay": _NOT_NEGATIVE,
    "train.clip": _POSITIVE,
    "train.grad_cache_chunks": _POSITIVE,
    "train.patience": (lambda value: value is None or value > 0, "null or above 0"),
    "train.seed": _NOT_NEGATIVE,
}


def load_config(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file `spec` (or the shipped one of that name), then `overrides`.

    Raises:
        InputError: no such file, or a key or value in it is wrong.
        UsageError: a key or value among the `key=value` arguments is wrong.
    """
    path = find_config("chan", spec)
    return override(read_config(path), overrides)


def read_config(path: Path) -> Config:
    """The defaults with the YAML file at `path` over them; `InputError` names the file and the key."""
    try:
        loaded = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, DictConfig):
        raise InputError(f"{path}: expected keys and values")
    try:
        return _merge(Config(), loaded)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def override(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `key=value` arguments over it; `UsageError` names a wrong one."""
    for argument in overrides:
        key, equals, _ = argument.partition("=")
        if not (key and equals):
            raise UsageError(f"{argument}: expected key=value")
        try:
            config = _merge(config, OmegaConf.from_dotlist([argument]))
        except yaml.YAMLError:
            raise UsageError(f"{argument}: the value is not YAML") from None
        except ValueError as error:
            raise UsageError(str(error)) from None
    return config


def save_config(config: Config, path: Path) -> None:
    """Write every key with its value as YAML."""
    replace_file(path, OmegaConf.to_yaml(OmegaConf.structured(config)).encode())


def differing_keys(first: Config, second: Config) -> list[str]:
    """The keys, in full, on which two configurations differ."""
    flat, other = (_flatten(OmegaConf.to_container(OmegaConf.structured(c))) for c in (first, second))
    return [key for key, value in flat.items() if other[key] != value]


def _merge(config: Config, changes: DictConfig) -> Config:
    """`config` with `changes`; a ValueError of one line says which key is wrong."""
    try:
        merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), changes))
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        raise ValueError(f"{error.full_key or 'configuration'}: {reason}") from None
    assert isinstance(merged, Config)
    values = _flatten(OmegaConf.to_container(OmegaConf.structured(merged)))
    for key, (holds, expected) in _RANGES.items():
        if not holds(values[key]):
            raise ValueError(f"{key}: expected {expected}, found {values[key]}")
    return merged


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, branch in tree.items():
        flat |= _flatten(branch, f"{prefix}.{name}" if prefix else name)
    return flat
