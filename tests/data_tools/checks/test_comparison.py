"""Features compared with features of the same images, shuffled, disturbed and in other formats."""

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from data_tools.checks.comparison import box_ious, compare_features, draw_histogram, match
from data_tools.errors import InputError
from data_tools.formats.conversion import convert
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

FINITE = st.floats(-4, 4, width=32)


@settings(deadline=None)  # the first example imports SciPy
@given(arrays(np.float32, (3, 2), elements=FINITE), arrays(np.float32, (4, 2), elements=FINITE))
def test_no_other_matching_has_larger_cosines(ours, theirs):
    def cosine(a, b):
        lengths = np.linalg.norm(a.astype(float)) * np.linalg.norm(b.astype(float))
        return float(a.astype(float) @ b.astype(float)) / lengths if lengths else 0.0

    best = max(
        sum(cosine(ours[row], theirs[other]) for row, other in enumerate(order))
        for order in permutations(range(4), 3)
    )
    assert match(ours, theirs).cosines.sum() == pytest.approx(best, abs=1e-9)
    assert match(theirs, ours).cosines.sum() == pytest.approx(best, abs=1e-9)


def test_errors_and_boxes_are_those_of_the_matched_rows():
    ours, theirs = np.eye(3, 4), np.eye(3, 4)[[2, 0, 1]] * [[2], [1], [1]]
    boxes = np.array([[0, 0, 4, 4], [1, 1, 3, 5], [0, 0, 0, 0]], float)
    moved = boxes[[2, 0, 1]] + [[0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 2, 0]]
    found = match(ours, theirs, (boxes, moved))
    np.testing.assert_allclose(found.cosines, 1)
    np.testing.assert_allclose(found.errors, [0, 0, 0.5])  # the third is half as long as its partner
    assert found.ious is not None
    np.testing.assert_allclose(found.ious, [1, 0, 0])  # beside one another; both empty


def test_overlap_is_counted_on_a_grid():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (50, 2, 2))
    first = np.concatenate([corners[:, 0], corners[:, 0] + rng.integers(0, 8, (50, 2))], 1)
    second = np.concatenate([corners[:, 1], corners[:, 1] + rng.integers(0, 8, (50, 2))], 1)
    for one, other, found in zip(first, second, box_ious(first, second), strict=True):
        cells = []
        for x1, y1, x2, y2 in (one, other):
            cells.append({(x, y) for x in range(x1, x2) for y in range(y1, y2)})
        union = cells[0] | cells[1]
        assert found == pytest.approx(len(cells[0] & cells[1]) / len(union) if union else 0)


def write(path, ids, counts, rng, dim=8, boxes=True, seed_rows=None):
    rows = sum(counts)
    features = rng.normal(size=(rows, dim)).astype(np.float32) if seed_rows is None else seed_rows
    columns = {"features": features}
    if boxes:
        corners = rng.uniform(0, 50, (rows, 2))
        columns["boxes"] = np.concatenate([corners, corners + rng.uniform(5, 40, (rows, 2))], 1).astype(np.float32)
    sizes = np.full((len(ids), 2), 100, np.int32) if boxes else None
    block = Block(ids, np.array(counts), columns, sizes)
    write_store(path, [block], StoreSchema.of([block]), {"selection": "random"})
    return features, columns.get("boxes")


@pytest.fixture
def ours(tmp_path):
    rng = np.random.default_rng(1)
    ids, counts = [str(n) for n in range(12)], [4] * 12
    features, boxes = write(tmp_path / "ours.h5", ids, counts, rng)
    return tmp_path / "ours.h5", ids, counts, features, boxes


