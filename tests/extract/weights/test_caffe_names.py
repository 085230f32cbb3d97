"""Caffe's weight files in the network, against the layers of test.prototxt by PyTorch's functions."""

import json
import re
import subprocess
import sys
from functools import cache

import butd_files as files
import butd_reference as reference
import caffe_writer as caffe
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caffe_writer import Layer, floats

from data_tools.errors import InputError
from extract.build import build_network
from extract.config import load_config
from extract.weights.caffe_names import read_caffe_weights
from extract.weights.reading import read_weights

CPU = torch.device("cpu")
BLOCKS = {"2": ["a", "b", "c"], "3": ["a", "b1", "b2", "b3"], "4": ["a", *(f"b{n}" for n in range(1, 23))]}


def narrow_config():
    cfg = load_config("butd_r101_caffe").clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.freeze()
    return cfg


@cache
def published():
    """Narrow random layers with the names and the structure of the published file."""
    state = files.random_state(101, stem=16, width=8, out=32, rpn=512, anchors=12)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.3, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 3, generator=generator)
    return caffe.layers_of(files.to_milvlg_caffe(state))


class CaffeNet:
    """Layers by their names in test.prototxt, in float64."""

    def __init__(self, layers):
        self.blobs = {layer.name: [torch.from_numpy(b).double() for b in layer.blobs] for layer in layers}

    def convolve(self, name, x, stride=1, pad=0, dilation=1):
        weight, *bias = self.blobs[name]
        return F.conv2d(x, weight, bias[0] if bias else None, stride, pad, dilation)

    def normalise(self, bn, scale, x):
        """BatchNorm with use_global_stats, then Scale with bias_term."""
        mean, variance, factor = self.blobs[bn]
        x = (x - (mean / factor).view(-1, 1, 1)) / torch.sqrt((variance / factor).view(-1, 1, 1) + 1e-5)
        gamma, beta = self.blobs[scale]
        return x * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1)

    def branch(self, name, x, **how):
        return self.normalise(f"bn{name}", f"scale{name}", self.convolve(f"res{name}", x, **how))

    def block(self, name, x, stride=1, dilation=1):
        y = self.branch(f"{name}_branch2a", x, stride=stride).relu()
        y = self.branch(f"{name}_branch2b", y, pad=dilation, dilation=dilation).relu()
        y = self.branch(f"{name}_branch2c", y)
        shortcut = self.branch(f"{name}_branch1", x, stride=stride) if name.endswith("a") else x
        return (shortcut + y).relu()

    def res4(self, data):
        x = self.normalise("bn_conv1", "scale_conv1", self.convolve("conv1", data, stride=2, pad=3)).relu()
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for stage, blocks in BLOCKS.items():
            for place in blocks:
                x = self.block(stage + place, x, stride=2 if place == "a" and stage != "2" else 1)
        return x

    def rpn(self, res4):
        """Foreground probabilities (12, h, w) and moves (48, h, w)."""
        x = self.convolve("rpn_conv/3x3", res4, pad=1).relu()
        scores = self.convolve("rpn_cls_score", x)[0]
        return scores.unflatten(0, (2, 12)).softmax(dim=0)[1], self.convolve("rpn_bbox_pred", x)[0]

    def regions(self, pooled):
        """pool5, cls_prob, bbox_pred and attr_prob of (R, C, 14, 14)."""
        x = pooled
        for place in "abc":
            x = self.block(f"5{place}", x, dilation=2)
        pool5 = x.mean(dim=(2, 3))
        scores = F.linear(pool5, *self.blobs["cls_score"])
        [embedding] = self.blobs["cls_embedding"]
        joint = torch.cat([pool5, embedding[scores.argmax(dim=1)]], dim=1)
        attributes = F.linear(F.linear(joint, *self.blobs["fc_attr"]).relu(), *self.blobs["attr_score"])
        return pool5, scores.softmax(1), F.linear(pool5, *self.blobs["bbox_pred"]), attributes.softmax(1)


