import gzip
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from chan.text.word_vectors import initialise_word_vectors, read_word_vectors, spellings
from data_tools.errors import InputError

GLOVE = "cat 1 2 3\ndog -1 0.5 1e-2\nnew york 7 7 7\nxray 4 5 6\nand 0 0 1\n"
FASTTEXT = "5 3\n" + GLOVE


def written(folder: Path, kind: str) -> Path:
    path = folder / f"vectors{kind}"
    if kind == ".txt.gz":
        path.write_bytes(gzip.compress(GLOVE.encode()))
    elif kind == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("glove.2d.txt", "cat 1 2\n")
            archive.writestr("glove.3d.txt", GLOVE)
            archive.writestr("read me", "cat 1 2 3")
    else:
        path.write_text(FASTTEXT if kind == ".vec" else GLOVE)
    return path


@pytest.mark.parametrize("kind", [".txt", ".vec", ".txt.gz", ".zip"])
def test_only_the_wanted_words_are_kept(kind: str, tmp_path: Path) -> None:
    found = read_word_vectors(written(tmp_path, kind), {"cat", "xray", "horse", "new", "5"}, 3)
    assert found.keys() == {"cat", "xray"}
    np.testing.assert_array_equal(found["cat"], np.array([1, 2, 3], dtype=np.float32))


@pytest.mark.parametrize(
    ("word", "expected"),
    [("x-ray", "xray"), ("u.s.", "us"), ("'s", "s"), ("and/or", "and"), ("t-shirt/top", "tshirt"), ("cat", "cat")],
)
def test_a_missing_word_is_tried_in_a_plainer_spelling(word: str, expected: str) -> None:
    assert spellings(word) == [word, expected]


def test_words_without_a_vector_are_drawn_from_a_normal_distribution(tmp_path: Path) -> None:
    words = ["cat", "x-ray", "and/or", *(f"word{n}" for n in range(4000))]
    embed = torch.nn.Embedding(len(words), 3)
    torch.nn.init.zeros_(embed.weight)
    assert initialise_word_vectors(embed, words, written(tmp_path, ".txt")) == 3
    assert embed.weight[:3].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 1]]
    rest = embed.weight[3:].detach()
    assert rest.mean().item() == pytest.approx(0, abs=0.03)
    assert rest.std().item() == pytest.approx(1, abs=0.03)
    assert embed.weight.requires_grad


@pytest.mark.parametrize("kind", [".txt", ".vec", ".zip", ".txt.gz"])
def test_another_length_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vectors.*300"):
        read_word_vectors(written(tmp_path, kind), {"horse"}, 300)


@pytest.mark.parametrize(
    ("kind", "content"), [(".zip", b"no archive"), (".gz", b"no archive"), (".gz", b"\x1f\x8b\x08")]
)
def test_a_damaged_file_is_one_line(kind: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"vectors{kind}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="vectors") as error:
        read_word_vectors(path, {"cat"}, 3)
    assert "\n" not in str(error.value)


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("dog 1 2 3\ncat 1 2 x\n")
    with pytest.raises(InputError, match=r"vectors\.txt, line 2: expected a word and 3 numbers"):
        read_word_vectors(path, {"cat"}, 3)


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_a_line_of_gigabytes_takes_no_memory(tmp_path: Path, kind: str) -> None:
    """8.8 MB of a compressed file can be one line of 5 GB."""
    path = tmp_path / f"vectors.{kind}"
    line = b"0 " * (1 << 24)
    if kind == "gz":
        path.write_bytes(gzip.compress(line, 1))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.txt", line)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"vectors\.") as raised:
        read_word_vectors(path, {"dog"}, 300)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert "\n" not in str(raised.value)
