import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_tools.detection.labels import Labels, load_labels
from data_tools.detection.visual_genome import convert_visual_genome
from data_tools.detection.visual_genome_names import clean, name_table, read_vocabularies, split_attributes
from data_tools.detection.visual_genome_splits import draw_image_lists, read_image_lists
from data_tools.errors import InputError

LABELS = Labels(
    ["dog", "tv", "traffic light"], ["white", "tall", "gray"], {"tv": ["television"]}, {"gray": ["grey"]}
)


def thing(number, name, x, y, w, h):
    return {"object_id": number, "names": [name], "synsets": [], "x": x, "y": y, "w": w, "h": h}


def genome(images=3):
    """The three files for images 1, 2, ... of 100 x 80 pixels with a dog each."""
    folders = ("VG_100K", "VG_100K_2")
    return {
        "image_data": [
            {
                "image_id": number,
                "url": f"https://cs.stanford.edu/people/rak248/{folders[number % 2]}/{number}.jpg",
                "width": 100,
                "height": 80,
                "coco_id": None,
                "flickr_id": None,
            }
            for number in range(1, images + 1)
        ],
        "objects": [
            {"image_id": number, "objects": [thing(10 * number, "dog", 5, 6, 20, 30)]}
            for number in range(1, images + 1)
        ],
        "attributes": [{"image_id": number, "attributes": []} for number in range(1, images + 1)],
    }


def write(folder, documents):
    folder.mkdir(exist_ok=True)
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def convert(tmp_path, documents, lists=None, val=1, test=1, labels=LABELS, seed=0):
    source = write(tmp_path / "source", documents)
    report = convert_visual_genome(source, tmp_path / "out", labels, lists, val, test, seed)
    files = (tmp_path / "out" / "annotations").glob("*.json")
    return report, {path.stem: json.loads(path.read_text()) for path in files}


def records_of(splits):
    return {record["image_id"]: record for split in splits.values() for record in split["images"]}


def test_an_image_becomes_a_record_of_the_annotation_file(tmp_path):
    report, splits = convert(tmp_path, genome())
    assert report.images == {"train": 1, "val": 1, "test": 1}
    assert (report.objects, report.attributes) == (3, 0)
    for split in splits.values():
        assert (split["classes"], split["attributes"]) == (LABELS.classes, LABELS.attributes)
    assert records_of(splits)[2] == {
        "image_id": 2,
        "file_name": "VG_100K/2.jpg",
        "width": 100,
        "height": 80,
        "annotations": [{"bbox": [5, 6, 25, 36], "category_id": 0, "attribute_ids": []}],
    }
    assert records_of(splits)[1]["file_name"] == "VG_100K_2/1.jpg"


def test_names_boxes_and_attributes(tmp_path):
    documents = genome()
    documents["objects"][0]["objects"] = [
        thing(1, " Television. ", -4, -2, 30, 30),  # an alias; clipped on the left and above
        thing(2, "white grey dog", 90, 70, 30, 30),  # adjectives become attributes; clipped right and below
        thing(3, "unicorn", 0, 0, 10, 10),
        thing(4, "dog", 100, 0, 10, 10),  # outside
        thing(5, "dog", 10, 10, 0, 5),  # no width
        thing(6, "traffic light", 40, 40, 8, 9),
        thing(7, "traffic light", 40, 40, 8, 9),  # once more
        thing(8, "dog", 40, 40, 8, 9),  # the same box, another class
    ]
    documents["attributes"][0]["attributes"] = [
        {"object_id": 1, "attributes": ["Tall and grey.", "tall", "purple"]},
        {"object_id": 2},
        {"object_id": 4, "attributes": ["shaggy"]},  # of an object that is left out
        {"object_id": 6, "attributes": ["white"]},
        {"object_id": 7, "attributes": ["gray"]},
        {"object_id": 8, "attributes": None},
    ]
    documents["attributes"][1]["attributes"] = [{"object_id": 1, "attributes": ["white"]}]  # found by object_id
    report, splits = convert(tmp_path, documents)
    rows = [
        (item["category_id"], item["bbox"], item["attribute_ids"]) for item in records_of(splits)[1]["annotations"]
    ]
    assert rows == [
        (1, [0, 0, 26, 28], [0, 1, 2]),
        (0, [90, 70, 100, 80], [0, 2]),
        (2, [40, 40, 48, 49], [0, 2]),
        (0, [40, 40, 48, 49], []),
    ]
    assert (report.unknown_objects, report.empty_boxes, report.merged_objects) == (1, 2, 1)
    assert report.unknown_attributes == 1  # purple
    assert (report.objects, report.attributes) == (6, 7)
    assert "1 objects merged" in report.as_text()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Tall", ["tall"]),
        ("tall and green", ["tall", "green"]),
        (" Black and white. ", ["black and white"]),
        ("black and white and red", ["black", "white", "red"]),
        ("sandy", ["sandy"]),
    ],
)
def test_attributes_that_were_written_as_one(text, parts):
    assert split_attributes(text) == parts


