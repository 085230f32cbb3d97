"""Folders of BERTs that strangers made: no code of theirs runs, and what does not fit is one line."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from chan.text.bert import load_bert
from chan.text.tokenizers import BertTokenizer
from data_tools.errors import InputError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "red", "circle", "##s"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT of one layer with a vocabulary of a few words."""
    own = tmp_path / "bert"
    own.mkdir()
    pieces = Tokenizer(WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = BertPreTokenizer()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=pieces, cls_token="[CLS]", sep_token="[SEP]", **names
    ).save_pretrained(own)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(own)
    return own


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def complaint(folder: Path) -> str:
    def load() -> None:
        BertTokenizer(str(folder))
        load_bert(str(folder), pretrained=True)

    with pytest.raises(InputError) as raised:
        load()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(folder))
    assert "trust_remote_code" not in str(raised.value)
    assert "weights_only" not in str(raised.value)
    return str(raised.value)


def test_captions_are_cut_to_the_positions_of_the_model(folder: Path) -> None:
    tokenizer = BertTokenizer(str(folder))
    words = tokenizer.words(["red circles " * 10])[0]
    assert sum(len(ids) for _, ids in words) == 10
    ids = [tokenizer.prefix[0], *(i for _, own in words for i in own), tokenizer.suffix[0]]
    assert load_bert(str(folder), True)(torch.tensor([ids])).last_hidden_state.shape == (1, 12, 8)


def test_a_pickle_of_weights_gives_the_same_model_as_safetensors(folder: Path) -> None:
    expected = load_bert(str(folder), True).state_dict()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"bert.{name}": value for name, value in weights.items()}, folder / "pytorch_model.bin")
    found = load_bert(str(folder), True).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_of_weights_runs_nothing(folder: Path, tmp_path: Path, writer) -> None:
    (folder / "model.safetensors").unlink()
    writer({"embeddings.word_embeddings.weight": Evil(tmp_path / "mark")}, folder / "pytorch_model.bin")
    assert "system" in complaint(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_bert_is_not_run(folder: Path, tmp_path: Path, known: bool, monkeypatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'mark')!r}).touch()\n"
    (folder / "own.py").write_text(code + "class OwnConfig: pass\nclass OwnModel: pass\n")
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", "AutoTokenizer": ["own.OwnModel", None]}
    change_config(folder, auto_map=names, **({} if known else {"model_type": "own"}))
    if known:  # BERT's own code reads it
        load_bert(str(folder), True)
        BertTokenizer(str(folder))
    else:
        assert "code that comes with it" in complaint(folder)
    assert not (tmp_path / "mark").exists()


def test_a_folder_without_a_vocabulary_is_refused(folder: Path) -> None:
    for name in ("vocab.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    assert str(folder) in complaint(folder)


def test_a_vocabulary_larger_than_the_model_is_refused(folder: Path) -> None:
    change_config(folder, vocab_size=20)
    assert f"{len(WORDS)} tokens, its model only 20" in complaint(folder)


def test_too_few_positions_are_refused(folder: Path) -> None:
    change_config(folder, max_position_embeddings=2)
    assert "too few positions" in complaint(folder)


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 133466304\n", b"", b"PK\x03\x04"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_or_a_cut_weight_file_is_one_line(folder: Path, name: str, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    assert str(folder) in complaint(folder)


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    change_config(folder, num_hidden_layers=2)
    assert "do not fit" in complaint(folder)
    change_config(folder, num_hidden_layers=1, hidden_size=16)
    assert str(folder) in complaint(folder)


def test_weights_that_are_no_numbers_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][3, 2] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "embeddings.word_embeddings.weight" in complaint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model_type": 3}', "[" * 5000])
def test_damaged_json_is_one_line(folder: Path, name: str, content: str) -> None:
    if (name, content) == ("tokenizer_config.json", '{"model_type": 3}'):
        pytest.skip("an unknown key there is no damage")
    (folder / name).write_text(content)
    assert str(folder) in complaint(folder)
