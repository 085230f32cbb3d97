"""What a cell of a caption table, or a field of a JSON file, holds: a text, a number, or a list of them."""

import json
import re
from pathlib import Path
from typing import Any

from data_tools.errors import InputError

_LIKE_A_LIST = re.compile(  # as JSON, Python, NumPy, pandas and R print one, whole or cut
    r"""\[.*\] | \[\s*['"].* | \(\s*['"].*\) | \{\s*['"].*
    | (array|list|tuple|set|dict|Index|Series|c)\s*\(\s*[\[\{('"].*""",
    re.DOTALL | re.VERBOSE,
)
_FIRST = frozenset("[({altsdISc")  # letters that such a text begins with


def excerpt(value: object, limit: int = 40) -> str:
    """A value for a message: its beginning, or what it is.

    >>> excerpt("a dog"), excerpt([1, 2])
    ("'a dog'", 'a list')
    """
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value[:limit]) if isinstance(value, str) else str(value)[:limit]


def text_of(path: Path, line: int, name: str, value: Any) -> str:
    """The text of a cell, or a whole number as text; `InputError` for anything else."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return number_as_text(value)
    found = excerpt(value if isinstance(value, list | dict) else str(value))
    raise InputError(f"{path}, line {line}: {name}: expected text, found {found}")


def number_as_text(value: int) -> str:
    """The digits of a number; those of one beyond any id as hexadecimal, which Python does not limit."""
    return str(value) if abs(value) < 10**100 else hex(value)


def listed_texts(path: Path, line: int, name: str, value: Any, wide: bool) -> list[str]:
    """The texts of a cell: those of a JSON list, or the cell itself if it is not empty.

    Raises:
        InputError: the cell looks like a list and is not a JSON list of texts, holds an empty one, or is a list in
            a wide table.
    """
    items = _items(path, line, name, value)
    if items is None:
        text = value.strip() if isinstance(value, str) else text_of(path, line, name, value)
        return [text] if text else []
    if wide:
        raise InputError(f"{path}, line {line}: {name}: a list in one of several caption columns")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, str) or not item.strip() or _looks_like_a_list(item.strip()):
            raise InputError(
                f"{path}, line {line}: {name} {number} of the list: expected text, found {excerpt(item)}"
            )
    return [item.strip() for item in items]


def listed_names(path: Path, line: int, value: Any, count: int) -> list[str]:
    """The `count` caption ids of a cell; empty if the cell is. `InputError` if there are more or fewer."""
    items = _items(path, line, "caption_id", value)
    if items is None and value == "":
        return []
    names = [text_of(path, line, "caption_id", item) for item in ([value] if items is None else items)]
    if len(names) != count:
        raise InputError(f"{path}, line {line}: caption_id: {len(names)} ids for {count} captions")
    return names


def _items(path: Path, line: int, name: str, value: Any) -> list[Any] | None:
    """The items of a list; None for a cell that is none."""
    if isinstance(value, list):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if not _looks_like_a_list(text):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list):
        raise InputError(
            f"{path}, line {line}: {name}: looks like a list and is not JSON: {excerpt(text)}; "
            'fix: write it as ["...", "..."], with json.dumps'
        )
    return items


def _looks_like_a_list(text: str) -> bool:
    return text[:1] in _FIRST and _LIKE_A_LIST.fullmatch(text) is not None


def check_text(path: Path, line: int, entry: object) -> None:
    """`InputError` if a text from JSON holds a NUL or half of a surrogate pair, which no file of text can."""
    text = json.dumps(entry, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}, line {line}: \\ud800 to \\udfff outside a pair are no text") from None
    if "\\u0000" in text:
        raise InputError(f"{path}, line {line}: a NUL (\\u0000), which is no text")


def json_object(value: Any) -> dict[str, Any]:
    """The value, if it is a JSON object; else `ValueError`."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {excerpt(value)}")
    return value


def json_text(entry: dict[str, Any], key: str, where: str = "") -> str:
    """The text of a field; `KeyError` without it, `ValueError`, which begins with `where`, for another type."""
    value = entry[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}{key} {excerpt(value)}: expected text")
    return value


def json_id(entry: dict[str, Any], key: str) -> str:
    """The text or whole number of a field, as text; `KeyError` and `ValueError` as `json_text`."""
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{key} {excerpt(value)}: expected text or a whole number")
    return value if isinstance(value, str) else number_as_text(value)
