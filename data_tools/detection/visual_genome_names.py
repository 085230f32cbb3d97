"""Maps the free text of Visual Genome's annotators to classes and attributes.

The rules are those with which Anderson et al. (2018) prepared the training data of the published detectors
(`setup_vg.py` and `vg.py` of peteanderson80/bottom-up-attention), so that a detector trained here sees the same
labels.
"""

from dataclasses import dataclass
from pathlib import Path

from data_tools.detection.labels import Labels
from data_tools.errors import InputError
from data_tools.files import read_text

# Before a class name these are attributes of the object: a "white dog" is a dog with the attribute white.
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
    """Number of each class and attribute, by its name and by each alias."""

    classes: dict[str, int]
    attributes: dict[str, int]

    def find_class(self, names: list[str]) -> tuple[int, list[str]] | None:
        """Class number and adjectives of the first name that is a class, or a class after known adjectives.

        >>> table = NameTable({"dog": 0}, {"white": 0})
        >>> table.find_class(["White dog."]), table.find_class(["cat"])
        ((0, ['white']), None)
        """
        for name in map(clean, names):
            if name in self.classes:
                return self.classes[name], []
            *adjectives, noun = name.split() or [""]
            if adjectives and ADJECTIVES.issuperset(adjectives) and noun in self.classes:
                return self.classes[noun], adjectives
        return None


def name_table(labels: Labels) -> NameTable:
    """The lookup table of a vocabulary with its aliases."""
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
    """Lower case, without surrounding space and without one final full stop.

    >>> clean(" White dog. ")
    'white dog'
    """
    return text.lower().strip().removesuffix(".").strip()


def split_attributes(text: str) -> list[str]:
    """Splits one entry of an annotator into attributes.

    >>> split_attributes("Tall and green"), split_attributes("black and white")
    (['tall', 'green'], ['black and white'])
    """
    whole = clean(text)
    if whole == "black and white":
        return [whole]
    return [part.strip() for part in whole.split(" and ")]


def read_vocabularies(objects: Path, attributes: Path) -> Labels:
    """Reads two lists in the published form: one name per line, followed by its aliases, with commas between.

    Raises:
        InputError: a file is missing or empty, or a line has an empty name or repeats one.
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
                problem = f"{spelling!r} is listed twice" if spelling else "expected NAME,ALIAS,..."
                raise InputError(f"{path}, line {number}: {problem}")
            seen.add(spelling)
        names.append(spellings[0])
        if spellings[1:]:
            aliases[spellings[0]] = spellings[1:]
    if not names:
        raise InputError(f"{path}: holds no name")
    return names, aliases