@pytest.mark.parametrize("to", ["butd", "milvlg", "scan", "store"])
def test_the_same_features_in_another_format_are_equal(ours, to, tmp_path):
    path = ours[0]
    target = {"butd": "t.tsv", "milvlg": "npz", "scan": "t_ims.npy", "store": "t.h5"}[to]
    convert(path, tmp_path / target, to)
    found = compare_features(path, tmp_path / target)
    assert (found.images, found.rows, found.matched) == (12, [48, 48], 48)
    assert (found.share(0.999), found.error_max) == (1, 0)
    assert found.histogram[0] == 48
    if to == "scan":
        assert found.as_json()["boxes"] is None
    else:
        assert found.as_json()["boxes"]["mean_iou"] == pytest.approx(1)


def test_shuffled_disturbed_and_missing_images_are_counted(ours, tmp_path):
    path, ids, counts, features, _ = ours
    rng = np.random.default_rng(2)
    theirs = features.reshape(12, 4, 8)[:, ::-1].copy()
    theirs[3, 0] += rng.normal(size=8) * 5  # one row is another one
    theirs[7, :3] *= 1.25  # three rows are longer: the same direction
    kept = theirs[:10].reshape(-1, 8)
    write(tmp_path / "theirs.h5", [*ids[:9], "new"], counts[:10], rng, boxes=False, seed_rows=kept)
    found = compare_features(path, tmp_path / "theirs.h5")
    assert (found.only_ours, found.only_theirs, found.images) == (["9", "10", "11"], ["new"], 9)
    assert found.share(0.999) == pytest.approx(35 / 36)
    assert found.as_json()["worst"][0]["id"] == "3"
    assert found.histogram.sum() == 36
    expected = [
        np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(features[12:16][::-1], theirs[3], strict=True)
    ]
    assert found.error_max == pytest.approx(max(expected), rel=1e-6)
    assert found.error_sum == pytest.approx(sum(expected) + 3 * 0.2, rel=1e-5)
    draw_histogram(found, tmp_path / "h.png")
    assert Image.open(tmp_path / "h.png").size[0] > 500


def test_a_row_without_a_partner_is_not_alike(tmp_path):
    rng = np.random.default_rng(3)
    features, _ = write(tmp_path / "a.h5", ["1"], [4], rng, boxes=False)
    write(tmp_path / "b.h5", ["1"], [3], rng, boxes=False, seed_rows=features[1:])
    for one, other in (("a", "b"), ("b", "a")):
        found = compare_features(tmp_path / f"{one}.h5", tmp_path / f"{other}.h5")
        assert (found.matched, found.share()) == (3, 0.75)


def test_what_cannot_be_compared_is_one_line(ours, tmp_path):
    rng = np.random.default_rng(3)
    write(tmp_path / "narrow.h5", ["1"], [4], rng, dim=5)
    with pytest.raises(InputError, match=r"features of 8 numbers; those of .*narrow\.h5 have 5"):
        compare_features(ours[0], tmp_path / "narrow.h5")
    write(tmp_path / "other.h5", ["x.jpg"], [4], rng)
    with pytest.raises(InputError, match=r"no image in common: '0' and 'x\.jpg'"):
        compare_features(ours[0], tmp_path / "other.h5")
    (tmp_path / "id_mapping.json").write_text(json.dumps({"5": "x.jpg"}))
    assert compare_features(ours[0], tmp_path / "other.h5", tmp_path / "id_mapping.json").images == 1


def test_rows_without_a_box_have_no_overlap(tmp_path):
    features = np.eye(4, 5, dtype=np.float32)
    boxes = np.tile(np.array([[1, 2, 30, 40]], np.float32), (4, 1))
    for name, confidence in (("a", [1, 0, 0.5, 1]), ("b", [1, 1, 1, 0])):
        columns = {"features": features, "boxes": boxes, "box_confidence": np.array(confidence, np.float32)}
        block = Block(["7"], np.array([4]), columns)
        write_store(tmp_path / f"{name}.h5", [block], StoreSchema.of([block]), {})
    found = compare_features(tmp_path / "a.h5", tmp_path / "b.h5")
    assert (found.matched, found.boxes, found.iou_sum) == (4, 2, 2.0)
