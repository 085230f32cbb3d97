import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

from data_tools.errors import InputError, UsageError
from data_tools.store.joining import join_parts, join_stores
from data_tools.store.parts import Parts
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import StoreSchema
from data_tools.store.writing import write_store

PROVENANCE = {"selection": "all", "config": "A: 1\n"}


@pytest.fixture
def machines(tmp_path, make_block):
    """Three stores of one collection, the second of them empty."""
    blocks = [make_block(["a", "b"], [2, 1]), make_block([], []), make_block(["c", "dd", "e"], [0, 3, 1], seed=1)]
    for number, block in enumerate(blocks):
        write_store(
            tmp_path / f"{number}.h5",
            [block],
            StoreSchema.of([block]),
            {**PROVENANCE, "image_list_sha256": str(number)},
        )
    return [tmp_path / f"{number}.h5" for number in range(3)], blocks


@pytest.mark.parametrize("virtual", [False, True])
def test_stores_become_one(tmp_path, machines, virtual):
    paths, blocks = machines
    joined = join_stores(tmp_path / "all.h5", paths, virtual)
    assert (joined.images, joined.regions, joined.stores) == (5, 7, 3)
    with FeatureStore(joined.file) as store:
        assert store.image_ids == ["a", "b", "c", "dd", "e"]
        assert store.provenance == PROVENANCE  # the lists differ, so none is named
        for name, values in store.block().regions.items():
            np.testing.assert_array_equal(values, np.concatenate([block.regions[name] for block in blocks]))
        np.testing.assert_array_equal(
            store.gather(store.rows(["e", "a"])),
            np.concatenate([blocks[2].regions["features"][3:], blocks[0].regions["features"][:2]]),
        )
        assert bool(store.sources) == virtual
    assert all(path.is_file() for path in paths)


def test_a_virtual_store_moves_with_its_sources_and_holds_no_features(tmp_path, machines):
    paths, blocks = machines
    (tmp_path / "parts").mkdir()
    moved = [path.rename(tmp_path / "parts" / path.name) for path in paths]
    join_stores(tmp_path / "all.h5", moved, virtual=True)
    shutil.copytree(tmp_path, tmp_path.parent / "elsewhere")
    shutil.rmtree(tmp_path / "parts")
    with FeatureStore(tmp_path.parent / "elsewhere" / "all.h5") as store:
        np.testing.assert_array_equal(store.read(0), blocks[0].regions["features"][:2])
    with pytest.raises(InputError, match=r"all\.h5: .*0\.h5, which holds its features, does not exist"):
        FeatureStore(tmp_path / "all.h5")


def test_a_source_that_changed_is_noticed(tmp_path, machines, make_block):
    paths, _ = machines
    join_stores(tmp_path / "all.h5", paths, virtual=True)
    other = make_block(["b", "a"], [2, 1])
    write_store(paths[0], [other], StoreSchema.of([other]), PROVENANCE)
    with pytest.raises(InputError, match="was changed after joining"):
        FeatureStore(tmp_path / "all.h5")


def test_virtual_features_without_their_list_of_sources_are_refused(tmp_path, machines):
    join_stores(tmp_path / "all.h5", machines[0], virtual=True)
    with h5py.File(tmp_path / "all.h5", "r+") as file:
        del file.attrs["virtual_sources"]
    with pytest.raises(InputError, match="virtual_sources does not list the files"):
        FeatureStore(tmp_path / "all.h5")


@pytest.mark.parametrize(
    ("ids", "counts", "dim", "changes", "message"),
    [
        (["b"], [1], 3, {}, r"image b is also in .*0\.h5"),
        (["z"], [1], 4, {}, "dimension 4; .*has 3"),
        (["z"], [1], 3, {"selection": "caffe"}, "selection was all, is caffe"),
        (["z"], [1], 3, {"extra": "x"}, r"extra was \(none\), is x"),
    ],
)
def test_stores_that_do_not_belong_together_are_refused(
    tmp_path, machines, make_block, ids, counts, dim, changes, message
):
    block = make_block(ids, counts, dim=dim)
    write_store(tmp_path / "o.h5", [block], StoreSchema.of([block]), {**PROVENANCE, **changes})
    with pytest.raises(InputError, match=message):
        join_stores(tmp_path / "all.h5", [machines[0][0], tmp_path / "o.h5"])
    assert not (tmp_path / "all.h5").exists()


def test_stores_of_other_columns_are_refused(tmp_path, machines, make_block):
    block = make_block(["z"], [1])
    del block.regions["boxes"]
    write_store(tmp_path / "o.h5", [block], StoreSchema.of([block]), PROVENANCE)
    with pytest.raises(InputError, match="columns class_ids"):
        join_stores(tmp_path / "all.h5", [machines[0][0], tmp_path / "o.h5"])


def test_a_store_is_not_joined_into_itself(tmp_path, machines):
    with pytest.raises(UsageError, match="is one of the stores to join"):
        join_stores(machines[0][0], machines[0])


def test_parts_left_by_a_run_are_joined_when_all_are_there(tmp_path, make_block):
    blocks = [make_block(["a", "b"], [2, 1]), make_block(["c"], [3], seed=1), make_block(["e"], [1], seed=2)]
    parts = Parts(tmp_path / "f.h5", PROVENANCE, 5, 2, {"batch_size": "8", "device": "cpu"})
    with pytest.raises(InputError, match="found no parts"):
        join_parts(parts.file)
    parts.write(2, blocks[2])
    with pytest.raises(InputError, match=r"2 of 3 parts are missing: part-000000\.h5, part-000001\.h5"):
        join_parts(parts.file)
    for part in (0, 1):
        parts.write(part, blocks[part])
    assert Parts.found(parts.file) == parts
    assert join_parts(parts.file).images == 4
    with FeatureStore(parts.file) as store:
        assert store.provenance == PROVENANCE
        assert store.image_ids == ["a", "b", "c", "e"]
    assert not parts.folder.exists()
    with pytest.raises(UsageError, match="exists"):
        join_parts(parts.file)


def test_a_part_that_names_no_list_is_refused(tmp_path, machines):
    (tmp_path / "f.h5.parts").mkdir()
    machines[0][0].rename(tmp_path / "f.h5.parts" / "part-000000.h5")
    with pytest.raises(InputError, match="to what list of images it belongs"):
        join_parts(tmp_path / "f.h5")


def test_an_image_that_another_store_holds_did_not_fail(tmp_path, make_block):
    failure = {"id": "b", "file": "b.jpg", "reason": "truncated"}
    other = {"id": "z", "file": "z.jpg", "reason": "truncated"}
    first = replace(make_block(["a"], [2]), failures=(failure, other))
    for name, block in (("one.h5", first), ("two.h5", make_block(["b"], [1]))):
        write_store(tmp_path / name, [block], StoreSchema.of([block]), {"config": "x"})
    joined = join_stores(tmp_path / "all.h5", [tmp_path / "one.h5", tmp_path / "two.h5"])
    assert joined.failures == 1
    assert FeatureStore(tmp_path / "all.h5").failures == (other,)
    virtual = join_stores(tmp_path / "v.h5", [tmp_path / "one.h5", tmp_path / "two.h5"], virtual=True)
    assert virtual.failures == 1
    assert FeatureStore(tmp_path / "v.h5").failures == (other,)
