import json

import pytest

from data_tools.captions import load_split
from data_tools.errors import InputError
from data_tools.karpathy import write_splits
from data_tools.layout import load_id_mapping


def entry(number, split, captions=5, **keys):
    sentences = [{"raw": f"Caption {n} of\nimage {number}. "} for n in range(captions)]
    return {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences, **keys}


def write(tmp_path, images, name="flickr30k"):
    (tmp_path / "dataset.json").write_text(json.dumps({"dataset": name, "images": images}))
    return tmp_path / "dataset.json"


def test_flickr30k_has_numbers_as_ids(tmp_path):
    dataset = write(tmp_path, [entry(0, "train"), entry(1, "test"), entry(2, "val"), entry(3, "train")])
    assert write_splits(dataset, tmp_path) == {"train": 2, "test": 1, "dev": 1}
    assert load_id_mapping(tmp_path / "id_mapping.json") == {str(n): f"{n}.jpg" for n in range(4)}
    train = load_split(tmp_path / "precomp", "train")
    assert train.image_ids == ["0", "3"]
    assert train.captions[7] == "Caption 2 of image 3."
    assert train.caption_images.tolist() == [0] * 5 + [1] * 5


def test_coco_joins_restval_to_train_and_tests_on_the_first_thousand(tmp_path):
    images = [entry(n, "test", cocoid=5000 + n, filepath="val2014") for n in range(1002)]
    images += [entry(2000, "restval", 7, cocoid=9, filepath="val2014")]
    images += [entry(2001, "train", cocoid=8, filepath="train2014")]
    dataset = write(tmp_path, images, "coco")
    assert write_splits(dataset, tmp_path) == {"test": 1000, "train": 2, "testall": 1002}
    assert load_id_mapping(tmp_path / "id_mapping.json")["8"] == "train2014/2001.jpg"
    assert load_split(tmp_path / "precomp", "train").image_ids == ["9", "8"]
    whole, first = (load_split(tmp_path / "precomp", name).image_ids for name in ("testall", "test"))
    assert first == whole[:1000]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"filename": "a.jpg"}], "the key 'imgid' is missing"),
        ([entry(1, "validation")], "image 1: split 'validation' is none of"),
        ([entry(1, "train", captions=4)], "image 1: 4 captions"),
        ([entry(1, "train"), entry(1, "val")], "two images have the id 1"),
        ([entry(1, "train", sentences=[{"raw": None}] * 5)], "not one of Karpathy's"),
        ([], "holds no image"),
        (None, "not one of Karpathy's"),
    ],
)
def test_another_file_is_refused(tmp_path, images, message):
    with pytest.raises(InputError, match=message):
        write_splits(write(tmp_path, images), tmp_path)
