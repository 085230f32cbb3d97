"""The inputs of `data-tools splits`: Karpathy's JSON, COCO's caption files, or a table of captions."""

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
class SplitOptions:
    """How images are assigned to splits where the source does not say it.

    Attributes:
        id_lists: for COCO's caption files: file of ids by split.
        dev, test: for a table: number of images, or a fraction below 1.
        seed: for a table: of the random assignment.
    """

    id_lists: Mapping[str, Path] = field(default_factory=dict)
    dev: float = 0.1
    test: float = 0.1
    seed: int = 2022


def parse_id_lists(texts: Sequence[str]) -> dict[str, Path]:
    """Parse `SPLIT=FILE` arguments; `UsageError` for any other form or a repeated split.

    >>> parse_id_lists(["dev=dev_ids.txt"])["dev"].name
    'dev_ids.txt'
    """
    lists: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not re.fullmatch(r"\w+", name) or not file or name in lists:
            raise UsageError(f"--ids {text}: expected SPLIT=FILE, each split once, for instance dev=dev_ids.txt")
        lists[name] = Path(file)
    return lists


def read_captioned_images(
    sources: Sequence[Path], options: SplitOptions, notes: list[str] | None = None
) -> list[CaptionedImage]:
    """Read captioned images with their splits.

    Args:
        sources: one of Karpathy's files, one or more of COCO's caption files, or one table.
        options: how to assign images to splits where the source does not.
        notes: what the user should know is added to it, one line each.

    Raises:
        InputError: a file is malformed.
        UsageError: several files are given that are not COCO's, or id lists for a source that is not COCO's.
    """
    if sources[0].suffix.lower() != ".json":
        _check_single(sources, options)
        return read_caption_table(sources[0], options.dev, options.test, options.seed, notes)
    documents = [(path, read_json(path)) for path in sources]
    if is_karpathy(documents[0][1]) or not isinstance(documents[0][1], dict):
        _check_single(sources, options)
        return read_karpathy(documents[0][1], sources[0])
    return read_coco_captions(documents, options.id_lists)


def _check_single(sources: Sequence[Path], options: SplitOptions) -> None:
    if len(sources) > 1:
        raise UsageError(f"{sources[1]}: only COCO's caption files can be given together; fix: give one file")
    if options.id_lists:
        raise UsageError(f"--ids: only for COCO's caption files; {sources[0]} is something else")
