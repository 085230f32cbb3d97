"""The detector against a second one that was written from the publications alone (tests/reference)."""

import dataclasses
import itertools
from functools import cache

import butd_files as files
import butd_reference as reference
import caffe_writer
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from data_tools.errors import InputError
from data_tools.images.decoding import decode_bgr
from extract.build import build_detector
from extract.config import load_config
from extract.detector.resizing import SMALLEST_SIDE, Resizing
from extract.regions.selection import CaffeSelection, SweepSelection

TOLERANCE = 1e-4  # of the largest value
TIED = 1e-6  # relative difference of scores whose order rounding decides
CPU = torch.device("cpu")
NARROW = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 60,
    "INPUT.MIN_SIZE_TEST": 160,
    "INPUT.MAX_SIZE_TEST": 300,
}
SMALL = {"min_side": 160, "max_side": 300, "after_nms": 60}

CAFFE = reference.Recipe(True, "airsplay", "caffe", reference.caffe_anchors(by_ratio=False), "counted")
AIRSPLAY = reference.Recipe(False, "airsplay", "torch", reference.detectron2_anchors(), "dropped")


def by_pillow(image, sides):
    return np.array(Image.fromarray(image).resize(sides[::-1], Image.Resampling.BILINEAR))


MILVLG_D2 = reference.Recipe(
    False,
    "milvlg_d2",
    by_pillow,
    reference.detectron2_anchors((32, 64, 128, 256, 512)),
    "absent",
    mean=(103.53, 116.28, 123.675),
    dilated=False,
    pool="RoIAlign",
    samples=2,
)


def small(recipe, **changes):
    return dataclasses.replace(recipe, **SMALL, **changes)


def narrow(name, **changes):
    cfg = load_config(name).clone()
    cfg.defrost()
    for key, value in {**NARROW, **changes}.items():
        cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg


def picture():
    """A smooth picture with some grain, (190, 250, 3) BGR."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize((250, 190), Image.Resampling.BICUBIC))
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def pixels_of(recipe, image, config):
    """What the package makes of the image, where OpenCV resizes; first it is compared with the formula.

    OpenCV's builds round differently, by up to a hundredth of a grey level, and a hundred layers make so much
    of that that proposals of nearly equal scores change places. So both networks see the same pixels here.
    """
    if recipe.resize != "caffe":
        return None
    inputs = config.INPUT
    resizing = Resizing("caffe", inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST, config.MODEL.PIXEL_MEAN)
    pixels, _ = resizing(image)
    own, _ = reference.prepared(recipe, image)
    assert pixels.shape == own[0].shape
    assert (pixels - own[0]).abs().max() <= TOLERANCE * own.abs().max()
    return pixels[None]


@pytest.mark.parametrize(("config", "recipe"), [("caffe", CAFFE), ("airsplay", AIRSPLAY), ("pillow", MILVLG_D2)])
def test_sides_are_rounded_alike(config, recipe):
    """In particular where a side ends in a half: 51 x 240 becomes 212 x 1000 by Detectron2's arithmetic."""
    resizing = Resizing({"airsplay": "torch"}.get(config, config), 600, 1000)
    for height, width in itertools.product(range(40, 700, 3), range(41, 1300, 7)):
        sides = reference.resized_sides(recipe, height, width)[:2]
        if min(sides) >= SMALLEST_SIDE:
            assert resizing.geometry(height, width).resized == sides, (height, width)
    if config != "caffe":
        assert resizing.geometry(51, 240).resized == (212, 1000)


@cache
def published():
    """Narrow weights under airsplay's names, without anchors."""
    state = files.random_state(101, stem=16, width=8, out=32, rpn=512, anchors=12)
    return files.calibrated(small(CAFFE), state, picture())


def matched(expected, found):
    """The rows of `found` in the order of `expected`: its own but where scores of near equals changed places.

    Two boxes are the same here where they are within a thousandth of the image of each other.
    """
    count = len(expected.boxes)
    assert found.boxes.shape == (count, 4)
    apart = np.abs(expected.boxes[:, None] - found.boxes.numpy()[None]).max(axis=2)
    near = apart < 1e-3 * expected.boxes.max()
    rows = np.full(count, -1)
    in_place = np.diagonal(near)
    rows[in_place] = np.flatnonzero(in_place)
    free = set(np.flatnonzero(~in_place).tolist())
    for row in np.flatnonzero(~in_place).tolist():
        there = [place for place in free if near[row, place]]
        assert there, f"proposal {row} at {expected.boxes[row]} was not found"
        rows[row] = min(there, key=lambda place: apart[row, place])
        free.remove(rows[row])
    moved = np.abs(expected.objectness - expected.objectness[rows])
    assert moved.max() <= TIED * np.abs(expected.objectness).max(), "the proposals come in another order"
    return rows


