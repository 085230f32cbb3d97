"""Weight files of maskrcnn-benchmark with the attribute layers of scene_graph_benchmark: VinVL's detector.

`vinvl_vg_x152c4.pth` is such a file. The background is the first class, and "no attribute" the first attribute.
Batch norms have no eps. The attributes' branch shares its res5 with the box branch, and the file holds that twice.
"""

import re

import torch

_RPN, _HEAD = "proposal_generator.rpn_head", "roi_heads.box_predictor"
_BOX_BRANCH, _ATTRIBUTE_BRANCH = "roi_heads.box.feature_extractor.", "attribute.feature_extractor."
_EPS = 1e-5  # of the network's batch norms
_PLACES = (
    (r"backbone\.body\.stem\.", "backbone.stem."),
    (r"backbone\.body\.layer1\.", "backbone.res2."),
    (r"backbone\.body\.layer2\.", "backbone.res3."),
    (r"backbone\.body\.layer3\.", "backbone.res4."),
    (r"roi_heads\.box\.feature_extractor\.head\.layer4\.", "roi_heads.res5."),
    (r"rpn\.anchor_generator\.", "proposal_generator.anchor_generator."),
    (r"rpn\.head\.conv\.", f"{_RPN}.conv."),
    (r"rpn\.head\.cls_logits\.", f"{_RPN}.objectness_logits."),
    (r"rpn\.head\.bbox_pred\.", f"{_RPN}.anchor_deltas."),
    (r"roi_heads\.box\.predictor\.", f"{_HEAD}."),
    (r"attribute\.predictor\.", f"{_HEAD}."),
)
_LAYERS = (
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn([1-3])\.", r".conv\1.norm."),
)
_BACKGROUND_FIRST = tuple(f"{_HEAD}.{layer}." for layer in ("cls_score", "cls_embedding", "attr_score"))


def is_maskrcnn(state: dict[str, torch.Tensor]) -> bool:
    """Whether a file's tensors have maskrcnn-benchmark's names."""
    return any(name.startswith(("backbone.body.", "rpn.head.")) for name in state)


def from_maskrcnn(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under this network's names and in its conventions.

    What has no place in the network keeps its name, for messages; so does a res5 of the attributes' branch that
    differs from that of the box branch.
    """
    converted = {}
    for name, tensor in state.items():
        if name.startswith(_ATTRIBUTE_BRANCH):
            shared = state.get(_BOX_BRANCH + name.removeprefix(_ATTRIBUTE_BRANCH))
            if shared is not None and torch.equal(shared, tensor):
                continue
        place = _place(name)
        converted[place] = _in_our_convention(place, tensor)
    return converted


def _place(name: str) -> str:
    """A tensor's name here: `backbone.body.layer3.7.bn2.weight` is `backbone.res4.7.conv2.norm.weight`."""
    for pattern, place in _PLACES:
        renamed, found = re.subn(f"^{pattern}", place, name)
        if found:
            for layer, ours in _LAYERS:
                renamed = re.sub(layer, ours, renamed)
            return renamed
    return name


def _in_our_convention(place: str, tensor: torch.Tensor) -> torch.Tensor:
    if place.endswith(".norm.running_var"):
        return tensor - _EPS
    if place.startswith(_BACKGROUND_FIRST):
        return tensor.roll(-1, dims=0)  # from first to last
    return tensor[4:] if place.startswith(f"{_HEAD}.bbox_pred.") else tensor
