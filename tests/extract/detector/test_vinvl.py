"""VinVL's detector against a second one that was written from the publications alone (tests/reference)."""

import itertools
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import vinvl_reference as reference
from PIL import Image

from data_tools.errors import InputError, UsageError
from extract.build import build_detector, build_network
from extract.config import load_config, suppresses_inclusively
from extract.detector.boxes import MaskRCNNBoxTransform
from extract.detector.resizing import SMALLEST_SIDE, Resizing
from extract.regions.selection import CaffeSelection
from extract.weights.locating import find_weights_of
from extract.weights.placing import ANCHORS

OUTPUTS = [
    ("boxes", "boxes"),
    ("regressed", "regressed_boxes"),
    ("features", "features"),
    ("classes", "class_probabilities"),
    ("attributes", "attribute_probabilities"),
]
TOLERANCE = 1e-4  # of the largest value
CPU = torch.device("cpu")
SIZES = reference.Sizes(min_side=160, max_side=300, after_nms=60, groups=4)
NARROW = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.NUM_GROUPS": SIZES.groups,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.RPN.POST_NMS_TOPK_TEST": SIZES.after_nms,
    "INPUT.MIN_SIZE_TEST": SIZES.min_side,
    "INPUT.MAX_SIZE_TEST": SIZES.max_side,
}


def narrow(**changes):
    cfg = load_config("vinvl_x152").clone()
    cfg.defrost()
    cfg.merge_from_list([entry for pair in {**NARROW, **changes}.items() for entry in pair])
    cfg.freeze()
    return cfg


def picture(height=190, width=250):
    """A smooth picture with some grain, (height, width, 3) BGR; the default's longer side is rounded down."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


@cache
def weights():
    state = reference.random_state(stem=16, width=2, out=32, groups=SIZES.groups)
    reference.describe(state, picture(), SIZES, fits=True)
    state["roi_heads.box.predictor.cls_score.bias"][0] += 11  # the background is some regions' most probable class
    state["attribute.predictor.attr_score.bias"][0] += 6
    return state


@cache
def expectation():
    return reference.describe(weights(), picture(), SIZES)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The package's network with these weights, from a file as the authors' program writes it."""
    path = tmp_path_factory.mktemp("vinvl") / "vinvl_vg_x152c4.pth"
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    torch.save({"model": reference.as_published(weights()), "optimizer": optimizer, "iteration": 60000}, path)
    return build_detector(narrow(), path, CPU)


@pytest.fixture(scope="module")
def found(detector):
    """Every stage of the package's network for the picture."""
    resized, geometry = detector.resizing(picture())
    model = detector.model
    with torch.inference_mode():
        batch = model.preprocess_image([{"image": resized}])
        res4 = model.backbone(batch.tensor)["res4"]
        [logits], [deltas] = model.proposal_generator.rpn_head([res4])
    [proposals] = detector([resized], [geometry])
    return SimpleNamespace(
        pixels=batch.tensor,
        res4=res4,
        objectness_map=logits,
        delta_map=deltas,
        proposals=proposals,
        geometry=geometry,
    )


def difference(expected, ours):
    """The largest difference over the largest value."""
    expected, ours = np.asarray(expected), np.asarray(ours)
    assert expected.shape == ours.shape
    return float(np.abs(expected - ours).max() / np.abs(expected).max())


@pytest.mark.parametrize("stage", ["pixels", "res4"])
def test_the_feature_map_is_the_references(found, stage):
    assert difference(getattr(expectation(), stage), getattr(found, stage)) <= TOLERANCE


def test_the_region_proposal_layers_are_the_references(found):
    """The file's channels stay in its order of anchors, ratio by ratio."""
    assert difference(expectation().objectness_map, found.objectness_map) <= TOLERANCE
    assert difference(expectation().delta_map, found.delta_map) <= TOLERANCE


@pytest.mark.parametrize(("theirs", "ours"), OUTPUTS)
def test_every_output_of_the_proposals_is_the_references(found, theirs, ours):
    assert difference(getattr(expectation(), theirs), getattr(found.proposals, ours)) <= TOLERANCE


def test_the_comparison_is_worth_something():
    """The random network's answers differ between regions, and the class decides attributes where it matters."""
    expected = expectation()
    assert len(expected.boxes) == SIZES.after_nms
    assert np.diff(expected.objectness).max() < 0
    assert expected.features.std(axis=0).mean() > 0.1 * expected.features.mean()
    assert len(set(expected.classes.argmax(axis=1))) > 10
    assert expected.classes.max() > 0.5
    background = 1 - expected.classes.sum(axis=1) > expected.classes.max(axis=1)
    assert 3 < background.sum() < len(background) - 3
    assert expected.attributes.sum(axis=1).min() < 0.5
    assert np.abs(expected.boxes - expected.regressed).mean() > 1


@pytest.mark.parametrize(("least", "most"), [(10, 100), (36, 36), (40, 50)])
def test_the_rule_chooses_the_proposals_that_filter_1_chooses(found, least, most):
    assert not suppresses_inclusively(narrow())
    chosen = CaffeSelection(least, most, inclusive=False)(found.proposals)
    expected = reference.choice(expectation().resized_boxes, expectation().classes, least, most)
    assert sorted(chosen.rows.tolist()) == sorted(expected)


