"""Captions as ids, word by word: through a vocabulary, or through the word pieces of BERT.

Both kinds say which ids stand before and after the words of every caption. The published code lets the
augmentation change a vocabulary's `<start>` and `<end>` like any word, and never BERT's [CLS] and [SEP]; so
the former are words here and the latter `prefix` and `suffix`.

Shapes: C captions, W words of all captions, P ids of all words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from chan.text.bert import load_tokenizer, save_architecture
from data_tools.captions.tokenization import tokenize
from data_tools.captions.vocabulary import END, MASK_TOKEN, START, Vocabulary

Word = tuple[str, list[int]]
"""A word as the caption spells it, and its ids."""


@dataclass(frozen=True)
class WordIds:
    """The ids of many captions; word w is `ids[word_offsets[w]:word_offsets[w + 1]]`.

    `ids` (P,) int32; `word_offsets` (W + 1,); `caption_offsets` (C + 1,) counts words.
    """

    ids: np.ndarray
    word_offsets: np.ndarray
    caption_offsets: np.ndarray

    def __len__(self) -> int:
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
    mask: int  # the id that hides a word
    size: int  # ids are below this

    def words(self, captions: Sequence[str]) -> list[list[Word]]:
        """The words of each caption."""

    def save(self, folder: Path) -> None:
        """Write to a run's folder what is needed to read captions in the same way."""


class VocabularyTokenizer:
    """One id a word; `<start>` and `<end>` are words."""

    prefix: list[int]
    suffix: list[int]

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary.with_mask()
        self.prefix, self.suffix = [], []
        self.mask, self.size = self.vocabulary.index(MASK_TOKEN), len(self.vocabulary)

    def words(self, captions: Sequence[str]) -> list[list[Word]]:
        """The tokens of each caption, `<start>` before and `<end>` behind them."""
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
        InputError: there is none, or its tokenizer is not BERT's.
    """

    prefix: list[int]
    suffix: list[int]

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokenizer: Any = load_tokenizer(source)
        self.prefix, self.suffix = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        self.mask, self.size = self.tokenizer.mask_token_id, len(self.tokenizer)
        self.room = min(self.tokenizer.model_max_length, 512) - 2  # word pieces beside [CLS] and [SEP]

    def words(self, captions: Sequence[str]) -> list[list[Word]]:
        """The words of each caption as BERT splits it; what exceeds BERT's longest input is cut off."""
        if not captions:
            return []
        encoded = self.tokenizer(
            list(captions),
            add_special_tokens=False,
            return_offsets_mapping=True,
            truncation=True,
            max_length=self.room,
        )
        found = []
        for number, caption in enumerate(captions):
            words: dict[int, tuple[int, int, list[int]]] = {}
            pieces = zip(
                encoded.word_ids(number),
                encoded["offset_mapping"][number],
                encoded["input_ids"][number],
                strict=True,
            )
            for word, (start, end), piece in pieces:
                first, _, ids = words.get(word, (start, end, []))
                words[word] = (first, end, [*ids, piece])
            found.append([(caption[first:last], ids) for first, last, ids in words.values()])
        return found

    def save(self, folder: Path) -> None:
        """Write the folder bert: the tokenizer and the architecture, without weights."""
        self.tokenizer.save_pretrained(folder / "bert")
        save_architecture(self.source, folder / "bert")


def read_words(reader: CaptionTokenizer, captions: Sequence[str]) -> WordIds:
    """The ids of all captions in one structure."""
    ids: list[int] = []
    word_offsets, caption_offsets = [0], [0]
    for first in range(0, len(captions), 4096):  # so many at a time that BERT's tokenizer uses its threads
        for words in reader.words(captions[first : first + 4096]):
            for _, word in words:
                ids.extend(word)
                word_offsets.append(len(ids))
            caption_offsets.append(len(word_offsets) - 1)
    return WordIds(np.array(ids, dtype=np.int32), np.array(word_offsets), np.array(caption_offsets))
