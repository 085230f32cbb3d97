import copy

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from extract.build import build_network
from extract.config import load_config
from extract.detector import network as room
from extract.detector.network import KeptAnchors
from extract.detector.rpn import CaffeAnchorGenerator

CPU = torch.device("cpu")
CONFIGS = {"butd_r101_caffe": CaffeAnchorGenerator, "scenes": DefaultAnchorGenerator}


def maps_of(*sides):
    return [torch.zeros(2, 5, *sides)]


@pytest.fixture(scope="module", params=CONFIGS)
def anchors(request):
    """Those that a network keeps, the maps that some were made for, and the generator that made them."""
    kept = build_network(load_config(request.param), None, CPU).proposal_generator.anchor_generator
    made, make = [], kept._make

    def counted(maps):
        made.append(maps)
        return make(maps)

    kept._make = counted
    generator = make.__self__
    assert type(generator) is CONFIGS[request.param]
    return kept, made, generator


def test_anchors_are_made_once_per_shape_and_are_the_generators(anchors):
    kept, made, generator = anchors
    assert isinstance(kept, KeptAnchors)
    made.clear()
    for sides in ((7, 9), (7, 9), (9, 7), (7, 9)):
        with torch.inference_mode():
            [own] = kept(maps_of(*sides))
        cell = next(generator.cell_anchors.buffers())
        stride, offset = generator.strides[0], generator.offset
        expected = [
            [cell[a, 0] + x, cell[a, 1] + y, cell[a, 2] + x, cell[a, 3] + y]
            for y in [(row + offset) * stride for row in range(sides[0])]
            for x in [(column + offset) * stride for column in range(sides[1])]
            for a in range(len(cell))
        ]
        assert torch.equal(own.tensor, torch.tensor(expected))
        assert not own.tensor.is_inference()  # another pass may need gradients
    assert len(made) == 2


def test_the_anchors_of_few_shapes_are_kept_the_latest_used_ones(anchors, monkeypatch):
    kept, made, _ = anchors
    monkeypatch.setattr(room, "SHAPES_OF_ANCHORS", 3)
    kept._kept.clear()
    made.clear()
    for side in (1, 2, 3, 1, 4, 1, 3, 2):
        kept(maps_of(side, side))
    assert [one.shape[-1] for [one] in made] == [1, 2, 3, 4, 2]
    assert len(kept._kept) == 3


def test_a_copy_has_anchors_of_its_own_where_the_network_is_moved(anchors):
    kept = anchors[0]
    moved = copy.deepcopy(build_network(load_config("scenes"), None, CPU)).to("meta")
    [boxes] = moved.proposal_generator.anchor_generator(maps_of(3, 4))
    assert boxes.tensor.device.type == "meta"
    [boxes] = kept(maps_of(3, 4))
    assert boxes.tensor.device == CPU
