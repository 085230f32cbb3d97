"""Captions of a scene by a small grammar: what they say is true of the picture, and never all of it.

A sentence names some of the objects with some of their attributes, and says where one lies from another or how
many there are of a kind. A count is exact; "a red circle" only says that there is one. A position is stated
where the boxes lie apart along that axis and their centres further apart along it than along the other.
"""

from collections.abc import Callable, Sequence

import numpy as np

from data_tools.scenes.drawing import SceneObject, pick

_SIZE_WORDS = {"small": ("small", "small", "little"), "large": ("large", "large", "big")}
_TEXTURE_WORDS = {"striped": ("striped",), "dotted": ("dotted", "spotted")}
_TEXTURE_TAILS = {"striped": " with stripes", "dotted": " with dots"}
_SAY_COLOUR, _SAY_SIZE, _SAY_PATTERN, _SAY_PLAIN = 0.97, 0.9, 0.95, 0.6  # probabilities
_SAY_AS_TAIL = 0.2
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}

Objects = Sequence[SceneObject]
Sentence = Callable[[Objects, np.random.Generator], str | None]


def write_captions(objects: Objects, rng: np.random.Generator, count: int = 5) -> list[str]:
    """`count` different captions of a scene of 2 to 4 objects, each a sentence with a capital and a full stop."""
    captions: list[str] = []
    while len(captions) < count:
        text = pick(rng, _SENTENCES)(objects, rng)
        caption = f"{text[0].upper()}{text[1:]}." if text else None
        if caption and caption not in captions:
            captions.append(caption)
    return captions


def relation(a: SceneObject, b: SceneObject) -> str | None:
    """Where `a` lies seen from `b`: "left", "right", "above" or "below"; None where it is not clear."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.box, b.box
    across, down = abs(ax1 + ax2 - bx1 - bx2), abs(ay1 + ay2 - by1 - by2)
    if across > down:
        return "left" if ax2 <= bx1 else "right" if bx2 <= ax1 else None
    if down > across:
        return "above" if ay2 <= by1 else "below" if by2 <= ay1 else None
    return None


def _name(item: SceneObject, rng: np.random.Generator, noun: str | None = None) -> str:
    """A noun phrase such as "a small red striped circle"; `noun` stands in for the name of the shape."""
    words, tail = [], ""
    if rng.random() < _SAY_SIZE:
        words.append(pick(rng, _SIZE_WORDS[item.size]))
    if item.texture == "plain" and rng.random() < _SAY_PLAIN:
        words.append("plain")
    if rng.random() < _SAY_COLOUR:
        words.append(item.colour)
    if item.texture != "plain" and rng.random() < _SAY_PATTERN:
        if rng.random() < _SAY_AS_TAIL:
            tail = _TEXTURE_TAILS[item.texture]
        else:
            words.append(pick(rng, _TEXTURE_WORDS[item.texture]))
    words.append(noun or item.shape)
    article = "an" if words[0] == "orange" else "a"
    return f"{article} {' '.join(words)}{tail}"


def _names(items: Objects, rng: np.random.Generator) -> list[str] | None:
    """A noun phrase for each; None where two came out alike, which would read as one object named twice."""
    names = [_name(item, rng) for item in items]
    return names if len(set(names)) == len(names) else None


def _some(objects: Objects, count: int, rng: np.random.Generator) -> list[SceneObject]:
    return [objects[i] for i in rng.permutation(len(objects))[:count]]


def _enumerate(phrases: Sequence[str]) -> str:
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _position(objects: Objects, rng: np.random.Generator) -> str | None:
    """Two objects, and where the one lies from the other."""
    a, b = _some(objects, 2, rng)
    where, names = relation(a, b), _names((a, b), rng)
    if where is None or names is None:
        return None
    forms = (
        "{a} is {where} {b}",
        "{a} {where} {b}",
        "there is {a} {where} {b}",
        "{a} can be seen {where} {b}",
        "{a} placed {where} {b}",
    )
    return pick(rng, forms).format(a=names[0], b=names[1], where=pick(rng, _RELATIONS[where]))


def _position_and_third(objects: Objects, rng: np.random.Generator) -> str | None:
    """As `_position`, and one object more."""
    if len(objects) < 3:
        return None
    a, b, c = _some(objects, 3, rng)
    where, names = relation(a, b), _names((a, b, c), rng)
    if where is None or names is None:
        return None
    forms = ("{a} is {where} {b}, and there is also {c}", "besides {c}, there is {a} {where} {b}")
    return pick(rng, forms).format(a=names[0], b=names[1], c=names[2], where=pick(rng, _RELATIONS[where]))


def _listing(objects: Objects, rng: np.random.Generator) -> str | None:
    """Two or three objects."""
    names = _names(_some(objects, int(rng.integers(2, 4)), rng), rng)
    if names is None:
        return None
    return pick(rng, ("{}", "there is {}", "a picture of {}", "the image shows {}")).format(_enumerate(names))


def _total(objects: Objects, rng: np.random.Generator) -> str | None:
    """How many objects there are, and two of them."""
    names = _names(_some(objects, 2, rng), rng)
    if names is None or len(objects) == 2:
        return None
    return f"{_NUMBERS[len(objects)]} shapes, including {_enumerate(names)}"


def _alike(objects: Objects, traits: Sequence[str], rng: np.random.Generator) -> list[SceneObject]:
    """All objects that share the named traits with one drawn at random, itself included."""
    model = pick(rng, objects)
    return [item for item in objects if all(getattr(item, name) == getattr(model, name) for name in traits)]


def _pair(objects: Objects, rng: np.random.Generator) -> str | None:
    """Both objects of one shape: "two stars, a small red one and a large blue one"."""
    pair = _alike(objects, ("shape",), rng)
    names = [_name(item, rng, noun="one") for item in pair]
    if len(pair) != 2 or names[0] == names[1] or any(name.startswith("a one") for name in names):
        return None
    return f"two {pair[0].shape}s, {_enumerate(names)}"


def _count(objects: Objects, rng: np.random.Generator) -> str | None:
    """How many there are of a kind, and one object of another: "two red circles and a small blue star"."""
    traits = pick(rng, (("shape",), ("colour",), ("colour", "shape"), ("texture", "shape")))
    kind = _alike(objects, traits, rng)
    others = [item for item in objects if item not in kind]
    if len(kind) < 2 or not others:
        return None
    words = [getattr(kind[0], name) for name in traits] + ([] if "shape" in traits else ["shape"])
    return f"{_NUMBERS[len(kind)]} {' '.join(words)}s and {_name(pick(rng, others), rng)}"


def _single(objects: Objects, rng: np.random.Generator) -> str | None:
    """One object: the vaguest of the sentences."""
    forms = ("a scene with {}", "{} among other shapes", "there is {} in the picture")
    return pick(rng, forms).format(_name(pick(rng, objects), rng))


# Each as often as it stands here, apart from those that a scene has no use for.
_SENTENCES: tuple[Sentence, ...] = (
    *(_position,) * 14,
    *(_position_and_third,) * 10,
    *(_listing,) * 8,
    *(_total,) * 4,
    *(_pair,) * 4,
    *(_count,) * 3,
    _single,
)
