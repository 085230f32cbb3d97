"""The objects that are built have the values of their configuration."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertTokenizerFast

from chan.build import build_model, build_schedule, build_step, build_tokenizer, build_training_pairs
from chan.config import Config, load_config, override
from chan.data.splits import open_split
from chan.model.image_encoders import SelfAttention, Transformer
from chan.model.text_encoders import BertEncoder, BiGRUEncoder
from chan.packing import pack
from chan.runs.sizing import fill_sizes
from chan.scoring.pairwise import pairwise_scores
from chan.text.tokenizers import BertTokenizer, VocabularyTokenizer
from chan.training.distributed import Ranks
from data_tools.captions.vocabulary import SPECIAL, Vocabulary
from data_tools.configs import config_folder
from data_tools.errors import UsageError

CPU = torch.device("cpu")
SHIPPED = sorted(path.stem for path in config_folder("chan").glob("*.yaml"))
TOKENIZER = VocabularyTokenizer(Vocabulary([*SPECIAL, "word"]))


@pytest.fixture(scope="module")
def narrow_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The architecture of a BERT of one narrow layer, and a tokenizer that knows one word."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nword\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertConfig(vocab_size=6, **sizes).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_built(name: str, narrow_bert: str, tmp_path: Path) -> None:
    config = fill_sizes(load_config(name, [f"model.text.bert={narrow_bert}", "model.image.dim=64"]), 500)
    tokenizer = build_tokenizer(config, tmp_path, ["word"] * 5)
    step = build_step(config, tokenizer, CPU, Ranks(), pretrained=False)
    assert step.model.image_encoder.fc.weight.shape == (config.model.dim, 64)
    bert = config.model.text.encoder == "bert"
    assert isinstance(step.model.text_encoder, BertEncoder if bert else BiGRUEncoder)
    assert len(step.optimizer.param_groups) == (2 if bert else 1)
    schedule = build_schedule(config)
    assert (schedule.epochs, schedule.batch_size) == (config.train.epochs, config.train.batch_size)


def test_a_vocabulary_is_the_configured_one_then_the_data_sets_then_one_of_the_captions(tmp_path: Path) -> None:
    captions = ["one"] * 5
    assert "one" in words_of(Config(), tmp_path, captions)
    Vocabulary([*SPECIAL, "two"]).save(tmp_path / "vocab.json")
    assert words_of(Config(), tmp_path, captions) == [*SPECIAL, "two", "<mask>"]
    Vocabulary([*SPECIAL, "three"]).save(tmp_path / "other.json")
    named = override(Config(), [f"data.vocab={tmp_path / 'other.json'}"])
    assert words_of(named, tmp_path, captions) == [*SPECIAL, "three", "<mask>"]


def words_of(config: Config, data: Path, captions: list[str]) -> list[str]:
    tokenizer = build_tokenizer(config, data, captions)
    assert isinstance(tokenizer, VocabularyTokenizer)
    return list(tokenizer.vocabulary.words)


def test_berts_tokenizer_needs_no_vocabulary(narrow_bert: str, tmp_path: Path) -> None:
    config = override(Config(), ["model.text.encoder=bert", f"model.text.bert={narrow_bert}"])
    tokenizer = build_tokenizer(config, tmp_path, [])
    assert isinstance(tokenizer, BertTokenizer)
    assert (tokenizer.vocab_size, tokenizer.mask_id) == (6, 4)


def test_a_model_has_the_sizes_and_the_scoring_of_its_configuration() -> None:
    changes = ["model.dim=16", "model.text.word_dim=5", "model.image.encoder=transformer", "model.coding=vsa"]
    changes += ["model.alpha=0.3", "model.pooling=softmax", "model.beta=0.7", "model.text.normalise=false"]
    model = build_model(override(Config(), changes).model, 7, TOKENIZER, pretrained=False)
    assert model.image_encoder.fc.weight.shape == (16, 7)
    assert isinstance(model.image_encoder.feedforward, Transformer)
    assert isinstance(model.text_encoder, BiGRUEncoder)
    assert model.text_encoder.embed.weight.shape == (TOKENIZER.vocab_size, 5)
    assert (model.image_encoder.normalise, model.text_encoder.normalise) == (True, False)
    images, captions = pack([torch.eye(3)[:2], torch.eye(3)]), pack([torch.eye(3)[1:]])
    expected = pairwise_scores(
        images.rows,
        images.offsets,
        captions.rows,
        captions.offsets,
        coding="vsa",
        pooling="softmax",
        alpha=0.3,
        beta=0.7,
    )
    assert torch.equal(model.score(images, captions), expected)
    default = build_model(Config().model, 7, TOKENIZER, pretrained=False)
    assert isinstance(default.image_encoder.feedforward, SelfAttention)


def test_a_model_with_one_vector_aggregates_both_sides_and_multiplies() -> None:
    changes = ["model.coding=global", "model.pooling=gpo", "model.image.encoder=mlp", "model.dim=16"]
    changes += ["model.text.word_dim=5", "model.text.initial_range=0.1"]
    model = build_model(override(Config(), changes).model, 7, TOKENIZER, pretrained=False).eval()
    assert model.has_one_vector
    weights = [side.aggregation.gpo for side in (model.image_encoder, model.text_encoder)]
    assert None not in weights
    assert weights[0] is not weights[1]
    assert 0.09 < model.text_encoder.embed.weight.abs().max() <= 0.1
    images, captions = pack([torch.ones(2, 7), torch.eye(7)]), pack([torch.tensor([1, 4, 2])] * 3)
    sides = model.image_encoder(images), model.text_encoder(captions)
    torch.testing.assert_close(model(images, captions), sides[0].rows @ sides[1].rows.T)
    assert not build_model(Config().model, 7, TOKENIZER, pretrained=False).has_one_vector


def test_batch_normalisation_is_refused_in_several_processes() -> None:
    config = override(Config(), ["model.image.encoder=mlp", "model.image.dim=7"])
    with pytest.raises(UsageError, match=r"model\.image\.encoder=mlp: trains in one process"):
        build_step(config, TOKENIZER, CPU, Ranks(0, 2), pretrained=False)


def test_a_step_has_the_values_of_its_configuration() -> None:
    changes = ["model.dim=16", "model.image.dim=7", "train.lr=0.3", "train.weight_decay=0.2", "train.clip=1.5"]
    changes += ["train.grad_cache_chunks=3", "train.precision=fp16", "loss.mask_duplicates=false", "train.seed=5"]
    config = override(Config(), changes)
    step = build_step(config, TOKENIZER, CPU, Ranks(), pretrained=False)
    assert (step.clip, step.grad_cache_chunks, step.mask_duplicates) == (1.5, 3, False)
    assert (step.precision, step.scaler.is_enabled()) == ("fp16", True)
    assert [(group["lr"], group["weight_decay"]) for group in step.optimizer.param_groups] == [(0.3, 0.2)]
    again = build_step(config, TOKENIZER, CPU, Ranks(), pretrained=False)
    other = build_step(override(config, ["train.seed=6"]), TOKENIZER, CPU, Ranks(), pretrained=False)
    weights = [built.model.image_encoder.fc.weight for built in (step, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("cache", ["mmap", "memory"])
def test_pairs_are_augmented_as_configured(cache: str, dataset: Path) -> None:
    training = open_split(dataset, "train", None)
    changes = [f"data.cache={cache}", "data.region_keep_prob=0", "data.token_change_prob=1", "train.seed=4"]
    pairs, cached = build_training_pairs(override(Config(), changes), training, TOKENIZER, CPU)
    assert (cached is not None) == (cache == "memory")
    batch = pairs[[0, 5]]
    assert batch.images.lengths.tolist() == [1, 1]  # at least one region is kept
    assert (pairs.seed, pairs.token_change_prob) == (4, 1.0)
    if cached is not None:
        assert np.array_equal(cached.starts, training.counts.cumsum() - training.counts)
