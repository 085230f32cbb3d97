"""SCAN's vocabulary: words with their indices, four special tokens first."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_tools.captions.tokenization import tokenize
from data_tools.errors import InputError
from data_tools.files import read_json, replace_file

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNK = range(4)
MASK_TOKEN = "<mask>"


def count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each word occurs, in order of first occurrence."""
    return Counter(word for caption in captions for word in tokenize(caption))


@dataclass(frozen=True)
class Vocabulary:
    """A list of words whose positions are their indices; the first four are `SPECIAL`."""

    words: list[str]

    def __post_init__(self) -> None:
        if tuple(self.words[:4]) != SPECIAL:
            raise InputError(f"a vocabulary begins with {', '.join(SPECIAL)}, not {self.words[:4]}")
        if len(self._positions) != len(self.words):
            raise InputError("a vocabulary holds a word twice")

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {word: position for position, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._positions

    def index(self, word: str) -> int:
        """The index of `word`, that of `<unk>` where the vocabulary lacks it."""
        return self._positions.get(word, UNK)

    def with_mask(self) -> "Vocabulary":
        """This vocabulary ending with `<mask>`, as CHAN extends SCAN's files at run time."""
        return self if MASK_TOKEN in self else Vocabulary([*self.words, MASK_TOKEN])

    @classmethod
    def build(cls, captions: Iterable[str], threshold: int = 4) -> "Vocabulary":
        """The words that occur at least `threshold` times in `captions`, in order of first occurrence."""
        return cls.of_counts(count_words(captions), threshold)

    @classmethod
    def of_counts(cls, counts: Counter[str], threshold: int = 4) -> "Vocabulary":
        """The words with at least `threshold` occurrences, in the order of `counts`."""
        frequent = [word for word, count in counts.items() if count >= threshold and word not in SPECIAL]
        return cls([*SPECIAL, *frequent])

    def coverage(self, counts: Counter[str]) -> float:
        """The share of counted words, repeated ones as often as they occur, that are in the vocabulary."""
        known = sum(count for word, count in counts.items() if word in self)
        return known / max(counts.total(), 1)

    def compare(self, other: "Vocabulary", counts: Counter[str]) -> dict[str, int | float]:
        """How `other` differs: words in common and in one only, and its coverage of counted words."""
        common = sum(word in other for word in self.words)
        return {
            "words": len(other),
            "in both": common,
            "only here": len(self) - common,
            "only there": len(other) - common,
            "coverage": round(other.coverage(counts), 4),
        }

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read SCAN's JSON: `word2idx`, `idx2word` (string keys) and `idx`, the number of words.

        Raises:
            InputError: the file is absent, no JSON, or the indices are not 0, 1, 2, ...
        """
        document = read_json(path)
        index_of = document.get("word2idx") if isinstance(document, dict) else None
        if not isinstance(index_of, dict):
            raise InputError(f"{path}: expected SCAN's vocabulary, an object with the key word2idx")
        if sorted(index_of.values(), key=str) != sorted(range(len(index_of)), key=str):
            raise InputError(f"{path}: word2idx must number its {len(index_of)} words from 0 without gaps")
        try:
            return cls(sorted(index_of, key=index_of.__getitem__))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def save(self, path: Path) -> None:
        """Write SCAN's JSON: the keys in the order and the spacing of the published files, ASCII, one line.

        The published files list their words in the order of Python 2's hashes, which nothing can repeat; here
        they come by index, so that equal captions give equal bytes.
        """
        document = {
            "idx2word": {str(position): word for position, word in enumerate(self.words)},
            "word2idx": self._positions,
            "idx": len(self.words),
        }
        replace_file(path, json.dumps(document).encode())
