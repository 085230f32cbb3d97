"""SCAN's vocabulary: a list of words, in which four special tokens come first."""

import json
import pickle
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_tools.captions.tokenization import tokenize
from data_tools.errors import InputError, reading
from data_tools.files import read_json, replace_file

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PAD, START, END, UNK = range(4)
MASK_TOKEN = "<mask>"


def count_words(captions: Iterable[str]) -> Counter[str]:
    """How often each token occurs in the captions, in order of first occurrence."""
    return Counter(word for caption in captions for word in tokenize(caption))


@dataclass(frozen=True)
class Vocabulary:
    """A list of distinct words; the position of a word is its index, and the first four are `SPECIAL`.

    >>> vocabulary = Vocabulary.build(["a red dog", "a dog"], threshold=2)
    >>> vocabulary.words[4:], vocabulary.index("dog"), vocabulary.index("red") == UNK
    (['a', 'dog'], 5, True)

    Raises:
        InputError: the list begins with other words, or repeats one.
    """

    words: list[str]

    def __post_init__(self) -> None:
        if tuple(self.words[:4]) != SPECIAL:
            raise InputError(f"a vocabulary begins with {', '.join(SPECIAL)}, found {self.words[:4]}")
        if len(self._positions) != len(self.words):
            raise InputError("a vocabulary repeats a word")

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {word: position for position, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._positions

    def index(self, word: str) -> int:
        """The index of `word`, or that of `<unk>` for a word that is not in the vocabulary."""
        return self._positions.get(word, UNK)

    def with_mask(self) -> "Vocabulary":
        """This vocabulary with `<mask>` appended, as CHAN extends SCAN's vocabularies at run time."""
        return self if MASK_TOKEN in self else Vocabulary([*self.words, MASK_TOKEN])

    @classmethod
    def build(cls, captions: Iterable[str], threshold: int = 4) -> "Vocabulary":
        """The vocabulary of the words that occur at least `threshold` times in `captions`.

        Args:
            captions: texts; `tokenize` splits them into words.
            threshold: minimum number of occurrences; SCAN's published vocabularies use 4.

        Returns:
            The special tokens, then the words in order of first occurrence.
        """
        return cls.of_counts(count_words(captions), threshold)

    @classmethod
    def of_counts(cls, counts: Counter[str], threshold: int = 4) -> "Vocabulary":
        """The vocabulary of the words with at least `threshold` occurrences, in the order of `counts`."""
        frequent = [word for word, count in counts.items() if count >= threshold and word not in SPECIAL]
        return cls([*SPECIAL, *frequent])

    def coverage(self, counts: Counter[str]) -> float:
        """The fraction, 0 to 1, of all counted occurrences whose word is in the vocabulary."""
        known = sum(count for word, count in counts.items() if word in self)
        return known / max(counts.total(), 1)

    def compare(self, other: "Vocabulary", counts: Counter[str]) -> dict[str, int | float]:
        """Compare with `other`: words in both and in one only, and the coverage of `counts` by `other`."""
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

        SCAN's older files are pickles of an object with these attributes; nothing in one is run.

        Raises:
            InputError: the file is missing or not such JSON, or the indices are not 0, 1, 2, ...
        """
        document = _read_pickled(path) if _is_pickle(path) else read_json(path)
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
        """Write SCAN's JSON with the keys, the spacing and the ASCII escapes of the published files, on one line.

        The published files list words in the hash order of Python 2, which cannot be reproduced; here they are
        ordered by index, so that equal captions give equal bytes.
        """
        document = {
            "idx2word": {str(position): word for position, word in enumerate(self.words)},
            "word2idx": self._positions,
            "idx": len(self.words),
        }
        replace_file(path, json.dumps(document).encode())


class _Pickled:
    """SCAN's class `Vocabulary`, of which only the attributes are read."""


class _VocabularyOnly(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`."""
        if name == "Vocabulary":
            return _Pickled
        if (module, name) in (("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor")):
            return lambda kind, base, state: _Pickled()
        if (module, name) in (("__builtin__", "object"), ("builtins", "object")):
            return object
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and was not run")


def _is_pickle(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"(i", b"cc", b"cv")
    return False


def _read_pickled(path: Path) -> Any:
    with reading(path, "not SCAN's vocabulary"), path.open("rb") as file:
        return vars(_VocabularyOnly(file, encoding="utf-8").load())
