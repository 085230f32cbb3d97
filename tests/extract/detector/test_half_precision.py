"""The network with batch norm folded and half-precision weights, against its float64 forward pass."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from extract.build import build_detector, build_network
from extract.choices import Precision
from extract.config import load_config
from extract.detector import half_precision
from extract.detector.backbone import CaffeStem
from extract.detector.detector import Detector
from extract.detector.half_precision import FoldedConvolution, _converted, _fuses, folded, in_half_precision
from extract.detector.precision import HALF_TYPES, precision_context
from extract.detector.resizing import Geometry

CPU = torch.device("cpu")
NARROW = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
}
GROUPS = {"MODEL.RESNETS.NUM_GROUPS": 4, "MODEL.RESNETS.WIDTH_PER_GROUP": 4}
CONFIGS = {  # dilated, strided, groups, norms before the convolutions
    "butd_r101_caffe": NARROW,
    "vg_r101": NARROW,
    "vinvl_x152": NARROW | GROUPS,
    "butd_r152_caffe": NARROW,
}


def narrow(name):
    cfg = load_config(name).clone()
    cfg.defrost()
    for key, value in CONFIGS[name].items():
        cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg


def randomise(module, seed):
    """Statistics of all batch norms: those of what reaches them, and random scales; branches add little."""
    rng = torch.Generator().manual_seed(seed)

    def draw(norm, inputs):
        [maps] = inputs
        norm.running_mean.copy_(maps.mean(dim=(0, 2, 3)))
        norm.running_var.copy_(maps.var(dim=(0, 2, 3)) + 1e-3)
        norm.weight.data.copy_((torch.rand(norm.num_features, generator=rng) + 0.5) * scales[norm])
        norm.bias.data.copy_(torch.randn(norm.num_features, generator=rng) * 0.3)

    norms = {name: part for name, part in module.named_modules() if isinstance(part, FrozenBatchNorm2d)}
    scales = {norm: 0.3 if name.endswith(("conv3.norm", "norm3")) else 1.0 for name, norm in norms.items()}
    return [norm.register_forward_pre_hook(draw) for norm in scales]


def stages(network, pixels):
    """The map, res5 of a part of it averaged, and the hidden layer of the proposals, all in float64."""
    maps = network.backbone(pixels)["res4"]
    regions = network.roi_heads.res5(maps[:, :, :6, :8]).double().mean(dim=(2, 3))
    return maps.double(), regions, network.proposal_generator.rpn_head.conv(maps).double()


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request):
    """Three narrow networks of a configuration with an input each."""
    pairs = []
    for seed in range(3):
        torch.manual_seed(seed)
        network, pixels = build_network(narrow(request.param), None, CPU), torch.randn(1, 3, 96, 128) * 50
        hooks = randomise(network, seed)
        with torch.no_grad():
            stages(network, pixels)
        for hook in hooks:
            hook.remove()
        pairs.append((network, pixels))
    return pairs


@torch.no_grad()
def test_folding_changes_nothing_but_rounding(trained):
    network, pixels = trained[0]
    doubled = copy.deepcopy(network).double()
    expected = stages(doubled, pixels.double())
    found = stages(in_half_precision(doubled, torch.double), pixels.double())
    assert max(map(error, found, expected)) < 1e-12
    single = in_half_precision(network, torch.float32)
    assert max(map(error, stages(single, pixels), expected)) < 1e-4


@pytest.mark.parametrize("precision", HALF_TYPES)
@torch.no_grad()
def test_the_error_is_no_larger_than_under_autocast_alone(trained, precision):
    """Geometric mean of three networks, whose single errors are a matter of chance to a tenth of them."""
    ratios = []
    for network, pixels in trained:
        expected = stages(copy.deepcopy(network).double(), pixels.double())
        half = in_half_precision(network, HALF_TYPES[precision])
        with precision_context(precision, "cpu"):
            both = zip(stages(half, pixels), stages(network, pixels), expected, strict=True)
            ratios += [error(found, exact) / error(before, exact) for found, before, exact in both]
    assert 0.5 < math.exp(np.log(ratios).mean()) < 1.1, ratios


def relu_of(maps, weight, bias, *settings):
    """As cuDNN computes: in float32, rounded once."""
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(maps.float(), weight.float(), bias.float(), *settings).relu().to(maps.dtype)


def relu_of_sum(maps, weight, added, factor, bias, *settings):
    with torch.autocast("cpu", enabled=False):
        product = F.conv2d(maps.float(), weight.float(), bias.float(), *settings)
        return (product + factor * added.float()).relu().to(maps.dtype)


@torch.no_grad()
def test_with_cudnns_operators_the_error_is_no_larger_either(trained, monkeypatch):
    """Of their arithmetic on a CPU; they take the bias in half precision."""
    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu_of)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", relu_of_sum)
    ratios = []
    for network, pixels in trained:
        expected = stages(copy.deepcopy(network).double(), pixels.double())
        half = in_half_precision(network, torch.bfloat16)
        fused = [layer for layer in half.modules() if isinstance(layer, FoldedConvolution) and layer._relu]
        assert len(fused) % 3 == 1  # of blocks three each, and the hidden layer of the proposals
        for layer in fused:
            layer._fuses, layer.bias = True, nn.Parameter(layer.bias.bfloat16(), requires_grad=False)
        with precision_context(Precision.BF16, "cpu"):
            both = zip(stages(half, pixels), stages(network, pixels), expected, strict=True)
            ratios += [error(found, exact) / error(before, exact) for found, before, exact in both]
    assert 0.5 < math.exp(np.log(ratios).mean()) < 1.1, ratios


def loop_convolution(x, weight, bias, norm, stride, padding, dilation, groups):
    """(C', h', w') of a convolution and a batch norm, a number at a time; for one image (C, h, w)."""
    _, height, width = x.shape
    own, side = weight.shape[1], weight.shape[2]
    reach = dilation * (side - 1) + 1
    sizes = [(length + 2 * padding - reach) // stride + 1 for length in (height, width)]
    result = np.zeros((len(weight), *sizes))
    for place in np.ndindex(*result.shape):
        channel, row, column = place
        total = bias[channel]
        for c, i, j in np.ndindex(own, side, side):
            y, x_ = row * stride - padding + i * dilation, column * stride - padding + j * dilation
            if 0 <= y < height and 0 <= x_ < width:
                total += weight[channel, c, i, j] * x[channel // (len(weight) // groups) * own + c, y, x_]
        mean, variance, scale, shift = (numbers[channel] for numbers in norm)
        result[place] = (total - mean) / math.sqrt(variance + 1e-5) * scale + shift
    return result


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize(
    ("side", "stride", "padding", "dilation", "groups"), [(1, 2, 0, 1, 1), (3, 1, 2, 2, 1), (3, 2, 1, 1, 2)]
)
def test_a_folded_layer_is_the_loops(side, stride, padding, dilation, groups, norm, relu):
    rng = np.random.default_rng(0)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = Conv2d(4, 6, side, **settings, norm=get_norm(norm, 6)).double().eval()
    statistics = [rng.normal(size=6), rng.uniform(0.1, 2, 6), rng.normal(size=6), rng.normal(size=6)]
    names = ("running_mean", "running_var", "weight", "bias")
    for name, numbers in zip(names, statistics, strict=True):
        getattr(layer.norm, name).data.copy_(torch.from_numpy(numbers))
    x = rng.normal(size=(4, 5, 6))
    weight, bias = (tensor.detach().numpy() for tensor in (layer.weight, layer.bias))
    expected = loop_convolution(x, weight, bias, statistics, stride, padding, dilation, groups)
    added = rng.normal(size=expected.shape)
    with torch.no_grad():
        own = FoldedConvolution(layer, *folded(layer), torch.double, relu)
        found, summed = (
            own(torch.from_numpy(x)[None]),
            own(torch.from_numpy(x)[None], torch.from_numpy(added)[None]),
        )
    for result, exact in ((found, expected), (summed, expected + added)):
        np.testing.assert_allclose(result[0].numpy(), exact.clip(min=0) if relu else exact, atol=1e-12)


@pytest.mark.parametrize("stem", [BasicStem, CaffeStem])
@pytest.mark.parametrize("side", [64, 65, 66, 67])
@torch.no_grad()
def test_a_stem_takes_maxima_first_to_the_same_end(stem, side):
    torch.manual_seed(0)
    own, pixels = stem(3, 8, norm="FrozenBN").double(), torch.randn(2, 3, side, side, dtype=torch.double)
    [hook] = randomise(own, 0)
    own(pixels)
    hook.remove()
    torch.testing.assert_close(_converted(copy.deepcopy(own), torch.double)(pixels), own(pixels))


@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
@pytest.mark.parametrize("kind", [BasicBlock, BottleneckBlock])
@torch.no_grad()
def test_other_norms_stay(kind, norm):
    """Of a group norm nothing is folded; the weights are converted all the same."""
    torch.manual_seed(0)
    sizes = {"bottleneck_channels": 32} if kind is BottleneckBlock else {}
    block, maps = kind(32, 64, stride=2, norm=norm, **sizes).eval(), torch.randn(1, 32, 10, 12)
    half = _converted(copy.deepcopy(block), torch.bfloat16)
    with precision_context(Precision.BF16, "cpu"):
        found, before = half(maps), block(maps)
    expected = block(maps)
    assert error(found.float(), expected) < 0.02 > error(before.float(), expected)
    layers = [layer for layer in half.modules() if isinstance(layer, nn.Conv2d)]
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert {type(layer) for layer in layers} == ({Conv2d} if norm == "GN" else {FoldedConvolution})


class Conversions(TorchDispatchMode):
    """The shapes of all tensors that are converted to half precision."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        converts = operator.overloadpacket.__name__ in ("to", "_to_copy") and args[0].dtype != result.dtype
        if converts and result.dtype in HALF_TYPES.values():
            self.shapes.append(tuple(result.shape))
        return result


def test_a_detector_has_half_weights_of_its_own_from_the_start(scenes_config):
    exact = build_detector(scenes_config, None, CPU)
    before = copy.deepcopy(exact.model.state_dict())
    detector = Detector(exact.model, exact.resizing, exact.inclusive, Precision.BF16)
    assert exact.model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in exact.model.state_dict().items())
    pixels = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    place = Geometry((96, 128), (96, 128), (1.0, 1.0))
    boxes = torch.tensor([[4.0, 4.0, 60.0, 70.0], [30.0, 20.0, 120.0, 90.0]])
    with Conversions() as conversions:
        [found] = detector.predict_boxes([pixels], [place], [boxes])
    predictor = detector.model.roi_heads.box_predictor
    joint = (2, detector.dim + predictor.cls_embedding.embedding_dim)
    features = (2, detector.dim)
    assert sorted(conversions.shapes) == sorted([(1, 3, 96, 128), (2, 256, 6, 6), features, features, joint])
    with torch.no_grad():  # as when other weights are loaded, or training goes on
        for layer in exact.model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.zero_()
    [again] = detector.predict_boxes([pixels], [place], [boxes])
    assert torch.equal(again.features, found.features)
    assert len(detector.detect(pixels, place).pred_boxes) > 0
    classes, attributes = detector.classify(found.features)
    assert torch.equal(classes, found.class_probabilities)
    assert torch.equal(attributes, found.attribute_probabilities)


def not_a_number(maps, weight, bias, *settings):
    return relu_of(maps, weight, bias, *settings) + 0 * torch.nan


def unable(*arguments):
    raise RuntimeError("GET was unable to find an engine to execute this computation")


@pytest.mark.parametrize(
    ("convolution", "with_sum", "complaint"),
    [
        (relu_of, relu_of_sum, None),
        (unable, relu_of_sum, "unable to find an engine"),
        (relu_of, unable, "unable to find an engine"),
        (not_a_number, relu_of_sum, "result is wrong"),
        (relu_of, lambda *arguments: relu_of_sum(*arguments) + 0.2, "result is wrong"),
    ],
)
def test_cudnns_operators_are_tried_before_they_are_used(convolution, with_sum, complaint, monkeypatch, recwarn):
    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolution)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", with_sum)
    shape, settings = torch.Size((16, 4, 3, 3)), ((2, 2), (2, 2), (2, 2), 2)
    assert _fuses.__wrapped__(CPU, torch.bfloat16, shape, settings) == (complaint is None)
    messages = [str(warning.message) for warning in recwarn if "detector" in str(warning.message)]
    assert len(messages) == (complaint is not None)
    assert all(complaint in message for message in messages)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", HALF_TYPES)
@torch.no_grad()
def test_a_gpu_has_cudnns_operators_and_the_cpus_result(trained, precision):
    network, pixels = trained[0]
    expected = stages(copy.deepcopy(network).double(), pixels.double())
    on_gpu = copy.deepcopy(network).to("cuda", memory_format=torch.channels_last)
    half = in_half_precision(on_gpu, HALF_TYPES[precision])
    layers = [layer for layer in half.modules() if isinstance(layer, half_precision.FoldedConvolution)]
    assert all(layer._fuses == layer._relu for layer in layers)
    with precision_context(precision, "cuda"):
        found, before = stages(half, pixels.cuda()), stages(on_gpu, pixels.cuda())
    for one, other, exact in zip(found, before, expected, strict=True):
        assert error(one.cpu(), exact) < 1.3 * error(other.cpu(), exact)
