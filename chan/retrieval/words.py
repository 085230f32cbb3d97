"""The words of a query, and what each of them found in an image."""

import re
from dataclasses import dataclass

import numpy as np

NO_REGIONS = "this model has one vector per image and per caption: it has no regions to show"
SPECIAL = ("<start>", "<end>")  # words that a vocabulary adds to every sentence
FUNCTION_WORDS = frozenset(
    """a about above across after against all along also am among an and another any are around as at away be
    because been before behind being below beneath beside besides between beyond both but by can could did do
    does down during each either else every few for from front had has have having he her here hers him his
    how i if in inside into is it its itself just left like many me more most much my near next no nor not of off
    on one only onto or other others our out outside over own past per right she should so some something such than
    that the their them themselves then there these they this those through to together too toward towards
    under until up upon us very was we were what when where which while who whose why will with within without
    would you your n't 's 're 'll 've 'm 'd""".split()  # noqa: SIM905 - prose reads better than a list
)


@dataclass(frozen=True)
class Word:
    """A word of a query.

    Attributes:
        text: as it was typed, or `<start>` and `<end>`, which a vocabulary adds.
        tokens: positions of its token embeddings in the caption; empty where the caption has one vector.
        known: whether the model's vocabulary has it.
    """

    text: str
    tokens: tuple[int, ...]
    known: bool = True


@dataclass(frozen=True)
class WordMatch:
    """What a word of a query found in an image.

    Attributes:
        word: as typed.
        value: its largest cosine similarity with a region, of a word in pieces that of its best piece; with SCAN's
            attention the largest share of its attention (t2i), or its largest share of a region's (i2t).
        region: the region that has it, 0 to K - 1.
        box: (4,) float32 x1 y1 x2 y2 of that region in pixels of the upright image; None where it is not known.
        drop: by how much the image's score falls when the word is struck; None where that was not asked for.
    """

    word: str
    value: float
    region: int
    box: np.ndarray | None = None
    drop: float | None = None


def is_content_word(word: str) -> bool:
    """Whether a word names something: no function word, no punctuation, no special token."""
    return bool(re.search(r"\w", word)) and not word.startswith("<") and word.lower() not in FUNCTION_WORDS
