"""Captions from a table of (image, caption) in CSV, TSV or JSON lines, with random splits if it names none."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from data_tools.captions.collection import CaptionedImage, clean_caption
from data_tools.errors import InputError, UsageError
from data_tools.files import is_inside, read_text

ENDINGS = (".csv", ".tsv", ".jsonl", ".txt")
SPLITS = {"train": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev", "test": "test"}
_NAMES = {  # accepted headers of each column
    "image": ("image", "image_name", "file", "filename", "file_name", "filepath", "path"),
    "caption": ("caption", "comment", "text", "sentence", "raw"),
    "split": ("split",),
    "caption_id": ("caption_id", "capid", "sentid"),
}


@dataclass
class _Image:
    """The rows of one image."""

    line: int  # of the first row
    split: str
    captions: list[str] = field(default_factory=list)
    caption_ids: list[str] = field(default_factory=list)


def read_caption_table(path: Path, dev: float, test: float, seed: int) -> list[CaptionedImage]:
    """The images of a table with the columns `image` and `caption`, in the order of their first rows.

    A column `split` gives the split of an image (train, dev or val, test); without it, images are assigned at
    random. A column `caption_id` gives the ids of captions; without it they are the row numbers from 1. The id of
    an image is its file name without extension, preceded by its folders if file names alone are not distinct.

    In CSV a field may be quoted; in TSV quotes are text. `.txt` is read as CSV.

    Args:
        path: the table.
        dev, test: number of images of these splits, or fractions below 1, for a table without splits.
        seed: of the random assignment.

    Raises:
        InputError: the table is malformed or assigns an image to two splits; the message gives the line.
        UsageError: the file has another extension, or dev and test leave no image for training.
    """
    rows = _rows(path)
    images: dict[str, _Image] = {}
    number = 0
    for number, (line, row) in enumerate(rows, start=1):
        file, caption, split = _file(path, line, row), clean_caption(row["caption"]), _split(path, line, row)
        image = images.setdefault(file, _Image(line, split))
        if image.split != split:
            raise InputError(
                f"{path}, line {line}: {file} is in {split}, but in {image.split} on line {image.line}"
            )
        if not caption:
            raise InputError(f"{path}, line {line}: the caption of {file} is empty")
        image.captions.append(caption)
        image.caption_ids.append(row.get("caption_id") or str(number))
    if not images:
        raise InputError(f"{path}: expected rows of (image, caption), found none")
    splits = [image.split for image in images.values()]
    if not any(splits):
        splits = assign_random_splits(len(images), dev, test, seed)
    ids = _ids(list(images))
    return [
        CaptionedImage(image_id, file, split, tuple(image.captions), tuple(image.caption_ids))
        for image_id, split, (file, image) in zip(ids, splits, images.items(), strict=True)
    ]


def assign_random_splits(images: int, dev: float, test: float, seed: int) -> list[str]:
    """The split (train, dev or test) of each image, drawn at random.

    >>> sorted(assign_random_splits(10, 0.2, 1, seed=0))[:4]
    ['dev', 'dev', 'test', 'train']

    Args:
        images: number of images.
        dev, test: number of images of these splits, or fractions below 1, rounded to the nearest number.
        seed: equal seeds give equal assignments.

    Raises:
        UsageError: the sizes leave no image for training.
    """
    sizes = [round(size * images) if size < 1 else int(size) for size in (dev, test)]
    if sum(sizes) >= images:
        raise UsageError(f"--dev {dev:g} and --test {test:g} leave none of the {images} images for training")
    order = np.random.default_rng(seed).permutation(images)
    splits = np.full(images, "train")
    splits[order[: sizes[0]]] = "dev"
    splits[order[sizes[0] : sum(sizes)]] = "test"
    return splits.tolist()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, fields by column name of `_NAMES`) of each row."""
    readers: dict[str, Callable[[Path, str], Iterator[tuple[int, dict[str, str]]]]] = {
        ".jsonl": _json_rows,
        ".csv": lambda path, text: _table_rows(path, text, ","),
        ".txt": lambda path, text: _table_rows(path, text, ","),
        ".tsv": lambda path, text: _table_rows(path, text, "\t"),
    }
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: expected a file that ends in {', '.join(ENDINGS)} or .json")
    return readers[path.suffix.lower()](path, read_text(path))


def _table_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    lines = io.StringIO(text, newline="")
    if delimiter == "\t":
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next(reader, None)
        if header is None:
            raise InputError(f"{path}: expected a header with the columns image and caption; the file is empty")
        columns = _columns(path, header)
        line = reader.line_num + 1
        for fields in reader:
            if len(fields) != len(header) and fields:
                raise InputError(f"{path}, line {line}: {len(fields)} fields; the header has {len(header)}")
            if fields:
                yield line, {name: fields[position].strip() for name, position in columns.items()}
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {error}") from None


def _columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    found = {name.strip().lower(): position for position, name in enumerate(header)}
    columns = {}
    for column, names in _NAMES.items():
        known = [found[name] for name in names if name in found]
        if known:
            columns[column] = known[0]
        elif column in ("image", "caption"):
            raise InputError(
                f"{path}, line 1: expected a column {column}; the columns are {', '.join(header)}"[:200]
            )
    return columns


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise InputError(f'{path}, line {line}: expected an object {{"image": ..., "caption": ...}}')
        columns = _columns(path, list(map(str, entry)))
        values = list(entry.values())
        row = {name: values[position] for name, position in columns.items()}
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise InputError(f"{path}, line {line}: {name}: expected text, found {str(value)[:40]!r}")
        yield line, {name: str(value) for name, value in row.items()}


def _file(path: Path, line: int, row: dict[str, str]) -> str:
    if not is_inside(row["image"]):
        raise InputError(f"{path}, line {line}: expected a file in the images folder, found {row['image']!r}")
    return str(PurePosixPath(row["image"]))


def _split(path: Path, line: int, row: dict[str, str]) -> str:
    if "split" not in row:
        return ""
    name = row["split"].strip().lower()
    if name not in SPLITS:
        raise InputError(f"{path}, line {line}: split {row['split']!r} is not one of {', '.join(SPLITS)}")
    return SPLITS[name]


def _ids(files: list[str]) -> list[str]:
    """Image ids: the file names without extension, else with their folders, else the files themselves."""
    paths = [PurePosixPath(file) for file in files]
    stems, without_endings = [path.stem for path in paths], [str(path.with_suffix("")) for path in paths]
    return next((names for names in (stems, without_endings) if len(set(names)) == len(names)), files)
