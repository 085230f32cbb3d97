"""The rows of a caption table, in every form that is read.

| form | recognised by |
| --- | --- |
| CSV, also with semicolons, tabs or bars between the columns | the header: it names an image and a caption |
| wide: several columns of captions | the header: `caption_0`, `caption_1`, ... |
| a list of captions in a cell | the cell: a JSON list of texts |
| `image#n<TAB>caption`, without a header | the first row |
| JSON lines | the ending `.jsonl` |

What only looks like one of these is an error that names the line.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.captions.cells import check_text, excerpt, listed_names, listed_texts, text_of
from data_tools.captions.encoding import read_table_text
from data_tools.errors import InputError, UsageError, one_line

ENDINGS = (".csv", ".tsv", ".jsonl", ".txt", ".token")
DELIMITERS = (",", "\t", ";", "|")  # in this order: the first one that the header fits
_NAMES = {  # accepted headers of each column; the first is preferred to the others
    "image": ("image", "image_name", "file", "filename", "file_name", "filepath", "path"),
    "caption": (
        *("caption", "comment", "text", "sentence", "raw"),
        *("captions", "comments", "texts", "sentences"),
    ),
    "split": ("split",),
    "caption_id": ("caption_id", "capid", "sentid", "caption_ids", "capids", "sentids"),
}
_NUMBERED = re.compile(r"(caption|comment|text|sentence|raw)[ _-]?(\d{1,3})")
_TOKEN = re.compile(r"([^\t]+)#(\d+)\t(.*)", re.DOTALL)
_NUMBER_AND_COMMENT = re.compile(r"\s*\d+\s+\S.*", re.DOTALL)


class Row(NamedTuple):
    """A row of a table: an image and some of its captions.

    Attributes:
        line: number of its first line in the file.
        image: file of the image.
        captions: at least one text, as written.
        caption_ids: one per caption, or empty if the table has none.
        split: as written; None if the table has no splits.
    """

    line: int
    image: str
    captions: list[str]
    caption_ids: list[str]
    split: str | None


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns; `captions` has several in a wide table."""

    image: int
    captions: tuple[int, ...]
    wide: bool
    split: int | None
    caption_id: int | None


def read_rows(path: Path, notes: list[str]) -> Iterator[Row]:
    """The rows of a table in one of the forms above.

    Args:
        path: the table. In one with tabs, quotes are text; in others a field may be quoted.
        notes: one line is added for each row that was mended: Kaggle's Flickr30K lacks one of its bars.

    Raises:
        InputError: the table is malformed; the message gives the line.
        UsageError: the file has another ending.
    """
    suffix = path.suffix.lower()
    if suffix not in ENDINGS:
        raise UsageError(f"{path}: expected a file that ends in {', '.join(ENDINGS)} or .json")
    text = read_table_text(path)
    if suffix == ".jsonl":
        return _json_rows(path, text)
    if not text.strip():
        raise InputError(f"{path}: expected a header with the columns image and caption; the file is empty")
    delimiter = _delimiter(text, ("\t", *DELIMITERS) if suffix == ".tsv" else DELIMITERS)
    if delimiter is None and _TOKEN.fullmatch(text.lstrip().splitlines()[0]):
        return _token_rows(path, text)
    return _table_rows(path, text, delimiter or _likely_delimiter(text), notes)


def _header(text: str, delimiter: str) -> list[str]:
    try:
        return next((fields for fields in _reader(text, delimiter) if fields), [])
    except csv.Error:
        return []


def _reader(text: str, delimiter: str) -> Any:
    lines = io.StringIO(text, newline="")
    if delimiter == "\t":
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _delimiter(text: str, delimiters: Sequence[str]) -> str | None:
    """The first delimiter with which the header names an image and a caption; None if there is none."""
    for delimiter in delimiters:
        try:
            _columns(_header(text, delimiter))
        except LookupError:
            continue
        except InputError:  # both are named, too often
            pass
        return delimiter
    return None


def _likely_delimiter(text: str) -> str:
    return max(DELIMITERS, key=lambda delimiter: len(_header(text, delimiter)))


def _columns(header: Sequence[str]) -> _Columns:
    """The columns that a header names.

    Raises:
        LookupError: the image or the caption is missing; the message is the name of what is missing.
        InputError: several columns could be the same; the message lacks file and line.
    """
    names = [name.strip().lower() for name in header]
    image = _column(names, "image")
    numbered = sorted((int(found[2]), at) for at, name in enumerate(names) if (found := _NUMBERED.fullmatch(name)))
    caption = _column(names, "caption")
    if image is None:
        raise LookupError("image")
    if caption is None and not numbered:
        raise LookupError("caption")
    stems = {_NUMBERED.fullmatch(names[at])[1] for _, at in numbered}  # type: ignore[index]
    if numbered and (caption is not None or len(stems) > 1 or len(dict(numbered)) < len(numbered)):
        several = [names[at] for _, at in numbered] + ([names[caption]] if caption is not None else [])
        raise InputError(f"the columns {', '.join(several)[:100]} could all be captions; fix: keep those that are")
    captions = tuple(at for _, at in numbered) if caption is None else (caption,)
    caption_id = _column(names, "caption_id") if caption is not None else None
    return _Columns(image, captions, caption is None, _column(names, "split"), caption_id)


