"""Codings: one value per word, or per region, from the similarities of regions and words (CHAN, section 3.2).

By their names here:

vha   for each word its most similar region: visual hard assignment, the paper's
tha   for each region its most similar word: textual hard assignment
vsa   for each region its cosine with the words it attends to, softmax(similarity / alpha): soft assignment
t2i   for each word its cosine with the regions it attends to: SCAN's cross-attention (pooled by its mean there)

and, for models that have one vector per image and per caption (VSE++, VSE-infinity),

global    the product of the two vectors, which is the score

Shapes: B_i images, B_t captions, M regions of all images, T words of all captions, D joint dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chan.packing import Packed
from chan.scoring.hard_assignment import max_similarities
from chan.scoring.soft_assignment import attended_regions, attended_words

CODINGS = ("vha", "tha", "vsa", "t2i")
"""Those of regions and words."""
GLOBAL = "global"


@dataclass(frozen=True)
class Coding:
    """How the similarities of regions and words become values.

    Attributes:
        values: from images (M, D) and captions (T, D), both in order of length, and the type of the products
            (None: the rows' own) to (T, B_i) values if `of_words`, otherwise (M, B_t).
        of_words: whether there is one value per word and image, not one per region and caption.
        soft: whether several tensors of regions x words are held at once, so that tiles must be small.
        one_vector: whether an image and a caption are one row each, so that there are no regions and no words.
    """

    values: Callable[[Packed, Packed, torch.dtype | None], Tensor]
    of_words: bool
    soft: bool
    one_vector: bool = False


def make_coding(name: str, alpha: float) -> Coding:
    """The coding called `name` (one of `CODINGS`, or `GLOBAL`); `alpha` is the temperature of vsa's attention.

    Raises:
        ValueError: the name is unknown.
    """
    codings = {
        "vha": Coding(_best_regions, of_words=True, soft=False),
        "tha": Coding(_best_words, of_words=False, soft=False),
        "vsa": Coding(partial(_attended_words, alpha=alpha), of_words=False, soft=True),
        "t2i": Coding(attended_regions, of_words=True, soft=True),
        GLOBAL: Coding(_products_of_vectors, of_words=True, soft=False, one_vector=True),
    }
    if name not in codings:
        raise ValueError(f"coding {name!r}: expected one of {', '.join(codings)}")
    return codings[name]


def _best_regions(images: Packed, captions: Packed, precision: torch.dtype | None) -> Tensor:
    return max_similarities(captions.rows, images, precision)


def _best_words(images: Packed, captions: Packed, precision: torch.dtype | None) -> Tensor:
    return max_similarities(images.rows, captions, precision)


def _attended_words(images: Packed, captions: Packed, precision: torch.dtype | None, alpha: float) -> Tensor:
    return attended_words(images, captions, alpha, precision)


def _products_of_vectors(images: Packed, captions: Packed, precision: torch.dtype | None) -> Tensor:
    for what, side in (("image", images), ("caption", captions)):
        if len(side.rows) != len(side):
            raise ValueError(f"coding 'global': expected one vector per {what}, found {len(side.rows)} rows")
    kind = precision or images.rows.dtype
    return (captions.rows.to(kind) @ images.rows.to(kind).T).to(images.rows.dtype)
