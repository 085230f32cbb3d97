import pytest
from transformers import AutoTokenizer

from chan.text.tokenizers import BertTokenizer, VocabularyTokenizer, tokenize_captions
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError

CAPTIONS = ["A red square .", "", "a a"]


def tokenizer() -> VocabularyTokenizer:
    return VocabularyTokenizer(Vocabulary(["<pad>", "<start>", "<end>", "<unk>", "a", "red"]))


def test_vocabulary_words_and_ids() -> None:
    assert tokenizer().words(CAPTIONS[:1]) == [
        [("<start>", [1]), ("a", [4]), ("red", [5]), ("square", [3]), (".", [3]), ("<end>", [2])]
    ]


def test_the_mask_ends_the_vocabulary() -> None:
    assert (tokenizer().mask_id, tokenizer().vocab_size) == (6, 7)


def test_captions_are_found_again() -> None:
    words = tokenize_captions(tokenizer(), CAPTIONS)
    assert len(words) == 3
    assert words.caption(0) == [[1], [4], [5], [3], [3], [2]]
    assert words.caption(1) == [[1], [2]]
    assert words.caption(2) == [[1], [4], [4], [2]]


def test_bert_pieces_by_word(bert_folder: str) -> None:
    caption = "A snowboarder's mid-air somersault ."
    bert = BertTokenizer(bert_folder)
    words = bert.words([caption])[0]
    assert [word for word, _ in words][:3] == ["A", "snowboarder", "'"]
    own = AutoTokenizer.from_pretrained(bert_folder)
    ids = [*bert.prefix, *(piece for _, pieces in words for piece in pieces), *bert.suffix]
    assert ids == own(caption)["input_ids"]
    assert any(len(pieces) > 1 for _, pieces in words)
    assert own.convert_ids_to_tokens([bert.mask_id]) == ["[MASK]"]


def test_bert_cuts_what_is_too_long(bert_folder: str) -> None:
    bert = BertTokenizer(bert_folder)
    words = bert.words(["dog " * 2000])[0]
    assert 2 < len(words) + 2 <= 512


def test_a_bert_that_is_not_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # do not wait for the network
    with pytest.raises(InputError, match="no/such-bert") as error:
        BertTokenizer("no/such-bert")
    assert "\n" not in str(error.value)
