"""Feature stores as tables of Hugging Face's `datasets`, read again by that library."""

import sys

import numpy as np
import pytest

from data_tools.errors import InputError
from data_tools.formats.conversion import Choices, convert
from data_tools.formats.table import GROUP
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

NAMES = {"class_names": "dog\ncat\nred house", "attribute_names": "red\nbig"}


def random_block(counts, dim=5, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    total = sum(counts)
    regions = {
        "features": rng.normal(size=(total, dim)).astype(dtype),
        "boxes": rng.uniform(0, 90, (total, 4)).astype(np.float32),
        "class_ids": rng.integers(0, 3, total, dtype=np.int32),
        "class_scores": rng.random(total, dtype=np.float32),
        "attribute_ids": rng.integers(0, 2, total, dtype=np.int32),
        "attribute_scores": rng.random(total, dtype=np.float32),
    }
    sizes = rng.integers(100, 600, (len(counts), 2), dtype=np.int32)
    return Block([f"é{row}" for row in range(len(counts))], np.array(counts), regions, sizes)


def store_of(path, block, provenance):
    write_store(path, [block], StoreSchema.of([block]), provenance)
    return path


def load(path, folder, **options):
    datasets = pytest.importorskip("datasets", reason="needs the extra datasets")
    return datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(folder), **options)


@pytest.mark.parametrize(("names", "dtype"), [(NAMES, "float32"), ({}, "float16")])
def test_the_library_reads_what_the_store_holds(tmp_path, names, dtype):
    counts = [3, 1, 0, 7, *[2] * (2 * GROUP)]
    block = random_block(counts, dtype=dtype)
    store = store_of(tmp_path / "f.h5", block, {"selection": "all", **names})
    result = convert(store, tmp_path / "f.parquet")
    assert (result.images, result.regions, result.dtype, result.notes) == (len(counts), sum(counts), dtype, [])
    table = load(tmp_path / "f.parquet", tmp_path / "cache").with_format("numpy")
    assert [*map(str, table["image_id"][:])] == block.image_ids
    assert [[row["height"], row["width"]] for row in table] == block.image_sizes.tolist()
    for name, values in block.regions.items():
        pieces = np.split(values, np.cumsum(counts)[:-1])
        for piece, row in zip(pieces, table, strict=True):
            found = np.asarray(row[name]).reshape(piece.shape)
            np.testing.assert_array_equal(found.astype(piece.dtype), piece, err_msg=name)
    assert table.features["features"].feature.feature.dtype == dtype
    if names:
        assert table.features["class_ids"].feature.names == ["dog", "cat", "red house"]
        assert table.features["attribute_ids"].feature.names == ["red", "big"]


def test_the_library_streams_it(tmp_path):
    block = random_block([2, 3])
    convert(store_of(tmp_path / "f.h5", block, {"selection": "all"}), tmp_path / "f.parquet")
    rows = [*load(tmp_path / "f.parquet", tmp_path / "cache", streaming=True)]
    assert [len(row["features"]) for row in rows] == [2, 3]


def test_how_the_features_were_made_is_kept(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra datasets")
    store = store_of(tmp_path / "f.h5", random_block([2]), {"selection": "caffe min=2", **NAMES})
    convert(store, tmp_path / "f.parquet", choices=Choices(dtype="float16"))
    assert b"caffe min=2" in parquet.read_schema(tmp_path / "f.parquet").metadata[b"provenance"]


def test_a_few_images_are_written_at_a_time(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra datasets")
    convert(
        store_of(tmp_path / "f.h5", random_block([1] * (2 * GROUP + 1)), {"selection": "all"}),
        tmp_path / "f.parquet",
    )
    groups = parquet.read_metadata(tmp_path / "f.parquet")
    assert [groups.row_group(group).num_rows for group in range(groups.num_row_groups)] == [GROUP, GROUP, 1]


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    store = store_of(tmp_path / "f.h5", random_block([2]), {"selection": "all"})
    with pytest.raises(InputError, match=r"pixels-to-recall\[datasets\]"):
        convert(store, tmp_path / "f.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]
