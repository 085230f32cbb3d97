import pickle

import numpy as np
import pytest

from data_tools.captions import load_split
from data_tools.errors import InputError, UsageError
from data_tools.features import ScanFeatures, open_features
from data_tools.layout import feature_source, find_vocabulary, images_folder, load_id_mapping, precomp_folder


@pytest.fixture
def split(tmp_path, write_split):
    write_split(tmp_path, ["7", "3"], list("abcdefghij"))
    return load_split(tmp_path, "dev")


@pytest.mark.parametrize("rows_per_image", [1, 5])
def test_scans_array_has_a_row_for_each_image_or_each_caption(tmp_path, split, rows_per_image):
    images = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    np.save(tmp_path / "dev_ims.npy", np.repeat(images, rows_per_image, axis=0))
    features = open_features(tmp_path / "dev_ims.npy", split)
    assert (features.dim, features.counts.tolist()) == (3, [4, 4])
    row = features.rows(["3"])[0]
    np.testing.assert_array_equal(features.read(row), images[1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(features)).read(row), images[1])
    assert features.boxes(row) is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 3), np.float32), "holds 3 images; split dev has 2"),
        (np.zeros((2, 4), np.float32), "expected floats of shape"),
        (np.zeros((2, 4, 3), np.int32), "expected floats of shape"),
        (np.array([{"a": 1}], dtype=object), "not a NumPy array file"),
    ],
)
def test_a_wrong_array_is_refused(tmp_path, split, array, message):
    np.save(tmp_path / "dev_ims.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        ScanFeatures(tmp_path / "dev_ims.npy", split)


def test_files_that_only_look_like_arrays_are_refused(tmp_path, split):
    (tmp_path / "dev_ims.npy").touch()
    with pytest.raises(InputError, match="not a NumPy array file"):
        ScanFeatures(tmp_path / "dev_ims.npy", split)
    with (tmp_path / "dev_ims.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(InputError, match="an archive of arrays"):
        ScanFeatures(tmp_path / "dev_ims.npy", split)


def test_big_endian_arrays_come_in_the_machines_order(tmp_path, split):
    values = np.arange(24.0).reshape(2, 4, 3)
    np.save(tmp_path / "dev_ims.npy", values.astype(">f4"))
    read = ScanFeatures(tmp_path / "dev_ims.npy", split).read(1)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values[1])


def test_a_missing_image_is_named(tmp_path, split):
    np.save(tmp_path / "dev_ims.npy", np.zeros((2, 4, 3), np.float32))
    with pytest.raises(InputError, match="no features of image 5"):
        ScanFeatures(tmp_path / "dev_ims.npy", split).rows(["5"])


def test_the_source_is_found_or_must_be_named(tmp_path, split, write_split):
    data = tmp_path / "coco"
    (data / "precomp").mkdir(parents=True)
    write_split(data / "precomp", ["1"], list("abcde"))
    with pytest.raises(InputError, match=r"found neither features\.h5 nor dev_ims\.npy"):
        feature_source(data, "dev")
    (data / "precomp" / "dev_ims.npy").touch()
    assert feature_source(data, "dev").name == "dev_ims.npy"
    (data / "precomp" / "features.h5").touch()
    with pytest.raises(UsageError, match="--features must say which"):
        feature_source(data, "dev")
    assert feature_source(data, "dev", data / "precomp" / "features.h5").name == "features.h5"
    with pytest.raises(InputError, match="no such features file"):
        feature_source(data, "dev", tmp_path / "absent.h5")


def test_folders_of_a_data_set(tmp_path):
    data = tmp_path / "f30k"
    (data / "flickr30k-images").mkdir(parents=True)
    assert images_folder(data) == data / "flickr30k-images"
    with pytest.raises(InputError, match="found no split"):
        precomp_folder(data)
    (data / "dev_ids.txt").touch()
    assert precomp_folder(data) == data
    (tmp_path / "vocab").mkdir()
    published = tmp_path / "vocab" / "f30k_precomp_vocab.json"
    assert find_vocabulary(data) is None
    published.touch()
    assert find_vocabulary(data) == published
    (data / "vocab.json").touch()
    assert find_vocabulary(data) == data / "vocab.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ("{}", "at least one entry"),
        ('{" 1": "a.jpg"}', "id ' 1': expected printable characters"),
        ('{"1\\n": "a.jpg"}', "expected printable characters"),
        ('{"1": 2}', "id 1: expected a file name"),
        ('{"1": "../../etc/passwd"}', "id 1: expected a file name relative to the images folder"),
        ('{"1": "/etc/passwd"}', "id 1: expected a file name relative to the images folder"),
    ],
)
def test_a_malformed_id_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "id_mapping.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_id_mapping(tmp_path / "id_mapping.json")
