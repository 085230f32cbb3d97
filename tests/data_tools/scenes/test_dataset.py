import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_tools.captions.splits import load_split
from data_tools.captions.tokenization import tokenize
from data_tools.captions.vocabulary import Vocabulary
from data_tools.errors import InputError
from data_tools.layout import load_id_mapping
from data_tools.scenes.captions import write_captions
from data_tools.scenes.dataset import write_scenes
from data_tools.scenes.drawing import SceneObject, paint, sample_scene

SPLITS = {"train": 100, "dev": 6, "test": 4}
SEEDS = st.integers(0, 2**32 - 1)

# --- a reading of the captions that knows nothing of the grammar that wrote them ---------------------------

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
MEANING = {
    **{word: ("shape", word) for word in ("circle", "square", "triangle", "star")},
    **{word: ("colour", word) for word in COLOURS},
    **dict.fromkeys(("small", "little"), ("size", "small")),
    **dict.fromkeys(("large", "big"), ("size", "large")),
    **dict.fromkeys(("striped", "stripes"), ("texture", "striped")),
    **dict.fromkeys(("dotted", "spotted", "dots"), ("texture", "dotted")),
    "plain": ("texture", "plain"),
}
ADJECTIVES = "(?:(?:" + "|".join(word for word, (trait, _) in MEANING.items() if trait != "shape") + ") )*"
PHRASE = re.compile(rf"\ban? {ADJECTIVES}(?:circle|square|triangle|star|one)\b(?: with (?:stripes|dots))?")
COUNT = re.compile(rf"^(two|three|four) ({ADJECTIVES}(?:circle|square|triangle|star|shape))s\b")
RELATION = re.compile(r"(?:to the )?(left|right) of|(above|below|under)")
NUMBERS = {"two": 2, "three": 3, "four": 4}
FRAMES = {
    *("@ is ~ @", "@ ~ @", "there is @ ~ @", "@ can be seen ~ @", "@ placed ~ @"),
    *("@ is ~ @, and there is also @", "besides @, there is @ ~ @"),
    *(f"{start}{names}" for start in ("", "there is ", "a picture of ", "the image shows ")
      for names in ("@ and @", "@, @ and @")),
    *("#, including @ and @", "#, @ and @", "# and @", "a scene with @", "@ among other shapes"),
    "there is @ in the picture",
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    traits: frozenset[tuple[str, str]]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Reading:
    frame: str
    phrases: list[set[tuple[str, str]]]
    relation: tuple[str, int] | None  # the word, and the position of the phrase before it
    count: tuple[int, set[tuple[str, str]]] | None


def read(caption: str) -> Reading:
    assert re.fullmatch(r"[A-Z][a-z, ]*\.", caption)
    text = caption[:-1].lower()
    matches = list(PHRASE.finditer(text))
    phrases = [{MEANING[word] for word in match[0].split() if word in MEANING} for match in matches]
    counted = COUNT.match(text)
    count = (NUMBERS[counted[1]], {MEANING[w] for w in counted[2].split() if w != "shape"}) if counted else None
    if counted and " one" in text:
        phrases = [phrase | count[1] for phrase in phrases]
    relation = None
    for position, (before, after) in enumerate(itertools.pairwise(matches)):
        if found := RELATION.search(text, before.end(), after.start()):
            relation = (found[1] or found[2], position)
    frame = RELATION.sub("~", PHRASE.sub("@", COUNT.sub("#", text)))
    return Reading(frame, phrases, relation, count)


def stands(word: str, a: Thing, b: Thing) -> bool:
    """Apart along the axis of the word, and further apart along it than along the other."""
    away = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1), "under": (0, 1)}[word]
    a_low, a_high, b_low, b_high = (np.array(edge) for edge in (a.box[:2], a.box[2:], b.box[:2], b.box[2:]))
    gap = (a_low - b_high) @ np.maximum(away, 0) + (b_low - a_high) @ np.maximum(np.negative(away), 0)
    offset = (a_low + a_high - b_low - b_high) / 2
    return gap >= 0 and offset @ away > abs(offset @ away[::-1])


def is_true(reading: Reading, things: list[Thing]) -> bool:
    if reading.count:
        number, traits = reading.count
        if sum(traits <= thing.traits for thing in things) != number:
            return False

    def fits(chosen: tuple[Thing, ...]) -> bool:
        if not all(phrase <= thing.traits for phrase, thing in zip(reading.phrases, chosen, strict=True)):
            return False
        if not reading.relation:
            return True
        word, position = reading.relation
        return stands(word, chosen[position], chosen[position + 1])

    return any(fits(chosen) for chosen in itertools.permutations(things, len(reading.phrases)))


def things_of(dataset_dict: dict, classes: list[str], attributes: list[str]) -> list[Thing]:
    things = []
    for annotation in dataset_dict["annotations"]:
        names = [classes[annotation["category_id"]], *(attributes[i] for i in annotation["attribute_ids"])]
        things.append(Thing(frozenset(MEANING[name] for name in names), tuple(annotation["bbox"])))
    return things


# --- the dataset ---------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def annotations(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, **SPLITS)
    return out


