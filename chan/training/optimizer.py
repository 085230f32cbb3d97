"""AdamW with a smaller learning rate for BERT's pretrained weights."""

from torch.optim import AdamW

from chan.model.chan import Chan
from chan.model.text_encoders import BertEncoder


def make_optimizer(model: Chan, lr: float, text_lr_factor: float, weight_decay: float) -> AdamW:
    """AdamW over all parameters; those of a pretrained BERT get `text_lr_factor` times the learning rate.

    Fused: one pass over a weight, its gradient and its moments, on the CPU as on a GPU.
    """
    bert = list(model.text_encoder.bert.parameters()) if isinstance(model.text_encoder, BertEncoder) else []
    pretrained = {id(parameter) for parameter in bert}
    others = [parameter for parameter in model.parameters() if id(parameter) not in pretrained]
    groups = [{"params": others, "factor": 1.0}]
    if bert:
        groups.append({"params": bert, "factor": text_lr_factor})
    return AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


def set_learning_rate(optimizer: AdamW, lr: float) -> None:
    """Set the learning rate of every group of `make_optimizer`: `lr` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
