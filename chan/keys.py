"""The keys of a configuration: fields of frozen dataclasses, each with its default, explanation and range.

A configuration is a tree of such dataclasses; a key is a path through it, `train.lr` for example.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar, cast

MAX_INTEGER = 1 << 31  # of any key; a model that is too large for the memory is another error

Tree = TypeVar("Tree")  # a configuration or a part of one


@dataclass(frozen=True)
class Range:
    """Which values a key may have, as a condition and in words."""

    holds: Callable[[Any], bool]
    words: str


def above(bound: float) -> Range:
    """Numbers greater than `bound`."""
    return Range(lambda value: value > bound, f"above {bound}")


def at_least(bound: float) -> Range:
    """Numbers from `bound` on."""
    return Range(lambda value: value >= bound, f"{bound} or more")


def between(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(lambda value: low <= value <= high, f"from {low} to {high}")


def multiple_of(factor: int) -> Range:
    """Positive multiples of `factor`."""
    return Range(lambda value: value > 0 and value % factor == 0, f"a positive multiple of {factor}")


def null_or(other: Range) -> Range:
    """None, or what `other` allows."""
    return Range(lambda value: value is None or other.holds(value), f"null or {other.words}")


def key(default: Any, text: str, allowed: Range | None = None) -> Any:
    """A dataclass field with its default, its explanation (Markdown) and, if there is one, its range."""
    return field(default=default, metadata={"help": text, "range": allowed})


@dataclass(frozen=True)
class Key:
    """One key: its full name, its value in a configuration, its explanation and its range."""

    name: str
    value: Any
    help: str
    range: Range | None


def keys_of(config: Any, prefix: str = "") -> Iterator[Key]:
    """Every key of a configuration, in the order of the fields.

    >>> @dataclass(frozen=True)
    ... class Recipe:
    ...     lr: float = key(0.1, "learning rate", above(0))
    >>> [(found.name, found.value) for found in keys_of(Recipe(lr=0.5))]
    [('lr', 0.5)]
    """
    for entry in fields(config):
        name, value = prefix + entry.name, getattr(config, entry.name)
        if is_dataclass(value):
            yield from keys_of(value, f"{name}.")
        else:
            yield Key(name, value, entry.metadata["help"], entry.metadata["range"])


def with_value(config: Tree, name: str, value: Any) -> Tree:
    """A copy of a configuration in which the key of this full name has another value.

    >>> @dataclass(frozen=True)
    ... class Recipe:
    ...     lr: float = 0.1
    >>> with_value(Recipe(), "lr", 0.5).lr
    0.5
    """
    first, _, rest = name.partition(".")
    inner = with_value(getattr(config, first), rest, value) if rest else value
    return replace(cast(Any, config), **{first: inner})


def check_ranges(config: Any) -> None:
    """`ValueError`, of one line, that names the first key whose value is out of its range."""
    for found in keys_of(config):
        if isinstance(found.value, float) and not math.isfinite(found.value):
            raise ValueError(f"{found.name}: expected a finite number, found {found.value}")
        if isinstance(found.value, int) and abs(found.value) > MAX_INTEGER:
            raise ValueError(f"{found.name}: expected a number up to {MAX_INTEGER}, found one beyond it")
        if found.range is not None and not found.range.holds(found.value):
            raise ValueError(f"{found.name}: expected {found.range.words}, found {found.value}")


def markdown_table(config: Any) -> str:
    """The keys of a configuration, which holds the defaults, with their explanations as a Markdown table."""
    rows = [f"| `{found.name}` | {_shown(found.value)} | {found.help} |" for found in keys_of(config)]
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows])


def _shown(value: Any) -> str:
    """A value as YAML spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value.value if isinstance(value, Enum) else value)