def test_layout(scenes: Path) -> None:
    total = sum(SPLITS.values())
    names = [f"scenes_{i:06d}.jpg" for i in range(total)]
    expected = {"scenes.json", "vocab.json", "id_mapping.json", *(f"images/{name}" for name in names)}
    for split in SPLITS:
        expected |= {f"annotations/{split}.json", f"precomp/{split}_ids.txt", f"precomp/{split}_caps.txt"}
    assert set(contents(scenes)) == expected
    assert load_id_mapping(scenes / "id_mapping.json") == {str(i): name for i, name in enumerate(names)}

    ids: list[str] = []
    for split, size in SPLITS.items():
        loaded = load_split(scenes / "precomp", split)
        assert loaded.caption_images.tolist() == [i for i in range(size) for _ in range(5)]
        described = [(image["image_id"], image["file_name"]) for image in annotations(scenes, split)["images"]]
        assert described == [(i, names[int(i)]) for i in loaded.image_ids]
        ids += loaded.image_ids
    assert ids == [str(i) for i in range(total)]


def test_annotations_have_boxes_in_the_image_and_one_attribute_of_each_kind(scenes: Path) -> None:
    for split in SPLITS:
        document = annotations(scenes, split)
        assert document["classes"] == ["circle", "square", "triangle", "star"]
        for image in document["images"]:
            with Image.open(scenes / "images" / image["file_name"]) as picture:
                assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (160, 160))
            assert (image["height"], image["width"]) == (160, 160)
            assert 2 <= len(image["annotations"]) <= 4
            for item in image["annotations"]:
                assert list(item) == ["bbox", "category_id", "attribute_ids"]
                x1, y1, x2, y2 = item["bbox"]
                assert 0 <= x1 < x2 <= 160
                assert 0 <= y1 < y2 <= 160
                traits = [MEANING[document["attributes"][i]][0] for i in item["attribute_ids"]]
                assert traits == ["colour", "size", "texture"]
                assert item["attribute_ids"] == sorted(item["attribute_ids"])


