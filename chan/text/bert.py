"""Pretrained BERTs, by name at Hugging Face or from a folder; an `InputError` of one line where there is none.

Code that comes with a BERT is never run. Weights are read from safetensors; from a pickle, where there is nothing
else, only arrays and tensors are taken.

`transformers` takes seconds to import, so it is imported only where a BERT is needed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_tools.errors import InputError, reading
from data_tools.weights.hub import UNREACHABLE, is_unreachable, quieten
from data_tools.weights.pickles import read_pickle
from data_tools.weights.states import check_finite

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Loaded = TypeVar("Loaded")

MAX_TOKENS = 512  # BERT's
PICKLED = "pytorch_model.bin"


def load_bert_tokenizer(source: str) -> Any:
    """The tokenizer of a BERT, by the BERT's name or folder.

    Raises:
        InputError: there is none, it cannot tell which pieces make a word, or it lacks a vocabulary or BERT's
            special tokens.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(source, lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    names = ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id")
    if not tokenizer.is_fast or any(getattr(tokenizer, name) is None for name in names):
        raise InputError(f"{source}: expected a tokenizer of BERT's family, with [CLS], [SEP], [MASK] and [PAD]")
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise InputError(f"{source}: its tokenizer has no words; expected tokenizer.json or vocab.txt beside it")
    return tokenizer


def load_bert_config(source: str) -> "PretrainedConfig":
    """The architecture of a BERT; `InputError` where there is none."""
    from transformers import AutoConfig

    return _load(source, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False))


def max_tokens(config: "PretrainedConfig") -> int:
    """How many tokens a BERT takes, by its position embeddings; RoBERTa's begin after the one of the padding."""
    positions = getattr(config, "max_position_embeddings", MAX_TOKENS)
    unused = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    return min(positions - unused, MAX_TOKENS)


def load_bert(source: str, pretrained: bool) -> "PreTrainedModel":
    """A BERT with its pretrained weights, or, without `pretrained`, of its architecture with random ones.

    Raises:
        InputError: there is none, or its weights are damaged or do not fit its architecture.
    """
    from transformers import AutoModel

    config = load_bert_config(source)
    if not pretrained:
        return _load(source, lambda: AutoModel.from_config(config, trust_remote_code=False))
    pickled = _pickled_weights(source)
    if pickled is None:
        model, info = _load(
            source,
            lambda: AutoModel.from_pretrained(
                source, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            ),
        )
        missing = info["missing_keys"]
    else:
        model = _load(source, lambda: AutoModel.from_config(config, trust_remote_code=False))
        with reading(pickled, "does not fit config.json"):
            missing = _place(model, read_pickle(pickled))
    missing = [name for name in missing if not name.startswith("pooler.")]  # which is not used
    if missing:
        raise InputError(f"{source}: its weights do not fit its config.json: {len(missing)} are missing")
    try:
        check_finite(model.state_dict())
    except ValueError as error:
        raise InputError(f"{source}: its weights: {error}") from None
    return model


def save_architecture(source: str, folder: Path) -> None:
    """Write the architecture of a BERT, its config.json, to `folder`.

    Raises:
        InputError: there is no such BERT.
    """
    load_bert_config(source).save_pretrained(folder)


def _place(model: "PreTrainedModel", state: Any) -> list[str]:
    """Load a pickle's weights into a model, under the names of today; returns the names that it lacks."""
    if not isinstance(state, Mapping):
        raise ValueError("expected tensors by name")
    renamed = {}
    for name, value in state.items():
        name = str(name).removeprefix(f"{model.base_model_prefix}.")
        renamed[
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        ] = value
    return list(model.load_state_dict(renamed, strict=False).missing_keys)


def _pickled_weights(source: str) -> Path | None:
    """The pickle with a BERT's weights where it has no safetensors; None where it has."""
    folder = Path(source)
    if folder.is_dir():
        has_safetensors = any(folder.glob("*.safetensors*"))
        return None if has_safetensors or not (folder / PICKLED).is_file() else folder / PICKLED
    from huggingface_hub import file_exists, hf_hub_download, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(source, "model.safetensors"), str):
        return None
    cached = try_to_load_from_cache(source, PICKLED)
    if isinstance(cached, str):
        return Path(cached)
    if _load(source, lambda: file_exists(source, "model.safetensors")):
        return None
    return Path(_load(source, lambda: hf_hub_download(source, PICKLED)))


def _load(source: str, load: Callable[[], Loaded]) -> Loaded:
    from transformers.utils import logging

    logging.disable_progress_bar()  # commands show their own
    quieten()
    with reading(source, "neither a BERT's folder nor the name of one"):
        try:
            return load()
        except (OSError, ValueError) as error:
            if is_unreachable(error):
                raise InputError(f"{source}: no such folder; {UNREACHABLE}, and give its folder") from None
            if "trust_remote_code" in str(error):
                raise InputError(f"{source}: needs code that comes with it, which is never run here") from None
            raise
