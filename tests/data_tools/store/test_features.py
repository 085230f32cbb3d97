import pickle

import numpy as np
import pytest

import data_tools
from data_tools.captions.splits import load_split
from data_tools.errors import InputError, UsageError
from data_tools.layout import feature_source, find_vocabulary, images_folder, load_id_mapping, precomp_folder
from data_tools.store.features import ScanFeatures, open_features


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
        (np.zeros((3, 4, 3), np.float32), "holds 3 rows; split dev has 2 images"),
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
    with pytest.raises(InputError, match="expected one array, found an archive"):
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
    with pytest.raises(InputError, match=r"holds neither features\.h5 nor dev_ims\.npy"):
        feature_source(data, "dev")
    (data / "precomp" / "dev_ims.npy").touch()
    assert feature_source(data, "dev").name == "dev_ims.npy"
    (data / "precomp" / "features.h5").touch()
    with pytest.raises(UsageError, match="name one with --features"):
        feature_source(data, "dev")
    assert feature_source(data, "dev", data / "precomp" / "features.h5").name == "features.h5"
    with pytest.raises(InputError, match="no such features file"):
        feature_source(data, "dev", tmp_path / "absent.h5")


def test_folders_of_a_dataset(tmp_path):
    data = tmp_path / "f30k"
    (data / "flickr30k-images").mkdir(parents=True)
    assert images_folder(data) == data / "flickr30k-images"
    with pytest.raises(InputError, match="holds no split"):
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
        ('{"1": 2}', "id 1: expected a file"),
        ('{"1": "../../etc/passwd"}', "id 1: expected a file relative to the images folder"),
        ('{"1": "/etc/passwd"}', "id 1: expected a file relative to the images folder"),
    ],
)
def test_a_malformed_id_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "id_mapping.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_id_mapping(tmp_path / "id_mapping.json")


@pytest.fixture
def scan_folder(tmp_path, write_split):
    """Three splits; `test` is the first image of `testall`."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(2, 4, 3)).astype(np.float32) for name in ("testall", "train")}
    arrays["test"] = arrays["testall"][:1]
    for name, ids in (("testall", ["7", "3"]), ("train", ["5", "9"]), ("test", ["7"])):
        write_split(tmp_path, ids, list("abcde") * len(ids), name)
        np.save(tmp_path / f"{name}_ims.npy", arrays[name])
    return tmp_path, arrays


def test_a_folder_of_arrays_is_one_collection(scan_folder):
    folder, arrays = scan_folder
    features = data_tools.open_features(str(folder))
    assert features.image_ids == ["5", "9", "7", "3"]
    assert (len(features), features.dim, features.counts.tolist()) == (4, 3, [4] * 4)
    expected = np.concatenate([arrays["testall"][1], arrays["train"][0], arrays["testall"][1]])
    rows = features.rows(["3", "5", "3"])
    np.testing.assert_array_equal(features.gather(rows), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(features)).read(rows[0]), arrays["testall"][1])
    single = data_tools.open_features(folder / "testall_ims.npy")
    np.testing.assert_array_equal(single.gather(np.array([1, 0])), arrays["testall"][::-1].reshape(8, 3))


@pytest.mark.parametrize(("lines", "rows"), [("7 7 3", 3), ("7 7 3", 2), ("7 3", 10)])
def test_ids_beside_an_array_may_repeat(tmp_path, lines, rows):
    values = {"7": 1.0, "3": 2.0}
    ids = lines.split()
    (tmp_path / "dev_ids.txt").write_text("\n".join(ids))
    order = {3: ids, 2: ["7", "3"], 10: ["7"] * 5 + ["3"] * 5}[rows]
    np.save(tmp_path / "dev_ims.npy", np.array([np.full((1, 2), values[i], np.float32) for i in order]))
    features = data_tools.open_features(tmp_path / "dev_ims.npy")
    assert features.image_ids == ["7", "3"]
    assert [features.read(row)[0, 0] for row in range(2)] == [1.0, 2.0]


def test_a_folder_that_is_ambiguous_or_empty_is_refused(scan_folder):
    folder, _ = scan_folder
    np.save(folder / "extra_ims.npy", np.zeros((1, 2, 5), np.float32))
    (folder / "extra_ids.txt").write_text("1\n2\n3\n")
    with pytest.raises(InputError, match=r"holds 1 rows; extra_ids\.txt has 3 images"):
        data_tools.open_features(folder)
    (folder / "extra_ids.txt").write_text("1\n")
    with pytest.raises(InputError, match="5 numbers per region"):
        data_tools.open_features(folder)
    (folder / "features.h5").touch()
    with pytest.raises(UsageError, match="give one of these files"):
        data_tools.open_features(folder)
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="holds no array"):
        data_tools.open_features(folder / "empty")


def test_the_real_mapping_of_flickr30k_is_read(flickr8k):
    file = flickr8k.parent / "f30k" / "id_mapping.json"
    if not file.is_file():
        pytest.skip("needs the real id_mapping.json of Flickr30K, which the project does not carry")
    mapping = load_id_mapping(file)
    assert len(mapping) == 31_014
    assert list(mapping) == [str(number) for number in range(31_014)]


def test_the_real_arrays_are_one_collection(flickr8k):
    features = data_tools.open_features(flickr8k / "precomp")
    assert (len(features), features.dim, features.dtype) == (1000, 1280, np.dtype(np.float16))
    rows = features.rows(["16", "0", "1"])  # of dev, train and test
    whole = features.gather(rows)
    np.testing.assert_array_equal(whole[:36], np.load(flickr8k / "precomp" / "dev_ims.npy", mmap_mode="r")[0])
    np.testing.assert_array_equal(whole[72:], np.load(flickr8k / "precomp" / "test_ims.npy", mmap_mode="r")[0])
