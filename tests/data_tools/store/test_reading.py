import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.errors import InputError
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import ALIGNMENT, Block, StoreSchema
from data_tools.store.writing import write_store

ids = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8), unique=True, max_size=5
)


def write(path, blocks, attributes=None):
    write_store(path, blocks, StoreSchema.of(blocks), attributes or {"selection": "all"})
    return path


@settings(max_examples=40, deadline=None)
@given(image_ids=ids, data=st.data(), dtype=st.sampled_from(["float32", "float16"]))
def test_what_is_written_is_read_again(tmp_path_factory, image_ids, data, dtype, make_block):
    counts = data.draw(st.lists(st.integers(0, 4), min_size=len(image_ids), max_size=len(image_ids)))
    block = make_block(image_ids, counts, dtype=dtype)
    path = write(tmp_path_factory.mktemp("store") / "features.h5", [block])
    store = FeatureStore(path)
    assert store.image_ids == image_ids
    assert store.counts.tolist() == counts
    assert store.provenance == {"selection": "all"}
    first = 0
    for row, count in zip(store.rows(image_ids), counts, strict=True):
        np.testing.assert_array_equal(store.read(row), block.regions["features"][first : first + count])
        np.testing.assert_array_equal(store.boxes(row), block.regions["boxes"][first : first + count])
        assert store.read(row).dtype == dtype
        first += count


def test_layout_is_that_of_the_format(tmp_path, make_block):
    path = write(tmp_path / "features.h5", [make_block(["a", "b"], [2, 1]), make_block(["c"], [0])])
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"format": "region-features", "format_version": 1, "selection": "all"}
        assert file["offsets"][:].tolist() == [0, 2, 3, 3]
        assert file["offsets"].dtype.str == "<i8"
        for name, dataset in file.items():
            assert dataset.chunks is None, name
            assert dataset.compression is None, name
            assert dataset.id.get_offset() % ALIGNMENT == 0, name
            assert dataset.id.get_create_plist().get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY, name
        raw = np.memmap(path, np.float32, "r", file["features"].id.get_offset(), file["features"].shape)
        np.testing.assert_array_equal(raw, file["features"][:])


def test_a_store_of_blocks_is_that_of_one_block(tmp_path, make_block):
    whole = make_block(["a", "b", "c"], [2, 0, 3])
    pieces = [
        Block(["a"], whole.counts[:1], {k: v[:2] for k, v in whole.regions.items()}, whole.image_sizes[:1]),
        Block(["b", "c"], whole.counts[1:], {k: v[2:] for k, v in whole.regions.items()}, whole.image_sizes[1:]),
    ]
    one, two = write(tmp_path / "one.h5", [whole]), write(tmp_path / "two.h5", pieces)
    assert one.read_bytes() == two.read_bytes()


def test_failures_are_kept_whatever_their_length(tmp_path, make_block):
    failures = tuple({"id": str(n), "file": "ü" * n, "reason": "r" * 300} for n in range(400))
    block = make_block(["a"], [1])
    path = write(
        tmp_path / "features.h5",
        [Block(block.image_ids, block.counts, block.regions, block.image_sizes, failures)],
    )
    assert FeatureStore(path).failures == failures


def _read_first(store):
    return store.read(0)


