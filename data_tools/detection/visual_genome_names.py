"""From the free text of Visual Genome's annotators to classes and attributes.

The rules are those by which Anderson et al. (2018) made the data of the published detectors (`setup_vg.py` and
`vg.py` of peteanderson80/bottom-up-attention), so that a detector trained here sees the same labels.
"""

from dataclasses import dataclass
from pathlib import Path

from data_tools.detection.labels import Labels
from data_tools.errors import InputError
from data_tools.files import read_text

# In front of a name these are attributes of the object: a "white dog" is a dog that is white.
_COLOURS = (
    "white",
    "black",
    "blue",
    "green",
    "red",
    "brown",
    "yellow",
    "silver",
    "orange",
    "gray",
    "grey",
    "pink",
)
ADJECTIVES = frozenset((*_COLOURS, "dark", "small", "large", "tall", "long", "wooden", "metal"))


@dataclass(frozen=True)
class NameTable:
    """Number of each class and attribute, by its name and by every other spelling of it."""

    classes: dict[str, int]
    attributes: dict[str, int]

    def find_class(self, names: list[str]) -> tuple[int, list[str]] | None:
        """The class of an object, of its first name that has one, and the adjectives that stood before it."""
        for name in map(clean, names):
            if name in self.classes:
                return self.classes[name], []
            *adjectives, noun = name.split() or [""]
            if adjectives and ADJECTIVES.issuperset(adjectives) and noun in self.classes:
                return self.classes[noun], adjectives
        return None


def name_table(labels: Labels) -> NameTable:
    """The table of a vocabulary."""
    return NameTable(
        _numbers(labels.classes, labels.class_aliases), _numbers(labels.attributes, labels.attribute_aliases)
    )


def _numbers(names: list[str], aliases: dict[str, list[str]]) -> dict[str, int]:
    return {
        spelling.lower().strip(): number
        for number, name in enumerate(names)
        for spelling in (name, *aliases.get(name, []))
    }


def clean(text: str) -> str:
    """Lower case, no space around it, no full stop at the end."""
    return text.lower().strip().removesuffix(".").strip()


def split_attributes(text: str) -> list[str]:
    """The attributes that an annotator wrote as one: "tall and green" is two, "black and white" is one."""
    whole = clean(text)
    if whole == "black and white":
        return [whole]
    return [part.strip() for part in whole.split(" and ")]


def read_vocabularies(objects: Path, attributes: Path) -> Labels:
    """Labels of two lists in the published form: a class a line, commas before its other spellings.

    Raises:
        InputError: a file is absent or empty, or a line has no name or repeats one.
    """
    classes, class_aliases = _read_vocabulary(objects)
    names, aliases = _read_vocabulary(attributes)
    return Labels(classes, names, class_aliases, aliases)


def _read_vocabulary(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    names: list[str] = []
    aliases: dict[str, list[str]] = {}
    seen: set[str] = set()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        spellings = [part.lower().strip() for part in line.split(",")]
        for spelling in spellings:
            if not spelling or spelling in seen:
                problem = f"{spelling!r} is there twice" if spelling else "expected NAME,OTHER SPELLING,..."
                raise InputError(f"{path}, line {number}: {problem}")
            seen.add(spelling)
        names.append(spellings[0])
        if spellings[1:]:
            aliases[spellings[0]] = spellings[1:]
    if not names:
        raise InputError(f"{path}: holds no name")
    return names, aliases