def differences(expected, found):
    """The largest difference of each output, over its largest value; all proposals are compared."""
    rows = matched(expected, found)
    pairs = {
        "boxes": (expected.boxes, found.boxes),
        "regressed boxes": (expected.regressed, found.regressed_boxes),
        "features": (expected.features, found.features),
        "class probabilities": (expected.classes, found.class_probabilities),
        "attribute probabilities": (expected.attributes, found.attribute_probabilities),
    }
    assert all(ours.shape == theirs.shape for theirs, ours in pairs.values())
    return {
        name: float(np.abs(theirs - ours.numpy()[rows]).max() / np.abs(theirs).max())
        for name, (theirs, ours) in pairs.items()
    }


def assert_same(expected, found):
    largest = differences(expected, found)
    assert max(largest.values()) <= TOLERANCE, largest


def described(detector, image):
    resized, geometry = detector.resizing(image)
    [found] = detector([resized], [geometry])
    return found


@cache
def expectation(recipe_name):
    """What the reference says of the picture, by one of the ways to write and to read the same weights."""
    recipe, state = {
        "caffe": lambda: (small(CAFFE), published()),
        "caffe, ratio by ratio": lambda: (small(CAFFE, anchors=reference.caffe_anchors(True)), published()),
        "airsplay": lambda: (small(AIRSPLAY), published()),
        "airsplay, Caffe's anchors": lambda: (
            small(AIRSPLAY, anchors=reference.caffe_anchors(False)),
            published(),
        ),
        "milvlg": lambda: (
            small(CAFFE, layout="milvlg_caffe", anchors=reference.caffe_anchors(True)),
            files.to_milvlg_caffe(published()),
        ),
        "milvlg, Detectron2's boxes": lambda: (
            small(AIRSPLAY, layout="milvlg_caffe", anchors=reference.detectron2_anchors(by_ratio=True)),
            files.to_milvlg_caffe(published()),
        ),
    }[recipe_name]()
    pixels = pixels_of(recipe, picture(), narrow("butd_r101_caffe"))
    return reference.describe(recipe, state, picture(), pixels)


def test_the_comparison_is_worth_something():
    """The random network's answers differ between regions, and between the dialects."""
    caffe, airsplay = expectation("caffe"), expectation("airsplay")
    assert len(caffe.boxes) >= 36
    assert len(airsplay.boxes) >= 36
    assert np.diff(caffe.objectness).max() < 0
    assert caffe.features.std(axis=0).mean() > 0.1 * caffe.features.mean()
    assert len(set(caffe.classes.argmax(axis=1))) > 10
    assert caffe.classes.max() > 0.5
    assert np.abs(caffe.boxes - caffe.regressed).mean() > 1
    assert np.abs(np.sort(caffe.boxes[:36], axis=0) - np.sort(airsplay.boxes[:36], axis=0)).max() > 1


CAFFE_BUFFER, RATIO_BUFFER = reference.caffe_anchors(by_ratio=False), reference.caffe_anchors(by_ratio=True)
DETECTRON2_BUFFER = reference.detectron2_anchors()


def airsplay_file(anchors):
    def write(path):
        state = published() if anchors is None else files.with_anchors(published(), anchors)
        files.write_airsplay(path, state)

    return write


def hugging_face_file(anchors, zipped):
    def write(path):
        state = files.with_counters(published())
        state = state if anchors is None else files.with_anchors(state, anchors)
        torch.save(state, path, _use_new_zipfile_serialization=zipped)

    return write


def milvlg_file(anchors):
    def write(path):
        state = files.to_milvlg_caffe(published())
        torch.save({"model": state if anchors is None else files.with_anchors(state, anchors)}, path)

    return write


def caffe_file(form):
    def write(path):
        caffe_writer.write(path, caffe_writer.layers_of(files.to_milvlg_caffe(published())), form)

    return write