def test_other_processes_read_for_themselves(tmp_path, make_block):
    block = make_block(["a"], [4])
    store = FeatureStore(write(tmp_path / "features.h5", [block]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(0), block.regions["features"])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for features in pool.map(_read_first, [store] * 4):
            np.testing.assert_array_equal(features, block.regions["features"])


def test_a_missing_image_is_named(tmp_path, make_block):
    store = FeatureStore(write(tmp_path / "features.h5", [make_block(["a"], [1])]))
    with pytest.raises(InputError, match=r"features\.h5: holds no features of image 7 and 1 others of the 3"):
        store.rows(["7", "a", "8"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.attrs.__setitem__("format", "other"), "not a feature store"),
        (lambda f: f.attrs.__setitem__("format_version", 9), "format version 9; this program reads version 1"),
        (lambda f: f.__delitem__("offsets"), "offsets"),
        (
            lambda f: (f.__delitem__("image_ids"), f.create_group("image_ids")),
            "expected a dataset image_ids",
        ),
        (lambda f: f["image_ids"].__setitem__(1, b"a"), "image_ids: an id is repeated"),
        (lambda f: f["image_ids"].__setitem__(1, b"\xff"), "image_ids: not UTF-8 text"),
        (lambda f: f["offsets"].__setitem__(1, 9), "offsets: expected 3 numbers that rise from 0 to 3"),
        (lambda f: f["offsets"].__setitem__(2, 1), "offsets: expected 3 numbers that rise from 0 to 3"),
        (
            lambda f: (f.__delitem__("boxes"), f.create_dataset("boxes", (3, 5), "f4")),
            r"boxes: expected the shape \(3, 4\)",
        ),
        (
            lambda f: (f.__delitem__("features"), f.create_dataset("features", (3,), "f4")),
            "expected a dataset features of floats with 2",
        ),
    ],
)
def test_an_inconsistent_store_is_refused(tmp_path, damage, message, make_block):
    path = write(tmp_path / "features.h5", [make_block(["a", "b"], [2, 1])])
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(InputError, match=message):
        FeatureStore(path)


def test_a_file_cut_short_is_refused(tmp_path, make_block):
    path = write(tmp_path / "features.h5", [make_block(["a"], [300], dim=64)])
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        FeatureStore(path)
    with pytest.raises(InputError, match="no such file"):
        FeatureStore(tmp_path / "absent.h5")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), counts=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_a_gather_is_the_images_one_after_the_other(tmp_path_factory, data, counts, make_block):
    block = make_block([str(n) for n in range(len(counts))], counts)
    store = FeatureStore(write(tmp_path_factory.mktemp("store") / "features.h5", [block]))
    rows = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8)), dtype=np.int64)
    offsets = np.cumsum([0, *counts])
    wanted = [block.regions["features"][offsets[row] : offsets[row + 1]] for row in rows]
    expected = np.concatenate([np.empty((0, 3), np.float32), *wanted])
    np.testing.assert_array_equal(store.gather(rows), expected)
    np.testing.assert_array_equal(store.gather(rows.tolist()), expected)
    buffer = np.full((40, 3), 7, np.float64)
    np.testing.assert_array_equal(store.gather(rows, buffer), expected)
    assert (buffer[len(expected) :] == 7).all()


def test_a_buffer_that_does_not_fit_is_refused(tmp_path, make_block):
    store = FeatureStore(write(tmp_path / "features.h5", [make_block(["a"], [4])]))
    for buffer in (np.zeros((3, 3)), np.zeros((4, 2)), np.zeros((4, 3), int), np.zeros(12)):
        with pytest.raises(ValueError, match=r"at least \(4, 3\)"):
            store.gather(np.array([0]), buffer)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 3), max_size=9), size=st.integers(1, 4))
def test_the_blocks_of_a_store_are_the_store(tmp_path_factory, counts, size, make_block):
    folder = tmp_path_factory.mktemp("store")
    whole = make_block([str(n) for n in range(len(counts))], counts)
    whole = Block(whole.image_ids, whole.counts, whole.regions, whole.image_sizes, ({"id": "x"},))
    store = FeatureStore(write(folder / "one.h5", [whole]))
    write_store(folder / "two.h5", store.blocks(size), store.schema, store.provenance)
    assert (folder / "one.h5").read_bytes() == (folder / "two.h5").read_bytes()


def test_a_region_of_no_confidence_has_no_box(tmp_path, make_block):
    block = make_block(["a", "b"], [2, 3])
    block.regions["box_confidence"][:] = [1, 0, 0.25, np.nan, 1]
    path = tmp_path / "f.h5"
    write_store(path, [block], StoreSchema.of([block]), {})
    store = FeatureStore(path)
    for row, kept in ((0, [True, False]), (1, [True, False, True])):
        boxes, stored = store.boxes(row), store.block(range(row, row + 1)).regions["boxes"]
        assert boxes is not None
        assert np.isfinite(boxes).all(axis=1).tolist() == kept
        np.testing.assert_array_equal(boxes[kept], stored[kept])
        assert np.isnan(boxes[~np.array(kept)]).all()
