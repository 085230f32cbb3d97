"""Pretrained BERTs, by name at Hugging Face or from a folder; an `InputError` of one line where there is none.

`transformers` takes seconds to import, so it is imported only where a BERT is needed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_tools.errors import InputError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loaded = TypeVar("Loaded")


def load_bert_tokenizer(source: str) -> Any:
    """The tokenizer of a BERT, by the BERT's name or folder.

    Raises:
        InputError: there is none, it cannot tell which pieces make a word, or it lacks BERT's special tokens.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(source, lambda: AutoTokenizer.from_pretrained(source))
    names = ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id")
    if not tokenizer.is_fast or any(getattr(tokenizer, name) is None for name in names):
        raise InputError(f"{source}: expected a tokenizer of BERT's family, with [CLS], [SEP], [MASK] and [PAD]")
    return tokenizer


def load_bert(source: str, pretrained: bool) -> "PreTrainedModel":
    """A BERT with its pretrained weights, or, without `pretrained`, of its architecture with random ones.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoConfig, AutoModel

    if pretrained:
        return _load(source, lambda: AutoModel.from_pretrained(source))
    return _load(source, lambda: AutoModel.from_config(AutoConfig.from_pretrained(source)))


def save_architecture(source: str, folder: Path) -> None:
    """Write the architecture of a BERT, its config.json, to `folder`.

    Raises:
        InputError: there is no such BERT.
    """
    from transformers import AutoConfig

    _load(source, lambda: AutoConfig.from_pretrained(source)).save_pretrained(folder)


def _load(source: str, load: Callable[[], Loaded]) -> Loaded:
    from transformers.utils import logging

    logging.disable_progress_bar()  # commands show their own
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source}: neither a BERT's folder nor the name of one: {one_line(error)}") from None
