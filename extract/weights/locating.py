"""Finding the weight file of a path, a URL, a Hugging Face repository, or a shipped configuration."""

import hashlib
import re
from pathlib import Path

from data_tools.configs import RUN_CONFIG, find_config
from data_tools.errors import InputError, UsageError
from data_tools.weights.downloads import download
from data_tools.weights.hub import HubSpec, first_file, is_hub
from extract.choices import DEFAULT_WEIGHTS, OTHER_WEIGHTS, RANDOM_WEIGHTS

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME on the Hugging Face hub
WEIGHT_ENDINGS = (".pth", ".pt", ".pkl", ".bin", ".safetensors", ".ckpt", ".h5", ".caffemodel")
RUN_WEIGHTS = "model_final.pth"  # in a folder that `butd train` wrote
REPOSITORY_FILES = ("model.safetensors", "pytorch_model.bin")  # in the order of search


def find_weights_of(config: str, spec: str | None) -> Path | None:
    """The weight file for a configuration; None for a random network.

    Args:
        config: name of a shipped configuration, a YAML file, or a folder that `butd train` wrote.
        spec: see `find_weights`; `random` for an untrained network; None for the configuration's default, or for
            the weights beside the configuration of a run.

    Raises:
        UsageError: `spec` is None and the configuration has no default; the message says what to give.
        InputError: see `find_weights` and `find_config`.
    """
    spec = spec or DEFAULT_WEIGHTS.get(config)
    if spec is None:
        path = find_config("extract", config)
        if path.name == RUN_CONFIG and path.with_name(RUN_WEIGHTS).is_file():
            return path.with_name(RUN_WEIGHTS)
        files = OTHER_WEIGHTS.get(config)
        raise UsageError(f"--config {config} needs --weights FILE" + (f": {files}" if files else ""))
    return None if spec == RANDOM_WEIGHTS else find_weights(spec)


def find_weights(spec: str) -> Path:
    """The weight file of a path, a URL, or a Hugging Face repository: OWNER/NAME or hf://OWNER/NAME@REVISION/FILE.

    A download is cached and not repeated.

    Raises:
        InputError: there is no such file, or it cannot be fetched and is not in the cache.
    """
    if Path(spec).is_file():
        return Path(spec)
    if spec.startswith(("http://", "https://")):
        return download(spec)
    if is_hub(spec):
        found = HubSpec.parse(spec)
        return first_file(found, REPOSITORY_FILES if found.file is None else [found.file])
    looks_like_file = Path(spec).suffix in WEIGHT_ENDINGS or (Path(spec).parent.is_dir() and "/" in spec)
    if Path(spec).exists() or looks_like_file or not REPOSITORY.fullmatch(spec):
        raise InputError(f"{spec}: no such weight file (nor the name OWNER/NAME of a Hugging Face repository)")
    try:
        return first_file(HubSpec(spec), REPOSITORY_FILES)
    except InputError as error:
        raise InputError(f"{spec}: no such file here; {error}") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
