"""Results of a search as plain data, for the page and its JSON interface.

A document of results has these keys:

query                   the sentence; absent where a region was looked for, which has `image` and `region` instead
words                   of the sentence: `text`, `known` (to the vocabulary), `content` (names something),
                        `weight`; none where the model has one vector per sentence
images, exact, way, seconds, max_weight
hits                    best first, see below

A hit has `id`, `score`, `width` and `height` in pixels or null, `thumbnail` (an address, or null), `regions`
([x1, y1, x2, y2] in pixels, null for a region without a box; or null where none has one), `labels` (attribute and
class of each region, or null), `region` (the one that is like the one looked for, or null), and `words`: `word`,
`value` (cosine, or attention), `region`, `box`, `drop` (by how much the score falls without the word).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from chan.retrieval.index import ImageIndex
from chan.retrieval.search import MAX_WEIGHT, Hit, IndexSearch, Query, Results
from chan.retrieval.words import WordMatch, is_content_word

Address = Callable[[Hit], str | None]
"""Where the thumbnail of a hit is found."""


def of_sentence(searched: IndexSearch, query: Query, results: Results, address: Address) -> dict[str, Any]:
    """The results of a sentence."""
    words = [
        {"text": word.text, "known": word.known, "content": is_content_word(word.text), "weight": weight}
        for word, weight in zip(query.words, query.weights, strict=True)
        if word.tokens
    ]
    return {"query": query.text, "words": words, **_common(searched.index, results, address)}


def of_region(
    searched: IndexSearch, image_id: str, region: int, results: Results, address: Address
) -> dict[str, Any]:
    """The images that hold a region like one of an image."""
    return {"image": image_id, "region": region, "words": [], **_common(searched.index, results, address)}


def of_match(match: WordMatch) -> dict[str, Any]:
    """What a word found."""
    return {
        "word": match.word,
        "value": round(match.value, 4),
        "region": match.region,
        "box": None if match.box is None else _edges(match.box),
        "drop": None if match.drop is None else round(match.drop, 4),
    }


def _common(index: ImageIndex, results: Results, address: Address) -> dict[str, Any]:
    return {
        "images": len(index),
        "exact": results.exact,
        "way": results.way,
        "seconds": round(results.seconds, 6),
        "max_weight": MAX_WEIGHT,
        "hits": [_hit(index, hit, address) for hit in results.hits],
    }


def _edges(box: np.ndarray) -> list[float] | None:
    """A box in pixels; None where it is NaN, which JSON does not have: a region without a box."""
    return None if np.isnan(box).any() else [round(float(edge), 1) for edge in box]


def _hit(index: ImageIndex, hit: Hit, address: Address) -> dict[str, Any]:
    boxes, size = index.boxes(hit.position), index.size(hit.position)
    return {
        "id": hit.image_id,
        "score": round(hit.score, 5),
        "width": None if size is None else size[1],
        "height": None if size is None else size[0],
        "thumbnail": address(hit),
        "regions": None if boxes is None else [_edges(box) for box in boxes],
        "labels": index.labels(hit.position),
        "region": hit.region,
        "words": [of_match(match) for match in hit.words],
    }
