"""Random weights for the reference detector, and the same weights as each publisher would have written them."""

import math
import pickle
from pathlib import Path

import numpy as np
import torch
from butd_reference import BOX_UNITS, Recipe, State, describe, detectron2_anchors, grid

RPN = "proposal_generator.rpn_head"
HEAD = "roi_heads.box_predictor"
ATTRIBUTES = "roi_heads.attribute_predictor"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# How far each prediction shall vary from region to region (standard deviation)
SPREADS = {
    f"{RPN}.objectness_logits": 3.0,
    f"{RPN}.anchor_deltas": 0.3,
    f"{HEAD}.cls_score": 4.0,
    f"{HEAD}.bbox_pred": 1.0,
    f"{HEAD}.fc_attr": 1.0,
    f"{HEAD}.attr_score": 2.5,
    f"{ATTRIBUTES}.fc.0": 1.0,
    f"{ATTRIBUTES}.attr_score": 2.5,
}


def random_state(
    depth: int = 101,
    stem: int = 64,
    width: int = 64,
    out: int = 256,
    rpn: int = 512,
    anchors: int = 12,
    groups: int = 1,
    seed: int = 0,
) -> State:
    """Tensors of 1,600 classes and 400 attributes under airsplay's names.

    Args:
        depth: 50, 101 or 152 layers.
        stem, width, out: channels of the stem, of res2's bottlenecks, of res2.
        rpn: channels of the region proposal layer.
        anchors: at each place.
        groups: of the 3 x 3 convolutions of the bottlenecks.
        seed: of the random numbers.
    """
    rng = torch.Generator().manual_seed(seed)
    state: State = {}

    def draw(name: str, *shape: int, bias: bool = True) -> None:
        inputs = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape, generator=rng) * math.sqrt(2 / inputs)
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=rng) * 0.3

    def draw_convolution(name: str, *shape: int, gain: float = 1.0) -> None:
        draw(name, *shape, bias=False)
        state[f"{name}.norm.weight"] = gain * (0.8 + 0.4 * torch.rand(shape[0], generator=rng))
        state[f"{name}.norm.bias"] = 0.2 * torch.randn(shape[0], generator=rng)
        state[f"{name}.norm.running_mean"] = torch.zeros(shape[0])
        state[f"{name}.norm.running_var"] = torch.ones(shape[0])

    draw_convolution("backbone.stem.conv1", stem, 3, 7, 7)
    channels = stem
    for number, blocks in enumerate(BLOCKS[depth]):
        stage = f"backbone.res{number + 2}" if number < 3 else "roi_heads.res5"
        inside, outside = width << number, out << number
        for block in range(blocks):
            here = f"{stage}.{block}"
            if channels != outside:
                draw_convolution(f"{here}.shortcut", outside, channels, 1, 1)
            draw_convolution(f"{here}.conv1", inside, channels, 1, 1)
            draw_convolution(f"{here}.conv2", inside, inside // groups, 3, 3)
            draw_convolution(f"{here}.conv3", outside, inside, 1, 1, gain=0.4)
            channels = outside
    draw(f"{RPN}.conv", rpn, channels // 2, 3, 3)
    draw(f"{RPN}.objectness_logits", anchors, rpn, 1, 1)
    draw(f"{RPN}.anchor_deltas", 4 * anchors, rpn, 1, 1)
    draw(f"{HEAD}.cls_score", 1601, channels)
    draw(f"{HEAD}.bbox_pred", 6400, channels)
    state[f"{HEAD}.cls_embedding.weight"] = torch.randn(1601, channels // 8, generator=rng)
    draw(f"{HEAD}.fc_attr", channels // 4, channels + channels // 8)
    draw(f"{HEAD}.attr_score", 401, channels // 4)
    return state


def _fit(state: State, name: str, x: torch.Tensor) -> None:
    """Set a layer's numbers so that what leaves it is neither all alike nor beyond measure."""
    if name.endswith((".norm", "_bn")):
        state[f"{name}.running_mean"] = x.mean(dim=(0, 2, 3))
        state[f"{name}.running_var"] = x.var(dim=(0, 2, 3)) + 1e-3
    elif name in SPREADS:
        rows = x.movedim(1, -1).flatten(0, -2)
        weight = state[f"{name}.weight"]
        outputs = rows @ weight.flatten(1).T
        weight *= SPREADS[name] / outputs.std(dim=0).mean()
        jitter = state[f"{name}.bias"]
        state[f"{name}.bias"] = jitter - (rows @ weight.flatten(1).T).mean(dim=0)


def calibrated(recipe: Recipe, state: State, image: np.ndarray) -> State:
    """The weights (changed in place) with batch-norm statistics and biases that suit an image."""
    if recipe.layout == "grid_feats":
        grid(recipe, state, image, 1, calibrate=_fit)
    else:
        describe(recipe, state, image, calibrate=_fit)
    return state


# Conventions


def to_milvlg_caffe(state: State, seed: int = 1) -> State:
    """The same network in MILVLG's Caffe conventions; the anchors go from size by size to ratio by ratio."""
    rng = torch.Generator().manual_seed(seed)
    renamed = {"cls_embedding": "cls_embed", "fc_attr": "attr_linear1", "attr_score": "attr_linear2"}
    written = {}
    for name, tensor in state.items():
        for theirs, milvlg in renamed.items():
            name = name.replace(f"{HEAD}.{theirs}.", f"{HEAD}.{milvlg}.")
        written[name] = tensor.clone()
    anchors = len(state[f"{RPN}.objectness_logits.bias"])
    order = torch.arange(anchors).view(-1, 3).T.flatten()
    for kind in ("weight", "bias"):
        name = f"{RPN}.objectness_logits.{kind}"
        foreground = written[name][order]
        background = torch.randn(foreground.shape, generator=rng) * 0.1
        written[name] = torch.cat([background, background + foreground])
        name = f"{RPN}.anchor_deltas.{kind}"
        written[name] = written[name].unflatten(0, (anchors, 4))[order].flatten(0, 1)
        for layer in ("cls_score", "cls_embed", "attr_linear2"):
            name = f"{HEAD}.{layer}.{kind}"
            if name in written:
                written[name] = torch.cat([written[name][-1:], written[name][:-1]])
        name = f"{HEAD}.bbox_pred.{kind}"
        units = torch.tensor(np.tile(BOX_UNITS, len(written[name]) // 4), dtype=torch.float32)
        rows = written[name] / units.view(-1, *[1] * (written[name].ndim - 1))
        written[name] = torch.cat([torch.randn(4, *rows.shape[1:], generator=rng), rows])
    return written


def to_milvlg_d2(state: State) -> State:
    """The names of MILVLG's Detectron2-trained files, whose attribute layer knows no "none"."""
    renamed = {"cls_embedding": "obj_embed", "fc_attr": "fc.0", "attr_score": "attr_score"}
    written = {}
    for name, tensor in state.items():
        for theirs, milvlg in renamed.items():
            name = name.replace(f"{HEAD}.{theirs}.", f"{ATTRIBUTES}.{milvlg}.")
        written[name] = tensor[:400] if name.startswith(f"{ATTRIBUTES}.attr_score") else tensor
    return written


def to_grid_feats(state: State, rpn: int, hidden: int) -> State:
    """A ResNet's tensors in a file of grid-feats-vqa: res5 in the backbone, heads on it that are random anew.

    `rpn` and `hidden` are the channels of the region proposal layer and of the two layers of the box head. The
    file also has the buffers that Detectron2 stored in 2020.
    """
    rng = torch.Generator().manual_seed(3)
    embedding = state[f"{HEAD}.cls_embedding.weight"]
    channels = 8 * embedding.shape[1]
    written = {
        name.replace("roi_heads.res5", "backbone.res5"): tensor
        for name, tensor in state.items()
        if name.startswith(("backbone.", "roi_heads.res5."))
    }
    for name, *shape in (
        (f"{RPN}.conv", rpn, channels, 3, 3),
        (f"{RPN}.objectness_logits", 15, rpn, 1, 1),
        (f"{RPN}.anchor_deltas", 60, rpn, 1, 1),
        ("roi_heads.box_head.fc1", hidden, channels),
        ("roi_heads.box_head.fc2", hidden, hidden),
        (f"{HEAD}.cls_score", 1601, hidden),
        (f"{HEAD}.bbox_pred", 6400, hidden),
        (f"{ATTRIBUTES}.fc.0", channels // 4, hidden + channels // 8),
        (f"{ATTRIBUTES}.attr_score", 400, channels // 4),
    ):
        written[f"{name}.weight"] = torch.randn(shape, generator=rng)
        written[f"{name}.bias"] = torch.randn(shape[0], generator=rng)
    written[f"{ATTRIBUTES}.obj_embed.weight"] = embedding
    written["pixel_mean"], written["pixel_std"] = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return with_anchors(written, detectron2_anchors((32, 64, 128, 256, 512)))


def to_preactivated(state: State, seed: int = 5) -> State:
    """A network in MILVLG's Caffe conventions with batch norms before its convolutions, as its R-152 has them.

    The convolutions stay as they are; the batch norms, which go to other places, are drawn anew.
    """
    rng = torch.Generator().manual_seed(seed)
    written = {name: tensor for name, tensor in state.items() if ".norm." not in name}
    stem = state["backbone.stem.conv1.weight"]
    norms = {"backbone.stem.norm": stem.shape[1], "backbone.stem.conv1.norm": stem.shape[0]}
    for name, tensor in list(written.items()):
        here, _, layer = name.removesuffix(".weight").rpartition(".")
        if ".res" in here and layer == "conv1":
            norms[f"{here}.norm"] = tensor.shape[1]
        elif ".res" in here and layer in ("conv2", "conv3"):
            norms[f"{here}.{layer}.norm"] = tensor.shape[1]
            if layer == "conv3":
                written[name] = 0.4 * tensor  # the branches add up without batch norms between them
                norms["roi_heads.res5_bn"] = tensor.shape[0]  # of the last one
    for name, channels in norms.items():
        written[f"{name}.weight"] = 0.8 + 0.4 * torch.rand(channels, generator=rng)
        written[f"{name}.bias"] = 0.2 * torch.randn(channels, generator=rng)
        written[f"{name}.running_mean"] = torch.zeros(channels)
        written[f"{name}.running_var"] = torch.ones(channels)
    return written


def with_anchors(state: State, anchors: np.ndarray) -> State:
    return {**state, ANCHORS: torch.from_numpy(anchors).float()}


def with_counters(state: State) -> State:
    """Hugging Face's file also has the batch-norms' counters."""
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in state
        if name.endswith("running_mean")
    }
    return {**state, **counters}


def write_airsplay(path: Path, state: State) -> None:
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    content = {"model": arrays, "__author__": "Caffe", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=2))
