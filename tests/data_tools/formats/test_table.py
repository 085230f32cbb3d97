import json

import numpy as np
import pytest

from data_tools.errors import InputError
from data_tools.formats import table
from data_tools.formats.conversion import Choices, convert
from data_tools.store.reading import FeatureStore
from data_tools.store.schema import Block, StoreSchema
from data_tools.store.writing import write_store

datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")
COUNTS, DIM = np.array([3, 1, 4, 2]), 6
MADE = {"config": "small", "class_names": "cat\ndog\nstop sign", "attribute_names": "old\nold"}


@pytest.fixture
def store(tmp_path):
    """Four images; the names of its attributes are not usable as labels."""
    rng = np.random.default_rng(0)
    total = COUNTS.sum()
    columns = {
        "features": rng.normal(size=(total, DIM)).astype(np.float32),
        "boxes": rng.uniform(0, 40, (total, 4)).astype(np.float32),
        "class_ids": rng.integers(0, 3, total).astype(np.int32),
        "class_scores": rng.random(total).astype(np.float32),
        "attribute_ids": rng.integers(0, 2, total).astype(np.int32),
    }
    sizes = rng.integers(40, 90, (len(COUNTS), 2)).astype(np.int32)
    block = Block(["a", "7", "ü", "d"], COUNTS, columns, sizes)
    path = tmp_path / "features.h5"
    write_store(path, [block], StoreSchema.of([block]), MADE)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_table_is_streamed_with_everything_that_the_store_has(store, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(table, "GROUP_BYTES", 100)  # so that there are several groups of rows
    out = tmp_path / "regions.parquet"
    done = convert(store, out, choices=Choices(dtype=dtype))
    assert (done.images, done.regions, done.dtype, done.notes) == (4, 10, dtype, [])
    loaded = datasets.load_dataset("parquet", data_files=str(out), split="train", streaming=True)
    with FeatureStore(store) as opened:
        rows = list(loaded)
        assert [row["id"] for row in rows] == opened.image_ids
        for number, row in enumerate(rows):
            block = opened.block(range(number, number + 1))
            assert [row["height"], row["width"]] == block.image_sizes[0].tolist()
            expected = block.regions["features"].astype(dtype)
            np.testing.assert_array_equal(np.array(row["features"], dtype), expected)
            for name in ("boxes", "class_ids", "class_scores", "attribute_ids"):
                np.testing.assert_array_equal(np.array(row[name], block.regions[name].dtype), block.regions[name])
    labels = loaded.features["class_ids"].feature
    assert labels.int2str(2) == "stop sign"
    assert not hasattr(loaded.features["attribute_ids"].feature, "names")


def test_groups_of_rows_and_provenance(store, tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(table, "GROUP_BYTES", 100)
    convert(store, tmp_path / "regions.parquet")
    file = pq.ParquetFile(tmp_path / "regions.parquet")
    assert file.num_row_groups == 4
    assert json.loads(file.schema_arrow.metadata[table.PROVENANCE]) == FeatureStore(store).provenance


def test_an_id_without_a_name_leaves_no_file(store, tmp_path):
    with FeatureStore(store) as opened:
        block = opened.block(range(4))
    block.regions["class_ids"][3] = 3
    other = tmp_path / "other.h5"
    write_store(other, [block], StoreSchema.of([block]), MADE)
    with pytest.raises(InputError, match=r"other\.h5: class_ids: 3 is beyond the 3 names"):
        convert(other, tmp_path / "regions.parquet")
    assert not list(tmp_path.glob("*.parquet*"))
