import json

import pytest

from data_tools.errors import InputError
from extract.run.sources import SourceImage, find_sources


def find_images(*arguments):
    return find_sources(*arguments).images


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
    assert [image.problem for image in found] == [
        None,
        *["its id is the same as that of a/x.jpg, which is read"] * 2,
    ]


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
    with pytest.raises(InputError, match="found no image file"):
        find_images(tmp_path / "pictures")


def test_a_list_of_pictures_with_and_without_ids(tmp_path):
    touch(tmp_path, "pictures/a.jpg", "pictures/b.jpg")
    (tmp_path / "list.txt").write_text(f"pictures/a.jpg\n\n17\tpictures/b.jpg\n{tmp_path}/pictures/a.jpg\n")
    sources = find_sources(tmp_path / "list.txt")
    assert sources.folder == tmp_path
    assert sources.images == [
        SourceImage("a", "pictures/a.jpg"),
        SourceImage("17", "pictures/b.jpg"),
        SourceImage(
            "a", f"{tmp_path}/pictures/a.jpg", "its id is the same as that of pictures/a.jpg, which is read"
        ),
    ]


def test_a_split_limits_a_run_and_reports_ids_that_are_not_there(tmp_path):
    touch(tmp_path, "pictures/a.jpg", "pictures/b.jpg", "pictures/c.jpg")
    (tmp_path / "dev_ids.txt").write_text("c\nc\nc\nmissing\na\n")
    found = find_sources(tmp_path / "pictures", None, tmp_path / "dev_ids.txt").images
    assert [image.image_id for image in found] == ["c", "missing", "a"]
    assert [image.problem for image in found] == [None, "no image has this id, which dev_ids.txt lists", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("1\ta.jpg\tb", "1: expected an image file"),
        ("1\t\ta.jpg", "1: expected an image file"),
    ],
)
def test_a_malformed_list_is_one_line(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        find_sources(tmp_path / "list.txt")


def test_an_empty_split_and_a_repeated_id_are_errors(tmp_path):
    touch(tmp_path, "images/a.jpg")
    (tmp_path / "ids.txt").write_text("\n")
    with pytest.raises(InputError, match="expected one id per line"):
        find_sources(tmp_path / "images", None, tmp_path / "ids.txt")
    (tmp_path / "id_mapping.json").write_text('{"7": "a.jpg", "8": "a.jpg", "7": "a.jpg"}')
    with pytest.raises(InputError, match="the key '7' is repeated"):
        find_sources(tmp_path / "images")


def test_linked_folders_are_searched_and_circles_end(tmp_path):
    touch(tmp_path / "elsewhere", "b.jpg")
    touch(tmp_path / "images", "a.jpg")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "self").symlink_to(tmp_path / "images")
    found = find_sources(tmp_path / "images").images
    assert [image.file for image in found] == ["a.jpg", "linked/b.jpg"]


def test_copies_of_other_programs_are_no_images_and_what_is_left_out_is_counted(tmp_path):
    folder = tmp_path / "images"
    touch(folder, "a.jpg", "b.heic", "c.heic", "d.jp2", "e.jpg.1", "Thumbs.db", "._a.jpg", ".hidden.png")
    for junk in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails"):
        touch(folder / junk, "a-checkpoint.jpg", "._b.jpg")
    sources = find_sources(folder)
    assert [image.file for image in sources.images] == ["a.jpg"]
    assert sources.ignored == {".heic": 2, ".jp2": 1, ".1": 1, ".db": 1}
    assert "5 files" in sources.ignored_line()
    assert "2 .heic" in sources.ignored_line()


def test_a_folder_without_images_says_what_is_in_it(tmp_path):
    touch(tmp_path / "images", "b.heic", "c.heic")
    with pytest.raises(InputError, match=r"no image file.*2 \.heic"):
        find_sources(tmp_path / "images")


@pytest.mark.parametrize("text", ["filename,caption\na.jpg,A dog .\n", "A dog on a beach .\nTwo cats .\n"])
def test_a_list_of_something_else_is_refused(tmp_path, text):
    touch(tmp_path, "a.jpg")
    (tmp_path / "captions.csv").write_text(text)
    with pytest.raises(
        InputError, match=r"captions\.csv: expected one image file per line; none of 2 files exists"
    ):
        find_sources(tmp_path / "captions.csv")
    touch(tmp_path / "images", "a.jpg")
    with pytest.raises(InputError, match=r"captions\.csv: none of its 2 lines"):
        find_sources(tmp_path / "images", None, tmp_path / "captions.csv")


def test_the_folder_above_the_images_is_refused(tmp_path):
    touch(tmp_path / "coco" / "images", "a.jpg", "b.jpg")
    with pytest.raises(InputError, match=r"fix: give .*coco/images"):
        find_sources(tmp_path / "coco")
    touch(tmp_path / "coco", "c.jpg")
    assert len(find_sources(tmp_path / "coco").images) == 3


def test_a_mapping_of_other_images_is_refused(tmp_path):
    touch(tmp_path / "images", "a.jpg")
    (tmp_path / "id_mapping.json").write_text('{"1": "x.jpg", "2": "y.jpg"}')
    with pytest.raises(InputError, match=r"none of 2 files exists, 'x\.jpg'"):
        find_sources(tmp_path / "images")
