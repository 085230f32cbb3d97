"""Pretrained BERTs, by name at Hugging Face or from a folder, and one clear complaint where there is none.

transformers takes seconds to import, so only what needs a BERT does.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_tools.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Loaded = TypeVar("Loaded")


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a BERT.

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
    """A BERT with its own weights, or, without `pretrained`, of its architecture with random ones.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoConfig, AutoModel

    if pretrained:
        return _load(source, lambda: AutoModel.from_pretrained(source))
    return _load(source, lambda: AutoModel.from_config(AutoConfig.from_pretrained(source)))


def save_architecture(source: str, folder: Path) -> None:
    """Write the architecture of a BERT, its config.json, to `folder`."""
    from transformers import AutoConfig

    _load(source, lambda: AutoConfig.from_pretrained(source)).save_pretrained(folder)


def _load(source: str, load: Callable[[], Loaded]) -> Loaded:
    from transformers.utils import logging

    logging.disable_progress_bar()  # commands show their own
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: no BERT folder, and none of that name to be had: {reason}") from None