def near(found, expected):
    return (found.double() - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("form", ["packed", "double", "legacy", "diff"])
def test_the_loaded_network_computes_what_caffes_layers_compute(tmp_path, form):
    path = caffe.write(tmp_path / "w.bin", published(), form)  # its contents say what it is
    network = build_network(narrow_config(), path, CPU)
    net = CaffeNet(published())
    data = torch.randn(1, 3, 150, 190, generator=torch.Generator().manual_seed(1)) * 50
    with torch.inference_mode():
        [found] = network.backbone(data).values()
        expected = net.res4(data.double())
        assert near(found, expected)

        [logits], [moves] = network.proposal_generator.rpn_head([expected.float()])
        probabilities, caffe_moves = net.rpn(expected)
        assert near(logits[0].sigmoid(), probabilities)
        assert near(moves[0], caffe_moves)

        boxes = np.array([[0, 0, 189, 149], [20, 30, 110, 90], [100, 10, 180, 140]])
        pooled = reference.roi_pool(expected[0], boxes, 14)
        pool5, classes, deltas, attributes = net.regions(pooled)
        features = network.roi_heads.res5(pooled.float()).mean(dim=(2, 3))
        assert near(features, pool5)
        predictor = network.roi_heads.box_predictor
        scores, found_deltas = predictor(pool5.float())
        assert near(scores.softmax(1), classes.roll(-1, 1))
        units = found_deltas.new_tensor([10, 10, 5, 5]).repeat(1600)
        assert near(found_deltas / units, deltas[:, 4:])
        found_attributes = predictor.attribute_probabilities(pool5.float(), scores.argmax(dim=1))
        assert near(found_attributes, attributes[:, 1:])
    assert probabilities.std() > 0.1
    assert classes.argmax(1).tolist() != [0, 0, 0]


def test_every_layer_of_the_published_network_has_a_place(tmp_path):
    """The names come from the prototxt, spelled out once more."""
    names = {"conv1", "bn_conv1", "scale_conv1", "rpn_conv/3x3", "rpn_cls_score", "rpn_bbox_pred"}
    names |= {"cls_score", "bbox_pred", "cls_embedding", "fc_attr", "attr_score"}
    for stage, blocks in {**BLOCKS, "5": ["a", "b", "c"]}.items():
        for place in blocks:
            for branch in ("2a", "2b", "2c", *("1" for _ in range(place == "a"))):
                names |= {f"{prefix}{stage}{place}_branch{branch}" for prefix in ("res", "bn", "scale")}
    assert {layer.name for layer in published() if layer.blobs} == names
    tensors = read_caffe_weights(caffe.write(tmp_path / "w", published()))
    state = files.to_milvlg_caffe(files.random_state(101, stem=16, width=8, out=32, rpn=512, anchors=12))
    assert tensors.keys() == state.keys()


def with_layer(path, of, **changes):
    """The published file with one layer changed, or without it (blobs=[])."""
    layers = [Layer(*vars(layer).values()) for layer in published()]
    [layer] = [layer for layer in layers if layer.name == of]
    for key, value in changes.items():
        setattr(layer, key, value)
    return caffe.write(path, layers)


def statistics(path):
    state = read_weights(path)
    return [state[f"backbone.res2.0.conv1.norm.{kind}"] for kind in ("running_mean", "running_var")]


def test_the_scale_factor_divides_and_zero_makes_zeros(tmp_path):
    mean, variance = np.arange(8, dtype=np.float32), np.arange(1, 9, dtype=np.float32)
    for factor, divisor in ((4, 4), (0, np.inf)):
        blobs = [mean, variance, floats(factor)]
        found = statistics(with_layer(tmp_path / "w", "bn2a_branch2a", blobs=blobs))
        assert np.array_equal(found[0], mean / divisor)
        assert np.array_equal(found[1], variance / divisor)


@pytest.mark.parametrize("eps", [None, 1e-5, 1e-3, 1e-7])
def test_another_eps_is_in_the_variance(tmp_path, eps):
    variance = np.linspace(0.01, 2, 8, dtype=np.float32)
    blobs = [np.zeros(8, np.float32), variance, floats(1)]
    _, found = statistics(with_layer(tmp_path / "w", "bn2a_branch2a", blobs=blobs, eps=eps))
    if eps in (None, 1e-5):
        assert np.array_equal(found, variance)
    np.testing.assert_allclose(found + 1e-5, variance + (eps or 1e-5), rtol=1e-6)


ONES = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("blobs", "reason"),
    [
        ([ONES, ONES], r"expected mean, variance and scale factor of .*, found blobs of \(8,\), \(8,\)$"),
        ([ONES, ONES[:3], ONES[:1]], "expected mean, variance and scale factor"),
        ([ONES, ONES, ONES], "expected mean, variance and scale factor"),
        ([ONES, -ONES, ONES[:1]], "the mean or variance of a batch norm is not finite, or the variance negative"),
        ([ONES, ONES, -ONES[:1]], "the variance negative"),
        ([ONES, ONES, floats(1e-44)], "is not finite"),
    ],
)
def test_what_is_no_batch_norm_is_one_line(tmp_path, blobs, reason):
    path = with_layer(tmp_path / "w", "bn2a_branch2a", blobs=blobs)
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: layer 'bn2a_branch2a': .*{reason}") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("scale4b7_branch2a", {"blobs": []}, "missing: backbone.res4.7.conv1.norm.weight, .*norm.bias"),
        ("bn4b7_branch2a", {"blobs": []}, "missing: backbone.res4.7.conv1.norm.running_mean"),
        ("scale4b7_branch2a", {"blobs": [ONES]}, "missing: .*bias; wrong shape: .*res4.7.conv1.norm.weight"),
        (
            "res5c_branch2b",
            {"name": "res5d_branch2b"},
            "missing: roi_heads.res5.2.conv2.weight; unexpected: .*.3.conv2",
        ),
        ("fc_attr", {"name": "fc7"}, "unexpected: fc7.weight, fc7.bias"),
        ("fc_attr", {"blobs": [ONES, ONES, ONES]}, "layer 'fc_attr': expected a weight and a bias, found 3 blobs"),
        ("rpn_conv/3x3", {"blobs": [ONES]}, r"wrong shape: proposal_generator.rpn_head.conv.weight \(8,\)"),
        ("res3b2_branch2a", {"name": "res3b1_branch2a"}, "layer 'res3b1_branch2a': there are two of this name"),
        ("res3b2_branch2a", {"name": "res3b_branch2a"}, "'res3b_branch2a': another layer has its place"),
    ],
)
def test_what_is_not_the_published_network_is_listed(tmp_path, name, changes, reason):
    with pytest.raises(InputError, match=reason) as caught:
        build_network(narrow_config(), with_layer(tmp_path / "w", name, **changes), CPU)
    assert "\n" not in str(caught.value)


READ = """
import json, re, sys, time
from pathlib import Path
from extract.weights.reading import read_weights
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before, start = peak(), time.perf_counter()
state = read_weights(Path(sys.argv[1]))
print(json.dumps([time.perf_counter() - start, peak() - before, len(state)]))
"""


@pytest.mark.slow
def test_a_file_of_full_size_is_read_in_seconds_and_into_memory_once(tmp_path):
    """The published network with gradients, 525 MB, half of them weights; `-s` prints seconds and memory."""
    layers = caffe.layers_of(files.to_milvlg_caffe(files.random_state()))
    path = caffe.write(tmp_path / "w.caffemodel", layers, "diff")
    weights = sum(blob.nbytes for layer in layers for blob in layer.blobs)
    line = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    seconds, memory, tensors = json.loads(done.stdout)
    size = path.stat().st_size
    print(
        f"{size / 1e6:.0f} MB, {weights / 1e6:.0f} MB of weights: {seconds:.2f} s, {memory / 1e6:.0f} MB at most"
    )
    assert tensors == 535
    assert seconds < 30
    assert memory < 1.6 * weights
    network = build_network(load_config("butd_r101_caffe"), path, CPU)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 0.95 * weights < 4 * count < weights
