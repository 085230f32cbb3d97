from pathlib import Path

import pytest

from chan.config import (
    Config,
    PoolingName,
    differing_keys,
    load_config,
    override,
    read_config,
    save_config,
)
from chan.model.chan import build_model
from chan.text.tokenizers import VocabularyTokenizer
from data_tools.captions.vocabulary import SPECIAL, Vocabulary
from data_tools.configs import config_folder
from data_tools.errors import InputError, UsageError

SHIPPED = sorted(path.stem for path in config_folder("chan").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load_and_build(name: str) -> None:
    config = load_config(name)
    reader = VocabularyTokenizer(Vocabulary([*SPECIAL, "word"]))
    model = build_model(config.model, 64, reader, pretrained=False)
    assert model.image_encoder.fc.weight.shape == (config.model.dim, 64)


def test_the_recipes_are_the_papers() -> None:
    bigru, bert = load_config("f30k_bigru"), load_config("coco_bert")
    assert (bigru.train.batch_size, bigru.train.weight_decay, bigru.model.pooling) == (384, 0.01, "lse")
    assert (bert.train.batch_size, bert.train.weight_decay, bert.model.pooling) == (128, 1e-4, "mean")
    for config in (bigru, bert):
        assert (config.train.epochs, config.train.lr, config.train.lr_decay_epoch) == (25, 5e-4, 15)
        assert (config.loss.margin, config.loss.warmup_epochs, config.model.dim) == (0.05, 1, 1024)


def test_later_values_win(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model: {dim: 64, pooling: mean}\n")
    config = load_config(str(path), ["model.dim=32", "train.lr=1e-3"])
    assert (config.model.dim, config.model.pooling, config.train.lr) == (32, PoolingName.mean, 1e-3)


def test_saved_and_read_again(tmp_path: Path) -> None:
    config = override(Config(), ["model.pooling=max", "data.vocab=a b.json", "model.image.dim=7"])
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_differing_keys() -> None:
    other = override(Config(), ["train.seed=1", "model.text.encoder=bert"])
    assert differing_keys(Config(), other) == ["model.text.encoder", "train.seed"]


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("model.dimension=8", ["model.dimension"]),
        ("model.dim=big", ["model.dim", "big"]),
        ("model.dim=12", ["model.dim", "multiple of 8"]),
        ("model.pooling=median", ["model.pooling", "median", "softmax"]),
        ("model.text.encoder=elmo", ["model.text.encoder", "bigru", "bert"]),
        ("loss.temperature=0", ["loss.temperature", "above 0"]),
        ("data.region_keep_prob=1.2", ["data.region_keep_prob", "from 0 to 1"]),
        ("train.batch_size=1", ["train.batch_size"]),
        ("train.epochs", ["key=value"]),
        ("train.lr=[", ["train.lr"]),
        ("data.vocab=${nothing}", ["data.vocab"]),
    ],
)
def test_wrong_arguments_are_named_in_one_line(argument: str, parts: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        override(Config(), [argument])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: {dims: 8}", "model.dims"),
        ("train: {epochs: many}", "train.epochs"),
        ("- 1\n- 2", "keys"),
        ("model: {", "YAML"),
        ("loss: {margin: -1}", "loss.margin"),
    ],
)
def test_wrong_files_are_named_in_one_line(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert part in str(error.value)