def detectron2_file(path):
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    scheduler = {"last_epoch": 7, "_last_lr": [0.01]}
    torch.save({"model": published(), "optimizer": optimizer, "scheduler": scheduler, "iteration": 6}, path)


def safetensors_file(path):
    safetensors.torch.save_file(published(), path)


@pytest.mark.parametrize(
    ("write", "config", "expected"),
    [
        pytest.param(airsplay_file(None), "caffe", "caffe", id="airsplay"),
        pytest.param(airsplay_file(CAFFE_BUFFER), "caffe", "caffe", id="airsplay-anchors"),
        pytest.param(airsplay_file(DETECTRON2_BUFFER), "caffe", "caffe", id="airsplay-other-anchors"),
        pytest.param(airsplay_file(RATIO_BUFFER), "caffe", "caffe, ratio by ratio", id="airsplay-ratio-order"),
        pytest.param(hugging_face_file(CAFFE_BUFFER, True), "caffe", "caffe", id="hugging-face"),
        pytest.param(hugging_face_file(None, False), "caffe", "caffe", id="hugging-face-legacy"),
        pytest.param(detectron2_file, "caffe", "caffe", id="detectron2-checkpoint"),
        pytest.param(safetensors_file, "caffe", "caffe", id="safetensors"),
        pytest.param(milvlg_file(None), "caffe", "milvlg", id="milvlg"),
        pytest.param(milvlg_file(RATIO_BUFFER), "caffe", "milvlg", id="milvlg-anchors"),
        pytest.param(milvlg_file(DETECTRON2_BUFFER), "caffe", "milvlg", id="milvlg-other-anchors"),
        pytest.param(caffe_file("packed"), "caffe", "milvlg", id="caffemodel"),
        pytest.param(caffe_file("legacy"), "caffe", "milvlg", id="caffemodel-legacy"),
        pytest.param(caffe_file("diff"), "airsplay", "milvlg, Detectron2's boxes", id="caffemodel-in-detectron2"),
        pytest.param(airsplay_file(None), "airsplay", "airsplay", id="airsplay-in-detectron2"),
        pytest.param(
            hugging_face_file(DETECTRON2_BUFFER, True), "airsplay", "airsplay", id="hugging-face-in-detectron2"
        ),
        pytest.param(
            airsplay_file(CAFFE_BUFFER), "airsplay", "airsplay, Caffe's anchors", id="its-anchors-in-detectron2"
        ),
        pytest.param(milvlg_file(None), "airsplay", "milvlg, Detectron2's boxes", id="milvlg-in-detectron2"),
    ],
)
def test_every_published_format_gives_the_features_of_the_reference(tmp_path, write, config, expected):
    path = tmp_path / "weights"  # the contents say which format it is
    write(path)
    detector = build_detector(narrow(f"butd_r101_{config}"), path, CPU)
    assert_same(expectation(expected), described(detector, picture()))


def test_one_network_in_two_conventions_is_the_same_network():
    ours, milvlg = expectation("caffe"), expectation("milvlg")
    assert np.abs(ours.boxes - milvlg.boxes).max() < 1e-4 * ours.boxes.max()
    for name in ("features", "classes", "attributes", "regressed"):
        one, other = getattr(ours, name), getattr(milvlg, name)
        assert np.abs(one - other).max() < TOLERANCE * np.abs(one).max(), name


GROUPED = {"MODEL.RESNETS.NUM_GROUPS": 4, "MODEL.RESNETS.WIDTH_PER_GROUP": 2}  # of a narrow vg_x152


@cache
def trained_with_detectron2(config):
    """MILVLG's recipe and weights of a configuration that Detectron2 trained."""
    recipe = small(MILVLG_D2, **({"halving": (1, 2), "bins": 7} if config == "vg_x152" else {}))
    layers = {"depth": 152, "groups": 4} if config == "vg_x152" else {"depth": 50}
    state = files.random_state(stem=16, out=32, width=8, rpn=128, anchors=15, **layers)
    return recipe, files.calibrated(recipe, files.to_milvlg_d2(state), picture())


