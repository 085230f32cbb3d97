"""Changes to lines and fields of text: lists, caption tables, TSVs."""

import base64
from pathlib import Path
from random import Random

import numpy as np

_FIELDS = (
    *("", " ", "-1", "0", "1", "1.5", "nan", "inf", "1e999", "9" * 400, "9" * 19, "x", "é", "e\u0301", "\u202e"),
    *(
        '"',
        '""',
        "'",
        "[",
        "[]",
        "['a', 'b']",
        '["a", "b"]',
        "{}",
        "\\",
        "\\n",
        "b''",
        "b'YQ=='",
        "YQ==",
        "=",
        "====",
    ),
    *("../../secret", "/etc/passwd", "a/b", "~", "x" * 200_000, "\0", "\x1b[31m", "\u2028", "\x85", "#", "NULL"),
)


def _lines(path: Path) -> list[str]:
    return path.read_bytes().decode().split("\n")


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines), encoding="utf-8", newline="", errors="surrogatepass")


def _delimiter(line: str) -> str:
    return max("\t,|", key=line.count)


def field(path: Path, rng: Random) -> None:
    """One field replaced."""
    lines = _lines(path)
    number = rng.randrange(len(lines))
    delimiter = _delimiter(lines[number])
    fields = lines[number].split(delimiter)
    fields[rng.randrange(len(fields))] = rng.choice(_FIELDS)
    lines[number] = delimiter.join(fields)
    _write(path, lines)


def fields_swapped(path: Path, rng: Random) -> None:
    """Two fields of a line exchanged, one doubled, or one left out."""
    lines = _lines(path)
    number = rng.randrange(len(lines))
    delimiter = _delimiter(lines[number])
    fields = lines[number].split(delimiter)
    first, second = rng.randrange(len(fields)), rng.randrange(len(fields))
    kind = rng.randrange(3)
    if kind == 0:
        fields[first], fields[second] = fields[second], fields[first]
    elif kind == 1:
        fields.insert(second, fields[first])
    else:
        del fields[first]
    lines[number] = delimiter.join(fields)
    _write(path, lines)


def line(path: Path, rng: Random) -> None:
    """A line doubled, removed, moved, cut, joined with the next, or split in two."""
    lines = _lines(path)
    number = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        lines.insert(rng.randrange(len(lines)), lines[number])
    elif kind == 1:
        del lines[number]
    elif kind == 2:
        lines.insert(rng.randrange(len(lines)), lines.pop(number))
    else:
        cut = rng.randrange(len(lines[number]) + 1)
        rest = ("", "\n" + lines[number][cut:], lines.pop(number + 1) if number + 1 < len(lines) else "")[kind - 3]
        lines[number] = lines[number][:cut] + rest
    _write(path, lines)


def delimiter(path: Path, rng: Random) -> None:
    """Another delimiter, another line end, quotes, or a byte-order mark."""
    text = path.read_bytes().decode()
    old = _delimiter(text)
    new = rng.choice(("\t", ",", "|", ";", " ", "  ", "\t\t"))
    end = rng.choice(("\n", "\r\n", "\r", "\n\n", "\u2028"))
    kind = rng.randrange(4)
    if kind == 0:
        text = text.replace(old, new)
    elif kind == 1:
        text = text.replace("\n", end)
    elif kind == 2:
        text = text.replace(old, f'"{old}"')
    else:
        text = "\ufeff" + text
    path.write_text(text, encoding="utf-8", newline="")


def encoding(path: Path, rng: Random) -> None:
    """Another encoding, or bytes that are none."""
    text = path.read_text(encoding="utf-8")
    content = text.encode(rng.choice(("utf-16", "utf-32", "utf-7", "utf-8-sig")))
    path.write_bytes(rng.choice((content, text.encode().replace(b"a", b"\xe9", 2), text.encode() + b"\xff\xfe\0")))


def whole_rows(path: Path, rng: Random) -> None:
    """A thousand copies of a row, or no row but the first."""
    lines = _lines(path)
    _write(path, rng.choice((lines + [rng.choice(lines)] * 1000, lines[:1], lines[1:])))


def base64_array(path: Path, rng: Random) -> None:
    """A base64 field of other numbers: another type, count, NaN, or another way to write it."""
    lines = _lines(path)
    number = rng.randrange(len(lines))
    fields = lines[number].split("\t")
    place = rng.choice([n for n, text in enumerate(fields) if len(text) > 40])
    values = np.frombuffer(base64.b64decode(fields[place]), np.float32)
    text = base64.b64encode(
        rng.choice(
            (
                values.astype(np.float64).tobytes(),
                values.astype(np.float16).tobytes(),
                values.astype(np.int64).tobytes(),
                (values * np.float32(rng.choice((np.nan, np.inf, -1, 0, 1e38)))).tobytes(),
                values[: rng.randrange(len(values))].tobytes(),
                np.concatenate([values, values]).tobytes(),
                values.tobytes()[: rng.randrange(values.nbytes)],
                values.byteswap().tobytes(),
            )
        )
    ).decode()
    forms = (
        text,
        text,
        text,
        f"b'{text}'",
        f'"{text}"',
        text.rstrip("="),
        text + "====",
        text[:60] + "\n" + text[60:],
    )
    fields[place] = rng.choice(forms)
    lines[number] = "\t".join(fields)
    _write(path, lines)
