from dataclasses import dataclass
from enum import StrEnum

import pytest

from chan.keys import (
    above,
    at_least,
    between,
    check_ranges,
    key,
    keys_of,
    markdown_table,
    multiple_of,
    null_or,
    with_value,
)

Colour = StrEnum("Colour", ["red", "blue"])


@dataclass(frozen=True)
class Inner:
    rate: float = key(0.5, "a rate", above(0))
    count: int | None = key(None, "how many", null_or(at_least(2)))


@dataclass(frozen=True)
class Outer:
    size: int = key(8, "a size", multiple_of(4))
    colour: Colour = key(Colour.blue, "a colour")
    share: float = key(1.0, "a share", between(0, 1))
    flag: bool = key(True, "a flag")
    inner: Inner = Inner()


def test_keys_come_with_their_full_names_in_order() -> None:
    assert [(found.name, found.value) for found in keys_of(Outer())] == [
        ("size", 8),
        ("colour", "blue"),
        ("share", 1.0),
        ("flag", True),
        ("inner.rate", 0.5),
        ("inner.count", None),
    ]


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("size", [4, 12], [0, -4, 6]),
        ("share", [0, 0.5, 1], [-0.1, 1.1]),
        ("inner.rate", [1e-9, 3], [0, -1]),
        ("inner.count", [None, 2], [1]),
    ],
)
def test_ranges(name: str, allowed: list[float | None], refused: list[float]) -> None:
    for value in allowed:
        check_ranges(with_value(Outer(), name, value))
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{name}: .*found {value}$"):
            check_ranges(with_value(Outer(), name, value))


def test_another_value_leaves_the_rest() -> None:
    outer = Outer()
    assert with_value(outer, "inner.count", 3) == Outer(inner=Inner(count=3))
    assert outer == Outer()


def test_the_table_has_a_row_per_key() -> None:
    assert markdown_table(Outer()).splitlines() == [
        "| key | default | meaning |",
        "| --- | --- | --- |",
        "| `size` | 8 | a size |",
        "| `colour` | blue | a colour |",
        "| `share` | 1.0 | a share |",
        "| `flag` | true | a flag |",
        "| `inner.rate` | 0.5 | a rate |",
        "| `inner.count` | null | how many |",
    ]
