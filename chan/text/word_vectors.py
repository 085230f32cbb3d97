"""Pretrained word vectors from the text files of GloVe and fastText.

Each line holds a word and its numbers, separated by spaces; a fastText file begins with a line of two counts. Of
files with millions of words only those of the vocabulary are kept in memory.
"""

import gzip
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import nn

from data_tools.errors import InputError, one_line

MAX_LINE = 1 << 20  # bytes: a word and some 100,000 numbers


def initialise_word_vectors(embed: nn.Embedding, words: Sequence[str], path: Path) -> int:
    """Set the rows of words that `path` contains to its vectors, the others to draws from N(0, 1).

    So does the published code.

    Args:
        embed: (words, dim), one row per word.
        words: the vocabulary.
        path: a file as for `read_word_vectors`.

    Returns:
        How many words have a vector.

    Raises:
        InputError: as for `read_word_vectors`.
    """
    wanted = {word: spellings(word) for word in words}
    vectors = read_word_vectors(path, {s for own in wanted.values() for s in own}, embed.embedding_dim)
    found = 0
    with torch.no_grad():
        embed.weight.normal_()
        for row, word in enumerate(words):
            known = next((s for s in wanted[word] if s in vectors), None)
            if known is not None:
                embed.weight[row] = torch.from_numpy(vectors[known])
                found += 1
    return found


def spellings(word: str) -> list[str]:
    """The spellings to look up, in order: the word, then without `-`, `.` and `'`, cut before the first `/`.

    >>> spellings("x-ray/scan")
    ['x-ray/scan', 'xray']
    """
    plain = word.translate({ord(sign): None for sign in "-.'"})
    return [word, plain.split("/")[0]]


def read_word_vectors(path: Path, wanted: set[str], dim: int) -> dict[str, np.ndarray]:
    """The vectors, (dim,) float32, of the `wanted` words that the file contains.

    Args:
        path: `.txt` or `.vec`, plain or in `.gz`; or a `.zip`, of which the file with vectors of `dim` is read.
        wanted: the words to look for.
        dim: dimension of the vectors.

    Raises:
        InputError: the file is missing or damaged, or its vectors have another dimension.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file of word vectors (model.text.word_vectors)")
    keys = {word.encode(): word for word in wanted if word}
    vectors: dict[str, np.ndarray] = {}
    try:
        with _open(path, dim) as file:
            for number, line in enumerate(_lines(path, file), start=1):
                word = keys.get(line[: line.find(b" ")])
                if word is None:
                    if number == 1:
                        _check_first(path, line, dim)
                    continue
                fields = line.split()
                if len(fields) > dim + 1 or (number == 1 and len(fields) == 2):
                    continue  # a word with a space in it, or fastText's counts
                vectors[word] = _numbers(path, number, fields, dim)
    except InputError:
        raise
    except Exception as error:  # decompressors raise many types on damaged files
        raise InputError(f"{path}: cannot be read: {one_line(error)}") from None
    return vectors


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, none longer than any vector: a few compressed bytes can be a line of gigabytes."""
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise InputError(
                f"{path}, line {number}: expected a word and its numbers, found more than {MAX_LINE} bytes"
            )
        yield line


def _check_first(path: Path, line: bytes, dim: int) -> None:
    """`InputError` if the first line, a word and its numbers or fastText's counts, has another dimension."""
    fields = line.split()
    numbers = int(fields[1]) if _is_counts(fields) else len(fields) - 1
    if numbers != dim and not (numbers > dim and not _is_counts(fields)):
        raise InputError(f"{path}: vectors of {numbers} numbers; model.text.word_dim is {dim}")


def _is_counts(fields: list[bytes]) -> bool:
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _numbers(path: Path, line: int, fields: list[bytes], dim: int) -> np.ndarray:
    try:
        vector = np.array([float(field) for field in fields[1:]], dtype=np.float32)
    except ValueError:
        vector = np.empty(0, dtype=np.float32)
    if len(vector) != dim:
        raise InputError(f"{path}, line {line}: expected a word and {dim} numbers (model.text.word_dim)")
    return vector


@contextmanager
def _open(path: Path, dim: int) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        if path.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            yield stack.enter_context(archive.open(_member(path, archive, dim)))
        elif path.suffix == ".gz":
            yield io.BufferedReader(stack.enter_context(gzip.open(path)))
        else:
            yield stack.enter_context(path.open("rb"))


def _member(path: Path, archive: zipfile.ZipFile, dim: int) -> str:
    """The name of the file in the archive whose first line says that its vectors have `dim` numbers."""
    names = [name for name in archive.namelist() if name.endswith((".txt", ".vec"))]
    fitting = []
    for name in names:
        with archive.open(name) as file:
            fields = file.readline(MAX_LINE).split()
        if (int(fields[1]) if _is_counts(fields) else len(fields) - 1) == dim:
            fitting.append(name)
    if len(fitting) != 1:
        raise InputError(f"{path}: expected one file with vectors of {dim} numbers in it, found {len(fitting)} "
                         f"among {', '.join(names) or 'no .txt or .vec'}")  # fmt: skip
    return fitting[0]