def test_names_agree_with_pixels(scenes: Path) -> None:
    # Common values of these colours, not the ones that the drawing uses.
    reference = {
        "red": (220, 20, 40), "orange": (255, 130, 0), "yellow": (255, 220, 0), "green": (30, 140, 50),
        "blue": (30, 80, 230), "purple": (130, 30, 160), "black": (0, 0, 0), "white": (255, 255, 255),
    }  # fmt: skip
    checked = 0
    document = annotations(scenes, "train")
    for image in document["images"]:
        pixels = np.asarray(Image.open(scenes / "images" / image["file_name"])).astype(int)
        for thing in things_of(image, document["classes"], document["attributes"]):
            traits = dict(thing.traits)
            x1, y1, x2, y2 = (int(edge) for edge in thing.box)
            assert (max(x2 - x1, y2 - y1) > 33) == (traits["size"] == "large")
            if traits["texture"] == "plain":
                x, y = (x1 + x2) // 2, (y1 + y2) // 2
                middle = pixels[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
                distance = {name: np.abs(middle - value).sum() for name, value in reference.items()}
                assert min(distance, key=distance.__getitem__) == traits["colour"]
                checked += 1
    assert checked > 50


def test_captions_are_true_of_the_annotations(scenes: Path) -> None:
    kinds: Counter[str] = Counter()
    for split in SPLITS:
        document = annotations(scenes, split)
        captions = load_split(scenes / "precomp", split).captions
        for number, image in enumerate(document["images"]):
            things = things_of(image, document["classes"], document["attributes"])
            own = captions[5 * number : 5 * number + 5]
            assert len(set(own)) == 5
            for caption in own:
                reading = read(caption)
                assert reading.frame in FRAMES, caption
                assert is_true(reading, things), caption
                kinds[reading.relation[0] if reading.relation else "other"] += 1
                kinds["counts"] += reading.count is not None
                kinds["two or more objects"] += len(reading.phrases) >= 2
    assert all(kinds[word] > 0 for word in ("left", "right", "above", "below", "under"))
    assert kinds["counts"] > 0.1 * 5 * sum(SPLITS.values())
    assert kinds["two or more objects"] > 0.8 * 5 * sum(SPLITS.values())


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_any_scene_gets_five_true_captions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    objects = sample_scene(rng).objects
    things = [Thing(traits_of(item), item.box) for item in objects]
    captions = write_captions(objects, rng)
    assert len(set(captions)) == 5
    for caption in captions:
        assert read(caption).frame in FRAMES, caption
        assert is_true(read(caption), things), caption


def test_counts_of_three_are_true() -> None:
    # Random scenes hardly ever have three of a kind and something else.
    sprite = Image.new("RGBA", (20, 20), "red")
    looks = [("circle", "red"), ("circle", "blue"), ("circle", "red"), ("star", "red")]
    objects = [
        SceneObject(shape, colour, size, "plain", sprite, 40 * i, 10 * i)
        for i, ((shape, colour), size) in enumerate(zip(looks, ("small", "small", "large", "large"), strict=True))
    ]
    things = [Thing(traits_of(item), item.box) for item in objects]
    rng = np.random.default_rng(0)
    readings = [read(caption) for _ in range(60) for caption in write_captions(objects, rng)]
    assert all(is_true(reading, things) for reading in readings)
    counted = {(reading.count[0], frozenset(reading.count[1])) for reading in readings if reading.count}
    circle, red = ("shape", "circle"), ("colour", "red")
    assert {
        (4, frozenset()),
        (3, frozenset({circle})),
        (3, frozenset({red})),
        (2, frozenset({circle, red})),
    } <= counted


def traits_of(item: SceneObject) -> frozenset[tuple[str, str]]:
    return frozenset((name, getattr(item, name)) for name in ("shape", "colour", "size", "texture"))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_boxes_are_tight_around_the_drawn_pixels(seed: int) -> None:
    for item in sample_scene(np.random.default_rng(seed)).objects:
        drawn = np.zeros((160, 160), dtype=bool)
        # On two backgrounds, since a pixel that is hardly covered may match one of them.
        for ground in ("black", "white"):
            empty = Image.new("RGB", (160, 160), ground)
            drawn |= (np.asarray(paint(empty, [item])) != np.asarray(empty)).any(axis=2)
        rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
        assert item.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_objects_lie_inside_and_overlap_little(seed: int) -> None:
    masks = []
    for item in sample_scene(np.random.default_rng(seed)).objects:
        x1, y1, x2, y2 = item.box
        assert 0 < x1 < x2 < 160
        assert 0 < y1 < y2 < 160
        mask = np.zeros((160, 160), dtype=bool)
        mask[y1:y2, x1:x2] = True
        masks.append(mask)
    for a, b in itertools.combinations(masks, 2):
        assert (a & b).sum() / (a | b).sum() < 0.05


def test_vocabulary_holds_every_word(scenes: Path) -> None:
    captions = {split: load_split(scenes / "precomp", split).captions for split in SPLITS}
    counts = Counter(word for split in ("train", "dev") for text in captions[split] for word in tokenize(text))
    vocabulary = Vocabulary.load(scenes / "vocab.json")
    # A default dataset begins with the same images, so there too nothing is rarer than this.
    assert min(counts.values()) >= 4
    assert set(vocabulary.words[4:]) == set(counts)
    assert all(word in vocabulary for text in captions["test"] for word in tokenize(text))


# --- writing --------------------------------------------------------------------------------------------------


def test_same_bytes_each_time_and_over_an_existing_folder(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "deeper" / "second"
    for out in (first, second):
        write_scenes(out, 3, 1, 2, seed=7)
    assert contents(first) == contents(second)
    features = second / "precomp" / "features.h5"
    features.write_bytes(b"extracted")
    write_scenes(second, 3, 1, 2, seed=7)
    assert features.read_bytes() == b"extracted"
    features.unlink()
    assert contents(first) == contents(second)


def test_image_depends_on_its_number_and_the_seed_alone(tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", 1, 1, 1)
    write_scenes(tmp_path / "more", 4, 0, 0)
    write_scenes(tmp_path / "other", 1, 1, 1, seed=1)
    few, more, other = (contents(tmp_path / name) for name in ("few", "more", "other"))
    for name in ("images/scenes_000000.jpg", "images/scenes_000001.jpg", "images/scenes_000002.jpg"):
        assert few[name] == more[name] != other[name]


def test_killed_run_is_incomplete_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path / "whole", 2, 1, 1)
    out = tmp_path / "killed"
    write_scenes(out, 2, 1, 1)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "build", kill)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(out, 2, 1, 1)
    assert not (out / "id_mapping.json").exists()
    write_scenes(out, 2, 1, 1)
    assert contents(out) == contents(tmp_path / "whole")


def test_refuses_folders_that_hold_something_else(tmp_path: Path) -> None:
    photographs = tmp_path / "coco"
    (photographs / "images").mkdir(parents=True)
    (photographs / "id_mapping.json").write_text('{"1": "photograph.jpg"}')
    with pytest.raises(InputError, match="coco: holds something else"):
        write_scenes(photographs, 1, 1, 1)
    assert json.loads((photographs / "id_mapping.json").read_text()) == {"1": "photograph.jpg"}

    write_scenes(tmp_path / "scenes", 1, 1, 1)
    before = contents(tmp_path / "scenes")
    with pytest.raises(InputError, match=r"scenes\.json: holds the scenes of .*'train': 1.*, not of .*'train': 2"):
        write_scenes(tmp_path / "scenes", 2, 1, 1)
    assert contents(tmp_path / "scenes") == before

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: holds something else"):
        write_scenes(tmp_path / "file", 1, 1, 1)


@pytest.mark.parametrize("sizes", [{"train": -1}, {"dev": -2}, {"test": -1}, {"seed": -1}])
def test_refuses_negative_numbers(tmp_path: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(sizes))}: expected 0 or more"):
        write_scenes(tmp_path / "out", **sizes)
    assert not (tmp_path / "out").exists()


def test_refuses_to_draw_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train, dev and test are all 0"):
        write_scenes(tmp_path / "out", 0, 0, 0)
