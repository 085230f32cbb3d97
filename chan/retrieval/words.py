"""The words of a query, and what each of them found in an image."""

from dataclasses import dataclass

import numpy as np

SPECIAL = ("<start>", "<end>")  # words that a vocabulary adds to every sentence


@dataclass(frozen=True)
class Word:
    """A word of a query.

    Attributes:
        text: as it was typed, or `<start>` and `<end>`, which a vocabulary adds.
        tokens: positions of its token embeddings in the caption.
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
        value: its largest cosine similarity with a region, of a word in pieces that of its best piece.
        region: the region that has it, 0 to K - 1.
        box: (4,) float32 x1 y1 x2 y2 of that region in pixels of the upright image; None where no boxes are known.
        drop: by how much the image's score falls when the word is struck; None where that was not asked for.
    """

    word: str
    value: float
    region: int
    box: np.ndarray | None = None
    drop: float | None = None
