"""An index is made, grows, shrinks and is compacted, and a killed writer leaves it whole."""

import json
import shutil

import numpy as np
import pytest
import torch

from chan.retrieval import indexing
from chan.retrieval.index import ImageIndex
from chan.retrieval.indexing import (
    add_to_index,
    compact_index,
    create_index,
    open_collection,
    remove_from_index,
)
from chan.retrieval.retriever import open_index
from data_tools.errors import InputError, UsageError
from data_tools.store.features import open_features

IDS = [str(number) for number in range(23)]


@pytest.fixture
def made(run, dataset, tmp_path):
    """An index of the first ten images of the data set."""
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{number}\n" for number in IDS[:10]))
    create_index(tmp_path / "shapes.index", run, open_collection(dataset, ids=ids), "cpu")
    return tmp_path / "shapes.index"


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_index_holds_the_embeddings_boxes_sizes_and_files_of_a_store(made, dataset, retriever):
    index = ImageIndex(made)
    store = open_features(dataset / "precomp" / "features.h5")
    assert index.image_ids == IDS[:10]
    for position in range(10):
        row = store.rows([IDS[position]])[0]
        expected = retriever.encode_images([store.read(row)]).rows.numpy()
        assert np.array_equal(retriever.encode_images(store.read(row)).rows.numpy(), expected)  # without the list
        np.testing.assert_allclose(index.regions([position]).rows.float().numpy(), expected, atol=1e-3)
        np.testing.assert_array_equal(index.column(position, "boxes"), store.boxes(row))
        assert index.size(position) == (80, 120)
        assert index.file(position).samefile(dataset / "images" / f"{position}.png")
    assert files_in(made) == [".lock", "manifest.json", "model", "segment-0.h5", "segment-0.json"]


def test_adding_takes_the_images_that_are_new(made, dataset):
    done = add_to_index(made, open_collection(dataset), "cpu")
    assert (done.added, done.images) == (13, 23)
    index = ImageIndex(made)
    assert index.image_ids == IDS
    assert [segment.images for segment in index.manifest.segments] == [10, 13]
    again = add_to_index(made, open_collection(dataset), "cpu")
    assert (again.added, again.images) == (0, 23)


def test_a_removed_image_may_come_back(made, dataset):
    assert remove_from_index(made, ["4", "2"]).images == 8
    with pytest.raises(InputError, match="holds no image 4"):
        remove_from_index(made, ["1", "4"])
    assert ImageIndex(made).image_ids == ["0", "1", "3", "5", "6", "7", "8", "9"]
    add_to_index(made, open_collection(dataset), "cpu")
    assert sorted(ImageIndex(made).image_ids, key=int) == IDS


def test_compaction_keeps_the_images_and_drops_the_removed(made, dataset):
    add_to_index(made, open_collection(dataset), "cpu")
    remove_from_index(made, ["3", "12"])
    before = ImageIndex(made)
    found = [hit.image_id for hit in open_index(made, "cpu").search("a red circle", k=21).hits]
    done = compact_index(made)
    assert (done.removed, done.images) == (2, 21)
    after = ImageIndex(made)
    assert after.image_ids == before.image_ids
    everything = range(21)
    torch.testing.assert_close(after.regions(everything).rows, before.regions(everything).rows, rtol=0, atol=0)
    for position in everything:
        np.testing.assert_array_equal(after.column(position, "boxes"), before.column(position, "boxes"))
        assert after.file(position) == before.file(position)
    assert [hit.image_id for hit in open_index(made, "cpu").search("a red circle", k=21).hits] == found
    assert files_in(made) == [".lock", "manifest.json", "model", "segment-2.h5", "segment-2.json"]


def test_arrays_without_boxes_are_indexed(run, dataset, tmp_path):
    data = tmp_path / "scan"
    data.mkdir()
    np.save(data / "dev_ims.npy", np.ones((2, 5, 24), np.float32))
    (data / "dev_ids.txt").write_text("7\n3\n")
    create_index(tmp_path / "i", run, open_collection(data), "cpu")
    index = ImageIndex(tmp_path / "i")
    assert index.image_ids == ["7", "3"]
    assert index.column(0, "boxes") is None
    assert index.file(0) is None


def test_other_features_and_other_folders_are_refused(made, run, dataset, tmp_path):
    with pytest.raises(UsageError, match="--add"):
        create_index(made, run, open_collection(dataset), "cpu")
    data = tmp_path / "scan"
    data.mkdir()
    np.save(data / "dev_ims.npy", np.ones((1, 5, 20), np.float32))
    (data / "dev_ids.txt").write_text("x\n")
    with pytest.raises(InputError, match="24"):
        add_to_index(made, open_collection(data), "cpu")
    with pytest.raises(InputError, match="no index"):
        add_to_index(tmp_path / "none", open_collection(dataset), "cpu")
    assert ImageIndex(made).image_ids == IDS[:10]


def test_a_second_writer_is_told_that_one_is_at_work(made):
    with indexing._writing(made), pytest.raises(InputError, match="another process"):
        remove_from_index(made, ["1"])


def test_what_a_killed_writer_left_is_removed_by_the_next(made, dataset):
    shutil.copy(made / "segment-0.h5", made / "segment-1.h5")
    (made / ".segment-1.h5.host.1.tmp").write_bytes(b"half")
    remove_from_index(made, ["1"])
    assert files_in(made) == [".lock", "manifest.json", "model", "segment-0.h5", "segment-0.json"]


@pytest.mark.parametrize(
    "damage",
    [
        {"format": "other"},
        {"format_version": 2},
        {"segments": None},
        {"segments": [{"name": "../../segment-0", "images": 10, "regions": 26, "removed": []}]},
        {"segments": [{"name": "segment-0", "images": 11, "regions": 26, "removed": []}]},
        {"segments": [{"name": "segment-0", "images": -1, "regions": 26, "removed": []}]},
        {"segments": [{"name": "segment-0", "images": 10, "regions": 26, "removed": [3]}]},
        {"written": "1"},
        {"dim": 17},
        {"images": 5},
        {"features": []},
        {"weights_sha256": None},
    ],
)
def test_a_damaged_manifest_is_one_line(made, damage):
    path = made / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(InputError):
        ImageIndex(made)


@pytest.mark.parametrize("files", [["a"], ["/etc/passwd"] * 10, ["../x.png"] * 10, [5] * 10, {}])
def test_a_list_of_files_that_leads_out_of_the_folder_is_refused(made, files):
    (made / "segment-0.json").write_text(json.dumps(files))
    with pytest.raises(InputError, match=r"segment-0\.json"):
        ImageIndex(made)
