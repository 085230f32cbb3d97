from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from chan.config import (
    Config,
    PoolingName,
    differing_keys,
    load_config,
    override,
    read_config,
    save_config,
    with_table,
)
from chan.keys import keys_of, with_value
from data_tools.configs import config_folder
from data_tools.errors import InputError, UsageError

SHIPPED = sorted(path.stem for path in config_folder("chan").glob("*.yaml"))

PAPER: dict[str, Any] = {
    "model.dim": 1024,
    "model.coding": "vha",
    "model.alpha": 0.1,
    "model.similarity_norm": "clipped_l2norm",
    "model.lambda_softmax": 9.0,
    "model.pooling": "lse",
    "model.beta": 0.1,
    "model.lambda_lse": 6.0,
    "model.image.dim": None,
    "model.image.encoder": "selfattention",
    "model.image.normalise": True,
    "model.text.encoder": "bigru",
    "model.text.word_dim": 300,
    "model.text.layers": 1,
    "model.text.initial_range": None,
    "model.text.word_vectors": None,
    "model.text.bert": "bert-base-uncased",
    "model.text.normalise": True,
    "loss.name": "contrastive",
    "loss.margin": 0.05,
    "loss.temperature": 0.01,
    "loss.warmup_epochs": 1,
    "loss.mask_duplicates": True,
    "data.vocab": None,
    "data.cache": "auto",
    "data.dev_images": None,
    "data.region_keep_prob": 0.8,
    "data.token_change_prob": 0.2,
    "data.workers": 4,
    "train.epochs": 25,
    "train.batch_size": 384,
    "train.lr": 5e-4,
    "train.schedule": "step",
    "train.lr_decay": 0.1,
    "train.lr_decay_epoch": 15,
    "train.text_lr_factor": 0.1,
    "train.weight_decay": 0.01,
    "train.clip": 2.0,
    "train.precision": "fp32",
    "train.grad_cache_chunks": 1,
    "train.patience": None,
    "train.seed": 2022,
}
BERT = {
    "model.pooling": "mean",
    "model.image.encoder": "basic",
    "model.text.encoder": "bert",
    "train.batch_size": 128,
    "train.weight_decay": 1e-4,
}
FLICKR8K = {
    "model.dim": 512,
    "loss.warmup_epochs": 15,
    "data.workers": 0,
    "train.epochs": 15,
    "train.batch_size": 128,
    "train.lr_decay_epoch": 10,
}
PUBLISHED = {"loss.mask_duplicates": False, "data.dev_images": 1000, "train.precision": "fp16"}
SMALL = {
    "model.dim": 512,
    "loss.warmup_epochs": None,
    "data.workers": 0,
    "train.epochs": None,
    "train.batch_size": None,
    "train.lr_decay_epoch": None,
}
SCENES = {
    "model.dim": 256,
    "model.text.word_dim": 128,
    "loss.warmup_epochs": 8,
    "data.workers": 0,
    "train.epochs": 12,
    "train.batch_size": 64,
    "train.lr": 1e-3,
    "train.lr_decay_epoch": 9,
}
VSE_INFINITY = {
    "model.coding": "global",
    "model.pooling": "gpo",
    "model.image.encoder": "mlp",
    "model.text.initial_range": 0.1,
    "loss.margin": 0.2,
    "loss.mask_duplicates": False,
    "data.dev_images": 1000,
    "train.batch_size": 128,
}
VSE_INFINITY_BERT = {
    **VSE_INFINITY,
    "model.text.encoder": "bert",
    "model.text.initial_range": None,
    "train.weight_decay": 1e-4,
}
SCAN = {
    "model.coding": "t2i",
    "model.pooling": "scan_lse",
    "model.image.encoder": "basic",
    "model.text.initial_range": 0.1,
    "loss.margin": 0.2,
    "loss.warmup_epochs": 0,
    "loss.mask_duplicates": False,
    "data.dev_images": 1000,
    "data.region_keep_prob": 1.0,
    "data.token_change_prob": 0.0,
    "train.epochs": 30,
    "train.batch_size": 128,
    "train.lr": 2e-4,
    "train.weight_decay": 0.0,
}
SCAN_I2T = {"model.coding": "i2t", "model.lambda_softmax": 4.0, "model.lambda_lse": 5.0}
SCAN_COCO = {"train.epochs": 20, "train.lr": 5e-4, "train.lr_decay_epoch": 10}
RECIPES: dict[str, dict[str, Any]] = {
    "bigru": {},
    "coco_bigru": {},
    "f30k_bigru": {},
    "bert": BERT,
    "coco_bert": BERT,
    "f30k_bert": BERT,
    "flickr8k": FLICKR8K,
    "scenes": SCENES,
    "coco_bigru_published": PUBLISHED,
    "f30k_bigru_published": PUBLISHED,
    "coco_bert_published": BERT | PUBLISHED,
    "f30k_bert_published": BERT | PUBLISHED,
    "small": SMALL,
    "vse_infty_bigru": VSE_INFINITY,
    "coco_vse_infty_bigru": VSE_INFINITY,
    "f30k_vse_infty_bigru": VSE_INFINITY,
    "vse_infty_bert": VSE_INFINITY_BERT,
    "coco_vse_infty_bert": VSE_INFINITY_BERT,
    "f30k_vse_infty_bert": VSE_INFINITY_BERT,
    "scan": SCAN,
    "f30k_scan_t2i": SCAN,
    "f30k_scan_i2t": SCAN | SCAN_I2T,
    "coco_scan_t2i": SCAN | SCAN_COCO,
    "coco_scan_i2t": SCAN | SCAN_I2T | SCAN_COCO | {"model.lambda_lse": 20.0},
}
"""Every shipped configuration, by what differs from the paper's with BiGRU."""


