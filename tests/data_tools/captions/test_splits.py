import numpy as np
import pytest

from data_tools.captions.splits import Split, load_split
from data_tools.errors import InputError


def test_a_line_of_ids_for_each_image_means_five_captions_each(tmp_path, write_split):
    write_split(tmp_path, ["7", "3"], [f"caption {n} ." for n in range(10)])
    split = load_split(tmp_path, "dev")
    assert split.image_ids == ["7", "3"]
    np.testing.assert_array_equal(split.caption_images, [0] * 5 + [1] * 5)
    assert split.captions[9] == "caption 9 ."


def test_a_line_of_ids_for_each_caption_is_taken_line_by_line(tmp_path, write_split):
    write_split(tmp_path, ["7", "7", "3", "3", "3"], list("abcde"))
    split = load_split(tmp_path, "dev")
    assert split.image_ids == ["7", "3"]
    assert split.caption_images.tolist() == [0, 0, 1, 1, 1]


def test_an_empty_caption_in_the_middle_keeps_its_line(tmp_path, write_split):
    write_split(tmp_path, ["7"], ["a", "", "c", "d", "e"])
    assert load_split(tmp_path, "dev").captions == ["a", "", "c", "d", "e"]


def test_empty_captions_at_the_end_keep_their_lines(tmp_path, write_split):
    write_split(tmp_path, ["7"], ["a", "b", "c", "", ""])
    assert load_split(tmp_path, "dev").captions == ["a", "b", "c", "", ""]


@pytest.mark.parametrize(
    ("ids", "captions", "message"),
    [
        (["1", "2"], ["a", "b", "c"], "3 captions for the 2 lines of dev_ids.txt"),
        (["1", "", "2"], ["a"] * 15, "line 2: expected an image id"),
        ([], ["a"], "found none"),
    ],
)
def test_counts_that_fit_no_layout_are_refused(tmp_path, ids, captions, message, write_split):
    write_split(tmp_path, ids, captions)
    with pytest.raises(InputError, match=message):
        load_split(tmp_path, "dev")


def test_an_unknown_split_names_the_known_ones(tmp_path, write_split):
    write_split(tmp_path, ["1"], ["a"])
    with pytest.raises(InputError, match="the splits of the folder are dev"):
        load_split(tmp_path, "test")


def test_the_real_split_has_its_published_size(flickr8k):
    split = load_split(flickr8k / "precomp", "train")
    assert (len(split.image_ids), len(split.captions)) == (800, 4000)


def test_the_first_images_keep_their_captions():
    split = Split("dev", ["a", "b", "c"], ["1", "2", "3", "4"], np.array([1, 0, 2, 1]))
    first = split.first(2)
    assert (first.image_ids, first.captions) == (["a", "b"], ["1", "2", "4"])
    assert first.caption_images.tolist() == [1, 0, 1]
    whole = split.first(10)
    assert (whole.image_ids, whole.captions) == (split.image_ids, split.captions)
