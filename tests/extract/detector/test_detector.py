import pytest
import torch
from detectron2.structures import Boxes, Instances

from data_tools.configs import config_folder
from data_tools.errors import InputError, UsageError
from extract.build import build_detector, build_network
from extract.choices import Precision
from extract.config import load_config, provenance_text, with_values
from extract.detector import roi_heads
from extract.detector.precision import check_precision
from extract.detector.resizing import Geometry


def geometry(height, width, resized=(96, 128)):
    """Of a picture of this size that was resized to another."""
    return Geometry((height, width), resized, (resized[0] / height, resized[1] / width))


def picture(seed, height=96, width=128):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)).float()


def test_boxes_are_in_pixels_of_the_original(detector):
    image = picture(0)
    [same] = detector([image], [geometry(96, 128)])
    [larger] = detector([image], [geometry(192, 640)])
    torch.testing.assert_close(larger.boxes, same.boxes * torch.tensor([5.0, 2.0, 5.0, 2.0]))
    assert same.boxes.min() >= 0
    assert same.boxes[:, 2].max() <= 128
    assert same.boxes[:, 3].max() <= 96


def test_probabilities_leave_out_the_background_and_none(detector):
    [found] = detector([picture(0)], [geometry(96, 128)])
    layers = detector.model.roi_heads.box_predictor
    logits = found.features.double() @ layers.cls_score.weight.double().T + layers.cls_score.bias.double()
    expected = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(found.class_probabilities.double(), expected[:, :-1], atol=1e-5, rtol=1e-3)
    assert found.attribute_probabilities.shape[1] == layers.num_attributes
    torch.testing.assert_close(found.attribute_probabilities.sum(dim=1), torch.ones(len(found.boxes)))


def test_given_boxes_are_described_as_proposals_are(detector):
    image = picture(0)
    [found] = detector([image], [geometry(192, 256)])
    [again] = detector.predict_boxes([image], [geometry(192, 256)], [found.boxes[3:9]])
    torch.testing.assert_close(again.boxes, found.boxes[3:9])
    noise = 1e-4 * found.features.abs().max().item()
    torch.testing.assert_close(again.features, found.features[3:9], atol=noise, rtol=0)
    torch.testing.assert_close(again.regressed_boxes, found.regressed_boxes[3:9], atol=1e-2, rtol=0)


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.05), ("fp16", 0.01)])
def test_lower_precision_stays_near_and_leaves_no_trace(scenes_config, precision, error):
    image, place = picture(0), geometry(96, 128)
    boxes = torch.tensor([[4.0, 4.0, 60.0, 70.0], [30.0, 20.0, 120.0, 90.0]])
    exact = build_detector(scenes_config, None, torch.device("cpu"))
    rough = build_detector(scenes_config, None, torch.device("cpu"), Precision(precision))
    [one] = exact.predict_boxes([image], [place], [boxes])
    [two] = rough.predict_boxes([image], [place], [boxes])
    assert two.features.dtype == two.class_probabilities.dtype == torch.float32
    difference = (one.features - two.features).norm() / one.features.norm()
    assert 1e-6 < difference < error
    [same] = exact.predict_boxes([image], [place], [boxes])
    assert torch.equal(one.features, same.features)


def test_tf32_needs_a_gpu():
    with pytest.raises(UsageError, match="tf32 needs a GPU"):
        check_precision(Precision.TF32, torch.device("cpu"))


def test_an_image_does_not_depend_on_its_batch(detector):
    images = [picture(seed) for seed in range(3)]
    together = detector(images, [geometry(96, 128)] * 3)
    for image, batched in zip(images, together, strict=True):
        [alone] = detector([image], [geometry(96, 128)])
        torch.testing.assert_close(batched.boxes, alone.boxes, atol=1e-2, rtol=0)
        noise = 1e-5 * alone.features.abs().max().item()  # float32 sums in another order
        torch.testing.assert_close(batched.features, alone.features, atol=noise, rtol=0)


def test_regions_go_through_res5_in_groups_of_one_size_in_memory(detector, monkeypatch):
    groups = []
    corners = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)) * 60
    boxes = torch.cat([corners, corners + 30], dim=1)
    counting = detector.model.roi_heads.res5.register_forward_hook(lambda _, maps, out: groups.append(len(out)))
    with counting:
        [large] = detector.predict_boxes([picture(0)], [geometry(96, 128)], [boxes])
        assert groups == [87, 13]  # of 256 maps of 6 x 6; four of the published networks' 1024 maps of 14 x 14
        monkeypatch.setattr(roi_heads, "CPU_GROUP", 30 * 256 * 6 * 6)
        [small] = detector.predict_boxes([picture(0)], [geometry(96, 128)], [boxes])
        assert groups[2:] == [30, 30, 30, 10]
    torch.testing.assert_close(
        small.features, large.features, atol=1e-4 * large.features.abs().max().item(), rtol=0
    )