def test_adjectives_in_front_of_a_name():
    table = name_table(Labels(["light", "red light"], []))
    assert table.find_class(["small white light"]) == (0, ["small", "white"])
    assert table.find_class(["red light"]) == (1, [])  # a class of its own
    assert table.find_class(["traffic light"]) is None
    assert table.find_class(["lamp", "light"]) == (0, [])
    assert table.find_class([]) is None
    assert table.find_class([""]) is None


@given(st.text())
def test_cleaning_again_changes_little(text):
    cleaned = clean(text)
    assert cleaned == cleaned.strip()
    assert cleaned == cleaned.lower()
    assert len(cleaned) >= len(clean(cleaned)) >= len(cleaned) - 1 - cleaned.count(" ")


def test_images_without_objects_are_left_out(tmp_path):
    documents = genome(5)
    documents["objects"][1]["objects"] = [thing(1, "unicorn", 0, 0, 10, 10)]
    documents["objects"][2]["objects"] = []
    documents["objects"].append({"image_id": 99, "objects": []})
    report, splits = convert(tmp_path, documents)
    assert set(records_of(splits)) == {1, 4, 5}
    assert (report.images_without_objects, report.images_without_size) == (2, 1)


def test_lists_of_images(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("VG_100K_2/3.jpg xml/3.xml\nVG_100K_2/1.jpg 1.xml\n\n")
    (lists / "test.txt").write_text("2\n77\n")
    report, splits = convert(tmp_path, genome(4), lists)
    assert {name: [r["image_id"] for r in split["images"]] for name, split in splits.items()} == {
        "train": [3, 1],
        "test": [2],
    }
    assert (report.images_unlisted, report.listed_without_annotation) == (1, 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no list of images; expected train.txt"),
        (
            {"train": "1\ndog.jpg\n"},
            r"train.txt, line 2: expected ID, or .*, found 'dog.jpg'",
        ),
        ({"train": "1\n2\n", "test": "a/1.jpg 1.xml\n"}, r"test.txt, line 1: image 1 is listed in train.txt too"),
        ({"train": "1\n", "val": "\n"}, "val.txt: holds no image"),
    ],
)
def test_malformed_lists(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_image_lists(tmp_path)


def test_a_list_without_usable_image_is_an_error(tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("1\n")
    (lists / "val.txt").write_text("8\n")
    with pytest.raises(InputError, match=r"none of the images of val\.txt has an object"):
        convert(tmp_path, genome(), lists)
    assert not (tmp_path / "out").exists()


@given(st.sets(st.integers(0, 10**7), min_size=4, max_size=60), st.data())
def test_a_random_split_follows_from_its_seed(ids, data):
    ids = data.draw(st.permutations(sorted(ids)))
    val = data.draw(st.integers(0, len(ids) - 2))
    test = data.draw(st.integers(0, len(ids) - 2 - val))
    splits = draw_image_lists(ids, val, test, seed=5)
    assert (len(splits["val"]), len(splits["test"])) == (val, test)
    assert sorted(image_id for part in splits.values() for image_id in part) == sorted(ids)
    assert draw_image_lists(sorted(ids), val, test, seed=5) == splits


def test_another_seed_gives_another_split():
    assert draw_image_lists(range(50), 10, 10, 1) != draw_image_lists(range(50), 10, 10, 2)


def test_too_few_images_for_a_random_split(tmp_path):
    with pytest.raises(InputError, match="3 images with objects: 2 for validation and 1 for test leave none"):
        convert(tmp_path, genome(), val=2)


def picture(folder, name, size, orientation=None):
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)
    return path


def test_images_that_are_absent_or_of_another_size_are_left_out(tmp_path):
    picture(tmp_path / "out", "VG_100K_2/1.jpg", (100, 80))
    picture(tmp_path / "out", "VG_100K/2.jpg", (80, 100))
    picture(tmp_path / "out", "VG_100K_2/3.jpg", (80, 100), orientation=6)  # upright it is as announced
    (tmp_path / "out" / "images" / "VG_100K" / "4.jpg").write_text("no picture")
    picture(tmp_path / "out", "VG_100K/6.jpg", (100, 80))
    report, splits = convert(tmp_path, genome(6))
    assert set(records_of(splits)) == {1, 3, 6}
    assert (report.images_missing, report.images_of_other_size) == (2, 1)
    assert report.files_checked


def test_no_image_in_its_place_is_an_error(tmp_path):
    picture(tmp_path / "out", "1.jpg", (100, 80))  # unpacked without its folder
    with pytest.raises(InputError, match=r"holds none of the annotated images, for instance VG_100K_2/1.jpg"):
        convert(tmp_path, genome())


def edit(name, *keys, value):
    def change(documents):
        place = documents[name]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


FIRST = (0, "objects", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(objects={}), "objects.json: expected a list"),
        (lambda d: d["objects"].append(7), "objects.json: entry 3: expected an object with the number image_id"),
        (edit("objects", 1, "image_id", value="2"), "objects.json: entry 1: expected an object with the number"),
        (edit("objects", 1, "image_id", value=1), "objects.json: image 1: is listed twice"),
        (edit("objects", 1, "objects", value=None), "objects.json: image 2: objects: expected a list"),
        (edit("objects", 1, "objects", value=[1]), "image 2: objects: expected objects with the number object_id"),
        (edit("objects", *FIRST, "names", value="dog"), "image 1: object 10: names: expected a list of names"),
        (edit("objects", *FIRST, "names", value=[None]), "image 1: object 10: names: expected a list of names"),
        (
            edit("objects", *FIRST, "w", value=None),
            r"object 10: x, y, w, h: expected four numbers, not \[5, 6, None",
        ),
        (edit("objects", *FIRST, "x", value=float("nan")), "object 10: x, y, w, h: expected four numbers"),
        (edit("objects", *FIRST, "x", value=True), "object 10: x, y, w, h: expected four numbers"),
        (edit("image_data", 1, "image_id", value=1), "image_data.json: image 1: is listed twice"),
        (
            edit("image_data", 1, "url", value="http://x/2.jpg"),
            "image 2: url: expected it to end in VG_100K/",
        ),
        (edit("image_data", 1, "width", value=0), "image 2: width and height: expected pixels, not 0 and 80"),
        (edit("attributes", 0, "attributes", value=None), "attributes.json: image 1: attributes: expected a list"),
        (
            edit("attributes", 0, "attributes", value=[{"object_id": 10, "attributes": [3]}]),
            "attributes.json: image 1: object 10: attributes: expected a list of words",
        ),
        (
            edit("attributes", 0, "attributes", value=[{"attributes": []}]),
            "attributes.json: image 1: attributes: expected objects with the number object_id",
        ),
        (lambda d: [e["objects"].clear() for e in d["objects"]], "no image has an object of the vocabulary"),
    ],
)
def test_malformed_files_are_one_line(tmp_path, change, message):
    documents = genome()
    change(documents)
    with pytest.raises(InputError, match=message) as caught:
        convert(tmp_path, documents)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["objects", "attributes", "image_data"])
def test_a_missing_or_cut_file_is_named(tmp_path, name):
    source = write(tmp_path / "source", genome())
    path = source / f"{name}.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(InputError, match=f"{name}.json: not JSON"):
        convert_visual_genome(source, tmp_path / "out", LABELS, None, 1, 1, 0)
    path.unlink()
    with pytest.raises(InputError, match=f"{name}.json: No such file"):
        convert_visual_genome(source, tmp_path / "out", LABELS, None, 1, 1, 0)


def test_vocabularies_in_the_published_form(visual_genome_vocabularies):
    folder = visual_genome_vocabularies
    assert read_vocabularies(folder / "objects_vocab.txt", folder / "attributes_vocab.txt") == load_labels(
        "visual_genome"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no name"),
        ("dog\n\ncat\n", "line 2: expected NAME,ALIAS"),
        ("dog,\n", "line 1: expected NAME,ALIAS"),
        ("TV,television\ntelevision\n", "line 2: 'television' is listed twice"),
    ],
)
def test_malformed_vocabularies(tmp_path, text, message):
    (tmp_path / "objects.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_vocabularies(tmp_path / "objects.txt", Path("unread"))
