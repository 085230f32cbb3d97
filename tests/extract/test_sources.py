import json

import pytest

from data_tools.errors import InputError
from extract.sources import SourceImage, find_images


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_an_id_mapping_beside_the_folder_gives_ids_and_order(tmp_path):
    touch(tmp_path, "images/b.jpg", "images/a.jpg", "images/unlisted.jpg")
    (tmp_path / "id_mapping.json").write_text(json.dumps({"9": "b.jpg", "2": "a.jpg"}))
    assert find_images(tmp_path / "images") == [SourceImage("9", "b.jpg"), SourceImage("2", "a.jpg")]


def test_without_a_mapping_file_names_are_ids_and_folders_are_searched(tmp_path):
    touch(tmp_path, "pictures/b/two.PNG", "pictures/a/one.jpg", "pictures/notes.txt", "pictures/three.webp")
    assert find_images(tmp_path / "pictures") == [
        SourceImage("one", "a/one.jpg"),
        SourceImage("two", "b/two.PNG"),
        SourceImage("three", "three.webp"),
    ]


def test_of_two_files_with_one_id_the_first_is_read(tmp_path):
    touch(tmp_path, "pictures/a/x.jpg", "pictures/b/x.jpg", "pictures/x.png")
    found = find_images(tmp_path / "pictures")
    assert [image.problem for image in found] == [None, *["its id is taken by a/x.jpg"] * 2]


def test_a_mapping_can_lie_elsewhere(tmp_path):
    touch(tmp_path, "images/a.jpg")
    (tmp_path / "other.json").write_text('{"7": "a.jpg"}')
    assert find_images(tmp_path / "images", tmp_path / "other.json") == [SourceImage("7", "a.jpg")]


def test_stores_and_folders_are_no_pictures(tmp_path):
    touch(tmp_path, "pictures/a.jpg", "pictures/features.h5", "pictures/features.h5.parts/part-000000.h5")
    (tmp_path / "pictures" / "album.jpg").mkdir()
    assert [image.file for image in find_images(tmp_path / "pictures")] == ["a.jpg"]


def test_a_name_that_cannot_be_an_id_is_reported(tmp_path):
    touch(tmp_path, "pictures/a\nb.jpg", "pictures/c.jpg")
    broken, whole = find_images(tmp_path / "pictures")
    assert (broken.image_id, broken.problem is None) == ("'a\\nb'", False)
    assert whole == SourceImage("c", "c.jpg")


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_images(tmp_path / "absent")
    touch(tmp_path, "pictures/notes.txt")
    with pytest.raises(InputError, match="found no picture"):
        find_images(tmp_path / "pictures")
