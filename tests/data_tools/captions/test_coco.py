import json

import pytest

from data_tools.captions.collection import write_split_files
from data_tools.captions.sources import SplitOptions, read_captioned_images
from data_tools.captions.splits import load_split
from data_tools.errors import InputError, UsageError
from data_tools.layout import load_id_mapping


def write(path, ids, captions=5, **changes):
    """A caption file of COCO; annotation ids run backwards, to see that they order the captions."""
    images = [{"id": n, "file_name": f"COCO_{n:012d}.jpg"} for n in ids]
    annotations = [
        {"image_id": n, "id": 100 * n - k, "caption": f"caption {k} of {n}\n"}
        for n in ids
        for k in range(captions)
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations, **changes}))
    return path


def lists(tmp_path, **ids):
    for name, lines in ids.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return {name: tmp_path / f"{name}.txt" for name in ids}


def test_lists_of_ids_cut_the_files_and_the_rest_is_train(tmp_path):
    sources = [
        write(tmp_path / "captions_train2014.json", [1, 2]),
        write(tmp_path / "captions_val2014.json", [3, 4, 5], 6),
    ]
    options = SplitOptions(lists(tmp_path, dev=[4], testall=[5, 5, 5, 5, 5]))
    written = write_split_files(read_captioned_images(sources, options), tmp_path, sources[0])
    assert {name: (s.images, s.cut) for name, s in written.items()} == {
        "dev": (1, 1), "testall": (1, 1), "train": (3, 1), "test": (1, 1),
    }  # fmt: skip
    assert load_id_mapping(tmp_path / "id_mapping.json")["5"] == "val2014/COCO_000000000005.jpg"
    train = load_split(tmp_path / "precomp", "train")
    assert train.image_ids == ["1", "2", "3"]
    assert train.captions[:2] == ["caption 4 of 1", "caption 3 of 1"]
    capids = (tmp_path / "precomp" / "train_capids.txt").read_text().split()
    assert capids[:5] == ["96", "97", "98", "99", "100"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"dev": [1, 9]}, r"dev\.txt, line 2: the caption files hold no image 9"),
        ({"dev": [1], "test": [2, 1]}, r"test\.txt: image 1 is in .*dev\.txt too"),
        ({"dev": []}, "expected one image id per line, found none"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, ids, message):
    source = write(tmp_path / "captions_val2014.json", [1, 2])
    with pytest.raises(InputError, match=message):
        read_captioned_images([source], SplitOptions(lists(tmp_path, **ids)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 1}]}, "the key file_name is missing"),
        ({"images": 7}, "not one of COCO's caption files"),
        ({"images": {"id": 1}}, "expected an object with a list of images"),
        ({"annotations": None}, "expected an object with a list of annotations"),
        ({"images": [7]}, r"images\[0\]: expected an object, found 7"),
        ({"images": [{"id": float("nan"), "file_name": "a"}]}, r"images\[0\]: id nan: expected text or a whole"),
        ({"images": [{"id": 1, "file_name": ["a"]}]}, "image 1: file_name a list: expected text"),
        ({"images": [{"id": n, "file_name": "a"} for n in (1, "1")]}, r"images\[1\]: image 1 is listed twice"),
        ({"annotations": [{"image_id": 1, "id": 3, "caption": "a"}] * 2}, r"\[1\]: annotation 3 is listed twice"),
        ({"annotations": [{"image_id": 1, "id": 1.5, "caption": "a"}]}, "id 1.5: expected a whole number"),
        ({"annotations": [{"image_id": 1, "id": True, "caption": "a"}]}, "id True: expected a whole number"),
        ({"annotations": [{"image_id": [1], "id": 1, "caption": "a"}]}, "image_id a list: expected text"),
        ({"annotations": [{"image_id": 1, "id": 1, "caption": {}}]}, "caption an object: expected text"),
        ({"annotations": [[]]}, r"annotations\[0\]: expected an object, found a list"),
        ({"annotations": [{"image_id": 5, "id": 1, "caption": "a"}]}, "annotation 1: image 5 is not in the list"),
        ({"annotations": [{"image_id": 1, "id": 1, "caption": None}]}, "not one of COCO's"),
        ({"annotations": [{"image_id": 1, "id": "x", "caption": "a"}]}, "not one of COCO's"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, changes, message):
    source = write(tmp_path / "captions_val2014.json", [1, 2], **changes)
    with pytest.raises(InputError, match=message):
        read_captioned_images([source], SplitOptions(lists(tmp_path, dev=[1])))


def test_wrong_use_is_told(tmp_path):
    source = write(tmp_path / "captions_val2014.json", [1, 2])
    with pytest.raises(UsageError, match="--ids dev=dev_ids"):
        read_captioned_images([source], SplitOptions())
    (tmp_path / "d.json").write_text('{"images": []}')
    with pytest.raises(UsageError, match="only COCO's caption files"):
        read_captioned_images([tmp_path / "d.json", source], SplitOptions())
    with pytest.raises(UsageError, match="--ids: only for COCO's"):
        read_captioned_images([tmp_path / "d.json"], SplitOptions(lists(tmp_path, dev=[1])))
    (tmp_path / "d.json").write_text("[1]")
    with pytest.raises(InputError, match="not one of Karpathy's"):
        read_captioned_images([tmp_path / "d.json"], SplitOptions())
