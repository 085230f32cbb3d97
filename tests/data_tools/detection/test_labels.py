import json

import pytest

from data_tools.detection.labels import load_labels
from data_tools.errors import InputError
from data_tools.scenes.dataset import ATTRIBUTES, CLASSES


def test_the_shipped_names_are_those_of_the_published_lists(visual_genome_vocabularies):
    labels = load_labels("visual_genome")
    for file, names, aliases in (
        ("objects_vocab.txt", labels.classes, labels.class_aliases),
        ("attributes_vocab.txt", labels.attributes, labels.attribute_aliases),
    ):
        lines = (visual_genome_vocabularies / file).read_text().splitlines()
        assert [",".join([name, *aliases.get(name, [])]) for name in names] == lines


def test_the_shipped_names_are_as_many_as_the_detector_has():
    labels = load_labels("visual_genome")
    assert (len(labels.classes), len(labels.attributes)) == (1600, 400)
    assert labels.classes[0] == "yolk"
    assert labels.attribute_aliases["gray"] == ["grey"]


def test_the_labels_of_the_scenes_are_what_is_drawn():
    labels = load_labels("scenes")
    assert labels.classes == list(CLASSES)
    assert labels.attributes == list(ATTRIBUTES)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"classes": ["cat"], "attributes": [], "images": []}))
    assert (load_labels(str(path)).classes, load_labels(str(path)).attributes) == (["cat"], [])


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(InputError, match="imagenet: no such label file; the shipped lists are scenes, visual"):
        load_labels("imagenet")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected an object with the keys"),
        ({"attributes": []}, "classes: expected a list of names"),
        ({"classes": ["a"]}, "attributes: expected a list of names"),
        ({"classes": [], "attributes": []}, "classes: expected at least one name"),
        ({"classes": ["a", 3], "attributes": []}, "classes: expected a list of names"),
        ({"classes": ["a", " "], "attributes": []}, "classes: expected a list of names"),
        ({"classes": ["a", "b", "a"], "attributes": []}, "classes: 'a' is listed twice"),
        ({"classes": ["a"], "attributes": [], "class_aliases": []}, "class_aliases: expected an object"),
        ({"classes": ["a"], "attributes": [], "class_aliases": {"b": []}}, "'b' is not one of the names"),
        ({"classes": ["a"], "attributes": [], "class_aliases": {"a": "b"}}, "'a': expected a list of aliases"),
        ({"classes": ["a", "b"], "attributes": [], "class_aliases": {"a": ["b"]}}, "'b' is listed twice"),
    ],
)
def test_malformed_labels_are_one_line(tmp_path, document, message):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message) as caught:
        load_labels(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
