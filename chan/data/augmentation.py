"""Training augmentation: regions are dropped; words are masked, replaced or removed.

The published code can leave an image without regions or a caption without words; here at least one is always kept.
"""

from collections.abc import Sequence

import numpy as np

MASKED, REPLACED = 0.5, 0.1  # shares of the changed words; the remaining ones are removed


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one pair in one epoch: the same in every process and in any order of the pairs."""
    return np.random.default_rng((seed, epoch, index))


def kept_regions(regions: int, keep: float, random: np.random.Generator) -> np.ndarray:
    """Positions (kept,) int64 of the regions that are kept, each with probability `keep`; at least one.

    >>> kept_regions(3, 1.0, generator(seed=0, epoch=0, index=0)).tolist()
    [0, 1, 2]
    """
    kept = np.flatnonzero(random.random(regions) < keep)
    return kept if len(kept) else random.integers(regions, size=1)


def changed_words(
    words: Sequence[Sequence[int]], change: float, mask_id: int, vocab_size: int, random: np.random.Generator
) -> list[int]:
    """The ids of a caption after each word was changed with probability `change`; at least one word is kept.

    >>> changed_words([[7], [8, 9]], 0.0, mask_id=6, vocab_size=10, random=generator(0, 0, 0))
    [7, 8, 9]

    Args:
        words: the ids of each word: one of a vocabulary, or BERT's word pieces, which change together.
        change: probability of a change: to `mask_id` (half of them), to random ids (a tenth), or removal.
        mask_id: the id of the mask token.
        vocab_size: random ids are below this.
        random: random number generator of the pair.
    """
    decisions = random.random(len(words)) / change if change else np.full(len(words), np.inf)
    ids: list[int] = []
    for pieces, decision in zip(words, decisions, strict=True):
        if decision >= 1:
            ids.extend(pieces)
        elif decision < MASKED:
            ids.extend([mask_id] * len(pieces))
        elif decision < MASKED + REPLACED:
            ids.extend(random.integers(vocab_size, size=len(pieces)).tolist())
    if not ids and words:
        ids.extend(words[int(random.integers(len(words)))])
    return ids
