"""Rows of a TSV as other programs write them, and rows that are damaged."""

import base64
import csv
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.command_line import data_tools as entry
from data_tools.errors import InputError, UsageError
from data_tools.formats.conversion import Choices, convert
from data_tools.formats.tsv import TsvSource
from data_tools.formats.tsv_rows import FAR, float_type
from data_tools.store.reading import FeatureStore

COUNT, DIM = 3, 8
NAMES = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


def encoded(array, dtype="<f4"):
    return base64.b64encode(np.asarray(array).astype(dtype).tobytes()).decode()


def boxes_of(seed):
    return np.random.default_rng(seed).uniform(0, 48, (COUNT, 4)).astype(np.float32)


def features_of(seed):
    return np.random.default_rng(seed).normal(size=(COUNT, DIM)).astype(np.float32)


def row(image_id="1", seed=0, **changes):
    numbers = {"image_id": image_id, "image_w": "64", "image_h": "48", "num_boxes": str(COUNT)}
    arrays = {"boxes": encoded(boxes_of(seed)), "features": encoded(features_of(seed))}
    return "\t".join({**numbers, **arrays, **changes}.values())


def write(folder, *rows):
    path = folder / "f.tsv"
    path.write_bytes("".join(f"{line}\n" for line in rows).encode())
    return path


def wrapped(array):
    return base64.encodebytes(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def as_python2(path, quoting, header):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=quoting)
        writer.writerows([NAMES] if header else [])
        for n in range(3):
            writer.writerow([f"im{n}", 64, 48, COUNT, wrapped(boxes_of(n)), wrapped(features_of(n))])


def as_bytes(path, wrap):
    form = base64.encodebytes if wrap else base64.b64encode
    with path.open("w") as file:
        for n in range(3):
            fields = [f"im{n}", 64, 48, COUNT, form(boxes_of(n).tobytes()), form(features_of(n).tobytes())]
            file.write("\t".join(map(str, fields)) + "\n")


@pytest.mark.parametrize(
    "form",
    [
        lambda path: as_python2(path, csv.QUOTE_MINIMAL, header=False),
        lambda path: as_python2(path, csv.QUOTE_ALL, header=True),
        lambda path: as_bytes(path, wrap=False),
        lambda path: as_bytes(path, wrap=True),
    ],
    ids=["wrapped lines", "all quoted, header", "b'...'", "b'...' with line ends in it"],
)
@pytest.mark.parametrize("skip", [False, True])
def test_base64_as_other_programs_print_it_is_read(tmp_path, form, skip):
    form(tmp_path / "f.tsv")
    source = TsvSource(tmp_path / "f.tsv", skip)
    assert source.image_ids == ["im0", "im1", "im2"]
    for n in range(3):
        np.testing.assert_array_equal(source.image(n).regions["features"], features_of(n))
        np.testing.assert_array_equal(source.image(n).regions["boxes"], boxes_of(n))


def test_a_quote_in_an_id_stays_and_the_rows_after_it_too(tmp_path):
    assert TsvSource(write(tmp_path, row('12" disc'), row("2", 1))).image_ids == ['12" disc', "2"]


def test_a_row_that_is_cut_inside_a_quoted_field_ends_where_the_next_row_begins(tmp_path):
    as_python2(tmp_path / "f.tsv", csv.QUOTE_MINIMAL, header=False)
    lines = (tmp_path / "f.tsv").read_text().split("\n")
    (tmp_path / "f.tsv").write_text("\n".join(cut(lines)))
    source = TsvSource(tmp_path / "f.tsv", skip_damaged=True)
    assert source.image_ids == ["im0", "im2"]
    assert [failure["id"] for failure in source.failures] == ["im1"]