def test_sides_are_rounded_alike():
    resizing, sizes = Resizing("maskrcnn", 600, 1000), reference.Sizes()
    for height, width in itertools.product(range(40, 700, 3), range(41, 1300, 7)):
        sides = reference.resized_sides(height, width, sizes)
        if min(sides) >= SMALLEST_SIDE:
            assert resizing.geometry(height, width).resized == sides, (height, width)
    assert resizing.geometry(375, 500).resized == (600, 800)
    assert resizing.geometry(427, 640).resized == (600, 899)  # Detectron2's arithmetic makes it 899.3: 899
    assert resizing.geometry(426, 640).resized == (600, 901)
    assert resizing.geometry(600, 777).resized == (600, 777)


def test_no_delta_leaves_a_box_where_it_is():
    boxes = torch.tensor([[7.0, 8, 20, 30]])
    decoded = MaskRCNNBoxTransform((1.0, 1.0, 1.0, 1.0)).apply_deltas(torch.zeros(1, 8), boxes)
    assert decoded.tolist() == [[7, 8, 20, 30, 7, 8, 20, 30]]


def test_attributes_are_those_of_the_most_probable_object(detector):
    """Not of the background, which the embedding knows too."""
    predictor = detector.model.roi_heads.box_predictor
    features = torch.from_numpy(expectation().features)
    with torch.inference_mode():
        logits = predictor.cls_score(features)
        labels = logits[:, :-1].argmax(dim=1)
        ours = predictor.attribute_probabilities(features, labels)
        others = predictor.attribute_probabilities(features, torch.full_like(labels, predictor.num_classes))
    assert difference(expectation().attributes, ours) <= TOLERANCE
    assert np.abs(ours - others).max() > 0.01


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_network_as_it_is_published(tmp_path):
    """At full width and size, with random weights: some minutes on one core."""
    image, state = picture(427, 640), reference.random_state(gain=0.1)
    reference.describe(state, picture(), reference.Sizes(min_side=300, max_side=500, after_nms=50), fits=True)
    for layer, factor in (("roi_heads.box.predictor.cls_score", 2), ("attribute.predictor.attr_score", 8)):
        for kind in ("weight", "bias"):  # less sure, for rounding errors of features grow by as much
            state[f"{layer}.{kind}"] /= factor
    expected = reference.describe(state, image, reference.Sizes())
    network = build_detector(load_config("vinvl_x152"), saved(tmp_path, reference.as_published(state)), CPU)
    resized, geometry = network.resizing(image)
    [found] = network([resized], [geometry])
    assert found.features.shape == (300, 2048)
    pairs = [(getattr(expected, theirs), getattr(found, ours)) for theirs, ours in OUTPUTS]
    largest = {ours: difference(*pair) for (_, ours), pair in zip(OUTPUTS, pairs, strict=True)}
    print(largest)
    assert max(largest.values()) <= TOLERANCE, largest


def saved(folder, state):
    torch.save({"model": state}, folder / "w.pth")
    return folder / "w.pth"


def test_a_prefix_of_data_parallel_and_a_file_without_anchors_make_no_difference(tmp_path, detector):
    state = {f"module.{name}": tensor for name, tensor in weights().items()}
    network = build_network(narrow(), saved(tmp_path, state), CPU)
    for (name, one), other in zip(detector.model.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(network.get_buffer(ANCHORS), torch.from_numpy(reference.anchors()).float())
    assert torch.equal(detector.model.get_buffer(ANCHORS), network.get_buffer(ANCHORS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("backbone.body.layer3.35.bn2.running_var"),
            "backbone.res4.35.conv2.norm.running_var",
        ),
        (lambda state: state.update({"relation.predictor.weight": torch.ones(2)}), "relation.predictor.weight"),
        (
            lambda state: state.update(
                {f"attribute.feature_extractor.head.layer4.0.{key}": torch.ones(8) for key in "a"}
            ),
            "attribute.feature_extractor.head.layer4.0.a",
        ),
        (
            lambda state: state.update({"roi_heads.box.predictor.cls_score.bias": torch.ones(1601)}),
            "roi_heads.box_predictor.cls_score.bias",
        ),
    ],
)
def test_a_file_of_another_network_is_one_line(tmp_path, change, message):
    state = reference.as_published(weights())
    change(state)
    with pytest.raises(InputError, match=message) as caught:
        build_network(narrow(), saved(tmp_path, state), CPU)
    assert "\n" not in str(caught.value)


def test_an_attributes_branch_of_its_own_is_refused(tmp_path):
    """The network has one res5 for both branches, as the published file."""
    state = reference.as_published(weights())
    name = "attribute.feature_extractor.head.layer4.1.conv3.weight"
    state[name] = state[name] + 1
    with pytest.raises(InputError, match=name):
        build_network(narrow(), saved(tmp_path, state), CPU)


def test_what_to_give_for_weights_is_told():
    with pytest.raises(UsageError, match=r"vinvl_vg_x152c4\.pth"):
        find_weights_of("vinvl_x152", None)