@pytest.mark.parametrize(("config", "changes"), [("vg_r50", {}), ("vg_x152", GROUPED)])
def test_milvlgs_detectron2_files(tmp_path, config, changes):
    recipe, state = trained_with_detectron2(config)
    torch.save({"model": state, "iteration": 179999}, tmp_path / "bua-d2-frcn.pth")
    detector = build_detector(narrow(config, **changes), tmp_path / "bua-d2-frcn.pth", CPU)
    expected = reference.describe(recipe, state, picture())
    assert len(expected.boxes) >= 36
    assert_same(expected, described(detector, picture()))


def r152(sizes, **channels):
    """MILVLG's recipe and weights of its Caffe-trained R-152, whose blocks normalise their input."""
    anchors = reference.caffe_anchors(by_ratio=True)
    recipe = dataclasses.replace(
        CAFFE, layout="milvlg_caffe", anchors=anchors, mean=(0, 0, 0), dilated=False, preactivated=True, **sizes
    )
    state = files.to_preactivated(files.to_milvlg_caffe(files.random_state(152, **channels)))
    return recipe, files.calibrated(recipe, state, picture())


def test_milvlgs_caffe_trained_r152(tmp_path):
    recipe, state = r152(SMALL, stem=16, width=8, out=32)
    config, path = narrow("butd_r152_caffe"), tmp_path / "bua-caffe-frcn-r152.pth"
    torch.save({"model": files.with_counters(state)}, path)
    expected = reference.describe(recipe, state, picture(), pixels_of(recipe, picture(), config))
    assert len(expected.boxes) >= 36
    assert len(set(expected.classes.argmax(axis=1))) > 10
    assert expected.features.std(axis=0).mean() > 0.1 * expected.features.mean()
    assert_same(expected, described(build_detector(config, path, CPU), picture()))
    del state["roi_heads.res5_bn.bias"]
    torch.save({"model": state}, path)
    with pytest.raises(InputError, match=r"missing: roi_heads\.res5\.3\.bias"):
        build_detector(config, path, CPU)


@pytest.mark.slow
def test_the_r152_at_full_width(tmp_path):
    recipe, state = r152({"min_side": 300, "max_side": 500, "after_nms": 100})
    torch.save({"model": state}, tmp_path / "w.pth")
    config = load_config("butd_r152_caffe").clone()
    config.defrost()
    config.merge_from_list(
        ["INPUT.MIN_SIZE_TEST", 300, "INPUT.MAX_SIZE_TEST", 500, "MODEL.RPN.POST_NMS_TOPK_TEST", 100]
    )
    detector = build_detector(config, tmp_path / "w.pth", CPU)
    assert detector.dim == 2048
    expected = reference.describe(recipe, state, picture(), pixels_of(recipe, picture(), config))
    assert len(expected.boxes) == 100
    assert_same(expected, described(detector, picture()))


@pytest.mark.parametrize("config", ["caffe", "airsplay"])
def test_the_rules_choose_what_their_loops_choose(tmp_path, config):
    files.write_airsplay(tmp_path / "w.pkl", published())
    found = described(build_detector(narrow(f"butd_r101_{config}"), tmp_path / "w.pkl", CPU), picture())
    expected = expectation(config)
    for bounds in ((36, 36), (10, 50)):
        chosen = CaffeSelection(*bounds)(found)
        rows = reference.caffe_choice(expected.boxes, expected.classes, *bounds)
        assert chosen.rows.tolist() == rows
        np.testing.assert_allclose(chosen.boxes.numpy(), expected.boxes[rows], atol=0.025)
    swept = SweepSelection(36, 36)(found)
    rows = reference.sweep_choice(expected.regressed, expected.classes, 36)
    assert swept.rows.tolist() == rows
    np.testing.assert_allclose(swept.boxes.numpy(), expected.regressed[rows], atol=0.025)


