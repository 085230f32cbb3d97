import shutil
from collections import namedtuple

import numpy as np
import pytest

from data_tools.errors import InputError
from data_tools.store.parts import Parts, check_same_provenance
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import Block

PROVENANCE = {"config": "A: 1\nB: 2\n", "selection": "caffe"}


def parts(tmp_path, images=5, size=2, **changes):
    return Parts(tmp_path / "features.h5", {**PROVENANCE, **changes}, images, size)


@pytest.fixture
def blocks(make_block):
    return [
        make_block(["a", "b"], [2, 1]),
        make_block(["c", "dd"], [0, 3], seed=1),
        make_block(["e"], [1], seed=2),
    ]


def test_parts_cut_the_list_by_position(tmp_path):
    cut = parts(tmp_path)
    assert cut.count == 3
    assert [list(cut.span(part)) for part in range(3)] == [[0, 1], [2, 3], [4]]
    assert cut.present() == {}


def test_joined_parts_hold_every_row_in_order_and_are_gone(tmp_path, blocks):
    cut = parts(tmp_path)
    written = blocks
    for part in (2, 0, 1):
        cut.write(part, written[part])
    present = cut.present()
    assert sorted(present) == [0, 1, 2]
    joined = cut.join(present)
    assert (joined.image_ids, joined.counts.tolist()) == (["a", "b", "c", "dd", "e"], [2, 1, 0, 3, 1])
    with FeatureStore(cut.file) as store:
        assert store.image_ids == ["a", "b", "c", "dd", "e"]
        assert store.provenance == PROVENANCE
        for name, values in store.block().regions.items():
            np.testing.assert_array_equal(values, np.concatenate([b.regions[name] for b in written]))
    assert [path.name for path in tmp_path.iterdir()] == ["features.h5"]


def test_failures_of_all_parts_are_joined(tmp_path, make_block):
    cut = parts(tmp_path, images=2, size=1)
    empty = make_block([], [])
    for part in range(2):
        failure = ({"id": str(part), "file": "f", "reason": "r"},)
        cut.write(part, Block([], empty.counts, empty.regions, empty.image_sizes, failure))
    cut.join()
    with FeatureStore(cut.file) as store:
        assert [failure["id"] for failure in store.failures] == ["0", "1"]
        assert store.image_ids == []


@pytest.mark.parametrize(
    ("images", "size", "changes", "message"),
    [
        (5, 2, {"selection": "other"}, "selection was caffe, is other"),
        (5, 2, {"config": "A: 1\nB: 3\n"}, "config was B: 2, is B: 3"),
        (5, 4, {}, "images_per_part was 2, is 4"),
        (5, 2, {"extra": "x"}, r"extra was \(none\), is x"),
    ],
)
def test_a_part_of_another_run_is_refused_and_says_what_changed(tmp_path, images, size, changes, message, blocks):
    parts(tmp_path).write(0, blocks[0])
    with pytest.raises(InputError, match=message):
        parts(tmp_path, images, size, **changes).present()


def test_joining_needs_room_on_the_disk(tmp_path, monkeypatch, blocks):
    cut = parts(tmp_path, images=2)
    cut.write(0, blocks[0])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    with pytest.raises(InputError, match="fix: free space"):
        cut.join()
    assert sorted(cut.present()) == [0]


def test_a_failed_write_leaves_no_part(tmp_path, make_block):
    cut = parts(tmp_path, images=1)
    wrong = make_block(["a"], [1])
    wrong.regions["boxes"] = np.zeros((7, 4), np.float32)
    with pytest.raises(TypeError):
        cut.write(0, wrong)
    assert cut.present() == {}
    assert list(cut.folder.iterdir()) == []


def test_equal_provenance_is_no_difference(tmp_path):
    check_same_provenance(tmp_path, dict(PROVENANCE), dict(PROVENANCE))
    with pytest.raises(InputError, match="config was 2 lines, is 3 lines"):
        check_same_provenance(tmp_path, PROVENANCE, {**PROVENANCE, "config": "A: 1\nB: 2\nC: 3\n"})
