"""Tokenizers: captions to token ids, grouped by word, by a vocabulary or by BERT's word pieces.

Both say which ids precede and follow the words of every caption. In the published code the augmentation may change
a vocabulary's `<start>` and `<end>` like any word, but never BERT's [CLS] and [SEP]; so the former are words here
and the latter are `prefix` and `suffix`.

Shapes: C captions, W words of all captions, P ids of all words.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from chan.text.bert import load_bert_config, load_bert_tokenizer, max_tokens, save_architecture
from data_tools.captions.tokenization import tokenize
from data_tools.captions.vocabulary import END, MASK_TOKEN, START, UNK, Vocabulary
from data_tools.errors import InputError

Word = tuple[str, list[int]]
"""A word as it is written in the caption, and its ids."""

BATCH_CAPTIONS = 4096  # tokenized at a time: enough that BERT's tokenizer uses its threads


@dataclass(frozen=True)
class WordIds:
    """The ids of many captions; word w is `ids[word_offsets[w]:word_offsets[w + 1]]`.

    `ids` (P,) int32; `word_offsets` (W + 1,); `caption_offsets` (C + 1,) counts words.
    """

    ids: np.ndarray
    word_offsets: np.ndarray
    caption_offsets: np.ndarray

    def __len__(self) -> int:
        """How many captions there are."""
        return len(self.caption_offsets) - 1

    def caption(self, index: int) -> list[list[int]]:
        """The ids of each word of a caption."""
        first, last = self.caption_offsets[index : index + 2]
        bounds = self.word_offsets[first : last + 1]
        ids = self.ids[bounds[0] : bounds[-1]].tolist()
        starts = (bounds - bounds[0]).tolist()
        return [ids[first:last] for first, last in pairwise(starts)]


class CaptionTokenizer(Protocol):
    """Turns captions into words with ids."""

    prefix: list[int]  # ids before the first word
    suffix: list[int]  # ids after the last word
    mask_id: int  # the id of the mask token
    unknown_id: int  # the id of what the tokenizer does not know
    vocab_size: int  # ids are 0 to vocab_size - 1

    def words(self, captions: Sequence[str]) -> list[list[Word]]:
        """The words of each caption."""

    def save(self, folder: Path) -> None:
        """Write to a run's folder what is needed to tokenize captions in the same way."""


class VocabularyTokenizer:
    """One id per word; `<start>` and `<end>` are words.

    >>> tokenizer = VocabularyTokenizer(Vocabulary.build(["a red square", "a circle"], threshold=1))
    >>> [word for word, ids in tokenizer.words(["A circle."])[0]]
    ['<start>', 'a', 'circle', '.', '<end>']
    """

    prefix: list[int]
    suffix: list[int]

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary.with_mask()
        self.prefix, self.suffix = [], []
        self.mask_id, self.unknown_id = self.vocabulary.index(MASK_TOKEN), UNK
        self.vocab_size = len(self.vocabulary)

    def words(self, captions: Sequence[str]) -> list[list[Word]]:
        """The tokens of each caption, between `<start>` and `<end>`."""
        index = self.vocabulary.index
        return [
            [("<start>", [START]), *((word, [index(word)]) for word in tokenize(caption)), ("<end>", [END])]
            for caption in captions
        ]

    def save(self, folder: Path) -> None:
        """Write vocab.json."""
        self.vocabulary.save(folder / "vocab.json")


class BertTokenizer:
    """The word pieces of each word, between [CLS] and [SEP].

    Args:
        source: name or folder of a BERT.

    Raises:
        InputError: there is none, its tokenizer is not BERT's, or it does not fit the model.
    """

    prefix: list[int]
    suffix: list[int]

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokenizer: Any = load_bert_tokenizer(source)
        self.prefix, self.suffix = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        self.mask_id, self.unknown_id = self.tokenizer.mask_token_id, self.tokenizer.unk_token_id
        self.vocab_size = len(self.tokenizer)
        config = load_bert_config(source)
        if self.vocab_size > config.vocab_size:
            raise InputError(
                f"{source}: its tokenizer has {self.vocab_size} tokens, its model only {config.vocab_size}"
            )
        self.max_pieces = min(self.tokenizer.model_max_length, max_tokens(config)) - 2  # between [CLS] and [SEP]
        if self.max_pieces < 1:
            raise InputError(f"{source}: its model has too few positions for a word between [CLS] and [SEP]")

    def words(self, captions: Sequence[str]) -> list[list[Word]]:
        """The words of each caption as BERT splits it, truncated to BERT's maximum input length."""
        if not captions:
            return []
        encoded = self.tokenizer(
            list(captions),
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=True,
            max_length=self.max_pieces,
        )
        return [
            _words_of(
                caption,
                zip(
                    encoded.word_ids(number),
                    encoded["offset_mapping"][number],
                    encoded["input_ids"][number],
                    strict=True,
                ),
            )
            for number, caption in enumerate(captions)
        ]

    def save(self, folder: Path) -> None:
        """Write the folder bert: the tokenizer and the architecture, without weights."""
        self.tokenizer.save_pretrained(folder / "bert")
        save_architecture(self.source, folder / "bert")


def _words_of(caption: str, pieces: Iterable[tuple[int, tuple[int, int], int]]) -> list[Word]:
    """The words of a caption from its word pieces: of each the word's number, first and last character, and id."""
    words: dict[int, tuple[int, int, list[int]]] = {}
    for word, (start, end), piece in pieces:
        first, _, ids = words.get(word, (start, end, []))
        words[word] = (first, end, [*ids, piece])
    return [(caption[first:last], ids) for first, last, ids in words.values()]


def tokenize_captions(tokenizer: CaptionTokenizer, captions: Sequence[str]) -> WordIds:
    """The ids of all captions in one structure, without the tokenizer's prefix and suffix.

    >>> tokenizer = VocabularyTokenizer(Vocabulary.build(["a red square"], threshold=1))
    >>> words = tokenize_captions(tokenizer, ["a square", "a red square"])
    >>> len(words), len(words.caption(0)), len(words.caption(1))
    (2, 4, 5)
    """
    ids: list[int] = []
    word_offsets, caption_offsets = [0], [0]
    for first in range(0, len(captions), BATCH_CAPTIONS):
        for words in tokenizer.words(captions[first : first + BATCH_CAPTIONS]):
            for _, word in words:
                ids.extend(word)
                word_offsets.append(len(ids))
            caption_offsets.append(len(word_offsets) - 1)
    return WordIds(np.array(ids, dtype=np.int32), np.array(word_offsets), np.array(caption_offsets))