@pytest.mark.parametrize("size", [(190, 250), (333, 71), (40, 467), (1, 1)])
@pytest.mark.parametrize("config", ["butd_r101_caffe", "butd_r101_airsplay", "vg_r50", "vg_x152"])
def test_the_cells_of_a_grid(tmp_path, config, size):
    """Odd sides, tall and wide pictures, fewer and more cells than the map has places."""
    recipe, state = {
        "butd_r101_caffe": lambda: (small(CAFFE), published()),
        "butd_r101_airsplay": lambda: (small(AIRSPLAY), published()),
    }.get(config, lambda: trained_with_detectron2(config))()
    torch.save({"model": state}, tmp_path / "w.pth")
    cfg = narrow(config, **(GROUPED if config == "vg_x152" else {}))
    detector = build_detector(cfg, tmp_path / "w.pth", CPU)
    image = np.array(Image.fromarray(picture()).resize(size[::-1]))
    resized, geometry = detector.resizing(image)
    # a picture that is widened to the smallest side is no published case: the reference gets its pixels
    mean = torch.zeros(3) if cfg.INPUT.RESIZE == "caffe" else torch.tensor(recipe.mean)
    pixels = (resized.float() - mean.view(3, 1, 1))[None] if min(resized.shape[1:]) == SMALLEST_SIDE else None
    pixels = pixels_of(recipe, image, cfg) if pixels is None else pixels
    for cells in (1, 3, 7, 12, 37):
        [found] = detector.pool_grid([resized], [geometry], cells)
        expected = reference.grid(recipe, state, image, cells, pixels)
        assert found.features.shape == expected.shape == (cells**2, 256)
        assert np.abs(found.features.numpy() - expected).max() <= TOLERANCE * np.abs(expected).max()
        assert found.class_probabilities.shape == found.attribute_probabilities.shape == (cells**2, 0)


@pytest.mark.parametrize(
    ("config", "depth", "std"),
    [("grid_r50", 50, (1, 1, 1)), ("grid_x101", 101, (57.375, 57.12, 58.395)), ("grid_x152", 152, (1, 1, 1))],
)
def test_files_of_grid_feats_vqa(tmp_path, config, depth, std):
    grouped = depth > 50
    recipe = small(MILVLG_D2, layout="grid_feats", halving=(1, 2) if grouped else (2, 1))
    state = files.random_state(depth=depth, stem=16, out=32, width=8, groups=4 if grouped else 1)
    state = files.calibrated(recipe, files.to_grid_feats(state, rpn=256, hidden=48), picture())
    torch.save({"model": state, "iteration": 89999}, tmp_path / "grid.pth")
    changes = {**(GROUPED if grouped else {}), "MODEL.ROI_BOX_HEAD.FC_DIM": 48}
    detector = build_detector(narrow(config, **changes), tmp_path / "grid.pth", CPU)
    assert detector.dim == 256
    for size in ((190, 250), (333, 71), (97, 180)):
        image = np.array(Image.fromarray(picture()).resize(size[::-1]))
        resized, geometry = detector.resizing(image)
        pixels = reference.prepared(recipe, image)[0] / torch.tensor(std).view(1, 3, 1, 1)
        for cells in (1, 4, 7, 13):
            [found] = detector.pool_grid([resized], [geometry], cells)
            expected = reference.grid(recipe, state, image, cells, pixels)
            assert found.features.shape == expected.shape == (cells**2, 256)
            assert expected.std(axis=0).mean() > 0.01 * expected.mean() or cells == 1  # the cells differ
            assert np.abs(found.features.numpy() - expected).max() <= TOLERANCE * np.abs(expected).max()
    del state["backbone.res5.2.conv3.weight"]
    torch.save({"model": state}, tmp_path / "grid.pth")
    with pytest.raises(InputError, match=r"missing: backbone\.res5\.2\.conv3\.weight"):
        build_detector(narrow(config, **changes), tmp_path / "grid.pth", CPU)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("config", "recipe"), [("caffe", CAFFE), ("airsplay", AIRSPLAY)])
def test_ten_photographs_at_full_size(tmp_path, coco_samples, config, recipe):
    """The network as it is published, with random weights: some two minutes a photograph on one core."""
    photographs = sorted((coco_samples / "images").rglob("*.jpg"))
    assert len(photographs) == 10
    first = decode_bgr(photographs[0])
    state = files.calibrated(dataclasses.replace(recipe, min_side=300), files.random_state(), first)
    files.write_airsplay(tmp_path / "w.pkl", state)
    cfg = load_config(f"butd_r101_{config}")
    detector = build_detector(cfg, tmp_path / "w.pkl", CPU)
    worst = {}
    for photograph in photographs:
        image = decode_bgr(photograph)
        expected = reference.describe(recipe, state, image, pixels_of(recipe, image, cfg))
        assert len(expected.boxes) == 300
        found = described(detector, image)
        largest = differences(expected, found)
        print(config, photograph.name, {name: f"{value:.1e}" for name, value in largest.items()})
        worst[photograph.name] = max(largest.values())
    assert max(worst.values()) <= TOLERANCE, worst
