"""Published weight files, converted to this network's names and conventions.

airsplay's `.pkl`, Hugging Face's `pytorch_model.bin` and files that Detectron2 or `butd train` wrote have the
network's own names. VinVL's file has those of maskrcnn-benchmark, see extract/weights/maskrcnn_names.py. Two
formats of MILVLG/bottom-up-attention.pytorch differ:

- Caffe-trained (`bua-caffe-frcn-*.pth`): objectness has a background and a foreground logit for each anchor, all
  of the background first; the background is the first class and "none" the first attribute; the box layer also
  has rows for the background, and is in plain units, where Detectron2's divides by its weights 10, 10, 5, 5.
  In the file of the R-152 the batch norm of res5's input, which the region proposals have too, is in res5's first
  block, and that of its output beside res5.
- Detectron2-trained (`bua-d2-frcn-*.pth`): the attribute layers are a module of their own, as in the files of
  facebookresearch/grid-feats-vqa.
"""

import torch

from extract.weights.maskrcnn_names import from_maskrcnn, is_maskrcnn

Tensors = dict[str, torch.Tensor]
HEAD = "roi_heads.box_predictor"
OBJECTNESS = "proposal_generator.rpn_head.objectness_logits"
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

_CAFFE_NAMES = {
    f"{HEAD}.cls_embed.weight": f"{HEAD}.cls_embedding.weight",
    **{
        f"{HEAD}.{theirs}.{kind}": f"{HEAD}.{ours}.{kind}"
        for theirs, ours in (("attr_linear1", "fc_attr"), ("attr_linear2", "attr_score"))
        for kind in ("weight", "bias")
    },
    **{
        f"roi_heads.{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (("res5.0.norm", "backbone.norm"), ("res5_bn", "roi_heads.res5.3"))
        for kind in ("weight", "bias", "running_mean", "running_var")
    },
}
_DETECTRON2_NAMES = {
    "roi_heads.attribute_predictor.obj_embed.weight": f"{HEAD}.cls_embedding.weight",
    **{
        f"roi_heads.attribute_predictor.{theirs}.{kind}": f"{HEAD}.{ours}.{kind}"
        for theirs, ours in (("fc.0", "fc_attr"), ("attr_score", "attr_score"))
        for kind in ("weight", "bias")
    },
}


def ratio_by_ratio(state: Tensors) -> bool:
    """Whether a file's anchors come in Caffe's order, all sizes of a ratio together."""
    return _has_paired_objectness(state) or is_maskrcnn(state)


def _has_paired_objectness(state: Tensors) -> bool:
    objectness, deltas = (state.get(f"{name}.weight") for name in (OBJECTNESS, _DELTAS))
    return objectness is not None and deltas is not None and 2 * len(objectness) == len(deltas)


_DELTAS = "proposal_generator.rpn_head.anchor_deltas"


def convert(state: Tensors) -> Tensors:
    """The tensors of any published format under this network's names."""
    if is_maskrcnn(state):
        return from_maskrcnn(state)
    if _has_paired_objectness(state) or any(name in state for name in _CAFFE_NAMES):
        return _from_milvlg_caffe(state)
    return {_DETECTRON2_NAMES.get(name, name): tensor for name, tensor in state.items()}


def _from_milvlg_caffe(state: Tensors) -> Tensors:
    converted = {_CAFFE_NAMES.get(name, name): tensor for name, tensor in state.items()}
    for kind in ("weight", "bias"):
        if _has_paired_objectness(state):
            background, foreground = converted[f"{OBJECTNESS}.{kind}"].chunk(2)
            converted[f"{OBJECTNESS}.{kind}"] = foreground - background  # the sigmoid of it is their softmax
        for layer in ("cls_score", "cls_embedding", "attr_score"):
            name = f"{HEAD}.{layer}.{kind}"
            if name in converted:
                converted[name] = converted[name].roll(-1, dims=0)  # from first to last
        name = f"{HEAD}.bbox_pred.{kind}"
        if name in converted:
            converted[name] = _box_layer(converted[name])
    return converted


def _box_layer(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of the box layer without the background's four, in Detectron2's units."""
    rows = tensor[4:].float()
    units = rows.new_tensor(BOX_WEIGHTS).repeat(len(rows) // 4)
    return rows * units.view(-1, *[1] * (rows.ndim - 1))