def values(config: Config) -> dict[str, Any]:
    return {found.name: found.value for found in keys_of(config)}


def test_every_shipped_configuration_is_listed() -> None:
    assert sorted(RECIPES) == SHIPPED


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_configurations_have_their_values(name: str) -> None:
    assert values(load_config(name)) == PAPER | RECIPES[name]


def test_later_values_win(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("model: {dim: 64, pooling: mean}\n")
    config = load_config(str(path), ["model.dim=32", "train.lr=1e-3"])
    assert (config.model.dim, config.model.pooling, config.train.lr) == (32, PoolingName.mean, 1e-3)


def test_a_base_is_beneath_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("model: {dim: 64, alpha: 0.3}\n")
    (tmp_path / "own.yaml").write_text("base: below\nmodel: {dim: 32}\n")
    expected = override(Config(), ["model.dim=32", "model.alpha=0.3"])
    assert load_config(str(tmp_path / "own.yaml")) == expected
    (tmp_path / "other.yaml").write_text("base: scenes\ntrain: {lr: 0.5}\n")
    assert load_config(str(tmp_path / "other.yaml")) == load_config("scenes", ["train.lr=0.5"])


@pytest.mark.parametrize(
    ("base", "part"),
    [
        ("own", "own.yaml has a base itself; only"),
        ("scenes2", "scenes2.yaml"),
        ("../below", "../below"),
        ("[scenes]", "scenes"),
    ],
)
def test_a_wrong_base_is_named_in_one_line(base: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"base: {base}\n")
    with pytest.raises(InputError) as error:
        load_config(str(path))
    assert str(error.value).startswith(f"{path}: base: ")
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_the_configuration_of_a_run_reads_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("base: scenes\n")
    with pytest.raises(InputError, match="base"):
        read_config(path)


def test_nothing_changes_a_configuration() -> None:
    config = Config()
    with pytest.raises(FrozenInstanceError):
        config.model.image.dim = 7  # type: ignore[misc]
    other = with_value(config, "model.image.dim", 7)
    assert (config.model.image.dim, other.model.image.dim) == (None, 7)
    assert differing_keys(config, other) == ["model.image.dim"]


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
        ("train.epoch=3", ["train.epoch", "train.epochs"]),
        ("trian.lr=3", ["trian", "train.lr"]),
        ("model.dim=big", ["model.dim", "big"]),
        ("model.dim=12", ["model.dim", "multiple of 8"]),
        ("model.image.dim=0", ["model.image.dim", "null or above 0"]),
        ("model.pooling=median", ["model.pooling", "median", "softmax"]),
        ("model.text.encoder=elmo", ["model.text.encoder", "bigru", "bert"]),
        ("loss.temperature=0", ["loss.temperature", "above 0"]),
        ("data.region_keep_prob=1.2", ["data.region_keep_prob", "from 0 to 1"]),
        ("train.batch_size=1", ["train.batch_size", "2 or more"]),
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


def test_the_documented_keys_are_those_of_the_code() -> None:
    document = (Path(__file__).parents[2] / "docs" / "chan.md").read_text()
    assert with_table(document) == document  # else: python -m chan.config docs/chan.md
    for found in keys_of(Config()):
        assert f"| `{found.name}` | " in document
        assert "|" not in found.help
    with pytest.raises(ValueError, match="keys"):
        with_table("no markers")


HOSTILE = {
    "environment": "train: {lr: '${oc.env:HOME}'}\n",
    "decode": "data: {vocab: '${oc.decode:x}'}\n",
    "another key": "train: {lr: '${train.clip}'}\n",
    "itself": "train: {lr: '${train.lr}'}\n",
    "an alias of itself": "train: &a {lr: *a}\n",
    "laughs": "a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "deep": "train: " + "[" * 3000 + "]" * 3000 + "\n",
    "deep by indentation": "".join(" " * n + "a:\n" for n in range(200)),
    "a huge integer": f"train: {{epochs: {'9' * 5000}}}\n",
    "a large integer": f"train: {{epochs: {'9' * 30}}}\n",
    "infinity": "train: {lr: .inf}\n",
    "no number": "loss: {margin: .nan}\n",
    "a tag": "train: !!python/object/apply:os.system [touch made-by-yaml]\n",
    "a list": "[1, 2]\n",
    "a key that is a list": "? [1, 2]\n: 3\n",
    "a key that is a number": "3: 4\n",
    "bytes": "\udcff",
    "NUL": "train: {lr: '\x00'}\n",
    "a missing value": "train: {lr: ???}\n",
}


@pytest.mark.parametrize("read", [read_config, lambda path: load_config(str(path))])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_yaml_from_outside_is_one_line_and_reaches_nothing(text: str, read, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "secret-of-the-environment")
    path = tmp_path / "own.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))
    assert "secret" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["own.yaml"]


@pytest.mark.parametrize(
    "argument",
    [
        *("train.lr=${oc.env:HOME}", "train.lr=.inf", "train.lr=nan", "train.lr=[1", "train.lr={a: b}", "train=3"),
        *(f"train.epochs={'9' * 5000}", "train.lr=1\x00", "train..lr=1", ".=1", "train.epochs=" + "[" * 3000),
    ],
)
def test_an_override_that_is_no_plain_value_is_one_line(argument: str) -> None:
    with pytest.raises(UsageError) as error:
        override(Config(), [argument])
    assert "\n" not in str(error.value)


def test_a_key_that_is_almost_right_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^model\.dims: no such key; did you mean model\.dim\?$"):
        override(Config(), ["model.dims=3"])
    (tmp_path / "own.yaml").write_text("train: {epoch: 3}\n")
    with pytest.raises(InputError, match=r"train\.epoch: no such key; did you mean train\.epochs\?$"):
        load_config(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["model.coding=global"],
            "model.pooling: expected one of gpo, mean, max with .*=global, found lse",
        ),
        (["model.pooling=gpo"], "model.pooling: gpo goes with model.coding=global, found vha"),
        (["model.image.encoder=mlp", "train.grad_cache_chunks=2"], "train.grad_cache_chunks: expected 1 with"),
    ],
)
def test_keys_that_do_not_fit_one_another_are_named_in_one_line(
    changes: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        override(Config(), changes)
    (tmp_path / "own.yaml").write_text(OmegaConf.to_yaml(OmegaConf.from_dotlist(changes)))
    with pytest.raises(InputError, match=rf"own\.yaml: {message}"):
        read_config(tmp_path / "own.yaml")


def test_keys_that_fit_together_may_come_in_any_order() -> None:
    for changes in (["model.coding=global", "model.pooling=max"], ["model.pooling=max", "model.coding=global"]):
        assert override(Config(), changes).model.coding == "global"
