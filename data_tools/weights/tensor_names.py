"""Comparing the tensors of a weight file with those of a network, by name and shape."""

from collections.abc import Mapping, Sequence

Shape = Sequence[int]

_SHOWN = 4  # names of each kind in a message
_LONGEST = 200  # characters of a name in a message


def tensor_differences(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    """How the tensors of a file differ from those that a network expects; empty where they do not.

    >>> tensor_differences({"fc.weight": (2, 3), "bn.bias": (2,)}, {"fc.weight": (2, 4), "fc.bias": (2,)})
    'missing: fc.bias; unexpected: bn.bias; wrong shape: fc.weight (2, 3), expected (2, 4)'

    Args:
        found: shape of each tensor in the file, by name.
        expected: shape of each tensor of the network.

    Returns:
        The names that are missing, unexpected and of a wrong shape, the first four of each kind.
    """
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "wrong shape": [
            f"{name} {tuple(shape)}, expected {tuple(expected[name])}"
            for name, shape in found.items()
            if name in expected and tuple(shape) != tuple(expected[name])
        ],
    }
    return "; ".join(f"{kind}: {_first(names)}" for kind, names in kinds.items() if names)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(_legible, names[:_SHOWN])) + more


def _legible(name: str) -> str:
    """A name from a file, in one line of bounded length."""
    return (name if name.isprintable() else ascii(name))[:_LONGEST]
