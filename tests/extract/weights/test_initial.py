import json
import re

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from data_tools.errors import InputError
from extract.build import build_network
from extract.config import load_config, with_values
from extract.weights.initial import place_initial_weights


def network(cfg, seed):
    torch.manual_seed(seed)
    return build_network(cfg, None, torch.device("cpu"))


def short_name(name):
    """A tensor's name in a file that holds a ResNet alone, or None where it is not of the ResNet."""
    short = re.sub(r"^(backbone\.|roi_heads\.(?=res5))", "", name)
    return short if re.match(r"stem|res[2-5]", short) else None


def blob_name(name):
    """Caffe2's name of a Detectron2 ResNet's tensor, by the naming of Detectron's ResNets."""
    *path, kind = name.split(".")
    norm = path[-1] == "norm"
    path = path[:-1] if norm else path
    ends = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    end = f"bn_{ends[kind]}" if norm else "w"
    if path[0] == "stem":
        return f"res_conv1_{end}" if norm else "conv1_w"
    branch = {"conv1": "2a", "conv2": "2b", "conv3": "2c", "shortcut": "1"}[path[2]]
    return f"{path[0]}_{path[1]}_branch{branch}_{end}"


def resnet_of(model, rename, statistics=True):
    state = {}
    for name, tensor in model.state_dict().items():
        short = short_name(name)
        if short and not name.endswith("num_batches_tracked") and (statistics or "running" not in name):
            state[rename(short)] = tensor.clone()
    return state


def save(state, path):
    torch.save(state, path)
    return path


@pytest.mark.parametrize(("kind", "rename"), [("caffe2", blob_name), ("detectron2", str)])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_resnet_finds_backbone_and_res5(scenes_config, tmp_path, kind, rename, statistics):
    source, target = network(scenes_config, 1), network(scenes_config, 2)
    for tensor in source.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0)
    state = resnet_of(source, rename, statistics)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    classifier = {"fc1000_w": torch.ones(9, 9), "fc1000_b": torch.ones(9), "conv1_b": torch.ones(32)}
    path = save({**state, **classifier} if kind == "caffe2" else state, tmp_path / "resnet.pth")
    report = place_initial_weights(target, path)
    wanted = source.state_dict()
    for name, tensor in target.state_dict().items():
        given = short_name(name) is not None and not name.endswith("num_batches_tracked")
        given = given and (statistics or "running" not in name)
        assert torch.equal(tensor, wanted[name] if given else before[name]), name
    assert report.kind == kind
    assert report.placed == len(state)
    tensors = sum(not name.endswith("num_batches_tracked") for name in before)
    assert report.placed + report.random == tensors
    assert len(report.sha256) == 64


def test_torchvisions_resnet_gives_torchvisions_features(tmp_path):
    cfg = load_config("vg_r50").clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    model = network(cfg, 0)
    torch.manual_seed(3)
    published = torchvision.models.resnet50(weights=None).eval()
    for name, tensor in published.state_dict().items():
        if re.search(r"(bn\d|downsample\.1)\.", name) and tensor.is_floating_point():
            tensor.uniform_(0.3, 0.9)
    save_file(published.state_dict(), tmp_path / "resnet50.safetensors")
    report = place_initial_weights(model, tmp_path / "resnet50.safetensors")
    assert (report.kind, report.placed) == ("torchvision", 53 * 5)
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        y = published.maxpool(published.relu(published.bn1(published.conv1(x))))
        res4 = published.layer3(published.layer2(published.layer1(y)))
        found = model.backbone(x)["res4"]
        torch.testing.assert_close(found, res4, rtol=1e-4, atol=1e-4 * res4.abs().max().item())
        res5 = published.layer4(res4)
        found = model.roi_heads.res5(res4)
        torch.testing.assert_close(found, res5, rtol=1e-4, atol=1e-4 * res5.abs().max().item())


def test_a_whole_detector_is_taken_whole(scenes_config, tmp_path):
    source, target = network(scenes_config, 1), network(scenes_config, 2)
    report = place_initial_weights(target, save({"model": source.state_dict()}, tmp_path / "model_final.pth"))
    wanted = source.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in target.state_dict().items())
    assert (report.kind, report.random) == ("detector", 0)
    assert json.loads(json.dumps(report.as_json()))["kind"] == "detector"


def test_a_detector_of_other_classes_is_refused(scenes_config, tmp_path):
    state = network(scenes_config, 1).state_dict()
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(9, 512)
    with pytest.raises(InputError, match=r"wrong shape: roi_heads.box_predictor.cls_score.weight \(9, 512\)"):
        place_initial_weights(network(scenes_config, 2), save(state, tmp_path / "w.pth"))


def test_a_resnet_that_is_not_the_networks_is_refused(scenes_config, tmp_path):
    state = resnet_of(network(scenes_config, 1), blob_name)
    del state["res3_1_branch2b_w"]
    state["res4_22_branch2a_w"] = torch.zeros(3)  # of a deeper one
    state["res5_0_branch1_w"] = torch.zeros(7, 2)
    target = network(scenes_config, 2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(InputError) as caught:
        place_initial_weights(target, save(state, tmp_path / "w.pth"))
    message = str(caught.value)
    assert "missing: backbone.res3.1.conv2.weight;" in message
    assert "unexpected: backbone.res4.22.conv1.weight;" in message
    assert "wrong shape: roi_heads.res5.0.shortcut.weight (7, 2), expected (512, 256, 1, 1)" in message
    assert "\n" not in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_something_else_is_refused(scenes_config, tmp_path):
    path = save({"encoder.weight": torch.zeros(2)}, tmp_path / "bert.pth")
    with pytest.raises(InputError, match=r"expected a detector, or a ResNet of Caffe2.*found encoder.weight"):
        place_initial_weights(network(with_values(scenes_config, seed=1), 0), path)
