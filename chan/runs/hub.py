"""Runs, features and indexes on the Hugging Face hub.

`hf://OWNER/NAME[@REVISION]` stands for a run, features or an index wherever one is read.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import InputError, UsageError, one_line
from data_tools.weights.hub import PREFIX, HubSpec, first_file, is_hub, snapshot

RUN_FILES = ("config.yaml", "features.json", "vocab.json", "bert/*", "best.safetensors")
STORE_FILES = ("*.h5", "*_ims.npy", "*_ids.txt", "*_caps.txt")
INDEX_FILES = ("manifest.json", "*")
CHECKPOINT_NAMES = ("model_best.pth", "model_best.pth.tar")  # of the public codes, in the order of search
LEFT_OUT = ("state.pt", "last.safetensors", "events.out.*", ".*", "*.tmp")  # of a run: what only resuming needs


def fetched_run(run: Path | str) -> Path:
    """The folder of a run: the given one, or the snapshot of a run on the hub.

    Raises:
        InputError: the name is malformed, or it cannot be fetched and is not in the cache.
    """
    return snapshot(_whole(str(run)), "model", RUN_FILES) if is_hub(run) else Path(run)


def fetched_features(features: Path | None) -> Path | None:
    """The same for a feature store or a folder of features."""
    if features is None or not is_hub(features):
        return features
    folder = snapshot(_whole(str(features)), "dataset", STORE_FILES)
    stores = sorted(folder.glob("*.h5"))
    return stores[0] if len(stores) == 1 else folder


def fetched_index(index: Path | str) -> Path:
    """The same for an index."""
    return snapshot(_whole(str(index)), "dataset", INDEX_FILES) if is_hub(index) else Path(index)


def fetched_checkpoint(spec: str) -> Path:
    """The file behind `hf://OWNER/NAME[@REVISION]/FILE`; without an ending it is the folder of a `model_best.pth`.

    Raises:
        InputError: the name is malformed, there is no such file, or it cannot be fetched and is not in the cache.
    """
    found = HubSpec.parse(spec)
    if found.file is None:
        raise InputError(f"{spec}: expected {PREFIX}OWNER/NAME/FILE or {PREFIX}OWNER/NAME@REVISION/FILE")
    names = [f"{found.file}/{name}" for name in CHECKPOINT_NAMES]
    return first_file(found, [found.file] if Path(found.file).suffix else names)


def _whole(spec: str) -> HubSpec:
    found = HubSpec.parse(spec)
    if found.file is not None:
        raise InputError(f"{spec}: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    return found


@dataclass(frozen=True)
class Upload:
    """What is pushed: a folder or file of one kind.

    Attributes:
        path: the run folder, index folder or store.
        kind: `run`, `store` or `index`.
    """

    path: Path
    kind: str

    @classmethod
    def of(cls, path: Path) -> "Upload":
        """Recognise what lies at a path.

        Raises:
            UsageError: it is none of them, or a run without finished epoch.
        """
        if path.is_file() and path.suffix in (".h5", ".hdf5"):
            return cls(path, "store")
        if (path / "manifest.json").is_file():
            return cls(path, "index")
        if (path / "config.yaml").is_file():
            if not (path / "best.safetensors").is_file():
                raise UsageError(f"{path}: no epoch of this run is finished yet")
            return cls(path, "run")
        raise UsageError(f"{path}: expected a run folder, a feature store (.h5) or an index")

    def push(self, repository: str, private: bool) -> str:
        """Upload it to a repository, which is made if it does not exist; the address of its page.

        Runs become model repositories, stores and indexes data set repositories.

        Raises:
            InputError: the hub refuses it or cannot be reached.
            UsageError: the name is not OWNER/NAME.
        """
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise UsageError(f"{repository}: expected OWNER/NAME")
        from huggingface_hub import HfApi

        api, repo_type = HfApi(), "model" if self.kind == "run" else "dataset"
        try:
            address = api.create_repo(repository, private=private, repo_type=repo_type, exist_ok=True)
            if self.kind == "store":
                api.upload_file(
                    path_or_fileobj=self.path, path_in_repo=self.path.name, repo_id=repository, repo_type=repo_type
                )
            else:
                api.upload_folder(
                    folder_path=self.path, repo_id=repository, repo_type=repo_type, ignore_patterns=list(LEFT_OUT)
                )
        except Exception as error:  # the client raises those of several HTTP libraries
            status = getattr(getattr(error, "response", None), "status_code", None)
            reason = "log in first: hf auth login" if status in (401, 403) else one_line(error, 120)
            raise InputError(f"{repository}: could not be pushed ({reason})") from None
        return str(address)
