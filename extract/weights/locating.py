"""Finding the weight file of a path, a URL, a Hugging Face repository, or a shipped configuration."""

import hashlib
import re
from pathlib import Path

from data_tools.errors import InputError, UsageError
from data_tools.weights.downloads import download
from extract.choices import DEFAULT_WEIGHTS, OTHER_WEIGHTS, RANDOM_WEIGHTS

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME on the Hugging Face hub
WEIGHT_ENDINGS = (".pth", ".pt", ".pkl", ".bin", ".safetensors", ".ckpt", ".h5", ".caffemodel")
REPOSITORY_FILE = "pytorch_model.bin"


def find_weights_of(config: str, spec: str | None) -> Path | None:
    """The weight file for a configuration; None for a random network.

    Args:
        config: name of a shipped configuration, or a YAML file.
        spec: see `find_weights`; `random` for an untrained network; None for the configuration's default.

    Raises:
        UsageError: `spec` is None and the configuration has no default; the message says what to give.
        InputError: see `find_weights`.
    """
    spec = spec or DEFAULT_WEIGHTS.get(config)
    if spec is None:
        files = OTHER_WEIGHTS.get(config)
        raise UsageError(f"--config {config} needs --weights FILE" + (f": {files}" if files else ""))
    return None if spec == RANDOM_WEIGHTS else find_weights(spec)


def find_weights(spec: str) -> Path:
    """The weight file of a path, a URL, or a Hugging Face repository (OWNER/NAME).

    A download is cached and not repeated.

    Raises:
        InputError: there is no such file, or it cannot be fetched and is not in the cache.
    """
    if Path(spec).is_file():
        return Path(spec)
    if spec.startswith(("http://", "https://")):
        return download(spec)
    looks_like_file = Path(spec).suffix in WEIGHT_ENDINGS or (Path(spec).parent.is_dir() and "/" in spec)
    if Path(spec).exists() or looks_like_file or not REPOSITORY.fullmatch(spec):
        raise InputError(f"{spec}: no such weight file (nor the name OWNER/NAME of a Hugging Face repository)")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(spec, REPOSITORY_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{spec}: no such file, and {REPOSITORY_FILE} of that Hugging Face repository could not be fetched "
            f"({type(error).__name__}); fix: download it elsewhere and give its path by --weights"
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
