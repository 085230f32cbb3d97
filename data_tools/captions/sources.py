"""What `data-tools splits` reads: Karpathy's JSON, COCO's caption files, or a table of one's own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.captions.coco import read_coco_captions
from data_tools.captions.collection import CaptionedImage
from data_tools.captions.karpathy import is_karpathy, read_karpathy
from data_tools.captions.tables import read_caption_table
from data_tools.errors import UsageError
from data_tools.files import read_json


@dataclass(frozen=True)
class Cut:
    """How a source that names no splits is cut."""

    id_lists: Mapping[str, Path] = field(default_factory=dict)  # of COCO's caption files
    dev: float = 0.1  # of a table: a number of images, or a share below 1
    test: float = 0.1
    seed: int = 2022


def id_lists(texts: Sequence[str]) -> dict[str, Path]:
    """The lists that `SPLIT=FILE` texts name; `UsageError` for another text or a split named twice."""
    lists: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not re.fullmatch(r"\w+", name) or not file or name in lists:
            raise UsageError(f"--ids {text}: expected SPLIT=FILE, each split once, for instance dev=dev_ids.txt")
        lists[name] = Path(file)
    return lists


def read_captioned_images(sources: Sequence[Path], cut: Cut) -> list[CaptionedImage]:
    """The images of one of Karpathy's files, of one or more caption files of COCO, or of one table.

    Raises:
        InputError: a file is malformed.
        UsageError: files of several kinds are given together, or lists of ids for a source that has splits.
    """
    if sources[0].suffix.lower() != ".json":
        _single(sources, cut)
        return read_caption_table(sources[0], cut.dev, cut.test, cut.seed)
    documents = [(path, read_json(path)) for path in sources]
    if is_karpathy(documents[0][1]) or not isinstance(documents[0][1], dict):
        _single(sources, cut)
        return read_karpathy(documents[0][1], sources[0])
    return read_coco_captions(documents, cut.id_lists)


def _single(sources: Sequence[Path], cut: Cut) -> None:
    if len(sources) > 1:
        raise UsageError(f"{sources[1]}: only COCO's caption files can be given together")
    if cut.id_lists:
        raise UsageError(f"--ids goes with COCO's caption files; {sources[0]} is something else")