def test_images_of_different_shapes_are_refused(detector):
    with pytest.raises(ValueError, match="one shape"):
        detector([picture(0), picture(0, 128, 96)], [geometry(96, 128)] * 2)


def test_no_proposal_means_the_whole_image(detector, monkeypatch):
    def nothing(batch, maps, targets):
        empty = Instances((96, 128))
        empty.proposal_boxes = Boxes(torch.empty(0, 4))
        return [empty], {}

    monkeypatch.setattr(detector.model.proposal_generator, "forward", nothing)
    [found] = detector([picture(0)], [geometry(48, 64)])
    assert found.boxes.tolist() == [[0.0, 0.0, 64.0, 48.0]]
    assert found.features.shape == (1, detector.dim)


@pytest.mark.parametrize("path", sorted(config_folder("extract").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_is_built(path):
    cfg = load_config(path.stem)
    model = build_network(cfg, None, torch.device("cpu"))
    assert model.roi_heads.box_predictor.cls_score.out_features == cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1


def test_the_published_network_has_the_published_names_and_shapes():
    shapes = {
        "backbone.stem.conv1.weight": (64, 3, 7, 7),
        "backbone.res4.22.conv3.norm.running_var": (1024,),
        "proposal_generator.rpn_head.conv.weight": (512, 1024, 3, 3),
        "proposal_generator.rpn_head.objectness_logits.weight": (12, 512, 1, 1),
        "roi_heads.res5.0.shortcut.weight": (2048, 1024, 1, 1),
        "roi_heads.box_predictor.cls_score.weight": (1601, 2048),
        "roi_heads.box_predictor.bbox_pred.weight": (6400, 2048),
        "roi_heads.box_predictor.cls_embedding.weight": (1601, 256),
        "roi_heads.box_predictor.fc_attr.weight": (512, 2304),
        "roi_heads.box_predictor.attr_score.weight": (401, 512),
    }
    state = build_network(load_config("butd_r101_airsplay"), None, torch.device("cpu")).state_dict()
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  NO_SUCH_KEY: 1\n", "NO_SUCH_KEY"),
        ("MODEL:\n  MASK_ON: [1, 2]\n", "MASK_ON"),
        ("MODEL: [\n", r"\.yaml"),
        ("just text", r"\.yaml"),
        ("", r"\.yaml"),
        ("MODEL: null\n", r"\.yaml"),
        ("_BASE_: absent.yaml\n", "_BASE_: expected a file on this machine, found 'absent.yaml'"),
        ("MODEL: !!python/object/apply:os.mkdir [made-by-yaml]\n", "python/object"),
        ("INPUT:\n  RESIZE: nearest\n", "INPUT.RESIZE is 'nearest', expected caffe or torch or pillow"),
        ("SOLVER:\n  OPTIMIZER: sgd\n", "SOLVER.OPTIMIZER is 'sgd', expected SGD or AdamW"),
        ("MODEL:\n  ROI_HEADS:\n    NAME: Res5ROIHeads\n", "MODEL.ROI_HEADS.NAME is 'Res5ROIHeads'"),
        (
            "MODEL:\n  PROPOSAL_GENERATOR:\n    NAME: CaffeRPN\n",
            "ANCHOR_GENERATOR.NAME is 'DefaultAnchorGenerator'",
        ),
        ("MODEL:\n  ROI_ATTRIBUTE_HEAD:\n    NONE: last\n", "NONE is 'last', expected dropped or counted"),
        ("TEST:\n  REGIONS: [5, 2]\n", r"TEST.REGIONS is \[5, 2\]"),
        ("MODEL:\n  WEIGHTS: x.pkl\n", "MODEL.WEIGHTS is not read here"),
        ("_BASE_: http://127.0.0.1:9/base.yaml\n", "_BASE_|base"),
        ("_BASE_: /etc/hostname\n", "expected keys and values"),
        ("_BASE_: ../base.yaml\n", "_BASE_|base"),
        ("_BASE_: ~/base.yaml\n", "_BASE_|base"),
        ("_BASE_: wrong.yaml\n", "more than 4 files"),
        ("_BASE_: [wrong.yaml]\n", "_BASE_|base"),
        ("MODEL: &a\n  X: *a\n", "aliases"),
        ("MODEL: " + "[" * 3000, "nested"),
        ("TEST:\n  REGIONS: " + "9" * 5000, r"wrong\.yaml"),
        ("TEST:\n  REGIONS: '" + "(" * 5000 + "'", r"wrong\.yaml"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_runs_nothing(tmp_path, text, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(str(tmp_path / "wrong.yaml"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made-by-yaml").exists()


def test_an_unknown_configuration_names_the_shipped_ones():
    with pytest.raises(InputError, match="butd_r101_airsplay, butd_r101_caffe"):
        load_config("nothing")


def test_provenance_does_not_tell_machines_apart(scenes_config):
    moved = with_values(scenes_config, device="cuda:3", seed=5, output="elsewhere")
    assert provenance_text(moved) == provenance_text(scenes_config)
