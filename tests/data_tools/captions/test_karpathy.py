import json

import pytest

from data_tools.captions.collection import SplitSummary, check_files_exist, write_split_files
from data_tools.captions.karpathy import read_karpathy
from data_tools.captions.splits import load_split
from data_tools.errors import InputError
from data_tools.layout import load_id_mapping


def entry(number, split, captions=5, **keys):
    sentences = [{"raw": f"Caption {n} of\nimage {number}. ", "sentid": 10 * number + n} for n in range(captions)]
    return {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences, **keys}


def write(tmp_path, images, name="flickr30k", max_captions=5):
    source = tmp_path / "dataset.json"
    found = read_karpathy(json.loads(json.dumps({"dataset": name, "images": images})), source)
    return write_split_files(found, tmp_path, source, max_captions)


def test_flickr30k_has_numbers_as_ids(tmp_path):
    written = write(tmp_path, [entry(0, "train"), entry(1, "test"), entry(2, "val"), entry(3, "train")])
    assert {name: summary.images for name, summary in written.items()} == {"train": 2, "test": 1, "dev": 1}
    assert load_id_mapping(tmp_path / "id_mapping.json") == {str(n): f"{n}.jpg" for n in range(4)}
    train = load_split(tmp_path / "precomp", "train")
    assert train.image_ids == ["0", "3"]
    assert train.captions[7] == "Caption 2 of image 3."
    assert train.caption_images.tolist() == [0] * 5 + [1] * 5
    assert (tmp_path / "precomp" / "dev_capids.txt").read_text() == "20\n21\n22\n23\n24\n"


def test_coco_joins_restval_to_train_and_tests_on_the_first_thousand(tmp_path):
    images = [entry(n, "test", cocoid=5000 + n, filepath="val2014") for n in range(1002)]
    images += [entry(2000, "restval", 7, cocoid=9, filepath="val2014")]
    images += [entry(2001, "train", cocoid=8, filepath="train2014")]
    written = write(tmp_path, images, "coco")
    assert {name: summary.images for name, summary in written.items()} == {
        "testall": 1002,
        "train": 2,
        "test": 1000,
    }
    assert load_id_mapping(tmp_path / "id_mapping.json")["8"] == "train2014/2001.jpg"
    assert load_split(tmp_path / "precomp", "train").image_ids == ["9", "8"]
    whole, first = (load_split(tmp_path / "precomp", name).image_ids for name in ("testall", "test"))
    assert first == whole[:1000]


def test_more_captions_are_cut_fewer_kept_none_left_out_and_all_counted(tmp_path):
    images = [entry(0, "train", 7), entry(1, "train", 2), entry(2, "train", 0), entry(3, "train")]
    assert write(tmp_path, images)["train"] == SplitSummary(3, 12, cut=1, short=1, without=1, asked=5)
    split = load_split(tmp_path / "precomp", "train")
    assert split.caption_images.tolist() == [0] * 5 + [1] * 2 + [2] * 5
    assert split.captions[4:6] == ["Caption 4 of image 0.", "Caption 0 of image 1."]
    assert (tmp_path / "precomp" / "train_capids.txt").read_text().split() == [
        *("0", "1", "2", "3", "4", "10", "11", "30", "31", "32", "33", "34")
    ]
    assert "2" in load_id_mapping(tmp_path / "id_mapping.json")
    assert write(tmp_path, images, max_captions=0)["train"] == SplitSummary(
        3, 14, cut=0, short=1, without=1, asked=5
    )


def test_files_that_are_absent_are_named(tmp_path):
    images = read_karpathy({"images": [entry(n, "train") for n in range(3)]}, tmp_path)
    (tmp_path / "1.jpg").touch()
    with pytest.raises(InputError, match=r"0\.jpg: no such file \(image 0\) and those of 1 others"):
        check_files_exist(images, tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"filename": "a.jpg"}], "the key imgid is missing"),
        ([entry(1, "validation")], "image 1: split 'validation' is not one of"),
        ([entry(1, "train"), entry(1, "val")], "two images have the id 1"),
        ([entry(1, "train", sentences=[{"raw": None}] * 5)], "not one of Karpathy's"),
        ([entry(1, "train", filename="../../etc/passwd")], "image 1: expected a file in the images folder"),
        ([entry(1, "train", filepath="/etc")], "image 1: expected a file in the images folder"),
        ([entry(1, "train", filename=7)], "image 1: filename 7: expected text"),
        ([entry(1, "train", imgid="a\n")], "expected printable characters"),
        ([entry(1, "train"), entry(2, "train", imgid=float("nan"))], r"images\[1\]: imgid nan: expected text"),
        ([entry(1, "train", imgid=True)], r"images\[0\]: imgid True: expected text or a whole number"),
        ([entry(1, "train", cocoid=[1])], "cocoid a list: expected text or a whole number"),
        ([entry(1, ["train"])], "split a list: expected text"),
        ([entry(1, "train", filepath=7)], "filepath 7: expected text"),
        ([entry(1, "train", sentences={"raw": "a"})], "image 1: sentences: expected a list, found an object"),
        ([entry(1, "train", sentences=["a"])], "expected an object, found 'a'"),
        ([entry(1, "train", sentences=[{"raw": "a", "sentid": None}])], "sentid None: expected text"),
        ([entry(1, "train", sentences=[{"raw": "a", "sentid": 1}] * 2)], "image 1: caption id '1': image 1 has"),
        ([entry(1, "train", sentences=[{"raw": "a\ud800"}])], "image 1: caption 1: expected text"),
        ([entry(1, "train", sentences=[{"raw": "a\0"}])], "image 1: caption 1: expected text"),
        ([entry(1, "train", filename="\ud800.jpg")], "image 1: expected a file in the images folder"),
        ([entry(1, 7, imgid=10**4000)], "split 7: expected text"),
        ({"1": entry(1, "train")}, "expected an object with a list of images"),
        ([], "holds no image"),
        (None, "not one of Karpathy's"),
        ([[]], "not one of Karpathy's"),
    ],
)
def test_another_file_is_refused(tmp_path, images, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path, images)
    assert not (tmp_path / "id_mapping.json").exists()


def test_a_list_where_a_mapping_belongs_is_refused(tmp_path):
    with pytest.raises(InputError, match="not one of Karpathy's"):
        read_karpathy([1, 2], tmp_path / "dataset.json")
