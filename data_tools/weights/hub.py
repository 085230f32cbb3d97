"""Fetching from the Hugging Face hub: `hf://OWNER/NAME[@REVISION][/FILE]`, and what went wrong in one line.

What is fetched lies in the hub's cache, in a folder named by its commit, which `pinned` reads back.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import InputError, one_line

PREFIX = "hf://"
UNREACHABLE = "the hub cannot be reached, and it is not in the cache; fix: fetch it where there is a network"
_SPEC = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+?)(?:@(refs/\w+/\w+|[\w.-]+))?(?:/([\w.-]+(?:/[\w.-]+)*))?")
_CACHED = re.compile(r"(?:models|datasets)--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})")


@dataclass(frozen=True)
class HubSpec:
    """A name on the hub.

    Attributes:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None is the default branch.
        file: file or folder in the repository; None where none is named.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, spec: str) -> "HubSpec":
        """From `hf://OWNER/NAME[@REVISION][/FILE]`; a `Path` has lost one of the slashes.

        >>> HubSpec.parse("hf://me/run@v2/best.pth")
        HubSpec(repository='me/run', revision='v2', file='best.pth')

        Raises:
            InputError: it is no such name.
        """
        found = _SPEC.fullmatch(spec)
        if found is None or ".." in spec.split("/"):
            raise InputError(f"{spec}: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION, perhaps /FILE")
        return cls(*found.groups())


def is_hub(path: Path | str) -> bool:
    """Whether a path is the name of something on the hub."""
    return str(path).startswith("hf:/")


def pinned(path: Path) -> str | None:
    """`hf://OWNER/NAME@COMMIT` of what lies in a snapshot of the hub's cache; None for other paths."""
    found = _CACHED.search(path.as_posix())
    return found and f"{PREFIX}{found[1]}/{found[2]}@{found[3]}"


def snapshot(spec: HubSpec, kind: str, files: Sequence[str]) -> Path:
    """The folder of a repository's snapshot with what it has of the named files (patterns), at least one.

    Args:
        spec: the repository and its revision.
        kind: `model` or `dataset`.
        files: what is fetched.

    Raises:
        InputError: it has none of them, or it cannot be fetched and is not in the cache.
    """
    from huggingface_hub import snapshot_download

    with fetching(spec, kind):
        folder = Path(
            snapshot_download(spec.repository, repo_type=kind, revision=spec.revision, allow_patterns=list(files))
        )
    if not any(path for pattern in files for path in folder.glob(pattern)):
        raise InputError(f"{PREFIX}{spec.repository}: holds none of {', '.join(files)}")
    return folder


def first_file(spec: HubSpec, files: Sequence[str]) -> Path:
    """The first of the named files that a model repository has.

    Raises:
        InputError: as for `snapshot`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    unreachable: Exception | None = None
    for name in files:
        with fetching(spec, "model"):
            try:
                return Path(hf_hub_download(spec.repository, name, revision=spec.revision))
            except LocalEntryNotFoundError as error:  # there is no network; another file may be in the cache
                unreachable = error
            except EntryNotFoundError:
                pass
    with fetching(spec, "model"):
        if unreachable is not None:
            raise unreachable
    raise InputError(f"{PREFIX}{spec.repository}: holds none of {', '.join(files)}")


def quieten() -> None:
    """Let the hub's client print no warnings, one for each attempt; what is missing is said in one line."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a file is neither in reach nor in the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if error is None or isinstance(error, LocalEntryNotFoundError):
        return error is not None
    return is_unreachable(error.__cause__ or error.__context__)


@contextmanager
def fetching(spec: HubSpec, kind: str) -> Iterator[None]:
    """An `InputError` of one line for whatever the hub's client raises inside."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    quieten()
    try:
        yield
        return
    except GatedRepoError:
        reason = "its owner lets in only those whom they know; fix: ask on its page, and log in with hf auth login"
    except RepositoryNotFoundError:
        reason = f"the hub has no such {kind}, or it is private; fix: log in with hf auth login if it is yours"
    except RevisionNotFoundError:
        reason = f"it has no revision {spec.revision}"
    except LocalEntryNotFoundError:
        reason = UNREACHABLE
    except InputError:
        raise
    except Exception as error:  # the client raises those of several HTTP libraries
        reason = f"could not be fetched ({one_line(error, 120)})"
    raise InputError(f"{PREFIX}{spec.repository}: {reason}")