def cut(lines):
    """The lines without those of the row `im1` but its first."""
    one, two = (next(n for n, line in enumerate(lines) if line.startswith(name)) for name in ("im1", "im2"))
    return [*lines[: one + 1], *lines[two:]]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["data-tools", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        entry()
    return int(ended.value.code or 0), *capsys.readouterr()


def test_a_cut_row_whose_image_follows_stops_the_conversion_or_is_skipped_and_listed(
    monkeypatch, capsys, tmp_path
):
    path, out = write(tmp_path, row("1"), row("7", 1)[:-21], row("7", 1), row("3", 2)), tmp_path / "f.h5"
    code, _, error = run(monkeypatch, capsys, "convert", path, "--out", out)
    assert (code, out.exists()) == (1, False)
    last = error.strip().splitlines()[-1]
    assert f"{path}, line 2: features" in last
    assert "--on-error skip" in last
    code, said, _ = run(monkeypatch, capsys, "convert", path, "--out", out, "--on-error", "skip")
    assert code == 0
    assert f"{path}, line 2: features" in said
    with FeatureStore(out) as store:
        assert store.image_ids == ["1", "7", "3"]
        assert store.failures == ()
        np.testing.assert_array_equal(store.read(1), features_of(1))


def test_an_image_that_is_lost_is_a_failure_of_the_store_and_exit_code_1(monkeypatch, capsys, tmp_path):
    path, out = write(tmp_path, row("1")[:-20], row("7", 1)[:30], row("3", 2)), tmp_path / "f.h5"
    code, said, _ = run(monkeypatch, capsys, "convert", path, "--out", out, "--on-error", "skip", "--json")
    assert (code, json.loads(said)["lost"], json.loads(said)["images"]) == (1, 2, 1)
    with FeatureStore(out) as store:
        assert store.image_ids == ["3"]
        assert [failure["id"] for failure in store.failures] == ["1", "7"]
        assert all(failure["file"] == "f.tsv" for failure in store.failures)


def test_of_two_different_rows_of_an_image_skipping_keeps_the_first_and_lists_the_second(tmp_path):
    path = write(tmp_path, row("1", 0), row("1", 1))
    with pytest.raises(InputError, match="line 2: image 1 is on line 1 too"):
        TsvSource(path)
    source = TsvSource(path, skip_damaged=True)
    np.testing.assert_array_equal(source.image(0).regions["features"], features_of(0))
    assert len(source.notes) == 1
    assert "line 2" in source.notes[0]
    assert source.lost == 0


def test_only_rows_of_a_tsv_can_be_skipped(tmp_path):
    with pytest.raises(UsageError, match="TSV"):
        convert(tmp_path / "a.h5", tmp_path / "b.h5", choices=Choices(skip_damaged=True))


PLAIN = features_of(0).astype(np.float64)
WHOLE = np.arange(1, COUNT * DIM + 1).reshape(COUNT, DIM)
MANY = np.random.default_rng(1).normal(size=(COUNT, 256))


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        (np.random.default_rng(0).random((COUNT, DIM)), "<f8"),
        (np.maximum(np.random.default_rng(0).normal(size=(COUNT, DIM)), 0), "<f8"),
        (PLAIN, "<f8"),  # once float32
        (WHOLE, "<f8"),
        (np.ones((COUNT, DIM)), "<f8"),
        (MANY, "<f2"),
        (np.maximum(MANY, 0), "<f2"),
    ],
)
@pytest.mark.parametrize("zeros_first", [False, True])
def test_features_of_another_type_are_named(tmp_path, features, dtype, zeros_first):
    zeros = [row("0", features=encoded(np.zeros_like(features), dtype))] if zeros_first else []
    path = write(tmp_path, *zeros, row("1", features=encoded(features, dtype)))
    line, name = 1 + zeros_first, np.dtype(dtype).name
    with pytest.raises(InputError, match=f"line {line}: features: .*{name}, expected float32"):
        TsvSource(path)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 600),
    scale=st.sampled_from([1e-3, 1, 30, 1e4]),
    form=st.sampled_from(["normal", "relu", "sparse", "float16", "bfloat16", "whole", "constant", "pixel"]),
)
def test_ordinary_float32_is_never_taken_for_another_type(seed, size, scale, form):
    rng = np.random.default_rng(seed)
    values = (scale * rng.normal(size=size)).astype(np.float32)
    forms = {
        "normal": values,
        "relu": np.maximum(values, 0),
        "sparse": values * (rng.random(size) < 0.05),
        "float16": values.astype(np.float16).astype(np.float32),
        "bfloat16": (values.view(np.uint32) & 0xFFFF0000).view(np.float32),
        "whole": np.round(values),
        "constant": np.full(size, values[0]),
        "pixel": rng.integers(0, 256, size).astype(np.float32) / 255,
    }
    assert float_type(forms[form].astype(np.float32)) == "float32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": encoded(boxes_of(0), "<f8")}, "boxes: 96 bytes, expected 48 for 3 regions; .*float64"),
        ({"image_w": "0"}, "image_w: expected a whole number of at least 1, found '0'"),
        ({"image_h": "9" * 5000}, "image_h: expected a whole number"),
        ({"image_h": "48.5"}, "image_h: expected a whole number of at least 1, found '48.5'"),
        ({"num_boxes": "-3"}, "num_boxes: expected a whole number, found '-3'"),
        ({"num_boxes": "4294967299"}, "num_boxes: expected a whole number"),
        ({"num_boxes": "1"}, "boxes: 48 bytes, expected 16 for 1 regions"),
        ({"image_id": "a\0b"}, "image_id: expected printable characters"),
        ({"image_id": " 1"}, "image_id: expected printable characters"),
        ({"features": encoded(np.full((COUNT, DIM), np.nan))}, "features: NaN or Inf in region 0"),
        ({"features": encoded(np.where(np.eye(COUNT, DIM), 1, np.inf))}, "features: NaN or Inf in region 0"),
        ({"boxes": encoded(np.where(np.arange(12).reshape(3, 4) == 9, np.nan, 1))}, "boxes: NaN .* region 2"),
        ({"boxes": encoded(np.full((COUNT, 4), 64 * FAR + 1))}, "boxes: 6401 is far outside an image of 64 x 48"),
        ({"boxes": encoded(np.full((COUNT, 4), -1e9))}, r"boxes: 1e\+09 is far outside"),
        ({"features": encoded(features_of(0))[:-4] + "\0" * 4}, "features: not base64"),
        ({"features": encoded(features_of(0))[:-4] + "****"}, "features: not base64"),
        ({"features": f'"{encoded(features_of(0))}'}, "features: .*not base64"),
    ],
)
def test_a_wrong_row_is_named_or_skipped(tmp_path, changes, message):
    path = write(tmp_path, row("0", 1), row(**changes), row("2", 2))
    with pytest.raises(InputError, match=f"line 2: .*{message}") as caught:
        convert(path, tmp_path / "f.h5")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    source = TsvSource(path, skip_damaged=True)
    assert source.image_ids == ["0", "2"]
    assert source.lost == 1


def test_skipping_all_rows_is_an_error(tmp_path):
    with pytest.raises(InputError, match="line 1: image_w"):
        TsvSource(write(tmp_path, row(image_w="x"), row("2", image_w="y")), skip_damaged=True)


def test_the_layout_of_a_file_that_begins_with_damaged_rows_is_found(tmp_path):
    source = TsvSource(write(tmp_path, row("1")[:12], row("2")[:8], row("3")), skip_damaged=True)
    assert (source.image_ids, source.lost) == (["3"], 2)


@pytest.mark.parametrize("content", [row().encode("utf-16"), b"\0" * 99, b"\n\n", b"\xff\xd8\xff\xe0\t\t\t\t\t"])
def test_another_file_is_named(tmp_path, content):
    (tmp_path / "f.tsv").write_bytes(content)
    with pytest.raises(InputError, match=r"f\.tsv") as caught:
        TsvSource(tmp_path / "f.tsv")
    assert "\n" not in str(caught.value)