def _column(names: Sequence[str], column: str) -> int | None:
    """The position of a column; `InputError` if several names could be it and none is the preferred one."""
    found = [name for name in names if name in _NAMES[column]]
    preferred = _NAMES[column][0]
    if len(found) > 1 and found.count(preferred) != 1:
        raise InputError(f"the columns {', '.join(found)[:100]} could all be the {column}; fix: keep one of them")
    if not found:
        return None
    return names.index(preferred if preferred in found else found[0])


def _columns_of_header(path: Path, line: int, header: Sequence[str], delimiter: str) -> _Columns:
    """See `_columns`; its errors with file, line and what the header holds."""
    try:
        return _columns(header)
    except LookupError as missing:
        shown = excerpt(", ".join(name.strip() for name in header), 200)[1:-1]
        divided = f", divided at {delimiter!r}" if delimiter else ""
        raise InputError(
            f"{path}, line {line}: expected a column {missing}; the columns are {shown}{divided}; "
            f"fix: name one of them {missing}"
        ) from None
    except InputError as error:
        raise InputError(f"{path}, line {line}: {error}") from None


def _table_rows(path: Path, text: str, delimiter: str, notes: list[str]) -> Iterator[Row]:
    reader = _reader(text, delimiter)
    line = 1
    try:
        header: list[str] = []
        for fields in reader:
            if not header and fields:
                header, columns = fields, _columns_of_header(path, line, fields, delimiter)
            elif any(fields) and not "".join(fields).isspace():
                if len(fields) != len(header):
                    fields = _mended(path, line, fields, header, delimiter, notes)
                yield _row(path, line, fields, columns, quotes_are_text=delimiter == "\t")
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: {one_line(error)}") from None


def _mended(
    path: Path, line: int, fields: list[str], header: Sequence[str], delimiter: str, notes: list[str]
) -> list[str]:
    """The fields of a row without the bar between number and comment; another row is an `InputError`."""
    names = [name.strip().lower() for name in header]
    bars = delimiter == "|" and names == ["image_name", "comment_number", "comment"]
    if bars and len(fields) == 2 and _NUMBER_AND_COMMENT.fullmatch(fields[1]):
        number, comment = fields[1].split(maxsplit=1)
        notes.append(f"{path}, line {line}: no | between {number} and the comment; read as if it were there")
        return [fields[0], number, comment]
    raise InputError(
        f"{path}, line {line}: {len(fields)} fields; the header has {len(header)}, divided at {delimiter!r}"
    )


def _row(path: Path, line: int, fields: Sequence[Any], columns: _Columns, quotes_are_text: bool = False) -> Row:
    captions: list[str] = []
    for at in columns.captions:
        value = fields[at]
        if quotes_are_text and len(value) > 1 and value[0] == value[-1] == '"':
            raise InputError(
                f"{path}, line {line}: the caption is quoted, but in a table with tabs quotes are text; "
                "fix: save it as CSV, with commas"
            )
        captions += listed_texts(path, line, "caption", value, wide=columns.wide)
    image = text_of(path, line, "image", fields[columns.image])
    if not captions:
        raise InputError(f"{path}, line {line}: the caption of {excerpt(image)[1:-1]} is empty")
    names: list[str] = []
    if columns.caption_id is not None:
        names = listed_names(path, line, fields[columns.caption_id], len(captions))
    split = None if columns.split is None else text_of(path, line, "split", fields[columns.split])
    return Row(line, image, captions, names, split)


def _token_rows(path: Path, text: str) -> Iterator[Row]:
    first: dict[tuple[str, str], int] = {}
    for line, content in enumerate(io.StringIO(text, newline=""), start=1):
        if not content.strip():
            continue
        found = _TOKEN.fullmatch(content.rstrip("\r\n"))
        if not found:
            raise InputError(f"{path}, line {line}: expected image#n<TAB>caption, found {excerpt(content)}")
        image, number, caption = found.groups()
        if first.setdefault((image, number), line) != line:
            raise InputError(
                f"{path}, line {line}: {excerpt(image + '#' + number)} is on line {first[image, number]} too"
            )
        yield _row(path, line, [image, caption], _Columns(0, (1,), False, None, None), quotes_are_text=True)


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    known: dict[tuple[str, ...], _Columns] = {}
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: not JSON: {one_line(error)}") from None
        if not isinstance(entry, dict):
            raise InputError(f'{path}, line {line}: expected an object {{"image": ..., "caption": ...}}')
        if "\\u" in content:
            check_text(path, line, entry)
        header = tuple(entry)
        columns = known.get(header)
        if columns is None:
            columns = known[header] = _columns_of_header(path, line, header, "")
        yield _row(path, line, list(entry.values()), columns)
