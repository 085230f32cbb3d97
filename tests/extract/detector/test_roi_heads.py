import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torchvision.ops import roi_align

from extract.detector.backbone import CaffeStem
from extract.detector.roi_heads import AttributePredictor, BUTDROIHeads

DIM, CLASSES, ATTRIBUTES = 16, 3, 5


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return AttributePredictor(
        ShapeSpec(channels=DIM, height=1, width=1),
        num_attributes=ATTRIBUTES,
        none="dropped",
        attribute_weight=1.5,
        num_classes=CLASSES,
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
    ).double()


def loop_attribute_scores(predictor, feature, label):
    """The attribute layers for one region, a number at a time."""
    joint = [*feature.tolist(), *predictor.cls_embedding.weight[label].tolist()]
    hidden = [
        max(0.0, sum(w * x for w, x in zip(row, joint, strict=True)) + bias)
        for row, bias in zip(predictor.fc_attr.weight.tolist(), predictor.fc_attr.bias.tolist(), strict=True)
    ]
    return [
        sum(w * x for w, x in zip(row, hidden, strict=True)) + bias
        for row, bias in zip(predictor.attr_score.weight.tolist(), predictor.attr_score.bias.tolist(), strict=True)
    ]


def test_attributes_come_from_the_feature_and_the_class(predictor):
    features = torch.randn(4, DIM, dtype=torch.double)
    labels = torch.tensor([0, 2, CLASSES, 1])
    expected = [loop_attribute_scores(predictor, f, c) for f, c in zip(features, labels.tolist(), strict=True)]
    torch.testing.assert_close(
        predictor.attribute_logits(features, labels), torch.tensor(expected, dtype=torch.double)
    )


def proposals_of(labels, attributes):
    instances = Instances((100, 100))
    instances.gt_classes = torch.tensor(labels)
    if attributes is not None:
        instances.gt_attributes = torch.tensor(attributes, dtype=torch.double)
    return instances


def test_attribute_loss_is_averaged_over_attributes_then_objects(predictor):
    features = torch.randn(5, DIM, dtype=torch.double)
    first = proposals_of([1, CLASSES, 0], [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    second = proposals_of([2, CLASSES], [[0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    losses = []
    for feature, label, wanted in ((features[0], 1, [0, 2]), (features[2], 0, [4])):  # the others do not count
        scores = loop_attribute_scores(predictor, feature, label)[:ATTRIBUTES]
        total = math.log(sum(math.exp(score) for score in scores))
        losses.append(sum(total - scores[attribute] for attribute in wanted) / len(wanted))
    loss = predictor.attribute_loss(features, [first, second])
    assert loss.item() == pytest.approx(1.5 * sum(losses) / 2)


def test_a_batch_without_attributes_costs_nothing(predictor):
    features = torch.randn(2, DIM, dtype=torch.double, requires_grad=True)
    loss = predictor.attribute_loss(features, [proposals_of([CLASSES, CLASSES], None)])
    loss.backward()
    assert loss.item() == 0
    assert features.grad.abs().max() == 0


def test_regions_are_described_from_their_own_pixels_alone(detector):
    model = detector.model
    maps = {"res4": torch.randn(2, 256, 10, 12)}
    boxes = [
        torch.tensor([[3.0, 4.0, 50.0, 60.0], [0.0, 0.0, 20.0, 90.0]]),
        torch.tensor([[8.0, 8.0, 100.0, 70.0]]),
    ]
    with torch.inference_mode():
        outputs = model.roi_heads.predict_regions(maps, [Boxes(b) for b in boxes])
        row = 0
        for image, image_boxes in enumerate(boxes):
            for box in image_boxes:
                rois = torch.cat([torch.tensor([0.0]), box])[None]
                size = model.roi_heads.pooler.output_size
                pooled = roi_align(maps["res4"][image : image + 1], rois, size, 1 / 16, aligned=True)
                feature = model.roi_heads.res5(pooled).mean(dim=(2, 3))[0]
                torch.testing.assert_close(outputs.features[row], feature, atol=1e-5, rtol=1e-5)
                row += 1
    assert outputs.attribute_probabilities.shape == (3, 13)
    assert outputs.class_logits.shape == (3, 5)


def test_dilated_res5_keeps_its_resolution_and_the_stock_one_halves_it(scenes_config):
    cfg = scenes_config.clone()
    cfg.defrost()
    halving, _ = BUTDROIHeads._build_res5_block(cfg)
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    keeping, _ = BUTDROIHeads._build_res5_block(cfg)
    x = torch.randn(1, 256, 14, 14)
    assert halving(x).shape == (1, 512, 7, 7)
    assert keeping(x).shape == (1, 512, 14, 14)
    assert [block.conv2.dilation for block in keeping.children()] == [(2, 2)] * 3


@pytest.mark.parametrize("side", [224, 225, 226, 227])
def test_caffes_stem_rounds_its_pooling_up_without_padding(side):
    stem = CaffeStem(3, 8, norm="BN").eval()
    x = torch.randn(1, 3, side, side)
    convolved = torch.relu(stem.conv1(x))
    outputs = math.ceil((convolved.shape[2] - 3) / 2) + 1
    pooled = stem(x)
    assert pooled.shape[2:] == (outputs, outputs)
    for i, j in ((0, 0), (outputs - 1, outputs - 1), (5, 0)):
        window = convolved[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        torch.testing.assert_close(pooled[:, :, i, j], window.amax(dim=(2, 3)))
