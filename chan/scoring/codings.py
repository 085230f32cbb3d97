"""Codings: one value per word, or per region, from the similarities of regions and words (CHAN, section 3.2).

By their names here:

vha   for each word its most similar region: visual hard assignment, the paper's
tha   for each region its most similar word: textual hard assignment
vsa   for each region its cosine with the words it attends to, softmax(similarity / alpha): soft assignment
t2i   for each word its cosine with the regions it attends to: SCAN's cross-attention, text to image
i2t   for each region its cosine with the words it attends to: the same, image to text

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
from chan.scoring.hard_assignment import best_keys, max_similarities
from chan.scoring.soft_assignment import NORMS, CrossAttention, attended_words

CODINGS = ("vha", "tha", "vsa", "t2i", "i2t")
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
        choices: from one image (K, D) and one caption (L, D) to the region that each word is shown with: (L,)
            values by which they were chosen, and (L,) int64 regions, 0 to K - 1.
        one_vector: whether an image and a caption are one row each, so that there are no regions and no words.
    """

    values: Callable[[Packed, Packed, torch.dtype | None], Tensor]
    of_words: bool
    soft: bool
    choices: Callable[[Packed, Packed], tuple[Tensor, Tensor]]
    one_vector: bool = False


def make_coding(
    name: str, alpha: float, similarity_norm: str = "clipped_l2norm", lambda_softmax: float = 9.0
) -> Coding:
    """The coding called `name`.

    Args:
        name: one of `CODINGS`, or `GLOBAL`.
        alpha: temperature of vsa's attention.
        similarity_norm: of t2i and i2t, see `CrossAttention`.
        lambda_softmax: likewise.

    Raises:
        ValueError: a name is unknown.
    """
    if similarity_norm not in NORMS:
        raise ValueError(f"similarity_norm {similarity_norm!r}: expected one of {', '.join(NORMS)}")
    attention = CrossAttention(similarity_norm, lambda_softmax)
    codings = {
        "vha": Coding(_best_regions, True, False, _most_similar),
        "tha": Coding(_best_words, False, False, _most_similar),
        "vsa": Coding(partial(_attended_words, alpha=alpha), False, True, _most_similar),
        "t2i": Coding(partial(_text_to_image, attention), True, True, partial(_attends, attention)),
        "i2t": Coding(partial(_image_to_text, attention), False, True, partial(_attended_by, attention)),
        GLOBAL: Coding(_products_of_vectors, True, False, _most_similar, one_vector=True),
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


def _text_to_image(
    attention: CrossAttention, images: Packed, captions: Packed, precision: torch.dtype | None
) -> Tensor:
    return attention.cosines(captions, images, precision)


def _image_to_text(
    attention: CrossAttention, images: Packed, captions: Packed, precision: torch.dtype | None
) -> Tensor:
    return attention.cosines(images, captions, precision)


def _products_of_vectors(images: Packed, captions: Packed, precision: torch.dtype | None) -> Tensor:
    for what, side in (("image", images), ("caption", captions)):
        if len(side.rows) != len(side):
            raise ValueError(f"coding 'global': expected one vector per {what}, found {len(side.rows)} rows")
    kind = precision or images.rows.dtype
    return (captions.rows.to(kind) @ images.rows.to(kind).T).to(images.rows.dtype)


def _most_similar(image: Packed, caption: Packed) -> tuple[Tensor, Tensor]:
    """The largest product of each word with a region."""
    value, region = best_keys(caption.rows, image)
    return value[:, 0], region[:, 0]


def _attends(attention: CrossAttention, image: Packed, caption: Packed) -> tuple[Tensor, Tensor]:
    """The largest share of each word's attention, and the region that has it."""
    value, region = attention.weights(caption, image).max(1)
    return value, region


def _attended_by(attention: CrossAttention, image: Packed, caption: Packed) -> tuple[Tensor, Tensor]:
    """The largest share that each word has of a region's attention, and that region."""
    value, region = attention.weights(image, caption).max(0)
    return value, region
