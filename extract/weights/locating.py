"""Finding the weight file that a user means: a path, a URL, or a Hugging Face repository."""

import hashlib
import re
from pathlib import Path

from data_tools.errors import InputError
from extract.weights.downloads import download

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/NAME on the Hugging Face hub
REPOSITORY_FILE = "pytorch_model.bin"


def find_weights(spec: str) -> Path:
    """The weight file that `spec` means: a path, a URL, or a Hugging Face repository.

    What is fetched is fetched once, then cached.

    Raises:
        InputError: there is no such file, or it cannot be fetched and is not in the cache.
    """
    if Path(spec).is_file():
        return Path(spec)
    if spec.startswith(("http://", "https://")):
        return download(spec)
    if Path(spec).exists() or not REPOSITORY.fullmatch(spec):
        raise InputError(f"{spec}: no such weight file")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(spec, REPOSITORY_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{spec}: no such file here, and {REPOSITORY_FILE} of that Hugging Face repository could not be "
            f"fetched ({type(error).__name__}); fetch it where there is a network and give its path by --weights"
        ) from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
