"""Training augmentation: regions that are left out, words that are masked, replaced or removed.

The published code can leave an image without regions or a caption without words; here one always stays.
"""

from collections.abc import Sequence

import numpy as np

MASKED, REPLACED = 0.5, 0.1  # shares of the changed words; the others are removed


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one pair in one epoch, whichever process draws them and in whatever order."""
    return np.random.default_rng((seed, epoch, index))


def kept_regions(regions: int, keep: float, random: np.random.Generator) -> np.ndarray:
    """Positions, int64, of the regions that stay, each with probability `keep`; never none."""
    kept = np.flatnonzero(random.random(regions) < keep)
    return kept if len(kept) else random.integers(regions, size=1)


def changed_words(
    words: Sequence[Sequence[int]], change: float, mask: int, vocabulary: int, random: np.random.Generator
) -> list[int]:
    """The ids that remain after each word was changed with probability `change`; never none.

    Args:
        words: the ids of each word: one of a vocabulary's, or the pieces of BERT, which change together.
        change: half of the changed words become `mask`, a tenth random ids, four tenths vanish.
        mask: the id of the mask token.
        vocabulary: random ids are below this.
        random: where the decisions come from.
    """
    decisions = random.random(len(words)) / change if change else np.full(len(words), np.inf)
    ids: list[int] = []
    for pieces, decision in zip(words, decisions, strict=True):
        if decision >= 1:
            ids.extend(pieces)
        elif decision < MASKED:
            ids.extend([mask] * len(pieces))
        elif decision < MASKED + REPLACED:
            ids.extend(random.integers(vocabulary, size=len(pieces)).tolist())
    if not ids and words:
        ids.extend(words[int(random.integers(len(words)))])
    return ids
