"""Names of the object classes and attributes of a detector.

The shipped lists are in the folder `label_sets` beside this file: `visual_genome` has the 1,600 classes and 400
attributes of Anderson et al. (2018) with their aliases, `scenes` those of the drawn scenes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.errors import InputError
from data_tools.files import read_json

_SHIPPED = Path(__file__).resolve().with_name("label_sets")


@dataclass(frozen=True)
class Labels:
    """The names that class and attribute ids stand for.

    Attributes:
        classes, attributes: the name of each class and attribute; ids are positions in these lists, from 0.
        class_aliases, attribute_aliases: other spellings by name, for the names that have any.
    """

    classes: list[str]
    attributes: list[str]
    class_aliases: dict[str, list[str]] = field(default_factory=dict)
    attribute_aliases: dict[str, list[str]] = field(default_factory=dict)


def load_labels(spec: str) -> Labels:
    """Load a shipped list by its name, or labels from a JSON file.

    The file holds an object with the keys `classes` and `attributes`, lists of names, and optionally
    `class_aliases` and `attribute_aliases`. Annotation files (`DATA/annotations/train.json`) qualify.

    >>> load_labels("scenes").classes
    ['circle', 'square', 'triangle', 'star']

    Raises:
        InputError: there is neither such a file nor such a list, or the file does not hold labels.
    """
    path = _find(spec)
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected an object with the keys classes and attributes")
    try:
        classes, attributes = (check_names(document.get(key), key) for key in ("classes", "attributes"))
        return Labels(
            classes,
            attributes,
            _aliases(document, "class_aliases", classes),
            _aliases(document, "attribute_aliases", attributes),
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _find(spec: str) -> Path:
    for candidate in (Path(spec), _SHIPPED / f"{spec}.json"):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(path.stem for path in _SHIPPED.glob("*.json")))
    raise InputError(f"{spec}: no such label file; the shipped lists are {shipped}")


def check_names(names: Any, key: str) -> list[str]:
    """The names of classes or attributes (`key`); `ValueError` unless they are single lines that differ."""
    if not isinstance(names, list) or not all(_is_name(name) for name in names):
        raise ValueError(f"{key}: expected a list of names")
    if key == "classes" and not names:
        raise ValueError("classes: expected at least one name")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{key}: {name!r} is listed twice")
        seen.add(name)
    return names


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.strip() != "" and name.isprintable()  # a store has one per line


def _aliases(document: dict[str, Any], key: str, names: list[str]) -> dict[str, list[str]]:
    """Aliases by name; none may be the name or an alias of another entry, which would make it ambiguous."""
    aliases = document.get(key, {})
    if not isinstance(aliases, dict):
        raise ValueError(f"{key}: expected an object of names and lists of aliases")
    known = set(names)
    taken = set(names)
    for name, spellings in aliases.items():
        if name not in known:
            raise ValueError(f"{key}: {name!r} is not one of the names")
        if not isinstance(spellings, list) or not all(isinstance(spelling, str) for spelling in spellings):
            raise ValueError(f"{key}: {name!r}: expected a list of aliases")
        for spelling in spellings:
            if spelling in taken:
                raise ValueError(f"{key}: {spelling!r} is listed twice")
            taken.add(spelling)
    return aliases
