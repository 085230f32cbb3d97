import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.captions.tables import assign_random_splits, read_caption_table
from data_tools.errors import InputError, UsageError


def read(path, content, dev=0, test=0):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_caption_table(path, dev, test, seed=1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'image,caption\nx/1.jpg,"a cat, ""big"""\n2.jpg,b\nx/1.jpg,c\n'),
        ("a.csv", '\ufeffcaption,image\r\n"a cat, ""big""",x/1.jpg\r\nb,2.jpg\r\nc,./x/1.jpg\r\n'),
        ("a.txt", 'Image, Comment\nx/1.jpg,"a\ncat,  ""big"""\n\n2.jpg, b\nx//1.jpg,c'),
        ("a.tsv", 'file\tcaption\nx/1.jpg\ta cat, "big"\n2.jpg\tb\nx/1.jpg\tc\n'),
        (
            "a.jsonl",
            '{"image": "x/1.jpg", "caption": "a cat, \\"big\\""}\n'
            '{"image": "2.jpg", "caption": "b"}\r\n\n{"caption": "c", "image": "x/1.jpg"}',
        ),
    ],
)
def test_tables_of_all_kinds_say_the_same(tmp_path, name, content):
    one, two = read(tmp_path / name, content)
    assert (one.image_id, one.file, one.split) == ("1", "x/1.jpg", "train")
    assert one.captions == ('a cat, "big"', "c")
    assert one.caption_ids == ("1", "3")
    assert (two.image_id, two.captions, two.caption_ids) == ("2", ("b",), ("2",))


def test_splits_and_caption_ids_may_be_given(tmp_path):
    table = "image,caption,split,caption_id\n1.jpg,a,val,77\n2.jpg,b,test,78\n1.jpg,c,val,80\n"
    one, two = read(tmp_path / "a.csv", table, dev=0.5, test=0.4)
    assert (one.split, one.caption_ids, two.split) == ("dev", ("77", "80"), "test")


def test_ids_are_as_short_as_can_be_told_apart(tmp_path):
    lines = "".join(f"{file},a\n" for file in ("a/1.jpg", "b/1.jpg"))
    assert [image.image_id for image in read(tmp_path / "a.csv", f"image,caption\n{lines}")] == ["a/1", "b/1"]
    lines += "a/1.png,a\n"
    found = read(tmp_path / "a.csv", f"image,caption\n{lines}")
    assert [image.image_id for image in found] == ["a/1.jpg", "b/1.jpg", "a/1.png"]


@given(images=st.integers(3, 60), seed=st.integers(0, 9), dev=st.integers(0, 1) | st.floats(0, 0.4))
def test_drawn_splits_have_their_sizes_and_repeat(images, seed, dev):
    splits = assign_random_splits(images, dev, 1, seed)
    counts = Counter(splits)
    assert counts["test"] == 1
    assert counts["dev"] == (dev if dev >= 1 else round(dev * images))
    assert splits == assign_random_splits(images, dev, 1, seed)


def test_another_seed_draws_another_split():
    assert assign_random_splits(100, 0.2, 0.2, 1) != assign_random_splits(100, 0.2, 0.2, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", "image,caption\n", "found none"),
        ("a.jsonl", "", "found none"),
        ("a.csv", "1.jpg,a cat\n", "line 1: expected a column image; the columns are 1.jpg, a cat"),
        ("a.csv", "image,caption\n1.jpg,a,b\n", "line 2: 3 fields; the header has 2"),
        ("a.csv", 'image,caption\n1.jpg,"a\n', "line 2: unexpected end of data"),
        ("a.csv", "image,caption\n1.jpg,a\n2.jpg, \n", r"line 3: the caption of 2\.jpg is empty"),
        ("a.csv", "image,caption\n../1.jpg,a\n", "line 2: expected a file in the images folder"),
        ("a.csv", "image,caption\n/1.jpg,a\n", "line 2: expected a file in the images folder"),
        ("a.csv", "image,caption\n,a\n", "line 2: expected a file in the images folder"),
        (
            "a.csv",
            "image,caption,split\n1.jpg,a,dev\n1.jpg,a,test\n",
            "line 3: 1.jpg is in test, but in dev on line 2",
        ),
        ("a.csv", "image,caption,split\n1.jpg,a,held-out\n", "line 2: split 'held-out' is not one of"),
        ("a.csv", b"image,caption\n1.jpg,\xff\n", "not UTF-8"),
        ("a.csv", "image,caption\n1.jpg," + "x" * 200_000, "line 2: field larger than field limit"),
        ("a.jsonl", '{"image": "1.jpg", "caption": "a"}\n["1.jpg", "b"]\n', "line 2: expected an object"),
        ("a.jsonl", '{"image": "1.jpg"', "line 1: not JSON"),
        ("a.jsonl", '{"image": "1.jpg"}', "line 1: expected a column caption"),
        ("a.jsonl", '{"image": "1.jpg", "caption": null}', "line 1: caption: expected text, found 'None'"),
    ],
)
def test_a_malformed_table_is_one_line_that_names_the_row(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name, content)
    assert "\n" not in str(caught.value)


def test_wrong_use_is_told(tmp_path):
    with pytest.raises(UsageError, match="leave none of the 1 images for training"):
        read(tmp_path / "a.csv", "image,caption\n1.jpg,a\n", dev=1)
    with pytest.raises(UsageError, match="expected a file that ends in"):
        read(tmp_path / "a.xlsx", json.dumps([]))
