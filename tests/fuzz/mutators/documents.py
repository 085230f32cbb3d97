"""Changes to JSON and YAML documents: values of other types, keys renamed, references, depth."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

SECRET = "the-secret-of-the-fuzzing-run"  # in the environment and in a file outside the input
TRACE = "code-ran"  # a folder that hostile inputs make where code of theirs is run

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 1.5, -0.0, 2**31, 2**63, -(2**63) - 1, 10**12, 10**400, 1e308, 1e-320),
    *(float("inf"), float("-inf"), float("nan")),
    *(
        "",
        " ",
        "\0",
        "\x1b[31m",
        "1",
        "nan",
        "x" * 10_000,
        "a\nb",
        "../../secret",
        "/etc/passwd",
        "~",
        "é",
        "e\u0301",
    ),
    *("${oc.env:FUZZ_SECRET}", "${model}", "${.}", "???", "\u202e", "\ud800", "\U0001f600"),
    *([], {}, [[]], [None], {"": 0}, [1, "a", None], [[1, 2], [3]]),
)
_DEEP = "a-place-for-depth"
MAX_PLACES = 10_000


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document of dictionaries and lists."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting and len(found) < MAX_PLACES:  # a document that an alias made part of itself has no end
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def change(document: Any, rng: Random, hostile: tuple[Any, ...] = HOSTILE) -> Any:
    """Change one value or key in place; the document, or what replaces it."""
    container, key = rng.choice(places(document))
    value, kind = container[key], rng.randrange(9)
    if kind <= 3:
        container[key] = rng.choice(hostile)
    elif kind == 4:
        del container[key]
    elif kind == 5:
        container[key] = rng.choice((str(value), [value], {"value": value}, [value] * 3))
    elif kind == 6:
        other, place = rng.choice(places(document))
        container[key] = other[place] if other is not container else rng.choice(hostile)
    elif kind == 7 and isinstance(container, dict):
        container[rng.choice(("", "__class__", " ", "x" * 300, str(key).upper(), f"{key} "))] = container.pop(key)
    elif isinstance(container, list):
        container.insert(key, value)
    else:
        return rng.choice(hostile)
    return document


def json_value(path: Path, rng: Random) -> None:
    """One to three values or keys of a JSON document."""
    document = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = change(document, rng) if isinstance(document, dict | list) and places(document) else document
    path.write_text(json.dumps(document), errors="surrogatepass")


def json_depth(path: Path, rng: Random) -> None:
    """A value nested a thousand or a hundred thousand lists deep."""
    document = json.loads(path.read_text())
    container, key = rng.choice(places(document))
    container[key] = _DEEP
    depth = rng.choice((200, 2000, 100_000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    text = json.dumps(document).replace(f'"{_DEEP}"', opened * depth + "0" + closed * depth)
    path.write_text(text)


def json_text(path: Path, rng: Random) -> None:
    """The text of a JSON document: repeated keys, commas, other encodings, several documents."""
    text = path.read_text()
    kind = rng.randrange(6)
    if kind == 0 and ":" in text:
        key = text[text.index("{") + 1 : text.index(":") + 1]
        text = text.replace("{", "{" + key + " 0, ", 1)
    elif kind == 1:
        text = text.rstrip()[:-1] + ",]}"[rng.randrange(3)]
    elif kind == 2:
        path.write_bytes(text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig"))))
        return
    elif kind == 3:
        text = text + "\n" + text
    elif kind == 4:
        path.write_bytes(text.encode().replace(b'"', b'"\xff', 1))
        return
    else:
        text = text.replace("0", "0" * 5000, 1)
    path.write_text(text)


_YAML_VALUES = (
    *(f"!!python/object/apply:os.mkdir [{TRACE}]", f"!!python/object/new:os.mkdir [{TRACE}]", "!!binary x"),
    *("&a [*a]", "&a {b: *a}", "*nothing", "!!timestamp 2020-01-01", "2020-01-01", "0o17", "1_000", "1e3", "1:30"),
    *(".nan", ".inf", "-.inf", "~", "yes", "!!set {a}", "{? [a]: b}", '"${oc.env:FUZZ_SECRET}"', "${oc.decode:1}"),
    *("'???'", '"${now:}"', "''", "|\n  text", "9" * 400, "-1", "0", "1.5", "[]", "{}", "[1, [2, {a: 3}]]", "\0"),
    *(
        "[" * 3000 + "]" * 3000,
        "{a: " * 3000 + "}" * 3000,
        "${" * 1000,
        "!unknown 1",
        "x" * 10_000,
        "'é'",
        "- 1",
        "%",
    ),
    "&a [x, x, x, x, x, x, x, x]\nb: &b [" + ", ".join(["*a"] * 9) + "]\nc: &c [" + ", ".join(["*b"] * 9) + "]",
)
_YAML_LINES = (
    *("_BASE_: http://127.0.0.1:9/a.yaml", "_BASE_: ../../../etc/passwd", "_BASE_: /etc/passwd", "_BASE_: 7"),
    *("base: /etc/passwd", "base: ../x", "base: [scenes]", "base: ''", "? a\n: b", "<<: {a: 1}", "7: 7", "~: 1"),
    *(
        "--- \na: b",
        "%YAML 3.0\n---",
        "model: ${oc.env:FUZZ_SECRET}",
        "unknown: 1",
        "\tx: 1",
        "{{a}}: 1",
        "[1]: 2",
    ),
)


def yaml_value(path: Path, rng: Random) -> None:
    """One to three values or keys of a YAML document."""
    document = yaml.safe_load(path.read_text())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = change(document, rng) if isinstance(document, dict | list) and places(document) else document
    path.write_text(yaml.safe_dump(document, allow_unicode=rng.random() < 0.5), errors="surrogatepass")


def yaml_text(path: Path, rng: Random) -> None:
    """The value of a key as text that means something to YAML, OmegaConf or a shell."""
    lines = path.read_text().splitlines()
    number = rng.choice([n for n, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")])
    lines[number] = lines[number].split(":")[0] + ": " + rng.choice(_YAML_VALUES)
    path.write_text("\n".join(lines) + "\n")


def yaml_line(path: Path, rng: Random) -> None:
    """A line more, or a file that names itself as its base."""
    lines = path.read_text().splitlines()
    line = rng.choice((*_YAML_LINES, f"_BASE_: {path.name}", f"base: {path.stem}", rng.choice(lines)))
    lines.insert(rng.choice((0, len(lines))), line)
    path.write_text("\n".join(lines) + "\n")


def override_value(path: Path, rng: Random) -> None:
    """A line `key=value` of a file of command-line arguments: another value, key or form."""
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    key, _, value = lines[number].partition("=")
    hostile = rng.choice((*_YAML_VALUES, *map(str, HOSTILE)))
    renamed = rng.choice(
        (key.upper(), key[:-1], key + ".x", key.split(".")[0], "", ".", key + "[0]", "[", "a" * 999)
    )
    forms: tuple[Callable[[], str], ...] = (
        lambda: f"{key}={hostile}",
        lambda: f"{key}={hostile}",
        lambda: f"{renamed}={value}",
        lambda: f"{key}{value}",
        lambda: f"{key}=={value}",
    )
    lines[number] = rng.choice(forms)().replace("\n", " ")
    path.write_text("\n".join(lines) + "\n", errors="surrogatepass")
